"""What the command line does with a study: run it, report it, or look into it."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from alignment import artefacts, stages, study
from alignment.metrics import progress
from alignment.types import UserError


def dry_run(config: ConfigDict, workdir: Path) -> None:
  """Prints every stage, what it depends on, and whether it is done."""
  built = study.build(config)
  for artefact in artefacts.closure(built.stages().values()):
    state = "done" if artefact.is_done(workdir) else "to do"
    needs = ", ".join(a.name for a in artefact.inputs.values())
    print(f"{state:6} {artefact.name}  [{artefact.key}]" + (f"  needs {needs}" if needs else ""))


def run(
  config: ConfigDict, workdir: Path, names: list[str], check: Callable[[], None]
) -> None:
  """Makes the named stages and what they need; all of them by default."""
  built = study.build(config)
  known = built.stages()
  for name in names:
    if name not in known:
      raise UserError(f"no stage is called '{name}': " + ", ".join(known))
  artefacts.run([known[n] for n in names or known], workdir, check)


def finish(config: ConfigDict, workdir: Path, names: list[str]) -> None:
  """After all stages: publishes evaluations, draws figures, writes the report."""
  if names:
    return
  built = study.build(config)
  for name, artefact in built.evaluations.items():
    stages.publish(workdir, name, artefact.directory(workdir))
  progress(f"evaluations: {workdir}/runs")
