"""What the command line does with a study: run it, report it, or look into it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from alignment import (
  artefacts,
  claims,
  figures,
  hosts,
  recipes,
  report,
  runs,
  sharding,
  stages,
  study,
  vocab,
)
from alignment.data import pairs, tokenizer
from alignment.estimates import NORMAL_QUANTILE
from alignment.evals import policy as policy_eval
from alignment.evals import stages as eval_stages
from alignment.files import read_json, read_npz, write_atomically
from alignment.metrics import progress, read_jsonl
from alignment.models import huggingface
from alignment.setting import Setting
from alignment.types import Batch, UserError

REPORTED_PROMPTS = 8  # whose responses the report shows side by side


def check_keys(config: ConfigDict) -> None:
  """Compares a configuration with `configs/base.py`: sections are assigned whole too.

  Sections that are not locked there hold keys that are not ours.

  Raises:
    UserError: for a key that is not there, and for one that is missing.
  """
  from configs import base  # beside the user's own: no part of this package

  def compare(given: ConfigDict, known: ConfigDict, prefix: str) -> None:
    for key in sorted(set(given) - set(known)):
      raise UserError(
        f"'{prefix}{key}' is no key of the configuration; all are in configs/base.py"
      )
    for key in known:
      name = prefix + key
      if key not in given:
        raise UserError(
          f"the configuration has no '{name}': update what configs/base.py has, "
          "instead of replacing it"
        )
      if isinstance(known[key], ConfigDict) and known[key].is_locked:
        compare(given[key], known[key], name + ".")

  compare(config, base.get_config(), "")


def _studies(config: ConfigDict, workdir: Path) -> list[study.Study]:
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
  return study.build_all(config)


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
    UserError: for a name that is neither a stage nor a look (`LOOKS`), or if there can
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
  studies: Sequence[study.Study], names: Sequence[str]
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
  studies = study.build_all(config)
  names = set()
  for built in studies:
    if config.evaluation.require_good_judge:  # a key of no stage: it may be new
      golden_pm = built.models["golden_pm"].directory(workdir)
      stages.check_judge(built.setting.world, read_json(golden_pm / "model.json"))
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


def _worlds(studies: list[study.Study]) -> str:
  first, last = studies[0].setting.world, studies[-1].setting.world
  return f"world {first}" if first == last else f"worlds {first} to {last}"


def _data_statistics(built: study.Study, workdir: Path) -> list[str]:
  directory = built.models["data"].directory(workdir)
  statistics = read_json(directory / "statistics.json")
  return [f"{split}: {line}" for split, lines in statistics.items() for line in lines]


def _models(built: study.Study, workdir: Path) -> list[dict[str, Any]]:
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


def _curves(built: study.Study, workdir: Path) -> dict[str, list[dict[str, Any]]]:
  found = {}
  for name, artefact in (built.models | built.policies).items():
    rows = read_jsonl(artefact.directory(workdir) / "metrics.jsonl")
    if rows:
      found[name] = rows
  return found


def _samples(
  built: study.Study, workdir: Path, evaluated: list[runs.Run]
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


# --- looks --------------------------------------------------------------------------


def show_batch(built: study.Study, workdir: Path) -> None:
  """Prints what the models will see of a few pairs: tokens, lengths and masks."""
  artefacts.run([built.models["data"]], workdir)
  if not hosts.is_first():
    return
  setting = built.setting
  dataset = pairs.PairDataset.load(built.models["data"].verified(workdir) / "train")
  batch = dataset.batch(np.arange(min(3, len(dataset))), **setting.lengths)
  judge = setting.preference_model(built.setting.config.golden_pm)
  first, second = (
    (batch.responses_BxNxT[:, n], batch.lengths_BxN[:, n]) for n in (0, 1)
  )
  judged, judged_lengths = judge.assemble(
    (batch.prompts_BxS, batch.prompt_lengths_B), first, second
  )
  for i in range(len(batch.ids_B)):
    print(f"--- pair {batch.ids_B[i]}")
    _show(setting, "prompt", batch.prompts_BxS[i], batch.prompt_lengths_B[i])
    for n, name in enumerate(("preferred", "other")):
      _show(setting, name, batch.responses_BxNxT[i, n], batch.lengths_BxN[i, n])
    _show(setting, "judge reads", np.asarray(judged)[i], int(judged_lengths[i]))


def _show(setting: Setting, name: str, tokens: np.ndarray, length: int) -> None:
  """One row: its text, its live tokens, and its mask as runs of 1 and 0."""
  live = [int(t) for t in tokens[:length]]
  text = " ".join(setting.vocabulary.decode([t]) or f"[{t}]" for t in live)
  print(f"{name} ({length} of {len(tokens)} positions)")
  print(f"  text    {text}")
  print(f"  tokens  {' '.join(map(str, live))}")
  print(f"  mask    1 x {length}, 0 x {len(tokens) - length}")


def sample(built: study.Study, workdir: Path) -> None:
  """Prints a model's responses to given prompts, or to the first of the data."""
  c, setting = built.setting.config.sample, built.setting
  artefact = _model(built, workdir, c.model or "golden_policy", "sample.model")
  model = setting.model(built.roles[artefact.key])
  params = setting.load_frozen(artefact.verified(workdir), model, c.step or None)
  for prompt in c.prompts:
    if not isinstance(prompt, str):
      raise UserError(f"sample.prompts has {prompt!r}; its entries are texts")
  prompts = [setting.vocabulary.encode(p) for p in c.prompts]
  if not prompts:
    data = built.models["data"].verified(workdir)
    dataset = pairs.PairDataset.load(data / "train")
    prompts = [list(dataset.prompts[i][:-1]) for i in range(min(4, len(dataset)))]
  S, T = setting.config.prompt_length, setting.config.response_length
  side = setting.config.data.truncate_prompt
  rows = [tokenizer.fit_prompt(p, S, side) for p in prompts]
  batch = Batch(
    prompts_BxS=np.stack([np.pad(r, (0, S - len(r))) for r in rows]).astype(np.int32),
    prompt_lengths_B=np.array([len(r) for r in rows], np.int32),
    responses_BxNxT=np.zeros((len(rows), 1, T), np.int32),
    lengths_BxN=np.zeros((len(rows), 1), np.int32),
    ref_logps_BxN=np.zeros((len(rows), 1), np.float32),
    weights_B=np.ones(len(rows), np.float32),
    ids_B=np.arange(len(rows), dtype=np.int32),
  )
  samples = sharding.fetch(
    policy_eval.sample(
      model,
      params,
      batch,
      jax.random.key(0),
      c.responses,
      T,
      c.temperature,
      decoding=setting.decoding,
    )
  )
  if not hosts.is_first():
    return
  for i, row in enumerate(rows):
    print(f"prompt: {setting.vocabulary.decode(row)}")
    for n in range(c.responses):
      length = int(samples.lengths_BxN[i, n])
      tokens = samples.tokens_BxNxT[i, n, :length]
      cut = "" if bool(samples.ended_BxN[i, n]) else "  [cut off]"
      print(f"  {n + 1}: {setting.vocabulary.decode(tokens)}{cut}")


def export(built: study.Study, workdir: Path) -> None:
  """Writes a trained model as a Hugging Face checkpoint."""
  c, setting = built.setting.config.export, built.setting
  if not c.directory:
    raise UserError("export.directory is not set: where should the checkpoint go?")
  artefact = _model(built, workdir, c.model or "golden_policy", "export.model")
  model = setting.model(built.roles[artefact.key])
  params = setting.load(artefact.verified(workdir), model, c.step or None)
  whole = sharding.fetch(params)
  hosts.on_first(
    lambda: huggingface.write(
      Path(c.directory),
      model.cfg,
      whole,
      c.dtype,
      about={vocab.FINGERPRINT: setting.vocabulary.fingerprint},
    )
  )
  progress(f"{artefact.name}: exported to {c.directory}")


def _model(
  built: study.Study, workdir: Path, name: str, key: str
) -> artefacts.Artefact:
  """The finished model artefact of that name.

  Raises:
    UserError: if there is none, or it is not made yet.
  """
  known = {
    n: a for n, a in (built.models | built.policies).items() if "role" in a.config
  }
  if name not in known:
    raise UserError(f"{key} '{name}' is no model; there are {', '.join(known)}")
  if not known[name].is_done(workdir):
    raise UserError(f"{key} '{name}' is not trained yet: run --stages={name} first")
  return known[name]


LOOKS: dict[str, Callable[[study.Study, Path], None]] = {
  "show_batch": show_batch,
  "sample": sample,
  "export": export,
}
