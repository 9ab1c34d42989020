"""One of several processes that do what a plan says; started by runtime/hosts_test.py.

A plan is a list of [what, arguments by name]. `train` trains a tiny model on a mesh of
4 devices, however many processes they are shared by; `read` restores what another
number of processes has written.
"""

import dataclasses
import json
import os
from pathlib import Path
import signal as signals
import sys
import time
import types
from unittest import mock

import jax
import numpy as np

from alignment.core import optim, rollout, train_step
from alignment.core.loop import Learner, Schedule, train
from alignment.data import sources
from alignment.models import registry, t5
from alignment.runtime import checkpoint, exits, hosts, sharding, supervise
from alignment.runtime.files import write_json
from alignment.types import UserError
from tests import quickly, tiny
from tests.core import loop_test

MODELS = {
  "t5": t5.T5(tiny.CFG),
  "llama": registry.model(dataclasses.replace(tiny.DECODERS["llama"], num_layers=1)),
}
OPTIMIZER = optim.Optimizer("adamw")


def run(
  directory: str | Path,
  steps: int,
  signal: int = 0,
  at: int = -1,
  process: int = -1,
  family: str = "t5",
) -> None:
  """Trains up to `steps`; saves the first batches' ids, and the final parameters.

  With a `signal`, that process sends it to itself at step `at`, and then all go slowly.
  """
  directory = Path(directory)
  mesh = sharding.make_mesh(2, 2) if jax.device_count() == 4 else sharding.make_mesh()
  ids = []

  class Source(sources.OfflineSource):
    def batch(self, step, params=None):
      if signal and step >= at:
        if step == at and hosts.distributed.global_state.process_id == process:
          os.kill(os.getpid(), signal)
        time.sleep(0.5)
      batch = super().batch(step)
      if step < 8:
        ids.append(sharding.fetch(batch.ids_B).tolist())
      return batch

  source = Source(loop_test.dataset(), 8, tiny.S, tiny.T, mesh, seed=1)
  model = MODELS[family]
  rules = model.layout_rules(mesh.shape["tensor"])
  objective = train_step.PolicyObjective(model, "ipo")
  layout = train_step.abstract_state(model, OPTIMIZER, mesh, rules)
  learner = Learner(
    abstract_state=layout,
    init_state=jax.jit(
      lambda: train_step.init_state(model.init(jax.random.key(3)), OPTIMIZER),
      out_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout),
    ),
    step=train_step.compiled(objective, OPTIMIZER, 1, mesh, rules, model),
    hyper=train_step.hyper(1e-2, warmup_steps=3, beta=0.1),
  )
  schedule = Schedule(steps, keep_params_at=(steps,), log_every=3, save_every=10)
  state = train("tiny", directory, learner, source, schedule)
  write_json(directory / "ids.json", ids)
  flat = jax.tree.leaves(sharding.fetch(state.params))
  np.savez(directory / f"final-{jax.process_index()}.npz", *flat)


def read(directory: str | Path, step: int) -> None:
  """Restores parameters under this number of processes: they are what was written."""
  directory = Path(directory)
  mesh = sharding.make_mesh(2, 2) if jax.device_count() == 4 else sharding.make_mesh()
  layout = train_step.abstract_state(MODELS["t5"], OPTIMIZER, mesh, t5.RULES)
  restored = checkpoint.restore_params(directory, step, layout.params)
  with np.load(directory / "final-0.npz") as written:
    for name, leaf in zip(
      written, jax.tree.leaves(sharding.fetch(restored)), strict=True
    ):
      np.testing.assert_array_equal(written[name], leaf, strict=True)


def roll(directory: str | Path) -> None:
  """Rolls out with a judge on the host, and saves the whole batch.

  Of 8 rows on 4 devices, so every process judges its own.
  """
  mesh = sharding.make_mesh(2, 2) if jax.device_count() == 4 else sharding.make_mesh()
  judged = []

  class Judge(tiny.HostDigits):
    def scores(self, params, batch):
      judged.append(len(batch.ids_B))
      return super().scores(params, batch)

  roller = rollout.Roller(tiny.SAMPLER, MODELS["t5"], Judge(), 4, "best_worst")
  params = jax.device_put(tiny.params(), sharding.replicated(mesh))
  prompts = sharding.put_batch(tiny.batch(8), mesh)
  rolled = rollout.compiled(roller, mesh)(
    params, params, (), prompts, jax.random.key(1)
  )
  assert judged == [8 // jax.process_count()]
  rolled = sharding.fetch(rolled)
  arrays = vars(rolled) | vars(rolled.batch)
  del arrays["batch"]
  np.savez(Path(directory) / f"rolled-{jax.process_index()}.npz", **arrays)


def refuse() -> None:
  """The first process finds what the user has to mend; all say so."""

  def find() -> None:
    raise UserError("the first cannot read it")

  hosts.on_first(find)


def fail_alone() -> None:
  """One process finds it while the others are at work."""
  if jax.process_index() == 1:
    raise UserError("only I cannot read it")
  time.sleep(120)


def interrupt_alone() -> None:
  """One process gets SIGINT while the others are at work."""
  if jax.process_index() == 1:
    os.kill(os.getpid(), signals.SIGINT)
  time.sleep(120)


def work(plan: list) -> None:
  tasks = {"train": run, "read": read, "roll": roll}
  tasks |= {task.__name__: task for task in (refuse, fail_alone, interrupt_alone)}
  for what, arguments in plan:
    tasks[what](**arguments)
  hosts.end()


if __name__ == "__main__":
  port, count, index, heartbeat, plan = sys.argv[1:]
  no_tensorflow = types.SimpleNamespace(metric_writers=mock.MagicMock())
  sys.modules["clu"] = no_tensorflow  # takes seconds to import
  quickly.collect_rarely()
  # A shell's background jobs ignore it, the tests and this process among them.
  signals.signal(signals.SIGINT, signals.default_int_handler)

  def program():
    arguments = hosts.configured(f"127.0.0.1:{port}", int(count), int(index))
    status_pipe = supervise.supervise(int(heartbeat))
    hosts.start(arguments, int(heartbeat), status_pipe)
    work(json.loads(plan))

  exits.exit_with_status(program)
