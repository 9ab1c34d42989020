"""Dials, with intervals: policy size (figures 11, 14), staleness, hybrid batches."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alignment.analysis.envelopes import RESAMPLES
from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.figures.win_rate import main_runs
from alignment.analysis.gaps import gap_at_equal_kl, peak_gap
from alignment.analysis.intervals import Estimate, by_world, over_prompts, over_worlds
from alignment.analysis.runs import Run
from alignment.analysis.selection import main_loss, matched, matched_sizes, sizes
from alignment.analysis.size_trends import best_result_R

SERIES = ("online", "shuffled", "offline")


def figure_11(runs: Sequence[Run]) -> Drawing:
  """Best results by policy size, relative to online's."""
  return _best_results("figure_11", runs, relative=True)


def figure_14(runs: Sequence[Run]) -> Drawing:
  """Best results by policy size."""
  return _best_results("figure_14", runs, relative=False)


def _best_results(name: str, runs: Sequence[Run], relative: bool) -> Drawing:
  """The 90 % quantile over all of a series' evaluations, per policy size.

  Of the runs at the sizes, and the settings, that all three series have. A panel per
  task and judge; x is log2 of the parameters relative to the main size. Intervals: over
  prompts in one world, over worlds in several.
  """
  loss, main = main_loss(runs), next(iter(sizes(runs)), "")
  tasks = style.tasks_with(name, [run for run in runs if run.loss == loss], SERIES)
  tasks = {task: _at_common_settings(of_task) for task, of_task in tasks.items()}
  tasks = {t: rs for t, rs in tasks.items() if len({run.size for run in rs}) > 1}
  if not tasks:
    raise style.missing(name, ["online, shuffled and offline at a second policy size"])
  parameters_of = {run.size: run.parameters for rs in tasks.values() for run in rs}
  if main not in parameters_of:  # it has no runs of all three series
    main = min(parameters_of, key=lambda size: parameters_of[size])
  figure, axes_of = style.panels_by_judge(tasks)
  rows: Rows = []
  for (task, judge), axes in axes_of.items():
    for series in SERIES:
      best = _best_by_size(tasks[task], series, judge, relative)
      x = [math.log2(parameters_of[size] / parameters_of[main]) for size in best]
      style.error_bars(axes, x, best, series, style.name_of(series))
      for (size, estimate), at in zip(best.items(), x, strict=True):
        row = {"task": task, "judge": judge, "series": series, "size": size}
        place = {"parameters": parameters_of[size], "log2_relative": at}
        rows.append({"kind": "best result", **row, **place, **style.numbers(estimate)})
    axes.set_xlabel(f"log2 of parameters relative to {main}")
    axes.set_ylabel("90 % quantile" + (", minus online's" if relative else ""))
  style.share_y(axes_of)
  style.shared_legend(figure, axes_of.values())
  return figure, rows


def _at_common_settings(runs: Sequence[Run]) -> list[Run]:
  groups = [[run for run in runs if run.series == series] for series in SERIES]
  return [run for group in matched_sizes(groups) for run in group]


def _best_by_size(
  runs: Sequence[Run], series: str, judge: str, relative: bool
) -> dict[str, Estimate]:
  """Size -> best result over worlds, the smallest size first."""
  parameters_of = {run.size: run.parameters for run in runs}
  best = {}
  for size in sorted(parameters_of, key=lambda size: parameters_of[size]):
    of_size = [run for run in runs if run.size == size]
    per_world = {
      world: _best_result(in_world, series, judge, relative)
      for world, in_world in by_world(of_size).items()
      if {series, "online"} <= {run.series for run in in_world}
    }
    if per_world:
      best[size] = over_worlds(per_world)
  return best


def _best_result(
  runs: Sequence[Run], series: str, judge: str, relative: bool
) -> Estimate:
  chosen = [run for run in runs if run.series == series]
  best_R = best_result_R(chosen, judge, RESAMPLES)
  if relative:
    online = [run for run in runs if run.series == "online"]
    best_R = best_R - best_result_R(online, judge, RESAMPLES)
  return over_prompts(best_R, chosen)


# --- Beyond the paper -----------------------------------------------------------------


def staleness(runs: Sequence[Run]) -> Drawing:
  """Win rate minus online's, against the steps between refreshes of the sampler.

  1 is online; never (the SFT policy's samples, labelled by the proxy) is drawn past the
  largest number. Offline, which learns from D_golden, is a level.
  """
  tasks = style.tasks_with("staleness", main_runs(runs), ("online", "semi_online"))
  never = _never(tasks)

  def in_words(position: float) -> str:
    return "never" if position == never else f"{position:g}"

  figure, rows, axes_list, ticks = _dial(
    tasks, "semi_online", lambda run: float(run.refresh_every or never), in_words
  )
  for axes in axes_list:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    at = sorted({*ticks, 1.0})
    axes.set_xlim(0.8, 1.25 * at[-1])
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_major_formatter(FixedFormatter(list(map(in_words, at))))
    axes.set_xlabel("steps between refreshes of the sampling policy")
  for row in rows:
    row["position"] = "never" if row["position"] == never else row["position"]
  return figure, rows


def _never(tasks: dict[str, list[Run]]) -> float:
  """Where "never" is drawn: so far beyond the largest period that it stands apart."""
  periods = [run.refresh_every or 0 for runs in tasks.values() for run in runs]
  return 4.0 * max(periods)


def hybrid(runs: Sequence[Run]) -> Drawing:
  """Win rate minus online's, against the fraction of on-policy pairs in a batch."""
  tasks = style.tasks_with("hybrid", main_runs(runs), ("online", "hybrid"))
  figure, rows, axes_list, _ = _dial(
    tasks,
    "hybrid",
    lambda run: float(run.on_policy_fraction or 0),
    "{:g}".format,
    offline_at=0.0,
  )
  for axes in axes_list:
    axes.set_xlim(-0.05, 1.05)  # where 1 is online
    axes.set_xlabel("fraction of on-policy pairs")
  return figure, rows


@dataclasses.dataclass(frozen=True)
class _Gap:
  """One of the two differences to online that a dial shows, and how it is drawn."""

  kind: str  # of the CSV's rows
  words: str  # for the legend
  measure: Callable[..., Estimate]
  linestyle: Any
  marker: dict[str, str]


_GAPS = (
  _Gap("peak", "peak", peak_gap, "-", {}),
  _Gap(
    "equal KL", "at equal KL", gap_at_equal_kl, (0, (3, 2)),
    {"markerfacecolor": "white"},
  ),
)  # fmt: skip


def _dial(
  tasks: dict[str, list[Run]],
  series: str,
  position: Callable[[Run], float],
  in_words: Callable[[float], str],
  offline_at: float = math.nan,
) -> tuple[Figure, Rows, list[Axes], set[float]]:
  """A panel per task and judge: peak gap and gap at equal KL to online, per position.

  Runs are compared at the settings that all three series have. Without `offline_at`,
  offline is a level. CSV kinds: peak, equal KL.

  Returns (figure, rows, axes, positions drawn).
  """
  figure, axes_of = style.panels_by_judge(tasks)
  rows: Rows = []
  positions: set[float] = set()
  for (task, judge), axes in axes_of.items():
    dial, online, offline = matched(
      [[r for r in tasks[task] if r.series == s] for s in (series, "online", "offline")]
    )
    places: dict[tuple[str, float], list[Run]] = {}  # (series, position) -> its runs
    for run in dial:
      places.setdefault((series, position(run)), []).append(run)
    if offline:
      places["offline", offline_at] = offline
    places = {key: places[key] for key in sorted(places, key=lambda key: key[1])}
    positions |= {at for _, at in places if not math.isnan(at)}
    for gap in _GAPS:
      estimates = {
        key: _to_online(runs, online, gap.measure, judge)
        for key, runs in places.items()
      }
      for (placed, at), estimate in estimates.items():
        row = {"task": task, "judge": judge, "series": placed, "position": at}
        rows.append({"kind": gap.kind, **row, **style.numbers(estimate)})
      _draw_dial(axes, series, gap, estimates, in_words)
    axes.axhline(0, color=style.COLOURS["online"], lw=1.3, label="online")
    axes.set_ylabel("win rate minus online's")
  style.share_y(axes_of)
  style.shared_legend(figure, axes_of.values(), columns=3)
  return figure, rows, list(axes_of.values()), positions


def _draw_dial(
  axes: Axes,
  series: str,
  gap: _Gap,
  estimates: dict[tuple[str, float], Estimate],
  in_words: Callable[[float], str],
) -> None:
  """Estimates at their positions; offline without one as a level."""
  placed = {at: e for (_, at), e in estimates.items() if not math.isnan(at)}
  named = {in_words(at): estimate for at, estimate in placed.items()}
  style.error_bars(
    axes, list(placed), named, series,
    f"{style.name_of(series)}, {gap.words}", linestyle=gap.linestyle, **gap.marker,
  )  # fmt: skip
  for (_, at), estimate in estimates.items():
    if math.isnan(at) and not math.isnan(estimate.value):
      axes.axhline(
        estimate.value,
        color=style.COLOURS["offline"],
        lw=1.3,
        linestyle=gap.linestyle,
        label=f"offline, {gap.words}",
      )


def _to_online(
  runs: Iterable[Run],
  online: Sequence[Run],
  gap: Callable[..., Estimate],
  judge: str,
) -> Estimate:
  per_world = {}
  online_of = by_world(online)
  for world, in_world in by_world(list(runs)).items():
    if world in online_of:
      per_world[world] = gap(in_world, online_of[world], judge)
  return over_worlds(per_world)
