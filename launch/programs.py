"""Every distinct program of a study, with what is on the devices while it runs.

The programs are those that training calls (`train_step.compiled`, `rollout.compiled`,
`evals/policy.py`), the arrays only shapes with a layout: nothing is computed, no data,
vocabulary or checkpoint needs to be at hand.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from alignment.core import evaluation as policy_eval
from alignment.core import losses, optim, rollout, train_step
from alignment.core.judges import PreferenceModel
from alignment.models import t5
from alignment.runtime import sharding
from alignment.study import recipes
from alignment.types import Batch, Params, UserError
from launch.placed import Passes, Placed, Program, Work

EVALUATION_SAMPLES = 2  # drawn per prompt
BEST_OF_SAMPLES = 8  # drawn at a time for best-of-n


def programs(config: ConfigDict, mesh: Mesh | AbstractMesh) -> list[Program]:
  """The distinct programs of a study; one that several stages run is listed once.

  Raises:
    UserError: for what `study.build` would refuse too, so far as it needs no data.
  """
  found: dict[Any, Program] = {}
  for program in _Enumeration(Placed(config, config.first_world, mesh)).all():
    key = program.name, program.function, _frozen(program.arguments)
    if key in found:
      other = found[key]
      longer = max(program, other, key=lambda p: p.held_bytes)
      stages = tuple(dict.fromkeys(other.stages + program.stages))
      program = dataclasses.replace(longer, stages=stages)
    found[key] = program
  return list(found.values())


class _Enumeration:
  """The stages of `study.build`, in their order."""

  def __init__(self, setting: Placed):
    self.setting = setting
    self.config = setting.config
    sharding.check_batch(
      self.config.evaluation.batch_size, setting.mesh, "evaluation.batch_size"
    )

  def all(self) -> Iterator[Program]:
    c = self.config
    golden, proxy = _plain(c.golden_pm), _plain(c.proxy_pm)
    policies = {"golden_policy": (_plain(c.golden_policy), golden)}
    for name, (_, recipe) in recipes.runs(c).items():
      policies[name] = (recipe, proxy)
    sizes = {
      role["size"]: None
      for role in (golden, proxy, _plain(c.policy), *(p for p, _ in policies.values()))
      if role["init"] == "sft"
    }
    for size in sizes:
      yield self.sft(size)
    yield from self.preference_model("golden_pm", golden, ("golden_data",))
    yield from self.preference_model("proxy_pm", proxy, ())
    for name, (recipe, judge_role) in policies.items():
      yield from self.policy(name, recipe, judge_role)
    for name, (recipe, _) in policies.items():
      yield from self.evaluation(name, recipe, golden)
    if c.evaluation.best_of:
      recipe = _plain(c.policy)
      held = {"proxy": proxy, "judge": golden}
      yield self.sample("evaluate_best_of_n", recipe, BEST_OF_SAMPLES, held)

  # --- stages ---

  def sft(self, size: str) -> Program:
    recipe = _plain(self.config.sft) | {"size": size}
    recipe |= recipe["by_size"].get(size, {})
    model = self.setting.model(recipe)
    objective = train_step.SupervisedObjective(model)
    return self.train(f"sft_{size}", "SFT step", recipe, objective, model, {})

  def preference_model(self, name, role, also) -> Iterator[Program]:
    judge = self.setting.preference_model(role)
    objective = train_step.PreferenceObjective(judge)
    yield self.train(name, f"{name} step", role, objective, judge.model, {})
    yield self.margins((name, *also), judge, {})

  def policy(self, name, recipe, judge_role) -> Iterator[Program]:
    model = self.setting.model(recipe)
    options = tuple(sorted(recipe["loss_options"].items()))
    objective = train_step.PolicyObjective(model, recipe["loss"], options)
    held = {}
    if recipe["method"] == "online":
      state = self.state(model, recipe)
      judge = self.setting.preference_model(judge_role)
      held = {
        "reference": self.setting.abstract_frozen(model),
        "judge": self.setting.abstract_frozen(judge.model),
      }
      behaviour, others = state.params, {"moments": state.opt_state}
      if recipe["refresh_every"] == 0:  # SFT samples
        behaviour, others["parameters"] = held["reference"], state.params
      elif recipe["refresh_every"] > 1:  # an earlier policy samples
        held["behaviour"] = others["parameters"] = state.params
      yield self.rollout(name, recipe, behaviour, model, judge, held, others)
    label = f"policy step, {recipe['loss']}"
    yield self.train(name, label, recipe, objective, model, held)

  def evaluation(self, name, recipe, judge_role) -> Iterator[Program]:
    """One checkpoint; reference and golden judge are there all the time."""
    model = self.setting.model(recipe)
    judge = self.setting.preference_model(judge_role)
    params, judge_params = self.frozen(model), self.frozen(judge.model)
    size, (S, T) = self.config.evaluation.batch_size, self.lengths
    scored = model.cfg, size, S, EVALUATION_SAMPLES, T
    stages = (f"evaluate_{name}",)
    held = {"reference": recipe, "judge": judge_role}
    yield self.sample(stages[0], recipe, EVALUATION_SAMPLES, held)
    yield Program(
      f"divergence, {recipe['size']}",
      stages,
      policy_eval.divergence,
      (model, params, model, params, self.batch(size), self.rows(
        (size, EVALUATION_SAMPLES, T), jnp.float32)),
      {"judge": judge_params},
      Work("forward", (scored, scored)),
      self.setting.mesh,
    )  # fmt: skip
    yield Program(
      f"log_ratios, {recipe['size']}",
      (*stages, f"golden_data_{recipe['size']}"),
      policy_eval.log_ratios,
      (model, params, self.batch(size)),
      {"reference": params, "judge": judge_params},
      Work("forward", (scored,)),
      self.setting.mesh,
    )
    yield self.margins(stages, judge, {"policy": params, "reference": params})

  # --- programs ---

  def train(self, stage, label, role, objective, model, held) -> Program:
    rows, k = role["batch_size"], role["microbatches"]
    if k < 1 or rows % k:
      raise UserError(f"{stage}: microbatches {k} does not divide batch_size {rows}")
    sharding.check_batch(
      rows // k, self.setting.mesh, f"{stage}: batch_size / microbatches"
    )
    mesh, rules = self.setting.mesh, self.setting.rules
    S, T = self.lengths
    if isinstance(objective, train_step.PreferenceObjective):
      C = objective.preference_model.context_length
      passes: Passes = ((model.cfg, rows // k, C, 1, 1),) * 2
      responses = 2
    else:
      loss = role.get("loss")
      responses = losses.get(loss).responses if loss else 2
      passes = ((model.cfg, rows // k, S, responses, T),)
    optimizer = optim.Optimizer(**role["optimizer"])
    compiled = (
      train_step.compiled(
        objective, optimizer, k, mesh, rules, model, role["on_non_finite"] == "skip"
      )
      if isinstance(mesh, Mesh)
      else None  # only estimated
    )
    numbers = jax.eval_shape(lambda: train_step.hyper(0.0))
    arguments = (
      self.state(model, role),
      self.batch(rows, responses),
      self.everywhere(numbers),
    )
    return Program(
      f"{label}, {role['size']}",
      (stage,),
      compiled,
      arguments,
      held,
      Work("train", passes, k),
      mesh,
    )

  def rollout(self, stage, recipe, behaviour, model, judge, frozen, held) -> Program:
    roller = rollout.Roller(
      model,
      model,
      judge,
      recipe["temperature"],
      recipe["top_p"],
      decoding=self.setting.decoding,
    )
    rows, (S, T) = recipe["batch_size"], self.lengths
    responses = losses.get(recipe["loss"]).responses
    judging = (judge.model.cfg, rows, judge.context_length, 1, 1)
    mesh = self.setting.mesh
    return Program(
      f"rollout, {recipe['size']} judged by {_size(judge)}",
      (stage,),
      rollout.compiled(roller, mesh) if isinstance(mesh, Mesh) else None,
      (
        behaviour,
        frozen["reference"],
        frozen["judge"],
        self.batch(rows, responses),
        self.key,
      ),
      held,
      Work(
        "rollout",
        (
          (model.cfg, rows, S, 2, T),
          judging,
          judging,
          (model.cfg, rows, S, responses, T),
        ),
      ),
      mesh,
    )

  def sample(self, stage, recipe, count, held) -> Program:
    model = self.setting.model(recipe)
    size, (S, T) = self.config.evaluation.batch_size, self.lengths
    params = self.frozen(model)
    return Program(
      f"sample {count}, {recipe['size']}",
      (stage,),
      policy_eval.sample,
      (model, params, self.batch(size), self.key, count, T),
      {name: self.frozen(self.setting.model(role)) for name, role in held.items()},
      Work("rollout", ((model.cfg, size, S, count, T),)),
      self.setting.mesh,
    )

  def margins(self, stages, judge: PreferenceModel, held) -> Program:
    size = self.config.evaluation.batch_size
    once = (judge.model.cfg, size, judge.context_length, 1, 1)
    return Program(
      f"margins, {_size(judge)}",
      stages,
      policy_eval.margins,
      (judge, self.frozen(judge.model), self.batch(size)),
      held,
      Work("forward", (once, once)),
      self.setting.mesh,
    )

  # --- shapes ---

  @property
  def lengths(self) -> tuple[int, int]:
    return self.config.prompt_length, self.config.response_length

  def state(self, model: t5.T5, role: Mapping[str, Any]) -> train_step.TrainState:
    optimizer = optim.Optimizer(**role["optimizer"])
    setting = self.setting
    return train_step.abstract_state(model, optimizer, setting.mesh, setting.rules)

  def frozen(self, model: t5.T5) -> Params:
    return self.setting.abstract_frozen(model)

  @property
  def key(self) -> Any:
    return self.everywhere(jax.eval_shape(lambda: jax.random.key(0)))

  def everywhere(self, tree: Any) -> Any:
    replicated = sharding.replicated(self.setting.mesh)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
      tree,
    )

  def rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    layout = sharding.batch_sharding(self.setting.mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

  def batch(self, B: int, N: int = 2) -> Batch:  # noqa: N803
    S, T = self.lengths
    i32, f32 = jnp.int32, jnp.float32
    return Batch(
      prompts_BxS=self.rows((B, S), i32),
      prompt_lengths_B=self.rows((B,), i32),
      responses_BxNxT=self.rows((B, N, T), i32),
      lengths_BxN=self.rows((B, N), i32),
      ref_logps_BxN=self.rows((B, N), f32),
      weights_B=self.rows((B,), f32),
      ids_B=self.rows((B,), i32),
    )


def _size(judge: PreferenceModel) -> str:
  """The name of a model's size, or its width."""
  cfg = judge.model.cfg
  own = {"d_model": cfg.d_model, "d_ff": cfg.d_ff, "num_heads": cfg.num_heads,
         "encoder_layers": cfg.encoder_layers}  # fmt: skip
  for name, shape in t5.SIZES.items():
    if own.items() <= shape.items():
      return name
  return f"d_model {cfg.d_model}"


def _frozen(tree: Any) -> Any:
  """Something hashable that is equal for equal arguments."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple(
    (leaf.shape, leaf.dtype, leaf.sharding)
    if isinstance(leaf, jax.ShapeDtypeStruct)
    else leaf
    for leaf in leaves
  )


def _plain(value: Any) -> Any:
  return value.to_dict() if isinstance(value, ConfigDict) else value
