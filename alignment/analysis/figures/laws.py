"""Laws of over-optimisation (Gao et al., arXiv 2210.10760), of judges' scores."""

from collections.abc import Sequence
import math

from matplotlib.axes import Axes
import numpy as np

from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.figures.win_rate import main_runs
from alignment.analysis.laws import fits, law_terms, scored_checkpoints
from alignment.analysis.runs import Run

SERIES = ("online", "offline", "shuffled", "best_of_n")
SCORES = {"golden_score": "golden PM", "proxy_score": "proxy PM"}
COEFFICIENTS = ("alpha", "beta")


def laws(runs: Sequence[Run]) -> Drawing:
  """A judge's mean margin against SFT's samples, against d = sqrt(KL).

  A panel per task and judge: the golden PM and, where its scores are recorded, the
  proxy that online policies learn from. Where these part, the proxy is over-optimised.
  Their logits have scales of their own. Curves are least-squares fits to all of a
  series' checkpoints above the KL floor: d(α - β log d) for training, d(α - β d) for
  best-of-n. With several worlds, α and β are means of the worlds' fits with t-intervals
  over worlds; in one world, intervals are from resampling its checkpoints.

  CSV kinds: point, curve, alpha, beta (value, low, high).
  """
  scored = [run for run in main_runs(runs) if run.series in SERIES]
  panels = [
    (task, score)
    for task in dict.fromkeys(run.task for run in scored)
    for score in SCORES
    if any(run.task == task and _measured(run, score) for run in scored)
  ]
  if not panels:
    raise style.missing("laws", ["online or offline with golden_score"])
  figure, axes_list = style.panels(len(panels))
  rows: Rows = []
  for (task, score), axes in zip(panels, axes_list, strict=True):
    for series in SERIES:
      chosen = [run for run in scored if (run.task, run.series) == (task, series)]
      if any(len(scored_checkpoints(run, score)[0]) for run in chosen):
        rows += _draw_law(axes, chosen, score)
    axes.set_title(f"{task}, {SCORES[score]}", loc="left")
    axes.set_xlabel("d = sqrt(KL(policy, SFT)), sqrt(nats)")
    axes.set_ylabel(f"{score.replace('_', ' ')} (margin against SFT), logits")
    axes.legend(fontsize=8)  # of this panel: the coefficients are
  return figure, rows


def _measured(run: Run, score: str) -> bool:
  return bool(np.isfinite(run.measured_E(score)).any())


def _draw_law(axes: Axes, runs: Sequence[Run], score: str) -> Rows:
  """One series' checkpoints, and the law fitted to them."""
  series, best_of_n = runs[0].series, runs[0].series == "best_of_n"
  identity = {"task": runs[0].task, "score": score, "series": series}
  colour, marker = style.COLOURS[series], style.MARKERS[series]
  checkpoints = [scored_checkpoints(run, score) for run in runs]
  d_N = np.concatenate([d_E for _, d_E, _ in checkpoints])
  scores_N = np.concatenate([scores_E for _, _, scores_E in checkpoints])
  axes.scatter(
    d_N, scores_N, color=colour, marker=marker, s=18, alpha=0.35, linewidths=0
  )
  for run, (steps_E, d_E, scores_E) in zip(runs, checkpoints, strict=True):
    names = [
      style.checkpoint_name(run, step, KL=d**2, **{score: value})
      for step, d, value in zip(steps_E, d_E, scores_E, strict=True)
    ]
    style.name_points(axes, d_E, scores_E, names)
  fitted = fits(runs, score, best_of_n)
  rows: Rows = [
    {"kind": "point", **identity, "run": run.name, "world": run.world}
    | {"step": int(step), "d": float(d), "margin": float(value)}
    for run, arrays in zip(runs, checkpoints, strict=True)
    for step, d, value in zip(*arrays, strict=True)
  ]
  for name, estimate in zip(COEFFICIENTS, fitted, strict=True):
    rows.append({"kind": name, **identity, **style.numbers(estimate)})
  if math.isnan(fitted[0].value):
    return rows
  d_G = np.linspace(d_N.min(), d_N.max(), 60)
  curve_G = law_terms(d_G, best_of_n) @ [e.value for e in fitted]
  law = "d(α − βd)" if best_of_n else "d(α − β log d)"
  label = f"{style.name_of(series)}: {law}, " + ", ".join(
    f"{symbol} = {e.value:.2f}" for symbol, e in zip("αβ", fitted, strict=True)
  )
  axes.plot(d_G, curve_G, color=colour, lw=2.0)
  axes.plot([], [], color=colour, lw=2.0, marker=marker, label=label)
  curve = zip(d_G, curve_G, strict=True)
  return [
    *rows,
    *(
      {"kind": "curve", **identity, "d": float(d), "margin": float(value)}
      for d, value in curve
    ),
  ]
