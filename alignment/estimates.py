"""Estimates with their intervals: over the prompts of one world, or over worlds."""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from alignment.runs import Run

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964  # of this confidence


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


def over_prompts(values_R: np.ndarray, runs: Sequence[Run]) -> Estimate:
  """One world's number from its resamples (row 0 the data), over its runs' prompts."""
  low, high = interval(values_R)
  num_prompts = next(iter(runs[0].wins.values())).shape[1]
  return Estimate(
    float(values_R[0]), float(low), float(high), "prompts, 1 world", num_prompts
  )


def undefined(reason: str) -> Estimate:
  """No estimate, and why."""
  return Estimate(math.nan, math.nan, math.nan, "", 0, reason)


def by_world(runs: Sequence[Run]) -> dict[int, list[Run]]:
  """world -> its runs, both in order."""
  worlds: dict[int, list[Run]] = {}
  for run in sorted(runs, key=lambda run: (run.world, run.name)):
    worlds.setdefault(run.world, []).append(run)
  return worlds


def over_worlds(per_world: Mapping[int, Estimate]) -> Estimate:
  """Combines per-world estimates of a paired difference: t-interval over the worlds.

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
  values = np.array([estimate.value for estimate in defined.values()])
  n = len(values)
  mean = float(values.mean())
  margin = t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
  return Estimate(mean, mean - margin, mean + margin, f"{n} worlds", n, reason)


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
  """The t with P(|T| <= t) = confidence, Student's T with whole degrees of freedom.

  Bisects the exact finite sums of Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even).
  """
  if degrees < 1 or not 0 < confidence < 1:
    raise ValueError(f"t_quantile({degrees}, {confidence})")

  def central_probability(t: float) -> float:
    theta = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(degrees // 2):
      total += term
      term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return (theta + sine * total) * 2 / math.pi if odd else sine * total

  low, high = 0.0, 1.0
  while central_probability(high) < confidence:
    high *= 2
  for _ in range(100):
    middle = (low + high) / 2
    if central_probability(middle) < confidence:
      low = middle
    else:
      high = middle
  return high
