"""Which of a study's runs a figure or a claim is about.

The paper's figures mix axes: figure 9 adds a loss, figure 10 a policy size. So every
comparison is within one task, one loss and one size, and these say which.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
import dataclasses
from typing import Any

from alignment.analysis.runs import Classification, Run

LEVELS = ("sft", "golden_policy")  # evaluated as runs, drawn as levels
NO_SETTINGS = (*LEVELS, "best_of_n")  # which do not compare methods of training


def trained(runs: Iterable[Run]) -> list[Run]:
  """The runs that compare methods: neither levels nor best-of-n."""
  return [run for run in runs if run.method not in NO_SETTINGS]


def main_loss(runs: Iterable[Run]) -> str:
  """The loss of most online and offline runs; of equally many IPO, the paper's."""
  counts = Counter(r.loss for r in trained(runs) if r.method in ("online", "offline"))
  return min(counts, key=lambda loss: (-counts[loss], loss != "ipo", loss), default="")


def sizes(runs: Iterable[Run]) -> list[str]:
  """Policy sizes: the main one first, then the larger ones in order, then the rest.

  Main is the size of most online and offline runs; of equally many the smallest.
  """
  policies = [run for run in trained(runs) if run.method in ("online", "offline")]
  counts = Counter(run.size for run in policies)
  parameters = {run.size: run.parameters for run in policies}
  if not counts:
    return []
  main = min(counts, key=lambda size: (-counts[size], parameters[size]))
  by_parameters = sorted(counts, key=lambda size: parameters[size])
  at = by_parameters.index(main)
  return by_parameters[at:] + by_parameters[:at]


def larger_size(runs: Iterable[Run]) -> str:
  """The next size above the main one: the paper's XL beside Large; "" if none."""
  runs = list(runs)
  found = sizes(runs)
  parameters = {run.size: run.parameters for run in runs}
  if len(found) < 2 or parameters[found[1]] <= parameters[found[0]]:
    return ""
  return found[1]


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
    if group and isinstance(group[0], Run) and group[0].method not in NO_SETTINGS
  ]
  common = set.intersection(*keys) if keys else set()

  def stays(run: Any) -> bool:
    if not common or not isinstance(run, Run) or run.method in NO_SETTINGS:
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

  def of_world(self, world: int) -> "Pool":
    return dataclasses.replace(
      self,
      runs=[run for run in self.runs if run.world == world],
      classification=[row for row in self.classification if row.world == world],
    )


@dataclasses.dataclass(frozen=True)
class Which:
  """The runs of one method."""

  method: str
  size: str = "main"  # main, larger or all (of which there are at least two)
  window: str = ""  # of a replay: "in order" or "a little" (the smallest window)
  default: bool = False  # only runs of default hyper-parameters
  measured: str = ""  # only runs whose evaluations have this key

  def of(self, pool: Pool) -> list[Run]:
    found = [run for run in pool.runs if run.method == self.method]
    if self.size == "all":
      found = found if len({run.size for run in found}) > 1 else []
    else:
      wanted = pool.main_size if self.size == "main" else pool.larger_size
      found = [run for run in found if run.size == wanted]
    if self.window == "in order":
      found = [run for run in found if run.replay_window == 0]
    elif self.window == "a little":
      windows = {run.replay_window or 0 for run in found}
      smallest = min((window for window in windows if window > 0), default=0)
      found = [run for run in found if smallest and run.replay_window == smallest]
    if self.default:
      found = [run for run in found if run.default]
    if self.measured:
      found = [
        run
        for run in found
        if any(record[self.measured] is not None for record in run.records)
      ]
    return found

  def __str__(self) -> str:
    words = (
      "larger" if self.size == "larger" else "",
      "default" if self.default else "",
      self.method.replace("_", "-"),
      "of all sizes" if self.size == "all" else self.window,
    )
    return " ".join(filter(None, words))


@dataclasses.dataclass(frozen=True)
class WhichClassifier:
  """The rows of one classifier of the online stream."""

  classifier: str

  def of(self, pool: Pool) -> list[Classification]:
    return [row for row in pool.classification if row.classifier == self.classifier]

  def __str__(self) -> str:
    return self.classifier.replace("_", " ")
