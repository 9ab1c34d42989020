"""Losses of all N scored responses of a prompt, sampled by the policy as it is now."""

import jax
import jax.numpy as jnp

from alignment.core.losses.registry import group
from alignment.core.losses.terms import per_token
from alignment.types import Array


@group()
def rloo(
  logps_BxN: Array, ref_logps_BxN: Array, beta: float, scores_BxN: Array, kl_BxN: Array
) -> Array:
  """RLOO: mean_i of -A_i log pi(y_i|x) + beta KL_i, A_i = R_i - mean of the others' R.

  R_i = score_i - beta KL_i, held fixed (Ahmadian et al., arXiv 2402.14740).
  Log-probabilities are sums. Larger beta, in score per nat, is stronger regularisation.
  The paper and TRL put the sampled log-ratio where KL_i stands, and have no second
  term: its expected gradient is 0. An exact KL depends on the policy at every token,
  and needs both terms for the gradient to be that of E[score] - beta KL(pi || pi_ref),
  without bias. The value itself means nothing.
  """
  del ref_logps_BxN
  logps_BxN, scores_BxN, kl_BxN = _group(logps_BxN, scores_BxN, kl_BxN)
  returns_BxN = jax.lax.stop_gradient(scores_BxN - beta * kl_BxN)
  N = logps_BxN.shape[1]
  others_BxN = (returns_BxN.sum(axis=1, keepdims=True) - returns_BxN) / (N - 1)
  advantages_BxN = returns_BxN - others_BxN
  return jnp.mean(beta * kl_BxN - advantages_BxN * logps_BxN, axis=1)


@group()
def grpo(
  logps_BxN: Array,
  ref_logps_BxN: Array,
  beta: float,
  lengths_BxN: Array,
  scores_BxN: Array,
  kl_BxN: Array,
) -> Array:
  """GRPO: mean_i of (-A_i log pi(y_i|x) + beta KL_i) / |y_i|, A = (score - mean) / std.

  Its first step on fresh samples, where nothing is clipped (Shao et al.,
  arXiv 2402.03300, eq. 3, with the exact KL for the estimate of eq. 4: of the same
  mean, but that estimate's mean gradient is KL(pi_ref || pi)'s, which is the same only
  near pi_ref). Mean and standard deviation (N - 1, plus 1e-4, as TRL has it) are the
  group's. Each response weighs the same whatever its length: TRL's loss_type "grpo",
  not its default. Larger beta, per nat and token, is stronger regularisation; as in the
  paper, it has no part in the advantages. The value itself means nothing.
  """
  del ref_logps_BxN
  logps_BxN, scores_BxN, kl_BxN = _group(logps_BxN, scores_BxN, kl_BxN)
  scores_BxN = jax.lax.stop_gradient(scores_BxN)
  centred_BxN = scores_BxN - scores_BxN.mean(axis=1, keepdims=True)
  std_Bx1 = scores_BxN.std(axis=1, ddof=1, keepdims=True)
  advantages_BxN = centred_BxN / (std_Bx1 + 1e-4)
  loss_BxN = beta * kl_BxN - advantages_BxN * logps_BxN
  return per_token(loss_BxN, lengths_BxN).mean(axis=1)


def _group(*arrays_BxN: Array) -> list[Array]:
  """As float32, after checking that all are [B, N] with N >= 2."""
  shapes = {array.shape for array in arrays_BxN}
  shape = shapes.pop()
  if shapes or len(shape) != 2 or shape[1] < 2:
    raise ValueError(
      "log-probabilities, scores and KL of a group must all be [B, N], N at least 2, "
      f"not {[array.shape for array in arrays_BxN]}"
    )
  return [array.astype(jnp.float32) for array in arrays_BxN]
