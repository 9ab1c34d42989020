"""A judge on topics that it has not seen: accuracies with intervals over topics.

Of labelled pairs, whose response 0 is the preferred one. A rate is the mean over topics
of each topic's share, its interval Student's t over the topics: pairs of one topic have
responses in common, and so are far from independent. A tie counts one half.
"""

from collections.abc import Iterable, Iterator
import csv
import dataclasses
import io
import math
from typing import Any

import numpy as np

from alignment.analysis.intervals import Estimate, t_interval, undefined
from alignment.types import UserError

COLUMNS = (
  "fold", "topic", "margin", "preferred_characters", "other_characters",
  "preferred_tokens", "other_tokens",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """P held-out pairs, with a judge's word on each.

  Attributes:
    folds_P: the fold whose judge was asked.
    topics_P: each pair's topic, as text.
    margins_P: of the preferred response over the other one.
    characters_Px2: of the two responses, whole.
    tokens_Px2: of what the judge read of them.
  """

  folds_P: np.ndarray
  topics_P: np.ndarray
  margins_P: np.ndarray
  characters_Px2: np.ndarray
  tokens_Px2: np.ndarray

  def rates(self) -> dict[str, Estimate]:
    """Every rate that the report has, by name."""
    right_P = _outcome(self.margins_P)
    longer_P = np.sign(self.characters_Px2[:, 0] - self.characters_Px2[:, 1])
    longer_wins_P = _outcome(longer_P)
    shorter = _share_by_topic(np.where(longer_P < 0, right_P, np.nan), self.topics_P)
    longer = _share_by_topic(np.where(longer_P > 0, right_P, np.nan), self.topics_P)
    prefers_longer_P = np.where(
      longer_P == 0, np.nan, _outcome(self.margins_P * longer_P)
    )
    by_topic = {
      "accuracy": _share_by_topic(right_P, self.topics_P),
      "longer_wins": _share_by_topic(longer_wins_P, self.topics_P),
      "above_longer_wins": _share_by_topic(right_P - longer_wins_P, self.topics_P),
      "accuracy_where_shorter_won": shorter,
      "accuracy_where_longer_won": longer,
      "accuracy_at_equal_shares": (shorter + longer) / 2,
      "judge_prefers_longer": _share_by_topic(prefers_longer_P, self.topics_P),
    }
    return {name: over_topics(values_K) for name, values_K in by_topic.items()}

  def topics(self) -> dict[str, dict[str, Any]]:
    """Of every topic its pairs, accuracy and how often the longer response won."""
    right_P = _outcome(self.margins_P)
    longer_wins_P = _outcome(self.characters_Px2[:, 0] - self.characters_Px2[:, 1])
    rows = {}
    for topic in np.unique(self.topics_P):
      of_topic_P = self.topics_P == topic
      rows[str(topic)] = {
        "pairs": int(of_topic_P.sum()),
        "accuracy": float(right_P[of_topic_P].mean()),
        "longer_wins": float(longer_wins_P[of_topic_P].mean()),
      }
    return rows


def over_topics(values_K: np.ndarray) -> Estimate:
  """A rate from each topic's, those without one (NaN) left out."""
  values_K = values_K[~np.isnan(values_K)]
  n = len(values_K)
  if not n:
    return undefined("no topic has such pairs")
  value, low, high = t_interval(values_K)
  return Estimate(value, low, high, f"{n} topics" if n > 1 else "1 topic", n)


def concatenate(parts: Iterable[HeldOut]) -> HeldOut:
  """The pairs of several folds."""
  columns = zip(*(dataclasses.astuple(part) for part in parts), strict=True)
  return HeldOut(*map(np.concatenate, columns))


def report(held_out: HeldOut) -> dict[str, Any]:
  """What is said of a judge, as JSON."""
  rates = {}
  for name, estimate in held_out.rates().items():
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    rates[name] = {
      key: None if math.isnan(number) else number for key, number in numbers.items()
    } | {"topics": estimate.n}
  return {
    "pairs": len(held_out.margins_P),
    "folds": len(np.unique(held_out.folds_P)),
    "rates": rates,
    "topics": held_out.topics(),
  }


_WORDS = {
  "accuracy": "accuracy on topics that it has not seen",
  "longer_wins": "the longer response won",
  "above_longer_wins": "accuracy above that",
  "accuracy_where_shorter_won": "accuracy where the shorter response won",
  "accuracy_where_longer_won": "accuracy where the longer response won",
  "accuracy_at_equal_shares": "the mean of these two, of topics that have both",
  "judge_prefers_longer": "the judge prefers the longer response",
}


def table(held_out: HeldOut) -> str:
  """The rates and the topics as two tables in Markdown."""
  lines = [f"| of {len(held_out.margins_P):,} held-out pairs | |", "|---|---|"]
  for name, estimate in held_out.rates().items():
    signed = str(estimate) if name.startswith("above") else _unsigned(estimate)
    over = f" over {estimate.over}" if estimate.over else ""
    lines.append(f"| {_WORDS[name]} | {signed}{over} |")
  lines += ["", "| topic | pairs | accuracy | longer won |", "|---|---|---|---|"]
  for topic, row in held_out.topics().items():
    text = topic.replace("|", r"\|")
    lines.append(
      f"| {text} | {row['pairs']} | {row['accuracy']:.2f} | {row['longer_wins']:.2f} |"
    )
  return "\n".join(lines) + "\n"


def _unsigned(estimate: Estimate) -> str:
  return str(estimate).replace("+", "")


# --- the file -------------------------------------------------------------------------


def to_csv(held_out: HeldOut) -> str:
  """One row per pair."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(COLUMNS)
  for row in _rows(held_out):
    writer.writerow(row)
  return text.getvalue()


def _rows(held_out: HeldOut) -> Iterator[tuple[Any, ...]]:
  characters_Px2, tokens_Px2 = held_out.characters_Px2, held_out.tokens_Px2
  for i, margin in enumerate(held_out.margins_P):
    sizes = (*characters_Px2[i].tolist(), *tokens_Px2[i].tolist())
    yield (int(held_out.folds_P[i]), held_out.topics_P[i], f"{margin:.6g}", *sizes)


def from_csv(text: str, name: str = "the file") -> HeldOut:
  """The pairs of such a file.

  Raises:
    UserError: if it is none.
  """
  rows = list(csv.reader(io.StringIO(text)))
  if not rows or tuple(rows[0]) != COLUMNS or len(rows) < 2:
    raise UserError(f"{name}: no held-out pairs: its columns are {', '.join(COLUMNS)}")
  try:
    folds, topics, margins, *sizes = zip(*rows[1:], strict=True)
    sizes_Px4 = np.array(sizes, np.int64).T
    return HeldOut(
      np.array(folds, np.int64),
      np.array(topics),
      np.array(margins, np.float64),
      sizes_Px4[:, :2],
      sizes_Px4[:, 2:],
    )
  except ValueError as error:
    raise UserError(f"{name}: damaged ({error}); ask the judge again") from None


def _outcome(margins_P: np.ndarray) -> np.ndarray:
  """A margin as a result: 1, or 1/2 for none, or 0."""
  return (margins_P > 0) + 0.5 * (margins_P == 0)


def _share_by_topic(values_P: np.ndarray, topics_P: np.ndarray) -> np.ndarray:
  """The mean of every topic's values, without NaNs; NaN where there are no others."""
  _, at_P = np.unique(topics_P, return_inverse=True)
  counted_P = ~np.isnan(values_P)
  sums_K = np.bincount(at_P, np.where(counted_P, values_P, 0.0))
  counts_K = np.bincount(at_P, counted_P)
  with np.errstate(invalid="ignore"):
    return sums_K / counts_K
