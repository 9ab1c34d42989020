"""Paths that users give, and small files: written whole or not at all, and checked.

`seal` says what a finished directory holds (its done-marker keeps that), `verify`
compares. Checkpoints are not sealed: they carry fingerprints of their arrays instead
(checkpoint.py), which cost no second reading of files of many gigabytes.

Of several processes only the first writes. A process that reads what was written in the
same stage has to wait for it (`hosts.wait_for_first`).
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import io
import json
import os
from pathlib import Path
import re
from typing import IO, Any
import unicodedata
import zipfile
import zlib

import numpy as np

from alignment.runtime import hosts
from alignment.types import UserError

DONE = "done.json"
_PARTIAL = ".partial"  # ends the names of files that are not whole yet
_NOT_SEALED = ("params", "state", "tensorboard", "wandb")  # directories at the top
_MISREAD = {  # in paths, by what writes the arrays: they would be elsewhere, or nowhere
  r"[\[\]]": "Orbax reads brackets as a pattern",
  r"\\": "TensorStore reads it as a slash",
  r"gs:(?=/)": "Orbax reads it as an address",
  r"^/(gs|s3|az|hf)/": "Orbax reads it as an address",
}


def path_option(text: str, name: str) -> Path:
  """A path that a user gave as option `name`, with `~` and `~user` expanded.

  Raises:
    UserError: if there is none, no such user, or it is no path of this machine.
  """
  if not text:
    raise UserError(f"{name} is empty: it should be a path")
  if scheme := re.match(r"([A-Za-z][\w+.-]*):/", text):
    raise UserError(
      f"{name}: '{text}' is an address, not a path; mount what is at {scheme[1]}:, and "
      "give the path where it is mounted"
    )
  try:
    return Path(text).expanduser()
  except RuntimeError:
    user = Path(text).parts[0]
    raise UserError(
      f"{name}: '{text}' begins with {user}, whose home directory is unknown"
    ) from None


def directory_option(text: str, name: str) -> Path:
  """The directory, absolute, that option `name` gives results to be written to.

  Raises:
    UserError: as `path_option` and `check_directory` do.
  """
  path = path_option(text, name).absolute()
  check_directory(path, name)
  return path


def check_directory(path: Path, name: str) -> None:
  """Whether arrays and files can be written under `path`, which need not exist yet.

  Args:
    path: the directory.
    name: what it is to the user: the option that gave it.

  Raises:
    UserError: if not, saying why.
  """
  check_path_of_arrays(path, name)
  for existing in (path.absolute(), *path.absolute().parents):
    try:
      existing.lstat()
      break
    except (FileNotFoundError, NotADirectoryError):
      continue
    except OSError as error:  # such as a name that is too long
      raise UserError(f"{name}: {path}: {error.strerror}") from None
  if not existing.is_dir():
    raise UserError(f"{name}: {existing} is not a directory")
  if not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f"{name}: {existing} is not writable for this user")


def check_path_of_arrays(path: Path, name: str) -> None:
  """Raises UserError if arrays written to or read from `path` would go astray."""
  text = str(path.absolute())
  if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
    raise UserError(f"{name}: {text!a} has unprintable characters, or is not UTF-8")
  for pattern, reason in _MISREAD.items():
    if misread := re.search(pattern, text + "/"):
      raise UserError(
        f"{name}: {text} has '{misread[0]}' in it, and {reason}: take a directory of "
        "another name"
      )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
  """A file to write, which appears as `path` when all of it is on disk, or never."""
  if not hosts.is_first():
    yield io.BytesIO()
    return
  with replacing_path(path) as temporary, open(temporary, "wb") as f:
    yield f


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
  """A name under which to write `path`, which becomes that when all is on disk."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
  try:
    with naming(path):
      yield temporary
      with open(temporary, "rb") as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Errors of writing to `path` say so: the system's do not, once a file is open."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def write_atomically(path: Path, data: bytes) -> None:
  """All of `data` under `path`, or nothing."""
  with replacing(path) as f:
    f.write(data)


def write_json(path: Path, value: Any) -> None:
  text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
  write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
  """A JSON file written by a stage.

  Raises:
    UserError: if it is missing or damaged.
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise _damaged(path, error) from None


def write_npz(path: Path, **arrays: np.ndarray) -> None:
  with replacing(path) as f:
    np.savez(f, allow_pickle=False, **arrays)


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
  """All arrays of a file written by a stage, among them those of these names.

  Raises:
    UserError: if it is missing or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      if absent := set(names) - set(arrays):
        raise ValueError(f"no {', '.join(absent)}")
      return dict(arrays)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise _damaged(path, error) from None


def checksum(path: Path) -> str:
  """The sha256 (hex) of a file; read again only if its size or time has changed.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    stat = path.stat()
    if path.is_fifo():
      raise UserError(f"{path}: is a pipe, which can be read only once: use a file")
    return _checksum(path.absolute(), stat.st_size, stat.st_mtime_ns)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None


@functools.lru_cache(maxsize=4096)
def _checksum(path: Path, size: int, mtime_ns: int) -> str:
  del size, mtime_ns  # what the answer is remembered by
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def sweep(directory: Path) -> None:
  """Removes what killed writers left unfinished; only for who holds the directory."""
  for path in directory.rglob(f".*{_PARTIAL}"):
    path.unlink(missing_ok=True)


def seal(directory: Path) -> dict[str, dict[str, Any]]:
  """Size and checksum of every file of a finished directory, by relative name."""
  return {
    name: {"bytes": path.stat().st_size, "sha256": checksum(path)}
    for name, path in _sealed(directory).items()
  }


def verify(directory: Path, key: str) -> None:
  """Compares a finished directory with its done-marker, once per process.

  Raises:
    UserError: naming the first file that is missing, damaged, or does not belong.
  """
  marker = directory / DONE
  if not marker.exists():
    raise _damaged(marker, FileNotFoundError())
  _verify(directory, key, marker.stat().st_mtime_ns)


@functools.cache
def _verify(directory: Path, key: str, marked_ns: int) -> None:
  del marked_ns
  done = read_json(directory / DONE)
  if not isinstance(done, dict) or not isinstance(done.get("files"), dict):
    raise _damaged(directory / DONE)
  again = f"; delete {directory} to make it again"
  if done.get("key") != key:
    raise UserError(
      f"{directory / DONE}: of another artefact ({done.get('key')}){again}"
    )
  present = _sealed(directory)
  for name in sorted(done["files"].keys() | present.keys()):
    path = directory / name
    if name not in present:
      raise UserError(f"{path}: missing{again}")
    if name not in done["files"]:
      raise UserError(f"{path}: does not belong to this artefact; remove it")
    written = done["files"][name]
    if path.stat().st_size != written["bytes"] or checksum(path) != written["sha256"]:
      raise UserError(f"{path}: damaged{again}")


def _sealed(directory: Path) -> dict[str, Path]:
  """The files that a done-marker speaks for, by relative name; hidden ones are not."""
  sealed = {}
  for path in sorted(directory.rglob("*")):
    parts = path.relative_to(directory).parts
    hidden = any(part.startswith(".") for part in parts)
    if not hidden and parts[0] not in (*_NOT_SEALED, DONE) and path.is_file():
      sealed["/".join(parts)] = path
  return sealed


def _damaged(path: Path, error: Exception | None = None) -> UserError:
  reason = "missing" if isinstance(error, FileNotFoundError) else "damaged"
  return UserError(f"{path}: {reason}; delete {path.parent} to make it again")
