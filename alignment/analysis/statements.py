"""What the paper saw, statement by statement: what is measured, and when it holds.

The third column of the paper's figures, split into statements about one number each. A
statement holds where its number lies within `holds`: above what counts as equal unless
told otherwise, within a margin of equivalence for "close to", "little" or "neither
dominates". The margins are fixed (`hypotheses.py`), before any fresh world is run.
"""

from alignment.analysis import hypotheses as h
from alignment.analysis.beyond import BEYOND_THE_PAPER
from alignment.analysis.hypotheses import Hypothesis
from alignment.analysis.selection import matched_sizes, unmatched

# One online configuration against a whole offline sweep.
_FIGURE_1 = (
  Hypothesis(
    figure="1",
    statement="at equal KL online wins more often than offline",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.ONLINE, h.OFFLINE),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  *(
    Hypothesis(
      figure="1",
      statement=f"within a KL of {nats} online wins more often than offline",
      number=number,
      groups=(h.ONLINE, h.OFFLINE),
      match=unmatched,
      losses=h.contrastive_losses,
    )
    for nats, number in h.GAPS_AT_BUDGETS.items()
  ),
  Hypothesis(
    figure="1",
    statement="online's peak win rate is above offline's",
    number=h.PEAK_GAP,
    groups=(h.ONLINE, h.OFFLINE),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="1",
    statement="the gap between the peaks is small on this task",
    number=h.PEAK_GAP,
    groups=(h.ONLINE, h.OFFLINE),
    holds=h.within(h.SMALL),
    match=unmatched,
    losses=h.contrastive_losses,
    only_tasks=("chat_arena", "harmlessness"),
  ),
  Hypothesis(
    figure="1",
    statement="online's win rate rises with KL at first",
    number=h.PEAK_ABOVE_SFT,
    groups=(h.ONLINE, h.SFT),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="1",
    statement="offline's win rate rises with KL at first",
    number=h.PEAK_ABOVE_SFT,
    groups=(h.OFFLINE, h.SFT),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="1",
    statement="online's win rate falls again as KL grows (over-optimisation)",
    number=h.FALL_FROM_PEAK,
    groups=(h.ONLINE,),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="1",
    statement="online's win rate falls again as its training goes on",
    number=h.FALL_IN_STEPS,
    groups=(h.ONLINE,),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="1",
    statement="offline's win rate falls again as KL grows (over-optimisation)",
    number=h.FALL_FROM_PEAK,
    groups=(h.OFFLINE,),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="1",
    statement="offline's win rate falls again as its training goes on",
    number=h.FALL_IN_STEPS,
    groups=(h.OFFLINE,),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
)

_COVERAGE_AND_QUALITY = (
  Hypothesis(
    figure="4",
    statement=(
      "the shuffled stream stays below online at equal KL: coverage is not the reason"
    ),
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.ONLINE, h.SHUFFLED),
    not_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="4",
    statement="the shuffled stream's peak stays well below online's",
    number=h.PEAK_GAP,
    groups=(h.ONLINE, h.SHUFFLED),
    holds=h.above(h.SMALL),
    not_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="4",
    statement="the shuffled stream comes close to online on this task",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.ONLINE, h.SHUFFLED),
    holds=h.within(h.EQUAL),
    only_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="5",
    statement=(
      "learning from the final online policy's responses barely rises above SFT: "
      "quality is not the reason"
    ),
    number=h.PEAK_ABOVE_SFT,
    groups=(h.FINAL_VS_FINAL, h.SFT),
    holds=h.below(h.SMALL),
  ),
)

_CLASSIFICATION = (
  Hypothesis(
    figure="6",
    statement="the proxy PM classifies the online stream better than the online policy",
    number=h.STREAM_ACCURACY_DIFFERENCE,
    groups=(h.PROXY_PM, h.ONLINE_CLASSIFIER),
  ),
  Hypothesis(
    figure="6",
    statement=(
      "the proxy PM classifies the online stream better than the offline policy"
    ),
    number=h.STREAM_ACCURACY_DIFFERENCE,
    groups=(h.PROXY_PM, h.OFFLINE_CLASSIFIER),
  ),
  Hypothesis(
    figure="6",
    statement="the proxy PM's accuracy decays with the step",
    number=h.STREAM_ACCURACY_TREND,
    groups=(h.PROXY_PM,),
    holds=h.below(-h.EQUAL),
  ),
  Hypothesis(
    figure="7",
    statement=(
      "little or no positive correlation of win rate and accuracy on D_golden: online"
    ),
    number=h.CORRELATION,
    groups=(h.DEFAULT_ONLINE,),
    holds=h.below(h.CORRELATED),
  ),
  Hypothesis(
    figure="7",
    statement=(
      "little or no positive correlation of win rate and accuracy on D_golden: shuffled"
    ),
    number=h.CORRELATION,
    groups=(h.DEFAULT_SHUFFLED,),
    holds=h.below(h.CORRELATED),
  ),
  Hypothesis(
    figure="7",
    statement=(
      "little or no positive correlation of win rate and accuracy on D_golden: offline"
    ),
    number=h.CORRELATION,
    groups=(h.DEFAULT_OFFLINE,),
    holds=h.below(h.CORRELATED),
  ),
  Hypothesis(
    figure="8 top",
    statement="offline's accuracy on D_golden climbs to 60-70 %",
    number=h.LAST_ACCURACY,
    groups=(h.DEFAULT_OFFLINE,),
    holds=(0.6, 0.7),
  ),
  Hypothesis(
    figure="8 top",
    statement="online's accuracy on D_golden stays near 50 %",
    number=h.LAST_ACCURACY,
    groups=(h.DEFAULT_ONLINE,),
    holds=h.CHANCE,
  ),
  Hypothesis(
    figure="8 top",
    statement="offline becomes the better classifier of D_golden",
    number=h.LAST_ACCURACY_DIFFERENCE,
    groups=(h.DEFAULT_OFFLINE, h.DEFAULT_ONLINE),
  ),
  Hypothesis(
    figure="8 bottom",
    statement="the log-ratio of D_golden's preferred responses falls: online",
    number=h.LAST_LOG_RATIO,
    groups=(h.DEFAULT_ONLINE,),
    holds=h.below(-h.EQUAL_NATS),
  ),
  Hypothesis(
    figure="8 bottom",
    statement="the log-ratio of D_golden's preferred responses falls: shuffled",
    number=h.LAST_LOG_RATIO,
    groups=(h.DEFAULT_SHUFFLED,),
    holds=h.below(-h.EQUAL_NATS),
  ),
  Hypothesis(
    figure="8 bottom",
    statement="the log-ratio of D_golden's preferred responses falls: offline",
    number=h.LAST_LOG_RATIO,
    groups=(h.DEFAULT_OFFLINE,),
    holds=h.below(-h.EQUAL_NATS),
  ),
  Hypothesis(
    figure="8 bottom",
    statement="it falls more for offline than for online",
    number=h.LAST_LOG_RATIO_DIFFERENCE,
    groups=(h.DEFAULT_OFFLINE, h.DEFAULT_ONLINE),
    holds=h.below(-h.EQUAL_NATS),
  ),
  Hypothesis(
    figure="8 bottom",
    statement="it falls more for offline than for shuffled",
    number=h.LAST_LOG_RATIO_DIFFERENCE,
    groups=(h.DEFAULT_OFFLINE, h.DEFAULT_SHUFFLED),
    holds=h.below(-h.EQUAL_NATS),
  ),
)

_WITHOUT_CONTRAST = (
  Hypothesis(
    figure="9",
    statement="without a contrastive loss the gap persists",
    number=h.PEAK_GAP,  # Best-of-2 spends at most log 2 - 1/2 nats: nothing at equal KL
    groups=(h.ONLINE, h.OFFLINE),
    losses=h.best_of_2,
    not_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="9",
    statement="offline is slightly ahead at high KL on this task",
    number=h.GAP_AT_HIGH_KL,
    groups=(h.ONLINE, h.OFFLINE),
    holds=(-h.SMALL, -h.EQUAL),
    losses=h.best_of_2,
    only_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="9",
    statement="the shuffled stream now matches online",
    number=h.PEAK_GAP,
    groups=(h.SHUFFLED, h.ONLINE),
    holds=h.within(h.EQUAL),
    losses=h.best_of_2,
  ),
)

_SCALING = (
  Hypothesis(
    figure="10",
    statement="online peaks higher with a larger policy",
    number=h.PEAK_GAP,
    groups=(h.LARGER_ONLINE, h.ONLINE),
  ),
  Hypothesis(
    figure="10",
    statement="shuffled peaks higher with a larger policy",
    number=h.PEAK_GAP,
    groups=(h.LARGER_SHUFFLED, h.SHUFFLED),
  ),
  Hypothesis(
    figure="10",
    statement="offline peaks higher with a larger policy",
    number=h.PEAK_GAP,
    groups=(h.LARGER_OFFLINE, h.OFFLINE),
  ),
  Hypothesis(
    figure="10",
    statement="a larger online policy peaks at a similar KL",
    number=h.LOG_KL_RATIO,
    groups=(h.LARGER_ONLINE, h.ONLINE),
    holds=h.within(h.SIMILAR_KL),
  ),
  Hypothesis(
    figure="10",
    statement="the gap stays with larger policies",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.LARGER_ONLINE, h.LARGER_OFFLINE),
    not_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="10",
    statement="larger policies are about equal on this task",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.LARGER_ONLINE, h.LARGER_OFFLINE),
    holds=h.within(h.EQUAL),
    only_tasks=("chat_arena",),
  ),
  Hypothesis(
    figure="11, 14",
    statement="the shuffled stream's gap closes with size (on two of three tasks)",
    number=h.SIZE_TREND,
    groups=(h.ONLINE_OF_ALL_SIZES, h.SHUFFLED_OF_ALL_SIZES),
    holds=h.below(-h.EQUAL_TREND),
    match=matched_sizes,
  ),
  Hypothesis(
    figure="11, 14",
    statement="offline's gap closes more slowly than the shuffled stream's",
    number=h.DIFFERENCE_OF_SIZE_TRENDS,
    groups=(h.ONLINE_OF_ALL_SIZES, h.OFFLINE_OF_ALL_SIZES, h.SHUFFLED_OF_ALL_SIZES),
    holds=h.above(h.EQUAL_TREND),
    match=matched_sizes,
  ),
)

_DATA = (
  Hypothesis(
    figure="12",
    statement=(
      "pairs of SFT and an early policy teach more than pairs of that and the final "
      "policy"
    ),
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.SFT_VS_EARLY, h.EARLY_VS_FINAL),
  ),
  Hypothesis(
    figure="12",
    statement="neither pairs of SFT and an early policy nor D_golden dominate",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.SFT_VS_EARLY, h.OFFLINE),
    holds=h.within(h.EQUAL),
  ),
  Hypothesis(
    figure="13",
    statement="a little shuffling of the stream is harmless",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.REPLAY_SHUFFLED_A_LITTLE, h.REPLAY_IN_ORDER),
    holds=h.within(h.EQUAL),
  ),
  Hypothesis(
    figure="13",
    statement="a lot of shuffling is not harmless",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.REPLAY_IN_ORDER, h.SHUFFLED),
  ),
)

# Appendix F's drift, late in training, is of its hardware: a replay here is its online
# run bit for bit.
_APPENDICES = (
  Hypothesis(
    figure="App. E.1",
    statement="policies classify their own samples near chance: online",
    number=h.SELF_ACCURACY,
    groups=(h.SELF_CLASSIFYING_ONLINE,),
    holds=h.CHANCE,
  ),
  Hypothesis(
    figure="App. E.1",
    statement="policies classify their own samples near chance: shuffled",
    number=h.SELF_ACCURACY,
    groups=(h.SELF_CLASSIFYING_SHUFFLED,),
    holds=h.CHANCE,
  ),
  Hypothesis(
    figure="App. E.1",
    statement="policies classify their own samples near chance: offline",
    number=h.SELF_ACCURACY,
    groups=(h.SELF_CLASSIFYING_OFFLINE,),
    holds=h.CHANCE,
  ),
  Hypothesis(
    figure="App. F",
    statement=(
      "replayed in order, training statistics are within about 0.1 % of the online "
      "run's"
    ),
    number=h.TRAINING_DIFFERENCE,
    groups=(h.REPLAY_IN_ORDER, h.ONLINE),
    holds=h.below(h.SAME_STATISTICS),
  ),
  Hypothesis(
    figure="App. F",
    statement="the final quality is the same",
    number=h.LAST_GAP,
    groups=(h.REPLAY_IN_ORDER, h.ONLINE),
    holds=h.within(h.EQUAL),
  ),
)

HYPOTHESES = (
  *_FIGURE_1,
  *_COVERAGE_AND_QUALITY,
  *_CLASSIFICATION,
  *_WITHOUT_CONTRAST,
  *_SCALING,
  *_DATA,
  *_APPENDICES,
  *BEYOND_THE_PAPER,
)
