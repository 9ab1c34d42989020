"""Sampling on the device: one compiled loop, one uniform draw per token.

Every token is the inverse of the model's cumulative distribution at a draw that is
keyed by (key, example id, sample, position) alone. So draws do not depend on the batch,
the row's place in it or the number of devices, and two runs can differ in a token only
where rounding moves a boundary of the distribution across the draw: a near-tie.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from alignment.models.protocol import Model
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params

FILLER = 0  # what stands after the end of a response, which masks leave out


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


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How a model samples; hashable, for jit.

  Attributes:
    model: what samples.
    ending_ids: any of these ends a response; () never does (for measuring speed).
    temperature: 1 for the model's own distribution, which the KL needs; 0 is greedy.
    top_p: nucleus sampling, where below 1.
    decoding: layout of the parameters while they sample; None: as they are given.
  """

  model: Model
  ending_ids: tuple[int, ...]
  temperature: float = 1.0
  top_p: float = 1.0
  decoding: sharding.Layout | None = None

  def abstract_copy(self, params: Params) -> Params:
    """Shapes and layout of the parameters that it samples with, of those it is given.

    Nothing of them is split over `fsdp`, as a rule: each device then has a whole model.
    """
    shapes = jax.eval_shape(self.model.for_decoding, params)
    if self.decoding is None:
      return shapes
    layout = sharding.shardings(shapes, self.decoding.mesh, self.decoding.rules)
    return sharding.with_layout(shapes, layout)


def generate(
  sampler: Sampler,
  params: Params,
  prompts: Batch,
  key: Array,
  num_samples: int,
  max_length: int,
) -> Samples:
  """`num_samples` responses to each prompt, drawn with the rows' own keys.

  Parameters are cast, and laid out for decoding, once for all tokens.
  """
  model = sampler.model
  params = model.for_decoding(params)
  if sampler.decoding is not None:
    params = sampler.decoding.constrain(params)
  context = model.prepare(
    params, prompts.prompts_BxS, prompts.prompt_lengths_B, for_decoding=True
  )
  draws = uniforms(key, prompts.ids_B, num_samples, max_length)
  return sample(sampler, params, context, draws)


def sample(
  sampler: Sampler, params: Params, context: Any, draws_BxNxT: Array
) -> Samples:
  """Samples N responses of at most T tokens to every prompt of `context`.

  Args:
    sampler: the model, and how it samples.
    params: from `for_decoding`.
    context: `model.prepare(..., for_decoding=True)`: done once, for all N.
    draws_BxNxT: from `uniforms`.
  """
  model = sampler.model
  B, N, T = draws_BxNxT.shape

  def unfinished(state):
    return (state["t"] < T) & ~jnp.all(state["done_BxN"])

  def step(state: dict[str, Any]) -> dict[str, Any]:
    t, done_BxN = state["t"], state["done_BxN"]
    logits_BxNxV, cache = model.decode_step(
      params, context, state["cache"], state["last_BxN"], t
    )
    draws_BxN = jax.lax.dynamic_index_in_dim(draws_BxNxT, t, 2, keepdims=False)
    token_BxN = choose(logits_BxNxV, draws_BxN, sampler.temperature, sampler.top_p)
    picked_BxN = jnp.take_along_axis(logits_BxNxV, token_BxN[..., None], -1)[..., 0]
    logp_BxN = picked_BxN - jax.nn.logsumexp(logits_BxNxV, axis=-1)
    token_BxN = jnp.where(done_BxN, FILLER, token_BxN)
    logp_BxN = jnp.where(done_BxN, 0.0, logp_BxN)
    put = jax.lax.dynamic_update_index_in_dim
    return {
      "t": t + 1,
      "cache": cache,
      "last_BxN": token_BxN,
      "tokens_BxNxT": put(state["tokens_BxNxT"], token_BxN, t, 2),
      "logps_BxNxT": put(state["logps_BxNxT"], logp_BxN, t, 2),
      "lengths_BxN": state["lengths_BxN"] + ~done_BxN,
      "done_BxN": done_BxN | _ends(token_BxN, sampler.ending_ids),
    }

  state = jax.lax.while_loop(
    unfinished,
    step,
    {
      "t": jnp.int32(0),
      "cache": model.init_cache(params, context, N, T),
      "last_BxN": jnp.broadcast_to(context.start_B[:, None], (B, N)),
      "tokens_BxNxT": jnp.full((B, N, T), FILLER, jnp.int32),
      "logps_BxNxT": jnp.zeros((B, N, T), jnp.float32),
      "lengths_BxN": jnp.zeros((B, N), jnp.int32),
      "done_BxN": jnp.zeros((B, N), bool),
    },
  )
  return Samples(
    state["tokens_BxNxT"], state["lengths_BxN"], state["logps_BxNxT"], state["done_BxN"]
  )


def _ends(token_BxN: Array, ending_ids: tuple[int, ...]) -> Array:
  """bool BxN: the token ends its response."""
  ends_BxN = jnp.zeros(token_BxN.shape, bool)
  for ending_id in ending_ids:
    ends_BxN |= token_BxN == ending_id
  return ends_BxN
