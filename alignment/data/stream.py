"""A recorded online run: all that it sampled and learned from, at random access.

One record holds one prompt's responses as bytes of a fixed layout, which the manifest
describes. Tokens are stored as tokens, and what was selected as it was, so a replayed
batch is the recorded one, bit for bit.

ArrayRecord opens an unfinished or missing file as an empty one, without an error. So a
shard holds the steps between two saved states; it is written under another name,
synced and renamed before the state commits; and what there is comes from the manifest,
never from the files.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from alignment.runtime import hosts, sharding
from alignment.runtime.files import checksum, read_json, replacing_path, write_json
from alignment.types import Batch, ScoredBatch, UserError

MANIFEST = "manifest.json"
SIZES = (  # in the manifest, the arguments of `record_layout`
  "prompt_length", "num_responses", "num_samples", "num_unused", "response_length",
)  # fmt: skip


def record_layout(
  prompt_length: int, num_responses: int, num_samples: int, num_unused: int, length: int
) -> np.dtype:
  """One row as bytes; every field is little-endian, whatever machine wrote it.

  R responses were learned from: samples and, for some losses, the supervised target.
  U samples were not. `scores`, `logps` and `ended` are of all N samples: of those that
  were learned from, in their order, then of the others.
  """
  R, N, U = num_responses, num_samples, num_unused
  return np.dtype(
    [
      ("step", "<i4"),
      ("id", "<i4"),
      ("prompt_length", "<i4"),
      ("prompt", "<i4", (prompt_length,)),
      ("lengths", "<i4", (R,)),
      ("responses", "<i4", (R, length)),
      ("ref_logps", "<f4", (R,)),
      ("weight", "<f4"),
      ("scores", "<f4", (N,)),  # the judge's: labels and selection follow from them
      ("logps", "<f4", (N,)),  # under the policy that sampled
      ("ended", "?", (N,)),
      ("unused_lengths", "<i4", (U,)),
      ("unused", "<i4", (U, length)),
    ]
  )


class Recorder:
  """Writes the rollouts of an online run, a shard between every two saved states.

  A run that resumes records the steps past its state anew; they must come out as
  before. On several processes the first one writes the gathered batch.
  """

  def __init__(self, directory: Path, described: Mapping[str, Any]):
    """Goes on with what is in `directory`; `described` is kept in the manifest.

    That says at least how responses were selected (`select`, core/rollout.py).

    Raises:
      UserError: if the manifest there is damaged or of another run.
    """
    self._directory = directory
    self._described = dict(described)
    self._shards: list[dict[str, Any]] = []
    self._rows: list[np.ndarray] = []
    self._pending: tuple[int, Any] | None = None
    if (directory / MANIFEST).exists():
      manifest = read_json(directory / MANIFEST)
      _check_described(directory, manifest, self._described)
      self._shards = manifest["shards"]

  def add(self, step: int, rollout: Any) -> None:
    """Takes the rollout (core/rollout.py) of the next step, fetching the last."""
    self._fetch()
    self._pending = step, rollout

  def commit(self, step: int) -> None:
    """Everything before `step` is on disk when this returns.

    Raises:
      UserError: if a step was recorded before with another result.
    """
    self._fetch()
    if not self._rows:
      return
    rows, self._rows = np.concatenate(self._rows), []
    first = int(rows["step"][0])
    hosts.on_first(lambda: self._write(first, step, rows))

  def _fetch(self) -> None:
    if self._pending is not None:
      step, rollout = self._pending
      self._pending = None
      self._rows.append(_encode(step, sharding.fetch(rollout)))

  def _write(self, first: int, end: int, rows: np.ndarray) -> None:
    from array_record.python import array_record_module

    path = self._directory / f"steps-{first:08d}-{end:08d}.array_record"
    shard = {
      "file": path.name,
      "first_step": first,
      "end_step": end,
      "records": len(rows),
      "step_sha256": [
        hashlib.sha256(records.tobytes()).hexdigest()
        for records in np.split(rows, end - first)
      ],
    }
    for other in self._shards:
      _check_same(path, other, shard)
    with replacing_path(path) as temporary:
      writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
      for row in rows:
        writer.write(row.tobytes())
      writer.close()
    shard["sha256"] = checksum(path)
    kept = [other for other in self._shards if other["end_step"] <= first]
    later = [other for other in self._shards if other["first_step"] >= end]
    files = {other["file"] for other in self._shards}
    self._shards = [*kept, shard, *later]
    write_json(
      self._directory / MANIFEST,
      {
        **self._described,
        "batch_size": len(rows) // (end - first),
        **_sizes(rows.dtype),
        "layout": [[name, rows.dtype[name].str] for name in rows.dtype.names or ()],
        "shards": self._shards,
      },
    )
    for replaced in files - {other["file"] for other in self._shards}:
      (self._directory / replaced).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Stream:
  """A finished record, row i being prompt i % batch_size of step i // batch_size."""

  directory: Path
  batch_size: int
  layout: np.dtype
  scored: bool  # its batches are of all samples, with their scores
  shards: tuple[tuple[str, int], ...]  # (file, records), in order of steps

  @classmethod
  def load(cls, directory: Path, steps: int) -> "Stream":
    """The record of a run of `steps` steps.

    Raises:
      UserError: if a shard or a record is missing or damaged.
    """
    manifest = read_json(directory / MANIFEST)
    try:
      layout = record_layout(*(manifest[key] for key in SIZES))
      batch_size, scored = manifest["batch_size"], manifest["select"] == "all"
      next_step = 0
      for shard in manifest["shards"]:
        path = directory / shard["file"]
        if path.parent != directory:
          raise UserError(f"{path}: outside of its directory; record the run again")
        if shard["first_step"] != next_step:
          break
        next_step = shard["end_step"]
        _check_shard(path, shard, layout.itemsize)
      shards = tuple((s["file"], s["records"]) for s in manifest["shards"])
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
        f"{directory / MANIFEST}: damaged ({error!r}); delete {directory.parent} to "
        "record the run again"
      ) from None
    if next_step != steps or sum(n for _, n in shards) != steps * batch_size:
      raise UserError(
        f"{directory / MANIFEST}: records steps up to {next_step} of {steps}; delete "
        f"{directory.parent} to record the run again"
      )
    return cls(directory, batch_size, layout, scored, shards)

  def __len__(self) -> int:
    return sum(records for _, records in self.shards)

  @property
  def num_responses(self) -> int:
    return self.layout["responses"].shape[0]

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """The records at `indices`, as an array of `layout`."""
    ends = np.cumsum([records for _, records in self.shards])
    indices = np.asarray(indices)
    shard_of = np.searchsorted(ends, indices, side="right")
    rows = np.empty(len(indices), self.layout)
    for shard in np.unique(shard_of):
      inside = shard_of == shard
      start = ends[shard] - self.shards[shard][1]
      path = str(self.directory / self.shards[shard][0])
      records = _reader(path).read((indices[inside] - start).tolist())
      rows[inside] = np.frombuffer(b"".join(records), self.layout)
    return rows

  def batch(self, indices: np.ndarray) -> Batch:
    """The rows at `indices_B` as numpy arrays, as they were learned from."""
    rows = self.rows(indices)
    batch = Batch(
      prompts_BxS=rows["prompt"],
      prompt_lengths_B=rows["prompt_length"],
      responses_BxNxT=rows["responses"],
      lengths_BxN=rows["lengths"],
      ref_logps_BxN=rows["ref_logps"],
      weights_B=rows["weight"],
      ids_B=rows["id"],
    )
    if not self.scored:
      return batch
    return ScoredBatch(**vars(batch), scores_BxN=rows["scores"])


def _encode(step: int, rollout: Any) -> np.ndarray:
  """A fetched rollout as records, one per row of its batch."""
  batch = rollout.batch
  B, R, T = batch.responses_BxNxT.shape
  N, U = rollout.scores_BxN.shape[1], rollout.unused_lengths_BxU.shape[1]
  rows = np.empty(B, record_layout(batch.prompts_BxS.shape[1], R, N, U, T))
  rows["step"] = step
  rows["id"] = batch.ids_B
  rows["prompt_length"] = batch.prompt_lengths_B
  rows["prompt"] = batch.prompts_BxS
  rows["lengths"] = batch.lengths_BxN
  rows["responses"] = batch.responses_BxNxT
  rows["ref_logps"] = batch.ref_logps_BxN
  rows["weight"] = batch.weights_B
  rows["scores"] = rollout.scores_BxN
  rows["logps"] = rollout.logps_BxN
  rows["ended"] = rollout.ended_BxN
  rows["unused_lengths"] = rollout.unused_lengths_BxU
  rows["unused"] = rollout.unused_BxUxT
  return rows


def _sizes(layout: np.dtype) -> dict[str, int]:
  """What a layout follows from, by the names in the manifest."""
  R, T = layout["responses"].shape
  lengths = layout["prompt"].shape[0], R
  counts = layout["scores"].shape[0], layout["unused"].shape[0]
  return dict(zip(SIZES, (*lengths, *counts, T), strict=True))


def _check_described(directory: Path, manifest: Any, wanted: Mapping[str, Any]) -> None:
  for key, value in wanted.items():
    if not isinstance(manifest, dict) or manifest.get(key) != value:
      raise UserError(
        f"{directory / MANIFEST}: is not of this run ({key} differs); delete "
        f"{directory.parent} to record it again"
      )


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """The steps that both shards have must be the same, whatever else they have."""
  first = max(before["first_step"], now["first_step"])
  for step in range(first, min(before["end_step"], now["end_step"])):
    old, new = (
      shard["step_sha256"][step - shard["first_step"]] for shard in (before, now)
    )
    if old != new:
      raise UserError(
        f"{path}: recorded again, step {step} came out differently: the environment "
        f"has changed since; delete {path.parent.parent} to train and record this run "
        "anew"
      )


def _check_shard(path: Path, shard: Mapping[str, Any], record_size: int) -> None:
  if not path.exists():
    raise UserError(f"{path}: missing; delete {path.parent.parent} to record it again")
  if checksum(path) != shard["sha256"]:
    raise UserError(
      f"{path}: damaged (its checksum differs); delete {path.parent.parent} to record "
      "the run again"
    )
  reader = _reader(str(path))
  if reader.num_records() != shard["records"] or (
    shard["records"] and len(reader.read([0])[0]) != record_size
  ):
    raise UserError(
      f"{path}: {reader.num_records()} records, {shard['records']} by the manifest; "
      f"delete {path.parent.parent} to record the run again"
    )


@functools.lru_cache(maxsize=64)
def _reader(path: str) -> Any:
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
