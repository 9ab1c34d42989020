"""Laws of over-optimisation (Gao et al., arXiv 2210.10760), fitted to golden scores."""

from collections.abc import Sequence
import math

import numpy as np

from alignment.analysis.envelopes import KL_FLOOR, RESAMPLES
from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.figures.win_rate import main_runs
from alignment.analysis.intervals import (
  Estimate,
  by_world,
  interval,
  over_worlds,
  undefined,
)
from alignment.analysis.measures import fit_law, law_terms
from alignment.analysis.runs import Run
from alignment.analysis.selection import LEVELS

METHODS = ("online", "offline", "shuffled", "best_of_n")
COEFFICIENTS = ("alpha", "beta")


def laws(runs: Sequence[Run]) -> Drawing:
  """The golden PM's mean margin against SFT's samples, against d = sqrt(KL).

  A panel per task. Curves are least-squares fits to all of a method's checkpoints
  above `KL_FLOOR`: d(α - β log d) for training, d(α - β d) for best-of-n. With several
  worlds, α and β are means of the worlds' fits with t-intervals over worlds; in one
  world, intervals are from resampling its checkpoints.

  CSV kinds: point, curve, alpha, beta (value, low, high).
  """
  scored = [
    run
    for run in main_runs(runs)
    if run.method not in LEVELS and run.method in METHODS
    and any(record["golden_score"] is not None for record in run.records)
  ]  # fmt: skip
  if not scored:
    raise style.missing("laws", ["online or offline with golden_score"])
  tasks = list(dict.fromkeys(run.task for run in scored))
  figure, axes_list = style.panels(len(tasks))
  rows: Rows = []
  for task, axes in zip(tasks, axes_list, strict=True):
    for method in METHODS:
      chosen = [run for run in scored if (run.task, run.method) == (task, method)]
      points = [point for run in chosen for point in _points(run)]
      if not points:
        continue
      colour, marker = style.COLOURS[method], style.MARKERS[method]
      d_N = np.array([point["d"] for point in points])
      axes.scatter(
        d_N,
        [point["golden_score"] for point in points],
        color=colour,
        marker=marker,
        s=18,
        alpha=0.35,
        linewidths=0,
      )
      rows += points
      identity = {"task": task, "method": method}
      fitted = _fits(chosen, method == "best_of_n")
      for name, estimate in zip(COEFFICIENTS, fitted, strict=True):
        rows.append({"kind": name, **identity, **style.numbers(estimate)})
      if math.isnan(fitted[0].value):
        continue
      d_G = np.linspace(d_N.min(), d_N.max(), 60)
      curve_G = law_terms(d_G, method == "best_of_n") @ [e.value for e in fitted]
      law = "d(α − βd)" if method == "best_of_n" else "d(α − β log d)"
      label = f"{style.name_of(method)}: {law}, " + ", ".join(
        f"{symbol} = {e.value:.2f}" for symbol, e in zip("αβ", fitted, strict=True)
      )
      axes.plot(d_G, curve_G, color=colour, lw=2.0)
      axes.plot([], [], color=colour, lw=2.0, marker=marker, label=label)
      for d, score in zip(d_G, curve_G, strict=True):
        point = {"d": float(d), "golden_score": float(score)}
        rows.append({"kind": "curve", **identity, **point})
    axes.set_title(task, loc="left")
    axes.set_xlabel("d = sqrt(KL(policy, SFT)), sqrt(nats)")
    axes.set_ylabel("golden score (margin against SFT), logits")
    axes.legend(fontsize=8)  # of this panel: the coefficients are
  return figure, rows


def _points(run: Run) -> Rows:
  """The checkpoints that count: above the KL floor, with a score."""
  found = []
  for step, kl, score in zip(
    run.steps_E, run.kl_E, run.measured_E("golden_score"), strict=True
  ):
    if kl >= KL_FLOOR and math.isfinite(score):
      point = {"d": math.sqrt(kl), "golden_score": float(score)}
      identity = {"task": run.task, "method": run.method, "run": run.name}
      rows = {"kind": "point", **identity, "world": run.world, "step": int(step)}
      found.append(rows | point)
  return found


def _fits(runs: Sequence[Run], best_of_n: bool) -> tuple[Estimate, Estimate]:
  """(α, β), each with its interval."""
  per_world = {w: _fit_of_world(r, best_of_n) for w, r in by_world(runs).items()}
  alpha, beta = (over_worlds({w: e[i] for w, e in per_world.items()}) for i in (0, 1))
  return alpha, beta


def _fit_of_world(runs: Sequence[Run], best_of_n: bool) -> tuple[Estimate, Estimate]:
  points = np.array([[p["d"], p["golden_score"]] for run in runs for p in _points(run)])
  if len(np.unique(points[:, 0] if len(points) else points)) < 3:
    none = undefined("fewer than three checkpoints")
    return none, none
  rng = np.random.default_rng(0)
  samples = [points, *(points[rng.integers(len(points), size=len(points))]
             for _ in range(RESAMPLES))]  # fmt: skip
  fits_Rx2 = np.array([fit_law(s[:, 0], s[:, 1], best_of_n) for s in samples])
  low_2, high_2 = interval(fits_Rx2)
  alpha, beta = (
    Estimate(float(value), float(low), float(high), "checkpoints, 1 world", len(points))
    for value, low, high in zip(fits_Rx2[0], low_2, high_2, strict=True)
  )
  return alpha, beta
