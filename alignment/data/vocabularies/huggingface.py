"""The vocabulary of a Hugging Face directory: `tokenizer.json` and a chat template."""

import bisect
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Any

from alignment.data import chats
from alignment.data.chats import Conversation, Reply
from alignment.data.vocabularies import base, tokenizer_files
from alignment.data.vocabularies.base import FittedPrompt, JudgeMarkers
from alignment.data.vocabularies.marks import Marks
from alignment.types import UserError

# Between the characters of a special token that stands in the data: there it is text.
# U+FDD0 is no character, so no text has it.
_BREAK, _REPLACEMENT = "\ufdd0", "\ufffd"
_QUESTION, _REPLY = "Hello", "Qx7Zy"  # what a template is tried with
_ANOTHER = "Give another answer."
_BETTER = (
  "Which of these two answers is better: A, the first, or B, the second? Reply with A"
  " or B."
)


class HuggingFaceVocabulary(base.Vocabulary):
  """A tokenizer as its model was trained with it.

  Conversations are written by the directory's chat template; without one, as
  transcripts. A text that is exactly a transcript is a conversation. What the data hold
  is text: a special token's spelling in it becomes the
  ids of its letters.

  A response ends with the id that the template writes after a reply; what follows that
  (a line break, usually) belongs to the next turn, since no model writes it.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    """Reads `directory`.

    Raises:
      UserError: a file is missing or damaged, the template fails, or nothing ends a
        response.
    """
    files = tokenizer_files.read(Path(directory))
    self._files, self._tokenizer = files, files.tokenizer
    self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
    self.size = 1 + max(self._ids.values(), default=-1)
    live = set(self._ids.values())
    self.dead_ids = tuple(i for i in range(self.size) if i not in live)
    self._template = None
    if files.template is not None:
      self._template = chats.ChatTemplate(
        files.template, files.template_path, files.names
      )
    self._special = self._special_pattern()
    self._end, self._beyond, self.eos_id = self._end_of_turn()
    self._opening = "" if self._template is None else self._opening_of_reply()
    self.ending_ids = tuple(dict.fromkeys((self.eos_id, *files.ending_ids())))
    self.pad_id = files.id_of("pad")
    self.unk_id = self._unknown_id()
    self.before_prompt = self._beginning()
    self._reply_space = self._template is None and not self._writes_spaces()
    self.fingerprint = self._fingerprint()

  def encode(self, text: str) -> list[int]:
    return self._encode(self._as_text(text))

  def tokens(self) -> Mapping[str, int]:
    return self._ids

  def unknown(self, ids: Sequence[int], text: str = "") -> int:
    unknown = super().unknown(ids)
    if missing := self._missing_bytes:
      data = text.encode(errors="replace")
      unknown += len(data) - len(data.translate(None, missing))
    return unknown

  def files(self) -> Mapping[str, bytes]:
    contents = self._files.contents
    return {
      name: contents[name] for name in tokenizer_files.CARRIED if name in contents
    }

  def decode(self, ids: Iterable[int]) -> str:
    text = super().decode(ids)
    return text.removeprefix(" ") if self._reply_space else text

  def decode_prompt(self, ids: Iterable[int]) -> str:
    return self._text(list(self._checked(ids)))

  def conversation(self, ids: Iterable[int]) -> Conversation | None:
    """Messages of which the template makes exactly these ids, if any are found."""
    ids = list(map(int, ids))
    for conversation in (
      self._marks.read(self.decode_prompt(ids)) if self._marks else ()
    ):
      try:
        if self.prompt(conversation) == ids:
          return conversation
      except UserError:  # what was read is not what was written
        continue
    return None

  def prompt(self, prompt: str | Conversation) -> list[int]:
    prompt = _conversation(prompt)
    if self._template is not None and not isinstance(prompt, str):
      self._check_fields(prompt, as_prompt=True)
    return super().prompt(prompt)

  def rendered(self, prompt: str | Conversation) -> str:
    prompt = _conversation(prompt)
    if isinstance(prompt, str):
      return self._as_text(prompt)
    return self._write(prompt, as_prompt=True)

  def encode_rendered(self, text: str) -> list[int]:
    return self._encode(text)

  def around(
    self, prompt: str | Conversation
  ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    by_template = self._template and not isinstance(_conversation(prompt), str)
    return ((), ()) if by_template else super().around(prompt)

  def response(self, prompt: str | Conversation, reply: Reply) -> list[int]:
    prompt = _conversation(prompt)
    if isinstance(prompt, str):
      return super().response(prompt, reply)
    if self._template is None:
      return [*self.written(prompt, base.text_of(reply)), self.eos_id]
    message = chats.assistant(reply)
    whole = prompt.then(message)
    self._check_fields(whole, as_prompt=False)
    text = self._added(prompt, whole, message.get("content"))
    ids = self._encode(text.removesuffix(self._beyond))
    return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

  def written(self, prompt: str | Conversation, text: str) -> list[int]:
    is_chat = not isinstance(_conversation(prompt), str)
    return self.encode(f" {text}" if is_chat and self._reply_space else text)

  def fit_prompt(
    self, prompt: str | Conversation, limit: int, side: str
  ) -> FittedPrompt:
    """As the base class; a conversation loses its oldest messages first.

    System messages stay, and so does the last turn; where that alone is too long, its
    text is cut on `side`, within the marks.
    """
    prompt = _conversation(prompt)
    if isinstance(prompt, str):
      return super().fit_prompt(prompt, limit, side)
    ids = self.prompt(prompt)
    if len(ids) <= limit:
      return FittedPrompt(ids, ids, prompt)
    shorter = _shorter(prompt)
    at = bisect.bisect_left(shorter, True, key=lambda c: len(self.prompt(c)) <= limit)
    kept = (*shorter, shorter[-1] if shorter else prompt)[at]
    messages_cut = len(prompt.messages) - len(kept.messages)
    fitted = FittedPrompt(self.prompt(kept), ids, kept, messages_cut)
    if len(fitted.ids) <= limit:
      return fitted
    kept = self._cut_last(kept, limit, side)
    return FittedPrompt(self.prompt(kept), ids, kept, messages_cut, text_cut=True)

  @functools.cached_property
  def judge_markers(self) -> JudgeMarkers:  # type: ignore[override]
    """The prompt's conversation goes on: another answer, and which one is better.

    Raises:
      UserError: neither A and B nor their like with a space are one token each.
    """
    first_id, second_id = self._letters()
    start = self.before_prompt
    shared = start if tuple(self.prompt(_asked())[: len(start)]) == start else ()
    return JudgeMarkers(
      before_first=(),
      before_second=tuple(self._encode(self._marks_around(_ANOTHER))),
      end=tuple(self._encode(self._marks_around(_BETTER))),
      first_id=first_id,
      second_id=second_id,
      before_prompt=shared,
    )

  @functools.cached_property
  def _marks(self) -> Marks | None:
    if self._template is None:
      return None
    return Marks.of(lambda conversation: self._write(conversation, as_prompt=True))

  @functools.cached_property
  def _missing_bytes(self) -> bytes:
    """What a byte-level tokenizer without an unknown token passes over in silence."""
    described = json.loads(self._files.contents[tokenizer_files.TOKENIZER])
    if self.unk_id is not None or '"ByteLevel"' not in json.dumps(
      described.get("pre_tokenizer")
    ):
      return b""
    return bytes(b for b in range(256) if _byte_level(b) not in self._ids)

  # --- text and ids -------------------------------------------------------------------

  def _text(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def _encode(self, text: str) -> list[int]:
    """Ids of a text in which special tokens are special."""
    ids: list[int] = []
    for piece in text.split(_BREAK):
      try:
        ids += self._tokenizer.encode(piece, add_special_tokens=False).ids
      except Exception as e:  # the library raises what it likes
        raise UserError("a text cannot be tokenised; is it Unicode?") from e
    return ids

  def _as_text(self, text: str) -> str:
    """The text with every special token's spelling broken in two."""
    text = text.replace(_BREAK, _REPLACEMENT)
    return self._special.sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", text)

  def _special_pattern(self) -> re.Pattern[str]:
    added = self._tokenizer.get_added_tokens_decoder()
    ends = self._files.ending_ids()
    texts = [t.content for i, t in added.items() if t.special or i in ends]
    longest = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")

  def _beginning(self) -> tuple[int, ...]:
    """The BOS that the tokenizer puts before a text, if any; templates write theirs."""
    bos = self._files.id_of("bos")
    wanted = self._files.config.get("add_bos_token")
    if wanted is None:
      with_special = self._tokenizer.encode(_QUESTION, add_special_tokens=True).ids
      wanted = with_special[:1] == [bos]
    return (bos,) if wanted and bos is not None else ()

  def _unknown_id(self) -> int | None:
    """What the tokenizer's own model writes; a mere `unk_token` it never writes."""
    model = json.loads(self._files.contents[tokenizer_files.TOKENIZER])["model"]
    if "unk_token" in model:
      return self._ids.get(model["unk_token"])
    return model.get("unk_id")

  def _writes_spaces(self) -> bool:
    """Whether the tokenizer itself puts a space before a text."""
    first = self._encode(_REPLY)[:1]
    return bool(first) and str(self._tokenizer.id_to_token(first[0])).startswith("▁")

  def _fingerprint(self) -> str:
    described = [
      self._files.template,
      sorted(self._files.names.items()) if self._files.template else None,
      self.before_prompt,
      self.eos_id,
      self.ending_ids,
      self.pad_id,
      sorted(self._ids.items()),
    ]
    digest = hashlib.sha256(b"huggingface\0")
    digest.update(self._files.contents[tokenizer_files.TOKENIZER])
    digest.update(json.dumps(described).encode())
    return digest.hexdigest()

  # --- conversations ------------------------------------------------------------------

  def _write(self, conversation: Conversation, *, as_prompt: bool) -> str:
    """The conversation as text whose special tokens are the template's alone."""
    if self._template is None:
      return self._as_text(chats.transcript(conversation))
    return self._template.render(self._guarded(conversation), as_prompt=as_prompt)

  def _guarded(self, conversation: Conversation) -> Conversation:
    def guard(value):
      if isinstance(value, str):
        return self._as_text(value)
      if isinstance(value, Mapping):
        return {key: guard(item) for key, item in value.items()}
      if isinstance(value, (list, tuple)):
        return tuple(guard(item) for item in value)
      return value

    return Conversation(guard(conversation.messages), guard(conversation.tools))

  def _added(self, prompt: Conversation, whole: Conversation, content: Any) -> str:
    """What a reply adds to its prompt: its text with the marks around it.

    Raises:
      UserError: a part of the reply would be lost. Templates may move its white space.
    """
    before = self._write(prompt, as_prompt=True)
    text = self._write(whole, as_prompt=False)
    content = self._as_text(content) if isinstance(content, str) else ""
    if text.startswith(before):
      squeezed = _squeezed(content)
      start = _squeezed(text).rfind(squeezed)
      if start < 0 or squeezed and start + len(squeezed) <= len(_squeezed(before)):
        raise UserError(
          f"{self._files.template_path}: the chat template drops a part of the reply"
          f" that begins with {content.strip()[:20]!r}; edit the template"
        )
      return text[len(before) :]
    if self._opening and content.startswith(self._opening):
      return content.removeprefix(self._opening) + self._end
    advice = f"begin replies with {self._opening!r}, or " if self._opening else ""
    raise UserError(
      f"{self._files.template_path}: the chat template asks for a reply in one way and"
      f" shows the reply that begins with {content[:20]!r} in another; {advice}edit the"
      " template"
    )

  def _check_fields(self, conversation: Conversation, *, as_prompt: bool) -> None:
    """A field that makes no difference to the text would be lost without a word."""
    for field in chats.hidden_fields(conversation):
      text, without = (
        self._write(c, as_prompt=as_prompt)
        for c in (conversation, chats.without(conversation, field))
      )
      if text == without:
        raise UserError(
          f"{self._files.template_path}: the chat template ignores the field '{field}'"
          " of a message; take it out of the data, or use a template that renders it"
        )

  def _opening_of_reply(self) -> str:
    """What stands in a prompt and not in the same place before a finished reply.

    Some templates open the reasoning in a prompt, and later show replies without.
    """
    before = self._write(_asked(), as_prompt=True)
    whole = self._write(_asked().then(chats.assistant(_REPLY)), as_prompt=False)
    shared = os.path.commonprefix([before, whole])
    is_next = whole.removeprefix(shared).startswith(_REPLY)
    return before.removeprefix(shared) if is_next else ""

  def _end_of_turn(self) -> tuple[str, str, int]:
    """What is written after a reply, as (its end's text, what follows it, its id).

    Raises:
      UserError: nothing ends a response.
    """
    ends = self._files.ending_ids()
    after = ""
    if self._template is not None:
      whole = _asked().then(chats.assistant(_REPLY))
      _, reply, after = self._write(whole, as_prompt=False).rpartition(_REPLY)
      if not reply:
        raise UserError(
          f"{self._files.template_path}: the chat template does not write replies that"
          " are text; use one that does"
        )
    if mark := self._special.search(after):
      end = self._ids[mark[0]]
      return after[: mark.end()], after[mark.end() :], end
    if ends:  # nothing special is written, so the response ends with what files name
      return after, "", ends[0]
    raise UserError(
      f"{self._files.directory}: nothing says which token ends a response; name"
      f" eos_token in {tokenizer_files.CONFIG}"
    )

  def _cut_last(
    self, conversation: Conversation, limit: int, side: str
  ) -> Conversation:
    """The prompt with so much of its last message as fits."""
    *before, last = conversation.messages
    content = last.get("content")

    def with_content(text: str) -> Conversation:
      message = {**last, "content": text}
      return dataclasses.replace(conversation, messages=(*before, message))

    room = limit - len(self.prompt(with_content("")))
    if room < 0 or not isinstance(content, str):
      raise UserError(
        f"prompt_length {limit} cannot hold the system message and the marks of a turn,"
        f" which take {limit - room} tokens; raise it"
      )
    spans = self._tokenizer.encode(content, add_special_tokens=False).offsets
    keep = min(room, len(spans))
    while keep > 0:
      left, right = spans[-keep][0], spans[keep - 1][1]
      shorter = with_content(content[left:] if side == "left" else content[:right])
      excess = len(self.prompt(shorter)) - limit
      if excess <= 0:
        return shorter
      keep -= excess
    return with_content("")

  # --- the judge ----------------------------------------------------------------------

  def _marks_around(self, question: str) -> str:
    """What stands between a reply's end and the next reply, if `question` is asked."""
    asked = _asked().then(
      chats.assistant(_REPLY), {"role": "user", "content": question}
    )
    after = self._write(asked, as_prompt=True).rpartition(_REPLY)[2]
    return after.removeprefix(self._end)

  def _letters(self) -> tuple[int, int]:
    for space in (" ", "") if self._reply_space else ("", " "):
      ids = [self.encode(space + letter) for letter in "AB"]
      if all(len(i) == 1 for i in ids) and ids[0] != ids[1]:
        if self.unk_id not in (ids[0][0], ids[1][0]):
          return ids[0][0], ids[1][0]
    raise UserError(
      f"{self._files.directory}: 'A' and 'B' are not one token each, and those are a"
      " preference model's answers; use another vocabulary"
    )


def _asked() -> Conversation:
  return Conversation(({"role": "user", "content": _QUESTION},))


def _byte_level(b: int) -> str:
  """The character by which byte-level tokenizers spell a byte (GPT-2's table)."""
  shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  return chr(b if b in shown else 256 + sum(other not in shown for other in range(b)))


def _conversation(prompt: str | Conversation) -> str | Conversation:
  return chats.parse_transcript(prompt) or prompt if isinstance(prompt, str) else prompt


def _squeezed(text: str) -> str:
  return "".join(text.replace(_BREAK, "").split())


def _shorter(conversation: Conversation) -> Sequence[Conversation]:
  """The conversation without its oldest turns: ever more of them are left out.

  Each begins with the system messages and goes on with a user's.
  """
  roles = [message.get("role") for message in conversation.messages]
  first = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
  starts = [i for i in range(first + 1, len(roles)) if roles[i] == "user"]
  head = conversation.messages[:first]
  return [
    dataclasses.replace(conversation, messages=head + conversation.messages[i:])
    for i in starts
  ]
