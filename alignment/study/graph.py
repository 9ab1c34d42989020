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
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignment.data import readers, records
from alignment.runtime import sharding
from alignment.runtime.files import checksum
from alignment.study import recipes
from alignment.study.artefacts import Artefact
from alignment.study.setting import Setting
from alignment.study.stages import evaluate as eval_stages
from alignment.study.stages import train
from alignment.types import UserError

_LEAST = {  # values that make sense; two prompts, since half of them select
  "workers": 1, "log_every": 1, "save_every": 1,
  "prompt_length": 1, "response_length": 1,
  "evaluation.prompts": 2, "evaluation.kl_prompts": 1, "evaluation.pairs": 1,
  "evaluation.batch_size": 1, "evaluation.stream_steps": 1,
  "evaluation.stream_pairs": 1, "sample.responses": 1, "sample.temperature": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
  """All artefacts of one world, by name; `evaluations` are the leaves."""

  setting: Setting
  models: dict[str, Artefact]  # for people: data, sft, golden_pm, ...
  policies: dict[str, Artefact]  # by run name
  evaluations: dict[str, Artefact]  # by run name
  classification: Artefact | None  # of the online stream, for figure 6
  roles: dict[str, dict[str, Any]]  # of what was trained, by key: with paths, unhashed

  def stages(self) -> dict[str, Artefact]:
    """Everything by its name."""
    evaluated = {f"evaluate_{name}": a for name, a in self.evaluations.items()}
    found = {**self.models, **self.policies, **evaluated}
    if self.classification is not None:
      found["classification"] = self.classification
    return found


def build_all(config: ConfigDict) -> list[Study]:
  """One study per world of a configuration."""
  if not 1 <= config.worlds <= 1000:
    raise UserError(f"worlds is {config.worlds}; give 1 to 1000")
  first = config.first_world
  return [build(config, world) for world in range(first, first + config.worlds)]


def build(config: ConfigDict, world: int) -> Study:
  """The graph of one world; nothing is run, and nothing read but its data file.

  Raises:
    UserError: for settings that contradict each other.
  """
  setting = Setting(config, world)
  _ = setting.language  # made here, for its settings to be checked
  for name, pair in config.datasets.items():
    if name in recipes.DATASETS:
      raise UserError(f"datasets.{name}: the study has one of this name; rename it")
    if len(pair) != 2 or not all(isinstance(model, str) for model in pair):
      raise UserError(f"datasets.{name} is {pair!r}; name two models")
  for key, least in _LEAST.items():
    given = functools.reduce(getattr, key.split("."), config)
    if not least <= given < math.inf:
      raise UserError(f"{key} is {given}; give at least {least}")
  if config.evaluation.kl_prompts > config.evaluation.prompts:
    raise UserError("evaluation.kl_prompts are more than evaluation.prompts")
  if len(set(config.evaluation.best_of)) < len(config.evaluation.best_of):
    raise UserError("evaluation.best_of has a number twice")
  for n in config.evaluation.best_of:
    if not isinstance(n, int) or n < 1:
      raise UserError(f"evaluation.best_of has {n!r}; give numbers of samples")
  sharding.check_batch(
    config.evaluation.batch_size, setting.mesh, "evaluation.batch_size"
  )
  sizes = {recipe["size"] for _, recipe in recipes.runs(config).values()}
  if sizes and config.policy.size not in sizes:
    raise UserError(
      f"policy.size is '{config.policy.size}', but no run has it: set it to "
      f"{' or '.join(map(repr, sorted(sizes)))}, whose SFT model and best-of-n are "
      "what figures compare with"
    )
  numeric = {
    "world": world,
    "prompt_length": config.prompt_length,
    "response_length": config.response_length,
    "vocabulary": setting.vocabulary.fingerprint,
  }

  def artefact(label, kind, make, inputs, **settings) -> Artefact:
    return Artefact(label, kind, {**numeric, **settings}, inputs, make)

  roles: dict[str, dict[str, Any]] = {}

  def trained(label, kind, make, inputs, recipe, **settings) -> Artefact:
    made = artefact(label, kind, make, inputs, role=_described(recipe), **settings)
    roles[made.key] = recipe
    return made

  def bind(function, *args, **kwargs):
    return functools.partial(function, setting, *args, **kwargs)

  def role(name: str) -> dict[str, Any]:
    return recipes.plain(config[name])

  def pairs(name: str, overrides: Mapping[str, Any]) -> Artefact:
    """D_initial, or (with overrides of config.data) a set pooled for SFT."""
    if not isinstance(overrides, Mapping):
      raise UserError(f"sft.data has {overrides!r}; its entries override keys of data")
    for key in overrides.keys() - config.data.keys():
      raise UserError(f"sft.data has '{key}', which is no key of data")
    if overrides and "toy" in (config.data.format, overrides.get("format")):
      raise UserError("sft.data pools files and TFDS data sets, not the toy language")
    chosen = recipes.plain(config.data) | overrides
    make = bind(train.make_data, chosen)
    return artefact(name, "data", make, {}, data=_data_config(chosen))

  data = pairs("data", {})
  pooled = {f"data_{i}": pairs(f"data_{i}", d) for i, d in enumerate(config.sft.data)}

  sft_of: dict[str, Artefact] = {}

  def sft(size: str) -> Artefact:
    """The study's own supervised checkpoint of a size."""
    if size not in sft_of:
      recipe = role("sft") | {"size": size}
      del recipe["data"]  # its content is in the inputs
      own = recipe.pop("by_size").get(size, {})
      for key in own.keys() - recipe.keys():
        raise UserError(f"sft.by_size.{size} has '{key}', which is no key of sft")
      recipe |= own
      train.check_role(setting, "sft", recipe)
      sft_of[size] = trained(
        f"sft_{size}",
        "sft",
        bind(train.train_sft, recipe),
        pooled or {"data": data},
        recipe,
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
    train.check_role(setting, name, recipe)
    setting.preference_model(recipe)
    inputs = {"data": dataset}
    if recipe["init"] == "sft":
      inputs["init"] = sft(recipe["size"])
    return trained(
      name,
      "preference_model",
      bind(train.train_preference_model, name, recipe),
      inputs,
      recipe,
      name=name,
      **judging,
    )

  golden_pm = preference_model("golden_pm", data)
  golden_data = artefact(
    "golden_data",
    "relabel",
    bind(train.relabel, role("golden_pm")),
    {"data": data, "golden_pm": golden_pm},
    **judging,
  )
  proxy_pm = preference_model("proxy_pm", golden_data)
  judges = {"golden_pm": golden_pm, "proxy_pm": proxy_pm}

  def start(recipe: dict[str, Any]) -> tuple[Artefact, Artefact]:
    """Where a policy starts, and D_golden with that reference's log-probabilities."""
    if recipe["init"] == "sft":
      reference = sft(recipe["size"])
    elif recipe["init"] == "scratch":
      raise UserError(
        "a policy needs a start that can respond: init='sft' or a directory"
      )
    else:
      start_role = {key: recipe[key] for key in ("size", "init")}
      reference = artefact(
        f"start_{recipe['size']}",
        "import",
        bind(train.import_checkpoint, start_role),
        {},
        role=_described(start_role),
      )
    return reference, score(golden_data, recipe, reference)

  def score(dataset: Artefact, recipe: dict[str, Any], reference: Artefact) -> Artefact:
    """Pairs with the log-probabilities of their responses under a reference."""
    return artefact(
      f"{dataset.name}_{recipe['size']}",
      "score_reference",
      bind(train.score_reference, recipe),
      {"golden_data": dataset, "sft": reference},
      **numerics,
    )

  # The recipes of online runs that others replay. The default one, and what figure 6
  # classifies, are recorded in any case: figures share them, whether or not they need
  # the stream. A hybrid run cannot be (`recipes.check`).
  replays = [role("policy") | {"stream": {}}, role("policy")] + [
    recipe
    for _, recipe in recipes.runs(config).values()
    if (recipe["method"], recipe["dataset"]) == ("offline", "stream")
  ]
  streams = [recipes.stream_of(config, recipe) for recipe in replays]
  recorded = [recipes.relevant(s) for s in streams if s["on_policy_fraction"] == 1]

  def policy(name: str, recipe: dict[str, Any], judge_name: str) -> Artefact:
    recipes.check(name, recipe, config.datasets)
    train.check_role(setting, name, recipe)
    proxied = judge_name == "proxy_pm"
    if proxied and recipes.relevant(recipe | {"record": True}) in recorded:
      recipe = recipe | {"record": True}
    reference, scored = start(recipe)
    inputs = {"sft": reference}
    if recipe["method"] == "online":
      inputs |= {"pairs": scored, "judge": judges[judge_name]}
    elif recipe["dataset"] == "stream":
      inputs["stream"] = default_run(recipes.stream_of(config, recipe))
    elif recipe["dataset"] == "golden":
      inputs["pairs"] = scored
    else:
      found = score(resampled(recipe["dataset"]), recipe, reference)
      inputs["pairs"] = found
    return trained(
      name,
      "policy",
      bind(train.train_policy, name, recipe, role(judge_name)),
      inputs,
      recipes.relevant(recipe),
      **judging,
    )

  def default_run(recipe: dict[str, Any]) -> Artefact:
    """A run that others learn from, whether or not it is among config.runs."""
    size = recipe["size"]
    varied = "" if size == config.policy.size else f"_size{size}"
    name = f"world{world}_{recipe['method']}_{recipe['loss']}{varied}"
    return policy(name, recipe, "proxy_pm")

  def resampled(name: str) -> Artefact:
    """D_a-vs-b, as config.datasets says."""
    models, described = {}, {}
    for which, source in zip(("first", "second"), config.datasets[name], strict=True):
      kind, _, fraction = source.partition("@")
      recipe, step = role("policy"), None
      if source == "sft":
        models[which] = start(recipe)[0]
      elif source == "golden_policy":
        recipe, models[which] = role("golden_policy"), golden_policy
      elif kind == "online" and fraction:
        recipe |= {"method": "online"}
        step = recipes.checkpoint_at(f"datasets.{name}: '{source}'", recipe, fraction)
        models[which] = default_run(recipe)
      else:
        raise UserError(
          f"datasets.{name}: '{source}' is no model; there are 'sft', 'golden_policy' "
          "and 'online@FRACTION'"
        )
      described[which] = recipe | {"step": step}
    roles = described["first"], described["second"], role("golden_pm")
    return artefact(
      f"data_{name}",
      "sample_pairs",
      bind(train.sample_pairs, *roles),
      {**models, "golden_data": golden_data, "golden_pm": golden_pm},
      steps=[described[which]["step"] for which in models],
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

  def contest(recipe: dict[str, Any]) -> dict[str, Artefact]:
    """What every evaluation of a policy of this start reads."""
    reference, scored = start(recipe)
    return {
      "sft": reference,
      "pairs": scored,
      "golden_pm": golden_pm,
      "golden_samples": golden_samples,
      "sft_samples": sft_samples,
    }

  def evaluation(label, recipe, of: Artefact, steps: list[int]) -> Artefact:
    described = recipes.labels(of.name, label, recipe)
    counts = {k: config.evaluation[k] for k in ("prompts", "kl_prompts", "pairs")}
    return artefact(
      f"evaluation_{of.name}",
      "evaluation",
      bind(eval_stages.evaluate_policy, described, recipe, role("golden_pm"), steps),
      {"policy": of, **contest(recipe)},
      task=config.task,
      steps=steps,
      described=described,
      **counts,
      **judging,
    )

  policies, evaluations = {}, {}
  for entry, (label, recipe) in recipes.runs(config).items():
    name = f"world{world}_{entry}"
    policies[name] = policy(name, recipe, "proxy_pm")
    steps = recipes.evaluated_steps(recipe)
    evaluations[name] = evaluation(label, recipe, policies[name], steps)
  start_recipe = policy_recipe | {"beta": None, "learning_rate": None}
  fine_tuned = policy_recipe["init"] == "sft"
  start_steps = [policy_start.config["role"]["steps"] if fine_tuned else 0]
  named = dataclasses.replace(policy_start, name=f"world{world}_sft")
  evaluations[named.name] = evaluation("sft", start_recipe, named, start_steps)
  named = dataclasses.replace(golden_policy, name=f"world{world}_golden_policy")
  steps = recipes.evaluated_steps(golden_recipe)
  evaluations[named.name] = evaluation("golden_policy", golden_recipe, named, steps)
  if config.evaluation.best_of:
    name = f"world{world}_best_of_n"
    numbers = recipes.plain(config.evaluation.best_of)
    described = recipes.labels(name, "best_of_n", start_recipe)
    evaluations[name] = artefact(
      f"evaluation_{name}",
      "best_of_n",
      bind(
        eval_stages.evaluate_best_of_n,
        described,
        policy_recipe,
        role("proxy_pm"),
        role("golden_pm"),
      ),
      {"proxy_pm": proxy_pm, **contest(policy_recipe)},
      task=config.task,
      numbers=numbers,
      described=described,
      prompts=config.evaluation.prompts,
      **judging,
    )
  classification = None
  if "figure_06" in config.figures:
    compared = {
      "online": recipes.stream_of(config, policy_recipe),
      "offline": policy_recipe | {"method": "offline", "dataset": "golden"},
    }
    finished = {method: default_run(recipe) for method, recipe in compared.items()}
    classification = artefact(
      "classification",
      "classify_stream",
      bind(eval_stages.classify_stream, compared, role("golden_pm"), role("proxy_pm")),
      {**finished, **judges},
      task=config.task,
      **{k: config.evaluation[k] for k in ("stream_steps", "stream_pairs")},
      **judging,
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
  return Study(setting, models, policies, evaluations, classification, roles)


def _data_config(chosen: Mapping[str, Any]) -> dict[str, Any]:
  """What determines a data set: the data keys, with a file's content for its path."""
  c = dict(chosen)
  path, _ = c.pop("path"), c.pop("data_dir")
  if not 0 < c["validation_fraction"] < 1:
    raise UserError("data.validation_fraction must lie between 0 and 1")
  if c["num_pairs"] < 0:
    raise UserError(f"data.num_pairs is {c['num_pairs']}; give at least 0")
  if c["format"] not in ("toy", *readers.FORMATS):
    known = ", ".join(["toy", *readers.FORMATS])
    raise UserError(f"data.format '{c['format']}' is unknown; there are {known}")
  if c["format"] in ("toy", "tfds"):  # of which no file is named
    return c
  if not path:
    raise UserError("data.path is not set: name a file of pairs, or a directory")
  return c | {"sha256": [checksum(file) for file in records.files(path)]}


def _described(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """A role's configuration with a checkpoint's content for its directory."""
  if recipe["init"] in ("scratch", "sft"):
    return dict(recipe)
  directory = Path(recipe["init"].replace("{size}", recipe["size"]))
  files = sorted(directory.glob("*.safetensors")) + [directory / "config.json"]
  return {**recipe, "init": [checksum(file) for file in files]}
