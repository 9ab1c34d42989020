"""Best results by policy size: figures 11 and 14 of the paper.

Shape letters: N checkpoints of all runs, R resamples (row 0 is the data), S sizes.
"""

from collections.abc import Sequence

import numpy as np

from alignment.analysis.envelopes import RESAMPLES, win_rates_RxE
from alignment.analysis.intervals import Estimate, over_prompts, undefined
from alignment.analysis.runs import Run
from alignment.analysis.selection import matched_sizes

BEST_QUANTILE = 0.9  # the paper's best result: of all evaluations of a series


def best_result_R(runs: Sequence[Run], judge: str, resamples: int) -> np.ndarray:
  """The 90 % quantile over all evaluations of a series: figures 11 and 14.

  Unlike a maximum it does not rise with the number of evaluations; what their noise
  adds to it is about the same for all series and sizes.
  """
  rates_RxN = np.concatenate([win_rates_RxE(r, judge, resamples) for r in runs], 1)
  return np.quantile(rates_RxN, BEST_QUANTILE, axis=1)


def size_trend(
  online: Sequence[Run],
  other: Sequence[Run],
  judge: str,
  *,
  resamples: int = RESAMPLES,
) -> Estimate:
  """Change of the gap in best results, online minus other, per doubling of size.

  At the sizes, and the settings, that all of them have.
  """
  online, other = matched_sizes([online, other])
  if len({run.size for run in online}) < 2:
    return undefined("fewer than two policy sizes with runs of both")
  return over_prompts(_size_trend_R(online, other, judge, resamples), online)


def difference_of_size_trends(
  online: Sequence[Run],
  other_a: Sequence[Run],
  other_b: Sequence[Run],
  judge: str,
  *,
  resamples: int = RESAMPLES,
) -> Estimate:
  """`size_trend` of a minus that of b: positive where a's gap closes more slowly."""
  online, other_a, other_b = matched_sizes([online, other_a, other_b])
  if len({run.size for run in online}) < 2:
    return undefined("fewer than two policy sizes with runs of all three")
  trend_a_R = _size_trend_R(online, other_a, judge, resamples)
  trend_b_R = _size_trend_R(online, other_b, judge, resamples)
  return over_prompts(trend_a_R - trend_b_R, online)


def _size_trend_R(
  online: Sequence[Run], other: Sequence[Run], judge: str, resamples: int
) -> np.ndarray:
  sizes = sorted({run.parameters for run in online})
  best_2xSxR = np.array(
    [
      [
        best_result_R([r for r in runs if r.parameters == size], judge, resamples)
        for size in sizes
      ]
      for runs in (online, other)
    ]
  )
  x_S = np.log2(np.array(sizes, float))
  x_S -= x_S.mean()
  return x_S @ (best_2xSxR[0] - best_2xSxR[1]) / (x_S**2).sum()
