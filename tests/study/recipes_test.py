"""Runs as products of their axes, and what follows from a recipe."""

import dataclasses

import pytest

from alignment.study import recipes
from alignment.types import UserError
from tests import studies


def test_a_value_that_is_policys_own_makes_no_second_run():
  config = studies.nano()
  config.runs = {"mine": ({}, {"beta": (config.policy.beta, 9.0)})}
  assert list(recipes.runs(config)) == ["mine_ipo", "mine_ipo_beta9.0"]


def test_a_run_of_another_optimizer_keeps_the_rest_of_its_settings():
  config = studies.nano()
  config.runs = {"mine": {"optimizer": ({"b2": 0.9},), "evaluate_at": ((0.5, 1.0),)}}
  ((name, (_, recipe)),) = recipes.runs(config).items()
  own = recipes.PolicyRecipe.of(config.policy).optimizer
  assert recipe.optimizer == dataclasses.replace(own, b2=0.9)
  assert not set(name) & set("[]{}' /")  # it names directories


def test_runs_are_the_product_of_their_axes():
  config = studies.nano()
  config.runs = {
    "online": {"method": ("online",), "loss": ("ipo", "dpo")},
    "sweep": {"method": ("offline",), "beta": (0.1, 1.0), "steps": (4, 8)},
  }
  runs = recipes.runs(config)
  assert set(runs) == {
    "online_ipo", "online_dpo", "sweep_ipo_beta0.1_steps4", "sweep_ipo_beta0.1_steps8",
    "sweep_ipo_beta1.0_steps4", "sweep_ipo_beta1.0_steps8",
  }  # fmt: skip
  series, recipe = runs["sweep_ipo_beta1.0_steps4"]
  assert series == "sweep"
  assert (recipe.method, recipe.beta, recipe.steps) == ("offline", 1.0, 4)
  assert recipe.size == config.policy.size  # the rest is as in policy


def test_an_entry_may_be_several_products():
  config = studies.nano()
  config.runs = {"online": ({"beta": (0.1, 0.2)}, {"loss": ("dpo",)})}
  assert set(recipes.runs(config)) == {
    "online_ipo_beta0.1", "online_ipo_beta0.2", "online_dpo"
  }  # fmt: skip


def test_what_is_replayed_is_the_online_run_of_the_same_size_loss_and_seed():
  config = studies.nano()
  config.runs = {
    "replay": {
      "method": ("offline",), "dataset": ("stream",), "loss": ("dpo",), "seed": (3,),
      "size": ("micro",), "beta": (9.0,), "learning_rate": (9.0,),
    }
  }  # fmt: skip
  for online, expected in (
    ({}, ("online", "dpo", "micro", 3, config.policy.learning_rate)),
    ({"learning_rate": 0.5, "seed": 4}, ("online", "dpo", "micro", 4, 0.5)),
  ):
    config.runs.replay.stream = (online,)
    ((_, recipe),) = recipes.runs(config).values()
    s = recipes.stream_of(config, recipe)
    assert (s.method, s.loss, s.size, s.seed, s.learning_rate) == expected
    assert s.beta == config.policy.beta and s.record


def test_fractions_of_a_run_are_its_nearest_steps_from_the_first_on():
  config = studies.nano(**{"policy.steps": 10, "policy.evaluate_at": (1.0, 0.0, 0.28)})
  assert recipes.PolicyRecipe.of(config.policy).evaluated_steps() == [1, 3, 10]
  assert recipes.source(config, "d", "online@0.28").step == 3
  with pytest.raises(UserError, match="online@0.5': 0.5 is not among policy.evaluate_"):
    recipes.source(config, "d", "online@0.5")
  with pytest.raises(UserError, match="'online@half': 'half' is no fraction of a run"):
    recipes.source(config, "d", "online@half")
