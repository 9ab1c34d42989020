"""Log-probabilities, KL and entropy of responses, from logits: all in float32.

One convention, everywhere (losses, online and offline, reference, evaluation):
**summed over the response's tokens, EOS included, padding not**. A mean over tokens is
another loss, not another unit: one library averaged offline and summed online (TRL
#1677), which alone would confound this study.

Masks come from lengths, never from token ids. Vocabulary ids that must never be
produced carry a large negative *finite* logit (about -1e9) in policy and reference
alike; they then contribute exactly 0 to every sum here. (Minus infinity would make
inf - inf in a KL.)
"""

import jax
import jax.numpy as jnp

from alignment.types import Array


def length_mask(lengths: Array, T: int) -> Array:  # noqa: N803
  """bool[..., T]: True at the first `lengths` positions; `lengths` is int[...]."""
  positions = jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, T), lengths.ndim)
  return positions < lengths[..., None]


@jax.custom_vjp
def token_logps(logits_BxNxTxV: Array, responses_BxNxT: Array) -> Array:
  """log pi(token | prefix) of each response token, in nats: float32[B, N, T].

  The logits may be bfloat16. Logits are the largest array of a step, so the gradient
  is written out: it keeps the logits as they came, where autodiff would add a float32
  copy of them, and it needs no scatter. A token id outside the vocabulary gives NaN.
  Positions after the response's end are scored too; `sequence_logps` drops them.
  """
  return _token_logps_forward(logits_BxNxTxV, responses_BxNxT)[0]


def _token_logps_forward(logits_BxNxTxV, responses_BxNxT):
  chosen_BxNxT = jnp.take_along_axis(
    logits_BxNxTxV, responses_BxNxT[..., None], axis=-1
  )[..., 0].astype(jnp.float32)
  lse_BxNxT = jax.nn.logsumexp(logits_BxNxTxV.astype(jnp.float32), axis=-1)
  return chosen_BxNxT - lse_BxNxT, (logits_BxNxTxV, responses_BxNxT, lse_BxNxT)


def _token_logps_backward(residuals, grad_BxNxT):
  logits_BxNxTxV, responses_BxNxT, lse_BxNxT = residuals
  probs = jnp.exp(logits_BxNxTxV.astype(jnp.float32) - lse_BxNxT[..., None])
  # Elementwise, so that XLA fuses all of it into one pass: no one-hot is stored.
  ids = jax.lax.broadcasted_iota(jnp.int32, logits_BxNxTxV.shape, 3)
  is_chosen = ids == responses_BxNxT[..., None]
  grad = grad_BxNxT[..., None] * (jnp.where(is_chosen, 1.0, 0.0) - probs)
  return grad.astype(logits_BxNxTxV.dtype), None


token_logps.defvjp(_token_logps_forward, _token_logps_backward)


def sequence_logps(token_logps_BxNxT: Array, lengths_BxN: Array) -> Array:
  """log pi(y | x) in nats, float32[B, N]: the sum over each response's tokens.

  Lengths count EOS, so it is part of the sum; a response that was cut off has none. A
  response of length 0 gives 0. Whatever stands in the padding, NaN included, is left
  out of value and gradient.
  """
  return _sum_over_tokens(token_logps_BxNxT, lengths_BxN)


def exact_kl(
  logits_p_BxNxTxV: Array, logits_q_BxNxTxV: Array, lengths_BxN: Array
) -> Array:
  """sum_t KL(p_t || q_t), exact over the vocabulary, in nats: float32[B, N].

  Averaged over responses sampled from p this is an unbiased estimate of the KL between
  the two policies (paper, App. D): exact at each token, sampled over prefixes. Never
  negative, and independent of how far responses are padded.
  """
  logp = jax.nn.log_softmax(logits_p_BxNxTxV.astype(jnp.float32))
  logq = jax.nn.log_softmax(logits_q_BxNxTxV.astype(jnp.float32))
  p, q = jnp.exp(logp), jnp.exp(logq)
  # p log(p/q) - p + q sums to the same, as p and q each sum to one, but a rounding
  # error in a normaliser then cancels to first order. The error of a 64-token response
  # falls from about 1e-6 to 1e-8..1e-7: a policy's first steps are not lost in it.
  kl_BxNxT = jnp.sum(p * (logp - logq) - p + q, axis=-1)
  return _sum_over_tokens(jnp.maximum(kl_BxNxT, 0.0), lengths_BxN)


def entropy(logits_BxNxTxV: Array, lengths_BxN: Array) -> Array:
  """sum_t H(p_t), exact over the vocabulary, in nats: float32[B, N]."""
  logp = jax.nn.log_softmax(logits_BxNxTxV.astype(jnp.float32))
  return _sum_over_tokens(-jnp.sum(jnp.exp(logp) * logp, axis=-1), lengths_BxN)


def _sum_over_tokens(values_BxNxT: Array, lengths_BxN: Array) -> Array:
  """Float32 sum over each response's tokens; `where`, as 0 * NaN would be NaN."""
  mask = length_mask(lengths_BxN, values_BxNxT.shape[-1])
  return jnp.sum(jnp.where(mask, values_BxNxT.astype(jnp.float32), 0.0), axis=-1)
