"""What is done of a study, what runs and for how long yet, in one screen.

From files alone, so in any process that sees the working directory: done-markers,
locks, and what their holders say of themselves (runtime/activity.py), on whatever host.
No model is loaded, and no device is used.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
from pathlib import Path
import shutil
from typing import Any

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from alignment.data import vocabularies
from alignment.runtime import activity, locks, sharding
from alignment.runtime.activity import duration
from alignment.runtime.files import DONE
from alignment.runtime.metrics import read_jsonl
from alignment.study import checks, graph, recipes
from alignment.study.artefacts import Artefact, closure, made
from alignment.study.models import Models
from alignment.study.setting import Setting, language_of
from alignment.study.stages.models import TrainedModel
from alignment.types import UserError

SILENT = 60.0  # seconds after which what a process said last is called old
_LISTED = 8  # stages per kind that are named; the others are counted


@dataclasses.dataclass(frozen=True)
class Stage:
  """Where one stage is.

  Attributes:
    name: with its world, if there are several.
    state: done, running, stopped (begun, and held by nobody), ready or waiting.
    said: what its holder says of itself; None where nobody does.
    logged: the last step in its metrics, and its last step; (0, 0) if none.
  """

  name: str
  state: str
  said: Mapping[str, Any] | None = None
  logged: tuple[int, int] = (0, 0)


def status(config: ConfigDict, workdir: Path) -> None:
  """Prints it.

  Raises:
    UserError: for a configuration that is at odds with itself.
  """
  checks.check_config(config)
  studies = _studies(config)
  for study in studies:
    checks.check_files(study)
  width = shutil.get_terminal_size().columns
  for line in lines(stages(studies, workdir)):
    print(line if len(line) <= width else f"{line[: width - 3]}...")


def _studies(config: ConfigDict) -> list[graph.Study]:
  """The graph of every world, on devices that need not be here."""
  mesh: Any = AbstractMesh((1,) * len(sharding.AXES), sharding.AXES)
  vocabulary = vocabularies.from_config(config.vocab)
  models = Models.of(config, vocabulary)
  return [
    graph.Study(
      Setting(config, world, vocabulary, mesh, models, language_of(config, world))
    )
    for world in recipes.worlds(config)
  ]


def stages(studies: Sequence[graph.Study], workdir: Path) -> list[Stage]:
  """Every stage of all worlds, inputs first."""
  directories = made(workdir)
  done = {key for key, path in directories.items() if (path / DONE).exists()}
  placed: dict[str, Stage] = {}
  for study in studies:
    world = f"world {study.world} " if len(studies) > 1 else ""
    for artefact in closure(study.artefacts().values()):
      if artefact.key not in placed:  # worlds may share their data
        directory = directories.get(artefact.key)
        placed[artefact.key] = _stage(artefact, world, directory, done, workdir)
  return list(placed.values())


def _stage(
  artefact: Artefact, world: str, directory: Path | None, done: set[str], workdir: Path
) -> Stage:
  name = (
    artefact.name if world.replace(" ", "") in artefact.name else world + artefact.name
  )
  if artefact.key in done:
    return Stage(name, "done")
  held = locks.is_held(workdir, artefact.key)
  said = activity.read(locks.said_file(workdir, artefact.key))
  logged = _logged(artefact, directory)
  if held or held is None:  # None: a lease, whose holder may have died
    return Stage(name, "running", said, logged)
  if directory is not None:
    return Stage(name, "stopped", said, logged)
  ready = {needed.key for needed in artefact.inputs.values()} <= done
  return Stage(name, "ready" if ready else "waiting")


def _logged(artefact: Artefact, directory: Path | None) -> tuple[int, int]:
  if directory is None or not isinstance(artefact, TrainedModel):
    return 0, 0
  try:
    rows = read_jsonl(directory / "metrics.jsonl")
  except UserError:  # damaged: the stage itself will say so
    return 0, 0
  return (int(rows[-1]["step"]) if rows else 0), artefact.recipe.steps


# --- as text --------------------------------------------------------------------------


def lines(stages: Sequence[Stage]) -> Iterator[str]:
  """The screen: counts, what runs and what has stopped, then names."""
  by_state: dict[str, list[Stage]] = {
    state: [stage for stage in stages if stage.state == state]
    for state in ("done", "running", "stopped", "ready", "waiting")
  }
  counts = ", ".join(f"{len(part)} {state}" for state, part in by_state.items() if part)
  yield f"{len(stages)} stages: {counts}"
  for stage in by_state["running"]:
    yield from ("", f"running  {stage.name}", *_running(stage))
  if by_state["stopped"]:
    yield ""
  for stage in by_state["stopped"]:
    step, steps = stage.logged
    at = f" at step {step} of {steps}" if steps else ""
    yield f"stopped  {stage.name}{at}: the same command goes on from its last save"
  yield ""
  for state in ("done", "ready", "waiting"):
    if by_state[state]:
      yield f"{state:7}  {_names(by_state[state])}"


def _running(stage: Stage) -> Iterator[str]:
  """What a stage that is held does, who says so, and when it did."""
  said, (step, steps) = stage.said, stage.logged
  if said is None:
    at = (
      f"step {step} of {steps} is logged" if steps else "its holder has not spoken yet"
    )
    yield f"         {at}"
    return
  for part in said["line"].split("; "):
    yield f"         {part or 'starting'}"
  old = ""
  if said["age"] > SILENT:
    old = f"; silent for {duration(said['age'])}: its process may be gone"
  where = f"{said['host']}, process {said['process']}"
  yield f"         for {duration(said['seconds'])} on {where}{old}"


def _names(stages: Sequence[Stage]) -> str:
  names = [stage.name for stage in itertools.islice(stages, _LISTED)]
  more = len(stages) - len(names)
  return ", ".join(names) + (f" and {more} more" if more else "")
