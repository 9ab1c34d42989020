"""Where each token of a pair comes from, in words, for a person who looks at it.

A prompt's tokens come from its messages ("system", "user 1", "assistant 1", ...), from
what the vocabulary writes around these ("template"; "beginning" and "ending" at the
prompt's ends), or, of a plain text, from that ("prompt"). A response's are "response"
and "ending".
"""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import itertools
import re

from alignment.data import chats
from alignment.data.chats import Conversation
from alignment.data.vocabularies import FittedPrompt, Vocabulary
from alignment.types import UserError

TEMPLATE, BEGINNING, ENDING = "template", "beginning", "ending"
_PROMPT, _RESPONSE = "prompt", "response"
# Around a message's content while it is rendered: none is a character, so no text has
# them and no template looks for them. Between the first two is the message's number.
# Templates that write JSON spell them as escapes.
_OPEN, _OPENED, _CLOSE = "\ufdd1", "\ufdd2", "\ufdd3"
_MARK = re.compile(r"(?:\ufdd1|\\ufdd1)(\d+)(?:\ufdd2|\\ufdd2)|(?:\ufdd3|\\ufdd3)")


def of_prompt(vocabulary: Vocabulary, fitted: FittedPrompt) -> list[str]:
  """The origin of each of a fitted prompt's ids."""
  prompt = fitted.prompt
  if isinstance(prompt, str):
    prompt = chats.parse_transcript(prompt) or prompt
  whole = vocabulary.prompt(prompt)
  before, after = vocabulary.around(prompt)
  start, end = len(before), len(whole) - len(after)
  origins = [
    *[BEGINNING] * len(before),
    *_of_text(vocabulary, prompt, whole[start:end]),
    *[ENDING] * len(after),
  ]
  excess = len(whole) - len(fitted.ids)
  if excess == 0:
    return origins  # otherwise it is of a text that lost a side
  if whole[start + excess : end] == fitted.ids[start : end - excess]:
    return origins[:start] + origins[start + excess :]
  return origins[: end - excess] + origins[end:]


def of_response(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
  """The origin of each of a response's ids."""
  ended = ids[-1:] == [vocabulary.eos_id]
  return [_RESPONSE] * (len(ids) - ended) + [ENDING] * ended


def runs(ids: list[int], origins: list[str]) -> Iterator[tuple[str, list[int]]]:
  """Ids side by side that have one origin, with it."""
  both = zip(origins, ids, strict=True)
  for origin, group in itertools.groupby(both, lambda pair: pair[0]):
    yield origin, [i for _, i in group]


def _of_text(
  vocabulary: Vocabulary, prompt: str | Conversation, ids: list[int]
) -> list[str]:
  """Of the ids between a prompt's ends; "prompt" where more cannot be told."""
  if isinstance(prompt, str):
    return [_PROMPT] * len(ids)
  try:
    parts = _MARK.split(vocabulary.rendered(_with_marks(prompt)))
  except UserError:  # of a template that cannot take marks
    return [_PROMPT] * len(ids)
  if "".join(parts[::2]) != vocabulary.rendered(prompt):
    return [_PROMPT] * len(ids)
  origins: list[str] = []
  text, origin, names = "", TEMPLATE, _names(prompt)
  for part, number in zip(parts[::2], [*parts[1::2], None], strict=True):
    text += part
    # A token that crosses the part's end differs there, and belongs to the next part.
    end = _num_equal(vocabulary.encode_rendered(text), ids)
    origins += [origin] * (end - len(origins))
    origin = TEMPLATE if number is None else names[int(number)]
  return origins


def _num_equal(first: list[int], second: list[int]) -> int:
  """How many ids two lists share at their start."""
  pairs = enumerate(zip(first, second, strict=False))
  return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _with_marks(conversation: Conversation) -> Conversation:
  messages = []
  for i, message in enumerate(conversation.messages):
    if isinstance(content := message.get("content"), str):
      text = content.strip()  # templates may trim what is outside
      before, _, after = content.partition(text) if text else ("", "", content)
      content = f"{before}{_OPEN}{i}{_OPENED}{text}{_CLOSE}{after}"
    messages.append({**message, "content": content})
  return dataclasses.replace(conversation, messages=tuple(messages))


def _names(conversation: Conversation) -> list[str]:
  """What each message is called: its role, and of several the how manieth it is."""
  count: Counter[str] = Counter()
  names = []
  for message in conversation.messages:
    role = str(message["role"])
    count[role] += 1
    names.append(f"{role} {count[role]}" if role != "system" else role)
  return names
