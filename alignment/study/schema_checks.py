"""What is wrong with a configuration's keys, and with the kinds of their values."""

from collections.abc import Mapping
import sys
from typing import Any

from ml_collections import ConfigDict

from alignment.study.schema import FILE, get_config
from alignment.types import UserError

_KINDS = {  # what errors call the types of values; a bool is an int, too
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "a text",
  tuple: "a tuple",
  list: "a tuple",
  ConfigDict: "a dict of names and values",
}
_ELEMENTS: dict[str, Any] = {  # what those of tuples are like
  "vocab.words": "", "figures": "", "tracking": "", "notes": "", "sample.prompts": "",
  "policy.evaluate_at": 0.0, "golden_policy.evaluate_at": 0.0, "evaluation.best_of": 0,
  "sft.data": ConfigDict(), "sampled.temperatures": 0.0, "without_worlds": 0,
}  # fmt: skip


def check(config: ConfigDict) -> None:
  """Compares a configuration with the keys above: its sections may be assigned whole.

  Raises:
    UserError: for a key that is not there, for one that is missing, and for a value of
      another kind.
  """
  _check_names(config, "the configuration")
  _compare(config, get_config(), "")
  for name, like in _ELEMENTS.items():
    for element in config[name]:
      _expect(f"an element of {name}", element, like)
  _check_entries(config)


def _check_names(section: ConfigDict, name: str) -> None:
  try:
    keys = list(section)
  except TypeError:  # of several types: ConfigDict cannot sort them
    keys = [None]
  if not all(isinstance(key, str) for key in keys):
    raise UserError(f"{name} has a key that is no text")
  for key, value in section.items():
    if isinstance(value, ConfigDict):
      _check_names(value, key)


def _check_entries(config: ConfigDict) -> None:
  """Of the sections whose keys are names that a study gives."""
  for name, products in config.runs.items():
    for axes in products if isinstance(products, tuple | list) else (products,):
      _expect(f"runs.{name}", axes, config.runs)
  for name, models in config.datasets.items():
    _expect(f"datasets.{name}", models, ())
  for size, keys in config.sft.by_size.items():
    _expect(f"sft.by_size.{size}", keys, config.sft)
    for key in keys:
      if key in config.sft:  # others are named where it is used
        _expect(f"sft.by_size.{size}.{key}", keys[key], config.sft[key])


def _expect(name: str, value: Any, like: Any) -> None:
  if not fits(value, like):
    raise UserError(f"{name} is {value!r}; give {kind(like)}")


def _compare(given: ConfigDict, schema: ConfigDict, prefix: str) -> None:
  for key in given:
    if key not in schema:
      raise UserError(unknown(f"{prefix}{key}"))
  for key, like in schema.items():
    name = f"{prefix}{key}"
    if key not in given:
      raise UserError(
        f"the configuration has no '{name}': update what {FILE} has, instead of "
        "replacing it"
      )
    _expect(name, given[key], like)
    if isinstance(like, ConfigDict) and like.is_locked:
      _compare(given[key], like, f"{name}.")


def unknown(name: str) -> str:
  """What is said of a key that does not exist."""
  return f"'{name}' is no key of the configuration; all are in {FILE}"


def kind(like: Any) -> str:
  """What values like this one are called; None is like any."""
  names = (name for type_, name in _KINDS.items() if isinstance(like, type_))
  return next(names, "a Python value")


def fits(value: Any, like: Any) -> bool:
  """Whether a value is of the kind of a key's own; numbers are finite."""
  if isinstance(like, bool) or isinstance(value, bool):
    return isinstance(like, bool) and isinstance(value, bool)
  if isinstance(like, float):
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
  if isinstance(like, ConfigDict):
    return isinstance(value, Mapping | ConfigDict)
  kinds = tuple | list if isinstance(like, tuple | list) else type(like)
  return isinstance(value, kinds)
