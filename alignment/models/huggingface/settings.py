"""A config.json as it was read, with complaints that name the file and the key."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from alignment.types import UserError

MAX_JSON_BYTES = 4_000_000  # parsed, JSON takes up to 25 times as much memory
MAX_SIZE = 2**31 - 1
MAX_LAYERS = 200  # of one stack


class Settings:
  """The entries of a config.json; `null` is as good as absent, unless asked for.

  Args:
    path: of the file.
    entries: what it holds.
    defaults: of the family, for keys that its files may lack.
  """

  def __init__(
    self,
    path: Path,
    entries: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
  ):
    self.path = path
    self.entries = entries
    self._values = dict(defaults or {})
    self._values |= {key: value for key, value in entries.items() if value is not None}

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def get(self, key: str, default: Any = None) -> Any:
    return self._values.get(key, default)

  def complaint(self, key: str, expected: str) -> UserError:
    return UserError(f"{self.path}: {key} is {self.get(key)!r}, {expected}")

  def only(self, key: str, *implemented: Any) -> Any:
    """The value, if the key is there at all.

    Raises:
      UserError: if it is something else.
    """
    if key in self and self.get(key) not in implemented:
      choices = " or ".join(map(repr, implemented)) or "none"
      raise self.complaint(key, f"only {choices} is implemented")
    return self.get(key)

  def integer(self, key: str, limit: int = MAX_SIZE) -> int:
    """A value from 1 to a limit."""
    value = self.get(key)
    if type(value) is not int or not 1 <= value <= limit:
      raise self.complaint(key, f"expected an integer from 1 to {limit}")
    return value

  def number(self, key: str, limit: float = 1e30) -> float:
    """A value between 0 and a limit, both excluded."""
    value = self.get(key)
    if type(value) not in (int, float) or not 0 < value < limit:
      raise self.complaint(key, f"expected a number in (0, {limit})")
    return float(value)

  def flag(self, key: str) -> bool:
    """True or false; false where it is absent."""
    return bool(self.only(key, True, False))

  def optional_number(self, key: str) -> float:
    """0 where the file says `null`, which is not the same as leaving it out."""
    if key in self.entries and self.entries[key] is None or key not in self:
      return 0.0
    return self.number(key)


def read_json(path: Path) -> dict[str, Any]:
  """A file that holds a JSON object.

  Raises:
    UserError: if it is missing, too large or anything else.
  """
  try:
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
      raise UserError(f"{path}: {size:,} bytes, expected at most {MAX_JSON_BYTES:,}")
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path}: cannot be read ({error})") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: not a JSON object")
  return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
