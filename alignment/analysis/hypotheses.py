"""A statement of the paper as a hypothesis: a number, of what, and where it holds.

`statements.py` is the table of them; here is what its columns can say.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

from alignment.analysis import classifiers, gaps, replays, size_trends
from alignment.analysis.intervals import FISHER, PLAIN, Estimate, Scale
from alignment.analysis.selection import (
  Classifier,
  Group,
  Shuffling,
  Size,
  matched,
)

# --- Numbers --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Number:
  """What is measured in one world, and what `measure` takes besides groups of runs."""

  name: str  # in a few words
  measure: Callable[..., Estimate]
  judged: bool = True  # a win rate is involved: also a judge, and `resamples`
  selects: bool = False  # among runs, so that their number counts: also `equal_numbers`
  scale: Scale = PLAIN


GAP_AT_EQUAL_KL = Number("win rate at equal KL", gaps.gap_at_equal_kl, selects=True)
GAP_AT_HIGH_KL = Number("win rate at high KL", gaps.gap_at_high_kl, selects=True)
GAPS_AT_BUDGETS = {
  nats: Number(
    f"win rate at {nats} nat{'s' if nats > 1 else ''}",
    functools.partial(gaps.gap_at_budget, budget=nats),
    selects=True,
  )
  for nats in (1, 3, 6)
}
PEAK_GAP = Number("peak win rate", gaps.peak_gap, selects=True)
LAST_GAP = Number("last win rate", gaps.last_gap)
STALENESS_SLOPE = Number(
  "change of the peak per tenfold age of the sampling policy", gaps.staleness_slope
)
PEAK_ABOVE_SFT = Number("peak above SFT", gaps.peak_above_level)
FALL_FROM_PEAK = Number("peak above largest KL", gaps.fall_from_peak)
FALL_IN_STEPS = Number("peak above last step, per run", gaps.fall_in_steps)
DIFFERENCE_OF_FALLS = Number("peak above last step, per run", gaps.difference_of_falls)
DIFFERENCE_OF_PEAK_GAPS = Number(
  "difference of gaps of peaks", gaps.difference_of_peak_gaps, selects=True
)
LOG_KL_RATIO = Number("log of the ratio of KLs at the peaks", gaps.log_kl_ratio_at_peak)

_BY_SIZE = "gap of best results per doubling of size"
SIZE_TREND = Number(_BY_SIZE, size_trends.size_trend)
DIFFERENCE_OF_SIZE_TRENDS = Number(_BY_SIZE, size_trends.difference_of_size_trends)

STREAM_ACCURACY_DIFFERENCE = Number(
  "accuracy on the online stream", classifiers.accuracy_difference, judged=False
)
STREAM_ACCURACY_TREND = Number(
  "change over the stream", classifiers.accuracy_trend, judged=False
)
CORRELATION = Number(
  "correlation over checkpoints", classifiers.correlation_with_accuracy, scale=FISHER
)
LAST_ACCURACY = Number(
  "accuracy at the end",
  classifiers.last_value("classification_accuracy"),
  judged=False,
)
LAST_ACCURACY_DIFFERENCE = Number(
  "accuracy at the end",
  classifiers.last_difference("classification_accuracy"),
  judged=False,
)
LAST_LOG_RATIO = Number(
  "log-ratio at the end, nats",
  classifiers.last_value("chosen_log_ratio"),
  judged=False,
)
LAST_LOG_RATIO_DIFFERENCE = Number(
  "log-ratio at the end, nats",
  classifiers.last_difference("chosen_log_ratio"),
  judged=False,
)
SELF_ACCURACY = Number(
  "self-classification accuracy",
  classifiers.mean_value("self_classification_accuracy"),
  judged=False,
)
TRAINING_DIFFERENCE = Number(
  "relative difference of statistics", replays.training_difference, judged=False
)

# --- Groups of runs -------------------------------------------------------------------

SFT = Group("sft")
ONLINE, SHUFFLED, OFFLINE = Group("online"), Group("shuffled"), Group("offline")
# One run each, of default hyper-parameters (of every seed, where there are several).
DEFAULT_ONLINE, DEFAULT_SHUFFLED, DEFAULT_OFFLINE = (
  dataclasses.replace(group, default=True) for group in (ONLINE, SHUFFLED, OFFLINE)
)
LARGER_ONLINE, LARGER_SHUFFLED, LARGER_OFFLINE = (
  dataclasses.replace(group, size=Size.LARGER) for group in (ONLINE, SHUFFLED, OFFLINE)
)
ONLINE_OF_ALL_SIZES, SHUFFLED_OF_ALL_SIZES, OFFLINE_OF_ALL_SIZES = (
  dataclasses.replace(group, size=Size.ALL) for group in (ONLINE, SHUFFLED, OFFLINE)
)
SELF_CLASSIFYING_ONLINE, SELF_CLASSIFYING_SHUFFLED, SELF_CLASSIFYING_OFFLINE = (
  dataclasses.replace(group, measured="self_classification_accuracy")
  for group in (DEFAULT_ONLINE, DEFAULT_SHUFFLED, DEFAULT_OFFLINE)
)
REPLAY_IN_ORDER = Group("replay", shuffling=Shuffling.NONE)
REPLAY_SHUFFLED_A_LITTLE = Group("replay", shuffling=Shuffling.LEAST)
FINAL_VS_FINAL = Group("final_vs_final")
SFT_VS_EARLY = Group("sft_vs_early")
EARLY_VS_FINAL = Group("early_vs_final")
OFFLINE_LONGER = Group("offline_longer")  # more steps at some of offline's settings
OFFLINE_OF_LEAST_BETA = dataclasses.replace(OFFLINE, least_beta=True)
ONLINE_DPO, OFFLINE_DPO = (
  dataclasses.replace(group, loss="dpo") for group in (ONLINE, OFFLINE)
)
CHI_PO = Group("chi_po", loss="chi_po")  # offline
# Without a contrast: Best-of-2 raises the likelihood of the better response, no more.
ONLINE_BEST_OF_2, OFFLINE_BEST_OF_2 = (
  dataclasses.replace(group, loss="best_of_2") for group in (ONLINE, OFFLINE)
)
GRPO = Group("grpo", loss="grpo")
SEMI_ONLINE = Group("semi_online")
SEMI_ONLINE_10, SEMI_ONLINE_100 = (
  dataclasses.replace(SEMI_ONLINE, refresh_every=every) for every in (10, 100)
)
# On the recorded online stream.
PROXY_PM = Classifier("proxy_pm")
ONLINE_CLASSIFIER, OFFLINE_CLASSIFIER = Classifier("online"), Classifier("offline")

# --- Losses ---------------------------------------------------------------------------


def the_main_loss(loss: str, main_loss: str) -> bool:
  """That of most runs; also what involves no loss ("")."""
  return loss in ("", main_loss)


def contrastive_losses(loss: str, main_loss: str) -> bool:
  """All but Best-of-2, main or not."""
  del main_loss
  return loss not in ("", "best_of_2")


def best_of_2(loss: str, main_loss: str) -> bool:
  del main_loss
  return loss == "best_of_2"


# --- Regions --------------------------------------------------------------------------

# Win rates, or accuracies, that differ by less are equal: "matches", "neither
# dominates". What is above or below another differs by more.
EQUAL = 0.02
EQUAL_TREND = EQUAL / 4  # of win rates per doubling: EQUAL over the paper's 16 times
EQUAL_NATS = 0.5  # of log-ratios, which fall by tens of nats
SMALL = 0.05  # a difference of win rates that is "small", "slight", "barely"
CORRELATED = 0.3  # a correlation below it is "little or none"
CHANCE = (0.45, 0.55)  # an accuracy "near 50 %"
SIMILAR_KL = math.log(2)  # within a factor of 2
SAME_STATISTICS = 1e-3  # the paper's 0.1 %


def above(edge: float) -> tuple[float, float]:
  return edge, math.inf


def below(edge: float) -> tuple[float, float]:
  return -math.inf, edge


def within(margin: float) -> tuple[float, float]:
  return -margin, margin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
  """A statement of the paper about one number, and how that is measured in a world."""

  figure: str  # the paper's: "1", "8 top", "App. F"
  statement: str  # the paper's
  number: Number
  groups: tuple[Group | Classifier, ...]  # what the number is of, in this order
  holds: tuple[float, float] = above(EQUAL)  # the open interval that the number is in
  # Which runs of the groups are comparable.
  match: Callable[[Sequence[Sequence[Any]]], list[list[Any]]] = matched
  losses: Callable[[str, str], bool] = the_main_loss  # (loss, main loss) -> about it?
  only_tasks: tuple[str, ...] = ()  # () for all
  not_tasks: tuple[str, ...] = ()

  @property
  def region(self) -> str:
    """`holds` in words, for tables."""
    low, high = self.holds
    if math.isinf(high):
      return f"> {low:g}"
    return f"< {high:.3g}" if math.isinf(low) else f"{low:.3g} to {high:.3g}"

  def is_about(self, task: str, loss: str, main_loss: str) -> bool:
    if self.only_tasks and task not in self.only_tasks:
      return False
    return task not in self.not_tasks and self.losses(loss, main_loss)
