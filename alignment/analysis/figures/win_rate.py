"""Win rate against KL: figures 1, 4, 5, 9, 10, 12, 13, and figure 1 for every loss."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from matplotlib.axes import Axes
import numpy as np

from alignment.analysis.envelopes import KL_FLOOR, RESAMPLES, envelope, upper_envelope
from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.intervals import by_world
from alignment.analysis.runs import Run
from alignment.analysis.selection import larger_size, main_loss, matched, sizes, trained

_WINDOW_COLOURS = ("#56B4E9", "#CC79A7", "#E69F00", "#F0E442")


@dataclasses.dataclass(frozen=True)
class Series:
  """The runs that share an envelope in a panel."""

  label: str
  runs: list[Run]
  colour: str
  marker: str
  behind: bool = False  # for comparison: a dashed envelope without a cloud


def of_method(
  runs: Sequence[Run],
  method: str,
  label: str = "",
  colour: str = "",
  behind: bool = False,
) -> Series:
  return Series(
    label or style.name_of(method),
    [run for run in runs if run.method == method],
    colour or style.COLOURS.get(method, "#666666"),
    style.MARKERS.get(method, "X"),
    behind,
  )


def of_methods(runs: Sequence[Run], *methods: str) -> list[Series]:
  return [of_method(runs, method) for method in methods]


def win_rate_against_kl(
  tasks: Mapping[str, Sequence[Run]],
  series_of: Callable[[list[Run]], list[Series]],
  *,
  common_settings: bool = False,
  resamples: int = RESAMPLES,
) -> Drawing:
  """Win rate against KL: a panel per task and judge, a cloud per series.

  Every checkpoint is a point, but for those below `KL_FLOOR` nats, which a logarithmic
  axis cannot show. The steps are each series' upper envelope over all its runs (best
  win rate within a KL budget, selected on one half of the prompts and reported on the
  other) with a 95 % bootstrap band over prompts. Best-of-n is a line through its n. The
  dashed level is the golden policy, which wins half of its games against itself; the
  dotted one is SFT.

  CSV kinds: point, envelope (with low and high), envelope_naive (the plain cumulative
  maximum, biased upwards; for comparison, not drawn), best_of_n, level.

  Args:
    tasks: the panels' name -> its runs.
    series_of: what to draw of a panel's runs; empty series are left out.
    common_settings: only runs at the settings that all series have
      (`selection.matched`): an envelope over more would be higher for that alone.
    resamples: of the bands.
  """
  drawn = [(task, judge) for task, runs in tasks.items() for judge in runs[0].wins]
  figure, axes_list = style.panels(len(drawn))
  axes_of = dict(zip(drawn, axes_list, strict=True))
  series = {
    task: [s for s in series_of(list(runs)) if s.runs] for task, runs in tasks.items()
  }
  if common_settings:
    series = {task: _at_common_settings(of_task) for task, of_task in series.items()}
  # How many runs an envelope is over belongs in the legend, if panels have one answer.
  counts: dict[str, set[int]] = {}
  for each in (s for of_task in series.values() for s in of_task):
    counts.setdefault(each.label, set()).add(len(each.runs))
  rows: Rows = []
  for (task, judge), axes in axes_of.items():
    for each in series[task]:
      label = each.label
      if len(counts[label]) == 1:
        label += f" ({len(each.runs)} run{'' if len(each.runs) == 1 else 's'})"
      rows += _draw_series(axes, each, label, judge, resamples)
    rows += _draw_levels(axes, tasks[task], task, judge, series[task])
    axes.set_title(f"{task}, {style.judged_by(judge)}", loc="left")
    axes.set_ylabel("win rate against golden policy")
    style.log_kl_axis(axes)
  style.share_y(axes_of)
  style.shared_legend(figure, axes_list)
  return figure, rows


def _at_common_settings(series: list[Series]) -> list[Series]:
  kept = matched([each.runs for each in series])
  return [
    dataclasses.replace(s, runs=runs) for s, runs in zip(series, kept, strict=True)
  ]


def _identity(series: Series, judge: str) -> dict[str, Any]:
  run = series.runs[0]
  names = ("task", "loss", "size", "method", "replay_window")
  return {"judge": judge, "series": series.label} | {k: getattr(run, k) for k in names}


def _draw_series(
  axes: Axes, series: Series, label: str, judge: str, resamples: int
) -> Rows:
  if series.runs[0].method == "best_of_n":
    return _draw_best_of_n(axes, series, judge)
  identity = _identity(series, judge)
  rows: Rows = []
  for run in series.runs:
    settings = {k: getattr(run, k) for k in ("world", "beta", "learning_rate", "seed")}
    for step, kl, rate in zip(
      run.steps_E, run.kl_E, run.win_rates_E(judge), strict=True
    ):
      if kl >= KL_FLOOR:
        point = {"step": int(step), "kl": float(kl), "win_rate": float(rate)}
        rows.append({"kind": "point", **identity, "run": run.name, **settings, **point})
  kl_N, rate_N = (
    np.array([[row["kl"], row["win_rate"]] for row in rows]).reshape(-1, 2).T
  )
  line: dict[str, Any] = {"color": series.colour, "lw": 2.0}
  if series.behind:
    rows, line = [], line | {"lw": 1.3, "dashes": (4, 2), "alpha": 0.7}
  else:
    axes.scatter(
      kl_N,
      rate_N,
      s=20,
      color=series.colour,
      marker=series.marker,
      alpha=0.35,
      linewidths=1.0 if series.marker == "x" else 0,
    )
  kl_G, rate_G, low_G, high_G = envelope(series.runs, judge, resamples)
  axes.plot(kl_G, rate_G, drawstyle="steps-post", **line)
  marker = None if series.behind else series.marker
  axes.plot([], [], marker=marker, label=label, **line)  # line and mark in the legend
  if not series.behind:
    axes.fill_between(
      kl_G, low_G, high_G, step="post", color=series.colour, alpha=0.15, linewidth=0
    )
  for values in zip(kl_G, rate_G, low_G, high_G, strict=True):
    named = zip(("kl", "win_rate", "low", "high"), map(float, values), strict=True)
    rows.append({"kind": "envelope", **identity, **dict(named)})
  if not series.behind:
    for kl, rate in zip(*upper_envelope(kl_N, rate_N), strict=True):
      point = {"kl": float(kl), "win_rate": float(rate)}
      rows.append({"kind": "envelope_naive", **identity, **point})
  return rows


def _draw_best_of_n(axes: Axes, series: Series, judge: str) -> Rows:
  """The mean over worlds at every n that all of them have."""
  steps = sorted(set.intersection(*(set(run.steps_E.tolist()) for run in series.runs)))
  rows: Rows = []
  for n in steps:
    at = [(run, run.steps_E.tolist().index(n)) for run in series.runs]
    kl = float(np.mean([run.kl_E[i] for run, i in at]))
    rate = float(np.mean([run.win_rates_E(judge)[i] for run, i in at]))
    if kl >= KL_FLOOR:
      point = {"step": n, "kl": kl, "win_rate": rate}
      rows.append({"kind": "best_of_n", **_identity(series, judge), **point})
  axes.plot(
    [row["kl"] for row in rows],
    [row["win_rate"] for row in rows],
    color=series.colour,
    marker=series.marker,
    ms=5,
    lw=1.2,
    label="best of n from SFT",
  )
  return rows


def _draw_levels(
  axes: Axes, runs: Sequence[Run], task: str, judge: str, series: Sequence[Series]
) -> Rows:
  rows: Rows = []
  size = next((s.runs[0].size for s in series if not s.behind), None)
  sft = [run for run in runs if run.method == "sft" and run.size == size]
  golden = any(run.method == "golden_policy" for run in runs)
  rates = [
    np.mean([r.win_rates_E(judge)[-1] for r in of]) for of in by_world(sft).values()
  ]
  for method, level, label, dashes in (
    ("golden_policy", 0.5 if golden else None, "golden policy (0.5)", (5, 2)),
    ("sft", float(np.mean(rates)) if rates else None, "SFT", (1, 1.5)),
  ):
    if level is not None:
      axes.axhline(level, color="#333333", lw=1.1, dashes=dashes, label=label)
      row = {"task": task, "judge": judge, "method": method, "win_rate": level}
      rows.append({"kind": "level", **row})
  return rows


# --- The figures ----------------------------------------------------------------------


def _at(runs: Sequence[Run], loss: str, size: str) -> list[Run]:
  """The runs of one loss and size; levels and best-of-n have no loss of their own."""
  policies = {id(run) for run in trained(runs)}
  return [
    run
    for run in runs
    if (run.size == size or run.method == "golden_policy")
    and (run.loss == loss or id(run) not in policies)
  ]


def main_runs(runs: Sequence[Run]) -> list[Run]:
  """The runs of the main loss and size, with the levels."""
  return _at(runs, main_loss(runs), next(iter(sizes(runs)), ""))


def figure_01(runs: Sequence[Run]) -> Drawing:
  """Online and offline, with best-of-n for reference."""
  runs = main_runs(runs)
  either = [run.task for run in runs if run.method in ("online", "offline")]
  if not either:
    raise style.missing("figure_01", ["online", "offline"])
  tasks = {t: [run for run in runs if run.task == t] for t in dict.fromkeys(either)}
  return win_rate_against_kl(
    tasks, lambda of_task: of_methods(of_task, "online", "offline", "best_of_n")
  )


def _compared(
  name: str, *methods: str, common_settings: bool = False
) -> Callable[[Sequence[Run]], Drawing]:
  def draw(runs: Sequence[Run]) -> Drawing:
    tasks = style.tasks_with(name, main_runs(runs), methods)
    return win_rate_against_kl(
      tasks,
      lambda of_task: of_methods(of_task, *methods),
      common_settings=common_settings,
    )

  return draw


# The recorded stream shuffled: coverage.
figure_04 = _compared("figure_04", "online", "offline", "shuffled")
# Both responses resampled from the final online policy: quality.
figure_05 = _compared("figure_05", "online", "offline", "shuffled", "final_vs_final")
# Data sets of other pairs of policies.
figure_12 = _compared(
  "figure_12",
  "offline",
  "final_vs_final",
  "sft_vs_early",
  "early_vs_final",
  common_settings=True,
)


def figure_09(runs: Sequence[Run]) -> Drawing:
  """Best-of-2, a loss without a loser, with the main loss behind."""
  main, size = main_loss(runs), next(iter(sizes(runs)), "")
  methods = ("online", "offline", "shuffled")
  found = style.tasks_with("figure_09", _at(runs, "best_of_2", size), methods)
  behind = _at(runs, main, size)
  return win_rate_against_kl(
    found,
    lambda of_task: [
      *_behind(behind, of_task[0].task, main, methods),
      *of_methods(of_task, *methods),
    ],
    common_settings=True,
  )


def figure_10(runs: Sequence[Run]) -> Drawing:
  """Policies of the next larger size, with the main size behind."""
  loss, size, larger = main_loss(runs), next(iter(sizes(runs)), ""), larger_size(runs)
  if not larger:
    raise style.missing("figure_10", ["policies larger than the main size"])
  methods = ("online", "offline", "shuffled")
  found = style.tasks_with("figure_10", _at(runs, loss, larger), methods)
  behind = _at(runs, loss, size)
  return win_rate_against_kl(
    found,
    lambda of_task: [
      *_behind(behind, of_task[0].task, size, methods),
      *(of_method(of_task, m, label=f"{style.name_of(m)}, {larger}") for m in methods),
    ],
    common_settings=True,
  )


def _behind(
  runs: Sequence[Run], task: str, what: str, methods: Sequence[str]
) -> list[Series]:
  of_task = [run for run in runs if run.task == task]
  labels = {method: f"{style.name_of(method)}, {what}" for method in methods}
  return [of_method(of_task, m, label=labels[m], behind=True) for m in methods]


def figure_13(runs: Sequence[Run]) -> Drawing:
  """The recorded stream in order, shuffled within windows, and uniformly."""
  tasks = style.tasks_with("figure_13", main_runs(runs), ("replay", "shuffled"))

  def series_of(of_task: list[Run]) -> list[Series]:
    replays = [run for run in of_task if run.method == "replay"]
    windows = sorted({run.replay_window or 0 for run in replays}, key=abs)
    colours = iter(_WINDOW_COLOURS * len(windows))
    found = []
    for window in windows:
      label = {0: "as recorded", -1: "replayed, uniformly shuffled"}.get(
        window, f"windows of {window} batches"
      )
      chosen = [run for run in replays if run.replay_window == window]
      colour = style.COLOURS["replay"] if window == 0 else next(colours)
      found.append(of_method(chosen, "replay", label, colour))
    online = of_method(of_task, "online", behind=True)
    return [online, *found, of_method(of_task, "shuffled", label="uniformly shuffled")]

  return win_rate_against_kl(tasks, series_of, common_settings=True)


def losses(runs: Sequence[Run]) -> Drawing:
  """Figure 1 for every contrastive loss that has online and offline runs."""
  size = next(iter(sizes(runs)), "")
  found: dict[str, list[Run]] = {}
  for task in dict.fromkeys(run.task for run in runs):
    for loss in sorted({run.loss for run in trained(runs)} - {"best_of_2"}):
      chosen = [run for run in _at(runs, loss, size) if run.task == task]
      if {"online", "offline"} <= {run.method for run in chosen}:
        found[f"{task}, {loss}"] = chosen
  if len({name.rsplit(", ", 1)[1] for name in found}) < 2:
    raise style.missing("losses", ["online and offline with two losses"])
  return win_rate_against_kl(
    found, lambda of_loss: of_methods(of_loss, "online", "offline")
  )
