"""A rollout: prompts in, a batch of sampled, judged and scored responses out.

  generate   N samples of the policy per prompt
  label      a judge's score of each
  select     which of them are learned from, and in which order
  score      their log-probabilities under the reference

All four are pure functions on the device; a judge that works on the host is asked
between two jitted halves. What comes out is a batch like any other, which is fed to the
separately compiled train step: that separation is what lets a replayed record equal the
online run bit for bit.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment.core import sampling, scoring
from alignment.core.judges import Judge
from alignment.models.protocol import Model, with_base
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params, ScoredBatch

# What becomes of N scored responses: the two that there are, the better first; the best
# and the worst; or all, with their scores, in the order in which they were drawn.
SELECT = ("two", "best_worst", "all")
COINS = 2**32 - 1  # keys the coins of a step: no prompt's id, which key its samples


class Rollout(struct.PyTreeNode):
  """A batch, and what is worth recording of how it came about.

  Scores and what follows are of all N samples: of those in the batch, in its order, and
  then of the U that were not selected.
  """

  batch: Batch
  unused_BxUxT: Array  # int32, samples that the batch does not have, from the best on
  unused_lengths_BxU: Array  # int32
  scores_BxN: Array  # float32, the judge's
  logps_BxN: Array  # float32, log-probability under the policy that sampled
  ended_BxN: Array  # bool, False where a response was cut off

  @property
  def margins_B(self) -> Array:  # noqa: N802
    """The judge's, of response 0 over response 1."""
    return self.scores_BxN[:, 0] - self.scores_BxN[:, 1]


@dataclasses.dataclass(frozen=True)
class Roller:
  """What a rollout computes with; hashable, for jit.

  Attributes:
    sampler: the policy that samples, and how.
    reference: pi_ref.
    judge: labels.
    on_reference: the reference is the base of the policy, whose parameters are then
      given without it.
  """

  sampler: sampling.Sampler
  reference: Model
  judge: Judge
  samples: int = 2  # N
  select: str = "two"
  on_reference: bool = False

  def behaviour(self, policy_params: Params, reference_params: Params) -> Params:
    """All parameters of the policy that samples."""
    base = reference_params if self.on_reference else None
    return with_base(policy_params, base)


# --- compiled -------------------------------------------------------------------------


@functools.cache
def compiled(roller: Roller, mesh: Mesh) -> Callable[..., Rollout]:
  """`rollout` of a roller, its rows sharded as the train step wants them.

  It is one jitted program or, where the judge works on the host, `halves` with the
  judge in between: every process judges the rows that it holds.
  """
  if not roller.judge.on_host:
    return _jitted(functools.partial(rollout, roller), mesh)
  first, second = halves(roller, mesh)

  def roll(
    policy_params: Params,
    reference_params: Params,
    judge_params: Params,
    prompts: Batch,
    key: Array,
  ) -> Rollout:
    behaviour = roller.behaviour(policy_params, reference_params)
    samples = first(behaviour, prompts, key)
    rows = sharding.local_rows(sampled(prompts, samples))
    scores_BxN = roller.judge.scores(judge_params, rows)
    scores_BxN = sharding.put_local_rows(scores_BxN, mesh)
    return second(reference_params, prompts, key, samples, scores_BxN)

  return roll


@functools.cache
def halves(roller: Roller, mesh: Mesh) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """What is jitted where the judge works on the host: `generate`, and `finish`."""
  return (
    _jitted(functools.partial(generate, roller), mesh),
    _jitted(functools.partial(finish, roller), mesh),
  )


def _jitted(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  def on_mesh(*args):
    with sharding.on(mesh):
      return function(*args)

  return jax.jit(on_mesh, out_shardings=sharding.batch_sharding(mesh))


# --- generate, label, select, score ---------------------------------------------------


def rollout(
  roller: Roller,
  policy_params: Params,
  reference_params: Params,
  judge_params: Params,
  prompts: Batch,
  key: Array,
) -> Rollout:
  """Samples N responses per prompt, and makes a batch of them by their scores.

  Args:
    roller: models, and how responses are sampled and selected.
    policy_params: of the policy that samples.
    reference_params: of the reference, pi_ref.
    judge_params: of the judge that labels.
    prompts: only its prompts, ids and weights are used; of its responses, those past
      the first two (the supervised target, where a loss wants one) are kept.
    key: for this step; rows fold their ids into it.
  """
  behaviour = roller.behaviour(policy_params, reference_params)
  samples = generate(roller, behaviour, prompts, key)
  scores_BxN = roller.judge.scores(judge_params, sampled(prompts, samples))
  return finish(roller, reference_params, prompts, key, samples, scores_BxN)


def generate(
  roller: Roller, policy_params: Params, prompts: Batch, key: Array
) -> sampling.Samples:
  """N samples of the policy, drawn with the rows' own keys."""
  T = prompts.responses_BxNxT.shape[2]
  return sampling.generate(
    roller.sampler, policy_params, prompts, key, roller.samples, T
  )


def sampled(prompts: Batch, samples: sampling.Samples) -> Batch:
  """The prompts with their samples as responses: what a judge is shown."""
  return prompts.replace(
    responses_BxNxT=samples.tokens_BxNxT, lengths_BxN=samples.lengths_BxN
  )


def finish(
  roller: Roller,
  reference_params: Params,
  prompts: Batch,
  key: Array,
  samples: sampling.Samples,
  scores_BxN: Array,
) -> Rollout:
  """Selects by the scores, and scores what is selected under the reference."""
  coins = jax.random.fold_in(key, COINS)
  order_BxN = select(roller.select, scores_BxN, coins, prompts.ids_B)

  def ordered(x: Array) -> Array:
    indices = order_BxN.reshape(order_BxN.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, indices, axis=1)

  tokens_BxNxT, lengths_BxN = map(ordered, (samples.tokens_BxNxT, samples.lengths_BxN))
  scores_BxN = ordered(scores_BxN)
  batch: Batch
  if roller.select == "all":
    used = roller.samples
    batch = _scored_batch(sampled(prompts, samples), scores_BxN)
  else:
    used = 2
    batch = _pairs(prompts, tokens_BxNxT[:, :2], lengths_BxN[:, :2])
  ref_logps_BxN = scoring.score(roller.reference, reference_params, batch)
  return Rollout(
    batch=batch.replace(ref_logps_BxN=ref_logps_BxN),
    unused_BxUxT=tokens_BxNxT[:, used:],
    unused_lengths_BxU=lengths_BxN[:, used:],
    scores_BxN=scores_BxN,
    logps_BxN=ordered(jnp.sum(samples.logps_BxNxT, axis=2)),
    ended_BxN=ordered(samples.ended_BxN),
  )


def _pairs(prompts: Batch, tokens_Bx2xT: Array, lengths_Bx2: Array) -> Batch:
  """Pairs, before whatever third response the prompts have."""
  tokens = [tokens_Bx2xT, prompts.responses_BxNxT[:, 2:]]
  lengths = [lengths_Bx2, prompts.lengths_BxN[:, 2:]]
  return prompts.replace(
    responses_BxNxT=jnp.concatenate(tokens, axis=1),
    lengths_BxN=jnp.concatenate(lengths, axis=1),
  )


def _scored_batch(batch: Batch, scores_BxN: Array) -> ScoredBatch:
  return ScoredBatch(**vars(batch), scores_BxN=scores_BxN)


def select(how: str, scores_BxN: Array, key: Array, ids_B: Array) -> Array:
  """int32 BxN: a row's samples, those that are learned from first.

  Pairs come first and best first, then the other samples, from the best on.
  """
  B, N = scores_BxN.shape
  if how == "all":
    return jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32)[None], (B, N))
  ranks_BxN = ranked(scores_BxN, key, ids_B)
  first, worst, rest = ranks_BxN[:, :1], ranks_BxN[:, -1:], ranks_BxN[:, 1:-1]
  return jnp.concatenate([first, worst, rest], axis=1)


def ranked(scores_BxN: Array, key: Array, ids_B: Array) -> Array:
  """int32 BxN: a row's samples from the best to the worst.

  Equal scores stand in an order of chance, a function of (key, id) alone; so the best
  and the worst of a row are never the same sample.
  """
  N = scores_BxN.shape[1]
  if N == 2:
    swap_B = second_first(scores_BxN[:, 0] - scores_BxN[:, 1], key, ids_B)
    return jnp.stack([swap_B, ~swap_B], axis=1).astype(jnp.int32)

  def row(scores_N: Array, i: Array) -> Array:
    shuffled_N = jax.random.permutation(jax.random.fold_in(key, i), N)
    best_first_N = jnp.argsort(-scores_N[shuffled_N], stable=True)
    return shuffled_N[best_first_N].astype(jnp.int32)

  return jax.vmap(row)(scores_BxN, ids_B)


def second_first(margins_B: Array, key: Array, ids_B: Array) -> Array:
  """bool B: response 1 is preferred; a coin from (key, id) decides exact ties."""
  coins_B = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i)))(ids_B)
  return jnp.where(margins_B == 0, coins_B, margins_B < 0)
