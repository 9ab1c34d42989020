"""Gaps without selection bias, and intervals."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from alignment.analysis import envelopes, intervals
from tests import synthetic

JUDGE = "golden PM"


def noisy_run(rng, name, rates, kls):
  wins_ExP = rng.random((len(rates), 128)) < np.asarray(rates)[:, None]
  return synthetic.make_run(name, "online", wins_ExP, kls)


def certain_run(name, method, rates, kls, world=0, truth=None):
  """Each checkpoint wins the same share of every prompt: no evaluation noise."""
  truth_ExP = None if truth is None else synthetic.certain(truth)
  return synthetic.make_run(
    name, method, synthetic.certain(rates), kls, world=world, truth=truth_ExP
  )


def test_upper_envelope_is_the_best_within_each_budget():
  kl, win_rate = envelopes.upper_envelope(
    np.array([3.0, 1.0, 2.0, 3.0]), np.array([0.4, 0.3, 0.5, 0.6])
  )
  assert kl.tolist() == [1, 2, 3, 3]
  assert win_rate.tolist() == [0.3, 0.5, 0.6, 0.6]


def test_expected_best_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  selected_K, reported_K = rng.random(5), rng.random(5)
  selected_K[3] = -np.inf  # has nothing to select
  for size in range(1, 6):
    reports = []
    for subset in itertools.combinations(range(5), size):
      best = max(subset, key=lambda run: selected_K[run])
      if selected_K[best] > -np.inf:
        reports.append(reported_K[best])
    result = envelopes._expected_best(selected_K[None], reported_K[None], size)
    assert result[0] == pytest.approx(np.mean(reports))


def test_halves_share_no_prompt_and_resamples_keep_their_weight_in_every_split():
  for num_prompts in (2, 21):
    drawn_RxP = envelopes._prompt_weights_RxP(num_prompts, 5)
    halves = set()
    for split in range(envelopes.SPLITS):
      weights_2xRxP = envelopes._prompt_weights_2xRxP(num_prompts, 5, split)
      inside_2xRxP = weights_2xRxP > 0
      assert (inside_2xRxP.sum(axis=0) == 1).all()
      expected = inside_2xRxP * drawn_RxP
      expected /= expected.sum(axis=-1, keepdims=True)
      np.testing.assert_allclose(weights_2xRxP, expected)
      halves.add(inside_2xRxP.tobytes())
    assert len(halves) == (2 if num_prompts == 2 else envelopes.SPLITS)


@pytest.mark.parametrize("gap", [envelopes.peak_gap, envelopes.gap_at_equal_kl])
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
  # Envelopes at KL 1, 10, 100: a 0.3, 0.5, 0.6; b 0.4, 0.4, 0.4. The checkpoint below
  # the floor is ignored at equal KL, but counts as a peak.
  a = [certain_run("a", "online", [0.9, 0.3, 0.5, 0.6], [0.001, 1, 10, 100])]
  b = [certain_run("b", "offline", [0.4, 0.2, 0.1], [1, 10, 100])]
  assert envelopes.peak_gap(a, b, JUDGE).value == pytest.approx(0.5)
  estimate = envelopes.gap_at_equal_kl(a, b, JUDGE)
  assert estimate.value == pytest.approx(((0.3 - 0.4) + (0.5 - 0.4)) / 2)
  assert (estimate.low, estimate.high) == pytest.approx((estimate.value,) * 2)
  assert estimate.over == "prompts, 1 world" and estimate.n == 10
  # At high KL, half of the range of log KL, only the second step counts.
  estimate = envelopes.gap_at_equal_kl(a, b, JUDGE, above=0.5)
  assert estimate.value == pytest.approx(0.5 - 0.4)
  # b stops at 10^1.5: the second step has half the weight of the first.
  b = [certain_run("b", "offline", [0.4, 0.2], [1, 10**1.5])]
  estimate = envelopes.gap_at_equal_kl(a, b, JUDGE)
  assert estimate.value == pytest.approx((-0.1 * 2 + 0.1) / 3)


def test_unequal_numbers_of_runs_are_averaged_over_subsets_unless_told_otherwise():
  one = [certain_run("a", "online", [0.5, 0.5], [1, 10])]
  two = [certain_run(f"b{r}", "offline", [r, r], [1, 10]) for r in (0.4, 0.8)]
  for gap in (envelopes.peak_gap, envelopes.gap_at_equal_kl):
    assert gap(one, two, JUDGE).value == pytest.approx(0.5 - 0.6)
    assert gap(one, two, JUDGE, equal_numbers=False).value == pytest.approx(-0.3)


def test_runs_that_never_leave_sft_count_as_runs():
  """Half of b's settings do not move: best of four is compared with best of four."""
  a, b = (
    [certain_run(f"{name}{r}", "x", [r, r], [1, 10]) for r in (0.1, 0.2, 0.3, 0.4)]
    for name in "ab"
  )
  b[:2] = [certain_run(f"b{i}", "x", [0.1, 0.1], [0, 0.001]) for i in range(2)]
  assert envelopes.gap_at_equal_kl(a, b, JUDGE).value == pytest.approx(0)
  # Two of four: subsets of which neither moves are left out.
  one_of_each = [0.4, 0.4, 0.4, 0.3, 0.3]
  expected = 0.4 - np.mean(one_of_each)
  pair = [certain_run(f"p{i}", "x", [0.4, 0.4], [1, 10]) for i in range(2)]
  gap = envelopes.gap_at_equal_kl(pair, b, JUDGE).value
  assert gap == pytest.approx(expected)


def test_no_common_range_of_kl_is_nan_with_the_reason():
  a = [certain_run("a", "online", [0.5, 0.5], [0.1, 1])]
  b = [certain_run("b", "offline", [0.5, 0.5], [2, 3])]
  estimate = envelopes.gap_at_equal_kl(a, b, JUDGE)
  assert math.isnan(estimate.value)
  assert estimate.reason == "no common range of KL (0.1 to 1 and 2 to 3)"
  at_sft = [certain_run("b", "offline", [0.5], [0])]
  assert "above KL 0.01" in envelopes.gap_at_equal_kl(a, at_sft, JUDGE).reason


def test_the_interval_over_prompts_covers_the_truth():
  rng = np.random.default_rng(1)
  kl_E = np.geomspace(0.1, 10, 6)
  rates = np.linspace(0.3, 0.6, 6)
  covered, widths = [], []
  for _ in range(80):
    a = [noisy_run(rng, "a", rates, kl_E)]
    b = [noisy_run(rng, "b", rates - 0.1, kl_E)]
    estimate = envelopes.gap_at_equal_kl(a, b, JUDGE, resamples=100)
    covered.append(estimate.low <= 0.1 <= estimate.high)
    widths.append(estimate.high - estimate.low)
    assert estimate.value == pytest.approx((estimate.low + estimate.high) / 2)
  assert np.mean(covered) > 0.88
  assert np.mean(widths) < 0.25


def test_an_envelope_of_several_worlds_is_their_mean_where_all_have_begun():
  runs = [
    certain_run("a", "online", [0.2, 0.4], [1, 4], world=0),
    certain_run("a", "online", [0.6, 0.5], [2, 8], world=1),
  ]
  kl_G, rates_G, low_G, high_G = envelopes.envelope(runs, JUDGE)
  assert kl_G.tolist() == [2, 4, 8]
  np.testing.assert_allclose(rates_G, [0.4, 0.5, 0.5])
  np.testing.assert_allclose(low_G, high_G)
  assert len(envelopes.envelope([certain_run("s", "x", [0.5], [0])], JUDGE)[0]) == 0


def test_the_envelope_is_over_all_runs_of_a_method():
  runs = [certain_run(f"{r}", "online", [r, r], [1, 4]) for r in (0.2, 0.6, 0.4)]
  np.testing.assert_allclose(envelopes.envelope(runs, JUDGE)[1], [0.6, 0.6])


def test_the_floor_itself_counts_and_an_equal_win_rate_does_not_rise():
  runs = [certain_run("a", "online", [0.4, 0.5], [envelopes.KL_FLOOR, 1])]
  assert envelopes.envelope(runs, JUDGE)[0].tolist() == [envelopes.KL_FLOOR, 1]
  assert envelopes._envelope_RxG(runs, JUDGE, np.array([0.5]), 1, 2)[0] == 0.4
  # Two checkpoints that win equally often: the one of less KL is the best so far, also
  # where prompts, and so the halves, differ.
  run = synthetic.make_run("a", "online", [[1, 0, 1, 0], [0, 1, 1, 0]], [1, 2])
  ties = 0
  for split in range(envelopes.SPLITS):
    rates_2xE = envelopes._win_rates_2xRxE(run, JUDGE, 1, split)[:, 0]
    (best,) = envelopes._envelope_of_split_RxG(
      [run], JUDGE, np.array([3.0]), 1, 1, split
    )[0]
    chosen = [int(rates[1] > rates[0]) for rates in rates_2xE]
    assert best == np.mean([rates_2xE[1 - h][chosen[h]] for h in (0, 1)])
    ties += sum(a == b for a, b in rates_2xE)
  assert ties


def test_intervals_are_the_same_each_time_and_have_the_noise_of_both():
  rng = np.random.default_rng(0)
  noisy = [noisy_run(rng, "n", [0.5, 0.6], [1, 10])]
  certain = [certain_run("c", "offline", [0.5, 0.5], [1, 10])]
  certain = [
    dataclasses.replace(r, wins={JUDGE: np.full((2, 128), 0.5)}) for r in certain
  ]
  for gap in (envelopes.peak_gap, envelopes.gap_at_equal_kl):
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
  found = envelopes.gap_at_equal_kl(a, b, JUDGE, above=0.5)
  assert found.value == pytest.approx(0.4)
  a = [certain_run("a", "online", [0.1, 0.5, 0.9, 0.9], [1, 5, 20, 100])]
  found = envelopes.gap_at_equal_kl(a, b, JUDGE, above=0.5)
  expected = (0.4 * math.log(2) + 0.8 * math.log(5)) / math.log(10)
  assert found.value == pytest.approx(expected)


def test_runs_of_several_worlds_have_no_common_prompts():
  runs = [certain_run("a", "online", [0.5, 0.5], [1, 10], world=w) for w in (0, 3)]
  for gap in (envelopes.peak_gap, envelopes.gap_at_equal_kl):
    with pytest.raises(ValueError, match=r"runs of worlds \[0, 3\]: hand over one"):
      gap(runs, runs[:1], JUDGE, resamples=2)


def test_worlds_are_combined_by_a_paired_t_interval():
  one = intervals.Estimate(0.1, 0.05, 0.15, "prompts, 1 world", 256)
  three = intervals.over_worlds(
    {w: dataclasses.replace(one, value=v) for w, v in enumerate((0.1, 0.2, 0.3))}
  )
  margin = 4.3027 * 0.1 / math.sqrt(3)
  assert three.over == "3 worlds" and three.n == 3
  assert (three.value, three.low, three.high) == pytest.approx(
    (0.2, 0.2 - margin, 0.2 + margin), abs=1e-5
  )
  with_one_undefined = intervals.over_worlds({0: one, 7: intervals.undefined("why")})
  assert with_one_undefined == dataclasses.replace(one, reason="world 7: why")
