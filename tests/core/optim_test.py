"""Optimizers, against hand-written steps, and alike for stacked layers and a list."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.core import optim
from alignment.models import t5
from alignment.types import UserError

pytestmark = pytest.mark.usefixtures("compile_quickly")

LAYERS = 3


def tree(seed, scale=1.0):
  """Parameters or gradients, layers as a list; layers differ in size by a lot."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return (scale * rng.normal(size=shape)).astype(np.float32)

  layers = [
    {
      "up": {"kernel": 10.0**i * normal(128, 130)},
      "norm": {"scale": 10.0**i * normal(7)},
    }
    for i in range(LAYERS)
  ]
  return {
    "encoder": {"layers": layers, "norm": {"scale": normal(7)}},
    "decoder": {"layers": [{"norm": {"scale": normal(5)}}]},
    "embedding": normal(140, 128),
    "position": normal(4, 3),
  }


def steps(optimizer, stacked):
  """Three updates, as a list of layers again, and the last state."""
  form = t5.with_layers_stacked if stacked else (lambda x: x)
  rule = optimizer.transform()
  params = form(tree(0))
  state = rule.init(params)
  update = jax.jit(rule.update)
  out = []
  for i in range(3):
    updates, state = update(form(tree(1 + i, 0.1)), state, params)
    out.append(updates)
  if stacked:
    for updates in out:
      for stack, count in ("encoder", LAYERS), ("decoder", 1):
        layers = updates[stack]["layers"]
        updates[stack]["layers"] = t5.unstack_layers(layers, count)
  return out, state


@pytest.mark.parametrize(
  "optimizer",
  [
    optim.Optimizer("adafactor"),
    optim.Optimizer("adafactor", weight_decay=0.01, clip_norm=1.0),
    optim.Optimizer("adamw", weight_decay=0.1),
  ],
)
def test_stacked_layers_train_like_a_list_of_layers(optimizer):
  ours, _ = steps(optimizer, stacked=True)
  theirs, _ = steps(optimizer, stacked=False)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs
  )


def test_adafactor_factors_kernels_also_of_stacked_layers():
  _, state = steps(optim.Optimizer("adafactor"), stacked=True)
  shapes = {tuple(x.shape) for x in jax.tree.leaves(state)}
  assert {(LAYERS, 128), (LAYERS, 130)} <= shapes  # the kernels' rows and columns
  assert {(140,), (128,)} <= shapes  # the embedding's
  assert {(LAYERS, 7), (4, 3)} <= shapes  # too small to factor: whole
  assert (LAYERS, 128, 130) not in shapes and (140, 128) not in shapes


def test_adafactor_is_optax_but_for_the_learning_rate():
  """Per layer: optax's own, run on every layer alone, with rate 1."""
  ours, _ = steps(optim.Optimizer("adafactor"), stacked=True)
  rule = optax.adafactor(learning_rate=1.0)
  params = tree(0)["encoder"]["layers"][1]
  state = rule.init(params)
  for i in range(3):
    grads = tree(1 + i, 0.1)["encoder"]["layers"][1]
    updates, state = rule.update(grads, state, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7),
    ours[-1]["encoder"]["layers"][1],
    updates,
  )


def test_adafactor_does_not_decay_scales():
  params = {"kernel": jnp.ones((4, 4)), "norm": {"scale": jnp.ones(4)}}
  updates = []
  for weight_decay in (0.0, 0.1):
    rule = optim.Optimizer("adafactor", weight_decay=weight_decay).transform()
    gradients = jax.tree.map(jnp.ones_like, params)
    updates.append(rule.update(gradients, rule.init(params), params)[0])
  without, with_decay = updates
  assert jnp.all(with_decay["kernel"] < without["kernel"])
  np.testing.assert_array_equal(with_decay["norm"]["scale"], without["norm"]["scale"])


def test_adamw_equals_a_hand_written_step_and_does_not_decay_scales():
  optimizer = optim.Optimizer("adamw", b1=0.8, b2=0.9, epsilon=1e-3, weight_decay=0.1)
  updates, _ = steps(optimizer, stacked=True)
  flat = lambda x: jax.tree_util.tree_flatten_with_path(x)[0]  # noqa: E731
  m = v = [0.0] * len(jax.tree.leaves(tree(0)))
  for i in range(3):
    grads = jax.tree.leaves(tree(1 + i, 0.1))
    m = [0.8 * a + 0.2 * g for a, g in zip(m, grads, strict=True)]
    v = [0.9 * a + 0.1 * g**2 for a, g in zip(v, grads, strict=True)]
  decayed = set()
  for (path, p), a, b, update in zip(
    flat(tree(0)), m, v, jax.tree.leaves(updates[-1]), strict=True
  ):
    is_scale = jax.tree_util.keystr(path).endswith("['scale']")
    step = (a / (1 - 0.8**3)) / (np.sqrt(b / (1 - 0.9**3)) + 1e-3)
    step = step + (0.0 if is_scale else 0.1) * p
    np.testing.assert_allclose(update, -step, rtol=1e-4, atol=1e-6)
    decayed.add(is_scale)
  assert decayed == {True, False}


def test_clipping_is_by_the_norm_of_the_whole_gradient():
  """Adam's first moments after one step are (1 - b1) times the clipped gradient."""
  grads = tree(1)
  norm = float(optax.tree.norm(grads))
  for limit, factor in (norm / 4, 0.25), (norm * 2, 1.0), (0.0, 1.0):
    rule = optim.Optimizer("adamw", clip_norm=limit).transform()
    _, state = jax.jit(rule.update)(grads, rule.init(tree(0)), tree(0))
    moments = optax.tree.get(
      state, "mu", filtering=lambda path, _: "whole" in str(path)
    )
    np.testing.assert_allclose(
      moments["embedding"], 0.1 * factor * grads["embedding"], rtol=1e-4, atol=1e-6
    )


def test_learning_rate_warms_up_and_decays():
  rate = lambda *a: float(optim.learning_rate(*map(jnp.float32, a)))  # noqa: E731
  assert [rate(t, 8.0, 4, 0) for t in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
  assert rate(0, 8.0, 0, 0) == 8.0 == rate(10_000, 8.0, 0, 0)
  decayed = [rate(t, 8.0, 2, 8) for t in (0, 1, 2, 4, 6, 8, 9)]
  assert decayed == [4.0, 7.0, 6.0, 4.0, 2.0, 0.0, 0.0]


def test_unknown_optimizer_is_named():
  with pytest.raises(UserError, match="optimizer.name 'sgd' is unknown"):
    dataclasses.replace(optim.Optimizer(), name="sgd").transform()


def test_a_lone_stack_of_layers_is_trained_layer_by_layer():
  """As decoder-only models have it; biases, as scales, do not decay."""
  layers = [
    {"up": {"kernel": 10.0**i * np.ones((128, 130), np.float32)}} for i in (0, 1)
  ]
  rule = optim.Optimizer(weight_decay=0.1).transform()
  apart, stacked = (
    rule.update(form, rule.init(form), form)[0]["layers"]
    for form in (
      {"layers": layers},
      {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)},
    )
  )
  for i, layer in enumerate(apart):
    kernel = stacked["up"]["kernel"][i]
    np.testing.assert_allclose(kernel, layer["up"]["kernel"], rtol=1e-5)
  decayed = optim._is_matrix(
    {"query": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 1.0}}
  )
  assert decayed == {"query": {"kernel": True, "bias": False}, "norm": {"scale": False}}
