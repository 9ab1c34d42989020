"""Envelopes: cross-fitted, of all runs of a series, over the worlds."""

import itertools

import numpy as np
import pytest

from alignment.analysis import envelopes
from tests import synthetic

JUDGE = "golden PM"


def certain_run(name, series, rates, kls, world=0):
  """Each checkpoint wins the same share of every prompt: no evaluation noise."""
  return synthetic.make_run(name, series, synthetic.certain(rates), kls, world=world)


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


def test_an_envelope_of_several_worlds_is_their_mean_where_all_have_begun():
  runs = [
    certain_run("a", "online", [0.2, 0.4], [1, 4], world=0),
    certain_run("a", "online", [0.6, 0.5], [2, 8], world=1),
  ]
  kl_G, rates_G, low_G, high_G = envelopes.envelope(runs, JUDGE)
  assert kl_G.tolist() == [2, 4, 8]
  # World 0 is halfway, in log KL, between its checkpoints at 2.
  np.testing.assert_allclose(rates_G, [(0.3 + 0.6) / 2, 0.5, 0.5])
  np.testing.assert_allclose(low_G, high_G)
  assert (
    len(envelopes.envelope([certain_run("s", "online", [0.5], [0])], JUDGE)[0]) == 0
  )


def test_the_envelope_is_over_all_runs_of_a_series():
  runs = [certain_run(f"{r}", "online", [r, r], [1, 4]) for r in (0.2, 0.6, 0.4)]
  np.testing.assert_allclose(envelopes.envelope(runs, JUDGE)[1], [0.6, 0.6])


def test_the_floor_itself_counts_and_an_equal_win_rate_does_not_rise():
  runs = [certain_run("a", "online", [0.4, 0.5], [envelopes.KL_FLOOR, 1])]
  assert envelopes.envelope(runs, JUDGE)[0].tolist() == [envelopes.KL_FLOOR, 1]
  between = envelopes.envelope_RxG(runs, JUDGE, np.array([0.1]), 1, 2)[0]
  assert between == pytest.approx(0.45)
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
