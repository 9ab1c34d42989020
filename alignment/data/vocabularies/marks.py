"""A chat template's marks, learned from what it writes: from a prompt back to messages.

A template cannot be inverted, but most write a mark before and after each message. Who
reads a text by these marks compares what the template writes of the messages with it.
"""

from collections.abc import Callable
import dataclasses
import re

from alignment.data.chats import Conversation, Message
from alignment.types import UserError

_SYSTEM, _FIRST, _REPLY, _LAST = "Sy5Kw", "Us1Qx", "Re7Zy", "La3Vj"


@dataclasses.dataclass(frozen=True)
class Marks:
  """What stands around messages in a prompt."""

  opening: str  # before a first message that is a user's
  system: tuple[str, str] | None  # before a system message, and after it
  to_reply: str  # between a user's message and the reply
  to_user: str  # between a reply and the user's next message
  end: str  # after the last message

  @classmethod
  def of(cls, write: Callable[[Conversation], str]) -> "Marks | None":
    """Those of a template that writes prompts; None if it has no such marks."""
    chat = ("user", _FIRST), ("assistant", _REPLY), ("user", _LAST)
    turns = _around(write, *chat)
    if turns is None:
      return None
    opening, to_reply, to_user, end = turns
    with_system = _around(write, ("system", _SYSTEM), ("user", _LAST))
    system = None
    if with_system is not None and with_system[2] == end and with_system[1]:
      system = with_system[0], with_system[1]
    if not to_reply or not to_user or to_reply == to_user:
      return None
    return cls(opening, system, to_reply, to_user, end)

  def read(self, text: str) -> list[Conversation]:
    """The conversations that a prompt may be, likelier ones first."""
    if not text.endswith(self.end):
      return []
    body = text[: len(text) - len(self.end)]
    bodies: list[tuple[str, tuple[Message, ...]]] = []
    if self.system and body.startswith(self.system[0]):
      system, mark, rest = body.removeprefix(self.system[0]).partition(self.system[1])
      if mark:
        bodies.append((rest, ({"role": "system", "content": system},)))
    if body.startswith(self.opening):
      bodies.append((body.removeprefix(self.opening), ()))
    turns = [(before, self._turns(rest)) for rest, before in bodies]
    # A prompt ends with a user's message.
    return [Conversation((*before, *t)) for before, t in turns if len(t) % 2]

  def _turns(self, body: str) -> list[Message]:
    marks = f"{re.escape(self.to_reply)}|{re.escape(self.to_user)}"
    return [
      {"role": ("user", "assistant")[i % 2], "content": content}
      for i, content in enumerate(re.split(marks, body))
    ]


def _around(
  write: Callable[[Conversation], str], *messages: tuple[str, str]
) -> list[str] | None:
  """What is written before, between and after the contents of (role, content)."""
  contents = [content for _, content in messages]
  conversation = Conversation(
    tuple({"role": role, "content": content} for role, content in messages)
  )
  try:
    text = write(conversation)
  except UserError:  # the template has no place for such messages
    return None
  parts = re.split("|".join(contents), text)
  return parts if re.findall("|".join(contents), text) == contents else None
