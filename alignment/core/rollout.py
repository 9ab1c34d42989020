"""A rollout: prompts in, a batch of judged, ordered and scored pairs out.

One jitted function samples, builds the judge's input from tokens, judges, orders and
adds reference log-probabilities. Its output is a batch like any other, which is fed to
the separately compiled train step: that separation is what lets a replayed record equal
the online run bit for bit.
"""

from collections.abc import Callable
import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment.core import sampling, scoring
from alignment.core.judges import PreferenceModel
from alignment.models.protocol import Model, with_base
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params

SAMPLES = 2  # responses that a policy samples per prompt
COINS = 2**32 - 1  # keys the coins of a step: no prompt's id, which key its samples


class Rollout(struct.PyTreeNode):
  """A batch, and what is worth recording of how it came about."""

  batch: Batch
  margins_B: Array  # float32, the judge's order-free margin of response 0 over 1
  logps_Bx2: Array  # float32, log-probability under the policy that sampled
  ended_Bx2: Array  # bool, False where a response was cut off


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
  judge: PreferenceModel
  on_reference: bool = False


@functools.cache
def compiled(roller: Roller, mesh: Mesh) -> Callable[..., Rollout]:
  """The jitted rollout, its rows sharded as the train step wants them."""
  rows = sharding.batch_sharding(mesh)

  def on_mesh(*args):
    with sharding.on(mesh):
      return rollout(roller, *args)

  return jax.jit(on_mesh, out_shardings=rows)


def rollout(
  roller: Roller,
  policy_params: Params,
  reference_params: Params,
  judge_params: Params,
  prompts: Batch,
  key: Array,
) -> Rollout:
  """Samples two responses per prompt, and puts the one the judge prefers first.

  Ties (identical responses among them) are ordered by a coin from the row's own key.

  Args:
    roller: models and sampling settings.
    policy_params: of the policy that samples.
    reference_params: of the reference, pi_ref.
    judge_params: of the preference model that labels.
    prompts: only its prompts, ids and weights are used; of its responses, those past
      the first two (the supervised target, where a loss wants one) are kept.
    key: for this step; rows fold their ids into it.
  """
  T = prompts.responses_BxNxT.shape[2]
  base = reference_params if roller.on_reference else None
  policy_params = with_base(policy_params, base)
  samples = sampling.generate(roller.sampler, policy_params, prompts, key, SAMPLES, T)
  sampled = prompts.replace(
    responses_BxNxT=samples.tokens_BxNxT, lengths_BxN=samples.lengths_BxN
  )
  margins_B = roller.judge.preference(judge_params, sampled)
  swap_B = second_first(margins_B, jax.random.fold_in(key, COINS), prompts.ids_B)
  swap_Bx1 = swap_B[:, None]

  def order(x):
    swapped = swap_B.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(swapped, x[:, ::-1], x)

  batch = prompts.replace(
    responses_BxNxT=jnp.concatenate(
      [order(samples.tokens_BxNxT), prompts.responses_BxNxT[:, 2:]], axis=1
    ),
    lengths_BxN=jnp.concatenate(
      [order(samples.lengths_BxN), prompts.lengths_BxN[:, 2:]], axis=1
    ),
  )
  ref_logps_BxN = scoring.score(roller.reference, reference_params, batch)
  batch = batch.replace(ref_logps_BxN=ref_logps_BxN)
  logps_Bx2 = jnp.sum(samples.logps_BxNxT, axis=2)
  return Rollout(
    batch=batch,
    margins_B=jnp.where(swap_B, -margins_B, margins_B),
    logps_Bx2=jnp.where(swap_Bx1, logps_Bx2[:, ::-1], logps_Bx2),
    ended_Bx2=jnp.where(swap_Bx1, samples.ended_BxN[:, ::-1], samples.ended_BxN),
  )


def second_first(margins_B: Array, key: Array, ids_B: Array) -> Array:
  """bool B: response 1 is preferred; a coin from (key, id) decides exact ties."""
  coins_B = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i)))(ids_B)
  return jnp.where(margins_B == 0, coins_B, margins_B < 0)
