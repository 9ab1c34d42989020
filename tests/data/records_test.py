"""Records: containers and compression by content, damage and bombs on one line."""

import bz2
import gzip
import json
import lzma
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data import records
from alignment.types import UserError

ROWS = [{"prompt": f"é\u2028{i}", "n": i} for i in range(50)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
COMPRESS = {"plain": bytes, "gzip": gzip.compress, "xz": lzma.compress,
            "bzip2": bz2.compress}  # fmt: skip


def read(path, wanted=lambda name: True):
  return list(records.read(path, wanted))


def fields(path):
  return [record.fields for record in read(path)]


def fails(path, *parts):
  """Reading raises a UserError of one line that begins with the path, with `parts`."""
  with pytest.raises(UserError) as error:
    read(path)
  message = str(error.value)
  assert message.startswith(str(path)) and message.isprintable()
  for part in parts:
    assert part in message, message


def parquet(path, rows=ROWS, **options):
  pq.write_table(pa.Table.from_pylist(rows), path, **options)
  return path


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.gz", "pairs.parquet", "pairs"])
def test_content_says_what_a_file_is_whatever_its_name(tmp_path, name, compression):
  path = tmp_path / name
  compress = COMPRESS[compression]
  for content in (
    LINES,
    json.dumps(ROWS).encode(),
    json.dumps(ROWS, indent=2).encode(),
  ):
    path.write_bytes(compress(content))
    assert fields(path) == ROWS
    path.write_bytes(compress(b"\xef\xbb\xbf\n \n" + content))
    assert fields(path) == ROWS
  if compression == "plain":
    assert fields(parquet(path)) == ROWS


def test_sources_are_lines_or_rows(tmp_path):
  path = tmp_path / "pairs"
  path.write_bytes(b'{"a": 1}\n\n \n{"a": 2}')
  assert [r.source for r in read(path)] == [f"{path}:1", f"{path}:4"]
  path.write_bytes(b'\n[\n{"a":\n1},\n\n{"a": 2}]\n')
  assert [r.source for r in read(path)] == [f"{path}:1", f"{path}:2"]
  parquet(path, row_group_size=7)
  assert [r.source for r in read(path)] == [f"{path}:{i}" for i in range(1, 51)]


def test_unwanted_columns_are_named_and_not_decoded(tmp_path):
  path = parquet(tmp_path / "pairs")
  assert read(path, lambda name: name == "n")[3].fields == {"prompt": None, "n": 3}
  assert read(path, lambda name: False)[3].fields == {"prompt": None, "n": None}


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 16])
def test_arrays_are_cut_anywhere(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(records, "_CHUNK", chunk)
  monkeypatch.setattr(records, "MAX_LINE_BYTES", 300)
  path = tmp_path / "pairs"
  for content in (json.dumps(ROWS, ensure_ascii=False), json.dumps(ROWS, indent=1)):
    path.write_text(content, encoding="utf-8")
    assert fields(path) == ROWS
  path.write_text("[ ]\n \n")
  assert fields(path) == []


@pytest.mark.parametrize(
  "content, message",
  [
    (b"[", ":1: malformed JSON: Expecting value"),
    (b"[{}", ":1: malformed JSON: expecting ',' or ']' after it"),
    (b"[{},", ":2: malformed JSON: Expecting value"),
    (b"[{} {}]", ":1: malformed JSON: expecting ','"),
    (b"[{}, 3]", ":2: not an object but a int"),
    (b"[[]]", ":1: not an object but a list"),
    (b'[{"a": NaN}]', ":1: malformed JSON: NaN is not JSON"),
    (b'[{"a": ' + b"9" * 5000 + b"}]", ":1: malformed JSON: Exceeds the limit"),
    (b'[{"a": "\xff"}]', "not UTF-8"),
    (b'[{"a": "\xc3', "not UTF-8"),
    (b"[" * 100_000, ":1: malformed JSON: nested too deeply"),
    (b"[{}] {}", "there is more after the array's end"),
    (b'[{"a": "' + b"x" * 5_000_000 + b'"}]', ":1: malformed JSON, or over 4,000,000"),
    (b'{"a": "' + b"x" * 4_000_000 + b'"}', ":1: the line is over 4,000,000 bytes"),
    (b'{"a": 1}\n' + b"x" * 5_000_000, ":2: the line is over 4,000,000 bytes"),
    (b"{}\n[]", ":2: not an object but a list"),
    (b"(\xb5/\xfd rest", "is a zstandard file; give JSON lines"),
    (b"PK\x03\x04 rest", "is a zip file; give JSON lines"),
    (b"ARROW1\0\0 rest", "is a Arrow IPC file; give JSON lines"),
    (b"plain text", ":1: malformed JSON: Expecting value"),
    ("[]".encode("utf-16"), ":1: not UTF-8"),
  ],
)
def test_faults_are_one_line(tmp_path, content, message):
  path = tmp_path / "pairs"
  path.write_bytes(content)
  fails(path, message)
  path.write_bytes(gzip.compress(content))
  if content[:1] in b"[{p\xff":
    fails(path, message)


@pytest.mark.parametrize("compression", ["gzip", "xz", "bzip2"])
def test_damage_says_how_far_it_got(tmp_path, compression):
  path = tmp_path / "pairs.jsonl"
  rows = [json.dumps({"n": str(hash((i, "x")))}).encode() for i in range(3000)]
  whole = COMPRESS[compression](b"\n".join(rows))
  path.write_bytes(whole[: len(whole) // 2])
  seen = []
  with pytest.raises(UserError, match="damaged or cut off after line") as error:
    seen.extend(records.read(path, lambda name: True))
  assert int(re.search(r"after line (\d+)", str(error.value))[1]) >= len(seen)
  for at in (30, len(whole) - 8):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    fails(path, "")


@pytest.mark.parametrize("compression", ["gzip", "xz", "bzip2"])
@pytest.mark.parametrize("start", [b"", b'{"a": "', b'[{"a": "', b"[" + b" " * 100])
def test_compressed_bombs_are_one_line_in_little_memory(tmp_path, compression, start):
  path = tmp_path / "bomb"
  filler = b" " if start.endswith(b" ") else b"x"
  path.write_bytes(COMPRESS[compression](start + filler * 20_000_000))
  assert path.stat().st_size < 50_000
  tracemalloc.start()
  fails(path, "")
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 40_000_000


def test_directories_and_patterns(tmp_path):
  (tmp_path / "data").mkdir()
  for i in range(2):
    parquet(tmp_path / "data" / f"train-{i:05}-of-00002.parquet", ROWS[25 * i :][:25])
  (tmp_path / "README.md").write_text("notes")
  (tmp_path / "data" / ".hidden.parquet").write_text("notes")
  assert fields(tmp_path) == ROWS
  (tmp_path / "more.jsonl").write_bytes(LINES)  # Parquet is what a hub's data set is
  assert fields(tmp_path) == ROWS
  assert fields(tmp_path / "*.jsonl") == ROWS
  parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
  fails(
    tmp_path, "holds several splits,", "/data/test, ", "/data/train; name the files"
  )
  assert fields(tmp_path / "data" / "train-*") == ROWS
  (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
  (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
  fails(tmp_path, "has 1 of its 2 files; fetch the rest")
  fails(tmp_path / "data" / "train*", "has 1 of its 2 files; fetch the rest")
  assert fields(tmp_path / "data" / "train-00001-*") == ROWS[25:]  # as it was asked for


def test_splits_are_not_mixed(tmp_path):
  for names in (
    ["train.jsonl", "test.jsonl"],
    ["train_prefs.jsonl", "test_prefs.jsonl"],
    ["hh_train.jsonl", "hh_test.jsonl"],
    ["prefs-train.parquet", "prefs-test.parquet"],
    ["default/train/0000.parquet", "default/test/0000.parquet"],
    ["train-00000-of-00001-0ab1.parquet", "test-00000-of-00001-2cd3.parquet"],
  ):
    directory = tmp_path / names[0].replace("/", "-")
    for name in names:
      (directory / name).parent.mkdir(parents=True, exist_ok=True)
      parquet(directory / name)
    fails(directory, "holds several splits, ", "test", "train", "name the files of one")
    assert fields(directory / names[0]) == ROWS
  directory = tmp_path / "parts"
  directory.mkdir()
  for name in ("train_a.parquet", "train_b.parquet"):
    parquet(directory / name)
  assert fields(directory) == ROWS * 2


def test_nothing_to_read(tmp_path):
  fails(tmp_path / "absent.jsonl", "cannot be read (No such file", "data.path")
  fails(tmp_path / "*.jsonl", "no file is named so")
  fails(tmp_path, "a directory with none of *.parquet, *.jsonl")
  for content in (b"", b"\n \n", b"[]", gzip.compress(b"")):
    (tmp_path / "empty").write_bytes(content)
    assert read(tmp_path / "empty") == []
