"""A judge's word on pairs: margins, labels, and whether a study may rely on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignment.core import evaluation, rollout
from alignment.core.judges import PreferenceModel
from alignment.data import pairs
from alignment.study.setting import Setting
from alignment.types import Params, UserError


def label(
  setting: Setting,
  judge: PreferenceModel,
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
  judge: PreferenceModel,
  params: Params,
  dataset: pairs.PairDataset,
  rows: np.ndarray | None = None,
) -> np.ndarray:
  """A judge's order-free margins of pairs, by default all: float32 P."""
  return setting.map_pairs(
    lambda batch: evaluation.margins(judge, params, batch), dataset, rows
  )


def check_judge(world: int, report: Mapping[str, Any]) -> None:
  """Stops a study whose golden preference model is unusable.

  Raises:
    UserError: if its held-out accuracy is not clearly above 0.6, or trails its
      training accuracy by more than 0.1: everything downstream would be meaningless.
  """
  accuracy, stderr = report["validation_accuracy"], report["validation_stderr"]
  low = accuracy - 1.96 * stderr
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
