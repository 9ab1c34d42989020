"""The vocabularies that keep T5's layout: pad 0, EOS 1, unknown 2.

T5's SentencePiece model, bytes as in ByT5, and a fixed list of words for worlds whose
truth is known. Ids in [1, size) are live, so a policy may generate them; pad is dead,
and so are the rows a model has above `size` (T5: 32,100 live ids, 32,128 rows).
Prompts end with EOS, as T5's encoder inputs do.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import itertools
import json
import os
from typing import Any

import sentencepiece
import tokenizers

from alignment.data.chats import Conversation
from alignment.data.vocabularies.base import JudgeMarkers, Vocabulary
from alignment.types import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
NUM_SENTENCEPIECE_SENTINELS = 100  # as T5 was pre-trained
NUM_BYTE_SENTINELS = 8


class T5Layout(Vocabulary):
  """What the three have in common."""

  pad_id = PAD_ID
  eos_id = EOS_ID
  ending_ids = (EOS_ID,)
  unk_id = UNK_ID
  dead_ids = (PAD_ID,)
  after_prompt = (EOS_ID,)


class SentencePieceVocabulary(T5Layout):
  """T5's: a SentencePiece model with `<extra_id_0>` ... `<extra_id_99>` above it.

  T5 numbers its sentinels downwards: `<extra_id_0>` is the last id. Its model
  normalises text (NFKC) and folds every run of white space, newlines included, into
  one space; that is how T5 was pre-trained, and is kept: line breaks are lost.
  """

  def __init__(self, path: str | os.PathLike[str]):
    try:
      with open(path, "rb") as f:
        model = f.read()
    except OSError as e:
      raise UserError(
        f"{path}: cannot read the SentencePiece model ({e.strerror}); set vocab.path"
      ) from e
    try:
      # A file cut between two pieces still parses, as a smaller vocabulary.
      if not {2, 3} <= set(_protobuf_fields(model)):
        raise ValueError("its end is missing")
      self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, IndexError) as e:
      raise UserError(
        f"{path}: not a SentencePiece model, or damaged; fetch it again (vocab.path)"
      ) from e
    ids = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
    if ids != (PAD_ID, EOS_ID, UNK_ID):
      raise UserError(
        f"{path}: (pad, eos, unk) ids are {ids}, T5's are {(PAD_ID, EOS_ID, UNK_ID)};"
        " train the SentencePiece model with these ids (vocab.path)"
      )
    self._proto = model
    self._pieces = self._model.vocab_size()
    self.size = self._pieces + NUM_SENTENCEPIECE_SENTINELS
    self.fingerprint = hashlib.sha256(b"sentencepiece\0" + model).hexdigest()
    self.judge_markers = self._judge_markers()

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

  def tokens(self) -> Mapping[str, int]:
    pieces = {self._model.id_to_piece(i): i for i in range(self._pieces)}
    sentinels = range(NUM_SENTENCEPIECE_SENTINELS)
    return pieces | {f"<extra_id_{n}>": self.size - 1 - n for n in sentinels}

  def files(self) -> Mapping[str, bytes]:
    config = _tokenizer_config("T5Tokenizer", NUM_SENTENCEPIECE_SENTINELS)
    return {"spiece.model": self._proto, **config}

  def _text(self, ids: list[int]) -> str:
    parts = []
    for is_piece, run in itertools.groupby(ids, lambda i: i < self._pieces):
      if is_piece:
        parts.append(self._model.decode(list(run)))
      else:
        parts.extend(f"<extra_id_{self.size - 1 - i}>" for i in run)
    return " ".join(parts)

  def _judge_markers(self) -> JudgeMarkers:
    first, second = self.encode("A"), self.encode("B")
    if len(first) == len(second) == 1 and UNK_ID not in first + second:
      before_first, before_second = (
        tuple(self.encode(f"Response {name}:")) for name in "AB"
      )
    else:  # a small vocabulary: sentinels stand for the letters
      first, second = [self.size - 1], [self.size - 2]
      before_first, before_second = tuple(first), tuple(second)
    return JudgeMarkers(
      before_first, before_second, (EOS_ID,), first_id=first[0], second_id=second[0]
    )


class ByteVocabulary(T5Layout):
  """UTF-8 bytes, as ByT5: byte b is id b + 3, and sentinels follow.

  Bytes that are not UTF-8, which a policy can generate, decode to U+FFFD.
  """

  _SENTINEL = UNK_ID + 1 + 256
  size = _SENTINEL + NUM_BYTE_SENTINELS
  fingerprint = hashlib.sha256(f"bytes\0{size}".encode()).hexdigest()
  # Sentinels: one id each, where text would take several and a response could hold it.
  judge_markers = JudgeMarkers(
    before_first=(_SENTINEL,),
    before_second=(_SENTINEL + 1,),
    end=(EOS_ID,),
    first_id=ord("A") + UNK_ID + 1,
    second_id=ord("B") + UNK_ID + 1,
  )

  def encode(self, text: str) -> list[int]:
    return [b + UNK_ID + 1 for b in text.encode()]

  def tokens(self) -> Mapping[str, int]:
    special = {"<pad>": PAD_ID, "</s>": EOS_ID, "<unk>": UNK_ID}
    sentinels = range(NUM_BYTE_SENTINELS)
    return (
      special
      | {chr(b): b + UNK_ID + 1 for b in range(256)}
      | {f"<extra_id_{n}>": self._SENTINEL + n for n in sentinels}
    )

  def files(self) -> Mapping[str, bytes]:
    return _tokenizer_config("ByT5Tokenizer", NUM_BYTE_SENTINELS)

  def _text(self, ids: list[int]) -> str:
    return b"".join(self._bytes(i) for i in ids).decode(errors="replace")

  def _bytes(self, i: int) -> bytes:
    if i == UNK_ID:
      return "\ufffd".encode()
    if i >= self._SENTINEL:
      return f"<extra_id_{i - self._SENTINEL}>".encode()
    return bytes([i - UNK_ID - 1])


class WordVocabulary(T5Layout):
  """White-space separated words of a fixed list; two marker ids come before them."""

  _SPECIAL = ("<pad>", "</s>", "<unk>", "<A>", "<B>")
  judge_markers = JudgeMarkers(
    before_first=(3,), before_second=(4,), end=(EOS_ID,), first_id=3, second_id=4
  )

  def __init__(self, words: Sequence[str]):
    if isinstance(words, str) or not words:
      raise UserError(f"vocab.words is {words!r}; give a tuple with at least one word")
    self._words = (*self._SPECIAL, *words)
    self._ids: dict[str, int] = {}
    for i, word in enumerate(self._words):
      if not isinstance(word, str) or word.split() != [word] or word in self._ids:
        raise UserError(
          f"vocab.words has {word!r}; words are distinct, without white space, and not"
          f" one of {', '.join(self._SPECIAL)}"
        )
      self._ids[word] = i
    self.size = len(self._words)
    key = json.dumps(["words", *self._words])
    self.fingerprint = hashlib.sha256(key.encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """As the base class; an unknown word (or a special's name) is a UserError."""
    ids = self.written("", text)
    for word, i in zip(text.split(), ids, strict=True):
      if i == UNK_ID:
        raise UserError(f"unknown word {word!r}; add it to vocab.words")
    return ids

  def written(self, prompt: str | Conversation, text: str) -> list[int]:
    del prompt
    ids = (self._ids.get(word, UNK_ID) for word in text.split())
    return [i if i >= len(self._SPECIAL) else UNK_ID for i in ids]

  def tokens(self) -> Mapping[str, int]:
    return self._ids

  def files(self) -> Mapping[str, bytes]:
    model = tokenizers.models.WordLevel(vocab=self._ids, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(self._SPECIAL))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single="$A </s>", special_tokens=[("</s>", EOS_ID)]
    )
    config = _tokenizer_config("PreTrainedTokenizerFast")
    return {"tokenizer.json": tokenizer.to_str().encode(), **config}

  def _text(self, ids: list[int]) -> str:
    return " ".join(self._words[i] for i in ids)


def _tokenizer_config(name: str, sentinels: int | None = None) -> dict[str, bytes]:
  """The file that tells transformers the tokenizer's class and special tokens."""
  described: dict[str, Any] = {
    "tokenizer_class": name,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
  }
  if sentinels is not None:
    described["extra_ids"] = sentinels
  return {"tokenizer_config.json": json.dumps(described, indent=2).encode()}


def _protobuf_fields(message: bytes) -> Iterable[int]:
  """Numbers of a message's top-level fields, which are all length-delimited here.

  In a SentencePiece model 1 is a piece, 2 the trainer's and 3 the normaliser's
  specification, written in that order.
  """

  def varint(at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
      value |= (message[at] & 0x7F) << shift
      shift, at = shift + 7, at + 1
      if message[at - 1] < 0x80:
        return value, at

  at = 0
  while at < len(message):
    tag, at = varint(at)
    length, at = varint(at)
    if tag & 7 != 2 or at + length > len(message):
      raise ValueError(f"malformed field at byte {at}")
    yield tag >> 3
    at += length
