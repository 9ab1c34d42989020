"""The files of a Hugging Face tokenizer: carried, compared, missing and damaged."""

import json
from pathlib import Path
import types

import pytest

from alignment.data import vocabularies
from alignment.data.vocabularies import HuggingFaceVocabulary
from alignment.types import UserError
from tests import tiny_tokenizer

TOKENIZER = (tiny_tokenizer.CHATS / "tokenizer.json").read_text()


def made(directory: Path, name: str | None = None) -> HuggingFaceVocabulary:
  return HuggingFaceVocabulary(
    tiny_tokenizer.write(directory, name, tokenizer=TOKENIZER)
  )


def test_fingerprints_differ_with_map_ends_and_template(tmp_path):
  def fingerprint(number: int, template=None, **options) -> str:
    return HuggingFaceVocabulary(
      tiny_tokenizer.write(tmp_path / str(number), template, **options)
    ).fingerprint

  prints = [
    fingerprint(0),
    fingerprint(1, "chatml"),
    fingerprint(2, "strict"),
    fingerprint(3, eos_token="<pad>"),
    fingerprint(4, tokenizer=tiny_tokenizer.tokenizer_json(lines=("other lines",))),
    fingerprint(5, bos_token="<bos>", add_bos_token=True),
  ]
  assert len(set(prints)) == len(prints)
  assert fingerprint(6) == fingerprint(7, model_max_length=12) == prints[0]


def test_carried_files_make_the_same_vocabulary(tmp_path):
  for name in (None, "headers"):
    v = made(tmp_path / f"{name}-original", name)
    copy = tmp_path / str(name)
    copy.mkdir()
    for file, content in v.files().items():
      (copy / file).write_bytes(content)
    assert HuggingFaceVocabulary(copy).fingerprint == v.fingerprint
    vocabularies.check_checkpoint(copy, v)


def test_checkpoints_of_another_vocabulary(tmp_path):
  v = made(tmp_path / "ours", "chatml")
  bare = tmp_path / "bare"
  bare.mkdir()
  vocabularies.check_checkpoint(bare, v)  # brings none
  (bare / "added_tokens.json").write_text(json.dumps({"<bos>": 1, "<extra_id_0>": 9}))
  vocabularies.check_checkpoint(bare, v)
  (bare / "added_tokens.json").write_text(json.dumps({"<new>": v.size}))
  with pytest.raises(UserError, match=r"added_tokens\.json: .*not the study's"):
    vocabularies.check_checkpoint(bare, v)
  # The same tokens, written otherwise, and others.
  same = tmp_path / "same"
  tiny_tokenizer.write(same, "strict", tokenizer=json.dumps(json.loads(TOKENIZER)))
  vocabularies.check_checkpoint(same, v)
  text = tiny_tokenizer.tokenizer_json(lines=("other lines here",))
  other = tiny_tokenizer.write(tmp_path / "other", tokenizer=text)
  words = vocabularies.WordVocabulary(("a", "b"))
  for ours in (v, words, vocabularies.ByteVocabulary()):
    with pytest.raises(UserError, match=r"tokenizer\.json: .*not the study's"):
      vocabularies.check_checkpoint(other, ours)
  for name, content in words.files().items():
    (bare / name).write_bytes(content)
  (bare / "added_tokens.json").unlink()
  vocabularies.check_checkpoint(bare, words)


def test_from_config(tmp_path):
  cfg = types.SimpleNamespace(kind="huggingface", path="", words=())
  with pytest.raises(UserError, match=r"vocab\.path is not set.*tokenizer\.json"):
    vocabularies.from_config(cfg)
  cfg.path = str(tiny_tokenizer.write(tmp_path))
  assert isinstance(vocabularies.from_config(cfg), HuggingFaceVocabulary)


def test_missing_tokenizers(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory"):
    HuggingFaceVocabulary(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"has no tokenizer\.json"):
    HuggingFaceVocabulary(tmp_path)
  (tmp_path / "tokenizer.model").touch()
  with pytest.raises(UserError, match=r"has tokenizer\.model but .*save_pretrained"):
    HuggingFaceVocabulary(tmp_path)


@pytest.mark.parametrize(
  ("name", "content", "error"),
  [
    ("tokenizer.json", b"", "not a tokenizer, or damaged"),
    ("tokenizer.json", b"{}", "not a tokenizer, or damaged"),
    ("tokenizer.json", b"\xff", "not a tokenizer, or damaged"),
    ("tokenizer.json", TOKENIZER[:-100].encode(), "not a tokenizer, or damaged"),
    ("tokenizer_config.json", b"[1]", "not a JSON object"),
    ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template must be"),
    ("tokenizer_config.json", b"{}", "nothing says which token ends a response"),
    ("special_tokens_map.json", b"[" * 9999, "not a JSON object"),
    ("generation_config.json", b"{", "not a JSON object"),
    ("added_tokens.json", b"3", "not a JSON object"),
    ("chat_template.jinja", b"\xff", "not UTF-8"),
    ("chat_template.jinja", b"{% if %}", "the chat template fails: Expected"),
    ("chat_template.jinja", b"{{ raise_exception('a\nb') }}", "template fails: a b$"),
  ],
)
def test_damaged_files(tmp_path, name, content, error):
  directory = tiny_tokenizer.write(tmp_path)
  (directory / name).write_bytes(content)
  with pytest.raises(UserError, match=error) as info:
    HuggingFaceVocabulary(directory)
  assert str(info.value).startswith(str(directory))
  assert len(str(info.value).splitlines()) == 1
