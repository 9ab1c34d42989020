"""The training loop: a resumed run is the undisturbed run, bit for bit."""

import math
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from alignment import metrics, optim, rollout, train_step
from alignment.data import pairs, sources
from alignment.stages import Setting, make_data
from alignment.train import train
from alignment.types import UserError
from tests import studies

KINDS = ("sft", "offline", "online")
ROLE = {"size": "nano", "init": "scratch"}


def parts(kind: str, data: Path):
  """(setting, model, objective, source) of one kind of training, from fixed seeds."""
  setting = Setting(studies.nano(), world=0)
  model = setting.model(ROLE)
  source = sources.OfflineSource(
    pairs.PairDataset.load(data / "train"),
    batch_size=4,
    **setting.lengths,
    mesh=setting.mesh,
    seed=1,
  )
  if kind == "sft":
    return setting, model, train_step.SupervisedObjective(model), source
  if kind == "online":
    judge = setting.preference_model(ROLE)
    start, judge_params = (setting.initial_params(ROLE, {}, seed) for seed in (0, 5))
    roll = rollout.compiled(rollout.Roller(model, model, judge), setting.mesh)

    def online_batch(params, prompts, key):
      return roll(params, start, judge_params, prompts, key).batch

    source = sources.OnlineSource(source, online_batch, jax.random.key(2))
  return setting, model, train_step.PolicyObjective(model, "ipo"), source


def run(kind: str, data: Path, directory: Path, steps: int, **changes):
  """Trains the nano model for some steps; the state it ends with."""
  setting, model, objective, source = parts(kind, data)
  optimizer = optim.Optimizer("adamw")
  mesh, rules = setting.mesh, setting.rules
  options = {
    "hyper": train_step.hyper(1e-2, warmup_steps=3, beta=0.1),
    "source": source,
    "keep_params_at": (0, 2, 4),
    "log_every": 1,
    "save_every": 2,
  }
  return train(
    name=kind,
    directory=directory,
    init_state=lambda: train_step.init_state(
      setting.initial_params(ROLE, {}, seed=0), optimizer
    ),
    train_step=train_step.compiled(objective, optimizer, 1, mesh, rules, model),
    steps=steps,
    **(options | changes),
  )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def names(directory: Path) -> list[str]:
  return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data")
  setting = Setting(studies.nano(), world=0)
  make_data(setting, setting.config.data.to_dict(), directory, {})
  return directory


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_resume_and_two_more_are_four(kind, data, tmp_path):
  whole = run(kind, data, tmp_path / "whole", 4)
  half = run(kind, data, tmp_path / "halves", 2)
  assert int(half.step) == 2
  resumed = run(kind, data, tmp_path / "halves", 4)
  assert int(resumed.step) == 4
  assert_same_bits(whole, resumed)
  logged = [tmp_path / name / "metrics.jsonl" for name in ("whole", "halves")]
  assert logged[0].read_bytes() == logged[1].read_bytes()
  rows = metrics.read_jsonl(logged[0])
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert len({row["loss"] for row in rows}) == 4  # it does train


def test_keeps_two_states_and_the_parameters_to_be_evaluated(data, tmp_path):
  run("sft", data, tmp_path, 7, keep_params_at=(0, 3, 7), log_every=2)
  assert names(tmp_path / "state") == ["6", "7"]
  assert names(tmp_path / "params") == ["0", "3", "7"]
  assert [r["step"] for r in metrics.read_jsonl(tmp_path / "metrics.jsonl")] == [2, 4, 6, 7]


def test_finished_training_takes_no_step(data, tmp_path):
  def stepping(*_):
    raise AssertionError("a step was taken")

  done = run("sft", data, tmp_path, 2)
  again = run("sft", data, tmp_path, 2, source=stepping)
  assert_same_bits(done, again)


def test_a_loss_that_is_not_finite_stops_with_a_line(data, tmp_path):
  hyper = train_step.hyper(math.inf)
  with pytest.raises(UserError, match="sft: loss nan.*before step 4; lower the learning"):
    run("sft", data, tmp_path, 8, hyper=hyper, log_every=2, save_every=8)
  assert names(tmp_path / "params") == ["0", "2"]
  assert not list((tmp_path / "state").iterdir())  # nothing to resume into the same


def test_states_are_saved_where_metrics_are_complete(data, tmp_path):
  with pytest.raises(UserError, match="save_every 3 is not a multiple of log_every 2"):
    run("sft", data, tmp_path, 4, log_every=2, save_every=3)
  assert not (tmp_path / "state").exists()


def test_killed_at_a_random_moment_it_ends_the_same(data, tmp_path):
  steps = 400
  moment = random.uniform(0, 3)
  print(f"killed {moment:.3f} s after its first saved state")  # shown if this fails
  directory = tmp_path / "killed"
  program = (
    "from pathlib import Path\nfrom tests import train_test\n"
    f"train_test.run('offline', Path({str(data)!r}), Path({str(directory)!r}), {steps})"
  )
  victim = subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=Path(__file__).parents[1],
    stdout=subprocess.DEVNULL,
    env={**os.environ, "JAX_NUMPY_RANK_PROMOTION": "raise"},
  )
  deadline = time.monotonic() + 120
  while not list(directory.glob("state/*/state")) and time.monotonic() < deadline:
    time.sleep(0.02)
  time.sleep(moment)
  assert victim.poll() is None, "it ended before it could be killed"
  victim.send_signal(signal.SIGKILL)
  victim.wait()
  killed_at = len(metrics.read_jsonl(directory / "metrics.jsonl"))
  assert 0 < killed_at < steps
  steps = killed_at + 4
  resumed = run("offline", data, directory, steps)
  whole = run("offline", data, tmp_path / "whole", steps)
  assert_same_bits(whole, resumed)
  logged = [(tmp_path / d / "metrics.jsonl").read_bytes() for d in ("whole", "killed")]
  assert logged[0] == logged[1]
