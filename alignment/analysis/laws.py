"""Laws of over-optimisation (Gao et al., arXiv 2210.10760): score against sqrt(KL).

Shape letters: N checkpoints, R resamples (row 0 is the data), 2 the coefficients.
"""

from collections.abc import Sequence

import numpy as np

from alignment.analysis.envelopes import KL_FLOOR, RESAMPLES
from alignment.analysis.intervals import (
  Estimate,
  by_world,
  interval,
  over_worlds,
  undefined,
)
from alignment.analysis.runs import Run


def law_terms(d: np.ndarray, best_of_n: bool) -> np.ndarray:
  """Regressors [N, 2] of Gao et al. (arXiv 2210.10760), eq. 1: score = terms @ (α, β).

  d(α - β d) for best-of-n, d(α - β log d) for training, d = sqrt(KL).
  """
  return np.stack([d, -d * d if best_of_n else -d * np.log(d)], axis=1)


def fit_law(d: np.ndarray, score: np.ndarray, best_of_n: bool) -> np.ndarray:
  """(α, β) by least squares."""
  return np.linalg.lstsq(law_terms(d, best_of_n), score, rcond=None)[0]


def scored_checkpoints(
  run: Run, score: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(steps_N, d_N, scores_N) of those above the KL floor that have this score."""
  scores_E = run.measured_E(score)
  counts_E = (run.kl_E >= KL_FLOOR) & np.isfinite(scores_E)
  return run.steps_E[counts_E], np.sqrt(run.kl_E[counts_E]), scores_E[counts_E]


def fits(runs: Sequence[Run], score: str, best_of_n: bool) -> tuple[Estimate, Estimate]:
  """(α, β) of `golden_score` or `proxy_score`, each with its interval."""
  per_world = {
    world: _fit_of_world(in_world, score, best_of_n)
    for world, in_world in by_world(runs).items()
  }
  alpha, beta = (
    over_worlds({w: both[i] for w, both in per_world.items()}) for i in (0, 1)
  )
  return alpha, beta


def _fit_of_world(
  runs: Sequence[Run], score: str, best_of_n: bool
) -> tuple[Estimate, Estimate]:
  checkpoints = [scored_checkpoints(run, score) for run in runs]
  d_N, scores_N = (np.concatenate([each[i] for each in checkpoints]) for i in (1, 2))
  if len(np.unique(d_N)) < 3:
    none = undefined("fewer than three checkpoints")
    return none, none
  rng, num = np.random.default_rng(0), len(d_N)
  samples = [np.arange(num), *(rng.integers(num, size=num) for _ in range(RESAMPLES))]
  fits_Rx2 = np.array([fit_law(d_N[s], scores_N[s], best_of_n) for s in samples])
  low_2, high_2 = interval(fits_Rx2)
  alpha, beta = (
    Estimate(float(value), float(low), float(high), "checkpoints, 1 world", num)
    for value, low, high in zip(fits_Rx2[0], low_2, high_2, strict=True)
  )
  return alpha, beta
