"""Judges as artefacts, and their word on pairs: margins, labels, how good they are."""

import abc
from collections.abc import Callable, Iterator, Mapping
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from alignment.analysis.published import TRUTH_NEEDED
from alignment.core import audits, evaluation, judges, rollout
from alignment.data import pairs
from alignment.runtime.activity import progress
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Program
from alignment.study.setting import Setting
from alignment.types import Params, UserError

REPORT = "model.json"  # what is said of a judge, in its directory


@dataclasses.dataclass(frozen=True, eq=False)
class Judge(Artefact):
  """Who labels pairs, and says which responses are better: a model or a rule."""

  @abc.abstractmethod
  def judge(self) -> judges.Judge:
    """What reads batches of the study's tokens (core/judges.py)."""

  @abc.abstractmethod
  def load_fixed(self, read: Read, step: int | None = None) -> Params:
    """Its parameters as they are read: those it settled on, or of `step`."""

  @abc.abstractmethod
  def abstract_fixed(self) -> Params:
    """Their shapes and layout."""

  @abc.abstractmethod
  def margins_programs(
    self, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Iterator[Program]:
    """What runs on devices for its margins of a batch of evaluated pairs.

    Args:
      stages: names of the artefacts that ask for margins.
      held: other models that these hold meanwhile.
    """

  @abc.abstractmethod
  def scores_programs(
    self, rows: int, count: int, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Iterator[Program]:
    """The same for its scores of `count` responses, if it is asked on the host."""

  def check_usable(self, directory: Path) -> None:
    """Stops a study whose golden judge, this one, cannot be relied on.

    Raises:
      UserError: saying why.
    """


def label(
  setting: Setting,
  judge: judges.Judge,
  params: Params,
  dataset: pairs.PairDataset,
  directory: Path,
) -> np.ndarray:
  """Saves pairs in a judge's order, with its margins; bool P: swapped."""
  margins = margins_of(setting, judge, params, dataset)
  ids = np.arange(len(dataset), dtype=np.int32)
  swap = np.asarray(rollout.second_first(margins, setting.key("relabel"), ids))
  labelled = dataset.with_order(swap)
  labelled.with_columns(margin=np.abs(margins).astype(np.float32)).save(directory)
  return swap


def margins_of(
  setting: Setting,
  judge: judges.Judge,
  params: Params,
  dataset: pairs.PairDataset,
  rows: np.ndarray | None = None,
) -> np.ndarray:
  """A judge's order-free margins of pairs, by default all: float32 P.

  Raises:
    UserError: if one is not a number.
  """
  judged = setting.map_pairs(
    lambda batch: evaluation.margins(judge, params, batch), dataset, rows, "judging"
  )
  return evaluation.numbers(judged)


def accuracies(
  setting: Setting,
  margins: Callable[[pairs.PairDataset, np.ndarray], np.ndarray],
  train_set: pairs.PairDataset,
  validation: pairs.PairDataset,
  rows: np.ndarray,
) -> dict[str, Any]:
  """How often a judge agrees with the labels of pairs, and with the truth.

  Args:
    setting: what the pairs are written in.
    margins: (pairs, rows) -> the judge's margins of them.
    train_set: pairs that it may have learned from.
    validation: pairs that it has not.
    rows: of `validation`, those that are reported.
  """
  prompts = validation.prompt_numbers()[rows]
  of_rows = margins(validation, rows)
  held_out = evaluation.outcome(of_rows)
  lengths_Px2 = np.stack([part.lengths[rows] for part in validation.responses], axis=1)
  seen = margins(train_set, spread(len(held_out), len(train_set)))
  report = {
    "validation_accuracy": float(held_out.mean()),
    "validation_within": evaluation.clustered_within(held_out, prompts),
    "validation_pairs": len(held_out),
    "train_accuracy": float(evaluation.outcome(seen).mean()),
    **audits.audit(of_rows, lengths_Px2),
  }
  gap = setting.true_gap(validation, rows)
  if gap is not None:
    agree = evaluation.classified(of_rows, gap)
    of_prompt = prompts[gap != 0]
    if len(np.unique(of_prompt)) > 1:
      report["truth_accuracy"] = float(agree.mean())
      report["truth_within"] = evaluation.clustered_within(agree, of_prompt)
  return report


def spread(count: int, size: int) -> np.ndarray:
  """So many of `size` rows, or all, evenly spaced: files and samples are in an order.

  The first would be of a few topics, or of one temperature.
  """
  return np.linspace(0, size - 1, min(count, size)).astype(int)


def check_judge(world: int, report: Mapping[str, Any]) -> None:
  """Stops a study whose golden preference model is unusable; says it of a poor one.

  Raises:
    UserError: if its held-out accuracy is not clearly above 0.6, or trails its
      training accuracy by more than 0.1: everything downstream would be meaningless.
  """
  accuracy = report["validation_accuracy"]
  low = accuracy - report["validation_within"]
  advice = "use more pairs or fewer steps, or set evaluation.require_good_judge=False"
  if low <= 0.6:
    raise UserError(
      f"golden preference model of world {world}: held-out accuracy {accuracy:.3f} "
      f"(95 % lower bound {low:.3f}) is not above 0.6: {advice}"
    )
  if report["train_accuracy"] - accuracy > 0.1:
    raise UserError(
      f"golden preference model of world {world}: held-out accuracy {accuracy:.3f} "
      f"trails training accuracy {report['train_accuracy']:.3f} by more than 0.1: "
      f"{advice}"
    )
  truth = report.get("truth_accuracy")
  if truth is not None and truth < TRUTH_NEEDED:
    progress(
      f"golden preference model of world {world}: it agrees with the truth on "
      f"{truth:.3f} of held-out pairs, less than {TRUTH_NEEDED}: this world counts for "
      "no claim"
    )
