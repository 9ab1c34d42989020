"""Samples follow the model's distribution, and depend on nothing but their keys."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from alignment.core import logprobs, sampling
from alignment.models import t5
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(3)
EOS = tiny.EOS


@functools.partial(jax.jit, static_argnums=(0, 4), static_argnames="settings")
def run(model, params, prompts, key, shape, settings=()):
  """Samples `shape` = (N, T) responses to each row."""
  context = model.prepare(
    params, prompts.prompts_BxS, prompts.prompt_lengths_B, for_decoding=True
  )
  draws = sampling.uniforms(key, prompts.ids_B, *shape)
  sampler = sampling.Sampler(model, **{"ending_ids": (EOS,)} | dict(settings))
  return sampling.sample(sampler, params, context, draws)


@pytest.fixture(scope="module")
def prompts():
  return tiny.batch(16)


@pytest.fixture(scope="module")
def samples(prompts):
  return jax.device_get(run(tiny.POLICY, tiny.params(), prompts, KEY, (4, tiny.T)))


def as_batch(prompts, samples):
  return prompts.replace(
    responses_BxNxT=samples.tokens_BxNxT, lengths_BxN=samples.lengths_BxN
  )


def enumerate_responses(live, length):
  """Every response of at most `length` tokens: tokens_RxT, lengths_R."""
  words = range(EOS + 1, live)
  ended = [
    (*middle, EOS)
    for n in range(length)
    for middle in itertools.product(words, repeat=n)
  ]
  cut = list(itertools.product(words, repeat=length))
  every = ended + cut
  tokens_RxT = np.array([r + (0,) * (length - len(r)) for r in every], np.int32)
  return tokens_RxT, np.array([len(r) for r in every], np.int32)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_enumerated_distribution(temperature):
  rows, n, length, live = 64, 64, 3, 6
  model = t5.T5(dataclasses.replace(tiny.CFG, live_ids=live))
  prompts = jax.tree.map(lambda x: np.repeat(x[:1], rows, 0), tiny.batch(1, live=live))
  prompts = prompts.replace(ids_B=np.arange(rows))
  settings = (("temperature", temperature),)
  out = run(model, tiny.params(), prompts, KEY, (n, length), settings=settings)
  sampled = np.asarray(out.tokens_BxNxT).reshape(-1, length)

  tokens_RxT, lengths_R = enumerate_responses(live, length)
  every = jax.tree.map(lambda x: x[:1], prompts).replace(
    responses_BxNxT=tokens_RxT[None]
  )
  logits = tiny.logits(model, tiny.params(), every) / temperature
  logps = logprobs.token_logps(logits, tokens_RxT[None])
  probs_R = np.exp(np.float64(logprobs.sequence_logps(logps, lengths_R[None])[0]))
  assert probs_R.sum() == pytest.approx(1, abs=1e-5)  # dead ids, pad too, have none

  where = {tuple(r): i for i, r in enumerate(tokens_RxT)}
  counts_R = np.bincount([where[tuple(r)] for r in sampled], minlength=len(where))
  expected_R = probs_R / probs_R.sum() * len(sampled)
  rare_R = (
    expected_R < 5
  )  # too rare for the test: one cell with the least of the others
  cell_R = np.arange(len(where))
  cell_R[rare_R] = np.argmin(np.where(rare_R, np.inf, expected_R))
  cells, cell_R = np.unique(cell_R, return_inverse=True)
  observed, expected = np.bincount(cell_R, counts_R), np.bincount(cell_R, expected_R)
  assert len(cells) > 20
  assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_dead_ids_are_never_sampled(samples):
  inside = logprobs.length_mask(samples.lengths_BxN, tiny.T)
  drawn = samples.tokens_BxNxT[np.asarray(inside)]
  assert drawn.min() >= EOS and drawn.max() < tiny.LIVE


def test_draws_are_a_function_of_key_id_sample_and_position():
  ids = jnp.array([5, 900, 17])
  draws = sampling.uniforms(KEY, ids, 3, 6)
  assert draws.shape == (3, 3, 6)
  assert len(np.unique(draws)) == draws.size
  np.testing.assert_array_equal(sampling.uniforms(KEY, ids[::-1], 3, 6), draws[::-1])
  np.testing.assert_array_equal(
    sampling.uniforms(KEY, ids[1:2], 2, 4), draws[1:2, :2, :4]
  )
  assert not np.any(sampling.uniforms(jax.random.key(4), ids, 3, 6) == draws)


@pytest.mark.parametrize("parts", [1, 4])
def test_samples_depend_neither_on_the_batch_nor_on_the_place_in_it(
  prompts, samples, parts
):
  order = np.random.default_rng(parts).permutation(16)
  others = []
  for rows in np.split(order, parts):
    part = jax.tree.map(lambda x, rows=rows: x[rows], prompts)
    out = run(tiny.POLICY, tiny.params(), part, KEY, (4, tiny.T))
    others.append(np.asarray(out.tokens_BxNxT))
  other = np.concatenate(others)[np.argsort(order)]
  inputs = (tiny.POLICY, tiny.params(), prompts, KEY)
  assert tiny.near_ties(*inputs, samples.tokens_BxNxT, other) <= 1


def test_near_ties_are_told_from_other_draws(prompts, samples):
  other = run(tiny.POLICY, tiny.params(), prompts, jax.random.key(4), (4, tiny.T))
  inputs = (tiny.POLICY, tiny.params(), prompts, KEY)
  with pytest.raises(AssertionError, match="away"):
    tiny.near_ties(*inputs, samples.tokens_BxNxT, other.tokens_BxNxT)


def test_log_probabilities_are_the_teacher_forced_ones(prompts, samples):
  batch = as_batch(prompts, samples)
  logits = tiny.logits(tiny.POLICY, tiny.params(), batch)
  scored = logprobs.token_logps(logits, batch.responses_BxNxT)
  inside = np.asarray(logprobs.length_mask(batch.lengths_BxN, tiny.T))
  np.testing.assert_allclose(
    samples.logps_BxNxT, np.where(inside, scored, 0), atol=1e-5
  )


def test_responses_end_at_the_first_eos_or_are_cut_without_one(samples):
  tokens, lengths, ended = samples.tokens_BxNxT, samples.lengths_BxN, samples.ended_BxN
  assert 0 < ended.mean() < 1 and len(np.unique(lengths)) == tiny.T
  for row in np.ndindex(lengths.shape):
    n = lengths[row]
    assert list(tokens[row][:n]).count(EOS) == ended[row]
    assert (tokens[row][n - 1] == EOS) == ended[row]
    assert ended[row] or n == tiny.T
    assert not tokens[row][n:].any() and not samples.logps_BxNxT[row][n:].any()


def test_without_ending_ids_no_response_ends(prompts):
  settings = (("ending_ids", ()),)
  out = run(tiny.POLICY, tiny.params(), prompts, KEY, (2, tiny.T), settings=settings)
  assert np.all(out.lengths_BxN == tiny.T) and not np.any(out.ended_BxN)
  before_end = np.asarray(out.tokens_BxNxT)[..., :-1]
  assert (before_end == EOS).any() and not (before_end == t5.PAD).any()


def test_any_of_several_ids_ends_a_response(prompts):
  endings = (EOS, 4)
  settings = (("ending_ids", endings),)
  out = run(tiny.POLICY, tiny.params(), prompts, KEY, (2, tiny.T), settings=settings)
  tokens, lengths = np.asarray(out.tokens_BxNxT), np.asarray(out.lengths_BxN)
  last = np.take_along_axis(tokens, lengths[..., None] - 1, -1)[..., 0]
  assert (np.isin(last, endings) == np.asarray(out.ended_BxN)).all()
  assert all((last == ending).any() for ending in endings)
  inside = np.arange(tiny.T) < lengths[..., None] - 1
  assert not (np.isin(tokens, endings) & inside).any()


def test_sampling_stops_once_every_row_has_ended(prompts):
  params = jax.tree.map(lambda x: x, tiny.params())
  calls = []

  class Counting(t5.T5):
    def decode_step(self, params, context, cache, tokens_BxN, position):
      jax.debug.callback(lambda p: calls.append(int(p)), position)
      logits, cache = super().decode_step(params, context, cache, tokens_BxN, position)
      only_eos_V = jnp.arange(logits.shape[-1]) == EOS
      ending = jnp.where(only_eos_V[None, None], 0.0, -1e9) * jnp.ones_like(logits)
      return jnp.where(position == 2, ending, logits), cache

  jax.block_until_ready(run(Counting(tiny.CFG), params, prompts, KEY, (2, tiny.T)))
  jax.effects_barrier()
  assert sorted(calls) == [0, 1, 2]


def test_greedy_is_the_argmax_at_every_position(prompts):
  settings = (("temperature", 0.0),)
  out = run(tiny.POLICY, tiny.params(), prompts, KEY, (2, tiny.T), settings=settings)
  tokens = np.asarray(out.tokens_BxNxT)
  np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])
  best = np.argmax(tiny.logits(tiny.POLICY, tiny.params(), as_batch(prompts, out)), -1)
  inside = np.asarray(logprobs.length_mask(out.lengths_BxN, tiny.T))
  np.testing.assert_array_equal(tokens[inside], best[inside])


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_of_that_mass(top_p):
  probs = np.random.default_rng(0).dirichlet(np.full(12, 0.5), 50).astype(np.float32)
  kept = np.asarray(sampling.nucleus(jnp.asarray(probs), top_p))
  for p, k in zip(probs, kept, strict=True):
    order = np.argsort(-p)
    size = np.searchsorted(np.cumsum(np.float64(p[order])), top_p) + 1
    np.testing.assert_array_equal(np.flatnonzero(k), np.sort(order[:size]))
    np.testing.assert_array_equal(k[k > 0], p[k > 0])


def test_temperature_and_top_p_leave_log_probabilities_at_temperature_one(prompts):
  settings = (("temperature", 0.8), ("top_p", 0.5))
  out = run(tiny.POLICY, tiny.params(), prompts, KEY, (4, tiny.T), settings=settings)
  batch = as_batch(prompts, out)
  logits = tiny.logits(tiny.POLICY, tiny.params(), batch)
  inside = np.asarray(logprobs.length_mask(batch.lengths_BxN, tiny.T))
  kept = np.asarray(sampling.nucleus(jax.nn.softmax(logits / 0.8), 0.5001))
  chosen = np.take_along_axis(kept, np.asarray(out.tokens_BxNxT)[..., None], -1)
  assert np.all(chosen[..., 0][inside] > 0)
  assert np.mean((kept > 0).sum(-1)[inside]) > 1.2  # more than the most likely token
  scored = logprobs.token_logps(logits, batch.responses_BxNxT)
  np.testing.assert_allclose(out.logps_BxNxT, np.where(inside, scored, 0), atol=1e-5)


def distributions(size, rows=8):
  """Rows of probabilities with many zeros, whole blocks of them included."""
  rng = np.random.default_rng(size)
  probs = rng.exponential(size=(rows, size)).astype(np.float32)
  probs[rng.random(probs.shape) < 0.5] = 0
  for start in range(0, size, 128):
    width = min(128, size) if size > 256 else max(1, size // 4)
    empty = rng.random(rows) < 0.4
    probs[empty, start : start + width] = 0
  probs[:, size // 2] = 1.0  # never all zero
  return probs / np.float32(1.7 * size)  # not normalised


# 12 and 256: one block; 300, 1000: several; 40,000: more than XLA sums in order.
@pytest.mark.parametrize("size", [12, 256, 300, 1000, 40_000])
def test_inverse_cdf_is_a_binary_search_of_the_cumulative_sum(size):
  probs = distributions(size)
  cdf = np.cumsum(np.float64(probs), axis=-1)
  ends = cdf / cdf[:, -1:]
  rng = np.random.default_rng(1)
  # Uniform draws, the extremes, and the closest to boundaries that float32 has.
  draws = rng.random((len(probs), 40))
  close = np.take_along_axis(ends, rng.integers(0, size, (len(probs), 40)), 1)
  draws = np.concatenate([draws, close, close - 2**-24, close + 2**-24], axis=1)
  draws = np.clip(np.floor(draws * 2**24) / 2**24, 0, 1 - 2**-24)
  draws[:, 0], draws[:, 1] = 0, 1 - 2**-24
  found = jax.jit(jax.vmap(sampling.inverse_cdf, (None, 1), 1))(
    jnp.asarray(probs), jnp.asarray(draws, jnp.float32)
  )
  found = np.asarray(found)
  assert np.take_along_axis(probs, found, 1).min() > 0
  for p, c, d, f in zip(probs, ends, draws, found, strict=True):
    exact = np.searchsorted(c, d, side="right")
    apart = np.minimum(np.abs(c[exact] - d), np.abs(c[np.maximum(exact - 1, 0)] - d))
    assert np.all((f == exact) | (apart < 1e-6))
    assert f[0] == np.flatnonzero(p)[0]
    assert np.mean(f[:40] == exact[:40]) > 0.9


def test_inverse_cdf_never_finds_a_zero_where_sums_round():
  """Long rows are summed in parallel, and such sums move across zeros."""
  size = 100_000
  probs = distributions(size, rows=2)
  blocks = np.pad(probs, ((0, 0), (0, -size % 128))).reshape(2, -1, 128).sum(-1)
  ends = np.asarray(jax.jit(lambda x: jnp.cumsum(x, -1))(blocks))
  assert np.any(np.diff(ends)[blocks[:, 1:] == 0] != 0), "no longer a test of anything"
  near = ends[:, :, None] / ends[:, -1:, None] + 2.0**-24 * np.arange(-3, 3)
  draws = np.clip(near.reshape(2, -1), 0, 1 - 2**-24).astype(np.float32)
  draws = draws[:, np.tile(np.isin(np.arange(6), [2, 3]), ends.shape[1])]
  found = jax.lax.map(lambda d: sampling.inverse_cdf(jnp.asarray(probs), d), draws.T)
  assert np.take_along_axis(probs, np.asarray(found).T, 1).min() > 0
