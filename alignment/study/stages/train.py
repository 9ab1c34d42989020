"""What the stages that make data and models do: each fills an artefact's directory.

`study.py` says which stages there are and what feeds what; nothing here knows that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
import itertools
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from alignment.core import evaluation as policy_eval
from alignment.core import optim, rollout, train_step
from alignment.core.loop import train
from alignment.data import pairs, readers, sources, stream, tokenizer
from alignment.data.examples import Reading
from alignment.runtime import checkpoint as checkpoint_lib
from alignment.runtime import hosts, sharding
from alignment.runtime.files import read_json, write_json
from alignment.runtime.metrics import progress
from alignment.study import recipes
from alignment.study.setting import Inputs, Setting, seed_of
from alignment.types import Array, Batch, Params, UserError

MIN_VALIDATION_PROMPTS = 4


@hosts.only_first
def make_data(
  setting: Setting, chosen: Mapping[str, Any], directory: Path, inputs: Inputs
) -> None:
  """Pairs as `chosen` (config.data) says, tokenised: `train/` and `validation/`."""
  del inputs
  c, reading = ConfigDict(chosen), Reading()
  if c.format == "toy":
    assert setting.language is not None
    examples = setting.language.examples(c.num_pairs)
  else:
    examples = readers.FORMATS[c.format](c, reading)
  collected = tokenizer.Tokenizer(
    setting.vocabulary,
    reading,
    **setting.lengths,
    truncate_prompt=c.truncate_prompt,
    long_response=c.long_response,
  )
  for example in itertools.islice(examples, c.num_pairs or None):
    collected.add(example)
  splits = collected.split(c.validation_fraction)
  (train, _), (validation, statistics) = splits["train"], splits["validation"]
  if statistics.prompts < MIN_VALIDATION_PROMPTS:
    raise UserError(
      f"data: {len(validation)} validation pairs beside {len(train)}, but preference "
      f"models need {MIN_VALIDATION_PROMPTS} different prompts there, half to choose a "
      "step and half to report: use more pairs, or raise data.validation_fraction (it "
      f"is {c.validation_fraction})"
    )
  report = {"reading": reading.lines()}
  for line in report["reading"]:
    progress(f"data: {line}")
  for split, (dataset, statistics) in splits.items():
    (directory / split).mkdir(exist_ok=True)
    dataset.save(directory / split)
    report[split] = statistics.lines()
    for line in report[split]:
      progress(f"data ({split}): {line}")
  write_json(directory / "statistics.json", report)


def check_role(setting: Setting, name: str, role: Mapping[str, Any]) -> None:
  """Fails now, before any stage has run, for what could not be trained.

  Raises:
    UserError: for an unknown size, optimizer or on_non_finite, a number out of range, a
      checkpoint of another vocabulary, or a batch that microbatches or mesh do not
      divide.
  """
  if role["on_non_finite"] not in ("stop", "skip"):
    raise UserError(
      f"{name}: on_non_finite '{role['on_non_finite']}' is unknown: stop or skip"
    )
  for key in ("steps", "batch_size", "evaluations"):
    if role.get(key, 1) < 1:
      raise UserError(f"{name}: {key} is {role[key]}; give at least 1")
  if role["warmup_steps"] < 0:
    raise UserError(f"{name}: warmup_steps is {role['warmup_steps']}; give at least 0")
  if not 0 <= role["learning_rate"] < math.inf:
    raise UserError(f"{name}: learning_rate is {role['learning_rate']}; give 0 or more")
  setting.model(role)
  for key in role["optimizer"].keys() - {f.name for f in fields(optim.Optimizer)}:
    raise UserError(f"{name}: optimizer has no '{key}'")
  optim.Optimizer(**role["optimizer"]).transform()
  size, k = role["batch_size"], role["microbatches"]
  if k < 1 or size % k:
    raise UserError(f"{name}: microbatches {k} does not divide batch_size {size}")
  sharding.check_batch(size // k, setting.mesh, f"{name}: batch_size / microbatches")


def train_sft(setting: Setting, role: dict, directory: Path, inputs: Inputs) -> None:
  """Supervised fine-tuning on both responses of every pair of all inputs, pooled."""
  seed = seed_of("sft", setting.world)
  _train(
    setting,
    "sft",
    role,
    directory,
    objective=train_step.SupervisedObjective(setting.model(role)),
    params=lambda: setting.initial_params(role, inputs, seed),
    source=_offline(setting, role, [i / "train" for i in inputs.values()], seed),
    keep=[role["steps"]],
    show=("loss",),
  )
  write_json(directory / "model.json", {"step": role["steps"]})


def import_checkpoint(
  setting: Setting, role: dict, directory: Path, inputs: Inputs
) -> None:
  """A Hugging Face checkpoint as a model artefact, at step 0."""
  checkpoints = checkpoint_lib.Checkpoints(directory)
  checkpoints.save_params(0, setting.initial_params(role, inputs, seed=0))
  checkpoints.close()
  write_json(directory / "model.json", {"step": 0})


def train_preference_model(
  setting: Setting, name: str, role: dict, directory: Path, inputs: Inputs
) -> None:
  """A preference model, kept where its accuracy on validation pairs is best.

  Half of the validation prompts choose the step, the other half report the accuracy.
  """
  seed = seed_of(name, setting.world)
  preference_model = setting.preference_model(role)
  parts = role["evaluations"]
  keep = sorted({role["steps"] * (i + 1) // parts for i in range(parts)})
  _train(
    setting,
    name,
    role,
    directory,
    objective=train_step.PreferenceObjective(preference_model),
    params=lambda: setting.initial_params(role, inputs, seed),
    source=_offline(setting, role, [inputs["data"] / "train"], seed),
    keep=keep,
    show=("loss", "accuracy"),
  )
  train_set = pairs.PairDataset.load(inputs["data"] / "train")
  validation = pairs.PairDataset.load(inputs["data"] / "validation")
  prompts = validation.prompt_numbers()
  choosing = prompts < len(np.unique(prompts)) // 2

  def margins(params: Params, dataset: pairs.PairDataset, rows: np.ndarray):
    return setting.map_pairs(
      lambda batch: policy_eval.margins(preference_model, params, batch), dataset, rows
    )

  def accuracy(step: int) -> float:  # one set of parameters at a time
    params = setting.load_frozen(directory, preference_model.model, step)
    chosen = margins(params, validation, np.flatnonzero(choosing))
    return policy_eval.outcome(chosen).mean()

  step = max(keep, key=accuracy)  # of equals, the earliest
  params = setting.load_frozen(directory, preference_model.model, step)
  reporting = np.flatnonzero(~choosing)
  reported = margins(params, validation, reporting)
  held_out = policy_eval.outcome(reported)
  seen = margins(params, train_set, np.arange(min(len(train_set), len(held_out))))
  report = {
    "step": step,
    "validation_accuracy": float(held_out.mean()),
    "validation_stderr": policy_eval.clustered_stderr(held_out, prompts[reporting]),
    "validation_pairs": len(held_out),
    "train_accuracy": float(policy_eval.outcome(seen).mean()),
  }
  gap = setting.true_gap(validation, reporting)
  if gap is not None:
    agree = policy_eval.classified(reported, gap)
    of_prompt = prompts[reporting][gap != 0]
    if len(np.unique(of_prompt)) > 1:
      report["truth_accuracy"] = float(agree.mean())
      report["truth_stderr"] = policy_eval.clustered_stderr(agree, of_prompt)
  write_json(directory / "model.json", report)
  progress(
    f"{name}: best at step {step}; accuracy {report['validation_accuracy']:.3f} on "
    f"held-out pairs, {report['train_accuracy']:.3f} on training pairs"
  )


def check_judge(world: int, report: Mapping[str, Any]) -> None:
  """Stops a study whose golden preference model is unusable.

  Raises:
    UserError: if its held-out accuracy is not clearly above 0.6, or trails its
      training accuracy by more than 0.1: everything downstream would be meaningless.
  """
  accuracy, stderr = report["validation_accuracy"], report["validation_stderr"]
  low = accuracy - 1.96 * stderr
  advice = "use more pairs or fewer steps, or set evaluation.require_good_judge=False"
  if low <= 0.6:
    raise UserError(
      f"golden preference model of world {world}: held-out accuracy {accuracy:.3f} "
      f"(95 % lower bound {low:.3f}) is not above 0.6: {advice}"
    )
  if report["train_accuracy"] - accuracy > 0.1:
    raise UserError(
      f"golden preference model of world {world}: held-out accuracy {accuracy:.3f} "
      f"trails training accuracy {report['train_accuracy']:.3f} by more than 0.1: "
      f"{advice}"
    )


def relabel(setting: Setting, role: dict, directory: Path, inputs: Inputs) -> None:
  """D_golden: both splits of D_initial in the golden preference model's order."""
  if setting.config.evaluation.require_good_judge:
    check_judge(setting.world, read_json(inputs["golden_pm"] / "model.json"))
  agreement = {}
  for split in ("train", "validation"):
    dataset = pairs.PairDataset.load(inputs["data"] / split)
    (directory / split).mkdir(exist_ok=True)
    swap = _label(setting, role, inputs["golden_pm"], dataset, directory / split)
    agreement[split] = float(1 - swap.mean())
  write_json(directory / "agreement.json", agreement)
  progress(f"D_golden: keeps {agreement['train']:.1%} of the human labels")


def _label(
  setting: Setting, role: dict, judge: Path, dataset: pairs.PairDataset, target: Path
) -> np.ndarray:
  """Saves pairs in a preference model's order, with its margins; bool P: swapped."""
  preference_model = setting.preference_model(role)
  params = setting.load_frozen(judge, preference_model.model)
  margins = setting.map_pairs(
    lambda batch: policy_eval.margins(preference_model, params, batch), dataset
  )
  key = jax.random.key(seed_of("relabel", setting.world))
  ids = np.arange(len(dataset), dtype=np.int32)
  swap = np.asarray(rollout.second_first(margins, key, ids))
  labelled = dataset.with_order(swap)
  labelled.with_columns(margin=np.abs(margins).astype(np.float32)).save(target)
  return swap


def score_reference(
  setting: Setting, role: dict, directory: Path, inputs: Inputs
) -> None:
  """D_golden with log pi_ref of both responses: computed once, stored with it."""
  model = setting.model(role)
  params = setting.load_frozen(inputs["sft"], model)
  dataset = pairs.PairDataset.load(inputs["golden_data"] / "train")
  zero = np.zeros((len(dataset), 2), np.float32)
  ref_logps = setting.map_pairs(
    lambda batch: policy_eval.log_ratios(model, params, batch),
    dataset.with_columns(ref_logps=zero),
  )
  dataset.with_columns(ref_logps=ref_logps).save(directory)


def sample_pairs(
  setting: Setting, first: dict, second: dict, judge_role: dict, directory: Path,
  inputs: Inputs,
) -> None:  # fmt: skip
  """D_a-vs-b: the prompts of D_golden, a response of each of two models, golden labels.

  `first` and `second` are the models' roles with a `step`: that of a kept checkpoint,
  or None for what the model settled on.
  """
  dataset = pairs.PairDataset.load(inputs["golden_data"] / "train")
  T = setting.config.response_length
  sampled = []
  for which, role in (("first", first), ("second", second)):
    model = setting.model(role)
    params = setting.load_frozen(inputs[which], model, role["step"])
    key = jax.random.key(seed_of("sample_pairs", setting.world, which))
    samples = setting.map_pairs(
      lambda batch, m=model, p=params, k=key: policy_eval.sample(
        m, p, batch, k, 1, T, decoding=setting.decoding
      ),
      dataset,
    )
    rows = samples.tokens_BxNxT[:, 0], samples.lengths_BxN[:, 0]
    sampled.append(pairs.Ragged.from_padded(*rows))
  unlabelled = pairs.PairDataset(dataset.prompts, (sampled[0], sampled[1]))
  (directory / "train").mkdir(exist_ok=True)
  _label(setting, judge_role, inputs["golden_pm"], unlabelled, directory / "train")


def train_policy(
  setting: Setting, name: str, role: dict, judge_role: dict, directory: Path,
  inputs: Inputs,
) -> None:  # fmt: skip
  """A policy: the same loss and step wherever its batches come from.

  What `inputs` holds decides: a judge (online, semi-online and hybrid), a recorded
  stream (replay), or pairs alone (offline).
  """
  model = setting.model(role)
  seed = seed_of("policy", setting.world, role["seed"])
  recorder, refresh_every = None, 1
  if "stream" in inputs:
    source: sources.Source = _replay(setting, role, inputs["stream"], seed)
  else:
    responses = train_step.losses.get(role["loss"]).responses
    source = dataset = _offline(setting, role, [inputs["pairs"]], seed, responses)
  if "judge" in inputs:
    refresh_every = role["refresh_every"] or 1  # 0: never, see _sampler
    if role["record"]:
      described = {
        "config": directory.name.rsplit("-", 1)[-1],
        "vocabulary": setting.vocabulary.fingerprint,
      }
      recorder = stream.Recorder(directory / "stream", described)
    source = sources.OnlineSource(
      dataset,
      _sampler(setting, role, judge_role, inputs),
      jax.random.key(seed),
      role["on_policy_fraction"],
      recorder.add if recorder else None,
    )
  _train(
    setting,
    name,
    role,
    directory,
    objective=train_step.PolicyObjective(
      model, role["loss"], tuple(sorted(role["loss_options"].items()))
    ),
    params=lambda: setting.load(inputs["sft"], model),
    source=source,
    keep=sorted({*recipes.evaluated_steps(role), role["steps"]}),
    show=("loss", "rho", "accuracy", "response_length"),
    refresh_every=refresh_every,
    before_save=recorder.commit if recorder else None,
  )
  write_json(directory / "model.json", {"step": role["steps"]})


def _sampler(
  setting: Setting, role: dict, judge_role: dict, inputs: Inputs
) -> Callable[[Params, Batch, Array], rollout.Rollout]:
  """Rolls out with the study's reference and judge; from SFT, if that never changes."""
  model = setting.model(role)
  judge = setting.preference_model(judge_role)
  roller = rollout.Roller(
    model,
    model,
    judge,
    role["temperature"],
    role["top_p"],
    decoding=setting.decoding,
  )
  reference_params = setting.load_frozen(inputs["sft"], model)
  judge_params = setting.load_frozen(inputs["judge"], judge.model)
  roll = rollout.compiled(roller, setting.mesh)

  def sample(params: Params, prompts: Batch, key: Array) -> rollout.Rollout:
    behaviour = params if role["refresh_every"] else reference_params
    return roll(behaviour, reference_params, judge_params, prompts, key)

  return sample


def _replay(
  setting: Setting, role: dict, recorded: Path, seed: int
) -> sources.StreamSource:
  """The recorded stream of an online run as a source."""
  steps = read_json(recorded / "model.json")["step"]
  found = stream.Stream.load(recorded / "stream", steps)
  needed = train_step.losses.get(role["loss"]).responses
  if found.num_responses < needed:
    raise UserError(
      f"loss '{role['loss']}' needs {needed} responses per prompt, but the replayed "
      f"stream has {found.num_responses}: record it with this loss"
    )
  return sources.StreamSource(
    found, role["batch_size"], role["replay_window"], setting.mesh, seed
  )


def _offline(
  setting: Setting,
  role: dict,
  directories: Sequence[Path],
  seed: int,
  num_responses: int = 2,
) -> sources.OfflineSource:
  parts = [pairs.PairDataset.load(directory) for directory in directories]
  return sources.OfflineSource(
    dataset=pairs.PairDataset.concatenate(parts),
    batch_size=role["batch_size"],
    **setting.lengths,
    mesh=setting.mesh,
    seed=seed,
    num_responses=num_responses,
  )


def _train(
  setting, name, role, directory, *, objective, params, source, keep, show, **options
) -> None:
  optimizer = optim.Optimizer(**role["optimizer"])
  mesh, rules, model = setting.mesh, setting.rules, setting.model(role)
  train(
    name=name,
    directory=directory,
    abstract_state=train_step.abstract_state(model, optimizer, mesh, rules),
    init_state=lambda: train_step.compiled_init(model, optimizer, mesh, rules)(
      params()
    ),
    train_step=train_step.compiled(
      objective,
      optimizer,
      role["microbatches"],
      mesh,
      rules,
      model,
      role["on_non_finite"] == "skip",
    ),
    hyper=train_step.hyper(
      role["learning_rate"],
      role["warmup_steps"],
      role["steps"] if role["decay"] else 0,
      role.get("beta", 0.0),
    ),
    source=source,
    steps=role["steps"],
    keep_params_at=keep,
    log_every=setting.config.log_every,
    save_every=setting.config.save_every,
    show=show,
    **options,
  )
