"""The four preference data sets of the paper (section 4), as TFDS builders.

Prepare one with `python -m alignment.data.datasets --prepare NAME --data_dir DIR`, then
read it with `examples(NAME, split, DIR)`.
"""

from collections.abc import Iterator
import importlib
from typing import TYPE_CHECKING

from alignment.types import UserError

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

NAMES = (
  "openai_comparisons",
  "anthropic_helpfulness",
  "anthropic_harmlessness",
  "chatbot_arena",
)


def builder(name: str, data_dir: str | None = None) -> "tfds.core.DatasetBuilder":
  """The TFDS builder of a data set, which `tfds.load(name)` then knows as well.

  Args:
    name: one of NAMES.
    data_dir: where TFDS keeps prepared data sets; None is TFDS's own default.

  Raises:
    UserError: for another name.
  """
  if name not in NAMES:
    raise UserError(f"unknown data set {name!r}: must be one of {', '.join(NAMES)}")
  # Imported here, because it imports TensorFlow.
  module = importlib.import_module(f"{__name__}.{name}.{name}_dataset_builder")
  return module.Builder(data_dir=data_dir)


def examples(
  name: str, split: str, data_dir: str | None = None
) -> Iterator[tuple[str, str, str]]:
  """Iterates over (prompt, chosen, rejected) in the order of the prepared files.

  Args:
    name: one of NAMES.
    split: a split of the data set, or part of one ("train[:100]").
    data_dir: as in `builder`.

  Raises:
    UserError: at once, for an unknown name or split or an unprepared data set.
  """
  dataset_builder = builder(name, data_dir)
  if not dataset_builder.is_prepared():
    flags = f" --data_dir {data_dir}" if data_dir else ""
    if dataset_builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      flags += " --manual_dir FOLDER_WITH_YOUR_DOWNLOAD"
    raise UserError(
      f"data set {name!r} is not prepared in {dataset_builder.data_dir}; run "
      f"python -m {__name__} --prepare {name}{flags}"
    )
  import tensorflow_datasets as tfds

  try:
    dataset = dataset_builder.as_dataset(
      # One file after the other, so that the order is that of the records.
      split=split,
      read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
  except ValueError:
    raise UserError(
      f"data set {name!r} has no split {split!r}: must be one of "
      f"{', '.join(dataset_builder.info.splits)}, or part of one"
    ) from None
  keys = ("prompt", "chosen", "rejected")
  return (tuple(row[key].decode() for key in keys) for row in tfds.as_numpy(dataset))
