"""Log-probabilities, KL and entropy: float64, enumeration, finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import logprobs

pytestmark = pytest.mark.usefixtures("compile_quickly")

B, N, T, V = 3, 2, 5, 7
DEAD = -1e9


def random_inputs(seed=0, V=V):
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 3, (B, N, T, V)).astype(np.float32)
  other = rng.normal(0, 3, (B, N, T, V)).astype(np.float32)
  responses = rng.integers(0, V, (B, N, T))
  lengths = rng.integers(0, T + 1, (B, N))
  lengths[0] = [0, T]
  return logits, other, responses, lengths


def exact_log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def exact_token_logps(logits, responses):
  return np.take_along_axis(exact_log_softmax(logits), responses[..., None], -1)[..., 0]


def test_length_mask():
  mask = logprobs.length_mask(jnp.array([[0, 1], [3, 4]]), 3)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, [[[0, 0, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]])
  assert logprobs.length_mask(jnp.array(2), 3).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_token_logps_in_float32_whatever_the_logits(dtype):
  logits, _, responses, _ = random_inputs()
  logits = jnp.asarray(logits, dtype)
  value = logprobs.token_logps(logits, responses)
  assert value.dtype == jnp.float32
  expected = exact_token_logps(logits, responses)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_token_logps_gradient_against_central_differences():
  logits, _, responses, lengths = random_inputs()
  weights = np.random.default_rng(1).normal(size=(B, N, T))

  def exact(logits):
    return np.sum(weights * exact_token_logps(logits, responses))

  grad = jax.grad(lambda x: jnp.sum(weights * logprobs.token_logps(x, responses)))(
    jnp.asarray(logits)
  )
  step, logits = 1e-5, logits.astype(np.float64)
  for index in itertools.product([0, 2], [0, 1], [0, 3], range(V)):
    nudge = np.zeros_like(logits)
    nudge[index] = step
    numeric = (exact(logits + nudge) - exact(logits - nudge)) / (2 * step)
    np.testing.assert_allclose(grad[index], numeric, rtol=1e-4, atol=1e-6)


def test_token_logps_gradient_keeps_the_logits_type_and_stores_no_float32_copy():
  logits, _, responses, _ = random_inputs()
  logits = jnp.asarray(logits, jnp.bfloat16)
  _, vjp = jax.vjp(lambda x: logprobs.token_logps(x, responses), logits)
  assert vjp(jnp.ones((B, N, T)))[0].dtype == jnp.bfloat16
  big = [x for x in jax.tree.leaves(vjp) if getattr(x, "size", 0) >= logits.size]
  assert [x.dtype for x in big] == [jnp.bfloat16]


@pytest.mark.parametrize("token", [V, V + 1, 2**31 - 1, -1, -2, -V, -V - 1, -(2**31)])
def test_a_token_outside_the_vocabulary_is_nan(token):
  """Below 0 too: -1 ... -V are no other names of V - 1 ... 0."""
  logits, _, responses, _ = random_inputs()
  clean = logprobs.token_logps(logits, responses)
  responses[0, 0, 0] = token
  value = np.array(logprobs.token_logps(logits, responses.astype(np.int32)))
  assert np.isnan(value[0, 0, 0])
  value[0, 0, 0] = clean[0, 0, 0]
  np.testing.assert_array_equal(value, clean)


def test_sequence_logps_sum_over_the_length_eos_included():
  token_logps = -jnp.arange(1.0, 9.0).reshape(1, 2, 4)
  value = logprobs.sequence_logps(token_logps, jnp.array([[3, 0]]))
  np.testing.assert_array_equal(value, [[-6.0, 0.0]])
  assert value.dtype == jnp.float32


def test_padding_never_leaks_not_even_nan():
  logits, _, responses, lengths = random_inputs()
  pad = ~np.asarray(logprobs.length_mask(jnp.asarray(lengths), T))
  token_logps = np.where(pad, np.nan, exact_token_logps(logits, responses))
  value, vjp = jax.vjp(
    lambda x: logprobs.sequence_logps(x, jnp.asarray(lengths)),
    jnp.asarray(token_logps, jnp.float32),
  )
  np.testing.assert_allclose(value, np.nansum(token_logps, -1), rtol=1e-5)
  np.testing.assert_array_equal(vjp(jnp.ones((B, N)))[0], ~pad)


def test_sequence_probabilities_of_a_tiny_vocabulary_sum_to_one():
  """Independent positions: the V^T responses' probabilities are a distribution."""
  rng = np.random.default_rng(0)
  responses = np.array(list(itertools.product(range(3), repeat=4)))[None]
  logits = np.broadcast_to(rng.normal(0, 2, (4, 3)), (1, 81, 4, 3))
  logps = logprobs.sequence_logps(
    logprobs.token_logps(jnp.asarray(logits, jnp.float32), responses),
    jnp.full((1, 81), 4),
  )
  assert np.exp(logps).sum() == pytest.approx(1, rel=1e-5)


def test_exact_kl_equals_the_kl_between_enumerated_responses():
  """KL over all V^T responses; with independent positions it is the sum over tokens."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (2, 1, 1, 4, 3)).astype(np.float32)
  logp, logq = exact_log_softmax(logits[:, 0, 0])
  every = np.array(list(itertools.product(range(3), repeat=4)))
  joint_p = logp[np.arange(4), every].sum(-1)
  joint_q = logq[np.arange(4), every].sum(-1)
  kl = np.sum(np.exp(joint_p) * (joint_p - joint_q))
  value = logprobs.exact_kl(*logits, jnp.array([[4]]))
  np.testing.assert_allclose(value, [[kl]], rtol=1e-5)
  value = logprobs.entropy(logits[0], jnp.array([[4]]))
  np.testing.assert_allclose(value, [[-np.sum(np.exp(joint_p) * joint_p)]], rtol=1e-5)


def test_kl_and_entropy_against_float64_masked_by_length():
  logits_p, logits_q, _, lengths = random_inputs()
  logp, logq = exact_log_softmax(logits_p), exact_log_softmax(logits_q)
  mask = np.arange(T) < lengths[..., None]
  kl = np.where(mask, np.sum(np.exp(logp) * (logp - logq), -1), 0).sum(-1)
  entropy = np.where(mask, -np.sum(np.exp(logp) * logp, -1), 0).sum(-1)
  lengths = jnp.asarray(lengths)
  np.testing.assert_allclose(
    logprobs.exact_kl(logits_p, logits_q, lengths), kl, rtol=1e-5
  )
  np.testing.assert_allclose(logprobs.entropy(logits_p, lengths), entropy, rtol=1e-5)


def test_kl_of_close_policies_is_not_rounding_noise():
  """A policy a step from its reference: KL 3e-6 a response, and shifted logits."""
  rng = np.random.default_rng(0)
  logits_p = rng.normal(0, 1, (1, 8, 64, 512)).astype(np.float32)
  logits_q = logits_p + rng.normal(0, 3e-4, logits_p.shape).astype(np.float32) - 20
  logp, logq = exact_log_softmax(logits_p), exact_log_softmax(logits_q)
  kl = np.sum(np.exp(logp) * (logp - logq), (-1, -2))
  value = logprobs.exact_kl(logits_p, logits_q, jnp.full((1, 8), 64))
  np.testing.assert_allclose(value, kl, rtol=5e-2)


def test_kl_is_never_negative_and_zero_for_equal_policies():
  lengths = jnp.full((B, N), T)
  for seed in range(20):
    p, _, _, _ = random_inputs(seed, V=50)
    q = p + np.random.default_rng(seed).normal(0, 1e-5, p.shape).astype(np.float32)
    assert np.all(logprobs.exact_kl(p, q, lengths) >= 0)
    np.testing.assert_array_equal(logprobs.exact_kl(p, p, lengths), 0)


def test_padding_length_changes_nothing():
  logits_p, logits_q, responses, lengths = random_inputs()
  lengths = jnp.asarray(lengths)

  def everything(p, q, y):
    logps = logprobs.sequence_logps(logprobs.token_logps(p, y), lengths)
    return logps, logprobs.exact_kl(p, q, lengths), logprobs.entropy(p, lengths)

  more = ((0, 0), (0, 0), (0, 3))
  padded = everything(
    np.pad(logits_p, (*more, (0, 0)), constant_values=1.0),
    np.pad(logits_q, (*more, (0, 0)), constant_values=-2.0),
    np.pad(responses, more),
  )
  bare = everything(logits_p, logits_q, responses)
  for ours, theirs in zip(bare, padded, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_dead_ids_contribute_exactly_nothing():
  logits_p, logits_q, responses, lengths = random_inputs()
  lengths = jnp.asarray(lengths)
  dead = ((0, 0), (0, 0), (0, 0), (0, 4))
  dead_p = np.pad(logits_p, dead, constant_values=DEAD)
  # Not the same number in both: a bias may move -1e9 by a little.
  dead_q = np.pad(logits_q, dead, constant_values=DEAD * 1.001)

  def everything(p, q):
    logps = logprobs.sequence_logps(logprobs.token_logps(p, responses), lengths)
    return logps, logprobs.exact_kl(p, q, lengths), logprobs.entropy(p, lengths)

  for alive, with_dead in zip(
    everything(logits_p, logits_q), everything(dead_p, dead_q), strict=True
  ):
    np.testing.assert_allclose(alive, with_dead, rtol=1e-6)

  only_dead_differ = np.where(dead_p < -1e8, dead_p * 1.001, dead_p)
  np.testing.assert_array_equal(logprobs.exact_kl(dead_p, only_dead_differ, lengths), 0)
  for function in (
    lambda p: logprobs.exact_kl(p, dead_q, lengths).sum(),
    lambda p: logprobs.entropy(p, lengths).sum(),
    lambda p: everything(p, dead_q)[0].sum(),
  ):
    grad = jax.grad(function)(dead_p)
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(grad[..., V:], 0)


def test_shapes_that_do_not_match_raise():
  with pytest.raises((ValueError, TypeError)):
    logprobs.sequence_logps(jnp.zeros((B, N, T)), jnp.ones(B, jnp.int32))


# --- over chunks of positions, from hidden states and a head ---

D = 4


def head_of(weights_DxV):
  return lambda hidden: jnp.einsum(
    "bntd,dv->bntv", hidden, weights_DxV, preferred_element_type=jnp.float32
  )


def plain_and_chunked(kind, responses, lengths, chunk):
  """Functions of (hidden_p, weights_p, hidden_q, weights_q) that should be equal."""

  def plain(hidden_p, weights_p, hidden_q, weights_q):
    logits_p, logits_q = head_of(weights_p)(hidden_p), head_of(weights_q)(hidden_q)
    return {
      "token_logps": lambda: logprobs.token_logps(logits_p, responses),
      "kl": lambda: logprobs.exact_kl(logits_p, logits_q, lengths),
      "entropy": lambda: logprobs.entropy(logits_p, lengths),
    }[kind]()

  def chunked(hidden_p, weights_p, hidden_q, weights_q):
    head_p, head_q = head_of(weights_p), head_of(weights_q)
    return {
      "token_logps": lambda: logprobs.chunked_token_logps(
        hidden_p, head_p, responses, chunk
      ),
      "kl": lambda: logprobs.chunked_kl(
        hidden_p, head_p, hidden_q, head_q, lengths, chunk
      ),
      "entropy": lambda: logprobs.chunked_entropy(hidden_p, head_p, lengths, chunk),
    }[kind]()

  return plain, chunked


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])  # of T = 5
@pytest.mark.parametrize("kind", ["token_logps", "kl", "entropy"])
def test_chunks_give_the_value_and_gradient_of_the_plain_way(kind, chunk):
  """In the hidden states and in both heads, through what they close over."""
  rng = np.random.default_rng(0)
  _, _, responses, lengths = random_inputs()
  shapes = ((B, N, T, D), (D, V)) * 2
  inputs = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
  plain, chunked = plain_and_chunked(kind, responses, jnp.asarray(lengths), chunk)

  def value_and_gradient(function):
    value, vjp = jax.vjp(function, *inputs)
    cotangent = np.random.default_rng(1).normal(0, 1, value.shape).astype(np.float32)
    return value, vjp(jnp.asarray(cotangent))

  for expected, value in zip(
    jax.tree.leaves(value_and_gradient(plain)),
    jax.tree.leaves(value_and_gradient(chunked)),
    strict=True,
  ):
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["token_logps", "kl", "entropy"])
def test_chunks_need_a_tenth_of_the_memory_at_262k_ids(kind):
  """Temporaries of value and gradient as compiled; nothing is run, or even made."""
  T, vocabulary = 64, 262_144  # noqa: N806
  responses = jax.ShapeDtypeStruct((1, 2, T), jnp.int32)
  lengths = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  hidden = jax.ShapeDtypeStruct((1, 2, T, D), jnp.float32)
  weights = jax.ShapeDtypeStruct((D, vocabulary), jnp.float32)

  def temporaries(which):
    def loss(hidden_p, weights_p, hidden_q, weights_q, responses, lengths):
      functions = plain_and_chunked(kind, responses, lengths, chunk=2)
      return functions[which](hidden_p, weights_p, hidden_q, weights_q).sum()

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = program.lower(hidden, weights, hidden, weights, responses, lengths)
    return compiled.compile().memory_analysis().temp_size_in_bytes

  plain, chunked = temporaries(0), temporaries(1)
  assert plain > 2 * T * vocabulary * 4  # or it is not the plain way that is compared
  assert chunked <= plain / 10


def test_chunks_keep_rows_of_a_bad_id_apart_and_are_at_least_one_position():
  _, _, responses, _ = random_inputs()
  hidden, weights = jnp.ones((B, N, T, D)), jnp.ones((D, V))
  responses[0, 0, 0] = -1
  value = logprobs.chunked_token_logps(hidden, head_of(weights), responses, 2)
  assert np.isnan(value[0, 0, 0]) and np.isnan(value).sum() == 1
  with pytest.raises(ValueError, match="at least one position, not 0"):
    logprobs.chunked_token_logps(hidden, head_of(weights), responses, 0)
