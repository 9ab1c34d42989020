"""Figures: each a function from evaluated runs to a PNG and the CSV of its numbers.

A figure is one entry of `FIGURES`: a function `(runs, path_stem)` that draws in the
common style and ends in `save`. The CSV holds every number drawn, one row each, told
apart by its `kind` column. Numbers come from evaluations alone, and the same
evaluations give the same bytes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import io
import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
import numpy as np

from alignment.files import write_atomically
from alignment.runs import Run
from alignment.statistics import KL_FLOOR, RESAMPLES, envelope, upper_envelope
from alignment.types import UserError

# Okabe and Ito's colours, which the colour-blind tell apart; markers differ as well.
COLOURS = {
  "online": "#0072B2",
  "offline": "#D55E00",
  "shuffled": "#009E73",
  "semi_online": "#56B4E9",
  "hybrid": "#CC79A7",
  "best_of_n": "#E69F00",
}
MARKERS = {
  "online": "o",
  "offline": "^",
  "shuffled": "s",
  "semi_online": "D",
  "hybrid": "v",
  "best_of_n": "P",
}
_NOT_METHODS = ("sft", "golden_policy")  # evaluated as runs, drawn as levels

STYLE: dict[Any, Any] = {
  "axes.axisbelow": True,
  "axes.edgecolor": "#444444",
  "axes.grid": True,
  "axes.labelsize": 11,
  "axes.linewidth": 0.8,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": 12,
  "figure.facecolor": "white",
  "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
  "font.size": 11,
  "grid.color": "#e6e6e6",
  "grid.linewidth": 0.7,
  "legend.frameon": False,
  "savefig.dpi": 160,
  "xtick.color": "#444444",
  "xtick.labelsize": 10,
  "ytick.color": "#444444",
  "ytick.labelsize": 10,
}

Rows = list[dict[str, Any]]


# --- Output -----------------------------------------------------------------------


def png(figure: Figure) -> bytes:
  """The figure as a PNG, without the metadata that would name a version."""
  buffer = io.BytesIO()
  with matplotlib.rc_context(STYLE):
    figure.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def csv_bytes(rows: Rows) -> bytes:
  """Rows as CSV; floats to 6 significant digits, absent values empty."""

  def text(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
      return ""
    return f"{value:.6g}" if isinstance(value, float) else value

  columns = list(dict.fromkeys(column for row in rows for column in row))
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows({key: text(value) for key, value in row.items()} for row in rows)
  return buffer.getvalue().encode()


def save(figure: Figure, rows: Rows, path_stem: Path) -> tuple[Path, Path]:
  """Writes `path_stem`.png and, with every number drawn, `path_stem`.csv."""
  png_path = path_stem.with_name(f"{path_stem.name}.png")
  csv_path = path_stem.with_name(f"{path_stem.name}.csv")
  write_atomically(png_path, png(figure))
  write_atomically(csv_path, csv_bytes(rows))
  return png_path, csv_path


# --- Elements that figures share ---------------------------------------------------


def panels(
  count: int, width: float = 4.6, height: float = 3.6, columns: int = 2
) -> tuple[Figure, list[Axes]]:
  """A figure with `count` panels, at most `columns` beside one another."""
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for unused in axes[count:]:
    unused.remove()
  return figure, list(axes[:count])


def log_kl_axis(axes: Axes) -> None:
  """KL on a logarithmic axis with plain numbers: 0.1, 0.3, 1, 3, 10."""
  axes.set_xscale("log")
  low, high = axes.get_xlim()
  if low <= 0:  # nothing drawn: every policy is SFT still
    low, high = 0.1, 10.0
  if high / low < 10:  # at least one decade, or no tick might fall into it
    low, high = math.sqrt(low * high / 10), math.sqrt(low * high * 10)
  axes.set_xlim(low, high)
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 3000 else (1,)))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.set_xlabel("KL(policy, SFT), nats")


def shared_legend(figure: Figure, axes: Iterable[Axes], columns: int = 4) -> None:
  """One legend below all panels, each entry once, opaque however faint the marks."""
  entries: dict[str, Any] = {}
  for each in axes:
    for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
      entries.setdefault(label, handle)
  with matplotlib.rc_context(STYLE):
    figure.legend(
      entries.values(),
      entries.keys(),
      loc="outside lower center",
      ncols=min(columns, len(entries)),
    )


def _methods(runs: Sequence[Run]) -> list[str]:
  """The methods drawn as clouds: the known ones first, in the order of `COLOURS`."""
  present = {run.method for run in runs}.difference(_NOT_METHODS)
  known = [method for method in COLOURS if method in present]
  return known + sorted(present.difference(known))


def _mean_level(runs: Sequence[Run], method: str, judge: str) -> float | None:
  rates = [run.win_rates_E(judge)[-1] for run in runs if run.method == method]
  return float(np.mean(rates)) if rates else None


# --- Figure 1 ---------------------------------------------------------------------


def win_rate_against_kl(
  runs: Sequence[Run], path_stem: Path, *, resamples: int = RESAMPLES
) -> tuple[Path, Path]:
  """Win rate against KL: a panel per task and judge, a cloud per method.

  Every checkpoint is a point, but for those below `KL_FLOOR` nats, which a logarithmic
  axis cannot show. The steps are each method's upper envelope over all its runs (best
  win rate within a KL budget, selected on one half of the prompts and reported on the
  other) with a 95 % bootstrap band over prompts. The dashed line is the golden policy,
  which wins half of its games against itself; the dotted one is SFT.

  CSV kinds: point, envelope (with low and high), envelope_naive (the plain cumulative
  maximum, biased upwards; for comparison, not drawn), level.
  """
  methods = _methods(runs)
  if not methods:
    raise UserError(f"{path_stem}: no policy run to draw; train and evaluate one first")
  drawn = [
    (task, loss, judge)
    for task, loss in dict.fromkeys(
      (run.task, run.loss) for run in runs if run.method in methods
    )
    for judge in next(run.wins for run in runs if run.task == task)
  ]
  figure, axes_of = panels(len(drawn))
  rows: Rows = []
  for axes, (task, loss, judge) in zip(axes_of, drawn, strict=True):
    of_task = [run for run in runs if run.task == task]
    panel = {"task": task, "loss": loss, "judge": judge}
    for method in methods:
      chosen = [run for run in of_task if (run.method, run.loss) == (method, loss)]
      if chosen:
        rows += _draw_method(axes, chosen, panel, resamples)
    for method, level, name, dashes in (
      ("golden_policy", 0.5, "golden policy (0.5)", (5, 2)),
      ("sft", _mean_level(of_task, "sft", judge), "SFT", (1, 1.5)),
    ):
      if level is not None:
        axes.axhline(level, color="#333333", lw=1.1, dashes=dashes, label=name)
        rows.append({"kind": "level", **panel, "method": method, "win_rate": level})
    title = task if len({loss for _, loss, _ in drawn}) == 1 else f"{task}, {loss}"
    judged = "the true utility" if judge == "truth" else f"the {judge}"
    axes.set_title(f"{title}, judged by {judged}", loc="left")
    axes.set_ylabel("win rate against golden policy")
    log_kl_axis(axes)
  for axes, (task, _, _) in zip(axes_of, drawn, strict=True):  # judges are comparable
    beside = [a for a, d in zip(axes_of, drawn, strict=True) if d[0] == task]
    bottoms, tops = zip(*(a.get_ylim() for a in beside), strict=True)
    axes.set_ylim(min(bottoms), max(tops))
  shared_legend(figure, axes_of)
  return save(figure, rows, path_stem)


def _draw_method(
  axes: Axes, runs: Sequence[Run], panel: Mapping[str, str], resamples: int
) -> Rows:
  """One method's cloud and envelope in one panel; returns what it drew."""
  method, judge = runs[0].method, panel["judge"]
  colour, marker = COLOURS.get(method, "#666666"), MARKERS.get(method, "X")
  rows: Rows = []
  for run in runs:
    points = zip(run.records, run.kl_E, run.win_rates_E(judge), strict=True)
    for record, kl, win_rate in points:
      if kl < KL_FLOOR:
        continue
      identity = {
        key: record[key]
        for key in ("world", "run", "beta", "learning_rate", "seed", "step")
      }
      rows.append(
        {"kind": "point", **panel, "method": method, **identity}
        | {"kl": float(kl), "win_rate": float(win_rate)}
      )
  count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
  axes.scatter(
    [row["kl"] for row in rows],
    [row["win_rate"] for row in rows],
    s=20,
    color=colour,
    marker=marker,
    alpha=0.35,
    linewidths=0,
  )
  naive = upper_envelope(
    np.array([row["kl"] for row in rows]), np.array([row["win_rate"] for row in rows])
  )
  kl_G, win_rate_G, low_G, high_G = envelope(runs, judge, resamples)
  axes.plot(
    kl_G,
    win_rate_G,
    color=colour,
    lw=2.0,
    drawstyle="steps-post",
  )
  axes.plot(  # the legend's entry: line and mark together
    [],
    [],
    color=colour,
    lw=2.0,
    marker=marker,
    label=f"{method.replace('_', '-')} ({count})",
  )
  axes.fill_between(
    kl_G, low_G, high_G, step="post", color=colour, alpha=0.15, linewidth=0
  )
  for kl, win_rate, low, high in zip(kl_G, win_rate_G, low_G, high_G, strict=True):
    numbers = {"kl": kl, "win_rate": win_rate, "low": low, "high": high}
    rows.append(
      {"kind": "envelope", **panel, "method": method}
      | {key: float(value) for key, value in numbers.items()}
    )
  for kl, win_rate in zip(*naive, strict=True):
    rows.append(
      {"kind": "envelope_naive", **panel, "method": method}
      | {"kl": float(kl), "win_rate": float(win_rate)}
    )
  return rows


def figure_01(runs: Sequence[Run], path_stem: Path) -> tuple[Path, Path]:
  """Figure 1 of the paper: online and offline, win rate against KL."""
  methods = ("online", "offline", *_NOT_METHODS)
  return win_rate_against_kl([run for run in runs if run.method in methods], path_stem)


FIGURES: dict[str, Callable[[Sequence[Run], Path], tuple[Path, Path]]] = {
  "figure_01": figure_01,
}


def draw(name: str, runs: Sequence[Run], out_dir: Path) -> tuple[Path, Path]:
  """Draws one figure into `out_dir`; returns the paths of its PNG and its CSV."""
  if name not in FIGURES:
    raise UserError(f"no figure {name!r}; there are {', '.join(sorted(FIGURES))}")
  return FIGURES[name](runs, out_dir / name)


# --- Training curves --------------------------------------------------------------


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Small multiples of one role's metrics against `step`, a panel per metric.

  Keys of a row other than `step` are metrics; a row may lack any of them, and values
  that are no finite numbers leave a gap.
  """
  metrics = dict.fromkeys(key for row in rows for key in row if key != "step")
  curves = {}
  for metric in metrics:
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    values = [
      value if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
      for _, value in points
    ]
    if not np.isnan(values).all():
      curves[metric] = [step for step, _ in points], values
  # Three to a row, also where there are fewer: all roles' panels have one size.
  figure, axes_of = panels(max(3, len(curves)), width=3.1, height=2.2, columns=3)
  for unused in axes_of[len(curves) :]:
    unused.remove()
  for axes, (metric, (steps, values)) in zip(axes_of, curves.items(), strict=False):
    axes.plot(steps, values, color=COLOURS["online"], lw=1.5)
    if np.isfinite(values).sum() == 1:
      axes.plot(steps, values, color=COLOURS["online"], marker="o")
    axes.set_title(metric.replace("_", " "), fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=8)
  return figure
