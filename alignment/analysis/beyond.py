"""What goes beyond the paper: statements of later papers, and offline with more steps.

Later papers are quoted from their abstracts. Of "online and semi-online" DPO and GRPO
one finds "similar performance and convergence between these variants, which all
strongly outperform offline methods" (Lanchantin et al. 2025, arXiv 2506.21495). Another
says of "samples from previous iterations of our model" that they "give a worse training
signal", online DPO being "most robust" to it (Noukhovitch et al. 2024, arXiv
2410.18252). Both are asked here of a study's main loss: with IPO, what holds or fails
is not their own finding.
"""

from alignment.analysis import hypotheses as h
from alignment.analysis.hypotheses import Hypothesis

BEYOND_THE_PAPER = (
  Hypothesis(
    figure="offline for longer",
    statement="at equal KL online wins more often than offline that trains for longer",
    number=h.GAP_AT_EQUAL_KL,
    groups=(h.ONLINE, h.OFFLINE_LONGER),
  ),
  Hypothesis(
    figure="offline for longer",
    statement="online's peak win rate is above that of offline that trains for longer",
    number=h.PEAK_GAP,
    groups=(h.ONLINE, h.OFFLINE_LONGER),
  ),
  *(
    Hypothesis(
      figure="staleness",
      statement=(
        f"semi-online ({group.refresh_every} steps) is as good as online (Lanchantin "
        "et al. 2025)"
      ),
      number=h.PEAK_GAP,
      groups=(group, h.DEFAULT_ONLINE),
      holds=h.within(h.EQUAL),
    )
    for group in (h.SEMI_ONLINE_10, h.SEMI_ONLINE_100)
  ),
  *(
    Hypothesis(
      figure="staleness",
      statement=(
        f"semi-online ({group.refresh_every} steps) is far better than offline "
        "(Lanchantin et al. 2025)"
      ),
      number=h.PEAK_GAP,
      groups=(group, h.DEFAULT_OFFLINE),
      holds=h.above(h.SMALL),
    )
    for group in (h.SEMI_ONLINE_10, h.SEMI_ONLINE_100)
  ),
  Hypothesis(
    figure="staleness",
    statement="samples of older policies teach less (Noukhovitch et al. 2024)",
    number=h.STALENESS_SLOPE,
    groups=(h.DEFAULT_ONLINE, h.SEMI_ONLINE),
    holds=h.below(-h.EQUAL),
  ),
)
