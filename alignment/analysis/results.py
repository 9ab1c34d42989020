"""The results of a study, made of what it has published: figures, claims, report."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

from alignment.analysis import figures, length_control, published
from alignment.analysis.best import best_checkpoints
from alignment.analysis.claims import claims, format_claims, table
from alignment.analysis.figures import Drawn
from alignment.analysis.published import Published
from alignment.analysis.records import read_metrics
from alignment.analysis.report import write_report
from alignment.analysis.runs import (
  Classification,
  Run,
  load_classification,
  load_runs,
)
from alignment.analysis.selection import main_loss
from alignment.runtime.files import write_atomically
from alignment.types import UserError


def redraw(workdir: Path) -> None:
  """Writes `figures/`, `claims.csv`, `report.html` and, where lengths are recorded,
  `length_control.csv`; prints claims, the best checkpoints and what it wrote.

  From the files of the working directory alone: `study.json`, and those it names.

  Raises:
    UserError: for a file that is missing or damaged, before anything is written; at the
      end for figures whose runs the study does not have.
  """
  study = published.load(workdir)
  plain_runs = _runs(workdir, study)
  runs = length_control.as_judge(plain_runs) if study.length_control else plain_runs
  guesses = length_control.guesses(plain_runs) if study.length_control else ""
  classified = _classification(workdir, study)
  curves = _curves(workdir, study)
  drawn, missing = _draw(workdir, study, runs, classified)
  refused = study.refused
  measured = claims(runs, classification=classified, refused=refused)
  csv_path, page_path = workdir / "claims.csv", workdir / "report.html"
  write_report(
    page_path,
    dataclasses.replace(study, notes=[*study.notes, *([guesses] if guesses else [])]),
    loss=main_loss(runs),
    curves=curves,
    drawings={name: figure.svg for name, figure in drawn.items()},
    claims=measured,
  )
  write_atomically(csv_path, figures.csv_bytes(table(measured)))
  length_rows = length_control.table(plain_runs)
  length_path = workdir / "length_control.csv"
  if length_rows:
    write_atomically(length_path, figures.csv_bytes(length_rows))
  print(format_claims(measured))
  for world, reason in refused.items():
    print(f"world {world} counts for no claim: {reason}\n")
  if guesses:
    print(f"{guesses}\n")
  print(best_checkpoints(runs))
  for path in (
    *(path for figure in drawn.values() for path in (figure.png, figure.csv)),
    csv_path,
    *([length_path] if length_rows else []),
    page_path,
  ):
    print(path)
  if missing:
    raise UserError("; ".join(missing))


def _runs(workdir: Path, study: Published) -> list[Run]:
  """This study's runs; those of earlier configurations in the directory are not."""
  for name in study.runs:
    _check_is_there(workdir / "runs" / name / "evaluations.jsonl")
  return load_runs(workdir, study.runs)


def _classification(workdir: Path, study: Published) -> list[Classification]:
  for world in study.classified_worlds:
    _check_is_there(workdir / "classification" / f"world{world}.jsonl")
  return load_classification(workdir, study.classified_worlds)


def _curves(workdir: Path, study: Published) -> dict[str, list[dict[str, Any]]]:
  """Model -> its training statistics, a dict with `step` per row."""
  paths = {name: workdir / "training" / f"{name}.jsonl" for name in study.training}
  for path in paths.values():
    _check_is_there(path)
  return {name: read_metrics(path) for name, path in paths.items()}


def _check_is_there(path: Path) -> None:
  if not path.exists():
    raise UserError(
      f"{path}: missing, though {published.FILE} names it; run the study's command "
      "again, which writes it"
    )


def _draw(
  workdir: Path,
  study: Published,
  runs: Sequence[Run],
  classified: Sequence[Classification],
) -> tuple[dict[str, Drawn], list[str]]:
  """Figure -> its drawing; and why others could not be drawn."""
  drawn, missing = {}, []
  for name in study.figures:
    try:
      drawn[name] = figures.draw(name, runs, workdir / "figures", classified)
    except UserError as error:
      missing.append(str(error))
  return drawn, missing
