"""Hostile chats: templates, conversations and tokenizer files, as `fuzz.py` tries data.

python -m tests.endurance.fuzz_chats --inputs=10000
"""

from collections import Counter
import functools
import json
from pathlib import Path
import sys
import tempfile
from typing import Any
from unittest import mock

from hypothesis import strategies as st
import jax

from alignment.data import chats
from alignment.data.chats import Conversation
from alignment.data.vocabularies import HuggingFaceVocabulary
from tests import tiny_tokenizer
from tests.endurance import fuzz

# --- inputs ---------------------------------------------------------------------------

GOOD_TEMPLATES = [
  (tiny_tokenizer.CHATS / f"{name}.jinja").read_bytes() for name in tiny_tokenizer.NAMES
]
PARTS = st.sampled_from(
  [b"{{ 'a' * 10**10 }}", b"{{ 10 ** 10 ** 9 }}", b"{% for i in range(99999) %}",
   b"{% endfor %}", b"{{ raise_exception('\\n') }}", b"{{ messages }}", b"{% if %}",
   b"{{ ''.__class__ }}", b"{% set messages = [] %}", b"{{ self }}", b"{{ cycler }}",
   b"{% include 'x' %}", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
   b"{{ lipsum(n=10**6) }}", b"{{ '%1000000000d' % 1 }}", b"\x00", b"\xff"]
)  # fmt: skip
TEXTS = st.one_of(
  fuzz.GOOD_TEXT, fuzz.TEXTS, st.sampled_from([*tiny_tokenizer.SPECIAL, "\ufdd0"])
)


@st.composite
def templates(draw) -> bytes:
  """A good template, mutated, or with a hostile part in it."""
  source = draw(fuzz.mutated(st.sampled_from(GOOD_TEMPLATES)))
  if draw(st.booleans()):
    at = draw(st.integers(0, len(source)))
    source = source[:at] + draw(PARTS) + source[at:]
  return source


@st.composite
def conversations(draw) -> tuple[str | None, Conversation, Any, int]:
  """(template's name, prompt, reply, limit): any roles, and fields of any kind."""

  def message(role: str) -> dict[str, Any]:
    good = {"role": role, "content": draw(TEXTS)}
    return fuzz.with_changes(draw, good) if draw(st.integers(0, 5)) == 0 else good

  roles = st.sampled_from(["user", "assistant", "system", "tool", ""])
  messages = [message(draw(roles)) for _ in range(draw(st.integers(0, 4)))]
  tools = (draw(fuzz.VALUES),) if draw(st.integers(0, 9)) == 0 else ()
  prompt = Conversation((*messages, message("user")), tools)
  reply = draw(st.one_of(TEXTS, st.just(message("assistant"))))
  name = draw(st.sampled_from([*tiny_tokenizer.NAMES, None]))
  return name, prompt, reply, draw(st.integers(2, 300))


@st.composite
def tokenizer_files(draw) -> dict[str, bytes]:
  """The files of a directory, one or two of them mutated or with other values."""
  with tempfile.TemporaryDirectory() as scratch:
    directory = tiny_tokenizer.write(Path(scratch), "chatml")
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
  files["special_tokens_map.json"] = b'{"unk_token": {"content": "<|endoftext|>"}}'
  files["generation_config.json"] = b'{"eos_token_id": [2, 5]}'
  files["added_tokens.json"] = b'{"<bos>": 1}'
  for name in draw(st.sets(st.sampled_from(sorted(files)), max_size=2)):
    if name.endswith(".json") and draw(st.booleans()):
      changed = fuzz.with_changes(draw, json.loads(files[name]))
      files[name] = json.dumps(changed).encode()
    else:
      files[name] = draw(fuzz.mutated(st.just(files[name])))
  return files


# --- what reads them ------------------------------------------------------------------


def use(v: HuggingFaceVocabulary, prompt: Conversation, reply: Any, limit: int) -> None:
  """What the reader of a data set does with a conversation, and what must hold then."""
  fitted = v.fit_prompt(prompt, limit, "left")
  response = v.response(prompt, reply)
  assert len(fitted.ids) <= limit
  assert response[-1] == v.eos_id
  v.decode(response), v.decode_prompt(fitted.ids), v.unknown(response)


def read_template(directory: Path, source: bytes) -> None:
  tiny_tokenizer.write(directory, "chatml")
  (directory / "chat_template.jinja").write_bytes(source)
  v = HuggingFaceVocabulary(directory)
  use(v, Conversation(({"role": "user", "content": "hi"},)), "hello", 100)


@functools.cache
def vocabulary(name: str | None) -> HuggingFaceVocabulary:
  directory = Path(tempfile.mkdtemp())  # read here, and no longer needed
  try:
    return HuggingFaceVocabulary(tiny_tokenizer.write(directory, name))
  finally:
    for path in directory.iterdir():
      path.unlink()
    directory.rmdir()


def read_conversation(directory: Path, content: tuple) -> None:
  del directory
  name, *rest = content
  use(vocabulary(name), *rest)


def read_tokenizer(directory: Path, files: dict[str, bytes]) -> None:
  for path in directory.iterdir():
    path.unlink()
  for name, content in files.items():
    (directory / name).write_bytes(content)
  v = HuggingFaceVocabulary(directory)
  use(v, Conversation(({"role": "user", "content": "hi"},)), "hello", 100)
  assert v.judge_markers.first_id != v.judge_markers.second_id


TARGETS = {
  "templates": (templates(), read_template, 30),
  "conversations": (conversations(), read_conversation, 50),
  "tokenizers": (tokenizer_files(), read_tokenizer, 20),
}


def run(name: str, inputs: int) -> Counter:
  """`fuzz.fuzz` of one of this file's targets."""
  with (
    mock.patch.dict(fuzz.TARGETS, TARGETS),
    mock.patch.object(chats, "SECONDS", 0.5),
  ):
    return fuzz.fuzz(name, inputs)


def main(inputs: int) -> None:
  for name, (_, _, share) in TARGETS.items():
    outcomes = run(name, inputs * share // 100)
    print(f"fuzz: {name}: {dict(outcomes)}", flush=True)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  options = dict(option.removeprefix("--").split("=") for option in sys.argv[1:])
  main(int(options.get("inputs", 10_000)))
