"""Layers of a model: a list of trees, or one tree with a leading layer axis."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from alignment.types import Params

REMAT = ("none", "dots", "full")


def stack_layers(params: list[Params]) -> Params:
  """A list of per-layer trees -> one tree with a leading layer axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


def unstack_layers(params: Params, num_layers: int) -> list[Params]:
  """One tree with a leading layer axis -> a list of per-layer trees."""
  return [jax.tree.map(lambda p, i=i: p[i], params) for i in range(num_layers)]


def rematerialised(body: Callable, remat: str) -> Callable:
  """A layer whose backward pass recomputes what `remat` (`REMAT`) does not keep."""
  if remat == "full":
    return jax.checkpoint(body)
  if remat == "dots":
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=policy)
  return body


def fold(
  body: Callable, carry: Any, layers: Any, extra: Any, kinds: Sequence[int], remat: str
) -> tuple[Any, Any]:
  """Folds `body(kind, carry, params, extra)` -> (carry, output) over the layers.

  Args:
    body: one layer. `kind` is a Python int wherever it can be: a layer of a list, or
      of a stack whose layers are all of one kind.
    carry: what goes into the first layer.
    layers: their parameters, a list or stacked.
    extra: one more input of each layer, in the same form; or None.
    kinds: of each layer.
    remat: see `rematerialised`.

  Returns:
    What comes out of the last layer, and the outputs in the form of `layers`.
  """
  if isinstance(layers, list):
    outputs = []
    for i, (params, kind) in enumerate(zip(layers, kinds, strict=True)):
      step = rematerialised(functools.partial(body, kind), remat)
      carry, output = step(carry, params, None if extra is None else extra[i])
      outputs.append(output)
    return carry, outputs
  if len(set(kinds)) == 1:
    step = rematerialised(functools.partial(body, kinds[0]), remat)
    return jax.lax.scan(lambda c, inputs: step(c, *inputs), carry, (layers, extra))
  step = rematerialised(lambda c, kind, *inputs: body(kind, c, *inputs), remat)
  inputs = (jnp.asarray(kinds), layers, extra)
  return jax.lax.scan(lambda c, inputs: step(c, *inputs), carry, inputs)
