"""What the paper saw, statement by statement: what is measured, and when it holds.

The third column of the paper's figures, split into statements about one number each. A
statement holds where its number lies within `holds`: above 0 for a direction, within a
margin of equivalence for "close to", "little" or "neither dominates". The margins are
fixed here, before any fresh world is run.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

from alignment.analysis.envelopes import gap_at_equal_kl, peak_gap
from alignment.analysis.intervals import Estimate
from alignment.analysis.measures import (
  accuracy_difference,
  accuracy_trend,
  correlation_with_accuracy,
  difference_of_size_trends,
  fall_from_peak,
  last_difference,
  last_gap,
  last_value,
  log_kl_ratio_at_peak,
  mean_value,
  peak_above_level,
  size_trend,
  training_difference,
  training_drift,
)
from alignment.analysis.selection import Which, WhichClassifier, matched, matched_sizes

EQUAL = 0.02  # win rates that differ by less are equal: "matches", "neither dominates"
SMALL = 0.05  # a difference of win rates that is "small", "slight", "barely"
CORRELATED = 0.3  # a correlation below it is "little or none"
CHANCE = (0.45, 0.55)  # an accuracy "near 50 %"
SIMILAR_KL = math.log(2)  # within a factor of 2
SAME_STATISTICS = 1e-3  # the paper's 0.1 %

ABOVE, BELOW = (0.0, math.inf), (-math.inf, 0.0)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """A statement of the paper about one number, and how that is measured in a world."""

  figure: str  # the paper's: "1", "8 top", "App. F"
  name: str  # the number, in a few words
  statement: str  # the paper's
  of: tuple[Which | WhichClassifier, ...]  # what `measure` takes, in this order
  measure: Callable[..., Estimate]
  holds: tuple[float, float] = ABOVE
  judged: bool = True  # a win rate is involved: measured under every judge
  # Which runs of `of` are comparable; None: all, one's single run with another's sweep.
  match: Callable[[Sequence[Sequence[Any]]], list[list[Any]]] | None = matched
  # With unequal numbers of runs, also measured over all of them.
  selects: bool = False
  only_tasks: tuple[str, ...] = ()
  not_tasks: tuple[str, ...] = ()
  losses: str = "main"  # main (most runs), contrastive (all but Best-of-2), best_of_2

  @property
  def region(self) -> str:
    """`holds` in words, for tables."""
    low, high = self.holds
    if math.isinf(high):
      return f"> {low:g}"
    return f"< {high:.3g}" if math.isinf(low) else f"{low:.3g} to {high:.3g}"


def within(margin: float) -> tuple[float, float]:
  return -margin, margin


ONLINE, OFFLINE, SHUFFLED = Which("online"), Which("offline"), Which("shuffled")
METHODS = (ONLINE, SHUFFLED, OFFLINE)
# One run each, of default hyper-parameters (of every seed, where there are several).
DEFAULTS = tuple(dataclasses.replace(which, default=True) for which in METHODS)
DEFAULT_ONLINE, DEFAULT_SHUFFLED, DEFAULT_OFFLINE = DEFAULTS
PROXY = WhichClassifier("proxy_pm")
IN_ORDER = Which("replay", window="in order")
gap_at_high_kl = functools.partial(gap_at_equal_kl, above=0.5)


def larger(which: Which) -> Which:
  return dataclasses.replace(which, size="larger")


def all_sizes(which: Which) -> Which:
  return dataclasses.replace(which, size="all")


def _gap(
  figure: str,
  statement: str,
  a: Which,
  b: Which,
  measure: Callable[..., Estimate] = gap_at_equal_kl,
  **fields: Any,
) -> Hypothesis:
  names = {
    gap_at_equal_kl: "win rate at equal KL",
    peak_gap: "peak win rate",
    gap_at_high_kl: "win rate at high KL",
  }
  of = (a, b)
  return Hypothesis(
    figure, names[measure], statement, of, measure, selects=True, **fields
  )


# One online configuration against the whole sweep: never matched, but equal in number.
_sweep: dict[str, Any] = {"match": None, "losses": "contrastive"}
_FIGURE_1 = (
  _gap("1", "at equal KL online wins more often than offline", ONLINE, OFFLINE,
       **_sweep),
  _gap("1", "online's peak win rate is above offline's", ONLINE, OFFLINE, peak_gap,
       **_sweep),
  _gap("1", "the gap between the peaks is small on this task", ONLINE, OFFLINE,
       peak_gap, holds=within(SMALL), only_tasks=("chat_arena", "harmlessness"),
       **_sweep),
  *(
    Hypothesis("1", "peak above SFT", f"{which}'s win rate rises with KL at first",
               (which, Which("sft")), peak_above_level, **_sweep)
    for which in (ONLINE, OFFLINE)
  ),
  *(
    Hypothesis("1", "peak above largest KL", f"{which}'s win rate falls again as KL "
               "grows (over-optimisation)", (which,), fall_from_peak,
               holds=(EQUAL, math.inf), **_sweep)
    for which in (ONLINE, OFFLINE)
  ),
)  # fmt: skip

_FIGURES_4_5 = (
  _gap("4", "the shuffled stream stays below online at equal KL: coverage is not the "
       "reason", ONLINE, SHUFFLED, not_tasks=("chat_arena",)),
  _gap("4", "the shuffled stream's peak stays well below online's", ONLINE, SHUFFLED,
       peak_gap, holds=(SMALL, math.inf), not_tasks=("chat_arena",)),
  _gap("4", "the shuffled stream comes close to online on this task", ONLINE, SHUFFLED,
       holds=within(EQUAL), only_tasks=("chat_arena",)),
  Hypothesis("5", "peak above SFT", "learning from the final online policy's responses "
             "barely rises above SFT: quality is not the reason",
             (Which("final_vs_final"), Which("sft")), peak_above_level,
             holds=(-math.inf, SMALL)),
)  # fmt: skip

_CLASSIFICATION = (
  *(
    Hypothesis("6", "accuracy on the online stream", "the proxy PM classifies the "
               f"online stream better than the {policy} policy", (PROXY, policy),
               accuracy_difference, judged=False)
    for policy in (WhichClassifier("online"), WhichClassifier("offline"))
  ),
  Hypothesis("6", "change over the stream", "the proxy PM's accuracy decays with the "
             "step", (PROXY,), accuracy_trend, holds=BELOW, judged=False),
  *(
    Hypothesis("7", "correlation over checkpoints", "little or no positive correlation "
               f"of win rate and accuracy on D_golden: {which.method}", (which,),
               correlation_with_accuracy, holds=(-math.inf, CORRELATED))
    for which in DEFAULTS
  ),
  Hypothesis("8 top", "accuracy at the end", "offline's accuracy on D_golden climbs to "
             "60-70 %", (DEFAULT_OFFLINE,), last_value("classification_accuracy"),
             holds=(0.6, 0.7), judged=False),
  Hypothesis("8 top", "accuracy at the end", "online's accuracy on D_golden stays near "
             "50 %", (DEFAULT_ONLINE,), last_value("classification_accuracy"),
             holds=CHANCE, judged=False),
  Hypothesis("8 top", "accuracy at the end", "offline becomes the better classifier of "
             "D_golden", (DEFAULT_OFFLINE, DEFAULT_ONLINE),
             last_difference("classification_accuracy"), judged=False),
  *(
    Hypothesis("8 bottom", "log-ratio at the end, nats", "the log-ratio of D_golden's "
               f"preferred responses falls: {which.method}", (which,),
               last_value("chosen_log_ratio"), holds=BELOW, judged=False)
    for which in DEFAULTS
  ),
  *(
    Hypothesis("8 bottom", "log-ratio at the end, nats", "it falls more for offline "
               f"than for {which.method}", (DEFAULT_OFFLINE, which),
               last_difference("chosen_log_ratio"), holds=BELOW, judged=False)
    for which in (DEFAULT_ONLINE, DEFAULT_SHUFFLED)
  ),
)  # fmt: skip

_FIGURE_9 = (
  _gap("9", "without a contrastive loss the gap persists", ONLINE, OFFLINE,
       losses="best_of_2", not_tasks=("chat_arena",)),
  _gap("9", "offline is slightly ahead at high KL on this task", ONLINE, OFFLINE,
       gap_at_high_kl, losses="best_of_2", holds=(-SMALL, 0.0),
       only_tasks=("chat_arena",)),
  _gap("9", "the shuffled stream now matches online", SHUFFLED, ONLINE,
       losses="best_of_2", holds=within(EQUAL)),
)  # fmt: skip

_SCALING = (
  *(
    _gap("10", f"{which} peaks higher with a larger policy", larger(which), which,
         peak_gap)
    for which in METHODS
  ),
  Hypothesis("10", "log of the ratio of KLs at the peaks", "a larger online policy "
             "peaks at a similar KL", (larger(ONLINE), ONLINE), log_kl_ratio_at_peak,
             holds=within(SIMILAR_KL)),
  _gap("10", "the gap stays with larger policies", larger(ONLINE), larger(OFFLINE),
       not_tasks=("chat_arena",)),
  _gap("10", "larger policies are about equal on this task", larger(ONLINE),
       larger(OFFLINE), holds=within(EQUAL), only_tasks=("chat_arena",)),
  Hypothesis("11, 14", "gap of best results per doubling of size", "the shuffled "
             "stream's gap closes with size (on two of three tasks)",
             (all_sizes(ONLINE), all_sizes(SHUFFLED)), size_trend, holds=BELOW,
             match=matched_sizes),
  Hypothesis("11, 14", "gap of best results per doubling of size", "offline's gap "
             "closes more slowly than the shuffled stream's",
             (all_sizes(ONLINE), all_sizes(OFFLINE), all_sizes(SHUFFLED)),
             difference_of_size_trends, match=matched_sizes),
)  # fmt: skip

_DATA = (
  _gap("12", "pairs of SFT and an early policy teach more than pairs of that and the "
       "final policy", Which("sft_vs_early"), Which("early_vs_final")),
  _gap("12", "neither pairs of SFT and an early policy nor D_golden dominate",
       Which("sft_vs_early"), OFFLINE, holds=within(EQUAL)),
  _gap("13", "a little shuffling of the stream is harmless",
       Which("replay", window="a little"), IN_ORDER, holds=within(EQUAL)),
  _gap("13", "a lot of shuffling is not harmless", IN_ORDER, SHUFFLED),
)  # fmt: skip

_APPENDICES = (
  *(
    Hypothesis("App. E.1", "self-classification accuracy", "policies classify their "
               f"own samples near chance: {which.method}", (which,),
               mean_value("self_classification_accuracy"), holds=CHANCE, judged=False)
    for which in (
      dataclasses.replace(which, measured="self_classification_accuracy")
      for which in DEFAULTS
    )
  ),
  Hypothesis("App. F", "relative difference of statistics", "replayed in order, "
             "training statistics are within about 0.1 % of the online run's",
             (IN_ORDER, ONLINE), training_difference,
             holds=(-math.inf, SAME_STATISTICS), judged=False),
  Hypothesis("App. F", "its growth from first half to second", "they drift apart late",
             (IN_ORDER, ONLINE), training_drift, judged=False),
  Hypothesis("App. F", "last win rate", "the final quality is the same",
             (IN_ORDER, ONLINE), last_gap, holds=within(EQUAL)),
)  # fmt: skip

HYPOTHESES = (
  *_FIGURE_1,
  *_FIGURES_4_5,
  *_CLASSIFICATION,
  *_FIGURE_9,
  *_SCALING,
  *_DATA,
  *_APPENDICES,
)
