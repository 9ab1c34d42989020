"""Renders a chat template in a process of its own: it is code that came with a model.

A program, not a module: `chats.ChatTemplate` starts it. Its standard input is JSON
lines, first {source, limits}, then one request {variables} after another; each is
answered by a line {text} or {error}. Jinja's sandbox keeps a template from the system;
this process bounds its memory, its processor time (a signal ends the process, even in
the middle of a long product) and the size of what it writes.
"""

import contextlib
import datetime
import functools
import json
import resource
import signal
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What `strftime_now` tells: the same data must give the same tokens on every day. It is
# the day that Llama 3's own templates fall back on.
TODAY = datetime.datetime(2024, 7, 26)


class _Generation(Extension):
  """`{% generation %}`: marks replies for training masks, and changes no text."""

  tags = {"generation"}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body, lineno=line)


def compiled(source: str) -> jinja2.Template:
  """The template, in the environment that transformers gives chat templates."""
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", _Generation],
  )

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def to_json(
    value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ) -> str:
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  environment.filters["tojson"] = to_json
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = TODAY.strftime
  return environment.from_string(source)


def rendered(template: jinja2.Template, variables: dict, characters: int) -> str:
  """The text, of at most so many characters.

  Raises:
    ValueError: it is longer.
    Exception: whatever the template ran into.
  """
  pieces, size = [], 0
  for piece in template.generate(**variables):
    size += len(piece)
    if size > characters:
      raise ValueError(f"it writes over {characters:,} characters")
    pieces.append(piece)
  return "".join(pieces)


def _answer(action: Any) -> Any:
  """Prints what `action` gives as {text}, or why it failed as {error}."""
  result = None
  try:
    result = action()
    line = json.dumps({"text": result if isinstance(result, str) else ""})
  except MemoryError:
    line = json.dumps({"error": "it needs too much memory"})
  except RecursionError:
    line = json.dumps({"error": "it is nested too deeply"})
  except Exception as e:  # a template can raise anything
    line = json.dumps({"error": str(e) or type(e).__name__})
  sys.stdout.write(line + "\n")
  sys.stdout.flush()
  return result


def main() -> None:
  first = json.loads(sys.stdin.readline())
  with contextlib.suppress(ValueError, OSError):  # not every system has this limit
    resource.setrlimit(resource.RLIMIT_AS, (first["bytes"], first["bytes"]))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  signal.signal(signal.SIGPROF, signal.SIG_DFL)

  def bounded(action: Any) -> Any:
    signal.setitimer(signal.ITIMER_PROF, first["seconds"])
    result = _answer(action)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return result

  template = bounded(functools.partial(compiled, first["source"]))
  if template is None:
    return
  for line in sys.stdin:
    request = json.loads(line)
    bounded(functools.partial(rendered, template, request, first["characters"]))


if __name__ == "__main__":
  main()
