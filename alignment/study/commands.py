"""What the command line does with studies: list their stages, and make them."""

from collections.abc import Callable, Sequence
import itertools
from pathlib import Path

from alignment.runtime import hosts
from alignment.study import artefacts, memory
from alignment.study.artefacts import Artefact
from alignment.study.graph import Study
from alignment.study.inspect import INSPECTIONS
from alignment.types import UserError


def dry_run(studies: Sequence[Study], workdir: Path, names: Sequence[str] = ()) -> None:
  """Prints the named stages and what they need (all by default), and which are done.

  Raises:
    UserError: as `run`.
  """
  wanted = _wanted(studies, names)
  for study, targets in zip(studies, wanted, strict=True) if hosts.is_first() else ():
    if len(studies) > 1:
      print(f"world {study.world}")
    for artefact in artefacts.closure(targets):
      state = "done" if artefact.is_done(workdir) else "to do"
      needs = ", ".join(dict.fromkeys(a.name for a in artefact.inputs.values()))
      print(f"{state:5}  {artefact.name}" + (f"  <- {needs}" if needs else ""))


def check_memory(
  studies: Sequence[Study], workdir: Path, names: Sequence[str], workers: int
) -> None:
  """Refuses stages that are still to be made, and cannot fit this machine.

  Of as many worlds as there are workers: the others need as much.

  Raises:
    UserError: as `memory.check` and `run`.
  """
  left = (
    [a for a in artefacts.closure(targets) if not a.is_done(workdir)]
    for targets in _wanted(studies, names)
  )
  worlds = itertools.islice(filter(None, left), workers)
  memory.check([stage for world in worlds for stage in world], workers)


def run(
  studies: Sequence[Study],
  workdir: Path,
  names: Sequence[str] = (),
  check: Callable[[], None] = lambda: None,
) -> None:
  """Makes the named stages and what they need, in every world; all by default.

  Raises:
    UserError: for a name that is neither a stage nor one of `INSPECTIONS`, or if there
      can be no such directory.
  """
  wanted = _wanted(studies, names)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir: {workdir}: {error.strerror}") from None
  artefacts.run([stage for of_world in wanted for stage in of_world], workdir, check)
  for name in names:
    if name in INSPECTIONS:
      INSPECTIONS[name](studies[0], workdir)


def _wanted(studies: Sequence[Study], names: Sequence[str]) -> list[list[Artefact]]:
  """Each world's stages of these names, by default all."""
  worlds = [study.artefacts() for study in studies]
  for name in names:
    if name not in INSPECTIONS and not any(name in world for world in worlds):
      every = dict.fromkeys(n for world in worlds for n in world)
      choices = [*INSPECTIONS, "status", *every]
      raise UserError(f"no stage is called '{name}'; there are {', '.join(choices)}")
  return [[world[name] for name in names or world if name in world] for world in worlds]
