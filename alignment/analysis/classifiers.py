"""Policies and the proxy as classifiers: accuracies and log-ratios, in one world.

Numbers of checkpoints have no interval within a world, those of a classified stream one
over its pairs; only a correlation with win rates has one over prompts.

Shape letters: E checkpoints of a run, R resamples (row 0 is the data), S steps.
"""

from collections.abc import Callable, Sequence
import math

import numpy as np

from alignment.analysis.envelopes import RESAMPLES, win_rates_RxE
from alignment.analysis.intervals import (
  FISHER,
  NORMAL_QUANTILE,
  Estimate,
  of_one_world,
  over_prompts,
  undefined,
)
from alignment.analysis.runs import Classification, Run


def correlation_with_accuracy(
  runs: Sequence[Run], judge: str, *, resamples: int = RESAMPLES
) -> Estimate:
  """Pearson's correlation of win rate and accuracy on D_golden over checkpoints.

  Within each run, then averaged over runs as Fisher's z: settings that differ in both
  would correlate by themselves. Noise of the win rates draws it towards 0. Runs of
  fewer than three checkpoints, or in which one of the two never changes, are left out.
  """
  correlations = []
  for run in runs:
    accuracy_E = run.measured_E("classification_accuracy")
    rates_RxE = win_rates_RxE(run, judge, resamples)
    varies = np.ptp(accuracy_E) > 0 and np.ptp(rates_RxE, axis=1).min() > 0  # not NaN
    if len(accuracy_E) >= 3 and varies:
      x_E = accuracy_E - accuracy_E.mean()
      y_RxE = rates_RxE - rates_RxE.mean(axis=1, keepdims=True)
      norms_R = np.linalg.norm(x_E) * np.linalg.norm(y_RxE, axis=1)
      correlations.append(y_RxE @ x_E / norms_R)
  if not correlations:
    return undefined("no run whose accuracy and win rate vary over three checkpoints")
  mean_R = FISHER.back(np.mean(FISHER.to(np.array(correlations)), axis=0))
  return over_prompts(mean_R, runs, FISHER)


def last_value(key: str) -> Callable[[Sequence[Run]], Estimate]:
  """A measured key at the last checkpoint, mean over runs."""
  return lambda runs: of_one_world(_last(runs, key))


def last_difference(key: str) -> Callable[[Sequence[Run], Sequence[Run]], Estimate]:
  """A measured key at the last checkpoint: mean over a's runs minus mean over b's."""
  return lambda runs_a, runs_b: of_one_world(_last(runs_a, key) - _last(runs_b, key))


def mean_value(key: str) -> Callable[[Sequence[Run]], Estimate]:
  """A measured key, mean over the checkpoints that have it and then over runs."""

  def mean(run: Run) -> float:
    values_E = run.measured_E(key)
    return values_E[~np.isnan(values_E)].mean()

  return lambda runs: of_one_world(float(np.mean([mean(run) for run in runs])))


def _last(runs: Sequence[Run], key: str) -> float:
  return float(np.mean([run.measured_E(key)[-1] for run in runs]))


def accuracy_difference(
  rows_a: Sequence[Classification], rows_b: Sequence[Classification]
) -> Estimate:
  """Mean over the stream's steps of a's accuracy minus b's, on the same pairs.

  The interval takes the classifiers' errors as independent: rather too wide.
  """
  row_a, row_b = ({row.step: row for row in rows} for rows in (rows_a, rows_b))
  steps = sorted(row_a.keys() & row_b.keys())
  if not steps:
    return undefined("no step at which both classify")
  value = float(np.mean([row_a[s].accuracy - row_b[s].accuracy for s in steps]))
  squares = [row_a[s].stderr ** 2 + row_b[s].stderr ** 2 for s in steps]
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
