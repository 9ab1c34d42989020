"""N samples per prompt: which are learned from, and judges that work on the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import rollout, sampling, scoring
from alignment.runtime import sharding
from alignment.types import ScoredBatch
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(1)
MESH = sharding.make_mesh()
ROWS, N = 32, 4


@functools.cache
def prompts():
  """With a third response of the data, which pairs keep."""
  return sharding.put_batch(tiny.batch(ROWS, responses=3), MESH)


def roll(select, samples=N, judge=None):
  judge = tiny.Digits() if judge is None else judge
  roller = rollout.Roller(tiny.SAMPLER, tiny.POLICY, judge, samples, select)
  out = rollout.compiled(roller, MESH)(
    tiny.params(0), tiny.params(1), (), prompts(), KEY
  )
  return jax.device_get(out)


@pytest.fixture(scope="module")
def drawn():
  """The samples as they were drawn."""
  generate = jax.jit(sampling.generate, static_argnums=(0, 4, 5))
  samples = generate(tiny.SAMPLER, tiny.params(0), prompts(), KEY, N, tiny.T)
  return jax.device_get(samples)


@pytest.fixture(scope="module")
def best_worst():
  return roll("best_worst")


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def everything(out):
  """Tokens, lengths, log-probabilities and endings of all samples, as recorded."""
  tokens = [out.batch.responses_BxNxT[:, :2], out.unused_BxUxT]
  lengths = [out.batch.lengths_BxN[:, :2], out.unused_lengths_BxU]
  return [*(np.concatenate(x, axis=1) for x in (tokens, lengths)), out.ended_BxN]


def test_a_pair_is_the_best_and_the_worst_and_nothing_is_lost(best_worst, drawn):
  scores_BxN = tiny.Digits().scores(None, rollout.sampled(prompts(), drawn))
  ours = everything(best_worst)
  theirs = drawn.tokens_BxNxT, drawn.lengths_BxN, drawn.ended_BxN
  for b in range(ROWS):
    first, worst, *rest = best_worst.scores_BxN[b]
    assert [first, *rest, worst] == sorted(scores_BxN[b], reverse=True)
    order = [int(np.argmax(scores_BxN[b] == score)) for score in (first, worst, *rest)]
    for x, y in zip(ours, theirs, strict=True):
      np.testing.assert_array_equal(x[b], np.asarray(y)[b, order])
  logps_BxN = drawn.logps_BxNxT.sum(axis=2)
  for x, y in zip(best_worst.logps_BxN, logps_BxN, strict=True):
    np.testing.assert_allclose(sorted(x), sorted(y), atol=1e-5)
  assert np.mean(best_worst.margins_B > 0) > 0.9


def test_only_what_is_selected_is_scored_under_the_reference(best_worst):
  batch = best_worst.batch
  assert batch.ref_logps_BxN.shape == (ROWS, 3)
  np.testing.assert_array_equal(
    batch.responses_BxNxT[:, 2], prompts().responses_BxNxT[:, 2]
  )
  expected = jax.jit(scoring.score, static_argnums=0)(
    tiny.POLICY, tiny.params(1), batch
  )
  np.testing.assert_allclose(batch.ref_logps_BxN, expected, atol=2e-5)


def test_all_samples_stand_as_they_were_drawn_with_their_scores(drawn):
  out = roll("all")
  batch = out.batch
  assert isinstance(batch, ScoredBatch) and out.unused_BxUxT.shape == (ROWS, 0, tiny.T)
  np.testing.assert_array_equal(batch.responses_BxNxT, drawn.tokens_BxNxT)
  expected = tiny.Digits().scores(None, rollout.sampled(prompts(), drawn))
  np.testing.assert_array_equal(batch.scores_BxN, expected)
  np.testing.assert_array_equal(out.scores_BxN, expected)
  assert batch.ref_logps_BxN.shape == (ROWS, N)


def test_best_and_worst_of_two_are_the_two():
  same(roll("two", samples=2), roll("best_worst", samples=2))


@pytest.mark.parametrize("select", rollout.SELECT)
def test_a_judge_on_the_host_makes_the_same_batch_bit_for_bit(select):
  samples = 2 if select == "two" else N
  on_device, on_host = (
    roll(select, samples, judge) for judge in (tiny.Digits(), tiny.HostDigits())
  )
  same(on_device, on_host)


def test_ties_are_broken_by_chance_and_best_and_worst_differ():
  """Among samples of equal length, any may be the best, and any the worst."""
  rng = np.random.default_rng(0)
  scores_BxN = rng.integers(0, 2, (4000, N)).astype(np.float32)
  ids_B = jnp.arange(4000)
  rank = jax.jit(rollout.ranked)
  ranks_BxN = np.asarray(rank(scores_BxN, KEY, ids_B))
  assert np.all(np.sort(ranks_BxN, axis=1) == np.arange(N))
  sorted_BxN = np.take_along_axis(scores_BxN, ranks_BxN, axis=1)
  assert np.all(np.diff(sorted_BxN, axis=1) <= 0)
  tied_B = scores_BxN.std(axis=1) == 0
  assert tied_B.sum() > 300
  for place in (0, -1):
    shares_N = np.bincount(ranks_BxN[tied_B, place], minlength=N) / tied_B.sum()
    np.testing.assert_allclose(shares_N, 1 / N, atol=0.1)
  backwards = np.asarray(rank(scores_BxN[::-1], KEY, ids_B[::-1]))
  np.testing.assert_array_equal(backwards[::-1], ranks_BxN)  # of (key, id) alone
  other = np.asarray(rank(scores_BxN, jax.random.key(2), ids_B))
  assert np.any(other[tied_B] != ranks_BxN[tied_B])
  untied = np.array([[0.5, 2.0, -1.0, 0.0]], np.float32)
  assert np.asarray(rank(untied, KEY, ids_B[:1])).tolist() == [[1, 0, 3, 2]]


def test_two_samples_are_the_first_two_of_more(drawn):
  out = roll("two", samples=2)
  for b in range(ROWS):
    tokens = [row.tolist() for row in drawn.tokens_BxNxT[b, :2]]
    assert sorted(out.batch.responses_BxNxT[b, :2].tolist()) == sorted(tokens)
