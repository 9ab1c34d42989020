"""Preference pairs as text, one at a time, from JSON lines or a TFDS data set.

A structural fault is always a UserError that names file, line and field. A degenerate
pair (an empty response, or two identical ones) holds no preference: data.on_bad_pair
decides whether it is an error too, or is dropped and counted.
"""

import codecs
from collections.abc import Callable, Iterator
import gzip
import hashlib
import json
import os
from typing import Any, NamedTuple
import zlib

from ml_collections import ConfigDict

from alignment.data import datasets
from alignment.types import UserError

MAX_LINE_BYTES = 4_000_000  # parsed, JSON takes up to 25 times as much memory
_NEEDS = (
  "each line needs 'prompt', 'chosen' and 'rejected' as strings or as lists of chat"
  " messages, or 'chosen' and 'rejected' as whole transcripts"
)
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class Example(NamedTuple):
  """One labelled pair, and where it came from ("pairs.jsonl:17") for messages."""

  prompt: str
  chosen: str
  rejected: str
  source: str


def read_jsonl(
  path: str | os.PathLike[str], on_bad_pair: str, counts: dict[str, int]
) -> Iterator[Example]:
  r"""Yields the pairs of a .jsonl or .jsonl.gz file, holding one line at a time.

  Each line is an object in one of three layouts, told apart record by record:
    strings: `prompt`, `chosen`, `rejected`, taken as they are;
    transcripts (Anthropic HH): no `prompt`; `chosen` and `rejected` are whole
      transcripts "\n\nHuman: ...\n\nAssistant: ..." that differ in the last reply;
    chat messages (TRL's preference format): lists of {role, content}, rendered as
      transcripts with system messages first as plain text. Without `prompt`, the
      messages before the last are the prompt.
  Other fields are ignored, and so are blank lines.

  Args:
    path: the file; a name that ends in .gz is decompressed.
    on_bad_pair: 'error', or 'skip' to drop degenerate pairs.
    counts: updated with the number of dropped pairs, by 'empty' and 'identical'.

  Raises:
    UserError: a structural fault, a degenerate pair under 'error', or no pairs.
  """
  found = False
  for number, line in _lines(path):
    source = f"{path}:{number}"
    example = Example(*_pair(_parse(line, source), source), source)
    if keep(example, on_bad_pair, counts):
      found = True
      yield example
  if not found:
    raise UserError(f"{path}: holds no pairs (dropped: {counts}); {_NEEDS}")


def read_tfds(
  name: str, split: str, data_dir: str | None, on_bad_pair: str, counts: dict[str, int]
) -> Iterator[Example]:
  """Yields a TFDS split's pairs; rows count from 1, the rest as in `read_jsonl`."""
  rows = datasets.examples(name, split, data_dir)
  found = False
  for row, (prompt, chosen, rejected) in enumerate(rows, start=1):
    example = Example(prompt, chosen, rejected, f"{name}/{split}:{row}")
    if keep(example, on_bad_pair, counts):
      found = True
      yield example
  if not found:
    raise UserError(f"{name}/{split}: holds no pairs (dropped: {counts})")


def keep(example: Example, on_bad_pair: str, counts: dict[str, int]) -> bool:
  """Whether `example` is a real comparison; if not, raises or counts why.

  Raises:
    UserError: the pair is degenerate and `on_bad_pair` is 'error'.
  """
  if on_bad_pair not in ("error", "skip"):
    raise UserError(f"data.on_bad_pair is {on_bad_pair!r}; use 'error' or 'skip'")
  if not example.chosen.strip():
    reason, fault = "empty", "field 'chosen' is empty"
  elif not example.rejected.strip():
    reason, fault = "empty", "field 'rejected' is empty"
  elif example.chosen == example.rejected:
    reason, fault = "identical", "fields 'chosen' and 'rejected' are identical"
  else:
    return True
  if on_bad_pair == "error":
    raise UserError(
      f"{example.source}: {fault}; mend the line, or set data.on_bad_pair='skip' to"
      " drop and count such pairs"
    )
  counts[reason] = counts.get(reason, 0) + 1
  return False


def split_of(prompt: str, validation_fraction: float) -> str:
  """'train' or 'validation', from the hash of the prompt's first turn alone.

  So all pairs of a prompt, and of a dialogue that was cut after several of its turns,
  fall on one side, whatever else the data set holds.
  """
  opening, _, _ = prompt.partition(_ASSISTANT)
  digest = hashlib.sha256(opening.encode()).digest()
  draw = int.from_bytes(digest[:8], "big") / 2**64
  return "validation" if draw < validation_fraction else "train"


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
  """Numbered lines of a file that are not blank."""
  opened = gzip.open if os.fspath(path).endswith(".gz") else open
  number = 0
  try:
    with opened(path, "rb") as f:
      while line := f.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
          raise UserError(
            f"{path}:{number}: the line is over {MAX_LINE_BYTES:,} bytes; the file"
            " must be JSON lines, one pair on each"
          )
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
          yield number, line
  except (gzip.BadGzipFile, EOFError, zlib.error) as e:
    raise UserError(
      f"{path}: damaged or cut off after line {number} ({e}); fetch the file again"
    ) from e
  except OSError as e:
    reason = e.strerror or e
    raise UserError(f"{path}: cannot be read ({reason}); check data.path") from e


def _parse(line: bytes, source: str) -> dict[str, Any]:
  def no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

  try:
    record = json.loads(line.decode(), parse_constant=no_constant)
  except UnicodeDecodeError as e:
    raise UserError(
      f"{source}: not UTF-8 (byte {e.start + 1} of the line); convert the file"
    ) from e
  except RecursionError as e:
    raise UserError(f"{source}: malformed JSON: nested too deeply; {_NEEDS}") from e
  except ValueError as e:
    reason = str(e).replace(" line 1", "").replace("\n", " ")
    raise UserError(f"{source}: malformed JSON: {reason}; {_NEEDS}") from e
  if not isinstance(record, dict):
    kind = type(record).__name__
    raise UserError(f"{source}: not an object but a {kind}; {_NEEDS}")
  return record


def _pair(record: dict[str, Any], source: str) -> tuple[str, str, str]:
  """(prompt, chosen, rejected) of a record in any of the three layouts."""
  for field in ("chosen", "rejected"):
    if field not in record:
      raise UserError(f"{source}: field '{field}' is missing; {_NEEDS}")
  if isinstance(record["chosen"], list) or isinstance(record.get("prompt"), list):
    return _from_messages(record, source)
  chosen, rejected = (
    _string(record[field], field, source) for field in ("chosen", "rejected")
  )
  if "prompt" in record:
    return _string(record["prompt"], "prompt", source), chosen, rejected
  if _ASSISTANT not in chosen:
    raise UserError(f"{source}: field 'prompt' is missing; {_NEEDS}")
  return _from_transcripts(chosen, rejected, source)


def _from_transcripts(chosen: str, rejected: str, source: str) -> tuple[str, str, str]:
  prompt, marker, chosen_reply = chosen.rpartition(_ASSISTANT)
  rejected_prompt, found, rejected_reply = rejected.rpartition(_ASSISTANT)
  if (prompt, marker) != (rejected_prompt, found):
    raise UserError(
      f"{source}: transcripts 'chosen' and 'rejected' differ before their last"
      f" {marker.strip()!r}; they must share all but the last reply"
    )
  return (
    prompt + marker,
    chosen_reply.removeprefix(" "),
    rejected_reply.removeprefix(" "),
  )


def _from_messages(record: dict[str, Any], source: str) -> tuple[str, str, str]:
  turns = {
    field: _messages(record[field], field, source)
    for field in ("prompt", "chosen", "rejected")
    if field in record
  }
  prompt = turns.get("prompt", turns["chosen"][:-1])
  replies = []
  for field in ("chosen", "rejected"):
    *before, (role, content) = turns[field]
    if before != ([] if "prompt" in record else prompt):
      raise UserError(
        f"{source}: field '{field}' must hold one message when there is 'prompt', and"
        " without it 'chosen' and 'rejected' must share all but the last message"
      )
    if role != "assistant":
      raise UserError(
        f"{source}: field '{field}' ends with role '{role}'; it must be 'assistant'"
      )
    replies.append(content)
  return _render(prompt, source), replies[0], replies[1]


def _messages(value: Any, field: str, source: str) -> list[tuple[str, str]]:
  """[(role, content), ...] of a list of chat messages, checked."""
  if not isinstance(value, list) or not value:
    raise UserError(
      f"{source}: field '{field}' must be a list of chat messages, not empty, as the"
      " record's other fields are"
    )
  messages = []
  for i, message in enumerate(value):
    name = f"{field}[{i}]"
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
      raise UserError(
        f"{source}: field '{name}' must be an object with 'role' and 'content'"
      )
    role = _string(message["role"], f"{name}.role", source)
    if role not in ("system", "user", "assistant"):
      raise UserError(
        f"{source}: field '{name}.role' is {role!r}; use system, user or assistant"
      )
    messages.append((role, _string(message["content"], f"{name}.content", source)))
  return messages


def _render(messages: list[tuple[str, str]], source: str) -> str:
  roles = [role for role, _ in messages]
  if not roles or roles[-1] != "user":
    raise UserError(f"{source}: the prompt must end with a message of role 'user'")
  num_system = roles.count("system")
  if "system" in roles[num_system:]:
    raise UserError(f"{source}: system messages must come before all others")
  system = "\n\n".join(content for _, content in messages[:num_system])
  turns = (
    f"{_HUMAN if role == 'user' else _ASSISTANT} {content}"
    for role, content in messages[num_system:]
  )
  return system + "".join(turns) + _ASSISTANT


def _string(value: Any, field: str, source: str) -> str:
  if not isinstance(value, str):
    kind = "null" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{source}: field '{field}' is {kind}, not a string; {_NEEDS}")
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise UserError(
      f"{source}: field '{field}' has a lone surrogate (character {e.start + 1}), which"
      " is no text; write the character whole"
    ) from e
  return value


# data.format -> its pairs, from `config.data` and the counts of what is dropped.
FORMATS: dict[str, Callable[[ConfigDict, dict[str, int]], Iterator[Example]]] = {
  "jsonl": lambda c, counts: read_jsonl(c.path, c.on_bad_pair, counts),
  "tfds": lambda c, counts: read_tfds(
    c.name, "train", c.data_dir, c.on_bad_pair, counts
  ),
}
