"""Evaluated runs, as read from their files.

`WORKDIR/runs/<run>/evaluations.jsonl` has one JSON object per evaluated checkpoint,
`outcomes.npz` beside it the outcome of every checkpoint on every prompt (`steps_E`;
`golden_ExP` and, in worlds whose truth is known, `truth_ExP`: 1 won, 0.5 tied, 0 lost
against the golden policy). Everything that is read is checked.

Shape letters: E checkpoints of a run, P prompts (the same ones, in the same order, for
all runs of a task in a world).
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any
import zipfile
import zlib

import numpy as np

from alignment.types import UserError

JUDGES = {"golden PM": "golden_ExP", "truth": "truth_ExP"}  # judge -> its outcomes
WIN_RATE_TOLERANCE = 1e-3  # between the two files of one evaluation

_STRINGS = ("run", "method", "task", "loss")
_INTEGERS = ("world", "seed", "step")
_NUMBERS = ("kl", "win_rate")  # finite
_SETTINGS = ("beta", "learning_rate")  # finite, or null where there is none
_MEASURED = (  # numbers, null or NaN where they are not defined
  "kl_stderr",
  "win_rate_stderr",
  "classification_accuracy",
  "chosen_log_ratio",
  "rejected_log_ratio",
  "truncation_rate",
  "response_length",
  "entropy",
  "decode_vs_score_max_abs_diff",
)
_MEASURED_OF_TRUTH = ("true_utility", "true_win_rate", "judge_accuracy_on_policy")
_OF_A_RUN = ("run", "method", "task", "loss", "beta", "learning_rate", "world", "seed")


@dataclasses.dataclass(frozen=True)
class Run:
  """One policy run and its evaluated checkpoints, ordered by step."""

  name: str
  method: str  # online, offline, shuffled, ..., golden_policy, sft
  task: str
  loss: str
  beta: float | None
  learning_rate: float | None
  world: int
  seed: int
  steps_E: np.ndarray
  kl_E: np.ndarray  # KL(policy, SFT), nats
  wins: dict[str, np.ndarray]  # judge -> ExP outcomes against the golden policy
  records: list[dict[str, Any]]  # the evaluations themselves

  def win_rates_E(self, judge: str) -> np.ndarray:
    return self.wins[judge].mean(axis=1)


def load_runs(workdirs: str | Path | Sequence[str | Path]) -> list[Run]:
  """Reads the evaluated runs of one or more working directories, ordered by name.

  A directory under `runs/` without `evaluations.jsonl` has not been evaluated yet and
  is no run. Raises UserError for a file that is damaged, incomplete, or at odds with
  the file beside it, for one run found twice (it would count twice), and if there is
  no evaluated run at all.
  """
  if isinstance(workdirs, (str, Path)):
    workdirs = [workdirs]
  runs: list[Run] = []
  first_of: dict[tuple, Path] = {}
  prompts_of: dict[tuple, tuple[int, Path]] = {}
  judges_of: dict[str, tuple[list[str], Path]] = {}
  for workdir in map(Path, workdirs):
    found = sorted(workdir.glob("runs/*/evaluations.jsonl"))
    if not found:
      raise UserError(
        f"{workdir / 'runs'}: no evaluated run (runs/<run>/evaluations.jsonl); train "
        "and evaluate first, or name another --workdir"
      )
    for path in found:
      run = _load_run(path)
      identity = (run.task, run.world, run.name)
      if identity in first_of:
        raise UserError(
          f"{path}: run {run.name!r} of world {run.world} is also in "
          f"{first_of[identity]}; name each working directory once"
        )
      first_of[identity] = path
      num_prompts = next(iter(run.wins.values())).shape[1]
      expected, other = prompts_of.setdefault(identity[:2], (num_prompts, path))
      if num_prompts != expected:
        raise UserError(
          f"{path.with_name('outcomes.npz')}: {num_prompts} prompts, but {other.parent}"
          f" of the same world has {expected}; evaluate both on the same prompts"
        )
      judges, other = judges_of.setdefault(run.task, (list(run.wins), path))
      if list(run.wins) != judges:
        raise UserError(
          f"{path.with_name('outcomes.npz')}: judged by {' and '.join(run.wins)}, but "
          f"{other.parent} by {' and '.join(judges)}; evaluate both alike"
        )
      runs.append(run)
  return runs


def _load_run(path: Path) -> Run:
  records = read_evaluations(path)
  records.sort(key=lambda record: record["step"])
  first = records[0]
  for record in records[1:]:
    for key in _OF_A_RUN:
      if record[key] != first[key]:
        raise UserError(
          f"{path}: {key} is {first[key]!r} at step {first['step']} but "
          f"{record[key]!r} at step {record['step']}; one file holds one run"
        )
  steps_E = np.array([record["step"] for record in records])
  if len(set(steps_E.tolist())) < len(steps_E):
    raise UserError(f"{path}: a step is evaluated twice; delete one of the lines")
  wins = _read_outcomes(path.with_name("outcomes.npz"), steps_E)
  for judge, key in (("golden PM", "win_rate"), ("truth", "true_win_rate")):
    if judge not in wins or first.get(key) is None:
      continue
    written_E = np.array([record[key] for record in records], float)
    difference = np.abs(wins[judge].mean(axis=1) - written_E).max()
    if not difference <= WIN_RATE_TOLERANCE:  # NaN too
      raise UserError(
        f"{path}: {key} is not the mean of {JUDGES[judge]} in outcomes.npz; the files "
        "are of different evaluations, evaluate this run again"
      )
  return Run(
    name=first["run"],
    method=first["method"],
    task=first["task"],
    loss=first["loss"],
    beta=first["beta"],
    learning_rate=first["learning_rate"],
    world=first["world"],
    seed=first["seed"],
    steps_E=steps_E,
    kl_E=np.array([record["kl"] for record in records], float),
    wins=wins,
    records=records,
  )


def read_evaluations(path: Path) -> list[dict[str, Any]]:
  """The records of one `evaluations.jsonl`; UserError names file, line and key."""
  try:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8 ({error.reason}); evaluate again") from error
  records = []
  for number, line in enumerate(lines, start=1):
    where = f"{path}:{number}"
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f"{where}: not JSON ({error}); delete the line, or evaluate again"
      ) from error
    _check_record(record, where)
    records.append(record)
  return records


def _check_record(record: Any, where: str) -> None:
  if not isinstance(record, dict):
    raise UserError(f"{where}: not a JSON object; evaluate again")

  def integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

  def number(value: Any) -> bool:
    return integer(value) or isinstance(value, float)

  def finite(value: Any) -> bool:
    return number(value) and math.isfinite(value)

  of_truth = _MEASURED_OF_TRUTH if any(k in record for k in _MEASURED_OF_TRUTH) else ()
  rules: tuple[tuple[Sequence[str], str, Callable[[Any], bool]], ...] = (
    (_STRINGS, "a string", lambda value: isinstance(value, str)),
    (_INTEGERS, "an integer", integer),
    (_NUMBERS, "a finite number", finite),
    (_SETTINGS, "a finite number or null", lambda v: v is None or finite(v)),
    (_MEASURED, "a number or null", lambda value: value is None or number(value)),
    (of_truth, "a number or null", lambda value: value is None or number(value)),
  )
  for keys, kind, is_kind in rules:
    for key in keys:
      if key not in record:
        raise UserError(f"{where}: no {key!r}; evaluate this run again")
      if not is_kind(record[key]):
        raise UserError(f"{where}: {key!r} is {record[key]!r}, expected {kind}")


def _read_outcomes(path: Path, steps_E: np.ndarray) -> dict[str, np.ndarray]:
  """judge -> outcomes_ExP in the order of `steps_E`."""
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {key: file[key] for key in file.files}
  except FileNotFoundError as error:
    raise UserError(f"{path}: missing; evaluate this run again") from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"{path}: damaged ({error}); evaluate this run again") from error
  for key in ("steps_E", "golden_ExP"):
    if key not in arrays:
      raise UserError(f"{path}: no {key!r}; evaluate this run again")
  written_E = arrays["steps_E"].ravel()
  order_E = np.argsort(written_E)
  if not np.array_equal(written_E[order_E], steps_E):
    raise UserError(
      f"{path}: steps {written_E.tolist()}, but evaluations.jsonl has "
      f"{steps_E.tolist()}; evaluate this run again"
    )
  wins = {}
  for judge, key in JUDGES.items():
    if key not in arrays:
      continue
    wins_ExP = arrays[key]
    if wins_ExP.ndim != 2 or len(wins_ExP) != len(steps_E) or wins_ExP.shape[1] < 2:
      raise UserError(
        f"{path}: {key} has shape {wins_ExP.shape}, expected ({len(steps_E)}, at least "
        "2 prompts); evaluate this run again"
      )
    if not np.isin(wins_ExP, (0, 0.5, 1)).all():
      raise UserError(f"{path}: {key} has values other than 0, 0.5 and 1")
    wins[judge] = wins_ExP[order_E].astype(np.float64)
  return wins
