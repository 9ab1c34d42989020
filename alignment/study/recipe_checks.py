"""What a recipe cannot be, by itself: values, names, contradictions.

`checks.py` asks for every recipe of a configuration, and for those that follow from
others' sizes.
"""

from collections.abc import Mapping
import math
from typing import Any

from alignment.core import losses, rollout
from alignment.study import recipes
from alignment.study.recipes import PolicyRecipe, PreferenceRecipe, Recipe
from alignment.types import UserError


def check_recipe(name: str, recipe: Recipe) -> None:
  """What could not be trained, whatever it is.

  Raises:
    UserError: for the first of them.
  """
  recipes.check_name(recipe.size, f"{name}: size '{recipe.size}'")
  if recipe.on_non_finite not in ("stop", "skip"):
    raise UserError(
      f"{name}: on_non_finite '{recipe.on_non_finite}' is unknown: stop or skip"
    )
  imported = isinstance(recipe, PreferenceRecipe) and recipe.imported
  for key in ("steps", "batch_size", "evaluations"):
    if getattr(recipe, key, 1) < 1 and not (key == "steps" and imported):
      raise UserError(f"{name}: {key} is {getattr(recipe, key)}; give at least 1")
  if recipe.warmup_steps < 0:
    raise UserError(f"{name}: warmup_steps is {recipe.warmup_steps}; give at least 0")
  if not 0 <= recipe.learning_rate < math.inf:
    raise UserError(f"{name}: learning_rate is {recipe.learning_rate}; give 0 or more")
  if recipe.lora.rank and recipe.init == "scratch":
    raise UserError(
      f"{name}: lora.rank is {recipe.lora.rank}, but random parameters are no base: "
      "start from 'sft' or a checkpoint's directory, or set lora.rank to 0"
    )
  recipe.optimizer.transform()
  size, k = recipe.batch_size, recipe.microbatches
  if k < 1 or size % k:
    raise UserError(f"{name}: microbatches {k} does not divide batch_size {size}")


def check_judge(name: str, recipe: PreferenceRecipe) -> None:
  """Keys of a judge that have no meaning for its kind, and 0 steps of what must learn.

  Raises:
    UserError: for the first of them.
  """
  if recipe.imported and recipe.kind != "pointwise":
    raise UserError(
      f"{name}: steps is 0, and a {recipe.kind} judge has to learn: give at least 1"
    )
  if recipe.imported and recipe.init in ("scratch", "sft"):
    raise UserError(
      f"{name}: steps is 0, so init must be a reward model's directory, not "
      f"'{recipe.init}'"
    )
  if recipe.trained and recipe.options:
    raise UserError(
      f"{name}.options has no meaning for a judge of kind '{recipe.kind}': rules have "
      "options"
    )
  if recipe.lora.rank and (recipe.imported or not recipe.trained):
    raise UserError(
      f"{name}: lora.rank is {recipe.lora.rank}, but nothing of this judge is trained: "
      "set lora.rank to 0"
    )
  if recipe.vocab and not recipe.trained:
    raise UserError(
      f"{name}.vocab has no meaning for a judge of kind '{recipe.kind}': it reads text"
    )
  if recipe.vocab and recipe.init == "sft":
    raise UserError(
      f"{name}: to a judge with a vocabulary of its own SFT's ids mean nothing: set "
      f"{name}.init to 'scratch' or to a checkpoint's directory"
    )


def check_policy(name: str, recipe: PolicyRecipe, datasets: Mapping[str, Any]) -> None:
  """What could not be trained as a policy.

  Raises:
    UserError: for the first of them.
  """
  loss = losses.check(recipe.loss, dict(recipe.loss_options))
  if recipe.method not in ("online", "offline"):
    raise UserError(f"{name}: method '{recipe.method}' is unknown: online or offline")
  if recipe.init == "scratch":
    raise UserError(
      "a policy needs a start that can respond: init='sft' or a directory"
    )
  if not 0 < recipe.beta < math.inf:
    raise UserError(f"{name}: beta is {recipe.beta}; give a number above 0")
  if not recipe.evaluate_at:
    raise UserError(f"{name}: evaluate_at is empty; give fractions of `steps`")
  for f in recipe.evaluate_at:
    if not isinstance(f, int | float) or not 0 <= f <= 1:
      raise UserError(f"evaluate_at has {f!r}; give fractions of `steps`, 0 to 1")
  # At temperature 0 both responses would be the same.
  if not 0 < recipe.temperature < math.inf or not 0 < recipe.top_p <= 1:
    raise UserError(f"{name}: temperature must be above 0, top_p in (0, 1]")
  if loss.on_policy:
    _check_on_policy(name, recipe)
  if recipe.online:
    _check_online(name, recipe)
    _check_samples(name, recipe)
  else:
    _check_offline(name, recipe, datasets)


def _check_online(name: str, recipe: PolicyRecipe) -> None:
  fraction = recipe.on_policy_fraction
  if not 0 < fraction <= 1:
    raise UserError(f"{name}: on_policy_fraction must be above 0 and at most 1")
  share = fraction * recipe.batch_size
  if round(share) == 0 or abs(share - round(share)) > 1e-6:
    raise UserError(
      f"{name}: on_policy_fraction {fraction} of batch_size {recipe.batch_size} is "
      "not a number of pairs"
    )
  if recipe.record and fraction < 1:
    raise UserError(f"{name}: only a run of on_policy_fraction 1 can be recorded")
  if recipe.refresh_every < 0:
    raise UserError(f"{name}: refresh_every must be 0 (never) or a number of steps")


def _check_on_policy(name: str, recipe: PolicyRecipe) -> None:
  """Of a loss that is right only for samples of the policy as it is."""
  reason = ""
  if not recipe.online:
    reason = f"method is '{recipe.method}'"
  elif recipe.refresh_every != 1:
    reason = f"refresh_every is {recipe.refresh_every}"
  elif recipe.on_policy_fraction != 1:
    reason = f"on_policy_fraction is {recipe.on_policy_fraction}"
  elif recipe.temperature != 1:
    reason = f"temperature is {recipe.temperature}"
  elif recipe.top_p != 1:
    reason = f"top_p is {recipe.top_p}"
  if reason:
    raise UserError(
      f"{name}: loss '{recipe.loss}' needs samples of the policy as it is, but "
      f"{reason}: choose a pairwise loss, or method 'online' with refresh_every, "
      "on_policy_fraction, temperature and top_p 1"
    )


def _check_samples(name: str, recipe: PolicyRecipe) -> None:
  if recipe.select not in rollout.SELECT:
    names = ", ".join(rollout.SELECT)
    raise UserError(f"{name}: select '{recipe.select}' is unknown; there are {names}")
  if recipe.samples < 2:
    raise UserError(f"{name}: samples is {recipe.samples}; give at least 2")
  if recipe.select == "two" and recipe.samples != 2:
    raise UserError(
      f"{name}: select 'two' of {recipe.samples} samples: set select to 'best_worst', "
      "or to 'all' for a loss of groups"
    )
  if recipe.grouped and recipe.select != "all":
    raise UserError(
      f"{name}: loss '{recipe.loss}' reads all samples of a prompt: set select to "
      f"'all', not '{recipe.select}'"
    )
  if recipe.select == "all" and not recipe.grouped:
    raise UserError(
      f"{name}: loss '{recipe.loss}' reads pairs: set select to 'two' or 'best_worst', "
      "not 'all'"
    )


def _check_offline(
  name: str, recipe: PolicyRecipe, datasets: Mapping[str, Any]
) -> None:
  if recipe.dataset not in (*recipes.DATASETS, *datasets):
    names = ", ".join([*recipes.DATASETS, *datasets])
    raise UserError(f"{name}: dataset '{recipe.dataset}' is unknown; there are {names}")
  if recipe.replay_window < -1:
    raise UserError(f"{name}: replay_window must be -1 (all), 0 (none) or batches")
