"""Parquet: nested rows, damage, and bombs in little memory."""

import gzip
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data import parquet as parquet_lib
from alignment.data import records
from tests.data.records_test import fails, fields, parquet


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4"])
def test_nested_parquet(tmp_path, compression):
  rows = [
    {"chosen": [{"role": "user", "content": "é"}], "score": 1.5},
    {"chosen": [], "score": None},
  ]
  path = parquet(tmp_path / "pairs", rows * 2000, compression=compression)
  assert fields(path) == rows * 2000
  path.write_bytes(gzip.compress(path.read_bytes()))
  fails(path, "is compressed Parquet")


def test_names_with_dots(tmp_path):
  rows = [{"chosen.rating": 1.0, "chosen": {"rating": "x"}}]
  assert fields(parquet(tmp_path / "pairs", rows)) == rows


def test_damaged_parquet_is_one_line(tmp_path):
  whole = parquet(tmp_path / "pairs").read_bytes()
  path = tmp_path / "pairs"
  for size in (4, 8, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    fails(path, "damaged Parquet after row 0")
  table = pa.table({"a": [1], "b": [2]}).rename_columns(["a", "a"])
  pq.write_table(table, path)
  fails(path, "two columns have one name")
  table = pa.table({"prompt": pa.array([b"\xff"]).cast(pa.string(), safe=False)})
  pq.write_table(table, path)
  fails(path, "damaged Parquet after row 0 ('utf-8' codec can't decode")


@pytest.mark.parametrize("limit", [0, 1 << 40])
def test_rows_are_the_same_whether_they_share_strings(tmp_path, monkeypatch, limit):
  """`limit` is how much copies of strings may take: nothing, or anything."""
  rows = [
    {
      "chosen": [
        {"role": "user", "content": f"é{i % 7}", "parts": [{"a": ["x"] * (i % 3)}]}
      ]
      * (i % 4),
      "prompt": None if i % 5 == 0 else f"p{i}",
      "input": {"messages": [f"{i}", None]} if i % 3 else None,
      "nothing": None,
      "score": i / 2,
    }
    for i in range(500)
  ]
  plans = []
  plan = parquet_lib._plan

  def planned(*args):
    plans.append((plan(*args)[0], limit > 0))
    return plans[-1]

  monkeypatch.setattr(parquet_lib, "_plan", planned)
  path = parquet(tmp_path / "pairs", rows, row_group_size=200)
  assert fields(path) == rows and len(plans) == 3


def test_one_string_in_many_rows_is_not_copied_for_each(tmp_path):
  flat, nested = tmp_path / "flat", tmp_path / "nested"
  text = "x" * 3_000_000
  pq.write_table(pa.table({"prompt": [text] * 100}), flat)
  messages = pa.array([[{"role": "user", "content": text}] * 100])
  pq.write_table(pa.table({"prompt": messages}), nested)
  assert max(flat.stat().st_size, nested.stat().st_size) < 1_000_000
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for record in records.read(flat, lambda name: True):
    assert len(record.fields["prompt"]) == len(text)
  (record,) = records.read(nested, lambda name: True)
  assert [len(m["content"]) for m in record.fields["prompt"]] == [len(text)] * 100
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_parquet_bombs_are_one_line(tmp_path):
  path = tmp_path / "bomb"
  pq.write_table(pa.table({"prompt": ["x" * 30_000_000]}), path, compression="zstd")
  assert path.stat().st_size < 10_000
  fails(path, "unpacks to far more than text does (30,")
  many = pa.array([[None] * 3_000_000], pa.list_(pa.null()))
  pq.write_table(pa.table({"prompt": many}), path)
  fails(path, "column 'prompt' has 3,000,000 values, too many for text")
