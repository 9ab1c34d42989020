"""Prompts of texts, of records and of pairs, and the format that they are put into."""

import gzip
import json

import pytest

from alignment.data import prompts
from alignment.data.examples import BadPair, Example, Reading
from alignment.types import UserError

CHAT = "Be brief.\n\nHuman: {prompt}\n\nAssistant:"


def read(path):
  return [example.prompt for example in prompts.read(str(path), {}, Reading())]


def test_lines_of_text_are_prompts(tmp_path):
  path = tmp_path / "prompts.txt.gz"
  path.write_bytes(gzip.compress("Ist es spät?\n\n  Why?  \n".encode()))
  assert list(prompts.read(str(path), {}, Reading())) == [
    Example("Ist es spät?", "", "", f"{path}:1"),
    Example("Why?", "", "", f"{path}:3"),
  ]


def test_records_have_prompts_with_or_without_replies(tmp_path):
  path = tmp_path / "prompts.jsonl"
  asked, replied = "\n\nHuman: ", "\n\nAssistant: "
  rows = [
    {"prompt": "A?"},
    {"prompt": "B?", "system": "Hm."},
    {"prompt": "C?", "chosen": "x", "rejected": "x"},
    {"chosen": f"{asked}D?{replied}x", "rejected": f"{asked}D?{replied}y"},
    {"chosen": f"{asked}D?{replied}x", "rejected": f"{asked}E?{replied}y"},
    {"messages": [{"role": "user", "content": "F?"}]},
  ]  # fmt: skip
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert read(path) == [
    "A?", "Hm.\n\nB?", "C?", "\n\nHuman: D?\n\nAssistant:",
    ({"role": "user", "content": "F?"},),
  ]  # fmt: skip
  path.write_text('{"text": "A?"}\n')
  with pytest.raises(UserError, match="jsonl:1: field 'prompt' is missing"):
    read(path)


def test_a_reply_is_no_part_of_a_prompt(tmp_path):
  """The policy would be asked for another reply to a dialogue that has one."""
  path = tmp_path / "chats.jsonl"
  user = {"role": "user", "content": "Why?"}
  reply = {"role": "assistant", "content": "So."}
  rows = [
    {"messages": [user, reply]},
    {"messages": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    {"messages": [user, reply, user, reply]},
  ]  # fmt: skip
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert read(path) == [(user,), (user,), (user, reply, user)]
  path.write_text(json.dumps({"messages": [reply]}) + "\n")
  with pytest.raises(
    UserError, match="jsonl:1: field 'messages' has no message of a us"
  ):
    read(path)


def test_records_that_are_left_out_are_counted(tmp_path):
  path = tmp_path / "pairs.jsonl"
  asked, replied = "\n\nHuman: ", "\n\nAssistant: "
  row = {"chosen": f"{asked}D?{replied}x", "rejected": f"{asked}E?{replied}y"}
  path.write_text(json.dumps(row) + "\n")
  assert not list(prompts.read(str(path), {}, reading := Reading()))
  assert reading.lines() and "dropped 1" in reading.lines()[0]


def test_a_format_has_the_first_turn_in_its_place():
  dialogue = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Oh.\n\nAssistant:"
  for prompt in ("Why?", dialogue, ({"role": "user", "content": "Why?"},)):
    example = prompts.formatted(CHAT, Example(prompt, "", "", "file:1"))
    assert example.prompt == CHAT.replace("{prompt}", "Why?")
    assert prompts.formatted("", example) is example


def test_a_system_text_is_not_what_the_user_asks(tmp_path):
  path = tmp_path / "prompts.jsonl"
  messages = [{"role": "system", "content": "Hm."}, {"role": "user", "content": "Why?"}]
  rows = [{"prompt": "Why?", "system": "Hm."}, {"prompt": messages}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  for example in prompts.read(str(path), {}, Reading()):
    asked = prompts.formatted(CHAT, example)
    assert asked.prompt == CHAT.replace("{prompt}", "Why?") and not asked.asked


def test_pairs_whose_replies_obey_a_system_text_have_no_place_in_a_format():
  pair = Example("\n\nHuman: Why?\n\nAssistant:", "a", "b", "file:1")
  messages = ({"role": "system", "content": "Hm."}, {"role": "user", "content": "Why?"})
  replies = [({"role": "assistant", "content": text},) for text in "ab"]
  for obeying in (
    pair._replace(prompt="Hm." + pair.prompt),
    pair._replace(prompt="Hm.\n\nWhy?", asked="Why?"),
    Example(messages, *replies, "file:1"),
  ):
    with pytest.raises(BadPair, match="no place for the pair's system text"):
      prompts.formatted_pair(CHAT, obeying)
  prompts.formatted_pair(CHAT, pair._replace(prompt="Why?"))


def test_pairs_of_several_turns_have_no_place_in_a_format():
  pair = Example("\n\nHuman: Why?\n\nAssistant:", "a", "b", "file:1")
  expected = pair._replace(prompt=CHAT.replace("{prompt}", "Why?"))
  assert prompts.formatted_pair(CHAT, pair) == expected
  said = ({"role": "assistant", "content": "a"},)
  assert prompts.formatted_pair(CHAT, pair._replace(chosen=said)) == expected
  assert prompts.formatted_pair("", pair) is pair
  two = pair._replace(prompt=pair.prompt + " So.\n\nHuman: Oh.\n\nAssistant:")
  with pytest.raises(BadPair, match="a place for one turn"):
    prompts.formatted_pair(CHAT, two)
