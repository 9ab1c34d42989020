"""Small files: written whole or not at all, and read with one clear line if damaged."""

import json
import os
from pathlib import Path
from typing import Any
import zipfile
import zlib

import numpy as np

from alignment.types import UserError


def write_atomically(path: Path, data: bytes) -> None:
  """All of `data` under `path`, or nothing: temporary name, sync, rename."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(temporary, "wb") as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


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
  except (OSError, ValueError) as error:
    raise _damaged(path, error) from None


def write_npz(path: Path, **arrays: np.ndarray) -> None:
  temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
  np.savez(temporary, allow_pickle=False, **arrays)
  os.replace(temporary, path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """All arrays of a file written by a stage.

  Raises:
    UserError: if it is missing or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
  reason = "missing" if isinstance(error, FileNotFoundError) else "damaged"
  return UserError(f"{path}: {reason}; delete {path.parent} to make it again")
