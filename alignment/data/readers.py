"""Preference pairs as text, one at a time, from files or a TFDS data set.

A file is bytes, then records (records.py), then examples (layouts.py); what is no
comparison is refused or counted (examples.py).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from alignment.data import datasets, layouts, records
from alignment.data.examples import BadPair, Example, Reading, check, drop, keep
from alignment.types import UserError


def read_files(
  path: str | Path, on_bad_pair: str, reading: Reading, columns: Mapping[str, str] = {}
) -> Iterator[Example]:
  """Yields the pairs of a file, a directory or a pattern, holding one record at a time.

  Args:
    path: what `records.files` takes.
    on_bad_pair: 'error', or 'skip' to drop bad pairs.
    reading: says afterwards what was dropped and ignored.
    columns: what the file's fields are called, by the names that layouts know.

  Raises:
    UserError: a structural fault, a bad pair under 'error', or no pairs.
  """
  empty, columns = True, layouts.mapping(columns)
  for record in records.read(path, layouts.wanted(columns)):
    try:
      example = layouts.read(record, columns, reading)
      check(example)
    except BadPair as bad:
      drop(bad, record.source, on_bad_pair, reading)
      continue
    except RecursionError as e:  # comparing goes deeper than parsing
      raise UserError(f"{record.source}: nested too deeply to be a pair") from e
    empty = False
    yield example
  if empty:
    raise UserError(f"{path}: holds no pairs (dropped: {dict(reading.dropped)})")


def read_tfds(
  name: str, split: str, data_dir: str | None, on_bad_pair: str, reading: Reading
) -> Iterator[Example]:
  """Yields a TFDS split's pairs; rows count from 1, the rest as in `read_files`."""
  empty = True
  rows = datasets.examples(name, split, data_dir)
  for row, (prompt, chosen, rejected) in enumerate(rows, start=1):
    reading.records += 1
    example = Example(prompt, chosen, rejected, f"{name}/{split}:{row}")
    if keep(example, on_bad_pair, reading):
      empty = False
      yield example
  if empty:
    raise UserError(
      f"{name}/{split}: holds no pairs (dropped: {dict(reading.dropped)})"
    )


# data.format -> its pairs, from `config.data` and a `Reading` to be filled.
FORMATS: dict[str, Callable[[ConfigDict, Reading], Iterator[Example]]] = {
  "files": lambda c, reading: read_files(c.path, c.on_bad_pair, reading, c.columns),
  "tfds": lambda c, reading: read_tfds(
    c.name, "train", c.data_dir, c.on_bad_pair, reading
  ),
}
