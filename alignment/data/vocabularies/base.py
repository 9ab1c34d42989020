"""What a vocabulary is: text to token ids and back, prompts, and a judge's marks."""

import abc
from collections.abc import Iterable, Mapping, Sequence
import dataclasses

from alignment.data import chats
from alignment.data.chats import Conversation, Reply
from alignment.types import UserError


@dataclasses.dataclass(frozen=True)
class JudgeMarkers:
  """What surrounds two responses in a preference model's input, and its two answers.

  The model reads `prompt before_first y1 before_second y2 end`; the logits of
  `first_id` and `second_id` at the next token say which response is better.
  `before_prompt` are the ids that every prompt begins with (BOS): where a prompt is cut
  on its left side they stay, and are not written twice.
  """

  before_first: tuple[int, ...]
  before_second: tuple[int, ...]
  end: tuple[int, ...]
  first_id: int
  second_id: int
  before_prompt: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
  """A prompt's ids, and what it lost to fit."""

  ids: list[int]
  whole: list[int]  # the ids before anything was cut
  prompt: (
    str | Conversation
  )  # what of it is in `ids`; a text that was cut is whole here
  messages_cut: int = 0  # whole ones, from the oldest on
  text_cut: bool = False  # a part of the text, or of the last message, is gone


class Vocabulary(abc.ABC):
  """A map between text and ids; what a model reads before a response, and in it.

  A prompt is a text, taken as it is, or a conversation, which the vocabulary writes as
  its model expects it. Prompt and response become ids apart and are joined as ids, so
  neither moves the other's boundary.

  `size` is one more than the largest live id: a model's rows above it are dead.
  `fingerprint` is the sha256 (hex) of all that determines the map and how conversations
  are written, so that artefacts made with another one are not reused.
  """

  size: int
  fingerprint: str
  eos_id: int  # what ends a response in data
  ending_ids: tuple[int, ...]  # any of these ends a response; `eos_id` is one
  pad_id: int | None  # may be an ending id: masks come from lengths alone
  unk_id: int | None  # what stands for text that the vocabulary lacks
  dead_ids: tuple[int, ...]  # below `size`, and never generated
  before_prompt: tuple[int, ...] = ()  # begins a prompt that is a text (BOS)
  after_prompt: tuple[int, ...] = ()  # ends a prompt that is a text
  judge_markers: JudgeMarkers

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """The ids of `text` and nothing around them; text never yields an ending id."""

  @abc.abstractmethod
  def tokens(self) -> Mapping[str, int]:
    """Every token's spelling with its id: two vocabularies that agree share models."""

  @abc.abstractmethod
  def files(self) -> Mapping[str, bytes]:
    """The files, by name, from which transformers makes this tokenizer."""

  @abc.abstractmethod
  def _text(self, ids: list[int]) -> str:
    """The text of ids in [0, size) among which is neither pad nor an end."""

  def decode(self, ids: Iterable[int]) -> str:
    """A response's text: `ids` up to the first ending id, pads left out.

    Raises:
      ValueError: an id is outside [0, size), so it comes from another vocabulary.
    """
    kept = []
    for i in self._checked(ids):
      if i in self.ending_ids:
        break
      if i != self.pad_id:
        kept.append(i)
    return self._text(kept)

  def decode_prompt(self, ids: Iterable[int]) -> str:
    """A prompt's text, with the marks that stand in it.

    Raises:
      ValueError: as `decode`.
    """
    return self.decode(ids)

  def conversation(self, ids: Iterable[int]) -> Conversation | None:
    """The messages of which a prompt was written; None for one that is a text."""
    del ids
    return None

  def unknown(self, ids: Sequence[int], text: str = "") -> int:
    """How much of a text the vocabulary lacks.

    That is how many of its ids stand for what is unknown, and how many of its bytes
    leave no id at all.
    """
    del text
    return 0 if self.unk_id is None else ids.count(self.unk_id)

  def prompt(self, prompt: str | Conversation) -> list[int]:
    """All ids of a prompt.

    Raises:
      UserError: a text or a conversation that this vocabulary cannot write.
    """
    before, after = self.around(prompt)
    return [*before, *self.encode_rendered(self.rendered(prompt)), *after]

  def rendered(self, prompt: str | Conversation) -> str:
    """A prompt as the text that becomes its ids.

    Raises:
      UserError: as `prompt`.
    """
    return prompt if isinstance(prompt, str) else chats.transcript(prompt)

  def encode_rendered(self, text: str) -> list[int]:
    """The ids of what is `rendered`."""
    return self.encode(text)

  def around(
    self, prompt: str | Conversation
  ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that stand before and after what is rendered."""
    del prompt
    return self.before_prompt, self.after_prompt

  def response(self, prompt: str | Conversation, reply: Reply) -> list[int]:
    """The ids of a reply to `prompt`, with `eos_id` at the end.

    Raises:
      UserError: as `prompt`; or a part of the reply would be lost.
    """
    return [*self.encode(text_of(reply)), self.eos_id]

  def written(self, prompt: str | Conversation, text: str) -> list[int]:
    """The ids, without an end, of what a model wrote to `prompt` in any vocabulary.

    Nothing is refused: what this vocabulary lacks is unknown, and a mark's spelling is
    text.
    """
    del prompt
    return self.encode(text)

  def fit_prompt(
    self, prompt: str | Conversation, limit: int, side: str
  ) -> FittedPrompt:
    """The prompt in at most `limit` ids; a text loses its 'left' or 'right' `side`.

    Raises:
      UserError: as `prompt`; or what must stay is longer.
    """
    ids = self.prompt(prompt)
    start, end = len(self.before_prompt), len(ids) - len(self.after_prompt)
    excess = len(ids) - limit
    if excess <= 0:
      return FittedPrompt(ids, ids, prompt)
    if excess > end - start:
      raise UserError(f"prompt_length {limit} is shorter than a prompt's marks")
    kept = ids[start + excess : end] if side == "left" else ids[start : end - excess]
    fitted = [*self.before_prompt, *kept, *self.after_prompt]
    return FittedPrompt(fitted, ids, prompt, text_cut=True)

  def _checked(self, ids: Iterable[int]) -> Iterable[int]:
    for i in map(int, ids):
      if not 0 <= i < self.size:
        raise ValueError(f"id {i} is outside the vocabulary's [0, {self.size})")
      yield i


def text_of(reply: Reply) -> str:
  """A reply's text, where it is nothing but text.

  Raises:
    UserError: it is not.
  """
  if isinstance(reply, str):
    return reply
  message = chats.assistant(reply)
  if fields := chats.hidden_fields(Conversation((message,))):
    raise UserError(
      f"field '{fields[0]}' of a message can be read by a chat template alone; use a"
      " vocabulary that has one, or take it out of the data"
    )
  if not isinstance(message.get("content"), str):
    raise UserError("a reply's content must be text where there is no chat template")
  return message["content"]
