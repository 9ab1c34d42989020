"""What figures there are: apart from what draws them, which takes seconds to import."""

# Name -> what it shows, for captions. Figures 2 and 3 of the paper are diagrams.
FIGURES = {
  "figure_01": "Figure 1: win rate against the golden policy, by KL spent",
  "figure_04": "Figure 4: learning from the online stream, shuffled",
  "figure_05": "Figure 5: learning from the final online policy's responses",
  "figure_06": "Figure 6: classifiers on the online stream",
  "figure_07": "Figure 7: win rate against accuracy on D_golden",
  "figure_08": "Figure 8: accuracy and log-ratios on D_golden over training",
  "figure_09": "Figure 9: Best-of-2, a loss that is not contrastive",
  "figure_10": "Figure 10: larger policies",
  "figure_11": "Figure 11: best results by policy size, relative to online",
  "figure_12": "Figure 12: data sets of other pairs of policies",
  "figure_13": "Figure 13: how much shuffling of the stream hurts",
  "figure_14": "Figure 14: best results by policy size",
  "appendix_e1": "Appendix E.1: policies as classifiers of their own samples",
  "appendix_f": "Appendix F: the stream replayed in order beside the online run",
  "losses": "Figure 1 for every loss",
  "staleness": "Beyond the paper: how stale the sampling policy may be",
  "hybrid": "Beyond the paper: batches that are on-policy in part",
  "laws": "Beyond the paper: laws of over-optimisation (Gao et al.)",
}
