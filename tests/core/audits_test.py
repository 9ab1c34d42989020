"""What a judge goes by, on pairs small enough to count by hand."""

import numpy as np

from alignment.core import audits


def test_length_is_compared_with_what_the_labels_say_of_it():
  lengths = np.array([[3, 1], [1, 3], [2, 2], [4, 2], [5, 6]])
  margins = np.array([1.0, -2.0, 9.0, 0.0, 3.0])  # longer, longer, -, tie, shorter
  audit = audits.audit(margins, lengths)
  assert audit["orders_agree"] == 1
  assert audit["prefers_longer"] == (1 + 1 + 0.5 + 0) / 4
  assert audit["labels_prefer_longer"] == 2 / 4


def test_pairs_of_one_length_say_nothing_of_length():
  audit = audits.audit(np.array([1.0, -1.0]), np.array([[2, 2], [3, 3]]))
  assert audit["prefers_longer"] is audit["labels_prefer_longer"] is None


def test_accuracy_is_told_from_the_least_to_the_most_certain():
  margins = np.array([0.1, -0.2, 3.0, 4.0, -0.5, 0.6, 1.0, 2.0, 5.0])
  quarters = audits.accuracy_by_margin(margins)
  assert quarters == [
    {"least_margin": 0.1, "accuracy": 1 / 3, "pairs": 3},  # 0.1, -0.2, -0.5
    {"least_margin": 0.6, "accuracy": 1.0, "pairs": 2},
    {"least_margin": 2.0, "accuracy": 1.0, "pairs": 2},
    {"least_margin": 4.0, "accuracy": 1.0, "pairs": 2},
  ]
  assert [q["pairs"] for q in audits.accuracy_by_margin(margins[:2])] == [1, 1]


def test_orders_agree_where_both_prefer_the_same_response():
  """One sign in both is the advantage of what is read first."""
  forward = np.array([1.0, 2.0, -1.0, 0.0])
  backward = np.array([-3.0, 1.0, 2.0, 0.0])
  assert audits.orders_agree(forward, backward) == 3 / 4
