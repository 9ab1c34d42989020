"""Training statistics: of a model, for the report; replay beside online (App. F)."""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from alignment.analysis import replays
from alignment.analysis.figures import style
from alignment.analysis.figures.style import COLOURS, Drawing, panels
from alignment.analysis.figures.win_rate import main_runs
from alignment.analysis.replays import Pair, relative_difference_S
from alignment.analysis.runs import Run


def appendix_f(runs: Sequence[Run]) -> Drawing:
  """The recorded stream replayed in order beside the online run.

  Draws the first pair of runs there is (by task and world); the last panel has every
  statistic's relative difference. The CSV has all pairs.
  """
  chosen = main_runs(runs)
  tasks = style.tasks_with("appendix_f", chosen, ("online", "replay"))
  pairs = [
    pair
    for of_task in tasks.values()
    for pair in replays.pairs(
      [r for r in of_task if r.series == "replay" and r.replay_window == 0],
      [r for r in of_task if r.series == "online"],
    )
    if pair.statistics
  ]
  if not pairs:
    raise style.missing(
      "appendix_f", ["a replay in order with its online run's metrics.jsonl"]
    )
  return _draw_pair(pairs[0]), [row for pair in pairs for row in _rows(pair)]


def _rows(pair: Pair) -> Iterator[dict[str, Any]]:
  identity = {"task": pair.replay.task, "world": pair.replay.world}
  names = {"replay_run": pair.replay.name, "online_run": pair.online.name}
  for statistic, values_2xS in pair.statistics.items():
    differences_S = relative_difference_S(values_2xS)
    for step, a, b, difference in zip(
      pair.steps_S, *values_2xS, differences_S, strict=True
    ):
      numbers = {"replay": float(a), "online": float(b)}
      yield (
        {**identity, "statistic": statistic, **names, "step": int(step), **numbers}
        | {"relative_difference": float(difference)}
      )


def _draw_pair(pair: Pair) -> Figure:
  """A panel per statistic, and one of all relative differences."""
  figure, axes_list = panels(len(pair.statistics) + 1, width=3.6, height=2.6, columns=3)
  for axes, (name, (replay_S, online_S)) in zip(
    axes_list, pair.statistics.items(), strict=False
  ):
    axes.plot(pair.steps_S, online_S, color=COLOURS["online"], lw=2.2, label="online")
    axes.plot(
      pair.steps_S, replay_S, color=COLOURS["replay"], dashes=(3, 2), lw=1.2,
      label="replayed in order",
    )  # fmt: skip
    axes.set_ylabel(name.replace("_", " "))
  _draw_differences(axes_list[-1], pair)
  for axes in axes_list:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
  title = f"{pair.replay.task}, world {pair.replay.world}"
  axes_list[0].set_title(title, loc="left")
  style.shared_legend(figure, axes_list)
  return figure


def _draw_differences(axes: Axes, pair: Pair) -> None:
  differences = [relative_difference_S(values) for values in pair.statistics.values()]
  for difference_S in differences:
    axes.plot(pair.steps_S, difference_S, lw=1.0, color="#888888")
  largest = max(difference_S.max() for difference_S in differences)
  axes.plot(
    [], [], lw=1.0, color="#888888", label=f"each statistic (max {largest:.2g})"
  )
  axes.axhline(1e-3, color="#333333", lw=1.0, dashes=(1, 1.5), label="0.1 %")
  axes.set_ylim(bottom=0)
  axes.set_ylabel("relative difference")


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Small multiples of one model's metrics against `step`, a panel per metric.

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
  # Three to a row, also where there are fewer: all models' panels have one size.
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
