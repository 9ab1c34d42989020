"""What a judge's report says beside its accuracy: what it goes by, and when it errs.

Of labelled pairs, whose response 0 is the preferred one. A tie counts one half.
"""

from typing import Any

import numpy as np

from alignment.core.evaluation import outcome

BINS = 4  # of pairs by the size of their margin


def audit(margins_P: np.ndarray, lengths_Px2: np.ndarray) -> dict[str, Any]:
  """How often length and margin go with the judge's word, as JSON.

  Args:
    margins_P: of response 0 over 1.
    lengths_Px2: of the responses, in tokens.

  Returns:
    orders_agree: 1, as of a judge that reads each response by itself; of others, see
      `orders_agree`.
    prefers_longer: how often the judge prefers the longer response, of pairs that have
      one; None if there are none.
    labels_prefer_longer: how often their labels do. A judge above it goes by length
      more than those who labelled.
    by_margin: from the least to the most certain quarter of the pairs, its smallest
      margin, its accuracy, and how many pairs it has.
  """
  differ_P = lengths_Px2[:, 0] != lengths_Px2[:, 1]
  longer_Q = np.where(lengths_Px2[:, 0] > lengths_Px2[:, 1], 1, -1)[differ_P]
  wins_Q = outcome(margins_P[differ_P] * longer_Q)
  return {
    "orders_agree": 1.0,
    "prefers_longer": float(wins_Q.mean()) if len(wins_Q) else None,
    "labels_prefer_longer": float((longer_Q > 0).mean()) if len(wins_Q) else None,
    "by_margin": accuracy_by_margin(margins_P),
  }


def accuracy_by_margin(margins_P: np.ndarray) -> list[dict[str, float]]:
  """Of as many pairs each, by the size of their margin, least first."""
  order = np.argsort(np.abs(margins_P), kind="stable")
  return [
    {
      "least_margin": float(np.abs(margins_P[rows[0]])),
      "accuracy": float(outcome(margins_P[rows]).mean()),
      "pairs": len(rows),
    }
    for rows in np.array_split(order, BINS)
    if len(rows)
  ]


def orders_agree(forward_P: np.ndarray, backward_P: np.ndarray) -> float:
  """How often a pairwise judge prefers the same response, whichever it reads first.

  Args:
    forward_P: margins of r(x, y_0, y_1): positive for y_0.
    backward_P: margins of r(x, y_1, y_0): positive for y_1.
  """
  return float((np.sign(forward_P) == -np.sign(backward_P)).mean())
