"""Readers: every fault on one line, and what is dropped or ignored is told."""

import gzip
import json

import pytest

from alignment.data import chats, readers
from alignment.data.examples import Reading
from alignment.types import UserError
from tests.texts import texts as texts_of

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def write(tmp_path, *records, name="pairs.jsonl"):
  """A file of JSON lines; bytes are written as they are."""
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
  data = b"".join(line + b"\n" for line in lines)
  path = tmp_path / name
  path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return path


def read(path, on_bad_pair="error", reading=None, columns=None):
  return list(
    readers.read_files(path, on_bad_pair, reading or Reading(), columns or {})
  )


def texts(path, **options):
  """What is read, as texts."""
  return [texts_of(example) for example in read(path, **options)]


def fails(path, *parts, on_bad_pair="error"):
  """Reading raises a one-line UserError that starts with the path and has `parts`."""
  with pytest.raises(UserError) as error:
    texts(path, on_bad_pair=on_bad_pair)
  message = str(error.value)
  assert message.startswith(str(path)) and "\n" not in message
  for part in parts:
    assert part in message, message


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


def system(text):
  return {"role": "system", "content": text}


def test_windows_line_ends_and_byte_order_mark(tmp_path):
  path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r")
  assert read(path)[0][:3] == ("p", "c", "r")


def test_transcripts(tmp_path):
  start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
  path = write(tmp_path, {"chosen": start + "  yes", "rejected": start + "no"})
  assert read(path)[0][:3] == (start, " yes", "no")


def test_messages_with_and_without_prompt(tmp_path):
  prompt = [system("be kind"), system("be brief"), user("a"), assistant("b"), user("c")]
  good, bad = assistant("yes"), assistant("no")
  path = write(
    tmp_path,
    {"prompt": prompt, "chosen": [good], "rejected": [bad]},
    {"chosen": [*prompt, good], "rejected": [*prompt, bad]},
    {"prompt": [user("a")], "chosen": [good], "rejected": [bad]},
  )
  explicit, implicit, short = texts(path)
  assert (
    explicit
    == implicit
    == (
      "be kind\n\nbe brief\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
      "yes",
      "no",
    )
  )
  assert short[0] == "\n\nHuman: a\n\nAssistant:"


@pytest.mark.parametrize(
  "line, message",
  [
    (b"{", "malformed JSON"),
    (b'{"prompt": NaN}', "NaN is not JSON"),
    (b'{"chosen": -Infinity}', "-Infinity is not JSON"),
    (b"[" * 200_000, "nested too deeply"),
    (b"9" * 5000, "malformed JSON"),
    (b"[1]", "not an object but a list"),
    (b'"text"', "not an object but a str"),
    (b'{"a": "\xff"}', "not UTF-8 (byte 8 of the line)"),
    ({**PAIR, "chosen": "\ud800"}, "field 'chosen' has a lone surrogate"),
    ({**PAIR, "prompt": "ok \udfff"}, "field 'prompt' has a lone surrogate"),
    ({**PAIR, "rejected": None}, "field 'rejected' is null, not a string"),
    ({**PAIR, "prompt": 3}, "field 'prompt' is a int, not a string"),
    ({**PAIR, "rejected": []}, "field 'chosen' must be a list of chat messages"),
    ({"prompt": "p", "rejected": "r"}, "field 'chosen' is missing; a record needs"),
    ({"prompt": "p", "chosen": "c"}, "field 'rejected' is missing; a record needs"),
    ({"chosen": "c", "rejected": "r"}, "field 'prompt' is missing; a record needs"),
  ],
)
def test_structural_faults_name_the_line(tmp_path, line, message):
  path = write(tmp_path, PAIR, line)
  fails(path, f"{path}:2: ", message)


@pytest.mark.parametrize(
  "rejected",
  [
    "\n\nHuman: b\n\nAssistant: x",
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: x",
  ],
)
def test_transcripts_that_diverge_early(tmp_path, rejected):
  chosen = "\n\nHuman: a\n\nAssistant: y"
  path = write(tmp_path, {"chosen": chosen, "rejected": rejected})
  fails(path, f"{path}:1: transcripts differ before the last reply")


def test_transcript_without_a_turn_before_it(tmp_path):
  path = write(tmp_path, {"chosen": "\n\nAssistant: y", "rejected": "plain"})
  fails(path, "last turn is not the assistant's")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"chosen": "text"}, "field 'chosen' must be a list of chat messages"),
    ({"rejected": []}, "field 'rejected' must be a list of chat messages"),
    ({"prompt": []}, "field 'prompt' must be a list of chat messages"),
    ({"rejected": ["no"]}, "field 'rejected[0]' must be an object with 'role'"),
    ({"prompt": [{"role": "user"}]}, "field 'prompt[0].content' is null"),
    ({"prompt": [user(["a"])]}, "field 'prompt[0].content[0]' is no text"),
    ({"prompt": [{"role": 1, "content": ""}]}, "field 'prompt[0].role' is a int"),
    (
      {"prompt": [{"role": "tool", "content": ""}]},
      "must end with a message of role 'user'",
    ),
    ({"prompt": [{"role": "bot", "content": ""}]}, "field 'prompt[0].role' is 'bot'"),
    ({"chosen": [user("a")]}, "field 'chosen' ends with role 'user'"),
    ({"chosen": [user("a"), assistant("b")]}, "field 'chosen' must hold one message"),
    ({"prompt": [user("a"), assistant("b")]}, "must end with a message of role 'user'"),
    ({"prompt": [user("a"), system("b"), user("c")]}, "system messages must come"),
  ],
)
def test_faulty_messages(tmp_path, changes, message):
  record = {
    "prompt": [user("a")],
    "chosen": [assistant("y")],
    "rejected": [assistant("n")],
  }
  fails(write(tmp_path, record | changes), message)


def test_implicit_prompts_must_be_shared(tmp_path):
  record = {
    "chosen": [user("a"), assistant("y")],
    "rejected": [user("b"), assistant("n")],
  }
  fails(write(tmp_path, record), "must share all but the last message")
  record = {"chosen": [assistant("y")], "rejected": [assistant("n")]}
  fails(write(tmp_path, record), "must end with a message of role 'user'")


def test_degenerate_pairs(tmp_path):
  path = write(
    tmp_path,
    {**PAIR, "chosen": " \n"},
    {**PAIR, "rejected": ""},
    {**PAIR, "rejected": "c"},
    PAIR,
  )
  reading = Reading()
  assert [e.source for e in read(path, "skip", reading)] == [f"{path}:4"]
  assert reading.dropped == {"empty": 2, "identical": 1}
  assert reading.lines() == ["dropped 2 empty, 1 identical"]
  lines = path.read_bytes().splitlines()
  for line, fault in zip(
    lines,
    [
      "'chosen' is empty",
      "'rejected' is empty",
      "'chosen' and 'rejected' are identical",
    ],
    strict=False,
  ):
    fails(
      write(tmp_path, line), ":1: field", fault, "data.on_bad_pair", on_bad_pair="error"
    )
  with pytest.raises(UserError, match="data.on_bad_pair is 'ignore'; use"):
    read(path, "ignore")


def test_pairs_are_streamed(tmp_path):
  path = write(tmp_path, PAIR, b"broken")
  pairs = readers.read_files(path, "error", Reading())
  assert next(pairs).source == f"{path}:1"  # the fault on line 2 is not met yet


def test_null_is_as_good_as_absent_where_a_field_may_be(tmp_path):
  start = "\n\nHuman: a\n\nAssistant:"
  record = {"prompt": None, "system": None, "tools": None, "messages": None}
  path = write(tmp_path, record | {"chosen": start + " y", "rejected": start + " n"})
  assert texts(path) == [(start, "y", "n")]


def test_a_system_text_is_part_of_the_prompt(tmp_path):
  dialogue = {"prompt": [user("a")], "chosen": [assistant("y")]}
  dialogue |= {"rejected": [assistant("n")], "system": "be kind"}
  start = "\n\nHuman: a\n\nAssistant:"
  whole = {"system": "be kind", "chosen": start + " y", "rejected": start + " n"}
  path = write(tmp_path, {**PAIR, "system": "be kind"}, dialogue, whole)
  assert texts(path) == [
    ("be kind\n\np", "c", "r"),
    ("be kind" + start, "y", "n"),
    ("be kind" + start, "y", "n"),
  ]
  dialogue["prompt"] = [system("be kind"), user("a")]
  assert texts(write(tmp_path, dialogue)) == [("be kind" + start, "y", "n")]
  dialogue["prompt"] = [system("be brief"), user("a")]
  fails(write(tmp_path, dialogue), "field 'system' differs from the prompt's own")


def test_unread_fields_that_every_record_has_are_named(tmp_path):
  reading = Reading()
  named = assistant("y") | {"weight": 1}
  dialogue = {"prompt": [user("a")], "chosen": [named], "rejected": [assistant("n")]}
  path = write(
    tmp_path,
    {**PAIR, "id": 3, "source\n": "web", "score": 2},
    {**dialogue, "id": None, "source\n": "web"},
  )
  read(path, reading=reading)
  assert reading.lines() == [r"ignored fields: id, 'source\n'"]
  reading = Reading()
  read(write(tmp_path, dialogue), reading=reading)
  assert reading.ignored == ["weight of messages"]
  many = {f"field {i:03}": i for i in range(3000)}
  reading = Reading()
  read(write(tmp_path, {**PAIR, **many}), reading=reading)
  (line,) = reading.lines()
  assert line.endswith("field 018, field 019 and 980 others")


SCORES = [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"),
          ("chosen_avg_reward", "rejected_avg_reward")]  # fmt: skip


@pytest.mark.parametrize("names", SCORES)
def test_scores_that_tie_or_contradict_the_labels(tmp_path, names):
  def scored(*values):
    return PAIR | dict(zip(names, values, strict=True))

  path = write(
    tmp_path, scored(8.5, 8.5), scored(2, 9), scored(9, 2), scored(None, 1),
    scored("a", "b"),
  )  # fmt: skip
  reading = Reading()
  pairs = read(path, "skip", reading)
  assert [pair.scores for pair in pairs] == [(9, 2), None, None]
  assert reading.dropped == {"tied": 1, "inverted": 1} and not reading.ignored
  fails(write(tmp_path, scored(1, 1)), ":1: 'chosen' and 'rejected' have the same")
  fails(write(tmp_path, scored(1, 2)), "a lower score than 'rejected', 1 < 2")


def test_scores_that_are_no_numbers_are_named_and_hide_no_others(tmp_path):
  """As exports of tables have them, and data sets with a reason beside each rating."""
  reading = Reading()
  path = write(tmp_path, PAIR | {"score_chosen": "2", "score_rejected": "9"})
  assert read(path, reading=reading)[0].scores is None
  assert reading.ignored == ["score_chosen", "score_rejected"]
  reasons = {"chosen_rating_reason": "It is.", "rejected_rating_reason": "It is not."}
  ratings = {"chosen_rating": 4, "rejected_rating": 4}
  fails(write(tmp_path, PAIR | reasons | ratings), "have the same score, 4")


def test_scores_that_are_mapped_come_before_all_others(tmp_path):
  path = write(
    tmp_path, PAIR | {"chosen_score": 9, "rejected_score": 2, "a": 1, "b": 5}
  )
  columns = {"score_chosen": "a", "score_rejected": "b"}
  assert read(path)[0].scores == (9, 2)
  with pytest.raises(UserError, match="a lower score than 'rejected', 1 < 5"):
    read(path, columns=columns)


def test_columns_may_change_places(tmp_path):
  path = write(tmp_path, {"prompt": "p", "chosen": "bad", "rejected": "good"})
  (pair,) = read(path, columns={"chosen": "rejected", "rejected": "chosen"})
  assert (pair.chosen, pair.rejected) == ("good", "bad")


def test_a_field_that_another_column_replaces_is_named(tmp_path):
  reading = Reading()
  path = write(tmp_path, PAIR | {"prompt": "id-7", "query": "Why?"})
  (pair,) = read(path, columns={"prompt": "query"}, reading=reading)
  assert pair.prompt == "Why?" and reading.ignored == ["prompt"]


def test_what_stands_beside_the_messages_of_a_request(tmp_path):
  request = {
    "messages": [user("a")],
    "tools": [{"type": "function"}],
    "parallel_tool_calls": False,
  }
  record = {
    "input": request,
    "tools": None,
    "preferred_output": [assistant("y")],
    "non_preferred_output": [assistant("n")],
  }
  reading = Reading()
  (pair,) = read(write(tmp_path, record), reading=reading)
  assert pair.tools == ({"type": "function"},)
  assert reading.ignored == ["input.parallel_tool_calls"]


def test_a_truth_value_does_not_number_the_better_output(tmp_path):
  record = {"instruction": "a", "output_1": "y", "output_2": "n", "label": True}
  fails(write(tmp_path, record), ":1: field 'label' is True; it must be 1 or 2")


def test_a_name_is_read_of_tools_alone(tmp_path):
  reading = Reading()
  record = {"prompt": [user("a") | {"name": "Ann"}], "chosen": "y", "rejected": "n"}
  read(write(tmp_path, record), reading=reading)
  assert reading.ignored == ["name of messages"]


def test_no_count_of_words_is_a_score(tmp_path):
  path = write(tmp_path, {**PAIR, "chosen_tokens": 1, "rejected_tokens": 2})
  assert read(path)[0].scores is None


@pytest.mark.parametrize("field", chats.MEANINGFUL)
def test_what_only_a_template_can_show_is_kept_and_refused_in_text(tmp_path, field):
  record = {"prompt": [user("a")], "rejected": [assistant("y")]}
  path = write(tmp_path, {**record, "chosen": [assistant("y") | {field: ["x"]}]})
  (pair,) = read(path)  # they differ, if only there
  assert pair.chosen[0][field] == ["x"]
  fails(path, f":1: field 'chosen': field '{field}' of a message can be read by a chat")
  path = write(tmp_path, {**record, "chosen": [assistant("y") | {field: []}]})
  fails(path, "are identical")


def test_a_call_of_a_tool_is_no_empty_reply(tmp_path):
  call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
  result = {"role": "tool", "content": "on", "tool_call_id": "1"}
  record = {
    "prompt": [user("a")],
    "chosen": [call, result, assistant("It is on.")],
    "rejected": [assistant("n")],
    "tools": '[{"type": "function"}]',
  }
  reading = Reading()
  (pair,) = read(write(tmp_path, record), reading=reading)
  assert pair.chosen == (call, result, assistant("It is on."))
  assert pair.tools == ({"type": "function"},) and not reading.ignored
  fails(
    write(tmp_path, record), "field 'tools' of a message has no place in a transcript"
  )
  record["chosen"] = [call]
  assert read(write(tmp_path, record))[0].chosen == (call,)
  fails(write(tmp_path, record | {"tools": "{"}), "field 'tools' must be JSON")
  fails(write(tmp_path, record | {"tools": 3}), "field 'tools' must be a list of tools")
  fails(
    write(tmp_path, {**PAIR, "tools": [{}]}),
    "'tools' stand beside a prompt that is no list",
  )
  sharegpt = {
    "conversations": [{"from": "human", "value": "a"}],
    "chosen": {"from": "function_call", "value": '{"name": "light"}'},
    "rejected": {"from": "gpt", "value": "n"},
  }
  (pair,) = read(write(tmp_path, sharegpt))
  calls = [{"type": "function", "function": {"name": "light"}}]
  assert pair.chosen == ({"role": "assistant", "content": None, "tool_calls": calls},)


def test_alpaca_fields_are_checked(tmp_path):
  record = {"instruction": "a", "chosen": "y", "rejected": "n"}
  for changes, message in (
    ({"history": True}, "field 'history' must be a list of turns"),
    ({"history": [["a"]]}, "field 'history[0]' must be a question and an answer"),
    ({"history": [["a", 1]]}, "field 'instruction[1].content' is a int"),
    ({"input": 1}, "field 'input' is a int, not a string"),
    ({"instruction": []}, "field 'instruction' is a list, not a string"),
  ):
    fails(write(tmp_path, record | changes), message)
  path = write(tmp_path, record | {"history": None})
  assert texts(path) == [("\n\nHuman: a\n\nAssistant:", "y", "n")]
  outputs = {"instruction": "a", "output_1": "y", "output_2": "n"}
  assert texts(write(tmp_path, outputs | {"label": 1})) == [("a", "y", "n")]
  fails(
    write(tmp_path, outputs | {"label": 0}), "field 'label' is 0; it must be 1 or 2"
  )
  fails(write(tmp_path, outputs), "field 'label' is None; it must be 1 or 2")


def test_nesting_that_is_parsed_is_never_too_deep_to_compare(tmp_path):
  for depth in range(900, 1100):
    deep = b"[" * depth + b"]" * depth
    line = b'{"chosen": [%s], "messages": [%s], "rejected": [1]}' % (deep, deep)
    fails(write(tmp_path, line), f"{tmp_path}/pairs.jsonl:1: ")


def test_content_in_parts_is_text_or_refused(tmp_path):
  record = {"chosen": [assistant("y")], "rejected": [assistant("n")]}
  parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
  path = write(tmp_path, {**record, "prompt": [user(parts)]})
  assert texts(path) == [("\n\nHuman: ab\n\nAssistant:", "y", "n")]
  parts.append({"type": "image_url", "image_url": "x"})
  path = write(tmp_path, {**record, "prompt": [user(parts)]})
  fails(path, "field 'prompt[0].content[2]' is no text")


def test_strings_and_messages_mix_where_that_is_clear(tmp_path):
  path = write(
    tmp_path,
    {"prompt": "a", "chosen": [assistant("y")], "rejected": [assistant("n")]},
    {"messages": [user("a")], "chosen": "y", "rejected": "n"},
    {"prompt": [user("a")], "chosen": [user("a"), assistant("y")],
     "rejected": [user("a"), assistant("n")]},
  )  # fmt: skip
  assert texts(path) == [("\n\nHuman: a\n\nAssistant:", "y", "n")] * 3


def test_replies_to_a_transcript_hold_no_other_turn(tmp_path):
  prompt = "\n\nHuman: a\n\nAssistant:"
  reply = " b\n\nHuman: c"
  path = write(tmp_path, {"prompt": prompt, "chosen": reply, "rejected": " d"})
  fails(path, "field 'chosen' holds another human turn")
  path = write(tmp_path, {"prompt": "a", "chosen": prompt + " y", "rejected": "n"})
  fails(path, "last turn is not the assistant's")
  path = write(tmp_path, {"prompt": "z", "chosen": prompt + " y", "rejected": prompt})
  fails(path, "field 'prompt' is not in both")


def test_short_prompts_may_be_said_again(tmp_path):
  record = {"prompt": "Hello", "chosen": "Hello!", "rejected": "Hello, what?"}
  assert texts(write(tmp_path, record)) == [tuple(record.values())]
  long = "Is it going to rain?"
  record = {"prompt": [user(long)], "chosen": long + " No.", "rejected": long + " Yes."}
  fails(write(tmp_path, record), "both begin with the whole prompt")
  record["rejected"] = "No."
  assert len(texts(write(tmp_path, record))) == 1
  record = {"system": "Be brief.", "prompt": long}
  record |= {"chosen": long + " No.", "rejected": long + " Yes."}
  fails(write(tmp_path, record), "both begin with the whole prompt")


def test_messages_that_repeat_their_prompt_are_cut_and_counted(tmp_path):
  whole = [[user("a"), assistant(reply)] for reply in "yn"]
  record = {"prompt": [user("a")], "chosen": whole[0], "rejected": whole[1]}
  reading = Reading()
  (pair,) = read(write(tmp_path, record), reading=reading)
  assert len(pair.chosen) == 1 and reading.repeated == 1
  record |= {"chosen": whole[0][1:], "rejected": whole[1][1:]}
  read(write(tmp_path, record), reading=reading)
  assert reading.repeated == 1


def test_columns_are_mapped(tmp_path):
  record = {"query": "p", "good": "c", "bad": "r", "prompt": "title", "a": 1, "b": 1}
  columns = {"prompt": "query", "chosen": "good", "rejected": "bad", "system": ""}
  reading = Reading()
  path = write(tmp_path, record)
  assert texts(path, columns=columns, reading=reading) == [("p", "c", "r")]
  assert reading.ignored == ["a", "b", "prompt"]
  columns |= {"score_chosen": "a", "score_rejected": "b"}
  with pytest.raises(UserError, match="same score, 1"):
    read(path, columns=columns)
  for columns, message in (
    ({"prompt": "question"}, "field 'question', which data.columns.prompt names, is m"),
    ({"promt": "query"}, "data.columns has 'promt': 'query'; it maps prompt, cho"),
  ):
    with pytest.raises(UserError, match=message):
      read(path, columns=columns)


def test_tfds_rows_share_the_policy(monkeypatch):
  rows = [("p", "c", "r"), ("p", "c", "c"), ("q", "", "r")]
  calls = []

  def tfds_examples(name, split, data_dir):
    calls.append((name, split, data_dir))
    return iter(rows)

  monkeypatch.setattr(readers.datasets, "examples", tfds_examples)
  reading = Reading()
  pairs = list(readers.read_tfds("tldr", "train", "/data", "skip", reading))
  assert [pair[:4] for pair in pairs] == [("p", "c", "r", "tldr/train:1")]
  assert reading.dropped == {"identical": 1, "empty": 1} and calls == [
    ("tldr", "train", "/data")
  ]
  with pytest.raises(UserError, match="tldr/train:2: fields 'chosen' and 'rejected'"):
    list(readers.read_tfds("tldr", "train", None, "error", Reading()))
  rows.clear()
  with pytest.raises(UserError, match="tldr/train: holds no pairs"):
    list(readers.read_tfds("tldr", "train", None, "error", Reading()))
