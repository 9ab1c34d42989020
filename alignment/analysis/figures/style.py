"""What all figures share: colours, axes, legends, and bytes that repeat."""

from collections.abc import Iterable, Mapping, Sequence
import csv
import io
import math
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from alignment.analysis.intervals import Estimate
from alignment.analysis.runs import Run
from alignment.types import UserError

# Okabe and Ito's colours, which the colour-blind tell apart; markers differ as well.
COLOURS = {
  "online": "#0072B2",
  "offline": "#D55E00",
  "shuffled": "#009E73",
  "replay": "#000000",
  "semi_online": "#56B4E9",
  "hybrid": "#CC79A7",
  "best_of_n": "#8a6d00",
  "final_vs_final": "#CC79A7",
  "sft_vs_early": "#E69F00",
  "early_vs_final": "#56B4E9",
  "proxy_pm": "#333333",
}
MARKERS = {
  "online": "o",
  "offline": "^",
  "shuffled": "s",
  "replay": "x",
  "semi_online": "D",
  "hybrid": "v",
  "best_of_n": "P",
  "final_vs_final": "v",
  "sft_vs_early": "D",
  "early_vs_final": "P",
  "proxy_pm": "*",
}

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
Drawing = tuple[Figure, Rows]  # and every number drawn


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


TITLE = 46  # characters that fit above a panel

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


def panels_by_judge(
  tasks: Mapping[str, Sequence[Run]],
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
  """A figure with a titled panel for every task, and judge of its runs."""
  keys = [(task, judge) for task, runs in tasks.items() for judge in runs[0].wins]
  figure, axes_list = panels(len(keys))
  for (task, judge), axes in zip(keys, axes_list, strict=True):
    title = f"{task}, {judged_by(judge)}"
    if len(title) > TITLE:
      title = f"{task},\n{judged_by(judge)}"
    axes.set_title(title, loc="left")
  return figure, dict(zip(keys, axes_list, strict=True))


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
  """One legend below all panels: each entry once, as many beside each other as fit."""
  entries: dict[str, Any] = {}
  for each in axes:
    for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
      entries.setdefault(label, handle)
  handles, labels = list(entries.values()), list(entries)
  with matplotlib.rc_context(STYLE):
    for ncols in range(max(1, min(columns, len(entries))), 0, -1):
      legend = figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
      if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
        return
      legend.remove()


def judged_by(judge: str) -> str:
  return f"judged by the {'true utility' if judge == 'truth' else judge}"


def share_y(axes_of: Mapping[Any, Axes]) -> None:
  """The panels of one task, the first of each key's parts, get one range of y."""
  for first in {key[0] for key in axes_of}:
    beside = [axes for key, axes in axes_of.items() if key[0] == first]
    bottoms, tops = zip(*(axes.get_ylim() for axes in beside), strict=True)
    for axes in beside:
      axes.set_ylim(min(bottoms), max(tops))


class NamedPoints(Artist):
  """What each point of a panel is, for who points at it on a page; draws nothing."""

  def __init__(self, x: Iterable[float], y: Iterable[float], names: Iterable[str]):
    super().__init__()
    self.points = list(zip(x, y, names, strict=True))  # in the units of the axes
    self.set_in_layout(False)

  def draw(self, renderer: RendererBase) -> None:
    del renderer  # images have no names


def name_points(
  axes: Axes, x: Iterable[float], y: Iterable[float], names: Iterable[str]
) -> None:
  """Says what the points at (x, y) are: `svg.py` shows it where one is pointed at."""
  axes.add_artist(NamedPoints(x, y, names))


def checkpoint_name(run: Run, step: int, **measured: float) -> str:
  """A checkpoint with what is drawn of it, for `name_points`."""
  numbers = ", ".join(
    f"{what.replace('_', ' ')} {value:.3g}" for what, value in measured.items()
  )
  return f"{run.name}, step {step}: {numbers}"


def name_of(series: str) -> str:
  return {"proxy_pm": "proxy PM"}.get(series, series.replace("_", "-"))


def error_bars(
  axes: Axes,
  x: Sequence[float],
  estimates: Mapping[Any, Estimate],
  series: str,
  label: str,
  **style: Any,
) -> None:
  """Estimates with their intervals, joined by a line; undefined ones are left out.

  The keys of `estimates`, one for each x, name their points.
  """
  points = [
    (at, key, e)
    for at, (key, e) in zip(x, estimates.items(), strict=True)
    if not math.isnan(e.value)
  ]
  below = [0 if math.isnan(e.low) else e.value - e.low for *_, e in points]
  above = [0 if math.isnan(e.high) else e.high - e.value for *_, e in points]
  x, y = [at for at, *_ in points], [e.value for *_, e in points]
  names = [f"{label}, {key}: {e}, over {e.over}" for _, key, e in points]
  name_points(axes, x, y, names)
  axes.errorbar(
    x,
    y,
    yerr=[below, above],
    color=COLOURS.get(series, "#666666"),
    marker=MARKERS.get(series, "X"),
    capsize=2.5,
    lw=1.6,
    elinewidth=1.0,
    label=label,
    **style,
  )


def numbers(estimate: Estimate) -> dict[str, Any]:
  """An estimate's columns of a CSV."""
  return {
    "value": estimate.value,
    "low": estimate.low,
    "high": estimate.high,
    "interval_over": estimate.over,
  }


def missing(name: str, what: Iterable[str], settings: str = "") -> UserError:
  """The error of a figure that has no runs, of certain `settings` maybe."""
  wanted = " ".join(filter(None, (" and ".join(what), settings)))
  return UserError(
    f"{name}: no evaluated run of {wanted}; add them to config.runs, or take "
    f"{name} out of config.figures"
  )


def tasks_with(
  name: str, runs: Sequence[Run], series: Sequence[str], settings: str = ""
) -> dict[str, list[Run]]:
  """task -> its runs, for tasks with runs of all `series`.

  Raises UserError, naming the series that are missing, if there is no such task.
  """
  tasks = {
    task: [run for run in runs if run.task == task]
    for task in dict.fromkeys(run.task for run in runs)
  }
  series_of = {task: {run.series for run in tasks[task]} for task in tasks}
  complete = {task: tasks[task] for task in tasks if series_of[task].issuperset(series)}
  if not complete:
    most = max(series_of.values(), key=len, default=set())
    lacking = [each for each in series if each not in most] or list(series)
    raise missing(name, lacking, settings)
  return complete
