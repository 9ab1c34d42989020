"""Where scalars go besides `metrics.jsonl`: TensorBoard, Weights & Biases.

A tracker follows what a study computes and decides nothing: it is no part of any
artefact's hash, and switching it on or off re-runs nothing. Only the first process has
one.

Weights & Biases (`pip install -e '.[wandb]'`) reads its own environment variables:
WANDB_PROJECT (else `PROJECT`), WANDB_RUN_GROUP (else the study's task), WANDB_API_KEY,
WANDB_MODE=offline. A stage is a run
whose id is the stage's key, so a restart continues it; `wandb/sent` beside it says up
to which step, and what a restart repeats is not sent again.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Protocol

from alignment.runtime.files import write_atomically
from alignment.types import UserError

PROJECT = "online-offline-alignment"


@dataclasses.dataclass(frozen=True)
class Tracking:
  """Which trackers, and what they call a run.

  Attributes:
    trackers: names in `TRACKERS`.
    group: what the runs of one study have in common.
    key: of one run, the same after a restart.
  """

  trackers: Sequence[str] = ("tensorboard",)
  group: str = ""
  key: str = ""


class Writer(Protocol):
  """A tracker's run."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values at a step, which is higher than all before."""

  def close(self) -> None:
    """Sends what is left."""


def check(trackers: Sequence[str]) -> None:
  """Raises UserError for a tracker that is unknown, not installed or not logged in."""
  for name in trackers:
    if name not in TRACKERS:
      raise UserError(
        f"tracking: '{name}' is unknown; there are {', '.join(map(repr, TRACKERS))}"
      )
  if "wandb" not in trackers:
    return
  if importlib.util.find_spec("wandb") is None:
    raise UserError(
      "tracking: 'wandb' needs the package wandb, which is not installed: "
      "pip install -e '.[wandb]'"
    )
  if os.environ.get("WANDB_MODE", "online") != "online":
    return
  import wandb

  try:
    wandb.login()  # returns at once where the key is known
  except wandb.Error as error:
    reason = str(error).splitlines()[0]
    raise UserError(f"tracking: 'wandb': {reason} Or set WANDB_MODE=offline") from None


def writers(tracking: Tracking, directory: Path, name: str) -> list[Writer]:
  """A writer per tracker, of the stage of this name whose directory it is.

  Raises:
    UserError: if one cannot start, as `write` and `close` do if they fail.
  """
  return [
    _Named(tracker, directory, TRACKERS[tracker], tracking, name)
    for tracker in tracking.trackers
  ]


class _Named:
  """A tracker whose errors name its directory."""

  def __init__(self, tracker: str, directory: Path, make: Any, *about: Any):
    self._path = directory / tracker
    with _one_line(self._path):
      self._writer: Writer = make(self._path, *about)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    with _one_line(self._path):
      self._writer.write(step, values)

  def close(self) -> None:
    with _one_line(self._path):
      self._writer.close()


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
  """A tracker's errors as one line: a full disk is, though theirs are not."""
  try:
    yield
  except Exception as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"{path}: cannot be written ({reason[-150:]}); mend this, then the same command "
      "resumes"
    ) from error


class TensorBoard:
  """Event files, by clu."""

  def __init__(self, directory: Path, tracking: Tracking, name: str):
    del tracking, name  # TensorBoard reads them off the directory
    from clu import metric_writers  # imports TensorFlow: seconds

    self._writer = metric_writers.SummaryWriter(str(directory))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._writer.write_scalars(step, dict(values))

  def close(self) -> None:
    self._writer.close()


class WeightsAndBiases:
  """A run of https://wandb.ai, or its files where WANDB_MODE is offline."""

  def __init__(self, directory: Path, tracking: Tracking, name: str):
    directory.mkdir(parents=True, exist_ok=True)
    self._sent = directory / "sent"
    self._last = int(self._sent.read_text()) if self._sent.exists() else -1
    self._run = _start(directory.parent, tracking.group, tracking.key, name, "stage")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if step > self._last:  # or an earlier process has sent it
      self._last = step
      # Before: a kill loses a point, never doubles it.
      write_atomically(self._sent, str(step).encode())
      self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def _start(directory: Path, group: str, key: str, name: str, kind: str) -> Any:
  import wandb

  return wandb.init(
    project=os.environ.get("WANDB_PROJECT", PROJECT),
    group=os.environ.get("WANDB_RUN_GROUP", group),
    id=key,
    name=name,
    job_type=kind,
    dir=str(directory),  # it makes the directory `wandb` there
    resume="allow",
    settings=wandb.Settings(silent=True, console="off"),
  )


def send_results(tracking: Tracking, workdir: Path) -> None:
  """Sends a finished study's `figures/*.png` and `claims.csv` to W&B, once.

  They are a run of their own in the study's group, whose id is a hash of what they
  show: the same results are not sent twice.
  """
  if "wandb" not in tracking.trackers:
    return
  figures, claims = sorted(workdir.glob("figures/*.png")), workdir / "claims.csv"
  key = _hash([*figures, claims])
  sent = workdir / "wandb" / f"{key}.sent"
  if not sent.exists():
    with _one_line(sent.parent):
      sent.parent.mkdir(exist_ok=True)
      _send(_start(workdir, tracking.group, key, "results", "results"), figures, claims)
      sent.touch()


def _send(run: Any, figures: Sequence[Path], claims: Path) -> None:
  import wandb

  header, *rows = csv.reader(claims.read_text(encoding="utf-8").splitlines())
  images = {path.stem: wandb.Image(str(path)) for path in figures}
  run.log(images | {"claims": wandb.Table(columns=header, data=rows)}, step=0)
  run.finish()


def _hash(files: Sequence[Path]) -> str:
  digest = hashlib.sha256()
  for path in files:
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]
