"""The training loop: a resumed run is the undisturbed run, bit for bit."""

import dataclasses
import itertools
import math
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import optim, rollout, train_step
from alignment.core.loop import Learner, Schedule, train
from alignment.data import pairs, sources
from alignment.models import t5
from alignment.runtime import hosts, metrics, sharding
from alignment.runtime.checkpoint import Checkpoints
from alignment.runtime.files import read_npz
from alignment.types import Preempted, UserError
from tests import quickly, tiny


@pytest.fixture(scope="module", autouse=True)
def unoptimised():
  """Not `compile_quickly`: its programs with and without skipping round differently."""
  with quickly.compiled(fusion_emitters=True):
    yield


KINDS = ("sft", "offline", "online", "semi_online")


def dataset(size: int = 10) -> pairs.PairDataset:
  """Random pairs; 10 are no multiple of the batch, so batches straddle epochs."""
  rng = np.random.default_rng(0)

  def rows(longest: int) -> pairs.Ragged:
    lengths = rng.integers(1, longest + 1, size)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return pairs.Ragged(rng.integers(2, tiny.LIVE, offsets[-1], np.int32), offsets)

  return pairs.PairDataset(rows(tiny.S), (rows(tiny.T), rows(tiny.T)))


def run(
  kind: str, directory: Path, steps: int, skip=False, **changes
) -> train_step.TrainState:
  """Trains a tiny model for some steps; the state that it ends with."""
  mesh, model = sharding.make_mesh(), tiny.POLICY
  source = sources.OfflineSource(dataset(), 4, tiny.S, tiny.T, mesh, seed=1)
  objective = train_step.PolicyObjective(model, "ipo")
  if kind == "sft":
    objective = train_step.SupervisedObjective(model)
  if kind in ("online", "semi_online"):
    roll = rollout.compiled(rollout.Roller(tiny.SAMPLER, model, tiny.JUDGE), mesh)

    def online_batch(params, prompts, key):
      return roll(params, tiny.params(0), tiny.params(5), prompts, key)

    source = sources.OnlineSource(source, online_batch, jax.random.key(2))
  optimizer = optim.Optimizer("adamw")
  rules = t5.RULES
  step = train_step.compiled(objective, optimizer, 1, mesh, rules, model, skip)

  def init_state():
    state = train_step.init_state(jax.tree.map(jnp.array, tiny.params()), optimizer)
    return jax.device_put(state, sharding.replicated(mesh))

  learner = Learner(
    abstract_state=train_step.abstract_state(model, optimizer, mesh, rules),
    init_state=init_state,
    step=step,
    hyper=train_step.hyper(1e-2, warmup_steps=3, beta=0.1),
  )
  schedule = Schedule(
    steps=steps,
    keep_params_at=(0, 2, 4),
    log_every=1,
    save_every=2,
    refresh_every=3 if kind == "semi_online" else 1,  # no divisor of save_every
  )
  return train(
    kind,
    directory,
    changed(learner, changes),
    changes.get("source", source),
    changed(schedule, changes),
    changes.get("before_save"),
  )


def changed(settings: Any, changes: dict[str, Any]) -> Any:
  """A dataclass with those of the changes that are fields of it."""
  names = {field.name for field in dataclasses.fields(settings)}
  return dataclasses.replace(
    settings, **{name: changes[name] for name in names & changes.keys()}
  )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def names(directory: Path) -> list[str]:
  return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_resume_and_two_more_are_four(kind, tmp_path):
  whole = run(kind, tmp_path / "whole", 4)
  half = run(kind, tmp_path / "halves", 2)
  assert int(half.step) == 2
  resumed = run(kind, tmp_path / "halves", 4)
  assert int(resumed.step) == 4
  assert_same_bits(whole, resumed)
  logged = [tmp_path / name / "metrics.jsonl" for name in ("whole", "halves")]
  assert logged[0].read_bytes() == logged[1].read_bytes()
  rows = metrics.read_jsonl(logged[0])
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert len({row["loss"] for row in rows}) == 4  # it does train


def test_resuming_makes_no_second_state(tmp_path):
  """At 11B parameters a fresh state beside the restored one would not fit."""

  def init_state():
    raise AssertionError("made a state only to replace it")

  run("sft", tmp_path, 2)
  assert int(run("sft", tmp_path, 4, init_state=init_state).step) == 4


def test_keeps_two_states_and_the_parameters_to_be_evaluated(tmp_path):
  run("sft", tmp_path, 7, keep_params_at=(0, 3, 7), log_every=2)
  assert names(tmp_path / "state") == ["6", "7"]
  assert names(tmp_path / "params") == ["0", "3", "7"]
  rows = metrics.read_jsonl(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [2, 4, 6, 7]


def test_what_belongs_to_a_state_is_written_before_it(tmp_path, monkeypatch):
  calls = []
  save_state = Checkpoints.save_state

  def noted(self, step, *args):
    calls.append(("state", step))
    save_state(self, step, *args)

  monkeypatch.setattr(Checkpoints, "save_state", noted)
  run("sft", tmp_path, 3, before_save=lambda step: calls.append(("before", step)))
  assert calls == [("before", 2), ("state", 2), ("before", 3), ("state", 3)]


def test_finished_training_takes_no_step(tmp_path):
  done = run("sft", tmp_path, 2)
  again = run("sft", tmp_path, 2, source=None)  # which no step could do without
  assert_same_bits(done, again)


class Poisoned(sources.OfflineSource):
  """Pairs whose reference log-probabilities are NaN at step 5 (counted from 1)."""

  def host_batch(self, step, rows=slice(None)):
    batch = super().host_batch(step, rows)
    if step == 4:
      batch = batch.replace(ref_logps_BxN=batch.ref_logps_BxN * np.nan)
    return batch


def poisoned() -> Poisoned:
  return Poisoned(dataset(), 4, tiny.S, tiny.T, sharding.make_mesh(), seed=1)


def test_a_loss_that_is_not_finite_stops_with_step_ids_and_batch(tmp_path):
  with pytest.raises(UserError) as error:
    run("offline", tmp_path, 8, source=poisoned(), log_every=4, save_every=4)
  batch = poisoned().host_batch(4)
  ids = ", ".join(map(str, batch.ids_B))
  path = tmp_path / "non_finite_step_5.npz"
  assert str(error.value) == (
    f"offline: loss nan, gradient norm nan at step 5 (pairs {ids}, ...; its batch is "
    f"in {path}); lower the learning rate, or set on_non_finite='skip'"
  )
  saved = read_npz(path)
  for name, array in dataclasses.asdict(batch).items():
    np.testing.assert_array_equal(saved[name], array)
  assert names(tmp_path / "state") == ["4"]  # nothing later to resume from


def test_a_diverging_run_stops_before_its_state_is_saved(tmp_path):
  with pytest.raises(UserError, match="sft: loss nan.* at step 2 "):
    run("sft", tmp_path, 8, hyper=train_step.hyper(math.inf), log_every=2, save_every=2)
  assert not names(tmp_path / "state")


def test_a_step_that_is_skipped_changes_nothing_and_is_counted(tmp_path):
  options = {"skip": True, "source": poisoned(), "log_every": 5, "save_every": 5}
  before = run("offline", tmp_path / "before", 4, **options)
  after = run("offline", tmp_path / "after", 5, **options)
  assert int(after.step) == 5
  assert_same_bits(before.params, after.params)
  assert_same_bits(before.opt_state, after.opt_state)


def test_skipping_leaves_finite_steps_bit_for_bit_and_logs_the_rest(tmp_path):
  same = [
    run("offline", tmp_path / str(skip), 4, skip=skip, log_every=2)
    for skip in (False, True)
  ]
  assert_same_bits(*same)
  run("offline", tmp_path / "bad", 6, skip=True, source=poisoned(), log_every=2)
  rows = metrics.read_jsonl(tmp_path / "bad" / "metrics.jsonl")
  assert [row["skipped"] for row in rows] == [0, 0, 0.5]
  assert all(math.isfinite(v) for row in rows for v in row.values())
  with pytest.raises(UserError, match="at step 5"):  # a whole interval is skipped
    run("offline", tmp_path / "all", 6, skip=True, source=poisoned(), log_every=1)
  # The last interval may be one step.
  run("offline", tmp_path / "last", 5, skip=True, source=poisoned(), log_every=2)
  rows = metrics.read_jsonl(tmp_path / "last" / "metrics.jsonl")
  assert [row["step"] for row in rows] == [2, 4]


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_preempted_at_any_step_it_ends_the_same(stop, tmp_path, monkeypatch, capsys):
  """Also between two logged steps: the pending sums are saved with the state."""
  options = {"log_every": 3, "save_every": 4}
  whole = run("offline", tmp_path / "whole", 6, **options)
  calls = itertools.count(1)
  monkeypatch.setattr(hosts, "preempted", lambda: next(calls) == stop)
  with pytest.raises(Preempted, match=f"offline: pre-empted at step {stop}, saved"):
    run("offline", tmp_path / "stopped", 6, **options)
  assert names(tmp_path / "stopped" / "state") == [str(stop)]
  resumed = run("offline", tmp_path / "stopped", 6, **options)
  assert_same_bits(whole, resumed)
  logged = [(tmp_path / d / "metrics.jsonl").read_bytes() for d in ("whole", "stopped")]
  assert logged[0] == logged[1] and logged[0].count(b"\n") == 2
  assert "lost rows" not in capsys.readouterr().out  # none was due yet


def test_killed_at_a_random_moment_it_ends_the_same(tmp_path):
  moment = random.uniform(0, 2)
  print(f"killed {moment:.3f} s after its first saved state")  # shown if this fails
  directory = tmp_path / "killed"
  program = (
    "from pathlib import Path\nfrom tests.core import loop_test\n"
    f"loop_test.run('offline', Path({str(directory)!r}), 10**6)"
  )
  victim = subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=Path(__file__).parents[2],
    stdout=subprocess.DEVNULL,
    env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
  )
  try:
    deadline = time.monotonic() + 120
    while not list(directory.glob("state/[1-9]*")) and time.monotonic() < deadline:
      time.sleep(0.02)
    time.sleep(moment)
    assert victim.poll() is None, "it ended before it could be killed"
  finally:
    victim.send_signal(signal.SIGKILL)
    victim.wait()
  steps = len(metrics.read_jsonl(directory / "metrics.jsonl")) + 4
  assert steps > 4
  resumed = run("offline", directory, steps)
  whole = run("offline", tmp_path / "whole", steps)
  assert_same_bits(whole, resumed)
  logged = [(tmp_path / d / "metrics.jsonl").read_bytes() for d in ("whole", "killed")]
  assert logged[0] == logged[1]
