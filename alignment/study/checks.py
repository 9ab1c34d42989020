"""Everything that is refused before anything runs.

`studies` says it in one line, for the configuration (values, names, contradictions),
for every world's setting (models, checkpoints, mesh), and for the working directory.
What a stage finds in its data, and what training runs into, is said there.
"""

from collections.abc import Iterator, Mapping
import functools
import json
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignment.analysis import runs
from alignment.analysis.captions import FIGURES
from alignment.core import evaluation, losses
from alignment.data import layouts, prompts, readers, vocabularies
from alignment.models import registry
from alignment.runtime import sharding, tracking
from alignment.study import graph, recipes
from alignment.study.artefacts import Artefact, closure
from alignment.study.recipe_checks import check_judge, check_policy, check_recipe
from alignment.study.recipes import PolicyRecipe, PreferenceRecipe, Recipe
from alignment.study.setting import Setting
from alignment.study.stages.data import PairData
from alignment.study.stages.models import Model, TrainedModel
from alignment.study.stages.policies import TrainedPolicy
from alignment.study.stages.sampled_data import SampledData
from alignment.types import UserError

_LEAST = {  # values that make sense; two prompts, since half of them select
  "workers": 1, "log_every": 1, "save_every": 1, "prompt_length": 1,
  "response_length": 1, "evaluation.prompts": 2, "evaluation.kl_prompts": 1,
  "evaluation.pairs": 1, "evaluation.batch_size": 1, "evaluation.stream_steps": 1,
  "evaluation.stream_pairs": 2, "sample.responses": 1, "sample.temperature": 0,
}  # fmt: skip


def studies(config: ConfigDict, workdir: Path) -> list[graph.Study]:
  """The graph of every world, none of which is refused.

  Raises:
    UserError: saying what is, and what to do.
  """
  check_config(config)
  check_workdir(config, workdir)
  vocabulary = vocabularies.from_config(config.vocab)
  built = [
    graph.Study(Setting.of(config, world, vocabulary))
    for world in recipes.worlds(config)
  ]
  for study in built:
    check_study(study)
  return built


# --- a configuration by itself --------------------------------------------------------


def check_config(config: ConfigDict) -> None:
  """Values out of range, names that name nothing, settings that contradict each other.

  Raises:
    UserError: for the first of them.
  """
  if not 1 <= config.worlds <= 1000:
    raise UserError(f"worlds is {config.worlds}; give 1 to 1000")
  for name in config.figures:
    if name not in FIGURES:
      names = ", ".join(FIGURES)
      raise UserError(f"figures: no figure '{name}'; there are {names}")
  for key, least in _LEAST.items():
    given = functools.reduce(getattr, key.split("."), config)
    if not least <= given < math.inf:
      raise UserError(f"{key} is {given}; give at least {least}")
  tracking.check(config.tracking)
  _check_evaluation(config.evaluation)
  _check_all_data(config)
  _check_sampled(config)
  for name, recipe in _recipes(config):
    check_recipe(name, recipe)
    if isinstance(recipe, PolicyRecipe):
      check_policy(name, recipe, config.datasets)
    if isinstance(recipe, PreferenceRecipe):
      check_judge(name, recipe)
  _check_datasets(config)
  _check_sizes(config)


def _check_evaluation(c: ConfigDict) -> None:
  if c.kl_prompts > c.prompts:
    raise UserError("evaluation.kl_prompts are more than evaluation.prompts")
  for name in sorted(evaluation.COLUMNS.keys() & runs.KEYS):
    raise UserError(f"evaluation column '{name}': records have one of this name")
  if len(set(c.best_of)) < len(c.best_of):
    raise UserError("evaluation.best_of has a number twice")
  for n in c.best_of:
    if not isinstance(n, int) or n < 1:
      raise UserError(f"evaluation.best_of has {n!r}; give numbers of samples")


def _check_all_data(config: ConfigDict) -> None:
  data = recipes.plain(config.data)
  _check_data(data)
  for overrides in config.sft.data:
    if not isinstance(overrides, Mapping):
      raise UserError(f"sft.data has {overrides!r}; its entries override keys of data")
    for key in overrides.keys() - config.data.keys():
      raise UserError(f"sft.data has '{key}', which is no key of data")
    if overrides and "toy" in (config.data.format, overrides.get("format")):
      raise UserError("sft.data pools files and TFDS data sets, not the toy language")
    _check_data(data | recipes.plain(overrides))


def _check_sampled(config: ConfigDict) -> None:
  c, rater = config.sampled, config.rater
  if c.data not in ("", "initial", "golden"):
    raise UserError(f"sampled.data is '{c.data}'; give '', 'initial' or 'golden'")
  if not c.data:
    return
  if config.data.format == "toy":
    raise UserError(
      f"sampled.data is '{c.data}', but the toy language's pairs are its writers': set "
      "data.format to 'files'"
    )
  if c.pairs < 1 or c.num_prompts < 0:
    raise UserError("sampled.pairs must be at least 1, sampled.num_prompts at least 0")
  if not 0 < c.validation_fraction < 1:
    raise UserError("sampled.validation_fraction must lie between 0 and 1")
  if not c.temperatures or not all(0 < t < math.inf for t in c.temperatures):
    raise UserError(f"sampled.temperatures is {c.temperatures}; give numbers above 0")
  if c.data == "initial" and not rater.kind:
    raise UserError("rater.kind is not set: name the rule that labels sampled pairs")
  if not 0 <= rater.temperature < math.inf:
    raise UserError(f"rater.temperature is {rater.temperature}; give 0 or more")


def _check_data(c: Mapping[str, Any]) -> None:
  if not 0 < c["validation_fraction"] < 1:
    raise UserError("data.validation_fraction must lie between 0 and 1")
  if c["num_pairs"] < 0:
    raise UserError(f"data.num_pairs is {c['num_pairs']}; give at least 0")
  if c["format"] not in ("toy", *readers.FORMATS):
    names = ", ".join(["toy", *readers.FORMATS])
    raise UserError(f"data.format '{c['format']}' is unknown; there are {names}")
  layouts.mapping(c["columns"])
  if c["prompt_format"] and c["prompt_format"].count(prompts.PLACE) != 1:
    raise UserError(
      f"data.prompt_format is {c['prompt_format']!r}; it has {prompts.PLACE} once"
    )


def _check_datasets(config: ConfigDict) -> None:
  for name, models in config.datasets.items():
    if name in recipes.DATASETS:
      raise UserError(f"datasets.{name}: the study has one of this name; rename it")
    recipes.check_name(name, f"datasets.{name}")
    if len(models) != 2 or not all(isinstance(model, str) for model in models):
      raise UserError(f"datasets.{name} is {models!r}; name two models")
    for text in models:
      recipes.source(config, name, text)


def _check_sizes(config: ConfigDict) -> None:
  sizes = {run.recipe.size for run in recipes.runs(config).values()}
  if sizes and config.policy.size not in sizes:
    raise UserError(
      f"policy.size is '{config.policy.size}', but no run has it: set it to "
      f"{' or '.join(map(repr, sorted(sizes)))}, whose SFT model and best-of-n are "
      "what figures compare with"
    )


def _recipes(config: ConfigDict) -> Iterator[tuple[str, Recipe]]:
  """Every recipe that the configuration names, for messages by name."""
  for name in ("golden_pm", "proxy_pm"):
    yield name, PreferenceRecipe.of(config[name], name)
  for name in ("golden_policy", "policy"):
    yield name, PolicyRecipe.of(config[name], name)
  for name, run in recipes.runs(config).items():
    yield name, run.recipe
    if run.recipe.replays:
      yield f"{name}'s stream", _replayed(config, name, run.recipe)


def _replayed(config: ConfigDict, name: str, recipe: PolicyRecipe) -> PolicyRecipe:
  """The recipe of the stream of a run."""
  stream = recipes.stream_of(config, recipe)
  reads, sampled = (losses.get(r.loss).responses for r in (recipe, stream))
  if losses.GROUP not in (reads, sampled) and reads != sampled:
    raise UserError(
      f"{name}: loss '{recipe.loss}' reads {reads} responses per prompt, but its "
      f"stream, of loss '{stream.loss}', has {sampled}"
    )
  if stream.select == "all" and not recipe.grouped:
    raise UserError(
      f"{name}: its stream, of select 'all', has no pairs to replay: set select of "
      "policy, or in its stream, to 'two' or 'best_worst'"
    )
  return stream


# --- a study on this machine ----------------------------------------------------------


def check_study(study: graph.Study) -> None:
  """What a world's artefacts cannot be: models, checkpoints, batches, files.

  Raises:
    UserError: for the first of them.
  """
  check_batches(study)
  check_attention(study)
  check_files(study)
  size_of: dict[Path, str] = {}
  for artefact in _every(study):
    if isinstance(artefact, TrainedPolicy):  # also those that others replay
      check_policy(artefact.name, artefact.recipe, study.config.datasets)
    if isinstance(artefact, TrainedModel):
      _ = artefact.objective  # and with it adapters' targets
    if isinstance(artefact, Model):
      start = artefact.start
      study.setting.parameters.rules(artefact.model())  # heads and the tensor axis
      origin = study.setting.models.origin(start)
      if origin and (other := size_of.setdefault(origin, start.size)) != start.size:
        raise UserError(
          f"{origin}: cannot be both {other} and {start.size}; put {{size}} in its path"
        )
  for artefact in _every(study):
    _ = artefact.key  # reads what of the data and checkpoints determines numbers


def check_files(study: graph.Study) -> None:
  """Raises UserError where a file of data is not named: "" is the current directory."""
  for artefact in _every(study):
    if isinstance(artefact, PairData):
      c = artefact.chosen
      if c["format"] not in ("toy", "tfds") and not c["path"]:
        raise UserError("data.path is not set: name a file of pairs")
    if isinstance(artefact, SampledData) and not artefact.chosen["path"]:
      raise UserError("sampled.path is not set: name a file of prompts")


def check_attention(study: graph.Study) -> None:
  """Raises UserError if a model is to use a kernel that the mesh's devices lack."""
  with sharding.on(study.setting.mesh):
    platform = sharding.platform()
  for artefact in _every(study):
    if isinstance(artefact, Model):
      registry.check_attention(artefact.model().cfg, platform)


def check_batches(study: graph.Study) -> None:
  """Recipes that could not be trained, and batches that the mesh does not divide.

  Raises:
    UserError: for the first of them.
  """
  mesh, rows = study.setting.mesh, study.config.evaluation.batch_size
  sharding.check_batch(rows, mesh, "evaluation.batch_size")
  for artefact in _every(study):
    if isinstance(artefact, TrainedModel):
      check_recipe(artefact.name, artefact.recipe)  # SFT's follows from others' sizes
      where = f"{artefact.name}: batch_size / microbatches"
      sharding.check_batch(artefact.microbatch, mesh, where)


def _every(study: graph.Study) -> list[Artefact]:
  return closure(study.artefacts().values(), identity=id)


def check_workdir(config: ConfigDict, workdir: Path) -> None:
  """Whether results can be kept there.

  Raises:
    UserError: if it has the results of another task: theirs have the same names.
  """
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
