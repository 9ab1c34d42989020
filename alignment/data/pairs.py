"""Tokenised preference pairs: ragged, memory-mapped, a million in little memory.

A `PairDataset` saves to and loads from a directory of .npy files and yields padded
batches by index; `order.index_for` says which indices a step reads. `tokenizer.py`
makes one from text.
"""

from array import array
from collections.abc import Sequence
import dataclasses
import hashlib
import os
import pathlib
import tempfile

import numpy as np

from alignment.runtime import hosts
from alignment.runtime.files import naming
from alignment.types import Batch, UserError

_CHUNK = 1 << 20  # tokens held in memory before they go to disk
_ROWS = 1 << 9  # rows copied at a time
_RAGGED = ("prompts", "responses0", "responses1")  # names of files


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of unequal length, end to end: row i is values[offsets[i]:offsets[i + 1]]."""

  values: np.ndarray  # int32 [total]
  offsets: np.ndarray  # int64 [rows + 1], from 0 to total

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    """Row i, 1-D."""
    if not 0 <= i < len(self):
      raise IndexError(f"row {i} of {len(self)}")
    return np.asarray(self.values[self.offsets[i] : self.offsets[i + 1]])

  @classmethod
  def from_padded(cls, rows_NxW: np.ndarray, lengths_N: np.ndarray) -> "Ragged":
    """The inverse of `padded`."""
    inside_NxW = np.arange(rows_NxW.shape[1]) < lengths_N[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths_N, dtype=np.int64)])
    return cls(np.ascontiguousarray(rows_NxW[inside_NxW], np.int32), offsets)

  @property
  def lengths(self) -> np.ndarray:
    """int64 [rows]."""
    return np.diff(self.offsets)

  def padded(self, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows right-padded with 0 to `width`: tokens_NxW and lengths_N, both int32.

    Raises:
      ValueError: a row is longer than `width`.
      IndexError: there is no such row.
    """
    indices_N = np.asarray(indices)
    if indices_N.size and not 0 <= indices_N.min() <= indices_N.max() < len(self):
      raise IndexError(f"rows {indices_N.min()} to {indices_N.max()} of {len(self)}")
    starts_N = self.offsets[indices_N]
    lengths_N = self.offsets[indices_N + 1] - starts_N
    if lengths_N.size and lengths_N.max() > width:
      row = indices_N[lengths_N.argmax()]
      raise ValueError(f"row {row} has {lengths_N.max()} tokens, over {width}")
    tokens_NxW = np.zeros((len(indices_N), width), np.int32)
    mask_NxW = np.arange(width) < lengths_N[:, None]
    tokens_NxW[mask_NxW] = self.values[_positions(starts_N, lengths_N)]
    return tokens_NxW, lengths_N.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class PairDataset:
  """P pairs of tokenised responses; response 0 is the preferred one.

  `columns` hold what was computed for each pair, by name, with P rows: `ref_logps`
  [P, 2] float32 (log pi_ref of both responses), `ids` [P] (else the row number),
  `margin` [P] float32, ...
  """

  prompts: Ragged
  responses: tuple[Ragged, Ragged]
  columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    parts = dict(zip(_RAGGED, (self.prompts, *self.responses), strict=True))
    for name, rows in (parts | self.columns).items():
      if len(rows) != len(self):
        raise ValueError(f"{name} has {len(rows)} rows, prompts has {len(self)}")

  def __len__(self) -> int:
    return len(self.prompts)

  def batch(
    self, indices: np.ndarray, prompt_length: int, response_length: int
  ) -> Batch:
    """The pairs at `indices_B`, as numpy arrays with N = 2 responses."""
    indices_B = np.asarray(indices)
    prompts_BxS, prompt_lengths_B = self.prompts.padded(indices_B, prompt_length)
    responses, lengths = zip(
      *(r.padded(indices_B, response_length) for r in self.responses), strict=True
    )
    if "ref_logps" in self.columns:
      ref_logps_Bx2 = np.asarray(self.columns["ref_logps"][indices_B], np.float32)
    else:
      ref_logps_Bx2 = np.zeros((len(indices_B), 2), np.float32)
    ids_B = self.columns["ids"][indices_B] if "ids" in self.columns else indices_B
    return Batch(
      prompts_BxS=prompts_BxS,
      prompt_lengths_B=prompt_lengths_B,
      responses_BxNxT=np.stack(responses, axis=1),
      lengths_BxN=np.stack(lengths, axis=1),
      ref_logps_BxN=ref_logps_Bx2,
      weights_B=np.ones(len(indices_B), np.float32),
      ids_B=np.asarray(ids_B, np.int32),
    )

  def prompt_numbers(self) -> np.ndarray:
    """Which prompt each pair is of, numbered as they first appear: int64 [P]."""
    numbers: dict[bytes, int] = {}  # by digest: the prompts would not fit in memory
    digests = (
      hashlib.sha256(self.prompts[i].tobytes()).digest() for i in range(len(self))
    )
    return np.array([numbers.setdefault(d, len(numbers)) for d in digests], np.int64)

  def rows(self, indices: np.ndarray) -> "PairDataset":
    """The pairs at `indices`, in that order, written anew."""
    parts = (self.prompts, *self.responses)
    prompts, first, second = (_gathered(part, indices) for part in parts)
    columns = {name: column[indices] for name, column in self.columns.items()}
    return PairDataset(prompts, (first, second), columns)

  def with_columns(self, **columns: np.ndarray) -> "PairDataset":
    """These pairs with columns added or replaced."""
    return dataclasses.replace(self, columns=self.columns | columns)

  @classmethod
  def concatenate(cls, parts: Sequence["PairDataset"]) -> "PairDataset":
    """The pairs of all parts, in order; without columns, if there are several."""
    if len(parts) == 1:
      return parts[0]
    columns = zip(*((part.prompts, *part.responses) for part in parts), strict=True)
    prompts, first, second = (_end_to_end(column) for column in columns)
    return cls(prompts, (first, second))

  def with_order(self, swap_N: np.ndarray) -> "PairDataset":
    """These pairs with the two responses exchanged where `swap_N` (bool [P]) is true.

    The responses are written anew, so that no later reader has an order to apply.
    Columns of shape [P, 2] belong to the responses and follow them; others stay.
    """
    swap_N = np.asarray(swap_N)
    if swap_N.shape != (len(self),) or swap_N.dtype != bool:
      raise ValueError(f"swap is {swap_N.dtype} {swap_N.shape}, not bool {len(self)}")
    first, second = self.responses
    responses = _where(swap_N, second, first), _where(swap_N, first, second)
    columns = dict(self.columns)
    for name, column in columns.items():
      if column.shape == (len(self), 2):
        columns[name] = np.where(swap_N[:, None], column[:, ::-1], column)
    return PairDataset(self.prompts, responses, columns)

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the pairs as .npy files into `directory`, each flushed to the disk.

    Of several processes only the first writes.
    """
    if not hosts.is_first():
      return
    directory = pathlib.Path(directory)
    # Unlinked, not overwritten: memory maps of the old files stay valid, and columns
    # that a killed attempt left are not taken for this data set's.
    for path in directory.glob("*.npy"):
      path.unlink()
    arrays = {f"column.{name}": column for name, column in self.columns.items()}
    ragged = self.prompts, *self.responses
    for name, rows in zip(_RAGGED, ragged, strict=True):
      arrays |= {f"{name}.values": rows.values, f"{name}.offsets": rows.offsets}
    for name, values in arrays.items():
      path = directory / f"{name}.npy"
      with naming(path), open(path, "xb") as f:
        np.save(f, values, allow_pickle=False)
        f.flush()
        os.fsync(f.fileno())

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> "PairDataset":
    """The pairs saved in `directory`, memory-mapped read-only.

    Raises:
      UserError: a file is missing or damaged, or they do not belong together.
    """
    directory = pathlib.Path(directory)
    prompts, first, second = (_load_ragged(directory, name) for name in _RAGGED)
    columns = {
      path.name.removeprefix("column.").removesuffix(".npy"): _load_array(path)
      for path in sorted(directory.glob("column.*.npy"))
    }
    try:
      return cls(prompts, (first, second), columns)
    except (ValueError, TypeError) as e:
      raise UserError(
        f"{directory}: its .npy files do not belong together ({e}); delete it and run"
        " its stage again"
      ) from e


def distinct_prompts(dataset: PairDataset, count: int, seed: int) -> np.ndarray:
  """Rows of `count` different prompts, chosen by `seed`; fewer if there are no more."""
  order = np.random.Generator(np.random.Philox(key=[seed, 7])).permutation(len(dataset))
  seen: set[bytes] = set()
  rows = []
  for i in order:  # mostly ends long before the data does
    prompt = dataset.prompts[int(i)].tobytes()
    if prompt not in seen:
      seen.add(prompt)
      rows.append(int(i))
    if len(rows) == count:
      break
  return np.array(rows)


class RaggedWriter:
  """Appends rows to an unnamed temporary file, then maps it as a `Ragged`."""

  def __init__(self):
    self._file = tempfile.TemporaryFile()
    self._buffer = array("i")
    self._offsets = array("q", [0])

  def append(self, row: list[int]) -> None:
    self._buffer.fromlist(row)
    self._offsets.append(self._offsets[-1] + len(row))
    if len(self._buffer) >= _CHUNK:
      self._flush()

  def extend(self, values: np.ndarray, lengths_N: np.ndarray) -> None:
    """Appends N rows at once, whose tokens (int32 [total]) are end to end."""
    self._buffer.frombytes(np.ascontiguousarray(values, np.int32).tobytes())
    self._offsets.frombytes(
      (self._offsets[-1] + np.cumsum(lengths_N, dtype=np.int64)).tobytes()
    )
    if len(self._buffer) >= _CHUNK:
      self._flush()

  def finish(self) -> Ragged:
    """The rows written; the file goes when the last map of it does."""
    self._flush()
    self._file.flush()
    offsets = np.array(self._offsets, np.int64)
    if not offsets[-1]:  # an empty file cannot be mapped
      return Ragged(np.zeros(0, np.int32), offsets)
    return Ragged(np.memmap(self._file, np.int32, mode="r"), offsets)

  def _flush(self) -> None:
    self._buffer.tofile(self._file)
    self._buffer = array("i")


def _end_to_end(parts: Sequence[Ragged]) -> Ragged:
  """The rows of all parts, in order."""
  writer = RaggedWriter()
  for part in parts:
    for start in range(0, len(part), _ROWS):
      offsets = part.offsets[start : start + _ROWS + 1]
      writer.extend(part.values[offsets[0] : offsets[-1]], np.diff(offsets))
  return writer.finish()


def _gathered(rows: Ragged, indices: np.ndarray) -> Ragged:
  writer = RaggedWriter()
  for start in range(0, len(indices), _ROWS):
    block = indices[start : start + _ROWS]
    starts = rows.offsets[block]
    lengths = rows.offsets[block + 1] - starts
    writer.extend(rows.values[_positions(starts, lengths)], lengths)
  return writer.finish()


def _where(mask_N: np.ndarray, a: Ragged, b: Ragged) -> Ragged:
  """Row i of `a` where `mask_N` is true, else that of `b`; both have N rows."""
  writer = RaggedWriter()
  for start in range(0, len(mask_N), _ROWS):
    mask_R = mask_N[start : start + _ROWS]
    rows_R = np.arange(start, start + len(mask_R))
    lengths_R = np.where(
      mask_R,
      np.diff(a.offsets[start : start + len(mask_R) + 1]),
      np.diff(b.offsets[start : start + len(mask_R) + 1]),
    )
    from_a = np.repeat(mask_R, lengths_R)  # for every token
    values = np.empty(len(from_a), np.int32)
    for chosen, rows, part in (mask_R, from_a, a), (~mask_R, ~from_a, b):
      starts = part.offsets[rows_R[chosen]]
      values[rows] = part.values[_positions(starts, lengths_R[chosen])]
    writer.extend(values, lengths_R)
  return writer.finish()


def _positions(starts_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
  """Flat positions of rows given by start and length, end to end."""
  ends_N = np.cumsum(lengths_N)
  total = int(ends_N[-1]) if len(ends_N) else 0
  return np.repeat(starts_N - (ends_N - lengths_N), lengths_N) + np.arange(total)


def _load_array(path: pathlib.Path) -> np.ndarray:
  try:
    return np.lib.format.open_memmap(path, mode="r")
  except Exception as e:  # a damaged header raises nearly anything
    reason = str(e).splitlines()[0] if str(e) else type(e).__name__
    raise UserError(
      f"{path}: missing or damaged ({reason}); delete its directory and run its stage"
      " again"
    ) from e


def _load_ragged(directory: pathlib.Path, name: str) -> Ragged:
  path = directory / f"{name}.offsets.npy"
  values = _load_array(directory / f"{name}.values.npy")
  offsets = _load_array(path)
  kinds = (values.dtype, values.ndim, offsets.dtype, offsets.ndim)
  if (
    kinds != (np.int32, 1, np.int64, 1)
    or not len(offsets)
    or (offsets[0], offsets[-1]) != (0, len(values))
    or (np.diff(offsets) < 0).any()
  ):
    raise UserError(
      f"{path}: does not fit {name}.values.npy, so one is damaged; delete their"
      " directory and run its stage again"
    )
  return Ragged(values, offsets)
