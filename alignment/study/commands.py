"""What the command line does with a study: check it, list it, run it, report it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from alignment.analysis import claims, figures, report, runs
from alignment.analysis.intervals import NORMAL_QUANTILE
from alignment.data import pairs
from alignment.runtime import hosts
from alignment.runtime.files import read_json, read_npz, write_atomically
from alignment.runtime.metrics import read_jsonl
from alignment.study import artefacts, graph, recipes
from alignment.study.inspect import LOOKS
from alignment.study.stages import evaluate as eval_stages
from alignment.study.stages import train
from alignment.types import UserError

REPORTED_PROMPTS = 8  # whose responses the report shows side by side


def _studies(config: ConfigDict, workdir: Path) -> list[graph.Study]:
  """The graphs of all worlds, if what is made of them can be kept and drawn.

  Raises:
    UserError: for a figure that does not exist, and for a working directory that has
      the results of another task: theirs have the same names.
  """
  for name in config.figures:
    if name not in figures.FIGURES:
      known = ", ".join(figures.FIGURES)
      raise UserError(f"figures: no figure '{name}'; there are {known}")
  for path in workdir.glob("runs/*/evaluations.jsonl"):
    try:
      task = json.loads(path.read_bytes().splitlines()[0])["task"]
    except (ValueError, LookupError, TypeError):  # damaged: it will be replaced
      continue
    if task != config.task:
      raise UserError(
        f"{workdir}: has the results of task '{task}'; give '{config.task}' a "
        f"--workdir of its own (a link there to {workdir / 'artefacts'} shares "
        "finished stages)"
      )
  return graph.build_all(config)


def dry_run(config: ConfigDict, workdir: Path, names: Sequence[str] = ()) -> None:
  """Prints the named stages and what they need (all by default), and which are done.

  Raises:
    UserError: as `run`.
  """
  studies = _studies(config, workdir)
  wanted = _wanted(studies, names)
  for built, stages_ in zip(studies, wanted, strict=True) if hosts.is_first() else ():
    if config.worlds > 1:
      print(f"world {built.setting.world}")
    for artefact in artefacts.closure(stages_):
      state = "done" if artefact.is_done(workdir) else "to do"
      needs = ", ".join(dict.fromkeys(a.name for a in artefact.inputs.values()))
      print(f"{state:5}  {artefact.name}" + (f"  <- {needs}" if needs else ""))


def run(
  config: ConfigDict, workdir: Path, names: list[str], check: Callable[[], None]
) -> None:
  """Makes the named stages and what they need, in every world; all by default.

  Raises:
    UserError: for a name that is neither a stage nor one of `LOOKS`, or if there can
      be no such directory.
  """
  studies = _studies(config, workdir)
  wanted = _wanted(studies, names)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir: {workdir}: {error.strerror}") from None
  artefacts.run([stage for of_world in wanted for stage in of_world], workdir, check)
  for name in names:
    if name in LOOKS:
      LOOKS[name](studies[0], workdir)


def _wanted(
  studies: Sequence[graph.Study], names: Sequence[str]
) -> list[list[artefacts.Artefact]]:
  """Each world's stages of these names, by default all."""
  known = [built.stages() for built in studies]
  for name in names:
    if name not in LOOKS and not any(name in of_world for of_world in known):
      all_names = dict.fromkeys(n for of_world in known for n in of_world)
      raise UserError(
        f"no stage is called '{name}'; there are {', '.join([*LOOKS, *all_names])}"
      )
  return [
    [of_world[name] for name in names or of_world if name in of_world]
    for of_world in known
  ]


@hosts.only_first
def finish(config: ConfigDict, workdir: Path) -> None:
  """After all stages: publishes evaluations, draws figures, writes the report.

  Raises:
    UserError: at the end, for figures whose runs the study does not have.
  """
  studies = graph.build_all(config)
  names = set()
  for built in studies:
    if config.evaluation.require_good_judge:  # a key of no stage: it may be new
      golden_pm = built.models["golden_pm"].directory(workdir)
      train.check_judge(built.setting.world, read_json(golden_pm / "model.json"))
    for artefact in artefacts.closure(built.stages().values()):
      artefact.verified(workdir)
    for name, artefact in built.evaluations.items():
      trained = built.policies.get(name)
      eval_stages.publish(
        workdir,
        name,
        artefact.directory(workdir),
        trained.directory(workdir) if trained else None,
      )
      names.add(name)
    if built.classification is not None:
      found = built.classification.directory(workdir) / "classification.jsonl"
      target = workdir / "classification" / f"world{built.setting.world}.jsonl"
      write_atomically(target, found.read_bytes())
  defaults = {
    f"world{built.setting.world}_{entry}"
    for built in studies
    for entry, (_, recipe) in recipes.runs(config).items()
    if recipes.is_default(config, recipe)
  }
  # Earlier configurations' runs in this directory are not this study's.
  evaluated = [
    dataclasses.replace(run, default=run.name in defaults)
    for run in runs.load_runs(workdir, names)
  ]
  classified = [
    row
    for row in runs.load_classification(workdir)
    if any(
      built.classification and built.setting.world == row.world for built in studies
    )
  ]
  drawn, missing = {}, []
  for name in config.figures:
    try:
      drawn[name] = figures.draw(name, evaluated, workdir / "figures", classified)
    except UserError as error:
      missing.append(str(error))
  measured = claims.claims(evaluated, classification=classified)
  first = studies[0]  # whose data, curves and samples the report shows
  samples, samples_note = _samples(first, workdir, evaluated)
  page = workdir / "report.html"
  report.write_report(
    page,
    title=f"Online and offline alignment: {config.task}, {_worlds(studies)}",
    data_statistics=_data_statistics(first, workdir),
    models=[row for built in studies for row in _models(built, workdir)],
    curves=_curves(first, workdir),
    samples=samples,
    figures=[(png, figures.FIGURES[name]) for name, (png, _) in drawn.items()],
    claims=measured,
    notes=[*config.notes, samples_note],
  )
  table = workdir / "claims.csv"
  write_atomically(table, figures.csv_bytes(claims.table(measured)))
  print(claims.format_claims(measured))
  for path in (*(path for both in drawn.values() for path in both), table, page):
    print(path)
  if missing:
    raise UserError("; ".join(missing))


def _worlds(studies: list[graph.Study]) -> str:
  first, last = studies[0].setting.world, studies[-1].setting.world
  return f"world {first}" if first == last else f"worlds {first} to {last}"


def _data_statistics(built: graph.Study, workdir: Path) -> list[str]:
  directory = built.models["data"].directory(workdir)
  statistics = read_json(directory / "statistics.json")
  return [f"{split}: {line}" for split, lines in statistics.items() for line in lines]


def _models(built: graph.Study, workdir: Path) -> list[dict[str, Any]]:
  """One row per trained model of the pipeline."""
  rows, world = [], f"world{built.setting.world}"
  for name, artefact in (built.models | built.policies).items():
    path = artefact.directory(workdir) / "model.json"
    if not path.exists():
      continue
    role = built.roles[artefact.key]
    found = read_json(path)
    held_out = _accuracy(found, "validation")
    rows.append(
      {
        "role": name if name.startswith(world) else f"{world}_{name}",
        "parameters": built.setting.parameter_count(built.setting.model(role)),
        "init": role["init"] if role["init"] in ("scratch", "sft") else "checkpoint",
        "steps": found["step"],
        "train_accuracy": found.get("train_accuracy"),
        "validation_accuracy": held_out,
        # The proxy's labels are the golden preference model's.
        "golden_accuracy": held_out if name == "proxy_pm" else None,
        "truth_accuracy": _accuracy(found, "truth"),
      }
    )
  return rows


def _accuracy(report: Mapping[str, Any], of: str) -> str | None:
  """An accuracy with its 95 % margin, over held-out prompts; None if there is none."""
  if f"{of}_accuracy" not in report:
    return None
  margin = NORMAL_QUANTILE * report[f"{of}_stderr"]
  return f"{report[f'{of}_accuracy']:.3f} ± {margin:.3f}"


def _curves(built: graph.Study, workdir: Path) -> dict[str, list[dict[str, Any]]]:
  found = {}
  for name, artefact in (built.models | built.policies).items():
    rows = read_jsonl(artefact.directory(workdir) / "metrics.jsonl")
    if rows:
      found[name] = rows
  return found


def _samples(
  built: graph.Study, workdir: Path, evaluated: list[runs.Run]
) -> tuple[list[dict[str, Any]], str]:
  """Responses to the same prompts: SFT, each method at its best, golden policy.

  Also a sentence that says which checkpoints these are.
  """
  columns: dict[str, Mapping[str, np.ndarray]] = {
    "SFT": read_npz(built.models["sft_samples"].directory(workdir) / "responses.npz")
  }
  shown = []
  for method in ("online", "offline"):
    candidates = [
      (rate, r.name, int(step))
      for r in evaluated
      if r.method == method and r.world == built.setting.world
      for rate, step in zip(r.win_rates_E("golden PM"), r.steps_E, strict=True)
    ]
    if candidates:
      rate, name, step = max(candidates)
      directory = built.evaluations[name].directory(workdir)
      columns[method] = read_npz(directory / f"step-{step}.npz")
      shown.append(f"{name} at step {step} (win rate {rate:.2f})")
  note = (
    f"Data, training curves and samples are of world {built.setting.world}, samples of "
    f"the checkpoints that win most often: {', '.join(shown)}."
  )
  golden = built.models["golden_samples"].directory(workdir)
  columns["golden policy"] = read_npz(golden / "responses.npz")
  rows = columns["SFT"]["rows"]
  data = built.models["golden_data"].directory(workdir)
  dataset = pairs.PairDataset.load(data / "train")
  decode = built.setting.vocabulary.decode
  samples = [
    {
      "prompt": decode(dataset.prompts[int(rows[i])]),
      "responses": {
        name: decode(arrays["tokens"][i][: arrays["lengths"][i]])
        for name, arrays in columns.items()
      },
    }
    for i in range(min(REPORTED_PROMPTS, len(rows)))
  ]
  return samples, note
