"""Artefacts: directories found by a hash of what determines their numbers.

An `Artefact` says what a directory of a study holds: fields that are artefacts are what
it reads, `settings` is all else that determines its numbers, and `make` fills it. Its
key hashes these and the version: not mesh, paths or logging. So a sweep shares its SFT,
golden and proxy models, and editing one number re-runs only what depends on it.

A directory is finished when it holds `done.json`, which is written last and knows every
other file's checksum; what a stage reads is compared with it first. Several workers
may walk the same graph: each takes the first stage that is ready and that nobody holds.
The processes of one job count as one worker, whose first process decides.
"""

import abc
from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
import shutil
import time
from typing import Any, ClassVar

from alignment.runtime import hosts
from alignment.runtime.activity import duration, progress, telling
from alignment.runtime.files import DONE, seal, sweep, verify, write_json
from alignment.runtime.locks import lock, said_file
from alignment.study.programs import Program
from alignment.study.setting import Setting

VERSION = 8  # raised whenever the code of a stage computes other numbers

Read = Callable[["Artefact"], Path]  # an input's directory


@dataclasses.dataclass(frozen=True, eq=False)
class Artefact(abc.ABC):
  """One directory of a study, not yet made or made."""

  kind: ClassVar[str]  # what `make` does: part of the key, where `name` is not

  name: str  # for people: the directory's prefix and the progress lines
  setting: Setting

  @abc.abstractmethod
  def settings(self) -> dict[str, Any]:
    """JSON: all that determines the numbers, inputs apart."""

  @abc.abstractmethod
  def make(self, directory: Path, read: Read) -> None:
    """Fills the directory; `read(input)` is where an input lies."""

  def programs(self) -> Iterator[Program]:
    """The programs that `make` runs, on shapes: for the ahead-of-time compile check."""
    return iter(())

  @property
  def inputs(self) -> dict[str, "Artefact"]:
    """What it reads: by its fields' names, which tuples number."""
    inputs: dict[str, Artefact] = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, Artefact):
        inputs[field.name] = value
      elif isinstance(value, tuple):
        artefacts = [part for part in value if isinstance(part, Artefact)]
        inputs |= {f"{field.name}{i}": part for i, part in enumerate(artefacts)}
    return inputs

  @property
  def base(self) -> "Artefact | None":
    """What is read with it: the model that its parameters are a change of."""
    return None

  @functools.cached_property
  def key(self) -> str:
    content = {
      "kind": self.kind,
      "version": VERSION,
      "config": self.settings(),
      "inputs": {name: artefact.key for name, artefact in self.inputs.items()},
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def directory(self, workdir: Path) -> Path:
    """Where it is, whatever name it was made under, or where it will be."""
    root = workdir / "artefacts"
    made = sorted(root.glob(f"*-{self.key}"))
    return made[0] if made else root / f"{self.name}-{self.key}"

  def is_done(self, workdir: Path) -> bool:
    return (self.directory(workdir) / DONE).exists()

  def verified(self, workdir: Path) -> Path:
    """The directory of a finished artefact, whose files are as they were written.

    Raises:
      UserError: naming the first file that is not.
    """
    verify(self.directory(workdir), self.key)
    return self.directory(workdir)


def closure(
  targets: Iterable[Artefact], identity: Callable[[Artefact], Any] = lambda a: a.key
) -> list[Artefact]:
  """Targets and all they depend on, inputs first, each once.

  Two are one where their `identity` is equal. Keys read the data's checksum, so what
  has no data at hand takes `id`.
  """
  order: dict[Any, Artefact] = {}

  def visit(artefact: Artefact) -> None:
    if identity(artefact) not in order:
      for needed in artefact.inputs.values():
        visit(needed)
      order[identity(artefact)] = artefact

  for target in targets:
    visit(target)
  return list(order.values())


def run(
  targets: Iterable[Artefact], workdir: Path, check: Callable[[], None] = lambda: None
) -> None:
  """Makes all targets, skipping what is done, alongside any other workers.

  Args:
    targets: what is wanted; their inputs are made as needed.
    workdir: the study's directory.
    check: called between stages; raises to stop (a fellow worker failed).
  """
  waiting = closure(targets)
  while waiting:
    check()
    hosts.stop_if_preempted("between stages")
    missing = set(hosts.on_first(functools.partial(_missing, waiting, workdir)))
    waiting = [a for a in waiting if a.key in missing]
    ready = (a for a in waiting if not missing & {i.key for i in a.inputs.values()})
    if not any(_try_to_make(artefact, workdir) for artefact in ready):
      time.sleep(0.2)


def made(workdir: Path) -> dict[str, Path]:
  """key -> directory of whatever is begun or finished there, in one listing."""
  paths = sorted(workdir.glob("artefacts/*"), reverse=True)  # the first of two counts
  return {path.name.rpartition("-")[2]: path for path in paths}


def _missing(artefacts: list[Artefact], workdir: Path) -> list[str]:
  directories = made(workdir)
  done = {key for key, path in directories.items() if (path / DONE).exists()}
  return [a.key for a in artefacts if a.key not in done]


def _try_to_make(artefact: Artefact, workdir: Path) -> bool:
  """True if it was made here; False if another worker has it."""
  # One lock for all processes of a job, held by the first.
  locked = lock(workdir, artefact.key) if hosts.is_first() else contextlib.nullcontext()
  with locked as held:
    names = hosts.on_first(lambda: _prepare(artefact, workdir) if held else None)
    if names is None:
      return False
    directory, *paths = (workdir / "artefacts" / name for name in names)
    keys = [needed.key for needed in _read_by(artefact)]
    at = dict(zip(keys, paths, strict=True))
    start = time.monotonic()
    progress(f"{artefact.name}: started")
    with telling(artefact.name, said_file(workdir, artefact.key)):
      artefact.make(directory, lambda needed: at[needed.key])
    hosts.on_first(lambda: _finish(directory, artefact.key))
    progress(f"{artefact.name}: done in {duration(time.monotonic() - start)}")
  return True


def _prepare(artefact: Artefact, workdir: Path) -> list[str] | None:
  """Names of the directory, made ready, and of what it reads; None if it is done."""
  if artefact.is_done(workdir):
    return None
  names = {a.key: a.verified(workdir).name for a in _read_by(artefact)}
  inputs = {name: names[a.key] for name, a in artefact.inputs.items()}
  directory = artefact.directory(workdir)
  directory.mkdir(parents=True, exist_ok=True)
  sweep(directory)
  content = {
    "kind": artefact.kind,
    "version": VERSION,
    "config": artefact.settings(),
    "inputs": inputs,
  }
  write_json(directory / "config.json", content)
  return [directory.name, *names.values()]


def _finish(directory: Path, key: str) -> None:
  """Marks a directory as done. States, which only a restart would read, go."""
  write_json(directory / DONE, {"key": key, "files": seal(directory)})
  shutil.rmtree(directory / "state", ignore_errors=True)


def _read_by(artefact: Artefact) -> list[Artefact]:
  """The inputs of an artefact, and what is read with them, each once."""
  listed: dict[str, Artefact] = {}
  for needed in artefact.inputs.values():
    each: Artefact | None = needed
    while each is not None:
      listed[each.key] = each
      each = each.base
  return list(listed.values())
