"""What goes beyond the paper: statements of later papers, and offline with more steps.

Later papers are quoted from their abstracts:

- Lanchantin et al. 2025 (arXiv 2506.21495): semi-online and online DPO and GRPO have
  "similar performance and convergence" and "strongly outperform offline methods".
- Noukhovitch et al. 2024 (2410.18252): "samples from previous iterations of our model
  [...] give a worse training signal".
- Tajwar et al. 2024 (2404.14367): "approaches that use on-policy sampling or attempt to
  push down the likelihood on certain responses (i.e., employ a `negative gradient')
  outperform offline and maximum likelihood objectives". That the two go together is
  not in the abstract: their interaction is measured without a source.
- Rafailov et al. 2024 (2406.02900): direct alignment algorithms "deteriorate not only
  across a wide range of KL budgets but also often before even a single epoch".
- Huang et al. 2024 (2407.13399): chi-squared regularisation, which is one line to
  change in DPO, avoids over-optimisation.
- Swamy et al. 2025 (2503.01067): online training is worth it "on problems with a
  generation-verification gap". Where a response has one or two words there is none.
"""

from alignment.analysis import hypotheses as h
from alignment.analysis.hypotheses import Hypothesis
from alignment.analysis.selection import unmatched

SHORT = "toy_short"  # the task whose responses have one or two words

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
      groups=(group, h.ONLINE),
      losses=h.contrastive_losses,
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
      groups=(group, h.OFFLINE),
      holds=h.above(h.SMALL),
      losses=h.contrastive_losses,
    )
    for group in (h.SEMI_ONLINE_10, h.SEMI_ONLINE_100)
  ),
  Hypothesis(
    figure="staleness",
    statement="samples of older policies teach less (Noukhovitch et al. 2024)",
    number=h.STALENESS_SLOPE,
    groups=(h.ONLINE, h.SEMI_ONLINE),
    holds=h.below(-h.EQUAL),
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="GRPO",
    statement="GRPO is as good as online DPO (Lanchantin et al. 2025)",
    number=h.PEAK_GAP,
    groups=(h.GRPO, h.ONLINE_DPO),
    holds=h.within(h.EQUAL),
    match=unmatched,  # their betas mean different things
  ),
  Hypothesis(
    figure="contrast",
    statement=(
      "offline, a loss that lowers some responses is better (Tajwar et al. 2024)"
    ),
    number=h.PEAK_GAP,
    groups=(h.OFFLINE, h.OFFLINE_BEST_OF_2),
  ),
  Hypothesis(
    figure="contrast",
    statement="online, a loss that lowers some responses is better",
    number=h.PEAK_GAP,
    groups=(h.ONLINE, h.ONLINE_BEST_OF_2),
  ),
  Hypothesis(
    figure="contrast",
    statement="online sampling gains more with such a loss than without",
    number=h.DIFFERENCE_OF_PEAK_GAPS,
    groups=(h.ONLINE, h.OFFLINE, h.ONLINE_BEST_OF_2, h.OFFLINE_BEST_OF_2),
  ),
  Hypothesis(
    figure="over-optimisation",
    statement=(
      "at the smallest beta offline falls within some epochs (Rafailov et al. 2024)"
    ),
    number=h.FALL_IN_STEPS,
    groups=(h.OFFLINE_OF_LEAST_BETA,),
    match=unmatched,
    losses=h.contrastive_losses,
  ),
  Hypothesis(
    figure="over-optimisation",
    statement="chi-PO falls less than DPO (Huang et al. 2024)",
    number=h.DIFFERENCE_OF_FALLS,
    groups=(h.CHI_PO, h.OFFLINE_DPO),
    holds=h.below(-h.EQUAL),
  ),
  Hypothesis(
    figure="short responses",
    statement=(
      "where judging is as hard as writing the gap vanishes (Swamy et al. 2025)"
    ),
    number=h.PEAK_GAP,
    groups=(h.ONLINE, h.OFFLINE),
    holds=h.within(h.EQUAL),
    match=unmatched,
    only_tasks=(SHORT,),
  ),
)
