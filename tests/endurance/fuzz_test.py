"""Hostile input gives a result or one clear line; `make soak` tries 100,000."""

import gzip
import json
import subprocess
import sys

import pytest

from alignment.data import readers
from alignment.data.examples import Reading
from alignment.types import UserError
from tests.endurance import fuzz


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_mutated_inputs_give_a_result_or_one_clear_line(target):
  inputs = 60
  outcomes = fuzz.fuzz(target, inputs)
  assert sum(outcomes.values()) >= inputs
  assert outcomes["result"] and outcomes["error"]  # it is not all rubbish, nor all good


BOMBS = {
  "objects": b'{"prompt": [' + b"{}," * 1_300_000 + b"{}]}\n",
  "depth": b"[" * 3_900_000,
  "escapes": b'{"chosen": "' + b"\\u0000" * 600_000 + b'"}\n',
  "blank lines": b"\n" * 4_000_000,
  "one long line": b"x" * 40_000_000,
  "a long number": b'{"chosen": ' + b"9" * 3_000_000 + b"}\n",
  "array of objects": b'[{"prompt": [' + b"{}," * 1_300_000 + b"{}]}]",
  "array of blanks": b"[" + b" " * 4_000_000,
  "array of one text": b'[{"chosen": "' + b"x" * 40_000_000,
}


def test_memory_stays_below_100_mb_and_10_times_the_file(tmp_path):
  """Each in a fork of its own, as the most memory that a process had only grows."""
  for name, content in BOMBS.items():
    (tmp_path / f"{name}.jsonl").write_bytes(content)
  code = (
    "import os, resource, sys\nfrom alignment.data import readers\n"
    "from alignment.data.examples import Reading\n"
    "from alignment.types import UserError\n"
    "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
    "for path in sys.argv[1:]:\n"
    "  if not os.fork():\n"
    "    before = most()\n"
    "    try:\n      list(readers.read_files(path, 'error', Reading()))\n"
    "    except UserError as e:\n      print(most() - before, path, flush=True)\n"
    "    os._exit(0)\n"
    "  os.wait()\n"
  )
  paths = [str(tmp_path / f"{name}.jsonl") for name in BOMBS]
  command = [sys.executable, "-c", code, *paths]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=200, check=True
  )
  rows = [line.split(" ", 1) for line in done.stdout.splitlines()]
  assert [path for _, path in rows] == paths
  for (grown, _), content in zip(rows, BOMBS.values(), strict=True):
    assert int(grown) < 100e6 + 10 * len(content)


def test_a_compressed_bomb_is_one_line(tmp_path):
  path = tmp_path / "pairs.jsonl.gz"
  with gzip.open(path, "wb") as f:
    for _ in range(50):
      f.write(b"x" * 1_000_000)
  assert path.stat().st_size < 100_000
  with pytest.raises(UserError, match="pairs.jsonl.gz:1: the line is over"):
    list(readers.read_files(path, "error", Reading()))


def test_errors_are_one_printable_line_whatever_they_quote():
  error = str(UserError("a\nb\x1b[31mc\u2028\ud800" + "d" * 10_000))
  assert error.startswith(r"a\nb\x1b[31mc\u2028\ud800ddd")
  assert error.isprintable() and len(error) < 2000


def test_hostile_json_is_data_and_nothing_else(tmp_path):
  """No code, no pickle: what looks like either comes out as the text it is."""
  text = "__import__('os').system('touch pwned')"
  row = {
    "prompt": text,
    "chosen": "cos\nsystem\n(S'x'\ntR.",
    "rejected": "{0.__class__}",
  }
  path = tmp_path / "pairs.jsonl"
  path.write_text(json.dumps(row) + "\n")
  (example,) = readers.read_files(path, "error", Reading())
  assert example[:3] == tuple(row.values())
