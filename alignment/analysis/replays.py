"""A replayed stream's training statistics beside its online run's: appendix F.

Shape letters: S steps, 2 the replay and its online run.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from alignment.analysis.intervals import Estimate, of_one_world, undefined
from alignment.analysis.runs import Run


@dataclasses.dataclass(frozen=True)
class Pair:
  """A replay and its online run, where both have logged their training statistics."""

  replay: Run
  online: Run
  steps_S: np.ndarray  # logged by both
  statistics: dict[str, np.ndarray]  # logged by both: name -> 2xS, the replay's first


def pairs(replays: Sequence[Run], online: Sequence[Run]) -> list[Pair]:
  """Every replay with its online run, if there is one and both have `metrics`.

  A replay's stream is sampled with the settings of the configuration's policy, whatever
  its own are. So only runs that have these settings are pairs.
  """
  online_of = {_identity(run): run for run in online if run.default}
  return [
    _pair(replay, online_of[_identity(replay)])
    for replay in replays
    if replay.default
    and _identity(replay) in online_of
    and replay.metrics
    and online_of[_identity(replay)].metrics
  ]


def _identity(run: Run) -> tuple[Any, ...]:
  settings = run.size, run.beta, run.learning_rate, run.seed
  return run.world, run.task, run.loss, *settings


def _pair(replay: Run, online: Run) -> Pair:
  rows_2 = [{row["step"]: row for row in run.metrics} for run in (replay, online)]
  steps = sorted(rows_2[0].keys() & rows_2[1].keys())
  names = [name for name in rows_2[0][steps[0]] if name != "step"] if steps else []
  statistics = {
    name: np.array([[rows[step][name] for step in steps] for rows in rows_2], float)
    for name in names
    if all(name in rows[step] for rows in rows_2 for step in steps)
  }
  return Pair(replay, online, np.array(steps), statistics)


def relative_difference_S(values_2xS: np.ndarray) -> np.ndarray:
  """|a - b| / |b|; 0 where both are the same, zero included."""
  difference_S = np.abs(values_2xS[0] - values_2xS[1])
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(difference_S == 0, 0.0, difference_S / np.abs(values_2xS[1]))


def training_difference(replays: Sequence[Run], online: Sequence[Run]) -> Estimate:
  """Relative difference of training statistics, mean over steps and statistics."""
  values = [
    float(np.mean(relative_difference_S(values_2xS)))
    for pair in pairs(replays, online)
    for values_2xS in pair.statistics.values()
  ]
  if not values:
    return undefined("no metrics.jsonl of a replay and its online run")
  return of_one_world(float(np.mean(values)))
