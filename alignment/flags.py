"""The flags that name a configuration, and the values that they give its keys.

  --config=FILE              a document: a Python file with `get_config()`
  --config=FILE:ARGUMENT     the same, for `get_config("ARGUMENT")`
  --config.policy.beta=0.5   another value for a key
  --config.evaluation.best_of="(2,8)" --config.policy.loss_options="{'a': 0.1}"

What the keys are is said in alignment/study/schema.py.
"""

import ast
from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from alignment.runtime.files import path_option
from alignment.study import documents, schema, schema_checks
from alignment.types import UserError

_CONFIG = flags.DEFINE_string(
  "config",
  None,
  "The study's configuration: a Python file with get_config(), or FILE:ARGUMENT for "
  "get_config('ARGUMENT'). --config.KEY=VALUE changes one of its keys, which are all "
  f"in {schema.FILE}.",
)
_VALUES = flags.DEFINE_multi_string(
  "config_value", [], "KEY=VALUE: what --config.KEY=VALUE is short for."
)
_PREFIXES = ("--config.", "-config.")
_PARSERS: dict[type, flags.ArgumentParser] = {
  bool: flags.BooleanParser(),
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  str: flags.ArgumentParser(),
}
# What these parsers, ast.literal_eval (whose documentation lists them) and ConfigDict
# raise for a text that is no such value.
_ILL_FORMED = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses a command line; what is left of it: the program's name and arguments.

  Raises:
    UserError: for flags that do not exist, and values that they cannot have.
  """
  values, others = split(argv[1:])
  ours = [f"--{_VALUES.name}={value}" for value in values]
  with _one_line():
    return flags.FLAGS([argv[0], *ours, *others])


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
  """What absl raises, as a UserError."""
  try:
    yield
  # The last two: a file of flags, and absl's search for a similar name.
  except (flags.Error, UnicodeDecodeError, RecursionError) as error:
    raise UserError(f"options: {' '.join(str(error).split())}") from None


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """The words of a command line: `--config.KEY=VALUE` as KEY=VALUE, and all others.

  Raises:
    UserError: for a file of flags (--flagfile) that cannot be read.
  """
  values, others = [], []
  with _one_line():
    words = flags.FLAGS.read_flags_from_files(list(words), force_gnu=False)
  rest = iter(words)
  for word in rest:
    if not word.startswith(_PREFIXES):
      others.append(word)
      continue
    value = word.partition(".")[2]
    values.append(value if "=" in value else f"{value}={next(rest, '')}")
  return values, others


def configuration() -> ConfigDict:
  """The configuration that the flags describe; its paths are of this machine.

  Raises:
    UserError: if there is none, or as `load`.
  """
  if not _CONFIG.value:
    raise UserError("--config is required")
  config = load(_CONFIG.value, _VALUES.value)
  schema.expand_paths(config)
  return config


def load(document: str, values: Sequence[str] = ()) -> ConfigDict:
  """A configuration with some of its keys changed.

  Args:
    document: FILE or FILE:ARGUMENT.
    values: KEY=VALUE each, later ones last.

  Raises:
    UserError: naming what cannot be read, is unknown, or of another kind.
  """
  file, colon, argument = document.partition(":")
  path = path_option(file, "--config")
  module = documents.load(path)
  with documents.mistakes_in(path):
    config = module.get_config(*[argument] if colon else [])
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config() returns no ConfigDict, but {config!r}")
  names = [value.partition("=")[0] for value in values]
  for i, name in enumerate(names):
    if any(earlier.startswith(f"{name}.") for earlier in names[:i]):
      raise UserError(f"--config.{name} overwrites --config.{name}.*: put it before")
  for value in values:
    _set(config, value)
  schema_checks.check(config)
  return config.lock()


def _set(config: ConfigDict, value: str) -> None:
  """Gives one key its value, a text. Sections that are not locked take new keys."""
  name, _, text = value.partition("=")
  *parents, key = name.split(".")
  section: Any = config
  for parent in parents:
    section = section.get(parent) if isinstance(section, ConfigDict) else None
  if not isinstance(section, ConfigDict) or (section.is_locked and key not in section):
    raise UserError(schema_checks.unknown(name))
  like = section.get(key)
  try:
    section[key] = _parse(text, like)
  except _ILL_FORMED:
    raise UserError(
      f"--config.{name}={text}: give {schema_checks.kind(like)}"
    ) from None


def _parse(text: str, like: Any) -> Any:
  """A text as a value of the kind that `like` is; None is like any Python literal.

  A text that is none stands for itself: a name, or the one element of a tuple.
  """
  if type(like) in _PARSERS:
    return _PARSERS[type(like)].parse(text)
  try:
    value = ast.literal_eval(text)
  except _ILL_FORMED:
    if isinstance(like, ConfigDict) or text.startswith(("(", "[", "{")):
      raise
    value = text
  if isinstance(like, ConfigDict):
    if not isinstance(value, dict):
      raise TypeError(f"{value!r} is no dict")
    return ConfigDict(value)
  if isinstance(like, tuple | list):
    return tuple(value) if isinstance(value, tuple | list) else (value,)
  return value
