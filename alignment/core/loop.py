"""The training loop: the same for every stage that trains."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.core.train_step import Hyper, TrainState
from alignment.data.sources import Source
from alignment.runtime import hosts, sharding
from alignment.runtime import metrics as metrics_lib
from alignment.runtime.activity import Meter
from alignment.runtime.checkpoint import Checkpoints
from alignment.runtime.files import write_npz
from alignment.runtime.tracking import Tracking
from alignment.types import Batch, Preempted, SumWeight, UserError

WATCHED = ("loss", "grad_norm")  # metrics that must stay finite

Metrics = Mapping[str, SumWeight]


@dataclasses.dataclass(frozen=True)
class Learner:
  """What learns: a state and the step that changes it.

  Attributes:
    abstract_state: shapes, dtypes and layout of the state, to restore into.
    init_state: makes the state at step 0; not called where there is one to resume.
    step: `train_step.compiled(...)`, which donates the state.
    hyper: learning rate, warm-up and beta.
  """

  abstract_state: TrainState
  init_state: Callable[[], TrainState]
  step: Callable[[TrainState, Batch, Hyper], tuple[TrainState, Metrics]]
  hyper: Hyper


@dataclasses.dataclass(frozen=True)
class Schedule:
  """What happens at which step.

  Attributes:
    steps: the last step.
    keep_params_at: steps whose parameters are kept for evaluation.
    log_every: steps between logged metrics.
    save_every: steps between full states.
    refresh_every: steps between renewals of the parameters that the source is handed:
      1 hands it the newest; with more, the copy belongs to the saved state.
    show: metrics named in the progress line.
    tracking: who is told of metrics besides the run's own log.
  """

  steps: int
  keep_params_at: Collection[int]
  log_every: int
  save_every: int
  refresh_every: int = 1
  show: tuple[str, ...] = ("loss",)
  tracking: Tracking = Tracking()

  def logs(self, step: int) -> bool:
    return step % self.log_every == 0 or step == self.steps

  def saves(self, step: int) -> bool:
    return step % self.save_every == 0 or step == self.steps


def train(
  name: str,
  directory: Path,
  learner: Learner,
  source: Source,
  schedule: Schedule,
  before_save: Callable[[int], None] | None = None,
) -> TrainState:
  """Trains up to `schedule.steps`, resuming from the newest state in `directory`.

  Args:
    name: printed in front of progress lines.
    directory: receives `state/`, `params/<step>/`, `metrics.jsonl`, `tensorboard/`.
    learner: the state and its step.
    source: batches as a function of (step, params).
    schedule: what happens when.
    before_save: called with the step before its state is saved: what it writes is on
      disk when a run resumes from that state.

  Raises:
    UserError: if the loss or a gradient is not finite, with its batch saved in
      `non_finite_step_<n>.npz`.
    Preempted: if asked to stop; the state is saved.
  """
  checkpoints = Checkpoints(directory)
  layout = _items(schedule, learner.abstract_state, learner.abstract_state.params)
  items = checkpoints.restore(layout) or {"state": learner.init_state(), "pending": []}
  state, behaviour = items.pop("state"), items.pop("behaviour", None)
  step, stopping = int(state.step), False
  unlogged = _Unlogged(
    name, directory, schedule, step, items["pending"], checkpoints.close
  )
  if step == 0 and 0 in schedule.keep_params_at:
    checkpoints.save_params(0, state.params)
  with unlogged.meter():
    while step < schedule.steps and not stopping:
      if schedule.refresh_every == 1:
        behaviour = state.params
      elif (
        step % schedule.refresh_every == 0
      ):  # a copy, since the step donates the state
        behaviour = None  # gone before the next one is there
        behaviour = jax.tree.map(jnp.copy, state.params)
      batch = source.batch(step, behaviour)
      state, step_metrics = learner.step(state, batch, learner.hyper)
      step += 1
      unlogged.add(_Step(step, step_metrics, batch))
      stopping = hosts.preempted()
      saving = stopping or schedule.saves(step)
      unlogged.write(at_once=saving)  # before the state that follows it is saved
      if step in schedule.keep_params_at:
        checkpoints.save_params(step, state.params)
      if saving:
        if before_save is not None:
          before_save(step)
        saved = _items(schedule, state, behaviour)
        checkpoints.save_state(step, saved, unlogged.fetch())
  checkpoints.close()
  unlogged.close()
  if step < schedule.steps:
    raise Preempted(f"{name}: pre-empted at step {step}, saved")
  return state


def _items(schedule: Schedule, state: TrainState, behaviour: Any) -> dict[str, Any]:
  """What a full state consists of; the newest parameters are in it already."""
  if schedule.refresh_every == 1:
    return {"state": state}
  return {"state": state, "behaviour": behaviour}


class _Step(NamedTuple):
  number: int  # from 1
  metrics: Metrics
  batch: Batch | None  # None for a step of the run that is resumed: it was finite


class _Unlogged:
  """Metrics of the steps that are not in the log yet, each checked to be finite.

  They stay on the device. The log's are fetched one step late, so that the device never
  waits for the host; two steps are in flight at most, so that a stop comes soon.
  """

  def __init__(
    self,
    name: str,
    directory: Path,
    schedule: Schedule,
    step: int,
    metrics: Sequence[Metrics],
    before_error: Callable[[], None],
  ):
    """Goes on after `step`, up to which `metrics` were fetched but not logged.

    `before_error` is called before it is told that a number is not finite.
    """
    self._name, self._directory, self._schedule = name, directory, schedule
    self._before_error = before_error
    logged = step - len(metrics)
    self._log = metrics_lib.MetricLog(
      directory, name, schedule.steps, step, logged, schedule.tracking
    )
    self._steps = [_Step(n, m, None) for n, m in enumerate(metrics, logged + 1)]
    self._due: list[_Step] = []  # those of one line, which the next step will write

  def meter(self) -> Meter:
    """Of the steps that were added."""
    return self._log.meter

  def add(self, step: _Step) -> None:
    """Waits for the step before it, too."""
    if self._steps:
      jax.block_until_ready(self._steps[-1].metrics)
    self._steps.append(step)
    self._log.meter.reach(step.number)

  def write(self, at_once: bool) -> None:
    """Logs what was due a step ago; what is due now, if it has to be at once."""
    self._write_due()
    if self._schedule.logs(self._steps[-1].number):
      self._due, self._steps = self._steps, []
    if at_once:
      self._write_due()

  def _write_due(self) -> None:
    if self._due:
      values = metrics_lib.reduce(step.metrics for step in self._due)
      last = self._due[-1].number
      # Of a short last interval, all of which was skipped, there is nothing to say.
      if last % self._schedule.log_every == 0 or values.get("skipped") != 1:
        self._check(self._due, values)
        self._log.write(last, values, self._schedule.show)
      self._due = []

  def fetch(self) -> list[dict[str, list[float]]]:
    """Those that are not due yet, for a saved state."""
    metrics = metrics_lib.fetch(step.metrics for step in self._steps)
    # Sums, not means: with on_non_finite='skip' a step may weigh nothing.
    self._check(self._steps, {key: sum(m[key][0] for m in metrics) for key in WATCHED})
    return metrics

  def close(self) -> None:
    self._log.close()

  def _check(self, steps: list[_Step], values: Mapping[str, float]) -> None:
    """Raises UserError if these steps' values show that one was not finite."""
    if not _finite(values):
      self._before_error()
      raise _non_finite(self._name, self._directory, steps)


def _finite(values: Mapping[str, float]) -> bool:
  return all(math.isfinite(values[key]) for key in WATCHED)


def _non_finite(name: str, directory: Path, steps: list[_Step]) -> UserError:
  """Saves the batch of the first bad one of these steps, and says which it was."""
  rows = [metrics_lib.reduce([step.metrics]) for step in steps]
  number, batch, values = next(
    (step.number, step.batch, row)
    for step, row in zip(steps, rows, strict=True)
    if step.batch is not None and not _finite(row)
  )
  path = directory / f"non_finite_step_{number}.npz"
  arrays = sharding.fetch(vars(batch))
  write_npz(path, **arrays, **{key: np.array(v) for key, v in values.items()})
  ids = ", ".join(map(str, arrays["ids_B"][:8].tolist()))
  return UserError(
    f"{name}: loss {values['loss']}, gradient norm {values['grad_norm']} at step "
    f"{number} (pairs {ids}, ...; its batch is in {path}); lower the learning rate, or "
    "set on_non_finite='skip'"
  )
