"""Estimates with their intervals: over the prompts of one world, or over worlds."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from alignment.analysis.runs import Run

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964  # of this confidence


class Scale(NamedTuple):
  """On which a number's errors are symmetric: there means and intervals are taken."""

  to: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]


PLAIN = Scale(np.asarray, np.asarray)
# Of correlations: Fisher's z, whose intervals stay within [-1, 1].
FISHER = Scale(lambda r: np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.tanh)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with its 95 % interval, and what that interval is over.

  `n` counts what the interval is over: prompts or worlds. `value` is NaN where the
  estimate is not defined; `reason` then says why, or else what was left out.
  """

  value: float
  low: float
  high: float
  over: str  # "prompts, 1 world" or "6 worlds"
  n: int
  reason: str = ""

  def __str__(self) -> str:
    if math.isnan(self.value):
      return "n/a"
    if math.isnan(self.low):
      return f"{self.value:+.3f}"
    return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def interval(values_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The estimate plus and minus 1.96 bootstrap standard errors.

  Not percentiles: each resample selects anew and so is shifted against the estimate.
  """
  margin = NORMAL_QUANTILE * values_R[1:].std(axis=0)
  return values_R[0] - margin, values_R[0] + margin


def over_prompts(
  values_R: np.ndarray, runs: Sequence[Run], scale: Scale = PLAIN
) -> Estimate:
  """One world's number from its resamples (row 0 the data), over its runs' prompts.

  Raises:
    ValueError: for runs of several worlds, whose prompts are not the same.
  """
  if len(worlds := sorted({run.world for run in runs})) > 1:
    raise ValueError(f"runs of worlds {worlds}: hand over one world's at a time")
  low, high = map(scale.back, interval(scale.to(values_R)))
  num_prompts = next(iter(runs[0].wins.values())).shape[1]
  return Estimate(
    float(values_R[0]), float(low), float(high), "prompts, 1 world", num_prompts
  )


def of_one_world(value: float, over: str = "1 world") -> Estimate:
  """A number without an interval of its own; undefined where it is NaN."""
  if math.isnan(value):
    return undefined("not measured")
  return Estimate(value, math.nan, math.nan, over, 1)


def undefined(reason: str) -> Estimate:
  """No estimate, and why."""
  return Estimate(math.nan, math.nan, math.nan, "", 0, reason)


def by_world(runs: Sequence[Run]) -> dict[int, list[Run]]:
  """world -> its runs, both in order."""
  worlds: dict[int, list[Run]] = {}
  for run in sorted(runs, key=lambda run: (run.world, run.name)):
    worlds.setdefault(run.world, []).append(run)
  return worlds


def over_worlds(per_world: Mapping[int, Estimate], scale: Scale = PLAIN) -> Estimate:
  """Combines per-world estimates of a number: t-interval over the worlds.

  Prompt noise is part of the spread between worlds, so it is covered. One world keeps
  its interval over prompts. Worlds where the estimate is undefined are left out, and
  `reason` names them.
  """
  defined = {w: e for w, e in per_world.items() if not math.isnan(e.value)}
  reason = "; ".join(
    f"world {w}: {e.reason}" for w, e in per_world.items() if w not in defined
  )
  if not defined:
    return undefined(reason or "no world")
  if len(defined) == 1:
    return dataclasses.replace(*defined.values(), reason=reason)
  values = scale.to(np.array([estimate.value for estimate in defined.values()]))
  value, low, high = map(float, scale.back(np.array(t_interval(values))))
  n = len(values)
  return Estimate(value, low, high, f"{n} worlds", n, reason)


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
  """Mean, lower and upper end of Student's interval; NaN ends for a single value."""
  n, mean = len(values), float(values.mean())
  if n < 2:
    return mean, math.nan, math.nan
  quantile = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))  # Student's t
  margin = quantile * float(values.std(ddof=1)) / math.sqrt(n)
  return mean, mean - margin, mean + margin
