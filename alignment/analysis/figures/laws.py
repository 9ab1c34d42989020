"""Laws of over-optimisation (Gao et al., arXiv 2210.10760), fitted to golden scores."""

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
COEFFICIENTS = ("alpha", "beta")


def laws(runs: Sequence[Run]) -> Drawing:
  """The golden PM's mean margin against SFT's samples, against d = sqrt(KL).

  A panel per task. Curves are least-squares fits to all of a series' checkpoints above
  the KL floor: d(α - β log d) for training, d(α - β d) for best-of-n. With several
  worlds, α and β are means of the worlds' fits with t-intervals over worlds; in one
  world, intervals are from resampling its checkpoints.

  CSV kinds: point, curve, alpha, beta (value, low, high).
  """
  scored = [
    run
    for run in main_runs(runs)
    if run.series in SERIES
    and any(record["golden_score"] is not None for record in run.records)
  ]
  if not scored:
    raise style.missing("laws", ["online or offline with golden_score"])
  tasks = list(dict.fromkeys(run.task for run in scored))
  figure, axes_list = style.panels(len(tasks))
  rows: Rows = []
  for task, axes in zip(tasks, axes_list, strict=True):
    for series in SERIES:
      chosen = [run for run in scored if (run.task, run.series) == (task, series)]
      if any(len(scored_checkpoints(run)[0]) for run in chosen):
        rows += _draw_law(axes, chosen)
    axes.set_title(task, loc="left")
    axes.set_xlabel("d = sqrt(KL(policy, SFT)), sqrt(nats)")
    axes.set_ylabel("golden score (margin against SFT), logits")
    axes.legend(fontsize=8)  # of this panel: the coefficients are
  return figure, rows


def _draw_law(axes: Axes, runs: Sequence[Run]) -> Rows:
  """One series' checkpoints, and the law fitted to them."""
  series, best_of_n = runs[0].series, runs[0].series == "best_of_n"
  identity = {"task": runs[0].task, "series": series}
  colour, marker = style.COLOURS[series], style.MARKERS[series]
  checkpoints = [scored_checkpoints(run) for run in runs]
  d_N = np.concatenate([d_E for _, d_E, _ in checkpoints])
  scores_N = np.concatenate([scores_E for _, _, scores_E in checkpoints])
  axes.scatter(
    d_N, scores_N, color=colour, marker=marker, s=18, alpha=0.35, linewidths=0
  )
  for run, (steps_E, d_E, scores_E) in zip(runs, checkpoints, strict=True):
    names = [
      style.checkpoint_name(run, step, KL=d**2, golden_score=score)
      for step, d, score in zip(steps_E, d_E, scores_E, strict=True)
    ]
    style.name_points(axes, d_E, scores_E, names)
  fitted = fits(runs, best_of_n)
  rows: Rows = [
    {"kind": "point", **identity, "run": run.name, "world": run.world}
    | {"step": int(step), "d": float(d), "golden_score": float(score)}
    for run, arrays in zip(runs, checkpoints, strict=True)
    for step, d, score in zip(*arrays, strict=True)
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
      {"kind": "curve", **identity, "d": float(d), "golden_score": float(score)}
      for d, score in curve
    ),
  ]
