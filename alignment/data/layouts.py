"""Layouts of preference data: from a record of a file to an `Example`.

A record's layout is told from its fields: `_LAYOUTS` says what takes a prompt and two
replies out of them. How these join is the same for all. What nothing reads is counted
as ignored. docs/your_data.md shows each layout.
"""

from collections.abc import Callable, Mapping
import functools
import re
from typing import Any, NamedTuple

from alignment.data import messages, transcripts
from alignment.data.examples import BadPair, Example, Messages, Reading
from alignment.data.records import Record
from alignment.types import UserError

# What data.columns may name a file's columns for.
COLUMNS = (
  "prompt",
  "chosen",
  "rejected",
  "system",
  "messages",
  "tools",
  "score_chosen",
  "score_rejected",
)
_NEEDS = (
  "a record needs 'prompt', 'chosen' and 'rejected' as strings or as chat messages, or"
  " 'chosen' and 'rejected' as whole dialogues; data.columns maps other names, and"
  " docs/your_data.md shows all layouts"
)
_SYSTEM = ("system", "system_prompt")
_PROMPTS = ("prompt", "conversations", "messages", "instruction", "question", "input")
_READ = {
  *("chosen", "rejected", "chosen_response", "rejected_response", "rejected_messages"),
  *("preferred_output", "non_preferred_output", "output_1", "output_2"),
  *("preference", "label", "history", "tools", *_SYSTEM, *_PROMPTS),
}
_SCORE = re.compile("score|rating|reward", re.IGNORECASE)

Fields = dict[str, Any]


class _Parts(NamedTuple):
  """A record's prompt and replies, each a string, a message or a list of them."""

  prompt: Any  # None: it is in both replies
  chosen: Any
  rejected: Any
  names: tuple[str, str, str] = ("prompt", "chosen", "rejected")  # for messages


def read(record: Record, columns: Mapping[str, str], reading: Reading) -> Example:
  """The pair of a record.

  Args:
    record: a file's record.
    columns: what its fields are called, by what they are called here (`mapping`).
    reading: counts the record, and the fields that nothing reads.

  Raises:
    UserError: a structural fault, named with its source and field.
    BadPair: the two replies do not answer one prompt.
  """
  reading.records += 1
  source = record.source
  fields = _renamed(record.fields, columns, source)
  scores, system = _scores(fields), _system(fields, source)
  parts = _parts(fields, source)
  tools = _tools(fields.pop("tools", None), source)
  join: Callable[..., tuple[Any, Any, Any]] = _texts
  if any(isinstance(part, list | dict) for part in parts[:3]):
    join = _messages
  asked, chosen, rejected = join(parts, source, reading)
  prompt = _with_system(system, asked, source)
  replaced = columns.keys() & record.fields.keys() - set(columns.values())
  reading.ignore([*fields, *replaced])
  asked = asked if isinstance(asked, str) and system else ""
  return Example(prompt, chosen, rejected, source, tools, scores, asked)


def read_prompt(record: Record, columns: Mapping[str, str]) -> Example:
  """The prompt of a record, which may have replies or none, as a pair without any.

  Raises:
    UserError: as `read`; or it has no prompt.
    BadPair: as `read`.
  """
  source = record.source
  fields = _renamed(record.fields, columns, source)
  if any(all(fields.get(n) is not None for n in names) for names, _ in _LAYOUTS):
    return read(record, columns, Reading())._replace(chosen="", rejected="")
  system = _system(fields, source)
  prompt, name = _prompt(fields, source)
  if prompt is None:
    raise UserError(f"{source}: field 'prompt' is missing")
  if isinstance(prompt, str):
    text = messages.string(prompt, name, source)
    whole = _with_system(system, text, source)
    return Example(whole, "", "", source, asked=text if system else "")
  turns = list(messages.turns(prompt, name, "user", source, set()))
  while turns and turns[-1]["role"] == "assistant":  # the record's reply
    turns.pop()
  if not turns:
    raise UserError(f"{source}: field '{name}' has no message of a user")
  return Example(_with_system(system, tuple(turns), source), "", "", source)


def mapping(columns: Mapping[str, str]) -> dict[str, str]:
  """Of `data.columns` what is mapped.

  Raises:
    UserError: a name that no layout knows.
  """
  for name, column in columns.items():
    if name not in COLUMNS or not isinstance(column, str):
      raise UserError(
        f"data.columns has '{name}': {column!r}; it maps {', '.join(COLUMNS)} to names"
      )
  return {name: column for name, column in columns.items() if column}


def wanted(columns: Mapping[str, str]) -> Callable[[str], bool]:
  """Whether a column of that name may be read."""
  names = _READ | set(columns.values())
  return lambda name: name in names or _SCORE.search(name) is not None


def _renamed(fields: Fields, columns: Mapping[str, str], source: str) -> Fields:
  """The fields by the names that layouts know: what is mapped, first, and the rest."""
  for name, column in columns.items():
    if fields.get(column) is None:
      raise UserError(
        f"{source}: field '{column}', which data.columns.{name} names, is missing"
      )
  mapped = {name: fields[column] for name, column in columns.items()}
  others = fields.keys() - set(columns.values()) - mapped.keys()
  return mapped | {name: value for name, value in fields.items() if name in others}


# --- which fields are what ------------------------------------------------------------


def _parts(fields: Fields, source: str) -> _Parts:
  """Takes a record's prompt and replies out of its fields."""
  for names, take in _LAYOUTS:
    if all(fields.get(name) is not None for name in names):
      return take(fields, source)
  for field in ("chosen", "rejected"):
    if field not in fields:
      raise UserError(f"{source}: field '{field}' is missing; {_NEEDS}")
  raise UserError(f"{source}: field '{field}' is null, not a string; {_NEEDS}")


def _chosen_rejected(fields: Fields, source: str) -> _Parts:
  """TRL's, UltraFeedback's, axolotl's, LLaMA-Factory's, Anthropic's."""
  chosen, rejected = fields.pop("chosen"), fields.pop("rejected")
  if isinstance(chosen, list) and fields.get("messages") == chosen:
    del fields["messages"]  # UltraFeedback has the chosen dialogue twice
  prompt, name = _prompt(fields, source)
  return _Parts(prompt, chosen, rejected, (name, "chosen", "rejected"))


def _responses(fields: Fields, source: str) -> _Parts:
  """Argilla's."""
  names = "chosen_response", "rejected_response"
  prompt, name = _prompt(fields, source)
  return _Parts(prompt, fields.pop(names[0]), fields.pop(names[1]), (name, *names))


def _openai(fields: Fields, source: str) -> _Parts:
  names = "input.messages", "preferred_output", "non_preferred_output"
  request = fields.pop("input", None)
  if not isinstance(request, dict) or request.get("messages") is None:
    raise UserError(f"{source}: field 'input.messages' is missing")
  request = dict(request)
  dialogue, tools = request.pop("messages"), request.pop("tools", None)
  if fields.get("tools") is None:
    fields["tools"] = tools
  fields |= {f"input.{name}": value for name, value in request.items()}  # ignored
  return _Parts(dialogue, fields.pop(names[1]), fields.pop(names[2]), names)


def _swift(fields: Fields, source: str) -> _Parts:
  """ms-swift's: a dialogue, and another last reply."""
  dialogue = fields.pop("messages")
  if not isinstance(dialogue, list) or not dialogue:
    raise messages.no_messages("messages", source)
  names = "messages", f"messages[{len(dialogue) - 1}]", "rejected_response"
  return _Parts(dialogue[:-1], dialogue[-1], fields.pop(names[2]), names)


def _swift_dialogues(fields: Fields, source: str) -> _Parts:
  del source
  names = "messages", "messages", "rejected_messages"
  return _Parts(None, fields.pop(names[1]), fields.pop(names[2]), names)


def _numbered(fields: Fields, source: str) -> _Parts:
  """AlpacaFarm's and LLMBar's: two outputs, and which is better."""
  prompt, name = _prompt(fields, source)
  outputs = fields.pop("output_1"), fields.pop("output_2")
  field = "preference" if fields.get("preference") is not None else "label"
  better = fields.pop(field, None)
  if isinstance(better, bool) or better not in (1, 2):  # true equals 1
    raise UserError(f"{source}: field '{field}' is {better!r}; it must be 1 or 2")
  if better == 1:
    return _Parts(prompt, *outputs, (name, "output_1", "output_2"))
  return _Parts(prompt, *outputs[::-1], (name, "output_2", "output_1"))


# The fields a layout is told by, none of them null, and what takes them.
_LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Fields, str], _Parts]], ...] = (
  (("chosen", "rejected"), _chosen_rejected),
  (("chosen_response", "rejected_response"), _responses),
  (("preferred_output", "non_preferred_output"), _openai),
  (("messages", "rejected_response"), _swift),
  (("messages", "rejected_messages"), _swift_dialogues),
  (("output_1", "output_2"), _numbered),
)


def _prompt(fields: Fields, source: str) -> tuple[Any, str]:
  """What a record has as its prompt, or None, and its field's name."""
  for name in _PROMPTS:
    if fields.get(name) is not None:
      if name == "instruction":
        return _instruction(fields, source), name
      return fields.pop(name), name
  return None, "prompt"


def _instruction(fields: Fields, source: str) -> Any:
  """Alpaca's: an instruction and its input; with `history`, a dialogue's last turn."""
  text = messages.string(fields.pop("instruction"), "instruction", source)
  text_input = fields.pop("input", None)
  if text_input:
    text += "\n" + messages.string(text_input, "input", source)
  if "history" not in fields:
    return text
  dialogue = []
  history = fields.pop("history")
  if not isinstance(history, list | None):
    raise UserError(f"{source}: field 'history' must be a list of turns")
  for i, turns in enumerate(history or ()):
    if not isinstance(turns, list) or len(turns) != 2:
      raise UserError(
        f"{source}: field 'history[{i}]' must be a question and an answer"
      )
    for role, content in zip(("user", "assistant"), turns, strict=True):
      dialogue.append({"role": role, "content": content})
  return [*dialogue, {"role": "user", "content": text}]


def _system(fields: Fields, source: str) -> str:
  for name in _SYSTEM:
    if value := fields.pop(name, None):
      return messages.string(value, name, source)
  return ""


def _tools(value: Any, source: str) -> tuple[Any, ...]:
  """Definitions of tools, which some write as a string of JSON."""
  if isinstance(value, str) and value.strip():
    value = messages.parsed(value, "tools", source)
  if not value or value == " ":
    return ()
  if not isinstance(value, list):
    raise UserError(f"{source}: field 'tools' must be a list of tools")
  return tuple(value)


def _scores(fields: Fields) -> tuple[float, float] | None:
  """Takes the first two numbers that score both replies; others stay to be named."""
  for names in _score_names(tuple(fields)):
    chosen, rejected = (fields[name] for name in names)
    if _is_number(chosen) and _is_number(rejected):
      for name in names:
        del fields[name]
      return chosen, rejected
  return None


def _is_number(value: Any) -> bool:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and value == value  # not NaN


@functools.lru_cache(maxsize=256)
def _score_names(names: tuple[str, ...]) -> list[tuple[str, str]]:
  """Every two fields that may score 'chosen' and 'rejected', such as chosen-rating."""
  others = (name.replace("chosen", "rejected") for name in names)
  return [
    (name, other)
    for name, other in zip(names, others, strict=True)
    if other != name and other in names and _SCORE.search(name)
  ]


# --- joining them to an example -------------------------------------------------------


def _texts(parts: _Parts, source: str, reading: Reading) -> tuple[str, str, str]:
  """Strings as they are, or the parts of whole transcripts."""
  prompt_name, chosen_name, rejected_name = parts.names
  chosen = messages.string(parts.chosen, chosen_name, source)
  rejected = messages.string(parts.rejected, rejected_name, source)
  if parts.prompt is None:
    if transcripts.ASSISTANT not in chosen:
      raise UserError(f"{source}: field 'prompt' is missing; {_NEEDS}")
    texts = transcripts.pair(chosen, rejected)
  else:
    prompt = messages.string(parts.prompt, prompt_name, source)
    texts = prompt, chosen, rejected
    if _are_whole(prompt, chosen, rejected):
      texts = transcripts.pair(chosen, rejected)
      if prompt.strip() not in texts[0]:
        raise BadPair("of another prompt", f"field '{prompt_name}' is not in both")
      reading.repeated += 1
    elif prompt.endswith(transcripts.ASSISTANT):
      for name, reply in (chosen_name, chosen), (rejected_name, rejected):
        if transcripts.HUMAN in reply:
          raise BadPair("diverging", f"field '{name}' holds another human turn")
  return texts


def _are_whole(prompt: str, chosen: str, rejected: str) -> bool:
  """Whether replies are whole transcripts, the prompt and its marks included."""
  if chosen.startswith(transcripts.HUMAN) or rejected.startswith(transcripts.HUMAN):
    return True
  if transcripts.HUMAN not in prompt:
    return False
  return chosen.startswith(prompt) and rejected.startswith(prompt)


def _messages(
  parts: _Parts, source: str, reading: Reading
) -> tuple[Messages, Messages, Messages]:
  """Chat messages, of which any part may be a string."""
  extra: set[str] = set()
  prompt_name, *names = parts.names
  if isinstance(parts.chosen, list) != isinstance(parts.rejected, list):
    raise messages.no_messages(names[isinstance(parts.chosen, list)], source)
  chosen, rejected = (
    messages.turns(value, name, "assistant", source, extra)
    for value, name in zip(parts[1:3], names, strict=True)
  )
  are_whole = all(reply[0]["role"] != "assistant" for reply in (chosen, rejected))
  if parts.prompt is None or (isinstance(parts.prompt, str) and are_whole):
    shared = _num_shared(chosen, rejected)
    prompt = chosen[:shared]
    if parts.prompt is not None:
      text = messages.string(parts.prompt, prompt_name, source).strip()
      if text not in [(message["content"] or "").strip() for message in prompt]:
        raise BadPair("of another prompt", f"field '{prompt_name}' is not in both")
  else:
    prompt = messages.turns(parts.prompt, prompt_name, "user", source, extra)
    repeated = all(reply[: len(prompt)] == prompt for reply in (chosen, rejected))
    shared = len(prompt) if repeated else 0
    reading.repeated += repeated
  if prompt and prompt[-1]["role"] not in ("user", "tool"):
    raise BadPair(
      "without a question", "the prompt must end with a message of role 'user'"
    )
  chosen, rejected = chosen[shared:], rejected[shared:]
  for reply, name in zip((chosen, rejected), names, strict=True):
    _check_reply(reply, name)
  if not prompt:
    raise BadPair(
      "without a question", "the prompt must end with a message of role 'user'"
    )
  reading.ignore(f"{field} of messages" for field in extra)
  return prompt, chosen, rejected


def _num_shared(chosen: Messages, rejected: Messages) -> int:
  """How many messages two dialogues share at their start, the last left out."""
  limit = min(len(chosen), len(rejected)) - 1
  return next((i for i in range(limit) if chosen[i] != rejected[i]), limit)


def _check_reply(reply: Messages, name: str) -> None:
  """A reply is one message, or several around calls of tools."""
  if not reply or reply[-1]["role"] != "assistant":
    role = reply[-1]["role"] if reply else "user"
    raise BadPair(
      "without a last reply",
      f"field '{name}' ends with role '{role}'; it must be 'assistant'",
    )
  for message in reply[:-1]:
    if message["role"] != "tool" and not message.get("tool_calls"):
      raise BadPair(
        "diverging",
        f"field '{name}' must hold one message beside the prompt, and dialogues must"
        " share all but the last message",
      )


def _with_system(system: str, prompt: str | Messages, source: str) -> str | Messages:
  if not system:
    return prompt
  if isinstance(prompt, str):
    return transcripts.with_system(system, prompt)
  message = {"role": "system", "content": system}
  if prompt[0]["role"] != "system":
    return message, *prompt
  if prompt[0]["content"] != system:
    raise UserError(f"{source}: field 'system' differs from the prompt's own")
  return prompt
