"""Evaluated runs, as read from their files; everything that is read is checked.

`WORKDIR/runs/<run>/evaluations.jsonl` has one JSON object per evaluated checkpoint:

  run, task, loss: strings
  series: string, what a figure draws as one line: the entry of `config.runs` (online,
    offline, shuffled, replay, semi_online, hybrid, a resampled data set's name), sft,
    best_of_n or golden_policy
  method: online or offline, how the policy was trained; null for sft and best_of_n
  default: boolean, whether the hyper-parameters are the configuration's own
  size, parameters: of the policy, its name and an integer
  dataset: string, what offline learns from: golden, stream or the name of a
    resampled data set; null for all others
  world, seed, step: integers; the step of best_of_n is n
  beta, learning_rate: finite numbers; null where there are none
  replay_window: integer, 0 replays the stream as recorded, k shuffles it within windows
    of k batches, -1 uniformly; null where nothing is replayed
  refresh_every: integer, steps between updates of the policy that samples: 1 online, 0
    never; null offline
  on_policy_fraction: number, 1 online, 0 offline, hybrid in between; null untrained
  kl, win_rate: finite numbers
  kl_stderr, win_rate_stderr, golden_score, golden_score_stderr,
  classification_accuracy, chosen_log_ratio, rejected_log_ratio,
  self_classification_accuracy, truncation_rate, response_length, entropy,
  decode_vs_score_max_abs_diff: numbers; null where they make no sense
  true_utility, true_win_rate, judge_accuracy_on_policy: numbers or null; all absent
    where the truth is not known
  proxy_score, proxy_score_stderr, kl_k1_stderr, kl_k3_stderr: numbers or null; absent
    in old files

All other keys are required; unknown ones are kept. Beside it lie `outcomes.npz`,
the outcome of every checkpoint on every prompt (`steps_E`; `golden_ExP` and, in worlds
whose truth is known, `truth_ExP`: 1 won, 0.5 tied, 0 lost against the golden policy;
`length_gaps_ExP`: by how many tokens its response was longer, absent in old files),
and, where something was trained, `metrics.jsonl`: the run's training statistics.

`WORKDIR/classification/world<w>.jsonl` has one object per classifier and step of the
recorded online stream: the keys of `Classification`.

Shape letters: E checkpoints of a run, P prompts (the same ones, in the same order, for
all runs of a task in a world).
"""

from collections.abc import Collection, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any
import zipfile
import zlib

import numpy as np

from alignment.analysis.records import (
  BOOLEAN,
  FINITE,
  INTEGER,
  MEASURED,
  STRING,
  Kind,
  check,
  one_of,
  or_null,
  read_lines,
  read_metrics,
)
from alignment.types import UserError

JUDGES = {"golden PM": "golden_ExP", "truth": "truth_ExP"}  # judge -> its outcomes
WIN_RATE_TOLERANCE = 1e-3  # between the two files of one evaluation

_OF_A_RUN: dict[str, Kind] = {  # the same at all its checkpoints
  **dict.fromkeys(("run", "series", "task", "loss", "size"), STRING),
  "method": or_null(one_of(("online", "offline"))),
  "default": BOOLEAN,
  **dict.fromkeys(("world", "seed", "parameters"), INTEGER),
  **dict.fromkeys(("beta", "learning_rate"), or_null(FINITE)),
  "dataset": or_null(STRING),
  **dict.fromkeys(("replay_window", "refresh_every"), or_null(INTEGER)),
  "on_policy_fraction": or_null(FINITE),
}
_OF_A_CHECKPOINT: dict[str, Kind] = {
  "step": INTEGER,
  **dict.fromkeys(("kl", "win_rate"), FINITE),
  **dict.fromkeys(
    (
      "kl_stderr",
      "win_rate_stderr",
      "golden_score",
      "golden_score_stderr",
      "classification_accuracy",
      "chosen_log_ratio",
      "rejected_log_ratio",
      "self_classification_accuracy",
      "truncation_rate",
      "response_length",
      "entropy",
      "decode_vs_score_max_abs_diff",
    ),
    MEASURED,
  ),
}
_OF_TRUTH = dict.fromkeys(
  ("true_utility", "true_win_rate", "judge_accuracy_on_policy"), MEASURED
)
_MAY_BE_ABSENT = dict.fromkeys(
  ("proxy_score", "proxy_score_stderr", "kl_k1_stderr", "kl_k3_stderr"), MEASURED
)
_OF_A_CLASSIFIER = {
  **dict.fromkeys(("task", "classifier"), STRING),
  **dict.fromkeys(("world", "step", "pairs"), INTEGER),
  **dict.fromkeys(("accuracy", "stderr"), FINITE),
}
KEYS = (_OF_A_RUN | _OF_A_CHECKPOINT | _OF_TRUTH | _MAY_BE_ABSENT).keys()


@dataclasses.dataclass(frozen=True, eq=False)  # two runs are never the same
class Run:
  """One policy run and its evaluated checkpoints, ordered by step.

  Fields are explained in the module's docstring.
  """

  name: str
  series: str
  method: str | None
  default: bool
  task: str
  loss: str
  beta: float | None
  learning_rate: float | None
  world: int
  seed: int
  size: str
  parameters: int
  dataset: str | None
  replay_window: int | None
  refresh_every: int | None
  on_policy_fraction: float | None
  steps_E: np.ndarray
  kl_E: np.ndarray  # KL(policy, SFT), nats
  wins: dict[str, np.ndarray]  # judge -> ExP outcomes against the golden policy
  records: list[dict[str, Any]]  # the evaluations themselves
  metrics: list[dict[str, Any]]  # training statistics by step; [] where there are none
  length_gaps_ExP: np.ndarray | None = None  # tokens more than the golden policy's

  def win_rates_E(self, judge: str) -> np.ndarray:
    return self.wins[judge].mean(axis=1)

  def measured_E(self, key: str) -> np.ndarray:
    """A measured key of the evaluations, NaN where it is not defined, or absent."""
    values = [record.get(key) for record in self.records]
    return np.array([math.nan if value is None else value for value in values], float)


@dataclasses.dataclass(frozen=True)
class Classification:
  """One classifier on the recorded online stream near one of its steps."""

  task: str
  world: int
  classifier: str  # proxy_pm, online or offline
  step: int
  accuracy: float
  stderr: float
  pairs: int


def load_runs(
  workdirs: str | Path | Sequence[str | Path], names: Collection[str] | None = None
) -> list[Run]:
  """Reads the evaluated runs of one or more working directories, ordered by name.

  Of `names` only, if they are given: others are not looked at. A directory under
  `runs/` without `evaluations.jsonl` has not been evaluated yet and is no run. Raises
  UserError for a file that is damaged, incomplete, or at odds with the file beside it,
  for one run found twice (it would count twice), and if there is no evaluated run.
  """
  if isinstance(workdirs, (str, Path)):
    workdirs = [workdirs]
  paths = [path for workdir in workdirs for path in _evaluated(Path(workdir), names)]
  runs = [_load_run(path) for path in paths]
  _check_together(runs, paths)
  return runs


def _evaluated(workdir: Path, names: Collection[str] | None) -> list[Path]:
  paths = [
    path
    for path in sorted(workdir.glob("runs/*/evaluations.jsonl"))
    if names is None or path.parent.name in names
  ]
  if not paths:
    raise UserError(
      f"{workdir / 'runs'}: no evaluated run (runs/<run>/evaluations.jsonl); train "
      "and evaluate first, or name another --workdir"
    )
  return paths


def _check_together(runs: Sequence[Run], paths: Sequence[Path]) -> None:
  """Raises UserError if runs, from files at `paths`, cannot be compared."""
  first_of: dict[tuple, Path] = {}
  prompts_of: dict[tuple, tuple[int, Path]] = {}
  judges_of: dict[str, tuple[list[str], Path]] = {}
  for run, path in zip(runs, paths, strict=True):
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
  wins, length_gaps_ExP = _read_outcomes(path.with_name("outcomes.npz"), steps_E)
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
  identity = {key: first[key] for key in _OF_A_RUN if key != "run"}
  return Run(
    name=first["run"],
    **identity,
    steps_E=steps_E,
    kl_E=np.array([record["kl"] for record in records], float),
    wins=wins,
    records=records,
    metrics=read_metrics(path.with_name("metrics.jsonl")),
    length_gaps_ExP=length_gaps_ExP,
  )


def load_classification(
  workdirs: str | Path | Sequence[str | Path], worlds: Collection[int] | None = None
) -> list[Classification]:
  """Reads `classification/world<w>.jsonl` of working directories; [] if there is none.

  Of `worlds` only, if they are given: files of others are not looked at. Raises
  UserError, naming file, line and key, for whatever is damaged, and for a classifier
  that is there twice at one step.
  """
  if isinstance(workdirs, (str, Path)):
    workdirs = [workdirs]
  rows: dict[tuple, Classification] = {}
  for workdir in map(Path, workdirs):
    for path in _classified(workdir, worlds):
      for where, record in read_lines(path):
        check(record, _OF_A_CLASSIFIER, where)
        row = Classification(**{key: record[key] for key in _OF_A_CLASSIFIER})
        key = (row.task, row.world, row.classifier, row.step)
        if key in rows:
          raise UserError(
            f"{where}: {row.classifier} at step {row.step} of world {row.world} is "
            "there twice; delete one of the lines"
          )
        rows[key] = row
  return [rows[key] for key in sorted(rows)]


def _classified(workdir: Path, worlds: Collection[int] | None) -> list[Path]:
  paths = sorted(workdir.glob("classification/world*.jsonl"))
  names = None if worlds is None else {f"world{world}" for world in worlds}
  return [path for path in paths if names is None or path.stem in names]


def read_evaluations(path: Path) -> list[dict[str, Any]]:
  """The records of one `evaluations.jsonl`; UserError names file, line and key."""
  records = []
  for where, record in read_lines(path):
    of_truth = _OF_TRUTH if any(key in record for key in _OF_TRUTH) else {}
    newer = {key: kind for key, kind in _MAY_BE_ABSENT.items() if key in record}
    check(record, _OF_A_RUN | _OF_A_CHECKPOINT | of_truth | newer, where)
    records.append(record)
  if not records:
    raise UserError(f"{path}: empty; evaluate again")
  return records


def _read_outcomes(
  path: Path, steps_E: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
  """judge -> outcomes_ExP in the order of `steps_E`, and differences of lengths."""
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
    if key not in arrays:  # whose truth is not known
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
  gaps_ExP = arrays.get("length_gaps_ExP")
  if gaps_ExP is None:
    return wins, None
  if gaps_ExP.shape != wins["golden PM"].shape or not np.isfinite(gaps_ExP).all():
    raise UserError(f"{path}: length_gaps_ExP is damaged; evaluate this run again")
  return wins, gaps_ExP[order_E].astype(np.float64)
