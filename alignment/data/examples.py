"""A labelled pair as a file has it, what makes it none, and what is told of a reading.

A structural fault is always a UserError that names file, line and field. A pair that
holds no preference (an empty response, identical ones, equal scores, ...) is a
`BadPair`: data.on_bad_pair decides whether it is an error too, or is dropped and
counted.
"""

from collections import Counter
from collections.abc import Iterable
import dataclasses
from typing import Any, NamedTuple

from alignment.data.chats import MEANINGFUL
from alignment.types import UserError

# Chat messages: each has a 'role' (system, user, assistant or tool) and a 'content'
# (text, or None), and whatever else its file says of it, kept as it is.
Messages = tuple[dict[str, Any], ...]
_MAX_NAMES = 1000  # of ignored fields that are counted: a hostile file has any number
_SHOWN_NAMES = 20
_REPEATED = 20  # characters of a prompt that two replies do not begin with by chance


class Example(NamedTuple):
  """One labelled pair, and where it came from ("pairs.jsonl:17") for messages.

  Its three texts are all strings, to be taken as they are, or all chat messages, which
  the vocabulary writes as its model reads them.
  """

  prompt: str | Messages
  chosen: str | Messages
  rejected: str | Messages
  source: str
  tools: tuple[Any, ...] = ()  # definitions of what messages may call
  scores: tuple[float, float] | None = None  # of chosen and rejected, if the file says
  asked: str = ""  # a text prompt without the system text that it begins with, if so


class BadPair(Exception):
  """A pair without a preference between two replies to one prompt.

  `reason` is what it is counted as ("3 tied"), the message says what is wrong.
  """

  def __init__(self, reason: str, fault: str):
    super().__init__(fault)
    self.reason = reason


@dataclasses.dataclass
class Reading:
  """What became of a source's records: filled by its reader, while it reads."""

  records: int = 0
  repeated: int = 0  # both replies repeated their prompt, which was cut off
  dropped: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason
  _ignored: Counter[str] = dataclasses.field(default_factory=Counter)  # by field

  def ignore(self, fields: Iterable[str]) -> None:
    """Counts fields of a record which nothing reads."""
    for field in fields:
      if field in self._ignored or len(self._ignored) < _MAX_NAMES:
        self._ignored[field] += 1

  @property
  def ignored(self) -> list[str]:
    """Fields that every record had, and nothing read."""
    return sorted(name for name, n in self._ignored.items() if n >= self.records)

  def lines(self) -> list[str]:
    """The reading in words: a line for each kind of thing there is to tell."""
    lines = []
    if self.dropped:
      dropped = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.items())
      lines.append(f"dropped {dropped}")
    if self.repeated:
      lines.append(
        f"{self.repeated:,} pairs repeated their prompt in both responses: cut off"
      )
    if self.ignored:
      names = [n if n.isprintable() else ascii(n) for n in self.ignored[:_SHOWN_NAMES]]
      more = len(self.ignored) - len(names)
      lines.append(
        f"ignored fields: {', '.join(names)}" + (f" and {more} others" if more else "")
      )
    return lines


def drop(bad: BadPair, source: str, on_bad_pair: str, reading: Reading) -> None:
  """Counts a bad pair, or refuses it.

  Raises:
    UserError: `on_bad_pair` is 'error', or neither that nor 'skip'.
  """
  if on_bad_pair not in ("error", "skip"):
    raise UserError(f"data.on_bad_pair is {on_bad_pair!r}; use 'error' or 'skip'")
  if on_bad_pair == "error":
    raise UserError(
      f"{source}: {bad}; mend the line, or set data.on_bad_pair='skip' to drop and"
      " count such pairs"
    ) from bad
  reading.dropped[bad.reason] += 1


def keep(example: Example, on_bad_pair: str, reading: Reading) -> bool:
  """Whether `example` is a real comparison; if not, raises or counts why.

  Raises:
    UserError: the pair is bad and `on_bad_pair` is 'error'.
  """
  try:
    check(example)
    return True
  except BadPair as bad:
    drop(bad, example.source, on_bad_pair, reading)
    return False


def check(example: Example) -> None:
  """Raises BadPair for a pair that holds no preference."""
  for field in ("chosen", "rejected"):
    if _is_empty(getattr(example, field)):
      raise BadPair("empty", f"field '{field}' is empty")
  if example.chosen == example.rejected:
    raise BadPair("identical", "fields 'chosen' and 'rejected' are identical")
  prompt = _last_text(example.asked or example.prompt).strip()
  if len(prompt) >= _REPEATED and all(
    _last_text(reply).lstrip().startswith(prompt)
    for reply in (example.chosen, example.rejected)
  ):
    raise BadPair(
      "repeating their prompt",
      "fields 'chosen' and 'rejected' both begin with the whole prompt",
    )
  if example.scores is not None:
    chosen, rejected = example.scores
    if chosen == rejected:
      raise BadPair("tied", f"'chosen' and 'rejected' have the same score, {chosen}")
    if chosen < rejected:
      raise BadPair(
        "inverted", f"'chosen' has a lower score than 'rejected', {chosen} < {rejected}"
      )


def _is_empty(reply: str | Messages) -> bool:
  if isinstance(reply, str):
    return not reply.strip()
  return all(
    not (message["content"] or "").strip()
    and not any(message.get(field) for field in MEANINGFUL)
    for message in reply
  )


def _last_text(text: str | Messages) -> str:
  """Text, or that of the last message."""
  if isinstance(text, str):
    return text
  return (text[-1]["content"] or "") if text else ""
