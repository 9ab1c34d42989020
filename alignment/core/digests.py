"""Which function it is: digests of what users' rules, losses and columns say."""

import ast
from collections.abc import Callable
import functools
import hashlib
import inspect
import json
from pathlib import Path
import re
import textwrap
from types import CodeType, FunctionType
from typing import Any


@functools.cache
def source_digest(function: Callable[..., Any]) -> str:
  """sha256 (hex) of what a function says; "" of what is not written in Python.

  It covers the function's source text, comments included, and what it names in its own
  file, in defaults and decorators, too: functions, likewise, and values that are
  numbers, texts, regular expressions, or tuples, lists, sets and dicts of these. It
  does not cover classes, what is imported from other files, and what is read while it
  runs: whoever changes those renames the function.
  """
  if not isinstance(function, FunctionType):
    return ""
  parts: dict[str, str] = {}
  _describe(function, parts)
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _describe(function: FunctionType, parts: dict[str, str]) -> None:
  name = function.__qualname__
  if name in parts:
    return
  parts[name] = _source(function)
  closed = inspect.getclosurevars(function).nonlocals
  names = _names(function.__code__) | _names_at_its_head(parts[name])
  named = {n: function.__globals__.get(n) for n in names}
  for key, value in sorted((named | dict(closed)).items()):
    if isinstance(value, FunctionType):
      if value.__code__.co_filename == _file(function):
        _describe(value, parts)
      continue
    try:
      parts[f"{name}: {key}"] = json.dumps(value, sort_keys=True, default=_as_json)
    except (TypeError, ValueError):  # a module, a class, ...: not covered
      continue


def _as_json(value: Any) -> Any:
  if isinstance(value, set | frozenset):
    return sorted(json.dumps(v, sort_keys=True, default=_as_json) for v in value)
  if isinstance(value, re.Pattern):
    return [value.pattern, value.flags]
  raise TypeError


def _names_at_its_head(source: str) -> set[str]:
  """Names in defaults and decorators, which are read where a function is defined."""
  try:
    [function] = ast.parse(textwrap.dedent(source)).body
  except (SyntaxError, ValueError):  # a lambda's, or code that was typed at a prompt
    return set()
  if not isinstance(function, ast.FunctionDef):
    return set()
  defaults = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
  inside = (ast.walk(each) for each in (*defaults, *function.decorator_list))
  return {n.id for nodes in inside for n in nodes if isinstance(n, ast.Name)}


def _source(function: FunctionType) -> str:
  try:
    return inspect.getsource(function)
  except (OSError, TypeError):  # typed at a prompt: its code stands for it
    return repr(_compiled(function.__code__))


def _compiled(code: CodeType) -> Any:
  constants = (
    _compiled(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts
  )
  return code.co_code, code.co_names, tuple(constants)


def _names(code: CodeType) -> set[str]:
  """Names that a function's code reads from outside, nested code's too."""
  nested = (c for c in code.co_consts if isinstance(c, CodeType))
  return set(code.co_names).union(*map(_names, nested))


def in_one_file(a: Callable[..., Any], b: Callable[..., Any]) -> bool:
  """Whether two functions come from one file, or from two with the same bytes.

  Their digests could not say it: while a file runs, what stands below a rule is not yet
  there.
  """
  if _file(a) == _file(b):
    return True
  try:
    return Path(_file(a)).read_bytes() == Path(_file(b)).read_bytes()
  except OSError:  # typed at a prompt
    return False


def _file(function: Callable[..., Any]) -> str:
  code = getattr(function, "__code__", None)
  return code.co_filename if code else repr(function)
