"""What claims measure, on runs for which the answer is known."""

import math

import numpy as np
import pytest

from alignment.analysis import measures
from alignment.analysis.runs import Classification
from tests import synthetic

JUDGE = "golden PM"


def make_run(rates, kls=None, method="online", **fields):
  kls = list(range(1, len(rates) + 1)) if kls is None else kls
  return synthetic.make_run("r", method, synthetic.certain(rates), kls, **fields)


def value(estimate):
  assert estimate.low <= estimate.value <= estimate.high
  return pytest.approx(estimate.value)


def test_peaks_against_levels_and_ends():
  runs = [make_run([0.2, 0.5, 0.4], [1, 2, 9]), make_run([0.1, 0.3], [1, 4])]
  sft = [make_run([0.15], [0], "sft")]
  assert value(measures.peak_above_level(runs, sft, JUDGE, resamples=5)) == 0.35
  assert value(measures.fall_from_peak(runs, JUDGE, resamples=5)) == 0.1
  rising = [make_run([0.2, 0.3, 0.4])]
  assert value(measures.fall_from_peak(rising, JUDGE, resamples=5)) == 0
  worse = [make_run([0.1, 0.3], [2, 10])]  # rising too, but not as far as the other
  assert value(measures.fall_from_peak(rising + worse, JUDGE, resamples=5)) == 0.1
  assert value(measures.last_gap(runs, rising, JUDGE, resamples=5)) == 0.35 - 0.4
  ratio = measures.log_kl_ratio_at_peak(runs, rising, JUDGE, resamples=5)
  assert value(ratio) == math.log(2 / 3)
  at_sft = [make_run([0.5, 0.1], [0, 1])]
  undefined = measures.log_kl_ratio_at_peak(at_sft, runs, JUDGE, resamples=5)
  assert undefined.reason == "the best checkpoint is SFT itself"


def test_the_end_is_the_largest_kl_of_any_checkpoint():
  """Not the last one of a run that comes back, nor that of the run that ends there."""
  comes_back = make_run([0.2, 0.7, 0.3, 0.6], [1, 2, 9, 3])
  other = make_run([0.5, 0.5], [1, 4])
  found = measures.fall_from_peak([comes_back, other], JUDGE, resamples=5)
  assert value(found) == 0.4


def test_a_level_has_noise_of_its_own():
  wins_ExP = np.array([[1.0, 0.0] * 20])
  level = [synthetic.make_run("sft", "sft", wins_ExP, [0.0])]
  runs = [synthetic.make_run("r", "online", np.full((2, 40), 0.5), [1, 2])]
  found = measures.peak_above_level(runs, level, JUDGE)
  assert found.high - found.low > 0.1


def test_no_fall_is_seen_in_noise_alone():
  """Cross-fitting: the best of equally good checkpoints is not better than the last."""
  falls = []
  for seed in range(60):
    wins_ExP = synthetic.drawn([0.5] * 8, seed, prompts=64)
    runs = [synthetic.make_run("r", "online", wins_ExP, range(1, 9))]
    falls.append(measures.fall_from_peak(runs, JUDGE, resamples=2).value)
  assert abs(np.mean(falls)) < 3 * np.std(falls) / math.sqrt(len(falls))


def test_correlation_is_within_runs():
  """Each falls, though the better run has the higher accuracy throughout."""
  runs = [
    make_run([base + 0.2, base + 0.1, base], measured={"classification_accuracy": x})
    for base, x in ((0.1, [0.5, 0.6, 0.7]), (0.6, [0.8, 0.85, 0.9]))
  ]
  assert value(measures.correlation_with_accuracy(runs, JUDGE, resamples=5)) == -1
  two = make_run([0.1, 0.9], measured={"classification_accuracy": [0.5, 0.6]})
  assert value(measures.correlation_with_accuracy([*runs, two], JUDGE)) == -1
  # Every resample is centred by its own mean: of a correlation of 1, all are 1.
  wins_ExP = np.outer([0, 0.5, 1], np.arange(30) < 10)
  rising = {"classification_accuracy": [0.5, 0.6, 0.7]}
  one = synthetic.make_run("r", "online", wins_ExP, [1, 2, 3], measured=rising)
  found = measures.correlation_with_accuracy([one], JUDGE, resamples=20)
  assert (found.low, found.high) == pytest.approx((1, 1))
  constant = [make_run([0.1, 0.2, 0.3])]  # in accuracy
  assert measures.correlation_with_accuracy(constant, JUDGE).reason


def test_best_results_and_their_trend_with_size():
  rates = [0.1, 0.3, 0.2, 0.5, 0.4]
  best_R = measures.best_result_R([make_run(rates[:2]), make_run(rates[2:])], JUDGE, 3)
  np.testing.assert_allclose(best_R, np.quantile(rates, 0.9))
  # The gap shrinks by 0.1 with each size, which is two doublings of parameters.
  by_size = {"nano": 0.3, "micro": 0.2, "milli": 0.1}
  online = [make_run([0.6, 0.6], size=size) for size in by_size]
  closing = [make_run([0.6 - gap] * 2, size=s) for s, gap in by_size.items()]
  steady = [make_run([0.4] * 2, size=s) for s in by_size]
  trend = measures.size_trend(online, closing, JUDGE, resamples=3)
  assert value(trend) == -0.05
  difference = measures.difference_of_size_trends(
    online, steady, closing, JUDGE, resamples=3
  )
  assert value(difference) == 0.05
  # Only the sizes that all three have: without, a fourth point would bend a's trend.
  more = [make_run([rate, rate], size="tiny") for rate in (0.9, 0.1)]
  again = measures.difference_of_size_trends(
    [*online, more[0]], [*steady, more[1]], closing, JUDGE, resamples=3
  )
  assert value(again) == 0.05
  alone = measures.size_trend(online, closing[:1], JUDGE)
  assert alone.reason == "fewer than two policy sizes with runs of both"


def test_measured_keys_are_averaged_over_checkpoints_and_runs():
  runs = [
    make_run([0.5] * len(values), measured={"entropy": values})
    for values in ([1.0, 2.0, 6.0], [5.0, 7.0])
  ]
  assert measures.mean_value("entropy")(runs).value == pytest.approx((3 + 6) / 2)
  tied = [make_run([0.5] * 3, measured={"entropy": [1.0, None, 2.0]})]
  assert measures.mean_value("entropy")(tied).value == pytest.approx(1.5)
  assert measures.last_value("entropy")(runs).value == pytest.approx((6 + 7) / 2)
  difference = measures.last_difference("entropy")(runs[1:], runs[:1])
  assert difference.value == pytest.approx(7 - 6)


def test_classifiers_are_compared_at_the_steps_of_both():
  def rows(accuracies):
    return [
      Classification("tldr", 0, "c", step, accuracy, 0.03, 64)
      for step, accuracy in accuracies.items()
    ]

  a, b = rows({10: 0.8, 20: 0.7, 30: 0.1}), rows({10: 0.5, 20: 0.5})
  found = measures.accuracy_difference(a, b)
  assert value(found) == 0.25
  stderr = math.sqrt(4 * 0.03**2) / 2
  assert found.high - found.value == pytest.approx(1.96 * stderr, rel=1e-4)
  assert measures.accuracy_difference(a[2:], b).reason
  trend = measures.accuracy_trend(rows({10: 0.8, 20: 0.7, 30: 0.6}))
  assert value(trend) == -0.2
  stderr = math.sqrt(2) * 0.03  # of the last less the first: it is linear
  assert trend.high - trend.value == pytest.approx(1.96 * stderr, rel=1e-4)
  assert measures.accuracy_trend(a[:1]).reason == "fewer than two steps"


def test_training_statistics_of_a_replay_beside_its_online_run():
  def rows(losses):
    return [{"step": i, "loss": loss, "zero": 0.0} for i, loss in enumerate(losses)]

  online = [make_run([0.5, 0.5], metrics=rows([1, 2, 4, 8]))]
  replay = [make_run([0.5, 0.5], method="replay", metrics=rows([1, 2, 4.4, 8]))]
  assert measures.training_difference(replay, online).value == pytest.approx(0.1 / 8)
  assert measures.training_drift(replay, online).value == pytest.approx(0.05 / 2)
  for field, other in (
    *(("world", 1), ("task", "chat_arena"), ("loss", "dpo"), ("size", "nano")),
    *(("beta", 9.0), ("learning_rate", 9.0), ("seed", 1)),
  ):
    unlike = make_run([0.5, 0.5], metrics=rows([1, 2]), **{field: other})
    assert measures.training_difference(replay, [unlike]).reason, field


@pytest.mark.parametrize("best_of_n", [False, True])
def test_the_laws_fit_what_they_generate(best_of_n):
  d = np.linspace(0.3, 4, 9)
  score = measures.law_terms(d, best_of_n) @ [1.5, 0.4]
  assert score[-1] == pytest.approx(4 * (1.5 - 0.4 * (4 if best_of_n else np.log(4))))
  np.testing.assert_allclose(measures.fit_law(d, score, best_of_n), [1.5, 0.4])
