"""Differences of win rates, and of KLs at the best ones: one number in one world.

All take groups of runs of one world and a judge, and have an interval over prompts.
What is selected is cross-fitted, as `envelopes.py` explains.

Shape letters: E checkpoints of a run, N those of all runs, R resamples (row 0 is the
data), G KL budgets.
"""

from collections.abc import Sequence
import functools
import math

import numpy as np

from alignment.analysis.envelopes import (
  KL_FLOOR,
  RESAMPLES,
  envelope_RxG,
  kls_above_floor,
  peak_R,
  win_rates_RxE,
)
from alignment.analysis.intervals import Estimate, over_prompts, undefined
from alignment.analysis.runs import Run

KL_FROM = math.exp(-1)  # nats: where the paper's axis begins


def peak_gap(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  *,
  equal_numbers: bool = True,
  resamples: int = RESAMPLES,
) -> Estimate:
  """Peak win rate of series a minus that of b, in one world, all KLs allowed.

  The peak is over the checkpoints of all runs, cross-fitted over prompts. If the
  series have different numbers of runs, the larger one's peak is the expectation over
  all subsets of as many runs as the smaller has; `equal_numbers=False` takes all runs
  of both, as figure 1 of the paper does with one online run and a sweep offline. Runs
  may have different numbers of checkpoints: a longer run is not another configuration.

  The interval is from a bootstrap over prompts, selection redone in each resample; it
  says nothing about other training seeds or worlds.
  """
  size_a, size_b = _sizes(runs_a, runs_b, equal_numbers)
  gap_R = peak_R(runs_a, judge, size_a, resamples)
  gap_R = gap_R - peak_R(runs_b, judge, size_b, resamples)
  return over_prompts(gap_R, runs_a)


def gap_at_equal_kl(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  *,
  equal_numbers: bool = True,
  resamples: int = RESAMPLES,
  above: float = 0.0,
) -> Estimate:
  """Mean difference of the series' upper envelopes (a - b) at equal KL, in one world.

  The envelope at KL c is the best win rate of any checkpoint with KL at most c,
  interpolated in log KL between checkpoints, cross-fitted over prompts and with equal
  numbers of runs as in `peak_gap`; subsets without a checkpoint within c are left out
  of the expectation at c. It is averaged over log KL on the range that both series
  reach, from `KL_FROM` at least: below, neither can have left SFT's win rate. KLs are
  taken as known: the interval, over prompts as in `peak_gap`, lacks their own (small)
  errors.

  `above` leaves out that fraction of the common range of log KL, from below: 0.5 is the
  gap at high KL. NaN with a reason where the two ranges do not overlap.
  """
  kls_a, kls_b = kls_above_floor(runs_a), kls_above_floor(runs_b)
  if not (len(kls_a) and len(kls_b)):
    return undefined(f"no checkpoint above KL {KL_FLOOR:g}")
  low = max(kls_a[0], kls_b[0], KL_FROM)
  high = min(kls_a[-1], kls_b[-1])
  if low >= high:
    ranges = (f"{kls[0]:.3g} to {kls[-1]:.3g}" for kls in (kls_a, kls_b))
    return undefined(
      f"no common range of KL from {KL_FROM:.2g} nats ({' and '.join(ranges)})"
    )
  low = low ** (1 - above) * high**above
  budgets_G = np.unique([low, high, *kls_a, *kls_b])
  budgets_G = budgets_G[(budgets_G >= low) & (budgets_G <= high)]
  gap_RxG = _envelope_gap_RxG(
    runs_a, runs_b, judge, budgets_G, equal_numbers, resamples
  )
  widths = np.diff(np.log(budgets_G))  # between two budgets the envelopes are lines
  gap_R = (gap_RxG[:, 1:] + gap_RxG[:, :-1]) / 2 @ widths / widths.sum()
  return over_prompts(gap_R, runs_a)


gap_at_high_kl = functools.partial(gap_at_equal_kl, above=0.5)


def gap_at_budget(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  *,
  budget: float,
  equal_numbers: bool = True,
  resamples: int = RESAMPLES,
) -> Estimate:
  """Difference of the series' upper envelopes (a - b) at one KL budget, in nats.

  The envelopes are those of `gap_at_equal_kl`. NaN with a reason where a series does
  not reach the budget, or begins beyond it.
  """
  for runs in (runs_a, runs_b):
    kls = kls_above_floor(runs)
    if not len(kls) or not kls[0] <= budget <= kls[-1]:
      reached = f"{kls[0]:.3g} to {kls[-1]:.3g}" if len(kls) else f"< {KL_FLOOR:g}"
      return undefined(f"{runs[0].series} has KL {reached}")
  at = np.array([float(budget)])
  gap_RxG = _envelope_gap_RxG(runs_a, runs_b, judge, at, equal_numbers, resamples)
  return over_prompts(gap_RxG[:, 0], runs_a)


def _envelope_gap_RxG(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  budgets_G: np.ndarray,
  equal_numbers: bool,
  resamples: int,
) -> np.ndarray:
  size_a, size_b = _sizes(runs_a, runs_b, equal_numbers)
  gap_RxG = envelope_RxG(runs_a, judge, budgets_G, size_a, resamples)
  return gap_RxG - envelope_RxG(runs_b, judge, budgets_G, size_b, resamples)


def _sizes(
  runs_a: Sequence[Run], runs_b: Sequence[Run], equal_numbers: bool
) -> tuple[int, int]:
  smaller = min(len(runs_a), len(runs_b))
  return (smaller, smaller) if equal_numbers else (len(runs_a), len(runs_b))


def last_gap(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  *,
  resamples: int = RESAMPLES,
) -> Estimate:
  """Mean win rate of the last checkpoints of a's runs minus that of b's."""
  means = [
    np.mean([win_rates_RxE(run, judge, resamples)[:, -1] for run in runs], axis=0)
    for runs in (runs_a, runs_b)
  ]
  return over_prompts(means[0] - means[1], runs_a)


def peak_above_level(
  runs: Sequence[Run], level: Sequence[Run], judge: str, *, resamples: int = RESAMPLES
) -> Estimate:
  """Cross-fitted peak win rate of all runs minus a fixed policy's, such as SFT's."""
  peak = peak_R(runs, judge, len(runs), resamples)
  return over_prompts(peak - win_rates_RxE(level[0], judge, resamples)[:, -1], runs)


def fall_from_peak(
  runs: Sequence[Run], judge: str, *, resamples: int = RESAMPLES
) -> Estimate:
  """Cross-fitted peak win rate minus the win rate at the largest KL of all runs.

  How far the points of figure 1 fall to the right. The peak may be another run's: of
  one run alone it is at most 0 on average where the win rate is still rising, but of
  runs at several settings also what the best has over the furthest.
  """
  furthest = max(runs, key=lambda run: float(run.kl_E.max()))
  at_end_R = win_rates_RxE(furthest, judge, resamples)[:, int(furthest.kl_E.argmax())]
  return over_prompts(peak_R(runs, judge, len(runs), resamples) - at_end_R, runs)


def fall_in_steps(
  runs: Sequence[Run], judge: str, *, resamples: int = RESAMPLES
) -> Estimate:
  """Cross-fitted peak win rate of a run minus that of its last step, mean over runs.

  Over-optimisation as training goes on, whatever the KL does meanwhile. Where the win
  rate still rises, it is 0 or, by what selection costs, slightly below.
  """
  return over_prompts(_mean_fall_R(runs, judge, resamples), runs)


def _mean_fall_R(runs: Sequence[Run], judge: str, resamples: int) -> np.ndarray:
  falls = [
    peak_R([run], judge, 1, resamples) - win_rates_RxE(run, judge, resamples)[:, -1]
    for run in runs
  ]
  return np.mean(falls, axis=0)


def difference_of_falls(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  *,
  resamples: int = RESAMPLES,
) -> Estimate:
  """`fall_in_steps` of a minus that of b, on the same prompts."""
  falls_R = [_mean_fall_R(runs, judge, resamples) for runs in (runs_a, runs_b)]
  return over_prompts(falls_R[0] - falls_R[1], runs_a)


def difference_of_peak_gaps(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  runs_c: Sequence[Run],
  runs_d: Sequence[Run],
  judge: str,
  *,
  equal_numbers: bool = True,
  resamples: int = RESAMPLES,
) -> Estimate:
  """(a's peak minus b's) minus (c's minus d's): what one thing gains by another.

  Each pair at equal numbers of runs, or with all runs of both, as in `peak_gap`.
  """

  def gap_R(first: Sequence[Run], second: Sequence[Run]) -> np.ndarray:
    sizes = _sizes(first, second, equal_numbers)
    peaks_R = [
      peak_R(runs, judge, size, resamples)
      for runs, size in zip((first, second), sizes, strict=True)
    ]
    return peaks_R[0] - peaks_R[1]

  return over_prompts(gap_R(runs_a, runs_b) - gap_R(runs_c, runs_d), runs_a)


def staleness_slope(
  online: Sequence[Run],
  semi_online: Sequence[Run],
  judge: str,
  *,
  resamples: int = RESAMPLES,
) -> Estimate:
  """Change of the peak win rate where the sampling policy is ten times as old.

  Least squares over the logarithm of the steps between its renewals, which are 1
  online. Runs whose sampling policy is never renewed have no age, and are left out.
  """
  runs = [*online, *(run for run in semi_online if run.refresh_every)]
  ages_N = np.log10([run.refresh_every or 1 for run in runs])
  if np.ptp(ages_N) == 0:
    return undefined("the sampling policy is equally old in all runs")
  centred_N = ages_N - ages_N.mean()
  peaks_RxN = np.stack([peak_R([run], judge, 1, resamples) for run in runs], axis=1)
  return over_prompts(peaks_RxN @ centred_N / (centred_N @ centred_N), runs)


def log_kl_ratio_at_peak(
  runs_a: Sequence[Run],
  runs_b: Sequence[Run],
  judge: str,
  *,
  resamples: int = RESAMPLES,
) -> Estimate:
  """log(KL at a's best checkpoint / KL at b's)."""

  def log_kl_R(runs: Sequence[Run]) -> np.ndarray:
    rates_RxN = np.concatenate([win_rates_RxE(r, judge, resamples) for r in runs], 1)
    kl_N = np.concatenate([run.kl_E for run in runs])
    with np.errstate(divide="ignore"):
      return np.log(kl_N[rates_RxN.argmax(axis=1)])

  ratio_R = log_kl_R(runs_a) - log_kl_R(runs_b)
  if not np.isfinite(ratio_R).all():
    return undefined("the best checkpoint is SFT itself")
  return over_prompts(ratio_R, runs_a)
