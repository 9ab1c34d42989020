"""Hugging Face directories with a tokenizer of a few hundred tokens."""

from collections.abc import Iterable
import functools
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from alignment.data.chats import Conversation
from alignment.data.vocabularies import HuggingFaceVocabulary

CHATS = Path(__file__).parent / "fixtures" / "chats"
SPECIAL = (
  "<|endoftext|>", "<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<|head|>",
  "<|/head|>", "<|turn_end|>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
NAMES = {  # tokenizer_config.json beside each template of tests/fixtures/chats
  "chatml": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
  | {"pad_token": "<|im_end|>"},
  "headers": {"bos_token": "<bos>", "eos_token": "<eos>"},
  "strict": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
  "thinking": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
LINES = (
  "the cat sat on the mat", "Hello, how can I help? Answer in French.", "A B Response",
  "Human: what is this? Assistant: this is that.", "system user assistant model",
)  # fmt: skip


@functools.cache
def tokenizer_json(
  special: tuple[str, ...] = SPECIAL, lines: tuple[str, ...] = LINES, bos: str = ""
) -> str:
  """A byte-level BPE; `bos`, if given, is put before a text by its post-processor."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=len(special) + 330,
    special_tokens=list(special),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(iter(lines * 3), trainer)
  tokenizer.add_tokens(["<think>", "</think>"])  # added, but not special
  if bos:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
  return tokenizer.to_str()


def write(
  directory: Path,
  template: str | None = None,
  *,
  tokenizer: str | None = None,
  **config: Any,
) -> Path:
  """A directory with a tokenizer; `template` is Jinja, or a name in `NAMES`."""
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "tokenizer.json").write_text(tokenizer or tokenizer_json())
  if template in NAMES:
    config = NAMES[template] | config
    template = (CHATS / f"{template}.jinja").read_text()
  if template is not None:
    (directory / "chat_template.jinja").write_text(template)
  config = {"eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"} | config
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  return directory


def conversations() -> Iterable[list[dict[str, str]]]:
  """Ten that end with a reply, a system message in some."""
  return json.loads((CHATS / "conversations.json").read_text())


def assert_renders_as(v: HuggingFaceVocabulary, conversation, expected, end):
  """Prompt and response, joined, are transformers' rendering of the whole."""
  *before, reply = conversation
  text, beyond = end
  prompt = Conversation(tuple(before))
  ids, (prompt_text, prompt_ids) = v.prompt(prompt), expected["prompt"]
  assert v.decode_prompt(ids) == prompt_text
  assert ids == prompt_ids
  response = v.response(prompt, reply["content"])
  whole_text, whole_ids = expected["whole"]
  assert v.decode_prompt(ids + response) + beyond == whole_text
  if reply["content"] == reply["content"].lstrip():  # else white space could join
    assert ids + response + v._encode(beyond) == whole_ids
  assert v.decode_prompt(response[-1:]) == text
  assert v.decode(response) == whole_text[len(prompt_text) :].removesuffix(
    text + beyond
  )
  assert [i for i in response if i in v.ending_ids] == [v.eos_id]
