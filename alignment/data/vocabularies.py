"""Vocabularies: text to token ids and back, and how a judge's input is marked up.

Three kinds: T5's SentencePiece model, bytes as in ByT5, and a fixed list of words for
worlds whose truth is known. All keep T5's layout: pad 0, EOS 1, unknown 2. Ids in
[1, size) are live, so a policy may generate them; pad is dead, and so are the rows a
model has above `size` (T5: 32,100 live ids, 32,128 rows).
"""

import abc
from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import sentencepiece

from alignment.types import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
NUM_SENTENCEPIECE_SENTINELS = 100  # as T5 was pre-trained
NUM_BYTE_SENTINELS = 8
FINGERPRINT = "vocabulary_fingerprint"  # in the config.json of an exported model


@dataclasses.dataclass(frozen=True)
class JudgeMarkers:
  """What surrounds two responses in a preference model's input, and its two answers.

  The encoder reads `prompt before_first y1 before_second y2 end`; after one decoder
  step the logits of `first_id` and `second_id` say which response is better.
  """

  before_first: tuple[int, ...]
  before_second: tuple[int, ...]
  end: tuple[int, ...]
  first_id: int
  second_id: int


class Vocabulary(abc.ABC):
  """A map between text and ids.

  `size` is one more than the largest live id. `fingerprint` is the sha256 (hex) of
  all that determines the map, so that artefacts made with another one are not reused.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID
  unk_id = UNK_ID
  size: int
  fingerprint: str
  judge_markers: JudgeMarkers

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """The ids of `text`, without EOS; text never yields pad or EOS."""

  @abc.abstractmethod
  def _text(self, ids: list[int]) -> str:
    """The text of ids in [2, size)."""

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids` up to the first EOS, pads left out.

    Raises:
      ValueError: an id is outside [0, size), so it comes from another vocabulary.
    """
    kept = []
    for i in map(int, ids):
      if not 0 <= i < self.size:
        raise ValueError(f"id {i} is outside the vocabulary's [0, {self.size})")
      if i == self.eos_id:
        break
      if i != self.pad_id:
        kept.append(i)
    return self._text(kept)


class SentencePieceVocabulary(Vocabulary):
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
    found = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
      raise UserError(
        f"{path}: (pad, eos, unk) ids are {found}, T5's are {(PAD_ID, EOS_ID, UNK_ID)};"
        " train the SentencePiece model with these ids (vocab.path)"
      )
    self._pieces = self._model.vocab_size()
    self.size = self._pieces + NUM_SENTENCEPIECE_SENTINELS
    self.fingerprint = hashlib.sha256(b"sentencepiece\0" + model).hexdigest()
    self.judge_markers = self._judge_markers()

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

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


class ByteVocabulary(Vocabulary):
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

  def _text(self, ids: list[int]) -> str:
    return b"".join(self._bytes(i) for i in ids).decode(errors="replace")

  def _bytes(self, i: int) -> bytes:
    if i == UNK_ID:
      return "\ufffd".encode()
    if i >= self._SENTINEL:
      return f"<extra_id_{i - self._SENTINEL}>".encode()
    return bytes([i - UNK_ID - 1])


class WordVocabulary(Vocabulary):
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
    ids = [self._ids.get(word, UNK_ID) for word in text.split()]
    for word, i in zip(text.split(), ids, strict=True):
      if i < len(self._SPECIAL):
        raise UserError(f"unknown word {word!r}; add it to vocab.words")
    return ids

  def _text(self, ids: list[int]) -> str:
    return " ".join(self._words[i] for i in ids)


def from_config(cfg: Any) -> Vocabulary:
  """The vocabulary that `cfg.kind` names, from `cfg.path` or `cfg.words`."""
  match cfg.kind:
    case "sentencepiece":
      if not cfg.path:
        raise UserError("vocab.path is not set; name the SentencePiece model file")
      return SentencePieceVocabulary(cfg.path)
    case "bytes":
      return ByteVocabulary()
    case "words":
      return WordVocabulary(cfg.words)
  raise UserError(f"vocab.kind is {cfg.kind!r}; use sentencepiece, bytes or words")


def check_checkpoint(directory: Path, vocabulary: Vocabulary) -> None:
  """Compares with the vocabulary that a model's directory brings along, if it does.

  Raises:
    UserError: if the model was trained with another one: its ids mean other pieces.
  """
  path = directory / "spiece.model"
  if path.exists():
    theirs = SentencePieceVocabulary(path).fingerprint
    if theirs != vocabulary.fingerprint:
      raise UserError(
        f"{path}: this checkpoint's vocabulary is not the study's, and all roles share "
        "one; set vocab.path to this file, or start from another checkpoint"
      )
  try:
    described = json.loads((directory / "config.json").read_bytes())
  except (OSError, ValueError):
    return  # `huggingface.read_config` says what is wrong with it
  if isinstance(described, dict) and FINGERPRINT in described:
    if described[FINGERPRINT] != vocabulary.fingerprint:
      raise UserError(
        f"{directory}: exported from a study with another vocabulary; set vocab to "
        "that one, or start from another checkpoint"
      )


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
