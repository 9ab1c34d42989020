"""What claims measure besides gaps: one number per world, with its interval.

Like `peak_gap` and `gap_at_equal_kl`, the measures of win rates take groups of runs of
one world and a judge, and have an interval over prompts. The others have none within a
world (or that of their pairs): theirs comes from the spread between worlds.

Shape letters: E checkpoints of a run, R resamples (row 0 is the data), S steps.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np

from alignment.analysis.envelopes import RESAMPLES, peak_R, win_rates_RxE
from alignment.analysis.intervals import (
  NORMAL_QUANTILE,
  Estimate,
  over_prompts,
  undefined,
)
from alignment.analysis.runs import Classification, Run
from alignment.analysis.selection import matched_sizes

BEST_QUANTILE = 0.9  # the paper's best result: of all evaluations of a method


# --- Win rates ------------------------------------------------------------------------


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


def correlation_with_accuracy(
  runs: Sequence[Run], judge: str, *, resamples: int = RESAMPLES
) -> Estimate:
  """Pearson's correlation of win rate and accuracy on D_golden over checkpoints.

  Within each run, then averaged over runs: settings that differ in both would correlate
  by themselves. Noise of the win rates draws it towards 0. Runs of fewer than three
  checkpoints, or in which one of the two never changes, are left out.
  """
  found = []
  for run in runs:
    accuracy_E = run.measured_E("classification_accuracy")
    rates_RxE = win_rates_RxE(run, judge, resamples)
    varies = np.ptp(accuracy_E) > 0 and np.ptp(rates_RxE, axis=1).min() > 0  # not NaN
    if len(accuracy_E) >= 3 and varies:
      x_E = accuracy_E - accuracy_E.mean()
      y_RxE = rates_RxE - rates_RxE.mean(axis=1, keepdims=True)
      norms_R = np.linalg.norm(x_E) * np.linalg.norm(y_RxE, axis=1)
      found.append(y_RxE @ x_E / norms_R)
  if not found:
    return undefined("no run whose accuracy and win rate vary over three checkpoints")
  return over_prompts(np.mean(found, axis=0), runs)


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


def best_result_R(runs: Sequence[Run], judge: str, resamples: int) -> np.ndarray:
  """The 90 % quantile over all evaluations of a method: figures 11 and 14.

  Unlike a maximum it does not rise with the number of evaluations; what their noise
  adds to it is about the same for all methods and sizes.
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
  trends = [_size_trend_R(online, o, judge, resamples) for o in (other_a, other_b)]
  return over_prompts(trends[0] - trends[1], online)


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


# --- What evaluations and training measured otherwise ---------------------------------


def _of_world(value: float, over: str = "1 world") -> Estimate:
  if math.isnan(value):
    return undefined("not measured")
  return Estimate(value, math.nan, math.nan, over, 1)


def _last(runs: Sequence[Run], key: str) -> float:
  return float(np.mean([run.measured_E(key)[-1] for run in runs]))


def last_value(key: str) -> Callable[..., Estimate]:
  """A measured key at the last checkpoint, mean over runs."""
  return lambda runs: _of_world(_last(runs, key))


def last_difference(key: str) -> Callable[..., Estimate]:
  """A measured key at the last checkpoint: mean over a's runs minus mean over b's."""
  return lambda runs_a, runs_b: _of_world(_last(runs_a, key) - _last(runs_b, key))


def mean_value(key: str) -> Callable[..., Estimate]:
  """A measured key, mean over the checkpoints that have it and then over runs."""

  def mean(run: Run) -> float:
    values_E = run.measured_E(key)
    return values_E[~np.isnan(values_E)].mean()

  return lambda runs: _of_world(float(np.mean([mean(run) for run in runs])))


def accuracy_difference(
  rows_a: Sequence[Classification], rows_b: Sequence[Classification]
) -> Estimate:
  """Mean over the stream's steps of a's accuracy minus b's, on the same pairs.

  The interval takes the classifiers' errors as independent: rather too wide.
  """
  of_a, of_b = ({row.step: row for row in rows} for rows in (rows_a, rows_b))
  steps = sorted(of_a.keys() & of_b.keys())
  if not steps:
    return undefined("no step at which both classify")
  value = float(np.mean([of_a[s].accuracy - of_b[s].accuracy for s in steps]))
  squares = [of_a[s].stderr ** 2 + of_b[s].stderr ** 2 for s in steps]
  return _over_pairs(value, math.sqrt(sum(squares)) / len(steps), rows_a)


def accuracy_trend(rows: Sequence[Classification]) -> Estimate:
  """Change of accuracy from the stream's first step to its last: least squares."""
  x_S = np.array([row.step for row in rows], float)
  if np.ptp(x_S) == 0:
    return undefined("fewer than two steps")
  x_S = (x_S - x_S.mean()) / np.ptp(x_S)
  weights_S = x_S / (x_S**2).sum()
  value = float(weights_S @ np.array([row.accuracy for row in rows]))
  stderr = float(np.linalg.norm(weights_S * np.array([row.stderr for row in rows])))
  return _over_pairs(value, stderr, rows)


def _over_pairs(
  value: float, stderr: float, rows: Sequence[Classification]
) -> Estimate:
  margin = NORMAL_QUANTILE * stderr
  pairs = sum(row.pairs for row in rows)
  return Estimate(value, value - margin, value + margin, "pairs, 1 world", pairs)


def paired_metrics(
  replays: Sequence[Run], online: Sequence[Run]
) -> list[tuple[Run, Run, np.ndarray, dict[str, np.ndarray]]]:
  """(replay, its online run, steps_S, statistic -> values_2xS) of runs that correspond.

  They do at the same world, task, loss, size, settings and seed; the statistics are
  those logged by both, at the steps logged by both; values are the replay's and the
  online run's.
  """

  def identity(run: Run) -> tuple[Any, ...]:
    settings = run.size, run.beta, run.learning_rate, run.seed
    return run.world, run.task, run.loss, *settings

  of = {identity(run): run for run in online}
  found = []
  for replay in replays:
    other = of.get(identity(replay))
    if other is None or not (replay.metrics and other.metrics):
      continue
    rows = [{row["step"]: row for row in run.metrics} for run in (replay, other)]
    steps = sorted(rows[0].keys() & rows[1].keys())
    names = (
      [
        name
        for name in rows[0][steps[0]]
        if name != "step" and all(name in of_run[s] for of_run in rows for s in steps)
      ]
      if steps
      else []
    )
    values = {
      name: np.array([[of_run[s][name] for s in steps] for of_run in rows], float)
      for name in names
    }
    found.append((replay, other, np.array(steps), values))
  return found


def relative_difference_S(values_2xS: np.ndarray) -> np.ndarray:
  """|a - b| / |b|; 0 where both are the same, zero included."""
  difference_S = np.abs(values_2xS[0] - values_2xS[1])
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(difference_S == 0, 0.0, difference_S / np.abs(values_2xS[1]))


def training_difference(replays: Sequence[Run], online: Sequence[Run]) -> Estimate:
  """Relative difference of training statistics, mean over steps and statistics."""
  return _of_pairs(replays, online, np.mean)


def training_drift(replays: Sequence[Run], online: Sequence[Run]) -> Estimate:
  """That difference in the second half of training minus that in the first."""

  def later(values_S: np.ndarray) -> float:
    half = len(values_S) // 2
    return float(values_S[half:].mean() - values_S[:half].mean()) if half else math.nan

  return _of_pairs(replays, online, later)


def _of_pairs(
  replays: Sequence[Run], online: Sequence[Run], reduce: Callable[[np.ndarray], Any]
) -> Estimate:
  values = [
    float(reduce(relative_difference_S(values_2xS)))
    for _, _, _, statistics in paired_metrics(replays, online)
    for values_2xS in statistics.values()
  ]
  if not values:
    return undefined("no metrics.jsonl of a replay and its online run")
  return _of_world(float(np.mean(values)))


# --- Laws of over-optimisation --------------------------------------------------------


def law_terms(d: np.ndarray, best_of_n: bool) -> np.ndarray:
  """Regressors [N, 2] of Gao et al. (arXiv 2210.10760), eq. 1: score = terms @ (α, β).

  d(α - β d) for best-of-n, d(α - β log d) for training, d = sqrt(KL).
  """
  return np.stack([d, -d * d if best_of_n else -d * np.log(d)], axis=1)


def fit_law(d: np.ndarray, score: np.ndarray, best_of_n: bool) -> np.ndarray:
  """(α, β) by least squares."""
  return np.linalg.lstsq(law_terms(d, best_of_n), score, rcond=None)[0]
