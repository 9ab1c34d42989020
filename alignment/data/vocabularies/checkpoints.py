"""Whether a model's checkpoint and a vocabulary belong together."""

from collections.abc import Mapping
import json
from pathlib import Path

from alignment.data.vocabularies import tokenizer_files
from alignment.data.vocabularies.base import Vocabulary
from alignment.data.vocabularies.t5_layout import SentencePieceVocabulary
from alignment.types import UserError

FINGERPRINT = "vocabulary_fingerprint"  # in the config.json of an exported model
_SENTINEL = "<extra_id_"  # T5's, of which a file may list any number


def check_checkpoint(directory: Path, vocabulary: Vocabulary) -> None:
  """Compares with the vocabulary that a model's directory brings along, if it does.

  Raises:
    UserError: if the model was trained with another one: its ids mean other pieces.
  """
  _check_sentencepiece(directory, vocabulary)
  _check_tokenizer(directory, vocabulary)
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


def _check_sentencepiece(directory: Path, vocabulary: Vocabulary) -> None:
  path = directory / "spiece.model"
  if path.exists():
    theirs = SentencePieceVocabulary(path)
    if isinstance(vocabulary, SentencePieceVocabulary):
      same = theirs.fingerprint == vocabulary.fingerprint
    else:
      same = _named(theirs.tokens()) == _named(vocabulary.tokens())
    if not same:
      raise _another(path, path)


def _check_tokenizer(directory: Path, vocabulary: Vocabulary) -> None:
  """The tokens of `tokenizer.json` and `added_tokens.json`, if they are there."""
  contents = {
    name: (directory / name).read_bytes()
    for name in (tokenizer_files.TOKENIZER, tokenizer_files.ADDED)
    if (directory / name).exists()
  }
  ours = _named(vocabulary.tokens())
  if tokenizer_files.TOKENIZER in contents:
    if contents.items() <= vocabulary.files().items():
      return
    tokenizer = tokenizer_files.load(directory, contents)
    if _named(tokenizer.get_vocab(with_added_tokens=True)) != ours:
      raise _another(directory / tokenizer_files.TOKENIZER, directory)
    return
  added = tokenizer_files.read_object(directory, contents, tokenizer_files.ADDED)
  if not _named(added).items() <= ours.items():
    raise _another(directory / tokenizer_files.ADDED, directory)


def _named(tokens: Mapping[str, int]) -> dict[str, int]:
  return {token: i for token, i in tokens.items() if not token.startswith(_SENTINEL)}


def _another(path: Path, vocab_path: Path) -> UserError:
  file = "this file" if path == vocab_path else vocab_path
  return UserError(
    f"{path}: this checkpoint's vocabulary is not the study's (of a judge with a vocab "
    f"of its own: not that one); set vocab.path to {file}, or start from another "
    "checkpoint"
  )
