"""Chat messages of a record, in the spellings that files have, checked."""

import json
from typing import Any

from alignment.data.examples import MEANINGFUL, Messages
from alignment.types import UserError

_ROLES = {
  "system": "system",
  "developer": "system",
  "user": "user",
  "human": "user",
  "assistant": "assistant",
  "gpt": "assistant",
  "tool": "tool",
  "observation": "tool",
  "function_call": "assistant",
}
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_TOOL_FIELDS = ("name", "tool_call_id")  # of a tool's message


def turns(value: Any, name: str, role: str, source: str, extra: set[str]) -> Messages:
  """Messages of a list, of one alone, or of a string that one of that role says."""
  if isinstance(value, str):
    return ({"role": role, "content": string(value, name, source)},)
  if isinstance(value, dict):
    return (_message(value, name, source, extra),)
  if not isinstance(value, list) or not value:
    raise no_messages(name, source)
  return tuple(_message(m, f"{name}[{i}]", source, extra) for i, m in enumerate(value))


def _message(value: Any, name: str, source: str, extra: set[str]) -> dict[str, Any]:
  """A message with 'role' and 'content' (or 'from' and 'value'), checked."""
  spelling = ("role", "content")
  if isinstance(value, dict) and "from" in value:
    spelling = ("from", "value")
  if not isinstance(value, dict) or spelling[0] not in value:
    raise UserError(
      f"{source}: field '{name}' must be an object with 'role' and 'content'"
    )
  message = dict(value)
  said = string(message.pop(spelling[0]), f"{name}.{spelling[0]}", source)
  if said not in _ROLES:
    raise UserError(
      f"{source}: field '{name}.{spelling[0]}' is {said!r}; use system, user, assistant"
      " or tool"
    )
  role = _ROLES[said]
  content = message.pop(spelling[1], None)
  if said == "function_call":
    call = parsed(content, f"{name}.{spelling[1]}", source)
    message["tool_calls"] = [{"type": "function", "function": call}]
    content = None
  if content is not None or not any(message.get(field) for field in MEANINGFUL):
    content = _content(content, f"{name}.{spelling[1]}", source)
  message = {key: item for key, item in message.items() if item not in _NOTHING}
  told = {"role", "content", *MEANINGFUL, *(_TOOL_FIELDS if role == "tool" else ())}
  extra.update(message.keys() - told)
  return message | {"role": role, "content": content}


def _content(value: Any, name: str, source: str) -> str:
  """A message's text, which may come in parts."""
  if not isinstance(value, list):
    return string(value, name, source)
  texts = []
  for i, part in enumerate(value):
    if not isinstance(part, dict) or part.get("type") != "text":
      raise UserError(f"{source}: field '{name}[{i}]' is no text: only text is read")
    texts.append(string(part.get("text"), f"{name}[{i}].text", source))
  return "".join(texts)


def parsed(text: Any, name: str, source: str) -> Any:
  try:
    return json.loads(string(text, name, source))
  except (ValueError, RecursionError) as e:
    raise UserError(f"{source}: field '{name}' must be JSON") from e


def string(value: Any, name: str, source: str) -> str:
  if not isinstance(value, str):
    kind = "null" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{source}: field '{name}' is {kind}, not a string")
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise UserError(
      f"{source}: field '{name}' has a lone surrogate (character {e.start + 1}), which"
      " is no text; write the character whole"
    ) from e
  return value


def no_messages(name: str, source: str) -> UserError:
  return UserError(
    f"{source}: field '{name}' must be a list of chat messages, not empty, as the"
    " record's other fields are"
  )
