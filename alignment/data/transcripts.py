r"""Dialogues as text, "\n\nHuman: ...\n\nAssistant: ...", and what is read out of them.

Anthropic's HH files hold whole transcripts; chat messages become transcripts for a
vocabulary without a chat template. Files and TFDS builders are split by `pair` alike.
"""

from typing import Any

from alignment.data.examples import HIDDEN_FIELDS, BadPair, Example, Messages
from alignment.types import UserError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def split(transcript: str) -> tuple[str, str]:
  r"""The prompt, which ends in "\n\nAssistant:", and the last reply.

  Raises:
    BadPair: the last turn is not the assistant's.
  """
  before, marker, reply = transcript.rpartition(ASSISTANT)
  if not marker or HUMAN in reply:
    raise BadPair("without a last reply", "last turn is not the assistant's")
  return before + marker, reply.removeprefix(" ")


def pair(chosen: str, rejected: str) -> tuple[str, str, str]:
  """(prompt, chosen, rejected) of two transcripts that differ in their last reply.

  Each is split at its own last reply. Where they differ earlier, the replies answer
  different prompts. (Others cut the rejected transcript at the length of the chosen
  one's prompt, which leaves fragments of turns in its place.)

  Raises:
    BadPair: a last turn is not the assistant's, or the prompts differ.
  """
  prompt, chosen_reply = split(chosen)
  other_prompt, rejected_reply = split(rejected)
  if prompt != other_prompt:
    raise BadPair("diverging", "transcripts differ before the last reply")
  return prompt, chosen_reply, rejected_reply


def texts(example: Example) -> tuple[str, str, str]:
  """The prompt and both replies as text: strings as they are, messages as transcripts.

  Raises:
    UserError: a transcript cannot show what the messages hold.
  """
  prompt, chosen, rejected, source, tools, _ = example
  if tools:
    raise _cannot_show("tools", source)
  if isinstance(prompt, str):
    assert isinstance(chosen, str) and isinstance(rejected, str)
    return prompt, chosen, rejected
  assert not isinstance(chosen, str) and not isinstance(rejected, str)
  return (
    _prompt(prompt, source),
    _reply(chosen, "chosen", source),
    _reply(rejected, "rejected", source),
  )


def opening(prompt: str | Messages) -> str:
  """The first user turn, with its mark; of text without marks, all of it."""
  if not isinstance(prompt, str):
    for message in prompt:
      if message["role"] == "user":
        return f"{HUMAN} {message['content']}"
    return ""
  start = prompt.find(HUMAN)
  if start < 0:
    return prompt.partition(ASSISTANT)[0] or prompt
  turn, _, _ = prompt[start + len(HUMAN) :].partition(HUMAN)
  return HUMAN + turn.partition(ASSISTANT)[0]


def with_system(system: str, prompt: str) -> str:
  """A prompt of text after what the system says, as transcripts have it."""
  return system + prompt if prompt.startswith("\n\n") else f"{system}\n\n{prompt}"


def _prompt(messages: Messages, source: str) -> str:
  for i, message in enumerate(messages):
    _check_shown(message, f"prompt[{i}]", source)
  roles = [message["role"] for message in messages]
  num_system = roles.count("system")
  if "system" in roles[num_system:]:
    raise UserError(f"{source}: system messages must come before all others")
  system = "\n\n".join(message["content"] for message in messages[:num_system])
  turns = (
    f"{HUMAN if message['role'] == 'user' else ASSISTANT} {message['content']}"
    for message in messages[num_system:]
  )
  return system + "".join(turns) + ASSISTANT


def _reply(messages: Messages, field: str, source: str) -> str:
  for i, message in enumerate(messages):
    _check_shown(message, f"{field}[{i}]", source)
  if len(messages) != 1:
    raise UserError(f"{source}: field '{field}' must hold one message")
  return messages[0]["content"]


def _check_shown(message: dict[str, Any], name: str, source: str) -> None:
  for field in HIDDEN_FIELDS:
    if message.get(field):
      raise _cannot_show(f"{name}.{field}", source)
  if message["role"] == "tool" or message["content"] is None:
    raise _cannot_show(f"{name}.role", source, f" {message['role']!r}")


def _cannot_show(field: str, source: str, value: str = "") -> UserError:
  return UserError(
    f"{source}: field '{field}'{value} is meant for a chat template, and this"
    " vocabulary has none: take it out of the file, or use a vocabulary with a template"
  )
