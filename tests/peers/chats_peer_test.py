"""Chats against a live transformers: TRL's copies of real templates, real SmolLM2.

Export a model's tokenizer files and transformers reads them as this project does.
"""

import json
import os
from pathlib import Path
import re

import pytest
import sentencepiece
import transformers
import trl

from alignment.data import vocabularies
from tests import tiny_tokenizer
from tests.peers.make_chat_fixtures import rendered

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = (
  "llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3", "qwen3_instruct_2507",
  "qwen3_8", "gemma", "gemma3", "phi3", "phi3_5", "cohere",
)  # fmt: skip
MARKS = re.compile(r"<\|[\w-]+\|>|</?\w+_of_\w+>")


def assert_agrees(directory: Path, conversations) -> None:
  v = vocabularies.HuggingFaceVocabulary(directory)
  for conversation in conversations:
    expected = rendered(directory, conversation)
    end = v.decode_prompt([v.eos_id]), v._beyond
    tiny_tokenizer.assert_renders_as(v, conversation, expected, end)


@pytest.mark.parametrize("name", NAMES)
def test_real_templates(tmp_path, name):
  source = (TEMPLATES / f"{name}.jinja").read_text()
  special = tuple(dict.fromkeys((*tiny_tokenizer.SPECIAL, *MARKS.findall(source))))
  tokenizer = tiny_tokenizer.tokenizer_json(special)
  tiny_tokenizer.write(tmp_path, source, tokenizer=tokenizer, bos_token="<bos>")
  conversations = list(tiny_tokenizer.conversations())
  if name == "gemma":  # knows no system messages
    conversations = [c for c in conversations if c[0]["role"] != "system"]
  assert_agrees(tmp_path, conversations)


@pytest.mark.skipif(
  not os.environ.get("SMOLLM2_DIR"),
  reason="SMOLLM2_DIR does not name SmolLM2's directory",
)
def test_smollm2():
  assert_agrees(Path(os.environ["SMOLLM2_DIR"]), tiny_tokenizer.conversations())


TEXT = "the cat sat on the mat and Response A: beat Response B: today"


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes", "words", "huggingface"])
def test_transformers_reads_the_files_of_an_export(tmp_path, kind):
  path = tmp_path / "spiece"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([TEXT] * 40),
    model_prefix=str(path),
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  v = {
    "sentencepiece": lambda: vocabularies.SentencePieceVocabulary(f"{path}.model"),
    "bytes": vocabularies.ByteVocabulary,
    "words": lambda: vocabularies.WordVocabulary(tuple(dict.fromkeys(TEXT.split()))),
    "huggingface": lambda: vocabularies.HuggingFaceVocabulary(
      tiny_tokenizer.write(tmp_path / "hf", "chatml")
    ),
  }[kind]()
  directory = tmp_path / "export"
  directory.mkdir()
  for name, content in v.files().items():
    (directory / name).write_bytes(content)
  model_type = "llama" if kind == "huggingface" else "t5"
  (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  assert tokenizer(TEXT).input_ids == v.prompt(TEXT)
  assert len(tokenizer) == v.size
  assert tokenizer.eos_token_id == v.eos_id and tokenizer.pad_token_id == v.pad_id
  assert tokenizer.decode(v.encode(TEXT)) == TEXT
  if kind in ("sentencepiece", "bytes"):
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert sentinel == v.tokens()["<extra_id_0>"]
