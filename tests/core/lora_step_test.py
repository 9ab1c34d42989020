"""Training adapters: the base stays, costs no optimizer, and is the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import judges, loop, optim, rollout, sampling, scoring, train_step
from alignment.core.train_step import Fixed
from alignment.data import sources
from alignment.models import lora, t5
from alignment.models.lora import LORA, LoraSettings
from alignment.models.protocol import BASE, with_base, without_base
from alignment.runtime import checkpoint, sharding
from tests import tiny
from tests.core.loop_test import assert_same_bits, dataset

pytestmark = pytest.mark.usefixtures("compile_quickly")

MESH = sharding.make_mesh()
CFG = dataclasses.replace(tiny.CFG, scan_layers=True)
MODEL = lora.wrap(t5.T5(CFG), LoraSettings(rank=2, alpha=4.0))
RULES = MODEL.layout_rules(1)
ADAMW = optim.Optimizer("adamw", weight_decay=0.01)
IPO = train_step.PolicyObjective(MODEL, "ipo")
HYPER = train_step.hyper(1e-2, beta=0.1)


def base():
  """The fixed parameters, on the device."""
  layout = sharding.shardings(tiny.params(0, CFG), MESH, RULES)
  return jax.device_put(tiny.params(0, CFG), layout)


def step_of(objective, model=MODEL, optimizer=ADAMW, rules=RULES):
  return train_step.compiled(objective, optimizer, 1, MESH, rules, model)


def new_state(model=MODEL, optimizer=ADAMW, rules=RULES):
  trained = jax.jit(lambda key: without_base(model.init(key)))(jax.random.key(1))
  return train_step.compiled_init(model, optimizer, MESH, rules)(trained)


def test_the_state_has_adapters_and_their_moments_only():
  """And the first update moves all of B, the base not at all: it is not donated."""
  fixed, state = base(), new_state()
  before = jax.tree.map(jnp.copy, state.params)
  size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert set(state.params) == {LORA}
  everything = jax.tree.leaves((state.params, state.opt_state))
  assert 3 * size <= sum(leaf.size for leaf in everything) < 3 * size + 10
  step = step_of(IPO)
  state, metrics = step(
    state, sharding.put_batch(tiny.batch(8), MESH), HYPER, Fixed(fixed)
  )
  assert_same_bits(jax.device_get(fixed), tiny.params(0, CFG))
  assert np.isfinite(metrics["loss"][0])
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    old = np.asarray(
      next(x for p, x in jax.tree_util.tree_leaves_with_path(before) if p == path)
    )
    moved = np.abs(np.asarray(leaf) - old).max()
    if sharding.path_name(path).endswith("/b"):
      assert moved > 1e-3, sharding.path_name(path)
    else:  # its gradient is zero while B is: only weight decay
      assert moved <= 1.01e-4 * np.abs(old).max(), sharding.path_name(path)


def test_the_base_is_an_argument_and_its_gradient_is_not_computed():
  """No constant of its size in the program, and less work than training all of it."""
  plain = t5.T5(CFG)
  ipo = train_step.PolicyObjective(plain, "ipo")
  batch = sharding.put_batch(tiny.batch(8), MESH)
  whole = train_step.init_state(base(), ADAMW)
  programs = [
    step_of(ipo, plain, rules=t5.RULES).lower(whole, batch, HYPER),
    step_of(IPO).lower(new_state(), batch, HYPER, Fixed(base())),
  ]
  assert "dense_resource" not in programs[1].as_text()
  sizes = [p.compile().memory_analysis().argument_size_in_bytes for p in programs]
  masters = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params))
  assert sizes[0] > 3 * masters and sizes[1] < 2.2 * masters
  # Of the three products of a kernel one is saved, and little comes for it.
  wide = dataclasses.replace(CFG, d_model=64, d_ff=256, d_kv=16)
  work = []
  for model in t5.T5(wide), lora.wrap(t5.T5(wide), LoraSettings(1)):
    objective = train_step.SupervisedObjective(model)
    rules = model.layout_rules(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    fixed = [Fixed(shapes[BASE])] if BASE in shapes else []
    state = train_step.abstract_state(model, ADAMW, MESH, rules)
    program = step_of(objective, model, rules=rules)
    compiled = program.lower(state, batch, HYPER, *fixed).compile()
    work.append(compiled.cost_analysis()["flops"])
  assert work[1] < 0.8 * work[0]


def test_the_first_log_ratio_is_exactly_zero():
  """The reference is scored by another program, of the base alone."""
  batch = sharding.put_batch(tiny.batch(8), MESH)
  score = jax.jit(lambda p, b: scoring.score(t5.T5(CFG), p, b))
  batch = batch.replace(ref_logps_BxN=score(base(), batch))
  _, metrics = step_of(IPO)(new_state(), batch, HYPER, Fixed(base()))
  assert metrics["rho"][0] == 0 and metrics["accuracy"][0] == 4
  assert metrics["chosen_log_ratio"][0] == metrics["rejected_log_ratio"][0] == 0
  assert metrics["grad_norm"][0] > 0


def test_a_rollout_takes_the_base_once_for_policy_and_reference():
  """And gives what one gives that is told all parameters twice."""
  sampler = sampling.Sampler(MODEL, (tiny.EOS,))
  fixed, trained = base(), {LORA: MODEL.init(jax.random.key(1))[LORA]}
  trained = jax.tree.map(lambda leaf: leaf + 0.1, trained)
  judge_params = tiny.params(5, tiny.JUDGE.model.cfg)
  outcomes = []
  for shared, params in ((True, trained), (False, with_base(trained, fixed))):
    roller = rollout.Roller(sampler, t5.T5(CFG), tiny.JUDGE, on_reference=shared)
    roll = rollout.compiled(roller, MESH)
    key = jax.random.key(2)
    outcomes.append(roll(params, fixed, judge_params, tiny.batch(4), key))
  jax.tree.map(np.testing.assert_array_equal, *outcomes)
  rolled = outcomes[0]
  logps = scoring.score(MODEL, with_base(trained, fixed), rolled.batch)
  np.testing.assert_allclose(logps, rolled.logps_BxN, atol=2e-5)
  assert np.abs(logps - rolled.batch.ref_logps_BxN).max() > 0.01


def test_a_preference_model_learns_with_adapters_alone():
  """And what no base holds is trained whole, whatever it is."""
  body = lora.wrap(dataclasses.replace(tiny.JUDGE.model), LoraSettings(2))

  @dataclasses.dataclass(frozen=True)
  class WithBias(type(body)):
    """A model with one parameter more than its base."""

    def init(self, key):
      return super().init(key) | {"bias": jnp.zeros(())}

  model = WithBias(**vars(body))
  judge = dataclasses.replace(tiny.JUDGE, model=model)

  def objective(params, batch, beta):
    metrics = train_step.PreferenceObjective(judge)(params, batch, beta)
    total, weight = metrics["loss"]
    return metrics | {"loss": (total + (params["bias"] - 1) ** 2, weight)}

  rules = ((r"^bias$", ()), *model.layout_rules(1))
  fixed = tiny.params(0, tiny.JUDGE.model.cfg)
  state = new_state(model, rules=rules)
  step, losses = step_of(objective, model, rules=rules), []
  batch = sharding.put_batch(tiny.batch(8), MESH)
  for _ in range(8):
    state, metrics = step(state, batch, HYPER, Fixed(fixed))
    losses.append(float(metrics["loss"][0]))
  assert losses[-1] < 0.95 * losses[0]
  assert set(state.params) == {LORA, "bias"} and state.params["bias"] > 0
  assert isinstance(judge, judges.PreferenceModel)


def test_two_steps_resume_and_two_more_are_four(tmp_path):
  """And what is kept for evaluation are adapters."""
  step, fixed = step_of(IPO), base()
  state = train_step.abstract_state(MODEL, ADAMW, MESH, RULES)

  def run(directory, steps):
    learner = loop.Learner(
      state,
      new_state,
      lambda *arguments: step(*arguments, Fixed(fixed)),
      HYPER,
    )
    schedule = loop.Schedule(steps, (2, 4), log_every=1, save_every=2)
    source = sources.OfflineSource(dataset(), 4, tiny.S, tiny.T, MESH, seed=1)
    return loop.train("lora", directory, learner, source, schedule)

  whole = run(tmp_path / "whole", 4)
  run(tmp_path / "parts", 2)
  assert_same_bits(run(tmp_path / "parts", 4), whole)
  kept = checkpoint.restore_params(tmp_path / "whole", 4, state.params)
  assert_same_bits(kept, whole.params)
