"""Docstrings as reStructuredText, for Sphinx.

Docstrings of this package are plain text: paragraphs, `code`, blocks that are indented,
lists, and sections such as "Args:". Read as reStructuredText, a formula like `2 * x_B`
or a block of code would be markup, or a mistake in it. So nothing is markup here but
what `convert` makes so.
"""

from collections.abc import Iterator, Sequence
import re

SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}):$")
_ITEM = re.compile(r"(\*?\*?[\w.,/ *]+):\s+(.*)$")  # "name: what it is"
_CODE = re.compile(r"`([^`\n]+)`")
_STRONG = re.compile(r"\*\*([^*\n]+)\*\*")
_BULLET = re.compile(r"[-*] ")


def convert(lines: Sequence[str]) -> list[str]:
  """A docstring's lines, dedented as Sphinx hands them over, as reStructuredText."""
  result: list[str] = []
  for block in _blocks(lines):
    if section := _SECTION.match(block[0]):
      result += [f"**{section[1]}**", "", *_definitions(block[1:])]
    elif _BULLET.match(block[0]):
      result += ["* " + _text(item) for item in _items(block)]
    elif block[0].startswith(" "):
      result += ["::", "", *("   " + line for line in block)]
    else:
      result += [_text(" ".join(line.strip() for line in block))]
    result.append("")
  return result


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
  """Paragraphs, indented blocks, lists and sections, without the lines between.

  A blank line inside an indented block or a section does not end it.
  """
  block: list[str] = []
  for line in lines:
    if block and _begins(line, block):
      yield _stripped(block)
      block = []
    if line.strip() or block:
      block.append(line.rstrip())
  if block:
    yield _stripped(block)


def _begins(line: str, block: Sequence[str]) -> bool:
  """Whether `line` starts something new after `block`."""
  if not line.strip():
    return False
  indented = line.startswith(" ")
  if _SECTION.match(block[0]) or block[0].startswith(" "):
    return not indented
  if _BULLET.match(block[0]):
    return not indented and not _BULLET.match(line)
  return indented or not block[-1] or bool(_SECTION.match(line) or _BULLET.match(line))


def _stripped(block: list[str]) -> list[str]:
  while not block[-1]:
    block = block[:-1]
  return block


def _definitions(lines: Sequence[str]) -> Iterator[str]:
  """ "name: text" entries of a section as a list; other text as it is."""
  margin = min((_margin(line) for line in lines if line), default=0)
  entries: list[str] = []
  for line in lines:
    if line and (not entries or _margin(line) == margin):
      entries.append(line.strip())
    elif line:
      entries[-1] += " " + line.strip()
  for entry in entries:
    if item := _ITEM.match(entry):
      yield f"* **{_escaped(item[1])}**: {_text(item[2])}"
    else:
      yield _text(entry)


def _items(block: Sequence[str]) -> list[str]:
  """A list's entries, each on one line."""
  entries: list[str] = []
  for line in block:
    if _BULLET.match(line):
      entries.append(line[2:])
    elif line.strip():
      entries[-1] += " " + line.strip()
  return entries


def _margin(line: str) -> int:
  return len(line) - len(line.lstrip())


def _text(line: str) -> str:
  """Prose on one line: `code` and **emphasis** as such, all else escaped."""
  parts = _CODE.split(line)
  for i, part in enumerate(parts):
    parts[i] = f"\\ ``{part}``\\ " if i % 2 else _emphasised(part)
  return "".join(parts).strip()


def _emphasised(text: str) -> str:
  parts = _STRONG.split(text)
  for i, part in enumerate(parts):
    parts[i] = f"\\ **{_escaped(part)}**\\ " if i % 2 else _escaped(part)
  return "".join(parts)


def _escaped(text: str) -> str:
  return re.sub(r"([\\*`|_:\[\]<>])", r"\\\1", text)


def setup(app) -> dict[str, bool]:
  def replace(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = convert(lines)

  app.connect("autodoc-process-docstring", replace)
  return {"parallel_read_safe": True}
