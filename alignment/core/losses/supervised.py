"""The losses of SFT and of judges, which no config chooses."""

import jax
import jax.numpy as jnp

from alignment.types import Array, SumWeight


def sft(logps_BxN: Array, lengths_BxN: Array) -> SumWeight:
  """Supervised fine-tuning on all N responses: (sum_B, weight_B), both float32.

  The loss is the mean negative log-probability *per token*, sum / weight. Both parts
  stay unreduced, so that the mean is over tokens however they fall into rows,
  microbatches and hosts.
  """
  if logps_BxN.ndim != 2 or logps_BxN.shape != lengths_BxN.shape:
    raise ValueError(
      f"logps {logps_BxN.shape} and lengths {lengths_BxN.shape} must both be [B, N]"
    )
  loss_B = -jnp.sum(logps_BxN.astype(jnp.float32), axis=-1)
  return loss_B, jnp.sum(lengths_BxN, axis=-1).astype(jnp.float32)


def preference(logit_first_B: Array, logit_second_B: Array) -> Array:
  """The preference model's loss, float32[B], trained on both orders (App. A).

    -1/2 log r(x, y_w, y_l) - 1/2 log(1 - r(x, y_l, y_w)),  r = sigmoid(logit)

  `logit_first` reads the preferred response first, `logit_second` reads it second; both
  say how likely the response read *first* is to be the better one. A model with no
  opinion has loss log 2.
  """
  if logit_first_B.ndim != 1 or logit_first_B.shape != logit_second_B.shape:
    raise ValueError(
      f"logits {logit_first_B.shape} and {logit_second_B.shape} must both be [B]"
    )
  # -log sigmoid(a) = softplus(-a); -log(1 - sigmoid(a)) = softplus(a): never log 0.
  return 0.5 * jax.nn.softplus(-logit_first_B.astype(jnp.float32)) + (
    0.5 * jax.nn.softplus(logit_second_B.astype(jnp.float32))
  )


def bradley_terry(margin_B: Array) -> Array:
  """The reward model's loss, float32[B] (Ouyang et al., arXiv 2203.02155, eq. 1).

    -log sigmoid(r(x, y_w) - r(x, y_l))

  `margin` is the difference of the rewards. Equal rewards have loss log 2.
  """
  if margin_B.ndim != 1:
    raise ValueError(f"margins {margin_B.shape} must be [B]")
  return jax.nn.softplus(-margin_B.astype(jnp.float32))
