"""JSON records as read from files: what their values must be, and one line if not.

A kind says what a value must be and how an error calls it; a schema has one per key.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import json
import math
from pathlib import Path
from typing import Any

from alignment.runtime.metrics import read_jsonl
from alignment.types import UserError

Kind = tuple[str, Callable[[Any], bool]]
Schema = Mapping[str, Kind]


def _is_integer(value: Any) -> bool:
  is_int = isinstance(value, int) and not isinstance(value, bool)
  return is_int and abs(value) < 2**63  # or NumPy could not hold it


def _is_number(value: Any) -> bool:
  return _is_integer(value) or isinstance(value, float)


def _is_text(value: Any) -> bool:
  """A string that can be written as UTF-8: JSON may have halves of characters."""
  return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


STRING: Kind = ("a string", _is_text)
BOOLEAN: Kind = ("true or false", lambda value: isinstance(value, bool))
INTEGER: Kind = ("an integer", _is_integer)
FINITE: Kind = (
  "a finite number",
  lambda value: _is_number(value) and math.isfinite(value),
)
MEASURED: Kind = (
  "a number or null",
  lambda value: value is None or _is_number(value),
)
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
OBJECT_OF_STRINGS: Kind = (
  "an object of strings",
  lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
)
# A name that other files are called after: it leads to none elsewhere.
FILE_NAME: Kind = (
  "the name of a file",
  lambda value: (
    _is_text(value)
    and value.isprintable()
    and Path(value).name == value
    and value not in ("", "..")
  ),
)


def or_null(kind: Kind) -> Kind:
  return f"{kind[0]} or null", lambda value: value is None or kind[1](value)


def one_of(values: Collection[str]) -> Kind:
  return " or ".join(values), lambda value: isinstance(value, str) and value in values


def list_of(kind: Kind) -> Kind:
  return (
    f"a list, each {kind[0]}",
    lambda value: isinstance(value, list) and all(map(kind[1], value)),
  )


def check(
  record: Any, schema: Schema, where: str, remedy: str = "evaluate this run again"
) -> None:
  """Raises UserError unless `record` is an object with all of the schema's keys.

  Keys that the schema does not have are let be.
  """
  if not isinstance(record, dict):
    raise UserError(f"{where}: not a JSON object; {remedy}")
  for key, (kind, is_kind) in schema.items():
    if key not in record:
      raise UserError(f"{where}: no {key!r}; {remedy}")
    if not is_kind(record[key]):
      raise UserError(f"{where}: {key!r} is {record[key]!r}, expected {kind}")


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields ("file:line", the object on it), of which no key is checked yet.

  Raises:
    UserError: naming file and line, for what is damaged.
  """
  try:
    text = path.read_text(encoding="utf-8").removesuffix("\n")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8 ({error.reason}); evaluate again") from error
  for number, line in enumerate(text.split("\n") if text else [], start=1):
    where = f"{path}:{number}"
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f"{where}: not JSON ({error}); delete the line, or evaluate again"
      ) from error
    check(record, {}, where)
    yield where, record


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`, numbers by `step`; [] if there is no such file.

  Raises:
    UserError: naming file, line and key, for what is damaged.
  """
  rows = read_jsonl(path)
  for number, row in enumerate(rows, start=1):
    schema = {**dict.fromkeys(row, MEASURED), "step": INTEGER}
    check(row, schema, f"{path}:{number}")
  return rows
