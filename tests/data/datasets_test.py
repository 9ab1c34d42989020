"""The TFDS builders: TFDS's own test case for each, and the exact text of dummy rows.

Recorded checksums of the sources are not asked for (SKIP_CHECKSUMS): they can only be
made by downloading the sources, which a test must not do.
"""

import gzip
import itertools
import json
import pathlib
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from alignment.data import datasets, layouts, records
from alignment.data.datasets import common
from alignment.data.datasets.__main__ import main
from alignment.data.datasets.anthropic_harmlessness import (
  anthropic_harmlessness_dataset_builder,
)
from alignment.data.datasets.anthropic_helpfulness import (
  anthropic_helpfulness_dataset_builder,
)
from alignment.data.datasets.chatbot_arena import chatbot_arena_dataset_builder
from alignment.data.datasets.openai_comparisons import (
  openai_comparisons_dataset_builder,
)
from alignment.data.examples import BadPair, Reading
from alignment.types import UserError

ARENA = pathlib.Path(datasets.__file__).parent / "chatbot_arena/dummy_data/arena.jsonl"


class Examples:
  """Beside TFDS's checks: the examples, in the order of their ids, and the skips."""

  EXPECTED: dict[str, list[tuple[str, str, str, str]]]
  SKIPPED: dict[str, dict[str, int]]
  SKIP_CHECKSUMS = True

  def _assertAsDataset(self, builder):  # called on the written and the re-read builder
    super()._assertAsDataset(builder)
    for split, expected in self.EXPECTED.items():
      read = [
        tuple(row[key].decode() for key in common.Example._fields)
        for row in tfds.as_numpy(builder.as_dataset(split=split))
      ]
      assert sorted(read) == expected
    assert builder.info.metadata["skipped"] == self.SKIPPED


class OpenaiComparisonsTest(Examples, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = openai_comparisons_dataset_builder.Builder
  SPLITS = {"train": 2, "validation": 1, "test": 1}
  DL_DOWNLOAD_RESULT = {"batch3": "batch3.json", "batch22": "batch22.json"}
  EXPECTED = {
    "train": [
      (
        "batch22/1",
        "SUBREDDIT: r/unicode\n\nTITLE: Lines\n\nPOST: One\u2028two.\n\nTL;DR:",
        "A line\u2028separator.",
        "Nothing.",
      ),
      (
        "batch3/1",
        "SUBREDDIT: r/tea\n\nTITLE: Loud kettle\n\n"
        "POST: My kettle whistles.\n\nIt wakes the cat.\n\nTL;DR:",
        "My kettle wakes the cat.",
        "Kettle.",
      ),
    ],
    "validation": [
      (
        "batch3/2",
        "SUBREDDIT: r/bikes\n\nTITLE: Bike\n\nPOST: I found a bike.\n\nTL;DR:",
        "Found a bike.",
        "Bike.",
      )
    ],
    "test": [
      (
        "batch3/3",
        "SUBREDDIT: r/weather\n\nTITLE: Weather\n\nPOST: It rained.\n\nTL;DR:",
        "Rain again.",
        "Sun.",
      )
    ],
  }
  SKIPPED = {
    "train": {"CNN/DM article": 1, "identical responses": 1},
    "validation": {},
    "test": {},
  }


class AnthropicHelpfulnessTest(Examples, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = anthropic_helpfulness_dataset_builder.Builder
  SPLITS = {"train": 4, "test": 3}
  DL_EXTRACT_RESULT = {
    split: {
      subset: f"{subset}_{split}.jsonl"
      for subset in ("helpful-base", "helpful-online", "helpful-rejection-sampled")
    }
    for split in ("train", "test")
  }
  EXPECTED = {
    "train": [
      (
        "helpful-base/1",
        "\n\nHuman: How do I boil an egg?\n\nAssistant:",
        "Seven minutes.",
        "No idea.",
      ),
      (
        "helpful-base/2",
        "\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: Name a tree.\n\nAssistant:",
        "Oak.",
        "Granite.",
      ),
      (
        "helpful-online/1",
        "\n\nHuman: Name a fish.\n\nAssistant:",
        "Pike.",
        "Chair.",
      ),
      (
        "helpful-rejection-sampled/1",
        "\n\nHuman: Name a nut.\n\nAssistant:",
        "Hazel.",
        "Bolt.",
      ),
    ]
  }
  SKIPPED = {
    "train": {
      "empty response": 1,
      "last turn is not the assistant's": 1,
      "transcripts differ before the last reply": 1,
    },
    "test": {},
  }


class AnthropicHarmlessnessTest(Examples, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = anthropic_harmlessness_dataset_builder.Builder
  SPLITS = {"train": 1, "test": 1}
  DL_EXTRACT_RESULT = {
    split: {"harmless-base": f"harmless-base_{split}.jsonl"}
    for split in ("train", "test")
  }
  EXPECTED = {
    "train": [
      (
        "harmless-base/1",
        "\n\nHuman: How do I open my neighbour's lock?\n\nAssistant:",
        "Ask your neighbour.",
        "With a hammer.",
      )
    ]
  }
  SKIPPED = {"train": {"identical responses": 1}, "test": {}}


ARENA_EXAMPLES = {
  "train": [
    ("q1", "\n\nHuman: Name a river.\n\nAssistant:", "The Rhine.", "The Alps."),
    ("q2", "\n\nHuman: Name a star.\n\nAssistant:", "Sirius.", "Earth."),
    (
      "q5",
      "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Count to two.\n\nAssistant:",
      "1, 2",
      "1, 3",
    ),
  ],
  "test": [("q8", "\n\nHuman: What is 18 + 18?\n\nAssistant:", "36.", "No idea.")],
}


class ChatbotArenaTest(Examples, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = chatbot_arena_dataset_builder.Builder
  SPLITS = {"train": 3, "test": 1}
  EXPECTED = ARENA_EXAMPLES
  SKIPPED = {
    "train": {
      "conversations differ before the last reply": 1,
      "empty response": 1,
      "tie": 1,
      "tie (bothbad)": 1,
    },
    "test": {},
  }


def test_prepare_then_read(tmp_path, capsys):
  data_dir = str(tmp_path)
  flags = ["--prepare", "chatbot_arena", "--data_dir", data_dir]
  with pytest.raises(UserError, match="--prepare chatbot_arena --data_dir .*--manual"):
    datasets.examples("chatbot_arena", "train", data_dir)
  assert main(flags) == 1
  assert "put into the folder (--manual_dir) either" in capsys.readouterr().err
  assert main([*flags, "--manual_dir", str(ARENA.parent)]) == 0
  assert "chatbot_arena train: 3 pairs, skipped {'conv" in capsys.readouterr().out
  expected = sorted(example[1:] for example in ARENA_EXAMPLES["train"])
  assert sorted(datasets.examples("chatbot_arena", "train", data_dir)) == expected
  assert len(list(datasets.examples("chatbot_arena", "train[:2]", data_dir))) == 2
  with pytest.raises(UserError, match="no split 'valid': must be one of t"):
    datasets.examples("chatbot_arena", "valid", data_dir)
  assert tfds.builder("chatbot_arena", data_dir=data_dir).is_prepared()


def test_unknown_name():
  with pytest.raises(UserError, match=", ".join(datasets.NAMES)):
    datasets.builder("tldr")


def test_package_does_not_import_tensorflow():
  code = "import alignment.data.datasets, sys; assert 'tensorflow' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def prepare_arena(tmp_path, capsys):
  """Prepares from a folder with the given lines; returns the one line of the error."""

  def prepare(lines, name="export.jsonl"):
    manual_dir, data_dir = tmp_path / "manual", tmp_path / "data"
    manual_dir.mkdir()
    if lines is not None:
      (manual_dir / name).write_bytes(b"\n".join(lines))
    flags = ["--prepare", "chatbot_arena", "--data_dir", str(data_dir)]
    assert main([*flags, "--manual_dir", str(manual_dir)]) == 1
    error = capsys.readouterr().err
    error = error[error.index("error: ") :]  # TFDS's progress bars come before it
    assert error.count("\n") == 1
    assert not (data_dir / "chatbot_arena" / "1.0.0").exists()
    return error

  return prepare


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (b'"model_b", "judge"', b'"judge"', "export.jsonl:2: malformed JSON"),
    (b"a star", b"a \xff", "export.jsonl:2: not UTF-8"),
    (b"a star", b"a \\ud83d", "jsonl:2: field 'conversation_a.0.content' is not"),
    (b'"winner"', b'"won"', "jsonl:2: field 'winner' is missing"),
    (b'"winner": "model', b'"winner": "', "jsonl:2: field 'winner' is '_b', must"),
    (b'"winner": ', b'"winner": 1, "won": ', "'winner' must be of type str, is 1"),
    (b'"assistant"', b'"bot"', "jsonl:2: field 'conversation_b.1.role' is 'bot'"),
    (b'"q2"', b'"q1"', "jsonl:2: 'q1' occurs twice"),
  ],
)
def test_bad_row_names_line_and_field(prepare_arena, old, new, message):
  first, second = ARENA.read_bytes().splitlines()[:2]
  assert old in second
  assert re.search(message, prepare_arena([first, second.replace(old, new)]))


def test_source_without_pairs(prepare_arena):
  ties = ARENA.read_bytes().splitlines()[2:4]
  assert "no pairs for split 'train' in " in prepare_arena(ties)


def test_manual_dir_without_files(prepare_arena):
  assert "neither *.jsonl nor *.parquet" in prepare_arena([b""], name="notes.txt")


def test_empty_manual_dir(prepare_arena):
  assert "empty. Create it" in prepare_arena(None)


def test_damaged_parquet(prepare_arena):
  assert "damaged Parquet" in prepare_arena([b"PAR1 cut"], name="a.parquet")


def test_parquet_reads_as_json_lines_do(tmp_path):
  rows = [json.loads(line) for line in ARENA.read_bytes().splitlines()]
  (tmp_path / "manual").mkdir()
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manual" / "arena.parquet")
  flags = ["--prepare", "chatbot_arena", "--data_dir", str(tmp_path)]
  assert main([*flags, "--manual_dir", str(tmp_path / "manual")]) == 0
  for split, expected in ARENA_EXAMPLES.items():
    read = datasets.examples("chatbot_arena", split, str(tmp_path))
    assert sorted(read) == sorted(example[1:] for example in expected)


DUMMY = pathlib.Path(datasets.__file__).parent


def test_local_files_are_read_in_place_of_downloads(tmp_path, capsys, monkeypatch):
  def no_network(*args, **kwargs):
    raise AssertionError(f"tried to download {args}")

  monkeypatch.setattr(tfds.download.DownloadManager, "download", no_network)
  monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", no_network)
  local = tmp_path / "hh-rlhf"
  for subset in ("helpful-base", "helpful-online", "helpful-rejection-sampled"):
    (local / subset).mkdir(parents=True)
    for split in ("train", "test"):
      source = f"anthropic_helpfulness/dummy_data/{subset}_{split}.jsonl"
      content = gzip.compress((DUMMY / source).read_bytes())
      (local / subset / f"{split}.jsonl.gz").write_bytes(content)
  flags = ["--prepare", "anthropic_helpfulness", "--data_dir", str(tmp_path)]
  assert main([*flags, "--manual_dir", str(local)]) == 0
  expected = sorted(e[1:] for e in AnthropicHelpfulnessTest.EXPECTED["train"])
  read = datasets.examples("anthropic_helpfulness", "train", str(tmp_path))
  assert sorted(read) == expected
  flags = ["--prepare", "openai_comparisons", "--data_dir", str(tmp_path)]
  (tmp_path / "batches" / "comparisons").mkdir(parents=True)
  assert main([*flags, "--manual_dir", str(tmp_path / "batches")]) == 1
  error = capsys.readouterr().err
  assert error.endswith("batches: has no batch3.json or comparisons/batch3.json\n")


def test_files_and_builders_read_the_same_pairs_out_of_transcripts():
  """They share `transcripts.pair`; builders also strip white space."""
  turns = ["\n\nHuman: a", "\n\nAssistant: b", "\n\nAssistant:", "\n\nHuman:", "c"]
  builder = anthropic_harmlessness_dataset_builder.Builder
  for chosen in itertools.product(turns, repeat=3):
    for rejected in itertools.product(turns, repeat=2):
      row = {"chosen": "".join(chosen), "rejected": "".join(rejected)}
      try:
        parsed = builder._parse(None, common.Row(row, "where", "id"), "train")[1:]
      except common.Skip as skip:
        parsed = str(skip)
      record = records.Record({"prompt": None, **row}, pathlib.Path("f"), 1)
      try:
        read = layouts.read(record, {}, Reading())[:3]
      except BadPair as bad:
        read = str(bad)
      except UserError as error:  # no transcript, so a prompt is missed
        assert "'prompt' is missing" in str(error)
        assert "\n\nAssistant:" not in row["chosen"]
        continue
      assert parsed == read
