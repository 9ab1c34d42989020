"""Accuracies over topics, from margins that were made up."""

import math

import numpy as np
import pytest

from alignment.analysis import topics
from alignment.types import UserError


def held_out(margins, names, preferred, other):
  sizes = np.stack([np.array(preferred), np.array(other)], axis=1)
  folds = np.zeros(len(margins), int)
  return topics.HeldOut(folds, np.array(names), np.array(margins), sizes, sizes // 4)


# Two pairs of each of three topics, right in 1, 1 1/2 and 2 of them.
SIX = held_out(
  [1.0, -1.0, 0.5, 0.0, 2.0, 3.0],
  ["a", "a", "b", "b", "c", "c"],
  [90, 40, 90, 40, 90, 90],
  [40, 90, 40, 90, 40, 40],
)


def test_accuracy_is_the_mean_over_topics_with_a_t_interval():
  accuracy = SIX.rates()["accuracy"]
  values = np.array([0.5, 0.75, 1.0])
  margin = 4.302653 * values.std(ddof=1) / math.sqrt(3)  # Student's t, 2 degrees
  assert accuracy.value == pytest.approx(0.75)
  assert (accuracy.low, accuracy.high) == pytest.approx((0.75 - margin, 0.75 + margin))
  assert accuracy.over == "3 topics" and accuracy.n == 3


def test_an_interval_covers_what_topics_vary_by_not_what_pairs_do():
  """A hundred pairs of a topic that are all alike say no more than one of them."""
  many = held_out(
    np.repeat([1.0, -1.0, 1.0], 100), np.repeat(["a", "b", "c"], 100),
    np.full(300, 9), np.full(300, 5),
  )  # fmt: skip
  once = held_out([1.0, -1.0, 1.0], ["a", "b", "c"], [9, 9, 9], [5, 5, 5])
  assert str(many.rates()["accuracy"]) == str(once.rates()["accuracy"])


def test_a_topic_of_more_pairs_weighs_no_more():
  data = held_out([1.0, 1.0, 1.0, -1.0], ["a", "a", "a", "b"], [9] * 4, [5] * 4)
  assert data.rates()["accuracy"].value == 0.5


def test_intervals_cover_the_truth():
  """Of topics whose accuracies vary around 0.7: in about 95 of 100 drawings."""
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(300):
    rates_K = np.clip(rng.normal(0.7, 0.08, 12), 0, 1)
    right = rng.random((12, 50)) < rates_K[:, None]
    names = np.repeat([f"t{k}" for k in range(12)], 50)
    data = held_out(np.where(right, 1.0, -1.0).ravel(), names, [9] * 600, [5] * 600)
    accuracy = data.rates()["accuracy"]
    covered += accuracy.low < 0.7 < accuracy.high
  assert 0.91 < covered / 300 < 0.98


def test_length_says_what_it_says():
  rates = SIX.rates()
  assert rates["longer_wins"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
  assert rates["above_longer_wins"].value == pytest.approx(0.75 - 2 / 3)
  # Of topic c no shorter response won: it has no part in this.
  shorter = rates["accuracy_where_shorter_won"]
  assert (shorter.value, shorter.n) == (0.25, 2)
  assert rates["accuracy_where_longer_won"].value == 1.0
  assert rates["accuracy_at_equal_shares"].value == pytest.approx((0.5 + 0.75) / 2)
  assert rates["judge_prefers_longer"].value == pytest.approx((1 + 0.75 + 1) / 3)


def test_a_judge_of_length_alone_is_found_out():
  sizes = np.random.default_rng(0).integers(1, 99, (400, 2))
  names = [f"t{i % 8}" for i in range(400)]
  data = held_out(sizes[:, 0] - sizes[:, 1], names, *sizes.T)
  rates = data.rates()
  assert rates["above_longer_wins"].value == 0
  assert rates["accuracy_at_equal_shares"].value == 0.5
  assert rates["judge_prefers_longer"].value == 1


def test_a_single_topic_has_no_interval():
  data = held_out([1.0, -1.0], ["a", "a"], [9, 9], [5, 5])
  assert str(data.rates()["accuracy"]) == "+0.500"
  assert topics.report(data)["rates"]["accuracy"]["low"] is None
  assert "n/a" in topics.table(data)  # no shorter response won


def test_the_file_is_read_as_it_was_written():
  again = topics.from_csv(topics.to_csv(SIX))
  for name, column in vars(SIX).items():
    np.testing.assert_array_equal(getattr(again, name), column)
  assert topics.report(again) == topics.report(SIX)
  for text in ("", "fold,topic\n", topics.to_csv(SIX).replace("90", "x")):
    with pytest.raises(UserError):
      topics.from_csv(text)


def test_folds_are_put_together_and_topics_listed():
  both = topics.concatenate([SIX, SIX])
  assert len(both.margins_P) == 12 and both.topics()["a"]["pairs"] == 4
  text = topics.table(both)
  assert "of 12 held-out pairs" in text and "| c | 4 | 1.00 | 1.00 |" in text
  assert "0.750 [" in text and "+0.083" in text


def test_the_mean_of_shares_is_said_to_be_of_topics_that_have_both():
  """Shorter responses won in topic a alone: what b adds to the longer is left out."""
  data = held_out(
    [1.0, -1.0, 1.0, -1.0], ["a", "a", "b", "b"], [9, 9, 9, 9], [5, 10, 5, 5]
  )
  rates = data.rates()
  shorter, longer = (rates[f"accuracy_where_{s}_won"] for s in ("shorter", "longer"))
  assert (shorter.value, longer.value, longer.n) == (0, 0.75, 2)
  assert rates["accuracy_at_equal_shares"].value == 0.5
  assert "| the mean of these two, of topics that have both | " in topics.table(data)
