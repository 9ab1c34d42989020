"""Optimizers: Adafactor (T5X's default) and AdamW, the learning rate kept outside.

The learning rate is an input of the train step, not part of the optimizer, so that a
sweep over it shares one compiled step.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from alignment.runtime.sharding import path_name
from alignment.types import Array, Params, UserError


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """What determines an update, the learning rate apart; hashable, for jit."""

  name: str = "adafactor"
  b1: float = 0.9  # AdamW
  b2: float = 0.95  # AdamW
  epsilon: float = 1e-8  # AdamW
  weight_decay: float = 0.0
  decay_rate: float = 0.8  # Adafactor
  multiply_by_parameter_scale: bool = True  # Adafactor
  clip_norm: float = 0.0  # of the whole gradient; 0 is none

  def __post_init__(self):
    for key in ("b1", "b2"):
      if not 0 <= (value := getattr(self, key)) < 1:
        raise UserError(f"optimizer.{key} is {value}; give at least 0 and less than 1")
    for key in ("epsilon", "decay_rate", "weight_decay", "clip_norm"):
      if not 0 <= (value := getattr(self, key)) < math.inf:
        raise UserError(f"optimizer.{key} is {value}; give at least 0")

  def transform(self) -> optax.GradientTransformation:
    """Gradients -> updates that are still to be multiplied by the learning rate.

    Raises:
      UserError: for an unknown optimizer.
    """
    if self.name == "adafactor":
      # No learning rate in here: it multiplies all that comes out, decay included.
      rule = optax.adafactor(
        learning_rate=None,
        decay_rate=self.decay_rate,
        multiply_by_parameter_scale=self.multiply_by_parameter_scale,
        weight_decay_rate=self.weight_decay or None,
        weight_decay_mask=_is_matrix,
      )
    elif self.name == "adamw":
      rule = optax.chain(
        optax.scale_by_adam(self.b1, self.b2, self.epsilon),
        optax.add_decayed_weights(self.weight_decay, _is_matrix),
        optax.scale(-1.0),
      )
    else:
      raise UserError(f"optimizer.name '{self.name}' is unknown: adafactor or adamw")
    # Encoder and decoder apart: they need not have the same number of layers.
    rules = {"encoder": per_layer(rule), "decoder": per_layer(rule), "whole": rule}
    rule = optax.partition(rules, _stacked_or_whole)
    if self.clip_norm:
      rule = optax.chain(optax.clip_by_global_norm(self.clip_norm), rule)
    return rule


def per_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies a rule to every layer of stacked leaves on its own.

  Adafactor clips updates and scales them per leaf; a leaf that holds all layers would
  train differently from the same layers apart.
  """

  def init(params):
    return jax.vmap(rule.init)(params) if jax.tree.leaves(params) else rule.init(params)

  def update(updates, state, params=None):
    if not jax.tree.leaves(updates):
      return rule.update(updates, state, params)
    return jax.vmap(rule.update)(updates, state, params)

  return optax.GradientTransformation(init, update)


def _stacked_or_whole(params: Params) -> Params:
  """Labels: a stack's name for its leaves with a leading layer axis, else 'whole'."""

  def label(path, _):
    names = path_name(path).split("/")
    if "layers" in names:
      at = names.index("layers")
      if not names[at + 1].isdigit():  # not a list of layers
        # A model's only stack is as good as a decoder.
        return "encoder" if names[at - 1 : at] == ["encoder"] else "decoder"
    return "whole"

  return jax.tree_util.tree_map_with_path(label, params)


def _is_matrix(params: Params) -> Params:
  """Weight decay acts on kernels and embeddings, not on norms' scales and biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not path_name(path).endswith(("scale", "bias")), params
  )


def learning_rate(
  step: Array, peak: Array, warmup_steps: Array, decay_steps: Array
) -> Array:
  """Linear warm-up to `peak`, then constant, or linear to 0 at `decay_steps` if > 0.

  Step 0 already has 1/warmup of the peak.
  """
  ramp = (step + 1.0) / jnp.maximum(warmup_steps, 1.0)
  left = 1.0 - step / jnp.maximum(decay_steps, 1.0)
  decay = jnp.where(decay_steps > 0, jnp.maximum(left, 0.0), 1.0)
  return peak * jnp.minimum(jnp.minimum(1.0, ramp), decay)
