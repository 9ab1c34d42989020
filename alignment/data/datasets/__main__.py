"""Prepares a data set: downloads it and writes it where TFDS finds it.

  python -m alignment.data.datasets --prepare openai_comparisons --data_dir DIR
  python -m alignment.data.datasets --prepare chatbot_arena --data_dir DIR \\
      --manual_dir FOLDER_WITH_YOUR_DOWNLOAD

With --manual_dir nothing is downloaded, whatever the data set.
"""

import argparse
from collections.abc import Sequence
import sys

from etils import epath

from alignment.data import datasets
from alignment.types import UserError


def prepare(name: str, data_dir: str | None, manual_dir: str | None) -> None:
  """Downloads and writes a data set; prints its sizes and what was skipped.

  With a `manual_dir`, its files are read and nothing is downloaded.

  Raises:
    UserError: for an unknown name, a source that cannot be reached, a licensed data set
      or file that is not in `manual_dir`, or source rows that are not as documented.
  """
  builder = datasets.builder(name, data_dir)
  if manual_dir is not None:
    builder.local_dir = epath.Path(manual_dir)
  import tensorflow_datasets as tfds  # after the name is checked: it takes seconds

  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        manual_dir=manual_dir, try_download_gcs=False
      )
    )
  except (OSError, tfds.download.DownloadError) as error:
    raise UserError(f"{name} could not be prepared: {error}") from error
  skipped = builder.info.metadata["skipped"]
  for split, info in builder.info.splits.items():
    print(f"{name} {split}: {info.num_examples} pairs, skipped {skipped[split]}")
  print(f"in {builder.data_dir}")


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m alignment.data.datasets")
  parser.add_argument(
    "--prepare", required=True, metavar="NAME", help=", ".join(datasets.NAMES)
  )
  parser.add_argument("--data_dir", help="default: TFDS's own, ~/tensorflow_datasets")
  parser.add_argument("--manual_dir", help="your download, read in place of one")
  flags = parser.parse_args(argv)
  try:
    prepare(flags.prepare, flags.data_dir, flags.manual_dir)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
