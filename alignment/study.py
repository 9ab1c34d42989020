"""The controlled study as a graph of artefacts (section 4 and fig. 2 of the paper).

  D_initial -> SFT, golden PM -> D_golden -> proxy PM
                  |                  |           |
                  golden policy      offline     online   -> evaluations -> figures

This file says what there is and what feeds what; `stages.py` and
`evals/stages.py` say what each one does.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignment import losses, sharding, stages
from alignment.artefacts import Artefact
from alignment.evals import stages as eval_stages
from alignment.setting import Setting
from alignment.types import UserError


@dataclasses.dataclass(frozen=True)
class Study:
  """All artefacts of one world, by name; `evaluations` are the leaves."""

  setting: Setting
  models: dict[str, Artefact]  # for people: data, sft, golden_pm, ...
  policies: dict[str, Artefact]  # by run name
  evaluations: dict[str, Artefact]  # by run name

  def stages(self) -> dict[str, Artefact]:
    """Everything by its name."""
    evaluated = {f"evaluate_{name}": a for name, a in self.evaluations.items()}
    return {**self.models, **self.policies, **evaluated}


def build_all(config: ConfigDict) -> list[Study]:
  """One study per world of a configuration."""
  first = config.first_world
  return [build(config, world) for world in range(first, first + config.worlds)]


def build(config: ConfigDict, world: int) -> Study:
  """The graph of one world; nothing is run, and nothing read but its data file.

  Raises:
    UserError: for settings that contradict each other.
  """
  setting = Setting(config, world)
  sharding.check_batch(
    config.evaluation.batch_size, setting.mesh, "evaluation.batch_size"
  )
  numeric = {
    "world": world,
    "prompt_length": config.prompt_length,
    "response_length": config.response_length,
    "vocabulary": setting.vocabulary.fingerprint,
  }

  def artefact(label, kind, make, inputs, **settings) -> Artefact:
    return Artefact(label, kind, {**numeric, **settings}, inputs, make)

  def bind(function, *args, **kwargs):
    return functools.partial(function, setting, *args, **kwargs)

  def role(name: str) -> dict[str, Any]:
    return _plain(config[name])

  def pairs(name: str, overrides: Mapping[str, Any]) -> Artefact:
    """D_initial, or (with overrides of config.data) a set pooled for SFT."""
    for key in overrides.keys() - config.data.keys():
      raise UserError(f"sft.data has '{key}', which is no key of data")
    chosen = _plain(config.data) | overrides
    make = bind(stages.make_data, chosen)
    return artefact(name, "data", make, {}, data=_data_config(chosen))

  data = pairs("data", {})
  pooled = {f"data_{i}": pairs(f"data_{i}", d) for i, d in enumerate(config.sft.data)}

  sft_of: dict[str, Artefact] = {}

  def sft(size: str) -> Artefact:
    """The study's own supervised checkpoint of a size."""
    if size not in sft_of:
      recipe = role("sft") | {"size": size}
      del recipe["data"]  # its content is in the inputs
      stages.check_role(setting, "sft", recipe)
      sft_of[size] = artefact(
        f"sft_{size}",
        "sft",
        bind(stages.train_sft, recipe),
        pooled or {"data": data},
        role=_described(recipe),
        **numerics,
      )
    return sft_of[size]

  numerics = {"model": {"dtype": config.model.dtype}}
  judging = {
    "judge_context_length": config.judge_context_length,
    "truncate_prompt": config.data.truncate_prompt,
    **numerics,
  }

  def preference_model(name: str, dataset: Artefact) -> Artefact:
    recipe = role(name)
    stages.check_role(setting, name, recipe)
    setting.preference_model(recipe)
    inputs = {"data": dataset}
    if recipe["init"] == "sft":
      inputs["init"] = sft(recipe["size"])
    return artefact(
      name,
      "preference_model",
      bind(stages.train_preference_model, name, recipe),
      inputs,
      name=name,
      role=_described(recipe),
      **judging,
    )

  golden_pm = preference_model("golden_pm", data)
  golden_data = artefact(
    "golden_data",
    "relabel",
    bind(stages.relabel, role("golden_pm")),
    {"data": data, "golden_pm": golden_pm},
    **judging,
  )
  proxy_pm = preference_model("proxy_pm", golden_data)

  def start(recipe: dict[str, Any]) -> tuple[Artefact, Artefact]:
    """Where a policy starts, and D_golden with that reference's log-probabilities."""
    if recipe["init"] == "sft":
      reference = sft(recipe["size"])
    elif recipe["init"] == "scratch":
      raise UserError(
        "a policy needs a start that can respond: init='sft' or a directory"
      )
    else:
      reference = artefact(
        f"start_{recipe['size']}",
        "import",
        bind(stages.import_checkpoint, recipe),
        {},
        role=_described(recipe),
      )
    scored = artefact(
      f"golden_data_{recipe['size']}",
      "score_reference",
      bind(stages.score_reference, recipe),
      {"golden_data": golden_data, "sft": reference},
      **numerics,
    )
    return reference, scored

  def policy(name: str, recipe: dict[str, Any], judge_name: str) -> Artefact:
    losses.bind(recipe["loss"], recipe["loss_options"])  # fails here, not after hours
    if recipe["method"] not in ("online", "offline"):
      method = recipe["method"]
      raise UserError(f"{name}: method '{method}' is unknown: online or offline")
    stages.check_role(setting, name, recipe)
    reference, scored = start(recipe)
    inputs = {"sft": reference, "pairs": scored}
    if recipe["method"] == "online":
      inputs["judge"] = {"golden_pm": golden_pm, "proxy_pm": proxy_pm}[judge_name]
    return artefact(
      name,
      "policy",
      bind(stages.train_policy, name, recipe, role(judge_name)),
      inputs,
      role=_described(recipe),
      **judging,
    )

  def samples(name: str, recipe: dict[str, Any], of: Artefact) -> Artefact:
    return artefact(
      name,
      "samples",
      bind(eval_stages.sample_policy, recipe),
      {"policy": of, "pairs": start(recipe)[1]},
      prompts=config.evaluation.prompts,
      **numerics,
    )

  golden_recipe = role("golden_policy")
  golden_policy = policy("golden_policy", golden_recipe, "golden_pm")
  golden_samples = samples("golden_samples", golden_recipe, golden_policy)
  policy_recipe = role("policy")
  policy_start = start(policy_recipe)[0]
  sft_samples = samples("sft_samples", policy_recipe, policy_start)

  def evaluation(name, recipe, of: Artefact, steps: list[int]) -> Artefact:
    reference, scored = start(recipe)
    inputs = {
      "policy": of,
      "sft": reference,
      "pairs": scored,
      "golden_pm": golden_pm,
      "golden_samples": golden_samples,
      "sft_samples": sft_samples,
    }
    counts = {k: config.evaluation[k] for k in ("prompts", "kl_prompts", "pairs")}
    return artefact(
      f"evaluation_{name}",
      "evaluation",
      bind(eval_stages.evaluate_policy, name, recipe, role("golden_pm"), steps),
      inputs,
      run=name,
      task=config.task,
      steps=steps,
      described={k: recipe[k] for k in ("method", "loss", "beta", "learning_rate")},
      **counts,
      **judging,
    )

  policies, evaluations = {}, {}
  for entry, recipe in runs(config).items():
    name = f"world{world}_{entry}"
    policies[name] = policy(name, recipe, "proxy_pm")
    steps = stages.evaluated_steps(recipe)
    evaluations[name] = evaluation(name, recipe, policies[name], steps)
  start_recipe = policy_recipe | {"method": "sft", "beta": None, "learning_rate": None}
  start_steps = [config.sft.steps if policy_recipe["init"] == "sft" else 0]
  evaluations[f"world{world}_sft"] = evaluation(
    f"world{world}_sft", start_recipe, policy_start, start_steps
  )
  evaluations[f"world{world}_golden_policy"] = evaluation(
    f"world{world}_golden_policy",
    golden_recipe | {"method": "golden_policy"},
    golden_policy,
    stages.evaluated_steps(golden_recipe),
  )
  models = {
    "data": data,
    **{a.name: a for a in sft_of.values()},
    "golden_pm": golden_pm,
    "golden_data": golden_data,
    "proxy_pm": proxy_pm,
    "golden_policy": golden_policy,
    "golden_samples": golden_samples,
    "sft_samples": sft_samples,
  }
  return Study(setting, models, policies, evaluations)


def runs(config: ConfigDict) -> dict[str, dict[str, Any]]:
  """Policy runs by name: for every entry of `config.runs` the product of its axes.

  Raises:
    UserError: for an axis that is no key of `policy`, or is not a tuple.
  """
  found = {}
  for entry, axes in config.runs.items():
    for key, values in axes.items():
      if key not in config.policy:
        known = ", ".join(sorted(config.policy))
        raise UserError(f"runs.{entry}.{key} is no key of policy; they are {known}")
      if not isinstance(values, tuple | list) or not values:
        raise UserError(f"runs.{entry}.{key} must be a tuple of values, not {values!r}")
    for values in itertools.product(*axes.values()):
      recipe = _plain(config.policy) | dict(zip(axes, map(_plain, values), strict=True))
      varied = "".join(
        f"_{_SHORT.get(key, key)}{value}"
        for key, value in zip(axes, values, strict=True)
        if key not in ("method", "loss")
      )
      found[f"{entry}_{recipe['loss']}{varied}"] = recipe
  return found


_SHORT = {"learning_rate": "lr"}


def _data_config(chosen: Mapping[str, Any]) -> dict[str, Any]:
  """What determines a data set: the data keys, with a file's content for its path."""
  c = dict(chosen)
  path, _ = c.pop("path"), c.pop("data_dir")
  if c["format"] == "jsonl":
    if not path:
      raise UserError("data.path is not set: name a .jsonl or .jsonl.gz file of pairs")
    c["sha256"] = _checksum(Path(path))
  return c


def _checksum(path: Path) -> str:
  digest = hashlib.sha256()
  try:
    with open(path, "rb") as f:
      while block := f.read(1 << 20):
        digest.update(block)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  return digest.hexdigest()


def _described(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """A role's configuration with a checkpoint's content for its directory."""
  if recipe["init"] in ("scratch", "sft"):
    return dict(recipe)
  directory = Path(recipe["init"].replace("{size}", recipe["size"]))
  files = sorted(directory.glob("*.safetensors")) + [directory / "config.json"]
  return {**recipe, "init": [_checksum(file) for file in files]}


def _plain(value: Any) -> Any:
  """ConfigDicts and tuples as dicts and lists, ready for JSON."""
  if isinstance(value, ConfigDict | dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, tuple | list):
    return [_plain(v) for v in value]
  return value
