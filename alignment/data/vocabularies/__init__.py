"""Vocabularies: text to token ids and back, prompts, and a judge's marks.

Four kinds: T5's SentencePiece model, bytes as in ByT5 and a list of words
(`t5_layout.py`), and the tokenizer of a Hugging Face directory with its chat template
(`huggingface.py`). Start with `base.py`. `checkpoints.py` compares a vocabulary with
the model that is to read it.
"""

from typing import Any

from alignment.data.vocabularies.base import FittedPrompt, JudgeMarkers, Vocabulary
from alignment.data.vocabularies.checkpoints import (
  FINGERPRINT,
  check_checkpoint,
)
from alignment.data.vocabularies.huggingface import HuggingFaceVocabulary
from alignment.data.vocabularies.t5_layout import (
  EOS_ID,
  PAD_ID,
  UNK_ID,
  ByteVocabulary,
  SentencePieceVocabulary,
  WordVocabulary,
)
from alignment.types import UserError

__all__ = [
  "EOS_ID",
  "FINGERPRINT",
  "PAD_ID",
  "UNK_ID",
  "ByteVocabulary",
  "FittedPrompt",
  "HuggingFaceVocabulary",
  "JudgeMarkers",
  "SentencePieceVocabulary",
  "Vocabulary",
  "WordVocabulary",
  "check_checkpoint",
  "from_config",
]


def from_config(cfg: Any) -> Vocabulary:
  """The vocabulary that `cfg.kind` names, from `cfg.path` or `cfg.words`."""
  match cfg.kind:
    case "sentencepiece":
      if not cfg.path:
        raise UserError("vocab.path is not set; name the SentencePiece model file")
      return SentencePieceVocabulary(cfg.path)
    case "huggingface":
      if not cfg.path:
        raise UserError("vocab.path is not set; name a directory with tokenizer.json")
      return HuggingFaceVocabulary(cfg.path)
    case "bytes":
      return ByteVocabulary()
    case "words":
      return WordVocabulary(cfg.words)
  raise UserError(
    f"vocab.kind is {cfg.kind!r}; use sentencepiece, huggingface, bytes or words"
  )
