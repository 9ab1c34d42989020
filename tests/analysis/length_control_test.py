"""Win rates at equal length, of outcomes whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest

from alignment.analysis import length_control, runs
from alignment.analysis.length_control import length_controlled
from alignment.types import UserError
from tests import synthetic


def logistic(x):
  return 1 / (1 + np.exp(-x))


def drawn(seed, intercept, slope, shift, prompts=400, kind=np.tanh):
  """Outcomes of logits intercept + slope x kind(gap / 30), gaps ~ N(shift, 30)."""
  rng = np.random.default_rng(seed)
  gaps_P = np.round(rng.normal(shift, 30, prompts))
  rates_P = logistic(intercept + slope * kind(gaps_P / 30))
  return (rng.random(prompts) < rates_P).astype(float), gaps_P


@pytest.mark.parametrize("kind", [np.tanh, lambda x: x])
@pytest.mark.parametrize("shift", [-20, 20])
def test_an_advantage_that_is_all_length_is_gone(kind, shift):
  """Whether its effect saturates, as the model says, or not."""
  wins_P, gaps_P = drawn(0, 0.0, 1.5, shift, prompts=4000, kind=kind)
  assert abs(wins_P.mean() - 0.5) > 0.1
  estimate = length_controlled(wins_P, gaps_P)
  assert abs(estimate.value - 0.5) < 0.04
  assert estimate.low < 0.5 + 0.02 and estimate.high > 0.5 - 0.02


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_an_advantage_that_is_not_length_stays(rate):
  wins_P, gaps_P = drawn(1, math.log(rate / (1 - rate)), 0.0, 25, prompts=4000)
  estimate = length_controlled(wins_P, gaps_P)
  assert abs(estimate.value - rate) < 0.03 and abs(wins_P.mean() - rate) < 0.03


@pytest.mark.parametrize(("intercept", "slope"), [(0.0, 1.5), (0.6, -1.0)])
def test_intervals_cover_the_truth(intercept, slope):
  truth = logistic(intercept)
  estimates = [length_controlled(*drawn(s, intercept, slope, 15)) for s in range(300)]
  covered = np.mean([e.low < truth < e.high for e in estimates])
  assert 0.91 < covered < 0.985
  values = np.array([e.value for e in estimates])
  assert abs(values.mean() - truth) < 0.01
  widths = np.mean([e.high - e.low for e in estimates]) / (2 * 1.96)
  assert widths == pytest.approx(values.std(), rel=0.15)


def test_the_fit_is_at_the_minimum_of_its_loss():
  wins_P, gaps_P = drawn(2, 0.4, 1.0, 10, prompts=60)
  x_Px2 = np.stack([np.ones(60), np.tanh(gaps_P / gaps_P.std())], axis=1)
  at_2, _ = length_control._fit(x_Px2, wins_P)
  best = length_control._loss(x_Px2, wins_P, at_2)
  rng = np.random.default_rng(0)
  for step_2 in rng.normal(0, 0.05, (50, 2)):
    assert length_control._loss(x_Px2, wins_P, at_2 + step_2) > best
  assert length_controlled(wins_P, gaps_P).value == pytest.approx(logistic(at_2[0]))


def test_equal_lengths_give_the_win_rate():
  wins_P = np.array([1.0] * 30 + [0.0] * 8 + [0.5] * 2)
  estimate = length_controlled(wins_P, np.zeros(40))
  assert estimate.value == pytest.approx((31 + 0.5) / 41)


def test_nothing_is_infinite():
  gaps_P = np.arange(-20.0, 20.0)
  for wins_P in (np.ones(40), np.zeros(40), (gaps_P > 0) * 1.0, np.full(40, 0.5)):
    estimate = length_controlled(wins_P, gaps_P)
    assert 0 < estimate.low <= estimate.value <= estimate.high < 1
  assert length_controlled((gaps_P > 0) * 1.0, gaps_P).value == pytest.approx(
    0.5, abs=0.1
  )


def test_without_responses_of_equal_length_there_is_no_estimate():
  wins_P = np.ones(40)
  estimate = length_controlled(wins_P, np.arange(40) + 1.0)
  assert math.isnan(estimate.value)
  assert estimate.reason == "0 of 40 responses are as short as the opponent's"
  assert "as long as" in length_controlled(wins_P, -np.arange(40) - 1.0).reason


def test_lengths_are_read_and_told_of_every_checkpoint(tmp_path):
  run = synthetic.make_run(
    "online_0", "online", synthetic.drawn([0.4, 0.6], 0), [0.1, 2.0], steps=[10, 20]
  )
  gaps_ExP = np.stack([np.arange(40) - 20.0, np.arange(40) + 30.0])
  assert length_control.table([run]) == []
  run = dataclasses.replace(run, length_gaps_ExP=gaps_ExP)
  path = synthetic.write(tmp_path, run) / "outcomes.npz"
  with np.load(path) as file:
    arrays = {name: values[[1, 0]] for name, values in file.items()}  # in any order
  np.savez(path, **arrays)
  (read,) = runs.load_runs(tmp_path)
  np.testing.assert_array_equal(read.length_gaps_ExP, gaps_ExP)
  rows = length_control.table([read])
  assert [row["step"] for row in rows] == [10, 20]
  expected = length_controlled(run.wins["golden PM"][0], gaps_ExP[0])
  assert rows[0]["length_controlled"] == expected.value
  assert rows[0]["longer_by_tokens"] == -0.5 and rows[0]["note"] == ""
  assert math.isnan(rows[1]["low"]) and "as short as" in rows[1]["note"]
  assert rows[1]["win_rate"] == run.wins["golden PM"][1].mean()


def test_a_judge_at_equal_length_has_the_rates_of_the_table():
  wins_P, gaps_P = drawn(3, 0.5, 1.2, 20, prompts=300)
  run = synthetic.make_run(
    "online_0", "online", np.stack([wins_P, 1 - wins_P]), [0.1, 2.0], steps=[10, 20]
  )
  run = dataclasses.replace(run, length_gaps_ExP=np.stack([gaps_P, gaps_P]))
  (judged,) = length_control.as_judge([run])
  assert list(judged.wins) == [*run.wins, length_control.AT_EQUAL_LENGTH]
  rates_E = judged.win_rates_E(length_control.AT_EQUAL_LENGTH)
  rows = [r for r in length_control.table([run]) if r["judge"] == "golden PM"]
  np.testing.assert_allclose(rates_E, [row["length_controlled"] for row in rows])
  # Its noise is that of the table's intervals, too.
  adjusted_P = judged.wins[length_control.AT_EQUAL_LENGTH][0]
  within = 1.96 * adjusted_P.std() / math.sqrt(300)
  assert within == pytest.approx((rows[0]["high"] - rows[0]["low"]) / 2, rel=0.03)


@pytest.mark.parametrize(
  ("intercept", "slope", "shift"), [(0.0, 1.0, 30), (0.5, 1.0, -40)]
)
def test_intervals_of_the_judge_at_equal_length_cover_the_truth(
  intercept, slope, shift
):
  """Also where lengths differ by their own spread, and the slope decides."""
  truth, covered = logistic(intercept), []
  for seed in range(200):
    adjusted_P = length_control.adjusted_P(*drawn(seed, intercept, slope, shift))
    within = 1.96 * adjusted_P.std() / math.sqrt(len(adjusted_P))
    covered.append(abs(adjusted_P.mean() - truth) < within)
  assert 0.9 < np.mean(covered) < 0.985


def test_the_judge_at_equal_length_says_of_half_of_the_prompts_what_their_fit_does():
  """So that what is selected on one half is reported without bias by the other."""
  whole, fitted = [], []
  for seed in range(50):
    wins_P, gaps_P = drawn(seed, 0.0, 1.0, 30)
    adjusted_P = length_control.adjusted_P(wins_P, gaps_P)
    whole.append(adjusted_P[:200].mean() - adjusted_P.mean())
    of_half = length_controlled(wins_P[:200], gaps_P[:200]).value
    fitted.append(of_half - adjusted_P.mean())
  assert np.corrcoef(whole, fitted)[0, 1] > 0.95
  assert np.std(whole) == pytest.approx(np.std(fitted), rel=0.15)


def test_checkpoints_without_an_estimate_are_named():
  gaps_ExP = np.stack([np.arange(40) - 20.0, np.arange(40) + 30.0])
  run = synthetic.make_run(
    "online_0", "online", synthetic.drawn([0.4, 0.6], 0), [0.1, 2.0], steps=[10, 20]
  )
  assert length_control.guesses([run]) == ""
  run = dataclasses.replace(run, length_gaps_ExP=gaps_ExP)
  assert length_control.guesses([run]).endswith("golden policy's: online_0 at 20.")
  equal = dataclasses.replace(run, length_gaps_ExP=0 * gaps_ExP)
  assert length_control.guesses([equal]) == ""


def test_without_lengths_there_is_no_judge_at_equal_length():
  run = synthetic.make_run("online_0", "online", synthetic.drawn([0.4], 0), [0.1])
  with pytest.raises(UserError, match="runs/online_0/outcomes.npz: no lengths"):
    length_control.as_judge([run])


def test_a_taste_for_length_is_told_apart_from_quality():
  for slope in (-1.0, 0.0, 1.0):
    rate = length_control.wins_if_longer(*drawn(4, 0.8, slope, 5, prompts=4000))
    assert rate == pytest.approx(logistic(slope * math.tanh(1)), abs=0.04)
  assert math.isnan(length_control.wins_if_longer(np.ones(40), np.arange(40) + 1.0))
