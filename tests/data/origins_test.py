"""Where tokens come from: every kind of vocabulary, whole prompts and cut ones."""

import types

import pytest
import sentencepiece

from alignment.data import origins, vocabularies
from alignment.data.chats import Conversation
from tests import tiny_tokenizer

WORDS = "Human: Assistant: the cat sat on a mat ünd here".split()
CHAT = Conversation(
  (
    {"role": "system", "content": "a mat"},
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": "ünd here"},
  )
)
SAID = {"system": "a mat", "user 1": "the cat sat", "assistant 1": "on the mat",
        "user 2": "ünd here"}  # fmt: skip
MARKS = {"prompt", "template", "beginning", "ending"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabularies")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([" ".join(WORDS)] * 40),
    model_prefix=str(path / "tiny"),
    vocab_size=45,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  for name in ("chatml", "headers", "thinking", "strict"):
    tiny_tokenizer.write(path / name, name)
  tiny_tokenizer.write(path / "plain")
  bos = tiny_tokenizer.tokenizer_json(bos="<bos>")
  tiny_tokenizer.write(path / "bos", tokenizer=bos, bos_token="<bos>")
  return path


def vocabulary(directory, name):
  kinds = {"sentencepiece": "tiny.model", "bytes": "", "words": ""}
  kind = name if name in kinds else "huggingface"
  path = str(directory / kinds.get(name, name))
  return vocabularies.from_config(
    types.SimpleNamespace(kind=kind, path=path, words=tuple(WORDS))
  )


def told(v, fitted) -> dict[str, str]:
  """What is said to come from where, as text."""
  found = origins.of_prompt(v, fitted)
  assert len(found) == len(fitted.ids)
  texts: dict[str, str] = {}
  for origin, ids in origins.runs(fitted.ids, found):
    texts[origin] = texts.get(origin, "") + v.decode_prompt(ids)
  return texts


CHATS = ("sentencepiece", "bytes", "words", "plain", "bos", "chatml", "headers",
         "thinking")  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_messages_are_told_from_what_stands_around_them(directory, name):
  v = vocabulary(directory, name)
  texts = told(v, v.fit_prompt(CHAT, 1000, "left"))
  for origin, text in SAID.items():
    assert texts.pop(origin).strip() == text
  assert texts.keys() <= MARKS and "template" in texts
  assert ("ending" in texts) == bool(v.after_prompt)
  assert ("beginning" in texts) == (name == "bos")
  role = {"chatml": "assistant", "thinking": "assistant", "headers": "assistant"}
  assert role.get(name, "Assistant:") in texts["template"]


@pytest.mark.parametrize("name", ["sentencepiece", "bytes", "words", "plain", "bos"])
def test_a_text_is_a_prompt_or_the_transcript_that_it_is(directory, name):
  v = vocabulary(directory, name)
  texts = told(v, v.fit_prompt("the cat sat", 1000, "left"))
  assert texts["prompt"].strip() == "the cat sat" and texts.keys() <= MARKS
  if name != "words":  # which has no line breaks
    texts = told(v, v.fit_prompt("\n\nHuman: the cat\n\nAssistant:", 1000, "left"))
    assert texts["user 1"].strip() == "the cat" and "prompt" not in texts


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CHATS)
def test_of_a_cut_prompt_what_is_left_keeps_its_origin(directory, name, side):
  v = vocabulary(directory, name)
  whole = len(v.prompt(CHAT))
  shortest = len(v.prompt(Conversation((CHAT.messages[0], CHAT.messages[-1])))) - 2
  for limit in range(max(4, shortest), whole):
    texts = told(v, v.fit_prompt(CHAT, limit, side))
    kept = {o: text.strip().strip("\ufffd") for o, text in texts.items()}
    for origin in kept.keys() - MARKS:
      role = origin.split()[0]  # turns are counted among those that are left
      assert any(kept[origin] in SAID[o] for o in SAID if o.startswith(role)), origin
    assert kept.keys() - MARKS, "nothing that anybody said is left"


def test_a_template_that_puts_messages_together(directory):
  """Gemma's has no system role: its text stands in the first turn."""
  v = vocabulary(directory, "strict")
  texts = told(v, v.fit_prompt(CHAT, 1000, "left"))
  assert {o: texts[o].strip() for o in SAID} == SAID


def test_a_response_ends_or_was_cut(directory):
  v = vocabulary(directory, "chatml")
  ids = v.response(CHAT, "here")
  assert origins.of_response(v, ids) == ["response"] * (len(ids) - 1) + ["ending"]
  assert origins.of_response(v, ids[:-1]) == ["response"] * (len(ids) - 1)
