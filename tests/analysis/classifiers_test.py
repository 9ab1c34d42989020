"""Accuracies and correlations, on runs for which the answer is known."""

import math

import numpy as np
import pytest

from alignment.analysis import classifiers
from alignment.analysis.runs import Classification
from tests import synthetic

JUDGE = "golden PM"


def make_run(rates, kls=None, series="online", **fields):
  kls = list(range(1, len(rates) + 1)) if kls is None else kls
  return synthetic.make_run("r", series, synthetic.certain(rates), kls, **fields)


def value(estimate):
  assert estimate.low <= estimate.value <= estimate.high
  return pytest.approx(estimate.value)


def test_correlation_is_within_runs():
  """Each falls, though the better run has the higher accuracy throughout."""
  runs = [
    make_run([base + 0.2, base + 0.1, base], measured={"classification_accuracy": x})
    for base, x in ((0.1, [0.5, 0.6, 0.7]), (0.6, [0.8, 0.85, 0.9]))
  ]
  assert value(classifiers.correlation_with_accuracy(runs, JUDGE, resamples=5)) == -1
  two = make_run([0.1, 0.9], measured={"classification_accuracy": [0.5, 0.6]})
  assert value(classifiers.correlation_with_accuracy([*runs, two], JUDGE)) == -1
  # Every resample is centred by its own mean: of a correlation of 1, all are 1.
  wins_ExP = np.outer([0, 0.5, 1], np.arange(30) < 10)
  rising = {"classification_accuracy": [0.5, 0.6, 0.7]}
  one = synthetic.make_run("r", "online", wins_ExP, [1, 2, 3], measured=rising)
  estimate = classifiers.correlation_with_accuracy([one], JUDGE, resamples=20)
  assert (estimate.low, estimate.high) == pytest.approx((1, 1))
  constant = [make_run([0.1, 0.2, 0.3])]  # in accuracy
  assert classifiers.correlation_with_accuracy(constant, JUDGE).reason


def test_measured_keys_are_averaged_over_checkpoints_and_runs():
  runs = [
    make_run([0.5] * len(values), measured={"entropy": values})
    for values in ([1.0, 2.0, 6.0], [5.0, 7.0])
  ]
  assert classifiers.mean_value("entropy")(runs).value == pytest.approx((3 + 6) / 2)
  tied = [make_run([0.5] * 3, measured={"entropy": [1.0, None, 2.0]})]
  assert classifiers.mean_value("entropy")(tied).value == pytest.approx(1.5)
  assert classifiers.last_value("entropy")(runs).value == pytest.approx((6 + 7) / 2)
  difference = classifiers.last_difference("entropy")(runs[1:], runs[:1])
  assert difference.value == pytest.approx(7 - 6)


def test_classifiers_are_compared_at_the_steps_of_both():
  def rows(accuracies):
    return [
      Classification("tldr", 0, "c", step, accuracy, 0.03, 64)
      for step, accuracy in accuracies.items()
    ]

  a, b = rows({10: 0.8, 20: 0.7, 30: 0.1}), rows({10: 0.5, 20: 0.5})
  estimate = classifiers.accuracy_difference(a, b)
  assert value(estimate) == 0.25
  stderr = math.sqrt(4 * 0.03**2) / 2
  assert estimate.high - estimate.value == pytest.approx(1.96 * stderr, rel=1e-4)
  assert classifiers.accuracy_difference(a[2:], b).reason
  trend = classifiers.accuracy_trend(rows({10: 0.8, 20: 0.7, 30: 0.6}))
  assert value(trend) == -0.2
  stderr = math.sqrt(2) * 0.03  # of the last less the first: it is linear
  assert trend.high - trend.value == pytest.approx(1.96 * stderr, rel=1e-4)
  assert classifiers.accuracy_trend(a[:1]).reason == "fewer than two steps"
