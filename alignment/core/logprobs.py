"""Log-probabilities, KL and entropy of responses, from logits: all in float32.

One convention, everywhere (losses, online and offline, reference, evaluation):
**summed over the response's tokens, EOS included, padding not**. A mean over tokens is
another loss, not another unit: one library averaged offline and summed online (TRL
#1677), which alone would confound this study.

Masks come from lengths, never from token ids. Vocabulary ids that must never be
produced carry a large negative *finite* logit (about -1e9) in policy and reference
alike; they then contribute exactly 0 to every sum here. (Minus infinity would make
inf - inf in a KL.)

The plain functions take logits. With the 150k to 262k ids of today's vocabularies,
logits of a whole batch do not fit: `chunked_token_logps`, `chunked_kl` and
`chunked_entropy` take hidden states and a head instead, hold the logits of a few
positions at a time, and make them once more for the gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignment.types import Array

Head = Callable[[Array], Array]  # hidden BxNxtxD -> float32 logits BxNxtxV


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
  # Indexing fills with NaN above the vocabulary; below, -1 would be its last id.
  V = logits_BxNxTxV.shape[-1]
  ids_BxNxT = jnp.where(responses_BxNxT < 0, V, responses_BxNxT)
  chosen_BxNxT = jnp.take_along_axis(logits_BxNxTxV, ids_BxNxT[..., None], axis=-1)[
    ..., 0
  ].astype(jnp.float32)
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
  return _sum_over_tokens(_token_kl(logits_p_BxNxTxV, logits_q_BxNxTxV), lengths_BxN)


def entropy(logits_BxNxTxV: Array, lengths_BxN: Array) -> Array:
  """sum_t H(p_t), exact over the vocabulary, in nats: float32[B, N]."""
  return _sum_over_tokens(_token_entropy(logits_BxNxTxV), lengths_BxN)


def chunked_token_logps(
  hidden_BxNxTxD: Array, head: Head, responses_BxNxT: Array, chunk: int
) -> Array:
  """`token_logps(head(hidden), responses)`, at most `chunk` positions of T at a time.

  Value and gradient (in the hidden states and in whatever `head` closes over) are the
  plain function's but for the order of sums; BxNxTxV is never stored. Rows may be
  shared out over devices; a head's gradient is then summed over them once per chunk,
  so a chunk should be as large as memory allows.
  """

  def part(hidden, responses):
    return token_logps(head(hidden), responses)

  return _in_chunks(part, chunk, hidden_BxNxTxD, responses_BxNxT)


def chunked_kl(
  hidden_p_BxNxTxD: Array,
  head_p: Head,
  hidden_q_BxNxTxD: Array,
  head_q: Head,
  lengths_BxN: Array,
  chunk: int,
) -> Array:
  """`exact_kl(head_p(hidden_p), head_q(hidden_q), lengths)`, chunk by chunk of T.

  The widths D of the two may differ; their vocabularies may not.
  """

  def part(hidden_p, hidden_q):
    return _token_kl(head_p(hidden_p), head_q(hidden_q))

  kl_BxNxT = _in_chunks(part, chunk, hidden_p_BxNxTxD, hidden_q_BxNxTxD)
  return _sum_over_tokens(kl_BxNxT, lengths_BxN)


def chunked_entropy(
  hidden_BxNxTxD: Array, head: Head, lengths_BxN: Array, chunk: int
) -> Array:
  """`entropy(head(hidden), lengths)`, chunk by chunk of T."""
  entropy_BxNxT = _in_chunks(
    lambda hidden: _token_entropy(head(hidden)), chunk, hidden_BxNxTxD
  )
  return _sum_over_tokens(entropy_BxNxT, lengths_BxN)


def _token_kl(logits_p_BxNxTxV: Array, logits_q_BxNxTxV: Array) -> Array:
  logp = jax.nn.log_softmax(logits_p_BxNxTxV.astype(jnp.float32))
  logq = jax.nn.log_softmax(logits_q_BxNxTxV.astype(jnp.float32))
  p, q = jnp.exp(logp), jnp.exp(logq)
  # p log(p/q) - p + q sums to the same, as p and q each sum to one, but a rounding
  # error in a normaliser then cancels to first order. The error of a 64-token response
  # falls from about 1e-6 to 1e-8..1e-7: a policy's first steps are not lost in it.
  return jnp.maximum(jnp.sum(p * (logp - logq) - p + q, axis=-1), 0.0)


def _token_entropy(logits_BxNxTxV: Array) -> Array:
  logp = jax.nn.log_softmax(logits_BxNxTxV.astype(jnp.float32))
  return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def _in_chunks(
  function: Callable[..., Array], chunk: int, *arrays_BxNxT: Array
) -> Array:
  """`function` of all arrays, BxNxT, called on at most `chunk` positions at a time.

  Chunks are cut along T, never along B or N: rows stay on the device that has them.
  They are as few as may be, and of one size.
  The gradient calls `function` again instead of keeping what it made.
  """
  if chunk < 1:
    raise ValueError(f"a chunk has at least one position, not {chunk}")
  T = arrays_BxNxT[0].shape[2]
  count = -(-T // chunk)
  chunk = -(-T // count)

  def split(x):
    # The last chunk is filled up with copies of the last position, on which the head
    # is known to be finite; what comes of them is cut off below.
    fill = jnp.repeat(x[:, :, -1:], count * chunk - T, axis=2)
    x = jnp.concatenate([x, fill], axis=2)
    return jnp.moveaxis(x.reshape(*x.shape[:2], count, chunk, *x.shape[3:]), 2, 0)

  # Within a loop, XLA cannot merge the second call with the first.
  again = jax.checkpoint(lambda parts: function(*parts), prevent_cse=False)
  values = jnp.moveaxis(jax.lax.map(again, tuple(map(split, arrays_BxNxT))), 0, 2)
  return values.reshape(*values.shape[:2], count * chunk)[..., :T]


def _sum_over_tokens(values_BxNxT: Array, lengths_BxN: Array) -> Array:
  """Float32 sum over each response's tokens; `where`, as 0 * NaN would be NaN."""
  mask = length_mask(lengths_BxN, values_BxNxT.shape[-1])
  return jnp.sum(jnp.where(mask, values_BxNxT.astype(jnp.float32), 0.0), axis=-1)
