"""Policies and the proxy as classifiers: figures 6, 7, 8 and appendix E.1."""

from collections.abc import Mapping, Sequence
import math

from matplotlib.axes import Axes
import numpy as np

from alignment.analysis.classifiers import correlation_with_accuracy
from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.intervals import (
  NORMAL_QUANTILE,
  Estimate,
  by_world,
  over_worlds,
)
from alignment.analysis.runs import Classification, Run

SERIES = ("online", "shuffled", "offline")


def figure_06(classification: Sequence[Classification]) -> Drawing:
  """Accuracy on the recorded online stream against its step, a panel per task.

  Error bars: one world, 1.96 binomial standard errors; several, a t-interval over them.
  """
  if not classification:
    raise style.missing("figure_06", ["classifiers (classification/world<w>.jsonl)"])
  tasks = list(dict.fromkeys(row.task for row in classification))
  figure, axes_list = style.panels(len(tasks))
  rows: Rows = []
  for task, axes in zip(tasks, axes_list, strict=True):
    for classifier in ("proxy_pm", "online", "offline"):
      accuracies = _accuracies(
        [
          row
          for row in classification
          if (row.task, row.classifier) == (task, classifier)
        ]
      )
      style.error_bars(
        axes,
        list(accuracies),
        {f"step {step}": estimate for step, estimate in accuracies.items()},
        classifier,
        style.name_of(classifier),
      )
      for step, estimate in accuracies.items():
        row_of = {"task": task, "classifier": classifier, "step": step}
        rows.append({"kind": "accuracy", **row_of, **style.numbers(estimate)})
    _chance(axes)
    axes.set_title(task, loc="left")
    axes.set_xlabel("step of the online run")
    axes.set_ylabel("accuracy on the online stream")
  style.shared_legend(figure, axes_list)
  return figure, rows


def _accuracies(rows: Sequence[Classification]) -> dict[int, Estimate]:
  """Step -> one classifier's accuracy over worlds."""
  of_step: dict[int, dict[int, Estimate]] = {}
  for row in rows:
    margin = NORMAL_QUANTILE * row.stderr
    low, high = row.accuracy - margin, row.accuracy + margin
    estimate = Estimate(row.accuracy, low, high, "pairs, 1 world", row.pairs)
    of_step.setdefault(row.step, {})[row.world] = estimate
  return {step: over_worlds(of_step[step]) for step in sorted(of_step)}


def _chance(axes: Axes) -> None:
  axes.axhline(0.5, color="#333333", lw=1.0, dashes=(1, 1.5), label="chance")


def _default_runs(name: str, runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
  """task -> series -> its runs of default hyper-parameters, as the paper's."""
  chosen = [run for run in runs if run.default]
  tasks = style.tasks_with(name, chosen, SERIES, "at policy's hyper-parameters")
  return {
    task: {s: [run for run in of_task if run.series == s] for s in SERIES}
    for task, of_task in tasks.items()
  }


def figure_07(runs: Sequence[Run]) -> Drawing:
  """Win rate against accuracy on D_golden, every checkpoint; a panel per task, judge.

  The legend has the correlation within runs, averaged over runs and worlds.
  CSV kinds: point, correlation.
  """
  tasks = _default_runs("figure_07", runs)
  figure, axes_of = style.panels_by_judge(
    {task: series_of["online"] for task, series_of in tasks.items()}
  )
  rows: Rows = []
  for (task, judge), axes in axes_of.items():
    for series, of_series in tasks[task].items():
      identity = {"task": task, "judge": judge, "series": series}
      rows += _draw_correlation(axes, of_series, identity)
    axes.set_xlabel("accuracy on D_golden")
    axes.set_ylabel("win rate against golden policy")
    axes.legend(fontsize=9)  # of this panel: the correlations are
  style.share_y(axes_of)
  return figure, rows


def _draw_correlation(
  axes: Axes, runs: Sequence[Run], identity: Mapping[str, str]
) -> Rows:
  """One series' checkpoints in one panel."""
  series, judge = identity["series"], identity["judge"]
  correlation = over_worlds(
    {
      world: correlation_with_accuracy(in_world, judge)
      for world, in_world in by_world(runs).items()
    }
  )
  r = "" if math.isnan(correlation.value) else f", r = {correlation.value:.2f}"
  accuracies = [run.measured_E("classification_accuracy") for run in runs]
  rates = [run.win_rates_E(judge) for run in runs]
  axes.scatter(
    np.concatenate(accuracies),
    np.concatenate(rates),
    color=style.COLOURS[series],
    marker=style.MARKERS[series],
    s=24,
    alpha=0.6,
    linewidths=0,
    label=f"{style.name_of(series)}{r}",
  )
  rows: Rows = []
  for run, accuracy_E, rate_E in zip(runs, accuracies, rates, strict=True):
    names = []
    for step, x, y in zip(run.steps_E, accuracy_E, rate_E, strict=True):
      place = {"run": run.name, "world": run.world, "step": int(step)}
      point = {"accuracy": float(x), "win_rate": float(y)}
      rows.append({"kind": "point", **identity, **place, **point})
      names.append(style.checkpoint_name(run, step, **point))
    style.name_points(axes, accuracy_E, rate_E, names)
  return [*rows, {"kind": "correlation", **identity, **style.numbers(correlation)}]


def figure_08(runs: Sequence[Run]) -> Drawing:
  """Over training: accuracy on D_golden, and log-ratios to SFT of its responses."""
  tasks = _default_runs("figure_08", runs)
  figure, axes_list = style.panels(2 * len(tasks))
  rows: Rows = []
  for i, (task, series_of) in enumerate(tasks.items()):
    top, bottom = axes_list[2 * i], axes_list[2 * i + 1]
    rows += _over_training(top, task, series_of, "classification_accuracy")
    _chance(top)
    top.set_ylabel("accuracy on D_golden")
    rows += _over_training(bottom, task, series_of, "chosen_log_ratio", "preferred")
    rows += _over_training(
      bottom, task, series_of, "rejected_log_ratio", "other", dashes=(3, 2)
    )
    bottom.set_ylabel("log-ratio on D_golden, nats")
  style.shared_legend(figure, axes_list, columns=3)
  return figure, rows


def appendix_e1(runs: Sequence[Run]) -> Drawing:
  """Over training: accuracy on pairs of the policy's own samples."""
  key = "self_classification_accuracy"
  measured = [run for run in runs if any(r[key] is not None for r in run.records)]
  tasks = _default_runs("appendix_e1", measured)
  figure, axes_list = style.panels(len(tasks))
  rows: Rows = []
  for axes, (task, series_of) in zip(axes_list, tasks.items(), strict=True):
    rows += _over_training(axes, task, series_of, key)
    _chance(axes)
    axes.set_ylabel("self-classification accuracy")
  style.shared_legend(figure, axes_list)
  return figure, rows


def _over_training(
  axes: Axes,
  task: str,
  series_of: Mapping[str, Sequence[Run]],
  key: str,
  what: str = "",
  dashes: tuple[float, ...] = (),
) -> Rows:
  """A measured key against step: every run faintly, and the mean where all have it.

  CSV kinds: run, mean.
  """
  rows: Rows = []
  for series, runs in series_of.items():
    colour, identity = style.COLOURS[series], {"task": task, "series": series}
    for run in runs:
      values_E = run.measured_E(key)
      if len(runs) > 1:
        axes.plot(run.steps_E, values_E, color=colour, lw=0.7, alpha=0.25)
      for step, value in zip(run.steps_E, values_E, strict=True):
        of_run = {"run": run.name, "world": run.world, "step": int(step)}
        rows.append(
          {"kind": "run", "measured": key, **identity, **of_run, "value": float(value)}
        )
    steps = sorted(set.intersection(*(set(run.steps_E.tolist()) for run in runs)))
    values = [
      dict(zip(run.steps_E.tolist(), run.measured_E(key), strict=True)) for run in runs
    ]
    means = [float(np.mean([by_step[step] for by_step in values])) for step in steps]
    label = style.name_of(series) + (f", {what}" if what else "")
    style_of = {"dashes": dashes} if dashes else {"marker": style.MARKERS[series]}
    axes.plot(steps, means, color=colour, lw=2.0, ms=5, label=label, **style_of)
    of_runs = f"mean of {len(runs)} run{'' if len(runs) == 1 else 's'}"
    names = [
      f"{label}, step {step}: {value:.3g}, {of_runs}"
      for step, value in zip(steps, means, strict=True)
    ]
    style.name_points(axes, steps, means, names)
    for step, value in zip(steps, means, strict=True):
      rows.append(
        {"kind": "mean", "measured": key, **identity, "step": step, "value": value}
      )
  axes.set_title(task, loc="left")
  axes.set_xlabel("step")
  return rows
