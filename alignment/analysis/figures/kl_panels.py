"""Panels of win rate against KL, which most figures of the paper consist of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from matplotlib.axes import Axes
import numpy as np

from alignment.analysis.envelopes import KL_FLOOR, RESAMPLES, envelope, upper_envelope
from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.intervals import by_world
from alignment.analysis.length_control import AT_EQUAL_LENGTH
from alignment.analysis.runs import Run
from alignment.analysis.selection import matched


@dataclasses.dataclass(frozen=True)
class Line:
  """The runs that share an envelope in a panel: a series, or some of its runs."""

  label: str
  runs: list[Run]
  colour: str
  marker: str
  behind: bool = False  # for comparison: a dashed envelope without a cloud

  def identity(self, judge: str) -> dict[str, Any]:
    """What its rows of the CSV begin with."""
    run = self.runs[0]
    keys = ("task", "loss", "size", "series", "replay_window")
    return {"judge": judge, "label": self.label} | {k: getattr(run, k) for k in keys}


def line_of(
  runs: Sequence[Run],
  series: str,
  label: str = "",
  colour: str = "",
  behind: bool = False,
) -> Line:
  return Line(
    label or style.name_of(series),
    [run for run in runs if run.series == series],
    colour or style.COLOURS.get(series, "#666666"),
    style.MARKERS.get(series, "X"),
    behind,
  )


def lines_of(runs: Sequence[Run], *series: str) -> list[Line]:
  return [line_of(runs, each) for each in series]


def win_rate_against_kl(
  tasks: Mapping[str, Sequence[Run]],
  lines_in: Callable[[list[Run]], list[Line]],
  *,
  common_settings: bool = False,
  resamples: int = RESAMPLES,
) -> Drawing:
  """Win rate against KL: a panel per task and judge, a cloud per line.

  Every checkpoint is a point, but for those below `KL_FLOOR` nats, which a logarithmic
  axis cannot show. The steps are each line's upper envelope over all its runs (best
  win rate within a KL budget, selected on one half of the prompts and reported on the
  other) with a 95 % bootstrap band over prompts. Best-of-n is a line through its n. The
  dashed level is the golden policy, which wins half of its games against itself; the
  dotted one is SFT.

  CSV kinds: point, envelope (with low and high), envelope_naive (the plain cumulative
  maximum, biased upwards; for comparison, not drawn), best_of_n, level.

  Args:
    tasks: the panels' name -> its runs.
    lines_in: what to draw of a panel's runs; lines without runs are left out.
    common_settings: only runs at the settings that all lines have
      (`selection.matched`): an envelope over more would be higher for that alone.
    resamples: of the bands.
  """
  figure, axes_of = style.panels_by_judge(tasks)
  lines = {
    task: [line for line in lines_in(list(runs)) if line.runs]
    for task, runs in tasks.items()
  }
  if common_settings:
    lines = {task: _at_common_settings(of_task) for task, of_task in lines.items()}
  legend = _legend([line for of_task in lines.values() for line in of_task])
  rows: Rows = []
  for (task, judge), axes in axes_of.items():
    for line in lines[task]:
      rows += _draw_line(axes, line, legend[line.label], judge, resamples)
    rows += _draw_levels(axes, tasks[task], task, judge, lines[task])
    axes.set_ylabel("win rate against golden policy")
    style.log_kl_axis(axes)
  style.share_y(axes_of)
  style.shared_legend(figure, axes_of.values())
  return figure, rows


def _at_common_settings(lines: list[Line]) -> list[Line]:
  kept = matched([line.runs for line in lines])
  return [
    dataclasses.replace(line, runs=runs) for line, runs in zip(lines, kept, strict=True)
  ]


def _legend(lines: Sequence[Line]) -> dict[str, str]:
  """Label -> that with the number of its runs, if all panels have the same.

  And with the mean length of its responses, where a judge compares at equal length.
  """
  lines_of_label: dict[str, list[Line]] = {}
  for line in lines:
    lines_of_label.setdefault(line.label, []).append(line)
  return {label: _in_words(label, some) for label, some in lines_of_label.items()}


def _in_words(label: str, lines: Sequence[Line]) -> str:
  n, *others = {len(line.runs) for line in lines}
  parts = [] if others else [f"{n} run{'' if n == 1 else 's'}"]
  parts += _tokens([run for line in lines for run in line.runs])
  return f"{label} ({', '.join(parts)})" if parts else label


def _tokens(runs: Sequence[Run]) -> list[str]:
  """The mean length of their responses, where a judge compares at equal length."""
  if not runs or AT_EQUAL_LENGTH not in runs[0].wins:
    return []
  tokens = np.concatenate([run.measured_E("response_length") for run in runs])
  return [f"{tokens.mean():.0f} tokens"]


def _draw_line(axes: Axes, line: Line, legend: str, judge: str, resamples: int) -> Rows:
  if line.runs[0].series == "best_of_n":
    return _draw_best_of_n(axes, line, judge)
  look: dict[str, Any] = {"color": line.colour, "lw": 2.0}
  if line.behind:
    look |= {"lw": 1.3, "dashes": (4, 2), "alpha": 0.7}
    # Line and mark in the legend.
    axes.plot([], [], label=legend, **look)
    return _draw_envelope(axes, line, judge, resamples, look)
  cloud = [point for run in line.runs for point in _points(run, judge)]
  kl_N = np.array([point.kl for point in cloud])
  rate_N = np.array([point.win_rate for point in cloud])
  axes.scatter(
    kl_N,
    rate_N,
    s=20,
    color=line.colour,
    marker=line.marker,
    alpha=0.35,
    linewidths=1.0 if line.marker == "x" else 0,
  )
  style.name_points(axes, kl_N, rate_N, [point.name for point in cloud])
  axes.plot([], [], marker=line.marker, label=legend, **look)
  identity = line.identity(judge)
  return [
    *({"kind": "point", **identity, **point.row()} for point in cloud),
    *_draw_envelope(axes, line, judge, resamples, look),
    *(
      {"kind": "envelope_naive", **identity, "kl": float(kl), "win_rate": float(rate)}
      for kl, rate in zip(*upper_envelope(kl_N, rate_N), strict=True)
    ),
  ]


@dataclasses.dataclass(frozen=True)
class _Point:
  """A checkpoint above the KL floor."""

  run: Run
  step: int
  kl: float
  win_rate: float

  @property
  def name(self) -> str:
    return style.checkpoint_name(
      self.run, self.step, KL=self.kl, win_rate=self.win_rate
    )

  def row(self) -> dict[str, Any]:
    keys = ("world", "beta", "learning_rate", "seed")
    settings = {key: getattr(self.run, key) for key in keys}
    measured = {"step": self.step, "kl": self.kl, "win_rate": self.win_rate}
    return {"run": self.run.name, **settings, **measured}


def _points(run: Run, judge: str) -> Iterator[_Point]:
  for step, kl, rate in zip(run.steps_E, run.kl_E, run.win_rates_E(judge), strict=True):
    if kl >= KL_FLOOR:
      yield _Point(run, int(step), float(kl), float(rate))


def _draw_envelope(
  axes: Axes, line: Line, judge: str, resamples: int, look: Mapping[str, Any]
) -> Rows:
  kl_G, rate_G, low_G, high_G = envelope(line.runs, judge, resamples)
  axes.plot(kl_G, rate_G, **look)
  if not line.behind:
    axes.fill_between(kl_G, low_G, high_G, color=line.colour, alpha=0.15, linewidth=0)
  return [
    {"kind": "envelope", **line.identity(judge)}
    | {"kl": float(kl), "win_rate": float(rate), "low": float(low), "high": float(high)}
    for kl, rate, low, high in zip(kl_G, rate_G, low_G, high_G, strict=True)
  ]


def _draw_best_of_n(axes: Axes, line: Line, judge: str) -> Rows:
  """The mean over worlds at every n that all of them have."""
  ns = sorted(set.intersection(*(set(run.steps_E.tolist()) for run in line.runs)))
  at = {n: [(run, run.steps_E.tolist().index(n)) for run in line.runs] for n in ns}
  kl_of = {n: float(np.mean([run.kl_E[i] for run, i in at[n]])) for n in ns}
  ns = [n for n in ns if kl_of[n] >= KL_FLOOR]
  rate_of = {
    n: float(np.mean([run.win_rates_E(judge)[i] for run, i in at[n]])) for n in ns
  }
  kls, rates = [kl_of[n] for n in ns], [rate_of[n] for n in ns]
  names = [
    f"best of {n} from SFT: KL {kl:.3g}, win rate {rate:.3g}"
    for n, kl, rate in zip(ns, kls, rates, strict=True)
  ]
  style.name_points(axes, kls, rates, names)
  axes.plot(
    kls,
    rates,
    color=line.colour,
    marker=line.marker,
    ms=5,
    lw=1.2,
    label="best of n from SFT",
  )
  return [
    {"kind": "best_of_n", **line.identity(judge)}
    | {"step": n, "kl": kl_of[n], "win_rate": rate_of[n]}
    for n in ns
  ]


def _draw_levels(
  axes: Axes, runs: Sequence[Run], task: str, judge: str, lines: Sequence[Line]
) -> Rows:
  rows: Rows = []
  size = next((line.runs[0].size for line in lines if not line.behind), None)
  sft = [run for run in runs if run.series == "sft" and run.size == size]
  golden = [run for run in runs if run.series == "golden_policy"]
  rates = [
    np.mean([run.win_rates_E(judge)[-1] for run in in_world])
    for in_world in by_world(sft).values()
  ]
  for series, level, label, dashes in (
    ("golden_policy", 0.5 if golden else None, "golden policy (0.5)", (5, 2)),
    ("sft", float(np.mean(rates)) if rates else None, "SFT", (1, 1.5)),
  ):
    if level is not None:
      label = ", ".join([label, *_tokens(golden if series == "golden_policy" else sft)])
      axes.axhline(level, color="#333333", lw=1.1, dashes=dashes, label=label)
      row = {"task": task, "judge": judge, "series": series, "win_rate": level}
      rows.append({"kind": "level", **row})
  return rows
