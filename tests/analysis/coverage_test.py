"""Do 95 % intervals over worlds cover nothing where there is nothing? Simulated.

Two series of runs move along one frontier of win rate against KL, so that neither is
ahead: what a verdict says of one run a side, or of two, rests on this.
"""

import functools
import math

import numpy as np
import pytest

from alignment.analysis import gaps
from alignment.analysis.intervals import over_worlds
from tests import synthetic

WORLDS, PROMPTS, CHECKPOINTS, TRIALS = 6, 128, 8, 500
BETWEEN_RUNS = 0.01  # of win rates, at the same KL: what a seed changes
SPREAD = {1: (1.0,), 2: (0.7, 1.4), 9: tuple(np.geomspace(0.5, 2, 9))}  # of speeds


def win_rate(kl_E: np.ndarray) -> np.ndarray:
  """The frontier: rises from SFT's to a peak at 5 nats, and falls slowly from there."""
  return 0.2 + 0.3 * np.exp(-(np.log(kl_E / 5) ** 2) / 4)


def series(rng, name: str, runs: int, speed: float, difficulty_P: np.ndarray, world):
  """Runs whose checkpoints lie where their speed puts them, the last past the peak."""
  made = []
  for i, factor in enumerate(SPREAD[runs]):
    kl_E = 20 * speed * factor * np.geomspace(0.002, 1, CHECKPOINTS) ** 1.2
    kl_E *= np.exp(0.1 * rng.normal())
    rate_E = win_rate(kl_E) + BETWEEN_RUNS * rng.normal()
    logit_ExP = np.log(rate_E / (1 - rate_E))[:, None] + difficulty_P
    chance_ExP = 1 / (1 + np.exp(-logit_ExP))
    chance_ExP += (rate_E - chance_ExP.mean(axis=1))[:, None]
    wins_ExP = rng.random(chance_ExP.shape) < chance_ExP
    made.append(synthetic.make_run(f"{name}{i}", name, wins_ExP, kl_E, world=world))
  return made


@pytest.mark.slow
@pytest.mark.parametrize(
  ("runs", "speed"), [(1, 1.0), (1, 4.0), (2, 4.0), (9, 1.0)], ids=str
)
@pytest.mark.parametrize(
  "gap",
  [
    gaps.gap_at_equal_kl,
    functools.partial(gaps.gap_at_budget, budget=3),
    gaps.peak_gap,
  ],
  ids=["equal KL", "3 nats", "peak"],
)
def test_intervals_over_worlds_cover_that_neither_is_ahead(gap, runs, speed):
  rng = np.random.default_rng(0)
  covered, values = [], []
  for _ in range(TRIALS if runs < 9 else TRIALS // 5):
    per_world = {}
    for world in range(WORLDS):
      difficulty_P = rng.normal(size=PROMPTS)  # the same prompts for both
      a = series(rng, "online", runs, speed, difficulty_P, world)
      b = series(rng, "offline", runs, 1.0, difficulty_P, world)
      per_world[world] = gap(a, b, "golden PM", resamples=1)
    estimate = over_worlds(per_world)
    covered.append(estimate.low <= 0 <= estimate.high)
    values.append(estimate.value)
  simulated = math.sqrt(0.95 * 0.05 / len(covered))  # the simulation's own error
  print(f"bias {np.mean(values):+.4f}, coverage {np.mean(covered):.3f}")
  assert abs(np.mean(covered) - 0.95) < 0.02 + 2 * simulated
  assert abs(np.mean(values)) < 0.002 + 3 * np.std(values) / math.sqrt(len(values))
