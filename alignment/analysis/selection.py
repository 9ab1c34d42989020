"""Which of a study's runs a figure or a claim is about.

The paper's figures mix axes: figure 9 adds a loss, figure 10 a policy size. So every
comparison is within one task, one loss and one size, and these say which.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
import dataclasses
import enum
from typing import Any

from alignment.analysis.runs import Classification, Run

LEVELS = ("sft", "golden_policy")  # evaluated as runs, drawn as levels
NO_SETTINGS = (*LEVELS, "best_of_n")  # which are not compared by how they train


def trained(runs: Iterable[Run]) -> list[Run]:
  """The runs that are compared: neither levels nor best-of-n."""
  return [run for run in runs if run.series not in NO_SETTINGS]


def _policies(runs: Iterable[Run]) -> list[Run]:
  return [run for run in trained(runs) if run.series in ("online", "offline")]


def _main_runs(runs: Iterable[Run]) -> list[Run]:
  """The online and offline runs of the configuration's own settings, or else all."""
  policies = _policies(runs)
  return [run for run in policies if run.default] or policies


def main_loss(runs: Iterable[Run]) -> str:
  """The loss of most main runs; of equally many IPO, the paper's."""
  counts = Counter(run.loss for run in _main_runs(runs))
  return min(counts, key=lambda loss: (-counts[loss], loss != "ipo", loss), default="")


def sizes(runs: Iterable[Run]) -> list[str]:
  """Policy sizes: the main one first, then the larger ones in order, then the rest.

  Main is the size of most main runs; of equally many the smallest.
  """
  runs = list(runs)
  counts = Counter(run.size for run in _main_runs(runs))
  parameters = {run.size: run.parameters for run in _policies(runs)}
  if not counts:
    return []
  main = min(counts, key=lambda size: (-counts[size], parameters[size]))
  by_parameters = sorted(parameters, key=lambda size: parameters[size])
  at = by_parameters.index(main)
  return by_parameters[at:] + by_parameters[:at]


def larger_size(runs: Iterable[Run]) -> str:
  """The next size above the main one: the paper's XL beside Large; "" if none."""
  runs = list(runs)
  main, *others = sizes(runs) or [""]
  parameters = {run.size: run.parameters for run in runs}
  if not others or parameters[others[0]] <= parameters[main]:
    return ""
  return others[0]


def unmatched(groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
  """All runs of every group: one's single run and another's whole sweep."""
  return [list(group) for group in groups]


def matched(groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
  """The runs of every group at the settings (beta, learning rate) that all groups have.

  And of those the ones of equally many steps, unless a group is longer as a whole. So
  that an ablation run at one setting is not compared with a whole sweep. Levels,
  best-of-n and classifications have no settings and stay as they are; so does all else
  if no setting is common.
  """
  rates = _in_common(groups, lambda run: (run.beta, run.learning_rate))
  return _in_common(rates, lambda run: int(run.steps_E[-1]))


def _in_common(
  groups: Sequence[Sequence[Any]], key: Callable[[Run], Hashable]
) -> list[list[Any]]:
  keys = [
    set(map(key, group))
    for group in groups
    if group and isinstance(group[0], Run) and group[0].series not in NO_SETTINGS
  ]
  common = set.intersection(*keys) if keys else set()

  def stays(run: Any) -> bool:
    if not common or not isinstance(run, Run) or run.series in NO_SETTINGS:
      return True
    return key(run) in common

  return [[run for run in group if stays(run)] for group in groups]


def matched_sizes(groups: Sequence[Sequence[Run]]) -> list[list[Run]]:
  """The runs of every group at the policy sizes, and then settings, that all have."""
  common = set.intersection(*({run.size for run in group} for group in groups))
  parts = [
    [run for run in group if run.size == size] for group in groups for size in common
  ]
  stays = {run for part in matched(parts) for run in part}
  return [[run for run in group if run in stays] for group in groups]


@dataclasses.dataclass(frozen=True)
class Pool:
  """What there is of one task and loss: in one world, or in all of them."""

  runs: Sequence[Run]  # of the loss; levels and best-of-n too, whatever their loss
  classification: Sequence[Classification]
  main_size: str
  larger_size: str
  of_all_losses: Sequence[Run] = ()  # for groups whose loss is their own

  def of_world(self, world: int) -> "Pool":
    return dataclasses.replace(
      self,
      runs=[run for run in self.runs if run.world == world],
      of_all_losses=[run for run in self.of_all_losses if run.world == world],
      classification=[row for row in self.classification if row.world == world],
    )


class Size(enum.Enum):
  """Which policy sizes a group has."""

  MAIN = "main"
  LARGER = "larger"  # the next above the main one
  ALL = "all"  # of which there are at least two


class Shuffling(enum.Enum):
  """Which replays of the recorded stream a group has."""

  NONE = "in order"
  LEAST = "a little"  # within the smallest window that there is


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one series, or some of them."""

  series: str
  size: Size = Size.MAIN
  shuffling: Shuffling | None = None  # of a replay; None takes all
  default: bool = False  # only runs of default hyper-parameters
  measured: str = ""  # only runs whose evaluations have this key
  refresh_every: int | None = None  # only runs whose sampler is so many steps old
  loss: str = ""  # of its own; "" is the one that the statement is about
  least_beta: bool = False  # only runs of the smallest beta that there is

  def members(self, pool: Pool) -> list[Run]:
    runs = [run for run in pool.runs if run.series == self.series]
    if self.loss:
      runs = [
        run
        for run in pool.of_all_losses
        if (run.series, run.loss) == (self.series, self.loss)
      ]
    runs = self._of_size(runs, pool)
    if self.least_beta:
      least = min((run.beta for run in runs if run.beta is not None), default=None)
      runs = [run for run in runs if run.beta == least]
    if self.shuffling:
      window = self._window(runs)
      runs = [r for r in runs if window is not None and r.replay_window == window]
    if self.default:
      runs = [run for run in runs if run.default]
    if self.refresh_every is not None:
      runs = [run for run in runs if run.refresh_every == self.refresh_every]
    if self.measured:
      runs = [
        run
        for run in runs
        if any(record[self.measured] is not None for record in run.records)
      ]
    return runs

  def _of_size(self, runs: list[Run], pool: Pool) -> list[Run]:
    if self.size is Size.ALL:
      return runs if len({run.size for run in runs}) > 1 else []
    wanted = pool.main_size if self.size is Size.MAIN else pool.larger_size
    return [run for run in runs if run.size == wanted]

  def _window(self, runs: list[Run]) -> int | None:
    if self.shuffling is Shuffling.NONE:
      return 0
    windows = {run.replay_window or 0 for run in runs}
    return min((window for window in windows if window > 0), default=None)

  def __str__(self) -> str:
    words = (
      "larger" if self.size is Size.LARGER else "",
      "default" if self.default else "",
      self.series.replace("_", "-"),
      f"with {self.loss}" if self.loss else "",
      "of the smallest beta" if self.least_beta else "",
      "of all sizes" if self.size is Size.ALL else "",
      self.shuffling.value if self.shuffling else "",
      f"of every {self.refresh_every} steps" if self.refresh_every else "",
    )
    return " ".join(filter(None, words))


@dataclasses.dataclass(frozen=True)
class Classifier:
  """The rows of one classifier of the online stream."""

  name: str

  def members(self, pool: Pool) -> list[Classification]:
    return [row for row in pool.classification if row.classifier == self.name]

  def __str__(self) -> str:
    return self.name.replace("_", " ")
