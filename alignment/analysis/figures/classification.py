"""Policies and the proxy as classifiers: figures 6, 7, 8 and appendix E.1."""

from collections.abc import Sequence
import math

from matplotlib.axes import Axes
import numpy as np

from alignment.analysis.figures import style
from alignment.analysis.figures.style import Drawing, Rows
from alignment.analysis.intervals import (
  NORMAL_QUANTILE,
  Estimate,
  by_world,
  over_worlds,
)
from alignment.analysis.measures import correlation_with_accuracy
from alignment.analysis.runs import Classification, Run

METHODS = ("online", "shuffled", "offline")


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
    of_task = [row for row in classification if row.task == task]
    for classifier in ("proxy_pm", "online", "offline"):
      of_step: dict[int, dict[int, Estimate]] = {}
      for row in of_task:
        if row.classifier == classifier:
          margin = NORMAL_QUANTILE * row.stderr
          of_step.setdefault(row.step, {})[row.world] = Estimate(
            row.accuracy,
            row.accuracy - margin,
            row.accuracy + margin,
            "pairs, 1 world",
            row.pairs,
          )
      found = {step: over_worlds(of_step[step]) for step in sorted(of_step)}
      style.error_bars(
        axes, list(found), list(found.values()), classifier, style.name_of(classifier)
      )
      for step, estimate in found.items():
        row_of = {"task": task, "classifier": classifier, "step": step}
        rows.append({"kind": "accuracy", **row_of, **style.numbers(estimate)})
    _chance(axes)
    axes.set_title(task, loc="left")
    axes.set_xlabel("step of the online run")
    axes.set_ylabel("accuracy on the online stream")
  style.shared_legend(figure, axes_list)
  return figure, rows


def _chance(axes: Axes) -> None:
  axes.axhline(0.5, color="#333333", lw=1.0, dashes=(1, 1.5), label="chance")


def _default_runs(name: str, runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
  """task -> method -> its runs of default hyper-parameters, as the paper's."""
  chosen = [run for run in runs if run.default]
  tasks = style.tasks_with(name, chosen, METHODS, "at policy's hyper-parameters")
  return {
    task: {m: [run for run in of_task if run.method == m] for m in METHODS}
    for task, of_task in tasks.items()
  }


def figure_07(runs: Sequence[Run]) -> Drawing:
  """Win rate against accuracy on D_golden, every checkpoint; a panel per task, judge.

  The legend has the correlation within runs, averaged over runs and worlds.
  CSV kinds: point, correlation.
  """
  tasks = _default_runs("figure_07", runs)
  drawn = [(t, judge) for t, of in tasks.items() for judge in of["online"][0].wins]
  figure, axes_list = style.panels(len(drawn))
  axes_of = dict(zip(drawn, axes_list, strict=True))
  rows: Rows = []
  for (task, judge), axes in axes_of.items():
    panel = {"task": task, "judge": judge}
    for method, of_method in tasks[task].items():
      points: Rows = []
      for run in of_method:
        accuracy_E, rate_E = (
          run.measured_E("classification_accuracy"),
          run.win_rates_E(judge),
        )
        for step, x, y in zip(run.steps_E, accuracy_E, rate_E, strict=True):
          point = {"run": run.name, "world": run.world, "step": int(step)}
          points.append(
            {"kind": "point", **panel, "method": method, **point}
            | {"accuracy": float(x), "win_rate": float(y)}
          )
      correlation = over_worlds(
        {
          w: correlation_with_accuracy(of, judge)
          for w, of in by_world(of_method).items()
        }
      )
      r = "" if math.isnan(correlation.value) else f", r = {correlation.value:.2f}"
      axes.scatter(
        [point["accuracy"] for point in points],
        [point["win_rate"] for point in points],
        color=style.COLOURS[method],
        marker=style.MARKERS[method],
        s=24,
        alpha=0.6,
        linewidths=0,
        label=f"{style.name_of(method)}{r}",
      )
      rows += points
      rows.append(
        {"kind": "correlation", **panel, "method": method, **style.numbers(correlation)}
      )
    axes.set_title(f"{task}, {style.judged_by(judge)}", loc="left")
    axes.set_xlabel("accuracy on D_golden")
    axes.set_ylabel("win rate against golden policy")
    axes.legend(fontsize=9)  # of this panel: the correlations are
  style.share_y(axes_of)
  return figure, rows


def figure_08(runs: Sequence[Run]) -> Drawing:
  """Over training: accuracy on D_golden, and log-ratios to SFT of its responses."""
  tasks = _default_runs("figure_08", runs)
  figure, axes_list = style.panels(2 * len(tasks))
  rows: Rows = []
  for i, (task, of_methods) in enumerate(tasks.items()):
    top, bottom = axes_list[2 * i], axes_list[2 * i + 1]
    rows += _over_training(top, task, of_methods, "classification_accuracy")
    _chance(top)
    top.set_ylabel("accuracy on D_golden")
    rows += _over_training(bottom, task, of_methods, "chosen_log_ratio", "preferred")
    rows += _over_training(
      bottom, task, of_methods, "rejected_log_ratio", "other", dashes=(3, 2)
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
  for axes, (task, of_methods) in zip(axes_list, tasks.items(), strict=True):
    rows += _over_training(axes, task, of_methods, key)
    _chance(axes)
    axes.set_ylabel("self-classification accuracy")
  style.shared_legend(figure, axes_list)
  return figure, rows


def _over_training(
  axes: Axes,
  task: str,
  of_methods: dict[str, list[Run]],
  key: str,
  what: str = "",
  dashes: tuple[float, ...] = (),
) -> Rows:
  """A measured key against step: every run faintly, and the mean where all have it.

  CSV kinds: run, mean.
  """
  rows: Rows = []
  for method, runs in of_methods.items():
    colour, identity = style.COLOURS[method], {"task": task, "method": method}
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
    means = [float(np.mean([of[step] for of in values])) for step in steps]
    label = style.name_of(method) + (f", {what}" if what else "")
    style_of = {"dashes": dashes} if dashes else {"marker": style.MARKERS[method]}
    axes.plot(steps, means, color=colour, lw=2.0, ms=5, label=label, **style_of)
    for step, value in zip(steps, means, strict=True):
      rows.append(
        {"kind": "mean", "measured": key, **identity, "step": step, "value": value}
      )
  axes.set_title(task, loc="left")
  axes.set_xlabel("step")
  return rows
