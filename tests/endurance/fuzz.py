"""Hostile input: whatever a file or an option holds, a result or one clear line.

  python -m tests.endurance.fuzz --inputs=100000

Hypothesis mutates good inputs, byte by byte and field by field. Each must give a result
or a `UserError` of one printable line, within seconds, in little memory.
"""

import bz2
from collections import Counter
from collections.abc import Callable
import copy
import gzip
import io
import json
import lzma
from pathlib import Path
import re
import resource
import signal
import sys
import tempfile
import time
from typing import Any

from absl.testing import flagsaver
import hypothesis
from hypothesis import strategies as st
import jax
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from alignment import flags
from alignment.data import readers, tokenizer
from alignment.data.examples import Reading
from alignment.data.vocabularies import ByteVocabulary
from alignment.models import huggingface
from alignment.study import checks
from alignment.types import UserError
from tests import studies, tiny

SECONDS = 10  # of processor time for one input; more is a hang
MEGABYTES = 100  # that all inputs together may add to the process
ROOT = Path(__file__).parents[2]

# --- inputs ---------------------------------------------------------------------------

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TEXTS = st.one_of(
  st.text(max_size=30),
  st.sampled_from(
    ["", " ", "\x00", "\ud800", "a\u2028b", "\ufeff", _HUMAN, _ASSISTANT, "9" * 5000,
     "<script>alert(1)</script>", "../../etc/passwd", "\x1b[31m", "é" * 100]
  ),
)  # fmt: skip
SCALARS = st.one_of(
  TEXTS,
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.sampled_from([10**400, -1, 0, 2**63, float("nan"), float("inf")]),
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)
  ),
  max_leaves=8,
)
GOOD_TEXT = st.sampled_from(["hello", "a b c", "Why?", "Because it is so."])


@st.composite
def mutated(draw, good: st.SearchStrategy[bytes]) -> bytes:
  """Good bytes with a few of them flipped, cut out, doubled or replaced."""
  data = bytearray(draw(good))
  for _ in range(draw(st.integers(0, 4))):
    at = draw(st.integers(0, 2**32)) % (len(data) + 1)
    size = draw(st.integers(0, 40))
    match draw(st.sampled_from("flip cut double put truncate".split())):
      case "flip" if at < len(data):
        data[at] ^= 1 << draw(st.integers(0, 7))
      case "cut":
        del data[at : at + size]
      case "double":
        data[at:at] = data[at : at + size] * draw(st.integers(1, 5))
      case "put":
        tokens = [b"{", b"[" * 3000, b'"', b"\\u0000", b"\xff", b"NaN", b"1e999", b"\n"]
        data[at:at] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(tokens)))
      case "truncate":
        del data[at:]
  return bytes(data)


def with_changes(draw, record: dict[str, Any]) -> dict[str, Any]:
  """The record with some of its fields changed, gone, or joined by another."""
  for _ in range(draw(st.integers(0, 2))):
    key = draw(st.one_of(st.sampled_from([*record, "prompt", "messages"]), TEXTS))
    if draw(st.booleans()):
      record[key] = draw(VALUES)
    else:
      record.pop(key, None)
  return record


@st.composite
def transcripts(draw) -> dict[str, Any]:
  parts = st.sampled_from([_HUMAN, _ASSISTANT, "Human:", "\n", "hello", "Assistant"])
  shared = draw(st.lists(st.one_of(parts, TEXTS), max_size=6))
  texts = [
    "".join([*shared, _ASSISTANT, draw(st.one_of(GOOD_TEXT, TEXTS))]) for _ in range(2)
  ]
  return with_changes(draw, dict(zip(("chosen", "rejected"), texts, strict=True)))


@st.composite
def messages(draw) -> dict[str, Any]:
  def message(role: str) -> Any:
    content = draw(st.one_of(GOOD_TEXT, TEXTS))
    good = {"role": role, "content": content}
    return with_changes(draw, good) if draw(st.integers(0, 5)) == 0 else good

  roles = st.sampled_from(["user", "assistant", "system", "tool", ""])
  shared = [message(draw(roles)) for _ in range(draw(st.integers(0, 3)))]
  shared.append(message("user"))
  record: dict[str, Any] = {
    key: [*shared, message("assistant")] for key in ("chosen", "rejected")
  }
  if draw(st.booleans()):
    record = {"prompt": shared} | {k: v[-1:] for k, v in record.items()}
  return with_changes(draw, record)


@st.composite
def strings(draw) -> dict[str, Any]:
  fields = {key: draw(GOOD_TEXT) for key in ("prompt", "chosen", "rejected")}
  return with_changes(draw, fields)


PAGE = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
# One record of every layout there is.
LAYOUTS = [
  json.loads(record) for record in re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)
]


@st.composite
def layouts(draw) -> dict[str, Any]:
  """A record of any layout, changed at any depth, or two layouts in one."""
  record = copy.deepcopy(draw(st.sampled_from(LAYOUTS)))
  if draw(st.integers(0, 4)) == 0:
    record |= copy.deepcopy(draw(st.sampled_from(LAYOUTS)))
  for _ in range(draw(st.integers(0, 2))):
    value: Any = record
    while value and isinstance(value, dict | list):
      keys_or_rows = sorted(value) if isinstance(value, dict) else range(len(value))
      key = draw(st.sampled_from(keys_or_rows))
      if draw(st.integers(0, 2)) == 0 or not isinstance(value[key], dict | list):
        value[key] = draw(VALUES)
        break
      value = value[key]
  return with_changes(draw, record)


def lines(records: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[bytes]:
  def encode(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

  return st.lists(records, min_size=1, max_size=3).map(encode)


def arrays(records: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[bytes]:
  def encode(rows: list[dict[str, Any]], indent: int | None) -> bytes:
    return json.dumps(rows, indent=indent).encode()

  indents = st.sampled_from([None, 0, 2])
  return st.builds(encode, st.lists(records, min_size=1, max_size=3), indents)


COMPRESSORS = (gzip.compress, bz2.compress, lzma.compress)


def compressed(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
  return st.builds(lambda data, how: how(data), content, st.sampled_from(COMPRESSORS))


@st.composite
def parquet(draw) -> bytes:
  """Rows of any layout as Parquet, with those of their fields that it can hold."""
  rows = draw(st.lists(st.one_of(layouts(), strings()), min_size=1, max_size=3))
  columns = {}
  for name in {name: None for row in rows for name in row}:
    try:
      columns[name] = pa.array([row.get(name) for row in rows])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
      continue  # the rows have no one type there
  columns = {n: c for n, c in columns.items() if _utf8(n) and not _is_empty(c.type)}
  out = io.BytesIO()
  compression = draw(st.sampled_from(["none", "snappy", "zstd", "gzip"]))
  pq.write_table(pa.table(columns), out, compression=compression)
  return out.getvalue()


def _is_empty(kind: Any) -> bool:
  """Whether a type holds a structure without fields, which Parquet cannot store."""
  if pa.types.is_list(kind):
    return _is_empty(kind.value_type)
  if pa.types.is_struct(kind):
    return not kind.num_fields or any(_is_empty(field.type) for field in kind)
  return False


SIZES = sorted(huggingface.t5.SIZES.values())


def safetensors_files() -> st.SearchStrategy[dict[str, bytes]]:
  """A tiny T5's files: its config and weights as one or two shards, mutated."""
  cfg = tiny.CFG
  with tempfile.TemporaryDirectory() as scratch:
    huggingface.write(Path(scratch) / "hf", cfg, tiny.params())
    good = {p.name: p.read_bytes() for p in (Path(scratch) / "hf").iterdir()}
    huggingface.write(
      Path(scratch) / "shards", cfg, tiny.params(), max_shard_bytes=20_000
    )
    shards = {p.name: p.read_bytes() for p in (Path(scratch) / "shards").iterdir()}
  config = json.loads(good[huggingface.CONFIG])
  index = json.loads(shards[huggingface.INDEX])

  @st.composite
  def mutated_files(draw) -> dict[str, bytes]:
    files = dict(draw(st.sampled_from([good, shards])))
    for name in draw(st.sets(st.sampled_from(sorted(files)), max_size=2)):
      if name == huggingface.CONFIG and draw(st.booleans()):
        changed = with_changes(draw, dict(config))
        number = st.sampled_from([0, -1, 1, 2, 10**6, 10**9, 2**31 - 1, 10**30, 1.5])
        changed |= draw(st.dictionaries(st.sampled_from(SIZES), number, max_size=1))
        files[name] = json.dumps(changed).encode()
      elif name == huggingface.INDEX and draw(st.booleans()):
        names = st.sampled_from(sorted(index["weight_map"]))
        others = ["../secret", "/etc/passwd", "..", ".", "", "a/b", "\x00", 7, None]
        places = draw(st.dictionaries(names, st.sampled_from(others), max_size=2))
        weight_map = {**index["weight_map"], **places}
        files[name] = json.dumps({**index, "weight_map": weight_map}).encode()
      elif name.endswith(".safetensors") and draw(st.booleans()):
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        dtype = draw(st.sampled_from([np.float32, np.int8, np.float64]))
        files[name] = save({draw(TEXTS.filter(_utf8)): np.zeros(shape, dtype)})
      else:
        files[name] = draw(mutated(st.just(files[name])))
      if draw(st.integers(0, 9)) == 0:
        del files[name]
    return files

  return mutated_files()


def _utf8(text: str) -> bool:
  return text.isascii() or "\ud800" not in text


def keys(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, type]:
  """The type of every key, by its dotted name."""
  types: dict[str, type] = {}
  for key, value in config.items():
    types[prefix + key] = type(value)
    if isinstance(value, ml_collections.ConfigDict):
      types |= keys(value, f"{prefix}{key}.")
  return types


KEYS = keys(studies.nano())
FITTING = {  # values that the parser takes, so that the study has to judge them
  int: ["0", "-1", "1", "3", "8", "1000000", "9" * 30],
  float: ["0", "-1", "1.5", "1e400", "nan", "-inf", "1e-400", "9" * 30],
  bool: ["True", "False"],
  str: ["", "None", "sft", "scratch", "micro", "float16", "int8", "files", "toy",
        "tfds", "bytes", "sentencepiece", "skip", "offline", "right", "drop", "/tmp",
        "dpo", "../x", "{}", "{size}", "{0.__class__}"],
  tuple: ["()", "(1,)", "(0.5, 1.0)", "('a', 'b')", "({},)", "(None,)", "((),)",
          "({'format': 'toy'},)", "(" * 300, "__import__('os')", "(float('nan'),)"],
  ml_collections.ConfigDict: [
    "{}", "{'a': 1}", "{1: 2}", "{None: ()}", "{'a.b': 1}", "{'a': {'b': 'c'}}", "None",
    "{'online': {'beta': (0.1,)}}", "{'a': {'beta': (0.1,)}}", "{'a': ({}, 3)}",
    "{'a': ('sft', 'sft')}", "{'beta': 0.5}", "{'steps': 'x'}", "{'lr': float('nan')}",
    "{'label_smoothing': 0.1}", "{'label_smoothing': 'x'}", "{'nano': {'steps': 3}}",
    "{'nano': {'steps': None}}", "{'nano': 3}", "{'num_words': 1e9}", "{" * 300,
  ],
}  # fmt: skip


@st.composite
def override(draw) -> str:
  key = draw(st.one_of(*[st.sampled_from(sorted(KEYS))] * 9, TEXTS.filter(_utf8)))
  fitting = FITTING.get(KEYS.get(key, str), ["1"])
  anything = [value for values in FITTING.values() for value in values]
  fits = draw(st.sampled_from([True] * 4 + [False]))
  value = draw(
    st.sampled_from(fitting)
    if fits
    else st.one_of(st.sampled_from(anything), TEXTS.filter(_utf8))
  )
  return f"--config.{key}={value}"


# --- what reads them ------------------------------------------------------------------


def read_pairs(directory: Path, content: bytes) -> None:
  path = directory / "pairs.jsonl"
  path.write_bytes(content)
  for on_bad_pair in ("error", "skip"):
    reading = Reading()
    tokens = tokenizer.Tokenizer(
      ByteVocabulary(),
      reading,
      prompt_length=16,
      response_length=8,
      truncate_prompt="left",
      long_response="truncate",
    )
    for example in readers.read_files(path, on_bad_pair, reading):
      tokens.add(example)
    for _, statistics in tokens.split(0.1).values():
      assert all(line.isprintable() for line in reading.lines() + statistics.lines())


def read_checkpoint(directory: Path, files: dict[str, bytes]) -> None:
  for path in directory.iterdir():
    path.unlink()
  for name, content in files.items():
    (directory / name).write_bytes(content)
  cfg = huggingface.read_config(directory, live_ids=10, dtype="float32")
  huggingface.read_params(directory, cfg)


def read_options(directory: Path, options: list[str]) -> None:
  config = f"--config={ROOT / 'tests' / 'studies.py'}"
  argv = ["main", config, *options]
  with flagsaver.flagsaver():
    flags.parse_flags(argv)
    checks.studies(flags.configuration(), directory)


TARGETS: dict[str, tuple[st.SearchStrategy, Callable[[Path, Any], None], int]] = {
  # name: inputs, their reader, and how many of 100 inputs it gets
  "jsonl": (mutated(lines(strings())), read_pairs, 15),
  "transcripts": (lines(transcripts()), read_pairs, 10),
  "messages": (lines(messages()), read_pairs, 10),
  "layouts": (lines(layouts()), read_pairs, 15),
  "arrays": (mutated(arrays(layouts())), read_pairs, 15),
  "compressed": (mutated(compressed(lines(strings()))), read_pairs, 5),
  "parquet": (parquet(), read_pairs, 5),
  "damaged parquet": (mutated(parquet()), read_pairs, 10),
  "safetensors": (safetensors_files(), read_checkpoint, 10),
  "options": (st.lists(override(), min_size=1, max_size=3), read_options, 5),
}


def fuzz(name: str, inputs: int) -> Counter:
  """Tries that many inputs; how many gave a result, and how many an error.

  Raises:
    AssertionError: for an error of several lines, or too much memory.
    Exception: whatever else an input brought about, a `TimeoutError` for a hang.
  """
  strategy, read, _ = TARGETS[name]
  outcomes: Counter = Counter()

  def hang(*_: Any) -> None:
    raise TimeoutError(f"{name}: an input took over {SECONDS} s")

  with tempfile.TemporaryDirectory() as scratch:

    @hypothesis.settings(
      max_examples=inputs,
      deadline=None,
      database=None,
      derandomize=True,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def one(content: Any) -> None:
      before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      signal.setitimer(signal.ITIMER_PROF, SECONDS)
      try:
        read(Path(scratch), content)
        outcomes["result"] += 1
      except UserError as error:
        assert str(error).isprintable() and len(str(error)) <= 2000, repr(error)
        outcomes["error"] += 1
      finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
      grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
      assert grown < MEGABYTES * 1000 or sum(outcomes.values()) < 10, f"{grown} kB"

    previous = signal.signal(signal.SIGPROF, hang)
    try:
      one()
    finally:
      signal.signal(signal.SIGPROF, previous)
  return outcomes


def main(inputs: int) -> None:
  total: Counter = Counter()
  for name, (_, _, share) in TARGETS.items():
    start = time.monotonic()
    outcomes = fuzz(name, inputs * share // 100)
    total += outcomes
    seconds = time.monotonic() - start
    print(f"fuzz: {name}: {dict(outcomes)}, {seconds:.0f} s", flush=True)
  print(f"fuzz: {sum(total.values())} inputs: {dict(total)}, nothing else")


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  options = dict(option.removeprefix("--").split("=") for option in sys.argv[1:])
  main(int(options.get("inputs", 100_000)))
