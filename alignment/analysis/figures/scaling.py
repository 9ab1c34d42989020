"""Dials, with intervals: policy size (figures 11, 14), staleness, hybrid batches."""

from collections.abc import Callable, Iterable, Sequence
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alignment.analysis.envelopes import RESAMPLES, gap_at_equal_kl, peak_gap
from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.figures.win_rate import main_runs
from alignment.analysis.intervals import Estimate, by_world, over_prompts, over_worlds
from alignment.analysis.measures import best_result_R
from alignment.analysis.runs import Run
from alignment.analysis.selection import main_loss, matched, matched_sizes, sizes

METHODS = ("online", "shuffled", "offline")


def figure_11(runs: Sequence[Run]) -> Drawing:
  """Best results by policy size, relative to online's."""
  return _best_results("figure_11", runs, relative=True)


def figure_14(runs: Sequence[Run]) -> Drawing:
  """Best results by policy size."""
  return _best_results("figure_14", runs, relative=False)


def _best_results(name: str, runs: Sequence[Run], relative: bool) -> Drawing:
  """The 90 % quantile over all of a method's evaluations, per policy size.

  Of the runs at the sizes, and the settings, that all three methods have. A panel per
  task and judge; x is log2 of the parameters relative to the main size. Intervals: over
  prompts in one world, over worlds in several.
  """
  loss, main = main_loss(runs), next(iter(sizes(runs)), "")
  tasks = style.tasks_with(name, [run for run in runs if run.loss == loss], METHODS)
  tasks = {task: _at_common_settings(of_task) for task, of_task in tasks.items()}
  tasks = {t: of for t, of in tasks.items() if len({run.size for run in of}) > 1}
  if not tasks:
    raise style.missing(name, ["online, shuffled and offline at a second policy size"])
  parameters_of = {run.size: run.parameters for of in tasks.values() for run in of}
  if main not in parameters_of:  # it has no runs of all three methods
    main = min(parameters_of, key=lambda size: parameters_of[size])
  at_main = parameters_of[main]
  drawn = [(task, judge) for task, of in tasks.items() for judge in of[0].wins]
  figure, axes_list = style.panels(len(drawn))
  axes_of = dict(zip(drawn, axes_list, strict=True))
  rows: Rows = []
  for (task, judge), axes in axes_of.items():
    of_task = tasks[task]
    for method in METHODS:
      found: dict[int, Estimate] = {}
      for parameters in sorted({run.parameters for run in of_task}):
        of_size = [run for run in of_task if run.parameters == parameters]
        per_world = {
          world: _best_result(in_world, method, judge, relative)
          for world, in_world in by_world(of_size).items()
          if {method, "online"} <= {run.method for run in in_world}
        }
        if per_world:
          found[parameters] = over_worlds(per_world)
          size = of_size[0].size
          rows.append(
            {"kind": "best result", "task": task, "judge": judge, "method": method}
            | {"size": size, "parameters": parameters}
            | {"log2_relative": math.log2(parameters / at_main)}
            | style.numbers(found[parameters])
          )
      x = [math.log2(parameters / at_main) for parameters in found]
      style.error_bars(axes, x, list(found.values()), method, style.name_of(method))
    axes.set_title(f"{task}, {style.judged_by(judge)}", loc="left")
    axes.set_xlabel(f"log2 of parameters relative to {main}")
    axes.set_ylabel("90 % quantile" + (", minus online's" if relative else ""))
  style.share_y(axes_of)
  style.shared_legend(figure, axes_list)
  return figure, rows


def _at_common_settings(runs: Sequence[Run]) -> list[Run]:
  groups = [[run for run in runs if run.method == method] for method in METHODS]
  return [run for group in matched_sizes(groups) for run in group]


def _best_result(
  runs: Sequence[Run], method: str, judge: str, relative: bool
) -> Estimate:
  of = {m: [run for run in runs if run.method == m] for m in (method, "online")}
  best_R = best_result_R(of[method], judge, RESAMPLES)
  if relative:
    best_R = best_R - best_result_R(of["online"], judge, RESAMPLES)
  return over_prompts(best_R, of[method])


# --- Beyond the paper -----------------------------------------------------------------


def staleness(runs: Sequence[Run]) -> Drawing:
  """Win rate minus online's, against the steps between refreshes of the sampler.

  1 is online; never (the SFT policy's samples, labelled by the proxy) is drawn past the
  largest number. Offline, which learns from D_golden, is a level.
  """
  tasks = style.tasks_with("staleness", main_runs(runs), ("online", "semi_online"))
  never = _never(tasks)
  figure, rows, axes_list, ticks = _dial(
    tasks, "semi_online", lambda run: float(run.refresh_every or never)
  )
  for axes in axes_list:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    at = sorted({*ticks, 1.0})
    axes.set_xlim(0.8, 1.25 * at[-1])
    axes.xaxis.set_major_locator(FixedLocator(at))
    names = ["never" if x == never else f"{x:g}" for x in at]
    axes.xaxis.set_major_formatter(FixedFormatter(names))
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
    tasks, "hybrid", lambda run: float(run.on_policy_fraction or 0), offline_at=0.0
  )
  for axes in axes_list:
    axes.set_xlim(-0.05, 1.05)  # where 1 is online
    axes.set_xlabel("fraction of on-policy pairs")
  return figure, rows


def _dial(
  tasks: dict[str, list[Run]],
  method: str,
  position: Callable[[Run], float],
  offline_at: float | None = None,
) -> tuple[Figure, Rows, list[Axes], set[float]]:
  """A panel per task and judge: peak gap and gap at equal KL to online, per position.

  Runs are compared at the settings that all three methods have. Without `offline_at`,
  offline is a level. CSV kinds: peak, equal KL.

  Returns (figure, rows, axes, positions drawn).
  """
  drawn = [(task, judge) for task, of in tasks.items() for judge in of[0].wins]
  figure, axes_list = style.panels(len(drawn))
  axes_of = dict(zip(drawn, axes_list, strict=True))
  rows: Rows = []
  ticks: set[float] = set()
  for (task, judge), axes in axes_of.items():
    dial, online, offline = matched(
      [[r for r in tasks[task] if r.method == m] for m in (method, "online", "offline")]
    )
    of: dict[tuple[str, float], list[Run]] = {}
    for run in dial:
      of.setdefault((method, position(run)), []).append(run)
    if offline:
      of["offline", math.nan if offline_at is None else offline_at] = offline
    keys = sorted(of, key=lambda key: key[1])
    for kind, gap, dashes, fill in (
      ("peak", peak_gap, (), None),
      ("equal KL", gap_at_equal_kl, (3, 2), "white"),
    ):
      found = {key: _to_online(of[key], online, gap, judge) for key in keys}
      for (drawn_method, at), estimate in found.items():
        row = {"task": task, "judge": judge, "method": drawn_method, "position": at}
        rows.append({"kind": kind, **row, **style.numbers(estimate)})
      placed = {key[1]: e for key, e in found.items() if not math.isnan(key[1])}
      ticks |= placed.keys()
      look = {"markerfacecolor": fill} if fill else {}
      label = f"{style.name_of(method)}, {'at equal KL' if dashes else 'peak'}"
      style.error_bars(
        axes, list(placed), list(placed.values()), method, label,
        linestyle=(0, dashes) if dashes else "-", **look,
      )  # fmt: skip
      _offline_level(axes, found, kind, dashes)
    axes.axhline(0, color=style.COLOURS["online"], lw=1.3, label="online")
    axes.set_title(f"{task}, {style.judged_by(judge)}", loc="left")
    axes.set_ylabel("win rate minus online's")
  style.share_y(axes_of)
  style.shared_legend(figure, axes_list, columns=3)
  return figure, rows, axes_list, ticks


def _offline_level(
  axes: Axes,
  found: dict[tuple[str, float], Estimate],
  kind: str,
  dashes: tuple[float, ...],
) -> None:
  for (method, at), estimate in found.items():
    if method == "offline" and math.isnan(at) and not math.isnan(estimate.value):
      label = f"offline, {'at equal KL' if dashes else 'peak'}"
      axes.axhline(
        estimate.value,
        color=style.COLOURS["offline"],
        lw=1.3,
        linestyle=(0, dashes) if dashes else "-",
        label=label,
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
