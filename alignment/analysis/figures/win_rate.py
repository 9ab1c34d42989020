"""Win rate against KL: figures 1, 4, 5, 9, 10, 12, 13, and figure 1 for every loss."""

from collections.abc import Callable, Sequence

from alignment.analysis.figures import style
from alignment.analysis.figures.kl_panels import (
  Line,
  line_of,
  lines_of,
  win_rate_against_kl,
)
from alignment.analysis.figures.style import Drawing
from alignment.analysis.runs import Run
from alignment.analysis.selection import larger_size, main_loss, sizes, trained

_WINDOW_COLOURS = ("#56B4E9", "#CC79A7", "#E69F00", "#F0E442")
SERIES = ("online", "offline", "shuffled")


def _at(runs: Sequence[Run], loss: str, size: str) -> list[Run]:
  """The runs of one loss and size; levels and best-of-n have no loss of their own."""
  policies = {id(run) for run in trained(runs)}
  return [
    run
    for run in runs
    if (run.size == size or run.series == "golden_policy")
    and (run.loss == loss or id(run) not in policies)
  ]


def main_runs(runs: Sequence[Run]) -> list[Run]:
  """The runs of the main loss and size, with the levels."""
  return _at(runs, main_loss(runs), next(iter(sizes(runs)), ""))


def figure_01(runs: Sequence[Run]) -> Drawing:
  """Online and offline, with best-of-n for reference."""
  runs = main_runs(runs)
  either = [run.task for run in runs if run.series in ("online", "offline")]
  if not either:
    raise style.missing("figure_01", ["online", "offline"])
  tasks = {t: [run for run in runs if run.task == t] for t in dict.fromkeys(either)}
  return win_rate_against_kl(
    tasks, lambda of_task: lines_of(of_task, "online", "offline", "best_of_n")
  )


def _compared(
  name: str, *series: str, common_settings: bool = False
) -> Callable[[Sequence[Run]], Drawing]:
  def draw(runs: Sequence[Run]) -> Drawing:
    tasks = style.tasks_with(name, main_runs(runs), series)
    return win_rate_against_kl(
      tasks,
      lambda of_task: lines_of(of_task, *series),
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
  tasks = style.tasks_with("figure_09", _at(runs, "best_of_2", size), SERIES)
  behind = _at(runs, main, size)
  return win_rate_against_kl(
    tasks,
    lambda of_task: [
      *_behind(behind, of_task[0].task, main),
      *lines_of(of_task, *SERIES),
    ],
    common_settings=True,
  )


def figure_10(runs: Sequence[Run]) -> Drawing:
  """Policies of the next larger size, with the main size behind."""
  loss, size, larger = main_loss(runs), next(iter(sizes(runs)), ""), larger_size(runs)
  if not larger:
    raise style.missing("figure_10", ["policies larger than the main size"])
  tasks = style.tasks_with("figure_10", _at(runs, loss, larger), SERIES)
  behind = _at(runs, loss, size)
  return win_rate_against_kl(
    tasks,
    lambda of_task: [
      *_behind(behind, of_task[0].task, size),
      *(line_of(of_task, s, label=f"{style.name_of(s)}, {larger}") for s in SERIES),
    ],
    common_settings=True,
  )


def _behind(runs: Sequence[Run], task: str, what: str) -> list[Line]:
  of_task = [run for run in runs if run.task == task]
  return [
    line_of(of_task, series, label=f"{style.name_of(series)}, {what}", behind=True)
    for series in SERIES
  ]


def figure_13(runs: Sequence[Run]) -> Drawing:
  """The recorded stream in order, shuffled within windows, and uniformly."""
  tasks = style.tasks_with("figure_13", main_runs(runs), ("replay", "shuffled"))

  def lines_in(of_task: list[Run]) -> list[Line]:
    replays = [run for run in of_task if run.series == "replay"]
    windows = sorted({run.replay_window or 0 for run in replays}, key=abs)
    colours = iter(_WINDOW_COLOURS * len(windows))
    lines = []
    for window in windows:
      label = {0: "as recorded", -1: "replayed, uniformly shuffled"}.get(
        window, f"windows of {window} batches"
      )
      chosen = [run for run in replays if run.replay_window == window]
      colour = style.COLOURS["replay"] if window == 0 else next(colours)
      lines.append(line_of(chosen, "replay", label, colour))
    online = line_of(of_task, "online", behind=True)
    return [online, *lines, line_of(of_task, "shuffled", label="uniformly shuffled")]

  return win_rate_against_kl(tasks, lines_in, common_settings=True)


def every_loss(runs: Sequence[Run]) -> Drawing:
  """Figure 1 for every contrastive loss that has online and offline runs."""
  size, drawn = next(iter(sizes(runs)), ""), set()
  panels: dict[str, list[Run]] = {}  # "task, loss" -> its runs
  for task in dict.fromkeys(run.task for run in runs):
    for loss in sorted({run.loss for run in trained(runs)} - {"best_of_2"}):
      chosen = [run for run in _at(runs, loss, size) if run.task == task]
      if {"online", "offline"} <= {run.series for run in chosen}:
        panels[f"{task}, {loss}"] = chosen
        drawn.add(loss)
  if len(drawn) < 2:
    raise style.missing("losses", ["online and offline with two losses"])
  return win_rate_against_kl(
    panels, lambda of_loss: lines_of(of_loss, "online", "offline")
  )
