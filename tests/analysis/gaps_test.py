"""Gaps of win rates without selection bias, on runs for which the answer is known."""

import dataclasses
import math

import numpy as np
import pytest

from alignment.analysis import envelopes, gaps
from tests import synthetic

JUDGE = "golden PM"


def noisy_run(rng, name, rates, kls):
  wins_ExP = rng.random((len(rates), 128)) < np.asarray(rates)[:, None]
  return synthetic.make_run(name, "online", wins_ExP, kls)


def certain_run(name, series, rates, kls, world=0):
  """Each checkpoint wins the same share of every prompt: no evaluation noise."""
  return synthetic.make_run(name, series, synthetic.certain(rates), kls, world=world)


def make_run(rates, kls=None, series="online"):
  kls = list(range(1, len(rates) + 1)) if kls is None else kls
  return certain_run("r", series, rates, kls)


def value(estimate):
  assert estimate.low <= estimate.value <= estimate.high
  return pytest.approx(estimate.value)


@pytest.mark.parametrize("gap", [gaps.peak_gap, gaps.gap_at_equal_kl])
@pytest.mark.parametrize(
  ("spread", "equal_numbers"),
  [
    (0, False),  # noise of the evaluation alone: cross-fitting is enough
    (0, True),
    (0.05, True),  # noise of training too: more tries do find a better run
  ],
)
def test_one_run_against_nine_of_pure_noise_shows_no_gap(spread, equal_numbers, gap):
  rng = np.random.default_rng(0)
  kl_E = np.geomspace(0.1, 10, 8)
  naive, estimated = [], []
  for _ in range(80):
    one, nine = (
      [
        noisy_run(rng, f"{i}", [0.5 + spread * rng.normal()] * 8, kl_E)
        for i in range(count)
      ]
      for count in (1, 9)
    )
    best = [max(r.win_rates_E(JUDGE).max() for r in runs) for runs in (one, nine)]
    naive.append(best[0] - best[1])
    estimate = gap(one, nine, JUDGE, equal_numbers=equal_numbers, resamples=2)
    estimated.append(estimate.value)
  assert np.mean(naive) < -0.03  # the nine look better, and are not
  standard_error = np.std(estimated) / math.sqrt(len(estimated))
  assert abs(np.mean(estimated)) < 3 * standard_error
  assert standard_error < 0.008


def test_without_noise_gaps_are_those_of_the_envelopes():
  # Envelopes at KL 1, 10, 100: a 0.3, 0.5, 0.6; b 0.4, 0.4, 0.4; lines between. The
  # checkpoint below the floor is ignored at equal KL, but counts as a peak.
  a = [certain_run("a", "online", [0.9, 0.3, 0.5, 0.6], [0.001, 1, 10, 100])]
  b = [certain_run("b", "offline", [0.4, 0.2, 0.1], [1, 10, 100])]
  assert gaps.peak_gap(a, b, JUDGE).value == pytest.approx(0.5)
  estimate = gaps.gap_at_equal_kl(a, b, JUDGE)
  assert estimate.value == pytest.approx((0.0 + 0.15) / 2)
  assert (estimate.low, estimate.high) == pytest.approx((estimate.value,) * 2)
  assert estimate.over == "prompts, 1 world" and estimate.n == 10
  # At high KL, half of the range of log KL, only the second line counts.
  estimate = gaps.gap_at_equal_kl(a, b, JUDGE, above=0.5)
  assert estimate.value == pytest.approx(0.15)
  # b stops at 10^1.5: half of the second line, which reaches 0.55, has half the weight.
  b = [certain_run("b", "offline", [0.4, 0.2], [1, 10**1.5])]
  estimate = gaps.gap_at_equal_kl(a, b, JUDGE)
  assert estimate.value == pytest.approx((0.0 * 2 + 0.125) / 3)


def test_what_lies_below_the_papers_axis_has_no_weight():
  """a is ahead by 0.5 up to the axis' beginning, and by 0.1 from there on."""
  start = gaps.KL_FROM
  a = [certain_run("a", "online", [0.6, 0.6, 0.6], [0.02, start, 5])]
  b = [
    certain_run("b", "offline", [0.1, 0.1, 0.5, 0.5], [0.02, 0.99 * start, start, 5])
  ]
  assert gaps.gap_at_equal_kl(a, b, JUDGE).value == pytest.approx(0.1)
  below = [certain_run("b", "offline", [0.1, 0.5], [0.02, 0.3])]
  assert "no common range of KL from 0.37 nats" in (
    gaps.gap_at_equal_kl(a, below, JUDGE).reason
  )


def test_the_gap_at_a_budget_is_interpolated_in_log_kl():
  a = [certain_run("a", "online", [0.2, 0.6], [1, 9])]
  b = [certain_run("b", "offline", [0.1, 0.1], [0.5, 4])]
  for budget, expected in ((1, 0.1), (3, 0.3)):
    estimate = gaps.gap_at_budget(a, b, JUDGE, budget=budget)
    assert estimate.value == pytest.approx(expected)
  estimate = gaps.gap_at_budget(a, b, JUDGE, budget=6)
  assert math.isnan(estimate.value) and estimate.reason == "offline has KL 0.5 to 4"
  estimate = gaps.gap_at_budget(a, b, JUDGE, budget=0.7)
  assert estimate.reason == "online has KL 1 to 9"


def test_unequal_numbers_of_runs_are_averaged_over_subsets_unless_told_otherwise():
  one = [certain_run("a", "online", [0.5, 0.5], [1, 10])]
  two = [certain_run(f"b{r}", "offline", [r, r], [1, 10]) for r in (0.4, 0.8)]
  for gap in (gaps.peak_gap, gaps.gap_at_equal_kl):
    assert gap(one, two, JUDGE).value == pytest.approx(0.5 - 0.6)
    assert gap(one, two, JUDGE, equal_numbers=False).value == pytest.approx(-0.3)


def test_runs_that_never_leave_sft_count_as_runs():
  """Half of b's settings do not move: best of four is compared with best of four."""
  a, b = (
    [certain_run(f"{name}{r}", "online", [r, r], [1, 10]) for r in (0.1, 0.2, 0.3, 0.4)]
    for name in "ab"
  )
  b[:2] = [certain_run(f"b{i}", "online", [0.1, 0.1], [0, 0.001]) for i in range(2)]
  assert gaps.gap_at_equal_kl(a, b, JUDGE).value == pytest.approx(0)
  # Two of four: subsets of which neither moves are left out.
  one_of_each = [0.4, 0.4, 0.4, 0.3, 0.3]
  expected = 0.4 - np.mean(one_of_each)
  pair = [certain_run(f"p{i}", "online", [0.4, 0.4], [1, 10]) for i in range(2)]
  gap = gaps.gap_at_equal_kl(pair, b, JUDGE).value
  assert gap == pytest.approx(expected)


def test_no_common_range_of_kl_is_nan_with_the_reason():
  a = [certain_run("a", "online", [0.5, 0.5], [0.1, 1])]
  b = [certain_run("b", "offline", [0.5, 0.5], [2, 3])]
  estimate = gaps.gap_at_equal_kl(a, b, JUDGE)
  assert math.isnan(estimate.value)
  assert estimate.reason == (
    "no common range of KL from 0.37 nats (0.1 to 1 and 2 to 3)"
  )
  at_sft = [certain_run("b", "offline", [0.5], [0])]
  assert "above KL 0.01" in gaps.gap_at_equal_kl(a, at_sft, JUDGE).reason


def test_the_interval_over_prompts_covers_the_truth():
  rng = np.random.default_rng(1)
  kl_E = np.geomspace(0.1, 10, 6)
  rates = np.linspace(0.3, 0.6, 6)
  covered, widths = [], []
  for _ in range(80):
    a = [noisy_run(rng, "a", rates, kl_E)]
    b = [noisy_run(rng, "b", rates - 0.1, kl_E)]
    estimate = gaps.gap_at_equal_kl(a, b, JUDGE, resamples=100)
    covered.append(estimate.low <= 0.1 <= estimate.high)
    widths.append(estimate.high - estimate.low)
    assert estimate.value == pytest.approx((estimate.low + estimate.high) / 2)
  assert np.mean(covered) > 0.88
  assert np.mean(widths) < 0.25


def test_intervals_are_the_same_each_time_and_have_the_noise_of_both():
  rng = np.random.default_rng(0)
  noisy = [noisy_run(rng, "n", [0.5, 0.6], [1, 10])]
  certain = [certain_run("c", "offline", [0.5, 0.5], [1, 10])]
  certain = [
    dataclasses.replace(r, wins={JUDGE: np.full((2, 128), 0.5)}) for r in certain
  ]
  for gap in (gaps.peak_gap, gaps.gap_at_equal_kl):
    one, other = gap(noisy, certain, JUDGE), gap(certain, noisy, JUDGE)
    assert one.high - one.low > 0.05
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    envelopes._prompt_weights_RxP.cache_clear()
    envelopes._prompt_weights_2xRxP.cache_clear()
    envelopes._win_rates_2xRxE.cache_clear()
    assert gap(noisy, certain, JUDGE) == one


def test_high_kl_is_the_upper_half_in_log_kl():
  """From 1 to 100 that begins at 10, where half of the KLs is 50.5."""
  a = [certain_run("a", "online", [0.1, 0.5, 0.5, 0.9], [1, 10, 20, 100])]
  b = [certain_run("b", "offline", [0.1, 0.1], [1, 100])]
  estimate = gaps.gap_at_equal_kl(a, b, JUDGE, above=0.5)
  expected = (0.4 * math.log(2) + 0.6 * math.log(5)) / math.log(10)
  assert estimate.value == pytest.approx(expected)


def test_runs_of_several_worlds_have_no_common_prompts():
  runs = [certain_run("a", "online", [0.5, 0.5], [1, 10], world=w) for w in (0, 3)]
  for gap in (gaps.peak_gap, gaps.gap_at_equal_kl):
    with pytest.raises(ValueError, match=r"runs of worlds \[0, 3\]: hand over one"):
      gap(runs, runs[:1], JUDGE, resamples=2)


def test_peaks_against_levels_and_ends():
  runs = [make_run([0.2, 0.5, 0.4], [1, 2, 9]), make_run([0.1, 0.3], [1, 4])]
  sft = [make_run([0.15], [0], "sft")]
  assert value(gaps.peak_above_level(runs, sft, JUDGE, resamples=5)) == 0.35
  assert value(gaps.fall_from_peak(runs, JUDGE, resamples=5)) == 0.1
  rising = [make_run([0.2, 0.3, 0.4])]
  assert value(gaps.fall_from_peak(rising, JUDGE, resamples=5)) == 0
  worse = [make_run([0.1, 0.3], [2, 10])]  # rising too, but not as far as the other
  assert value(gaps.fall_from_peak(rising + worse, JUDGE, resamples=5)) == 0.1
  assert value(gaps.last_gap(runs, rising, JUDGE, resamples=5)) == 0.35 - 0.4
  ratio = gaps.log_kl_ratio_at_peak(runs, rising, JUDGE, resamples=5)
  assert value(ratio) == math.log(2 / 3)
  at_sft = [make_run([0.5, 0.1], [0, 1])]
  undefined = gaps.log_kl_ratio_at_peak(at_sft, runs, JUDGE, resamples=5)
  assert undefined.reason == "the best checkpoint is SFT itself"


def test_the_end_is_the_largest_kl_of_any_checkpoint():
  """Not the last one of a run that comes back, nor that of the run that ends there."""
  comes_back = make_run([0.2, 0.7, 0.3, 0.6], [1, 2, 9, 3])
  other = make_run([0.5, 0.5], [1, 4])
  estimate = gaps.fall_from_peak([comes_back, other], JUDGE, resamples=5)
  assert value(estimate) == 0.4


def test_a_fall_in_steps_is_within_a_run_whatever_its_kl():
  falls = make_run([0.2, 0.6, 0.4], [1, 9, 3])
  rises = make_run([0.1, 0.2, 0.3], [1, 2, 9])
  assert value(gaps.fall_in_steps([falls], JUDGE, resamples=5)) == 0.2
  assert value(gaps.fall_in_steps([falls, rises], JUDGE, resamples=5)) == 0.1


def test_the_slope_of_peaks_is_per_tenfold_age():
  def aged(peak, every):
    wins_ExP = synthetic.certain([0.2, peak])
    return synthetic.make_run(
      f"r{every}", "semi_online", wins_ExP, [1, 2], refresh_every=every
    )

  online = [make_run([0.2, 0.6])]
  semi = [aged(0.55, 10), aged(0.5, 100), aged(0.1, 0)]  # never renewed: of no age
  estimate = gaps.staleness_slope(online, semi, JUDGE, resamples=3)
  assert value(estimate) == -0.05
  assert "equally old" in gaps.staleness_slope(online, semi[2:], JUDGE).reason


def test_a_level_has_noise_of_its_own():
  wins_ExP = np.array([[1.0, 0.0] * 20])
  level = [synthetic.make_run("sft", "sft", wins_ExP, [0.0])]
  runs = [synthetic.make_run("r", "online", np.full((2, 40), 0.5), [1, 2])]
  estimate = gaps.peak_above_level(runs, level, JUDGE)
  assert estimate.high - estimate.low > 0.1


def test_no_fall_is_seen_in_noise_alone():
  """Cross-fitting: the best of equally good checkpoints is not better than the last."""
  falls = []
  for seed in range(60):
    wins_ExP = synthetic.drawn([0.5] * 8, seed, prompts=64)
    runs = [synthetic.make_run("r", "online", wins_ExP, range(1, 9))]
    falls.append(gaps.fall_from_peak(runs, JUDGE, resamples=2).value)
  assert abs(np.mean(falls)) < 3 * np.std(falls) / math.sqrt(len(falls))


def test_differences_of_falls_and_of_gaps_of_peaks():
  a, b = make_run([0.2, 0.6, 0.3]), make_run([0.2, 0.5, 0.4])
  falls = gaps.difference_of_falls([a], [b], JUDGE, resamples=2)
  assert falls.value == value(falls) == pytest.approx(0.3 - 0.1)
  c, d = make_run([0.4, 0.45]), make_run([0.4, 0.41])
  gained = gaps.difference_of_peak_gaps([a], [b], [c], [d], JUDGE, resamples=2)
  assert gained.value == pytest.approx(0.1 - 0.04)
  # At equal numbers: one of two runs is expected where the other side has one.
  twice = gaps.difference_of_peak_gaps([a, c], [b], [c], [d], JUDGE, resamples=2)
  assert twice.value == pytest.approx((0.6 + 0.45) / 2 - 0.5 - 0.04)
