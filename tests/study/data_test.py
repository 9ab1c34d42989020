"""The data stage: formats, keys, and validation pairs that are too few."""

import csv
import json

import pytest

from alignment.data import readers
from alignment.runtime.files import read_json
from alignment.types import UserError
from tests import studies


def test_a_new_format_of_data_is_a_function_and_its_file_is_in_the_key(
  tmp_path, monkeypatch
):
  def read_csv(c, counts):
    with open(c.path, newline="", encoding="utf-8") as file:
      for line, row in enumerate(csv.DictReader(file), start=2):
        example = readers.Example(
          row["prompt"], row["better"], row["worse"], f"{c.path}:{line}"
        )
        if readers.keep(example, c.on_bad_pair, counts):
          yield example

  monkeypatch.setitem(readers.FORMATS, "csv", read_csv)
  path = tmp_path / "pairs.csv"
  config = studies.nano(**{"data.format": "csv", "data.path": str(path)})
  config.data.on_bad_pair = "skip"
  keys = []
  for worse in ("b", "c"):
    rows = [f"p{i},a,{worse if i else 'a'}" for i in range(100)]
    path.write_text("\n".join(["prompt,better,worse", *rows]) + "\n")
    config.vocab.kind = "bytes"
    stage = studies.graph(config).models()["data"]
    keys.append(stage.key)
  assert len(set(keys)) == 2
  studies.run(config, tmp_path, ["data"])
  statistics = read_json(stage.directory(tmp_path) / "statistics.json")
  assert statistics["reading"] == ["dropped 1 identical"]
  counts = [statistics[split][0].split()[0] for split in ("train", "validation")]
  assert sum(map(int, counts)) == 99


def test_validation_pairs_of_too_few_prompts_are_refused(tmp_path):
  path = tmp_path / "pairs.jsonl"
  lines = [
    {"prompt": f"p{i % 30}", "chosen": f"a{i}", "rejected": "b"} for i in range(300)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = studies.nano(**{"data.format": "files", "data.path": str(path)})
  config.vocab.kind = "bytes"
  with pytest.raises(
    UserError, match=r"[1-9]0 validation pairs .* 4 different prompts"
  ):
    studies.run(config, tmp_path, ["data"])
  config.data.validation_fraction = 0.3
  studies.run(config, tmp_path, ["data"])


def test_too_few_validation_pairs_are_refused_before_anything_is_trained(tmp_path):
  config = studies.nano(**{"data.num_pairs": 10})
  with pytest.raises(
    UserError, match=r"[0-3] validation pairs beside \d+, but prefere"
  ):
    studies.run(config, tmp_path, ["data"])
