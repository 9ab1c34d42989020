"""Sampling on the device: one compiled loop, one uniform draw per token.

Every token is the inverse of the model's cumulative distribution at a draw that is
keyed by (key, example id, sample, position) alone. So draws do not depend on the batch,
the row's place in it or the number of devices, and two runs can differ in a token only
where rounding moves a boundary of the distribution across the draw: a near-tie.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from alignment.models import t5
from alignment.types import Array, Params

EOS = 1


class Samples(struct.PyTreeNode):
  """N sampled responses per prompt."""

  tokens_BxNxT: Array  # int32, right-padded
  lengths_BxN: Array  # int32, EOS included
  logps_BxNxT: Array  # float32, log pi(token) at temperature 1; 0 past the end
  ended_BxN: Array  # bool, False where the response was cut off at T


def uniforms(key: Array, ids_B: Array, num_samples: int, max_length: int) -> Array:
  """Draws in [0, 1), BxNxT, a function of (key, id, sample, position) alone."""

  def row(i):
    key_i = jax.random.fold_in(key, i)

    def sample(n):
      return jax.random.uniform(jax.random.fold_in(key_i, n), (max_length,))

    return jax.vmap(sample)(jnp.arange(num_samples))

  return jax.vmap(row)(ids_B)


def inverse_cdf(probs: Array, draws: Array) -> Array:
  """The smallest index whose cumulative probability exceeds the draw.

  In two levels (blocks, then within the block), so that float32 sums stay short.

  Args:
    probs: [..., V] non-negative, not necessarily summing to 1.
    draws: [...] in [0, 1).

  Returns:
    int32 [...]; never an index of probability 0.
  """
  V = probs.shape[-1]
  width = 128 if V > 256 else V
  blocks = jnp.pad(probs, [(0, 0)] * (probs.ndim - 1) + [(0, -V % width)])
  blocks = blocks.reshape(*probs.shape[:-1], -1, width)
  ends = _cumulative(blocks.sum(-1))
  target = draws * ends[..., -1]
  block = jnp.sum(ends <= target[..., None], axis=-1)
  below = jnp.where(
    block > 0,
    jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[..., None], -1)[..., 0],
    0.0,
  )
  inside = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
  # The two levels round apart (XLA may fuse the product into the difference): before
  # the block's start means its first possible index, past its end its last.
  rest = jnp.maximum(target - below, 0.0)
  within = jnp.sum(_cumulative(inside) <= rest[..., None], axis=-1)
  last = width - 1 - jnp.argmax(jnp.flip(inside > 0, -1), axis=-1)
  return (block * width + jnp.minimum(within, last)).astype(jnp.int32)


def _cumulative(probs: Array) -> Array:
  """Cumulative sums that never fall, and rise only where a probability is positive.

  XLA sums long rows in parallel, so that plain sums move by rounding across zeros.
  """
  sums = jnp.where(probs > 0, jnp.cumsum(probs, axis=-1), 0.0)
  return jax.lax.cummax(sums, axis=sums.ndim - 1)


def nucleus(probs: Array, top_p: float) -> Array:
  """Zeroes all but the smallest set of most likely tokens with mass >= top_p."""
  descending = -jnp.sort(-probs, axis=-1)
  mass_before = jnp.cumsum(descending, axis=-1) - descending
  kept = jnp.sum(mass_before < top_p, axis=-1, keepdims=True)
  threshold = jnp.take_along_axis(descending, kept - 1, axis=-1)
  return jnp.where(probs >= threshold, probs, 0.0)


def choose(logits: Array, draws: Array, temperature: float, top_p: float) -> Array:
  """The next token: greedy at temperature 0, else the inverse CDF at `draws`."""
  if temperature == 0.0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if top_p < 1.0:
    return inverse_cdf(nucleus(jax.nn.softmax(logits, axis=-1), top_p), draws)
  # The inverse CDF takes weights: normalising them would be another pass.
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  return inverse_cdf(weights, draws)


def sample(
  model: t5.T5,
  params: Params,
  context: t5.Context,
  draws_BxNxT: Array,
  *,
  temperature: float = 1.0,
  top_p: float = 1.0,
  stop_at_eos: bool = True,
) -> Samples:
  """Samples N responses of at most T tokens to every prompt of `context`.

  Args:
    model: the policy.
    params: its parameters, layers as a list (`t5.with_layers_as_list`).
    context: `model.prepare(..., cross_keys_values=True)`: done once, for all N.
    draws_BxNxT: from `uniforms`.
    temperature: 1 for the policy's own distribution, which the KL needs; 0 is greedy.
    top_p: nucleus sampling, where below 1.
    stop_at_eos: False never ends a response (for measuring speed).
  """
  B, N, T = draws_BxNxT.shape

  def unfinished(state):
    return (state["t"] < T) & ~jnp.all(state["done_BxN"])

  def step(state: dict[str, Any]) -> dict[str, Any]:
    t, done_BxN = state["t"], state["done_BxN"]
    logits_BxNxV, cache = model.decode_step(
      params, context, state["cache"], state["last_BxN"], t
    )
    draws_BxN = jax.lax.dynamic_index_in_dim(draws_BxNxT, t, 2, keepdims=False)
    token_BxN = choose(logits_BxNxV, draws_BxN, temperature, top_p)
    picked_BxN = jnp.take_along_axis(logits_BxNxV, token_BxN[..., None], -1)[..., 0]
    logp_BxN = picked_BxN - jax.nn.logsumexp(logits_BxNxV, axis=-1)
    token_BxN = jnp.where(done_BxN, t5.PAD, token_BxN)
    logp_BxN = jnp.where(done_BxN, 0.0, logp_BxN)
    put = jax.lax.dynamic_update_index_in_dim
    return {
      "t": t + 1,
      "cache": cache,
      "last_BxN": token_BxN,
      "tokens_BxNxT": put(state["tokens_BxNxT"], token_BxN, t, 2),
      "logps_BxNxT": put(state["logps_BxNxT"], logp_BxN, t, 2),
      "lengths_BxN": state["lengths_BxN"] + ~done_BxN,
      "done_BxN": done_BxN | ((token_BxN == EOS) & stop_at_eos),
    }

  state = jax.lax.while_loop(
    unfinished,
    step,
    {
      "t": jnp.int32(0),
      "cache": model.init_cache(params, B * N, T),
      "last_BxN": jnp.full((B, N), t5.PAD, jnp.int32),
      "tokens_BxNxT": jnp.full((B, N, T), t5.PAD, jnp.int32),
      "logps_BxNxT": jnp.zeros((B, N, T), jnp.float32),
      "lengths_BxN": jnp.zeros((B, N), jnp.int32),
      "done_BxN": jnp.zeros((B, N), bool),
    },
  )
  return Samples(
    state["tokens_BxNxT"], state["lengths_BxN"], state["logps_BxNxT"], state["done_BxN"]
  )
