"""Puts a finished study where people and figures look, so that files say all of it.

What is published needs neither the configuration nor the artefacts any more:

  runs/<run>/            evaluations.jsonl, outcomes.npz, metrics.jsonl
  classification/        world<w>.jsonl
  training/<name>.jsonl  training curves of the models of the first world
  study.json             the task, worlds, runs, figures, models and samples; the
                         configuration, commit and lock file they are of

`alignment.analysis` draws figures, claims and the report from them.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from alignment.analysis import runs as runs_lib
from alignment.analysis.results import redraw
from alignment.data import pairs, translation
from alignment.runtime import environment, hosts, tracking
from alignment.runtime.files import read_json, read_npz, write_atomically, write_json
from alignment.study import recipes
from alignment.study.artefacts import Artefact, closure
from alignment.study.graph import Study
from alignment.study.stages.evaluations import Contested
from alignment.study.stages.host_judges import FunctionJudge
from alignment.study.stages.models import Model

SAMPLED_PROMPTS = 64  # whose responses are published side by side


@hosts.only_first
def finish(config: ConfigDict, studies: Sequence[Study], workdir: Path) -> None:
  """After all stages: publishes what they made, draws figures, writes the report.

  Raises:
    UserError: at the end, for figures whose runs the study does not have.
  """
  publish(config, studies, workdir)
  redraw(workdir)
  tracking.send_results(studies[0].setting.tracking(""), workdir)


def publish(config: ConfigDict, studies: Sequence[Study], workdir: Path) -> None:
  """Writes all that figures, claims and the report are made of.

  Raises:
    UserError: for a damaged artefact, or a golden preference model that is no judge.
  """
  runs = []
  for study in studies:
    if config.evaluation.require_good_judge:  # a key of no stage: it may be new
      golden_pm = study.golden_pm()
      golden_pm.check_usable(golden_pm.directory(workdir))
    for artefact in closure(study.artefacts().values()):
      artefact.verified(workdir)
    for name, evaluation in study.evaluations().items():
      _publish_run(study, name, evaluation, workdir)
      runs.append(name)
    if (classification := study.classification()) is not None:
      text = (classification.directory(workdir) / "classification.jsonl").read_bytes()
      write_atomically(workdir / "classification" / f"world{study.world}.jsonl", text)
  first = studies[0]  # whose data, curves and samples the report shows
  note, rows = _samples(first, workdir, runs)
  content = {
    **environment.code(),
    "config": recipes.plain(config),
    "task": config.task,
    "worlds": [study.world for study in studies],
    "figures": list(config.figures),
    "notes": list(config.notes),
    "length_control": config.evaluation.length_control,
    "runs": runs,
    "classified_worlds": [s.world for s in studies if s.classification()],
    "data": _data_statistics(studies, workdir),
    "models": [row for study in studies for row in _models(study, workdir)],
    "training": _publish_curves(first, workdir),
    "samples": {"note": note, "rows": rows},
  }
  write_json(workdir / "study.json", content)


def _publish_run(study: Study, name: str, evaluation: Contested, workdir: Path) -> None:
  """An evaluation, and the training metrics of its policy, if it has any."""
  target, source = workdir / "runs" / name, evaluation.directory(workdir)
  run = study.runs().get(name)
  default = run is not None and recipes.is_default(study.config, run.recipe)
  lines = [
    json.dumps(json.loads(line) | {"default": default}) + "\n"
    for line in (source / "evaluations.jsonl").read_text().splitlines()
  ]
  write_atomically(target / "evaluations.jsonl", "".join(lines).encode())
  files = [source / "outcomes.npz"]
  if name in study.policies():
    files.append(study.policies()[name].directory(workdir) / "metrics.jsonl")
  for file in files:
    write_atomically(target / file.name, file.read_bytes())


def _data_statistics(studies: Sequence[Study], workdir: Path) -> list[str]:
  """Of the first world; of the others what its language can be won with."""
  first, *others = studies
  stages: dict[str, Artefact] = {"": first.data()}
  if first.config.sampled.data:
    stages["sampled, "] = first.sampled_data()
  return [
    f"{name}{split}: {line}"
    for name, stage in stages.items()
    for split, lines in _statistics(stage, workdir).items()
    for line in lines
  ] + [
    f"world {study.world}, language: {line}"
    for study in others
    for line in _statistics(study.data(), workdir).get("language", ())
  ]


def _statistics(data: Artefact, workdir: Path) -> dict[str, list[str]]:
  return read_json(data.directory(workdir) / "statistics.json")


def _models(study: Study, workdir: Path) -> list[dict[str, Any]]:
  """One row per trained model of a world."""
  world = f"world{study.world}"
  return [
    {"name": name if name.startswith(world) else f"{world}_{name}"}
    | describe_model(artefact, workdir)
    for name, artefact in (study.models() | study.policies()).items()
    if isinstance(artefact, Model | FunctionJudge)
  ]


def describe_model(artefact: Model | FunctionJudge, workdir: Path) -> dict[str, Any]:
  """What the report says of a finished model, or of a rule."""
  report = read_json(artefact.directory(workdir) / "model.json")
  accuracies = {key: report.get(key) for key in _ACCURACIES}
  accuracies["audit"] = _audit(report) if "by_margin" in report else None
  if isinstance(artefact, FunctionJudge):
    rule = artefact.rule.name
    return {"parameters": None, "init": rule, "steps": None} | accuracies
  init = artefact.start.init
  return {
    "parameters": artefact.setting.parameters.count(artefact.model()),
    "init": init if init in ("scratch", "sft") else "checkpoint",
    "steps": report["step"],
  } | accuracies


def _audit(report: Mapping[str, Any]) -> dict[str, Any]:
  """Of a judge."""
  return {key: report[key] for key in ("orders_agree", *_OF_LENGTH)} | {
    "accuracy_by_margin": [each["accuracy"] for each in report["by_margin"]]
  }


_OF_LENGTH = ("prefers_longer", "labels_prefer_longer")
_ACCURACIES = (
  "train_accuracy",
  "validation_accuracy",
  "validation_within",
  "truth_accuracy",
  "truth_within",
)


def _publish_curves(study: Study, workdir: Path) -> list[str]:
  """Training metrics of all models of a world; the names they are published under."""
  names = []
  for name, artefact in (study.models() | study.policies()).items():
    metrics = artefact.directory(workdir) / "metrics.jsonl"
    if metrics.exists():
      write_atomically(workdir / "training" / f"{name}.jsonl", metrics.read_bytes())
      names.append(name)
  return names


def _samples(
  study: Study, workdir: Path, runs: Sequence[str]
) -> tuple[str, list[dict[str, Any]]]:
  """Responses to the same prompts: SFT, each method at its best, golden policy.

  With a sentence that says which checkpoints these are.
  """
  columns = {"SFT": _responses(study.sft_samples().directory(workdir))}
  best = []
  for series in ("online", "offline"):
    candidates = [
      (rate, run.name, int(step))
      for run in runs_lib.load_runs(workdir, runs)
      if run.series == series and run.world == study.world
      for rate, step in zip(run.win_rates_E("golden PM"), run.steps_E, strict=True)
    ]
    if candidates:
      rate, name, step = max(candidates)
      directory = study.evaluations()[name].directory(workdir)
      columns[series] = read_npz(directory / f"step-{step}.npz")
      best.append(f"{name} at step {step} (win rate {rate:.2f})")
  note = f"Data, training curves and samples are of world {study.world}"
  if best:
    note += f", samples of the checkpoints that win most often: {', '.join(best)}"
  columns["golden policy"] = _responses(study.golden_samples().directory(workdir))
  dataset = pairs.PairDataset.load(study.golden_data().directory(workdir) / "train")
  vocabulary = study.setting.vocabulary
  rows = columns["SFT"]["rows"][:SAMPLED_PROMPTS]
  return f"{note}.", [
    {
      "prompt": translation.prompt_text(vocabulary, dataset.prompts[int(row)]),
      "responses": {
        name: vocabulary.decode(arrays["tokens"][i][: arrays["lengths"][i]])
        for name, arrays in columns.items()
      },
    }
    for i, row in enumerate(rows)
  ]


def _responses(directory: Path) -> Mapping[str, np.ndarray]:
  return read_npz(directory / "responses.npz")
