"""Best results, and how they change with policy size."""

import numpy as np
import pytest

from alignment.analysis import size_trends
from tests import synthetic

JUDGE = "golden PM"


def make_run(rates, kls=None, series="online", **fields):
  kls = list(range(1, len(rates) + 1)) if kls is None else kls
  return synthetic.make_run("r", series, synthetic.certain(rates), kls, **fields)


def value(estimate):
  assert estimate.low <= estimate.value <= estimate.high
  return pytest.approx(estimate.value)


def test_best_results_and_their_trend_with_size():
  rates = [0.1, 0.3, 0.2, 0.5, 0.4]
  best_R = size_trends.best_result_R(
    [make_run(rates[:2]), make_run(rates[2:])], JUDGE, 3
  )
  np.testing.assert_allclose(best_R, np.quantile(rates, 0.9))
  # The gap shrinks by 0.1 with each size, which is two doublings of parameters.
  by_size = {"nano": 0.3, "micro": 0.2, "milli": 0.1}
  online = [make_run([0.6, 0.6], size=size) for size in by_size]
  closing = [make_run([0.6 - gap] * 2, size=s) for s, gap in by_size.items()]
  steady = [make_run([0.4] * 2, size=s) for s in by_size]
  trend = size_trends.size_trend(online, closing, JUDGE, resamples=3)
  assert value(trend) == -0.05
  difference = size_trends.difference_of_size_trends(
    online, steady, closing, JUDGE, resamples=3
  )
  assert value(difference) == 0.05
  # Only the sizes that all three have: without, a fourth point would bend a's trend.
  more = [make_run([rate, rate], size="tiny") for rate in (0.9, 0.1)]
  again = size_trends.difference_of_size_trends(
    [*online, more[0]], [*steady, more[1]], closing, JUDGE, resamples=3
  )
  assert value(again) == 0.05
  alone = size_trends.size_trend(online, closing[:1], JUDGE)
  assert alone.reason == "fewer than two policy sizes with runs of both"
