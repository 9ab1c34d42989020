"""Records of a file: JSON lines, a JSON array or Parquet, compressed or not.

All of that is told apart from the content, never from the name. A record is a dict with
its source, "FILE:LINE" or for arrays and Parquet "FILE:ROW", for messages. Files are
streamed: what one line, element or batch of rows takes is bounded, also when it is
decompressed.
"""

import bz2
import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import glob
import gzip
import json
import lzma
from pathlib import Path
import re
from typing import IO, Any, NamedTuple
import zlib

from alignment.data import parquet
from alignment.types import UserError

MAX_LINE_BYTES = 4_000_000  # parsed, JSON takes up to 25 times as much memory
_CHUNK = 1 << 16  # bytes of a JSON array that are read at first
_OPENERS = {
  b"\x1f\x8b": gzip.open,
  b"BZh": bz2.open,
  b"\xfd7zXZ\x00": lzma.open,
}
_UNREADABLE = {b"(\xb5/\xfd": "zstandard", b"PK\x03\x04": "zip", b"ARROW1": "Arrow IPC"}
_PARQUET = b"PAR1"
_SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<shards>\d{5})(-\w+)?\.")
_SPLITS = ("train", "validation", "valid", "val", "dev", "eval", "test")
_SPACE = re.compile(r"[ \t\n\r]*")


class Record(NamedTuple):
  """One record of a file: its line, or its row."""

  fields: dict[str, Any]
  path: Path
  number: int  # from 1

  @property
  def source(self) -> str:
    return f"{self.path}:{self.number}"


def files(path: str | Path) -> list[Path]:
  """The files that `path` names: itself, a directory's, or those of a pattern.

  Of a directory all files of one kind, the first of `_SUFFIXES` that there is, at any
  depth: JSON beside Parquet or JSON lines mostly says something about these.

  Raises:
    UserError: there are none, shards are missing, or there are several splits.
  """
  path = Path(path)
  if path.is_dir():
    for suffix in _SUFFIXES:
      paths = sorted(p for p in path.rglob(f"*{suffix}") if not p.name.startswith("."))
      if paths:
        _check_splits(path, paths)
        _check_shards(path, paths)
        return paths
    names = ", ".join(f"*{suffix}" for suffix in _SUFFIXES)
    raise UserError(f"{path}: a directory with none of {names}; check data.path")
  if not path.exists() and glob.has_magic(str(path)):
    paths = sorted(Path(p) for p in glob.glob(str(path)) if Path(p).is_file())
    if not paths:
      raise UserError(f"{path}: no file is named so; check data.path")
    if not re.search(r"-\d|\[", path.name):  # or it names some shards by their numbers
      _check_shards(path, paths)
    return paths
  return [path]


def is_text(path: Path) -> bool:
  """Whether a file holds lines of text, and no records: by its first character.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with path.open("rb") as raw:
      start = raw.read(8)
      raw.seek(0)
      if start.startswith(_PARQUET):
        return False
      content = _decompressed(raw, start, path).read(_CHUNK)
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
    raise UserError(f"{path}: cannot be read ({e})") from e
  return content.removeprefix(codecs.BOM_UTF8).lstrip()[:1] not in (b"{", b"[")


def lines(path: Path) -> Iterator[tuple[int, str]]:
  """The lines of a text file that are not empty, with their numbers.

  Raises:
    UserError: it cannot be read, or is no UTF-8.
  """
  try:
    with path.open("rb") as raw:
      start = raw.read(8)
      raw.seek(0)
      for number, line in enumerate(_decompressed(raw, start, path), 1):
        if text := line.decode("utf-8-sig").strip():
          yield number, text
  except UnicodeDecodeError as e:
    raise UserError(f"{path}: not UTF-8; convert the file") from e
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
    raise UserError(f"{path}: cannot be read ({e})") from e


def read(path: str | Path, wanted: Callable[[str], bool]) -> Iterator[Record]:
  """The records of all files of `path`, in order.

  Args:
    path: a file, a directory, or a pattern with * and ?, as `files` takes it.
    wanted: whether a column of Parquet is decoded, by name; others are None.

  Raises:
    UserError: a file that cannot be read, is damaged, or holds no records; named with
      its line or row.
  """
  for file in files(path):
    yield from read_file(file, wanted)


def read_file(path: Any, wanted: Callable[[str], bool]) -> Iterator[Record]:
  """The records of one file (a `pathlib.Path`, or etils' of remote files)."""
  number = 0
  try:
    with path.open("rb") as raw:
      start = raw.read(8)
      raw.seek(0)
      if start.startswith(_PARQUET):
        rows = parquet.rows(raw, path, wanted)
      else:
        rows = _json(_decompressed(raw, start, path), path)
      for number, fields in rows:
        yield Record(fields, path, number)
  except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as e:
    raise _damaged(path, number, e) from e
  except OSError as e:
    if (
      e.errno is None
    ):  # of bz2's and Arrow's decoders, which have no error of their own
      raise _damaged(path, number, e) from e
    reason = e.strerror or e
    raise UserError(f"{path}: cannot be read ({reason}); check data.path") from e


def _damaged(path: Any, number: int, error: Exception) -> UserError:
  return UserError(
    f"{path}: damaged or cut off after line {number} ({error}); fetch the file again"
  )


def _check_splits(directory: Path, paths: Sequence[Path]) -> None:
  """One split, of files that are named as hub data sets are."""
  splits: dict[str, list[Path]] = {}
  for path in paths:
    splits.setdefault(_split_of(path), []).append(path)
  if len(splits) > 1:
    raise UserError(
      f"{directory}: holds several splits, {', '.join(sorted(splits))}; name the files"
      f" of one, as data.path='{min(splits)}*'"
    )


def _check_shards(where: Path, paths: Sequence[Path]) -> None:
  """All shards of every split."""
  found = Counter(
    (path.parent, match["split"], int(match["shards"]))
    for path in paths
    if (match := _SHARD.match(path.name))
  )
  for (_, _, shards), count in found.items():
    if count < shards:
      raise UserError(f"{where}: has {count} of its {shards} files; fetch the rest")


def _split_of(path: Path) -> str:
  """What the files of a path's split have in common, as a pattern's start."""
  if match := _SHARD.match(path.name):
    return str(path.parent / match["split"])
  words = re.split("[-_.]", path.name)  # of "test_prefs.jsonl", "prefs-test.jsonl"
  word = next((word for word in words if word in _SPLITS), "")
  return f"{path.parent}/{'*' if word and word != words[0] else ''}{word}"


def _decompressed(raw: IO[bytes], start: bytes, path: Any) -> IO[bytes]:
  for magic, name in _UNREADABLE.items():
    if start.startswith(magic):
      raise UserError(
        f"{path}: is a {name} file; give JSON lines, a JSON array or Parquet, plain or"
        " compressed with gzip, xz or bzip2"
      )
  for magic, opener in _OPENERS.items():
    if start.startswith(magic):
      return opener(raw, "rb")  # type: ignore[operator]
  return raw


# --- JSON -----------------------------------------------------------------------------


def _json(stream: IO[bytes], path: Any) -> Iterator[tuple[int, dict[str, Any]]]:
  """Numbered objects of JSON lines, or of an array, by the first character."""
  number = 0
  while line := stream.readline(MAX_LINE_BYTES + 1):
    number += 1
    if number == 1:
      line = line.removeprefix(codecs.BOM_UTF8)
    if number == 1 and line.startswith(_PARQUET):
      raise UserError(f"{path}: is compressed Parquet; decompress the file")
    if not line.strip():
      continue
    if line.lstrip().startswith(b"["):
      yield from _array(line.lstrip()[1:], stream, path)
      return
    yield number, _parse(line, f"{path}:{number}")
    break
  while line := stream.readline(MAX_LINE_BYTES + 1):
    number += 1
    if line.strip():
      yield number, _parse(line, f"{path}:{number}")


def _parse(line: bytes, source: str) -> dict[str, Any]:
  if len(line) > MAX_LINE_BYTES:
    raise UserError(
      f"{source}: the line is over {MAX_LINE_BYTES:,} bytes; the file must be JSON"
      " lines, one pair on each, or an array of pairs"
    )
  try:
    return _object(json.loads(line.decode(), parse_constant=_no_constant), source)
  except UnicodeDecodeError as e:
    raise UserError(
      f"{source}: not UTF-8 (byte {e.start + 1} of the line); convert the file"
    ) from e
  except (RecursionError, ValueError) as e:
    raise _malformed(e, source) from e


def _array(
  start: bytes, stream: IO[bytes], path: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Numbered elements of an array after its bracket, of which one is held at a time."""
  text = _Text(start, stream, path)
  if text.next() == "]":
    text.position += 1
  else:
    number, end = 0, ","
    while end == ",":
      number += 1
      source = f"{path}:{number}"
      yield number, _object(text.element(source), source)
      end = text.next()
      if end not in (",", "]"):
        raise UserError(f"{source}: malformed JSON: expecting ',' or ']' after it")
      text.position += 1
  if text.next():
    raise UserError(f"{path}: malformed JSON: there is more after the array's end")


class _Text:
  """The text of a stream, of which only what is being parsed is held."""

  _decoder = json.JSONDecoder(parse_constant=lambda name: _no_constant(name))

  def __init__(self, start: bytes, stream: IO[bytes], path: Any):
    self._stream, self._path = stream, path
    self._utf8 = codecs.getincrementaldecoder("utf-8")()
    self._text = self._decode(start)
    self._ended = False
    self.position = 0

  def next(self) -> str:
    """The next character that is not white space, or '' at the end."""
    while True:
      match = _SPACE.match(self._text, self.position)
      assert match is not None
      self.position = match.end()
      if self.position < len(self._text) or not self._more(_CHUNK):
        return self._text[self.position : self.position + 1]

  def element(self, source: str) -> Any:
    """The value that begins here."""
    self.next()
    size = _CHUNK
    while True:
      try:
        value, self.position = self._decoder.raw_decode(self._text, self.position)
        return value
      except (RecursionError, ValueError) as e:
        # It may only be cut off: read on, while no element could be that long.
        held = len(self._text) - self.position
        if held > MAX_LINE_BYTES:
          raise UserError(
            f"{source}: malformed JSON, or over {MAX_LINE_BYTES:,} characters"
          ) from e
        if not isinstance(e, json.JSONDecodeError) or not self._more(size):
          raise _malformed(e, source) from e
        size = held

  def _more(self, size: int) -> bool:
    """Reads on, and lets go of what is behind; whether there was more."""
    data = b"" if self._ended else self._stream.read(size)
    self._ended = not data
    self._text = self._text[self.position :] + self._decode(data)
    self.position = 0
    return not self._ended

  def _decode(self, data: bytes) -> str:
    try:
      return self._utf8.decode(data, final=not data)
    except UnicodeDecodeError as e:
      raise UserError(f"{self._path}: not UTF-8; convert the file") from e


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _malformed(error: Exception, source: str) -> UserError:
  if isinstance(error, RecursionError):
    reason = "nested too deeply"
  elif isinstance(error, json.JSONDecodeError):  # its position is that in a buffer
    reason = error.msg if error.lineno > 1 else f"{error.msg}: column {error.colno}"
  else:
    reason = str(error).replace("\n", " ")
  return UserError(
    f"{source}: malformed JSON: {reason}; give one object on each line, or an array"
  )


def _object(value: Any, source: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    kind = type(value).__name__
    raise UserError(f"{source}: not an object but a {kind}; each record must be one")
  return value
