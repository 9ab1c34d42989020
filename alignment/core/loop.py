"""The training loop: the same for every stage that trains."""

from collections.abc import Callable, Collection
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.core.train_step import Hyper, TrainState
from alignment.data.sources import Source
from alignment.runtime import hosts, sharding
from alignment.runtime import metrics as metrics_lib
from alignment.runtime.checkpoint import Checkpoints
from alignment.runtime.files import write_npz
from alignment.types import Batch, Preempted, UserError

WATCHED = ("loss", "grad_norm")  # metrics that must stay finite


def train(
  *,
  name: str,
  directory: Path,
  abstract_state: TrainState,
  init_state: Callable[[], TrainState],
  train_step: Callable[..., Any],
  hyper: Hyper,
  source: Source,
  steps: int,
  keep_params_at: Collection[int],
  log_every: int,
  save_every: int,
  show: tuple[str, ...] = ("loss",),
  refresh_every: int = 1,
  before_save: Callable[[int], None] | None = None,
) -> TrainState:
  """Trains up to `steps`, resuming from the newest state in `directory`.

  Args:
    name: printed in front of progress lines.
    directory: receives `state/`, `params/<step>/`, `metrics.jsonl`, `tensorboard/`.
    abstract_state: shapes, dtypes and layout of the state, to restore into.
    init_state: makes the state at step 0; not called where there is one to resume.
    train_step: `train_step.compiled(...)`.
    hyper: learning rate, warm-up and beta.
    source: batches as a function of (step, params).
    steps: the last step.
    keep_params_at: steps whose parameters are kept for evaluation.
    log_every: steps between logged metrics.
    save_every: steps between full states.
    show: metrics named in the progress line.
    refresh_every: steps between renewals of the parameters that `source` is handed:
      1 hands it the newest; with more, the copy belongs to the saved state.
    before_save: called with the step before its state is saved: what it writes is on
      disk when a run resumes from that state.

  Raises:
    UserError: if the loss or a gradient is not finite, with its batch saved in
      `non_finite_step_<n>.npz`.
    Preempted: if asked to stop; the state is saved.
  """
  checkpoints = Checkpoints(directory)
  wanted = {"state": abstract_state}
  if refresh_every > 1:
    wanted["behaviour"] = abstract_state.params
  start = checkpoints.restore(wanted) or {"state": init_state(), "pending": []}
  state, behaviour = start["state"], start.get("behaviour")  # what `source` is handed
  pending: list[tuple[dict, Batch | None]]  # of steps that are not logged yet
  pending = [(metrics, None) for metrics in start["pending"]]
  del start  # the state is to be donated
  step = int(state.step)
  log = metrics_lib.MetricLog(directory, name, steps, step, step - len(pending))

  def write(step: int, pending: list[tuple[dict, Batch | None]]) -> None:
    values = metrics_lib.reduce(metrics for metrics, _ in pending)
    if not all(math.isfinite(values[k]) for k in WATCHED):
      checkpoints.close()
      raise _non_finite(name, directory, step - len(pending), pending)
    log.write(step, values, show)

  if step == 0 and 0 in keep_params_at:
    checkpoints.save_params(0, state.params)
  due: tuple[int, list[tuple[dict, Batch | None]]] | None = None
  while step < steps:
    if refresh_every == 1:
      behaviour = state.params
    elif step % refresh_every == 0:  # a copy, since the step donates the state
      behaviour = None  # gone before the next one is there
      behaviour = jax.tree.map(jnp.copy, state.params)
    batch = source.batch(step, behaviour)
    state, step_metrics = train_step(state, batch, hyper)
    if pending:  # two steps are in flight at most: a stop comes soon
      jax.block_until_ready(pending[-1])
    pending.append((step_metrics, batch))
    step += 1
    stopping = hosts.preempted()
    if due is not None:  # fetched one step late: the device never waits for the host
      write(*due)
      due = None
    if step % log_every == 0 or step == steps:
      due, pending = (step, pending), []
    saving = stopping or step % save_every == 0 or step == steps
    if due is not None and saving:
      write(*due)  # before the state that follows it is saved
      due = None
    if step in keep_params_at:
      checkpoints.save_params(step, state.params)
    if saving:
      if before_save is not None:
        before_save(step)
      saved = {"state": state, "behaviour": behaviour}
      unlogged = metrics_lib.fetch(metrics for metrics, _ in pending)
      if not all(math.isfinite(m[k][0]) for m in unlogged for k in WATCHED):
        checkpoints.close()
        raise _non_finite(name, directory, step - len(pending), pending)
      checkpoints.save_state(step, {name: saved[name] for name in wanted}, unlogged)
    if stopping and step < steps:
      break
  checkpoints.close()
  log.close()
  if step < steps:
    raise Preempted(f"{name}: pre-empted at step {step}, saved")
  return state


def _non_finite(
  name: str, directory: Path, first: int, pending: list[tuple[dict, Batch | None]]
) -> UserError:
  """Saves the batch of the first bad step since `first`, and says which it was."""
  rows = [metrics_lib.reduce([metrics]) for metrics, _ in pending]
  bad = next(
    i
    for i, row in enumerate(rows)
    if pending[i][1] and not all(math.isfinite(row[k]) for k in WATCHED)
  )
  values, step = rows[bad], first + bad + 1
  path = directory / f"non_finite_step_{step}.npz"
  arrays = sharding.fetch(vars(pending[bad][1]))
  write_npz(path, **arrays, **{key: np.array(v) for key, v in values.items()})
  ids = ", ".join(map(str, arrays["ids_B"][:8].tolist()))
  return UserError(
    f"{name}: loss {values['loss']}, gradient norm {values['grad_norm']} at step "
    f"{step} (pairs {ids}, ...; its batch is in {path}); lower the learning rate, or "
    "set on_non_finite='skip'"
  )
