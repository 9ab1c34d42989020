r"""Conversations, and the two ways to write them as text.

A conversation is a list of messages as every library has them, {role, content, ...}.
A model that was trained on chats brings a template, which is code from data and runs
bounded, in a process of its own (`template_worker.py`). All others read a transcript
in Anthropic's layout: "\n\nHuman: ...\n\nAssistant: ...".
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
from typing import Any
import weakref

from alignment.types import UserError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
REASONING = ("reasoning_content", "thinking", "reasoning")  # three names for one field

SECONDS = 5.0  # of processor time for one conversation
MAX_CHARACTERS = 20_000_000  # of one rendered conversation
MAX_SOURCE = 1_000_000  # characters of a template
MAX_BYTES = 2**30  # of the process that renders

Message = Mapping[str, Any]
Reply = str | Message | Sequence[Message]  # of one message
# What a message may say beside its content. Other fields (who rated it, when, ...) say
# nothing to a model; the reader of the data names them.
MEANINGFUL = (*REASONING, "tool_calls", "function_call", "tools")


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages in order, and the tools (JSON schemas) that the model may call."""

  messages: tuple[Message, ...]
  tools: tuple[Any, ...] = ()

  def then(self, *messages: Message) -> "Conversation":
    return dataclasses.replace(self, messages=(*self.messages, *messages))


def assistant(reply: Reply) -> Message:
  """A reply as a message.

  Raises:
    UserError: it is not one message of the assistant's.
  """
  if isinstance(reply, str):
    return {"role": "assistant", "content": reply}
  messages = [reply] if isinstance(reply, Mapping) else list(reply)
  if [message.get("role") for message in messages] != ["assistant"]:
    raise UserError("a reply must be one message of role 'assistant'")
  return messages[0]


def hidden_fields(conversation: Conversation) -> list[str]:
  """What is said beside roles and contents, by field, sorted; empty ones do not count.

  A reply without them is another reply, so who writes a conversation must write these
  or refuse it.
  """
  fields = {
    field
    for message in conversation.messages
    for field in MEANINGFUL
    if message.get(field) not in (None, "", [], {}, ())
  }
  return sorted(fields | ({"tools"} if conversation.tools else set()))


def without(conversation: Conversation, field: str) -> Conversation:
  """The conversation as if it had no such field."""
  names = REASONING if field in REASONING else (field,)
  return Conversation(
    tools=() if field == "tools" else conversation.tools,
    messages=tuple(
      {key: value for key, value in message.items() if key not in names}
      for message in conversation.messages
    ),
  )


# --- transcripts ----------------------------------------------------------------------


def transcript(conversation: Conversation) -> str:
  r"""A prompt's text: system messages as they are, the turns, and "\n\nAssistant:".

  Raises:
    UserError: the layout has no place for a message or for one of its fields.
  """
  if fields := hidden_fields(conversation):
    raise UserError(
      f"field '{fields[0]}' of a message has no place in a transcript; use a vocabulary"
      " with a chat template that renders it, or take it out of the data"
    )
  messages = conversation.messages
  roles = [message.get("role") for message in messages]
  if not roles or roles[-1] != "user":
    raise UserError("the prompt must end with a message of role 'user'")
  num_system = roles.count("system")
  if "system" in roles[num_system:]:
    raise UserError("system messages must come before all others")
  for role, message in zip(roles, messages, strict=True):
    if role not in ("system", "user", "assistant"):
      raise UserError(f"role {role!r} has no place in a transcript")
    if not isinstance(message.get("content"), str):
      raise UserError("a message's content must be text to stand in a transcript")
  system = "\n\n".join(message["content"] for message in messages[:num_system])
  turns = (
    f"{HUMAN if message['role'] == 'user' else ASSISTANT} {message['content']}"
    for message in messages[num_system:]
  )
  return system + "".join(turns) + ASSISTANT


def parse_transcript(text: str) -> Conversation | None:
  """The conversation whose `transcript` is exactly `text`; None if there is none.

  Text before the first turn is a system message.
  """
  if not text.endswith(ASSISTANT):
    return None
  system, *parts = re.split(f"({HUMAN}|{ASSISTANT})", text.removesuffix(ASSISTANT))
  messages = [{"role": "system", "content": system}] if system else []
  for mark, content in zip(parts[::2], parts[1::2], strict=True):
    role = "user" if mark == HUMAN else "assistant"
    messages.append({"role": role, "content": content.removeprefix(" ")})
  conversation = Conversation(tuple(messages))
  try:
    return conversation if transcript(conversation) == text else None
  except UserError:
    return None


# --- templates ------------------------------------------------------------------------


class ChatTemplate:
  """A model's chat template; rendering is one exchange with a process.

  `names` are the special tokens' texts that templates may write (`bos_token`, ...).
  """

  def __init__(self, source: str, where: str | Path, names: Mapping[str, str]):
    """Takes the template's text, and the file's name for messages.

    Raises:
      UserError: the text is too long to be a template.
    """
    if len(source) > MAX_SOURCE:
      raise UserError(f"{where}: the chat template has over {MAX_SOURCE:,} characters")
    self.source, self._where = source, where
    self._names = dict(names)
    self._process: subprocess.Popen[str] | None = None
    self._owner = 0
    self._ask = functools.lru_cache(maxsize=4)(self._render)

  def render(self, conversation: Conversation, *, as_prompt: bool) -> str:
    """The conversation as the template writes it; a prompt ends where replies begin.

    Raises:
      UserError: the template fails, or needs more time, memory or text than it may.
    """
    variables = {
      **self._names,
      "messages": [_with_reasoning(message) for message in conversation.messages],
      "tools": list(conversation.tools) or None,
      "documents": None,
      "add_generation_prompt": as_prompt,
    }
    try:
      request = json.dumps(variables)
    except (TypeError, ValueError, RecursionError) as e:
      raise UserError("a message holds what is not JSON") from e
    return self._ask(request)

  def _render(self, request: str) -> str:
    if self._process is None or self._owner != os.getpid():  # a fork shares no pipes
      self._process, self._owner = self._start(), os.getpid()
    return self._exchange(self._process, request)

  def _start(self) -> "subprocess.Popen[str]":
    # A session of its own: Ctrl-C is for the program, whose end closes the pipe.
    process = subprocess.Popen(
      [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
      encoding="ascii",
    )
    weakref.finalize(self, _stop, process)
    limits = {"seconds": SECONDS, "characters": MAX_CHARACTERS, "bytes": MAX_BYTES}
    self._exchange(process, json.dumps({"source": self.source, **limits}))
    return process

  def _exchange(self, process: "subprocess.Popen[str]", line: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    try:
      process.stdin.write(line + "\n")
      process.stdin.flush()
      reply = process.stdout.readline()
    except BrokenPipeError:
      reply = ""
    if not reply.endswith("\n"):
      self._process = None
      if process.wait() == -signal.SIGPROF:
        fault = f"it takes over {SECONDS:g} s of processor time"
      else:
        fault = f"it ended its process (status {process.returncode})"
    elif "text" in (answer := json.loads(reply)):
      return answer["text"]
    else:
      fault = _one_line(answer["error"])
    raise UserError(f"{self._where}: the chat template fails: {fault}")


def _stop(process: "subprocess.Popen[str]") -> None:
  process.kill()
  process.wait()
  for pipe in (process.stdin, process.stdout):
    if pipe is not None:
      try:
        pipe.close()
      except OSError:
        pass


def _with_reasoning(message: Message) -> Message:
  """Reasoning under each name that a template may know it by, as transformers does."""
  reasoning = next((message[k] for k in REASONING if message.get(k) is not None), None)
  if reasoning is None:
    return message
  return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _one_line(text: str) -> str:
  printable = "".join(c if c.isprintable() else " " for c in text)
  return " ".join(printable.split())[:200]
