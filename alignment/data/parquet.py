"""Rows of a Parquet file in bounded memory, whatever the file says of itself.

A column's strings may stand in a dictionary once, and in a million rows. Decoded
plainly, which is fast, each row gets its copy. So before a group of rows is decoded
its dictionaries are looked at, and where copies could fill the memory, rows share
strings.
"""

from collections.abc import Callable, Iterator
import os
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.types import UserError

_MAX_ROWS = 1024  # decoded at once
_BYTES = 1 << 26  # which these may take
_MAX_BYTES = 1 << 28  # more is refused
_FEW_BYTES = 1 << 24  # unpacked rows that are smaller harm nobody
_READING = {"pre_buffer": False, "buffer_size": 1 << 20}  # page by page


def rows(
  raw: IO[bytes], path: Any, wanted: Callable[[str], bool]
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Rows by number; a column that is not wanted is None in each, and not decoded.

  Args:
    raw: the open file.
    path: its name, for messages.
    wanted: whether a column is, by name.

  Raises:
    UserError: the file is damaged, or unpacks to what no text does.
  """
  number, bytes_on_disk = 0, raw.seek(0, os.SEEK_END)
  try:
    file = pq.ParquetFile(raw, **_READING)
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
      raise pa.ArrowInvalid("two columns have one name")
    decoded = [name for name in names if wanted(name)]
    others = dict.fromkeys(name for name in names if name not in decoded)
    sharing = pq.ParquetFile(raw, read_dictionary=_strings(file.metadata), **_READING)
    for group in range(file.num_row_groups):
      unpacked = file.metadata.row_group(group).total_byte_size
      if unpacked > _FEW_BYTES and unpacked > 200 * bytes_on_disk:
        raise UserError(
          f"{path}: unpacks to far more than text does ({unpacked:,} bytes of"
          f" {bytes_on_disk:,})"
        )
      size, copies_fit = _plan(sharing, group, decoded, path)
      reader = file if copies_fit else sharing
      for batch in reader.iter_batches(size, [group], decoded, use_threads=False):
        if batch.nbytes > _MAX_BYTES:
          raise UserError(f"{path}: the rows after {number} are too large to be pairs")
        for row in (
          batch.to_pylist() if copies_fit else _values(batch.to_struct_array())
        ):
          number += 1
          yield number, others | row
  except (pa.ArrowException, ValueError, TypeError, KeyError, MemoryError) as e:
    reason = " ".join(str(e).split()) or type(e).__name__
    raise UserError(
      f"{path}: damaged Parquet after row {number} ({reason}); fetch the file again"
    ) from e


def _strings(metadata: Any) -> list[str]:
  """Paths of all columns that hold strings."""
  columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
  return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _plan(sharing: Any, group: int, decoded: list[str], path: Any) -> tuple[int, bool]:
  """How many rows of a group to decode at once, and whether strings may be copied.

  Raises:
    UserError: what by its own account is a bomb, not text.
  """
  size, copies_fit = _MAX_ROWS, True
  metadata = sharing.metadata.row_group(group)
  num_rows = metadata.num_rows
  if not decoded or not num_rows:
    return size, copies_fit
  # What it says of single columns would end the process where it is damaged, so these
  # are decoded first, which finds that.
  first = next(sharing.iter_batches(1, [group], decoded, use_threads=False), None)
  if first is None:
    raise pa.ArrowInvalid("rows that it announces are not there")
  for name, column in zip(decoded, first.columns, strict=True):
    leaves = _leaves(sharing.metadata, metadata, name)
    values = max(leaf.num_values for leaf in leaves)
    if values > 100 * num_rows + 1_000_000:
      raise UserError(
        f"{path}: column '{name}' has {values:,} values, too many for text"
      )
    average = sum(leaf.total_uncompressed_size for leaf in leaves) // num_rows
    longest = _longest(column)
    size = max(1, min(size, _BYTES // (1 + max(longest, average))))
    if pa.types.is_nested(column.type):  # a single row may have any number of strings
      copies_fit &= longest * values < _MAX_BYTES
  return size, copies_fit


def _leaves(file: Any, group: Any, name: str) -> list[Any]:
  """What the file says of a column's parts in a group of rows."""
  paths = [file.schema.column(i).path for i in range(file.num_columns)]
  return [
    group.column(i)
    for i, path in enumerate(paths)
    if path == name or path.startswith(f"{name}.")
  ]


def _longest(array: Any) -> int:
  """The most bytes of a string in the dictionaries of an array."""
  if pa.types.is_dictionary(array.type):
    lengths = pc.binary_length(array.dictionary)
    return pc.max(lengths).as_py() or 0
  if pa.types.is_struct(array.type):
    return max((_longest(part) for part in array.flatten()), default=0)
  if pa.types.is_list(array.type) or pa.types.is_map(array.type):
    return _longest(array.values)
  return 0


def _values(array: Any) -> list[Any]:
  """An array as Python objects, in which equal strings are one."""
  kind = array.type
  if pa.types.is_dictionary(kind):
    strings = array.dictionary.to_pylist()
    indices = array.indices.to_pylist()
    return [None if i is None else strings[i] for i in indices]
  values: list[Any]
  if pa.types.is_struct(kind):
    parts = [_values(part) for part in array.flatten()]
    names = [field.name for field in kind]
    values = [dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True)]
  elif pa.types.is_list(kind):
    items, offsets = _values(array.values), array.offsets.to_pylist()
    values = [items[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
  else:
    return array.to_pylist()
  if array.null_count:
    valid = array.is_valid().to_pylist()
    values = [v if ok else None for v, ok in zip(values, valid, strict=True)]
  return values
