"""Readers: three layouts, every fault on one line, and what is dropped is counted."""

import gzip
import json
import re

import pytest

from alignment.data import readers
from alignment.types import UserError

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def write(tmp_path, *records, name="pairs.jsonl"):
  """A file of JSON lines; bytes are written as they are."""
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
  data = b"".join(line + b"\n" for line in lines)
  path = tmp_path / name
  path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return path


def read(path, on_bad_pair="error", counts=None):
  return list(readers.read_jsonl(path, on_bad_pair, {} if counts is None else counts))


def fails(path, *parts, on_bad_pair="skip"):
  """Reading raises a one-line UserError that starts with the path and has `parts`."""
  with pytest.raises(UserError) as error:
    read(path, on_bad_pair)
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


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_strings(tmp_path, name):
  more = {"prompt": "", "chosen": " é\n", "rejected": "\u2028雪", "score": 1}
  path = write(tmp_path, PAIR, b"", b"  ", more, name=name)
  assert read(path) == [
    ("p", "c", "r", f"{path}:1"),
    ("", " é\n", "\u2028雪", f"{path}:4"),
  ]


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
  explicit, implicit, short = read(path)
  assert (
    explicit[:3]
    == implicit[:3]
    == (
      "be kind\n\nbe brief\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
      "yes",
      "no",
    )
  )
  assert short.prompt == "\n\nHuman: a\n\nAssistant:"


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
    ({**PAIR, "rejected": []}, "field 'rejected' is a list, not a string"),
    ({"prompt": "p", "rejected": "r"}, "field 'chosen' is missing; each line needs"),
    ({"prompt": "p", "chosen": "c"}, "field 'rejected' is missing; each line needs"),
    ({"chosen": "c", "rejected": "r"}, "field 'prompt' is missing; each line needs"),
  ],
)
def test_structural_faults_name_the_line(tmp_path, line, message):
  path = write(tmp_path, PAIR, line)
  fails(path, f"{path}:2: ", message)


@pytest.mark.parametrize(
  "rejected",
  [
    "\n\nHuman: b\n\nAssistant: x",
    "no transcript",
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: x",
  ],
)
def test_transcripts_that_diverge_early(tmp_path, rejected):
  chosen = "\n\nHuman: a\n\nAssistant: y"
  path = write(tmp_path, {"chosen": chosen, "rejected": rejected})
  fails(path, f"{path}:1: transcripts 'chosen' and 'rejected' differ before")


def test_transcript_without_a_turn_before_it(tmp_path):
  path = write(tmp_path, {"chosen": "\n\nAssistant: y", "rejected": "plain"})
  fails(path, "differ before")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"chosen": "text"}, "field 'chosen' must be a list of chat messages"),
    ({"prompt": "text"}, "field 'prompt' must be a list of chat messages"),
    ({"rejected": []}, "field 'rejected' must be a list of chat messages"),
    ({"prompt": []}, "field 'prompt' must be a list of chat messages"),
    ({"rejected": ["no"]}, "field 'rejected[0]' must be an object with 'role'"),
    ({"prompt": [{"role": "user"}]}, "field 'prompt[0]' must be an object with"),
    ({"prompt": [user(["a"])]}, "field 'prompt[0].content' is a list"),
    ({"prompt": [{"role": 1, "content": ""}]}, "field 'prompt[0].role' is a int"),
    ({"prompt": [{"role": "tool", "content": ""}]}, "field 'prompt[0].role' is 'tool'"),
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
  counts = {}
  assert [e.source for e in read(path, "skip", counts)] == [f"{path}:4"]
  assert counts == {"empty": 2, "identical": 1}
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


def test_nothing_to_read(tmp_path):
  fails(tmp_path / "absent.jsonl", "cannot be read (No such file", "data.path")
  fails(tmp_path, "cannot be read (Is a directory")
  for name in ("empty.jsonl", "empty.jsonl.gz"):
    fails(write(tmp_path, name=name), "holds no pairs")
  (tmp_path / "empty.jsonl.gz").write_bytes(b"")
  fails(tmp_path / "empty.jsonl.gz", "holds no pairs")
  fails(write(tmp_path, {**PAIR, "rejected": "c"}), "holds no pairs", "'identical': 1")


def test_damaged_gzip_says_how_far_it_got(tmp_path):
  records = [{**PAIR, "prompt": str(i) * 50} for i in range(3000)]
  path = write(tmp_path, *records, name="pairs.jsonl.gz")
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  seen = []
  with pytest.raises(UserError, match="damaged or cut off after line") as error:
    seen.extend(readers.read_jsonl(path, "error", {}))
  assert int(re.search(r"after line (\d+)", str(error.value))[1]) == len(seen) > 0
  for at in (12, len(whole) - 8):  # the compressed stream; its checksum
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    fails(path, "damaged or cut off")
  path.write_bytes(b"plain text")
  fails(path, "damaged or cut off after line 0")


def test_overlong_line(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
  path = write(tmp_path, PAIR, {**PAIR, "prompt": "x" * 1000})
  fails(path, f"{path}:2: the line is over 1,000 bytes")


def test_pairs_are_streamed(tmp_path):
  path = write(tmp_path, PAIR, b"broken")
  pairs = readers.read_jsonl(path, "error", {})
  assert next(pairs).source == f"{path}:1"  # the fault on line 2 is not met yet


def test_tfds_rows_share_the_policy(monkeypatch):
  rows = [("p", "c", "r"), ("p", "c", "c"), ("q", "", "r")]
  calls = []

  def examples(name, split, data_dir):
    calls.append((name, split, data_dir))
    return iter(rows)

  monkeypatch.setattr(readers.datasets, "examples", examples)
  counts = {}
  pairs = list(readers.read_tfds("tldr", "train", "/data", "skip", counts))
  assert pairs == [("p", "c", "r", "tldr/train:1")]
  assert counts == {"identical": 1, "empty": 1} and calls == [
    ("tldr", "train", "/data")
  ]
  with pytest.raises(UserError, match="tldr/train:2: fields 'chosen' and 'rejected'"):
    list(readers.read_tfds("tldr", "train", None, "error", {}))
  rows.clear()
  with pytest.raises(UserError, match="tldr/train: holds no pairs"):
    list(readers.read_tfds("tldr", "train", None, "error", {}))


def test_split_depends_on_the_prompt_alone():
  prompts = [f"prompt {i}" for i in range(4000)]
  split = {p: readers.split_of(p, 0.1) for p in prompts}
  assert {p: readers.split_of(p, 0.1) for p in reversed(prompts)} == split
  validation = {p for p, side in split.items() if side == "validation"}
  assert 320 < len(validation) < 480  # 400 expected, standard deviation 19
  # A larger fraction only adds prompts; the ends are exact.
  assert validation < {p for p in prompts if readers.split_of(p, 0.2) == "validation"}
  assert {readers.split_of(p, 0.0) for p in prompts} == {"train"}
  assert {readers.split_of(p, 1.0) for p in prompts} == {"validation"}
  # Pinned, for files are split anew in every run: sha256 puts this one at 0.2817.
  # A dialogue that is cut after each of its turns stays together.
  turns = "\n\nHuman: {}?\n\nAssistant:"
  for prompt in prompts[:50]:
    longer = turns.format(prompt) + " Yes." + turns.format("Why")
    halves = {readers.split_of(p, 0.5) for p in (turns.format(prompt), longer)}
    assert len(halves) == 1
  assert len({readers.split_of(turns.format(p), 0.5) for p in prompts[:50]}) == 2
  assert readers.split_of("prompt 0", 0.281) == "train"
  assert readers.split_of("prompt 0", 0.282) == "validation"
