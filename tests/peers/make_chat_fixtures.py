"""Writes tests/fixtures/chats/rendered.json: conversations as transformers writes them.

  python -m tests.peers.make_chat_fixtures    # needs transformers

For every template and conversation: text and ids of the prompt (all but the reply, with
the generation prompt) and of the whole. The tokenizer is the test's own tiny one, and
its file is stored beside, so that another version may train another.
"""

import datetime
import json
from pathlib import Path
import tempfile
from typing import Any
from unittest import mock

import transformers
from transformers.utils import chat_template_utils

from alignment.data import template_worker
from tests import tiny_tokenizer


class _Today(datetime.datetime):
  """The day that templates are told here."""

  @classmethod
  def now(cls, tz=None):
    return template_worker.TODAY


def rendered(directory: Path, conversation: list[dict[str, Any]], **kwargs: Any) -> Any:
  """[text, ids] of a prompt and of the whole, as transformers makes them."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  with mock.patch.object(chat_template_utils, "datetime", _Today):
    prompt = tokenizer.apply_chat_template(
      conversation[:-1], tokenize=False, add_generation_prompt=True, **kwargs
    )
    whole = tokenizer.apply_chat_template(conversation, tokenize=False, **kwargs)
    ids = [
      tokenizer.apply_chat_template(
        messages, add_generation_prompt=ask, return_dict=False, **kwargs
      )
      for messages, ask in ((conversation[:-1], True), (conversation, False))
    ]
  return {"prompt": [prompt, ids[0]], "whole": [whole, ids[1]]}


def main() -> None:
  results = {}
  tokenizer = tiny_tokenizer.tokenizer_json()
  with tempfile.TemporaryDirectory() as temporary:
    for name in tiny_tokenizer.NAMES:
      directory = tiny_tokenizer.write(Path(temporary) / name, name)
      results[name] = [
        rendered(directory, conversation)
        for conversation in tiny_tokenizer.conversations()
      ]
  header = {"transformers": transformers.__version__}
  out = json.dumps({**header, "templates": results}) + "\n"
  (tiny_tokenizer.CHATS / "rendered.json").write_text(out)
  (tiny_tokenizer.CHATS / "tokenizer.json").write_text(tokenizer + "\n")


if __name__ == "__main__":
  main()
