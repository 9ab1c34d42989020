"""Rollouts: what the judge prefers comes first, and the batch is like any other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import rollout, sampling, scoring
from alignment.data import pairs, sources
from alignment.models import t5
from alignment.runtime import sharding
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(1)
ROLLER = rollout.Roller(tiny.SAMPLER, tiny.POLICY, tiny.JUDGE)
MESH = sharding.make_mesh()


@pytest.fixture(scope="module")
def params():
  return {
    "policy": tiny.params(0),
    "reference": tiny.params(1),
    "judge": tiny.params(2, tiny.JUDGE.model.cfg),
  }


@functools.cache
def offline(rows=32):
  """With a third response, which rollouts keep: the supervised target of SLiC-HF."""
  batch = tiny.batch(rows)

  def ragged(x, n):
    rows = [row[:k] for row, k in zip(x, n, strict=True)]
    return pairs.Ragged(np.concatenate(rows), np.cumsum([0, *n], dtype=np.int64))

  dataset = pairs.PairDataset(
    ragged(batch.prompts_BxS, batch.prompt_lengths_B),
    tuple(ragged(batch.responses_BxNxT[:, i], batch.lengths_BxN[:, i]) for i in (0, 1)),
    {"ids": batch.ids_B, "ref_logps": batch.ref_logps_BxN},
  )
  return sources.OfflineSource(
    dataset, rows, tiny.S, tiny.T, MESH, seed=0, num_responses=3
  )


@pytest.fixture(scope="module")
def prompts():
  return offline().batch(0)


def run(params, prompts, key=KEY):
  return rollout.compiled(ROLLER, MESH)(
    params["policy"], params["reference"], params["judge"], prompts, key
  )


@pytest.fixture(scope="module")
def result(params, prompts):
  return run(params, prompts)


@pytest.fixture(scope="module")
def unordered(params, prompts):
  """The same samples as they were drawn."""
  generate = jax.jit(sampling.generate, static_argnums=(0, 4, 5))
  return generate(tiny.SAMPLER, params["policy"], prompts, KEY, 2, tiny.T)


def test_the_response_that_the_judge_prefers_is_first(params, result):
  margins_B = np.asarray(result.margins_B)
  assert np.all(margins_B >= 0) and np.any(margins_B > 0)
  again_B = jax.jit(tiny.JUDGE.preference)(params["judge"], result.batch)
  np.testing.assert_allclose(again_B, margins_B, atol=1e-5)


def test_it_samples_as_the_roller_says(monkeypatch, params, prompts):
  class Seen(Exception):
    pass

  def sample(sampler, *_):
    raise Seen(sampler)

  monkeypatch.setattr(rollout.sampling, "sample", sample)
  other = sampling.Sampler(tiny.POLICY, (), temperature=0.5, top_p=0.9)
  roller = dataclasses.replace(ROLLER, sampler=other)
  with pytest.raises(Seen) as seen:
    rollout.rollout(roller, *params.values(), prompts, KEY)
  assert seen.value.args[0] == other


def test_ordering_moves_all_that_belongs_to_a_response(result, unordered):
  """Tokens, lengths, log-probabilities and endings: swapped together, or none is."""
  ours = [
    result.batch.responses_BxNxT[:, :2],
    result.batch.lengths_BxN[:, :2],
    result.logps_BxN,
    result.ended_BxN,
  ]
  theirs = [
    unordered.tokens_BxNxT,
    unordered.lengths_BxN,
    unordered.logps_BxNxT.sum(-1),
    unordered.ended_BxN,
  ]
  both = list(zip(ours, theirs, strict=True))
  kept = swapped = endings = 0
  for b in range(len(result.margins_B)):
    same = [np.allclose(x[b], y[b], atol=1e-5) for x, y in both]
    other = [np.allclose(x[b], y[b][::-1], atol=1e-5) for x, y in both]
    assert all(same) or all(other)
    kept, swapped = kept + (not all(other)), swapped + (not all(same))
    endings += not same[-1]
  assert kept > 2 and swapped > 2 and endings > 0


def test_log_probabilities_equal_a_separate_score(params, result):
  score = jax.jit(scoring.score, static_argnums=0)
  reference = score(tiny.POLICY, params["reference"], result.batch)
  np.testing.assert_allclose(result.batch.ref_logps_BxN, reference, atol=2e-5)
  policy = score(tiny.POLICY, params["policy"], result.batch)
  np.testing.assert_allclose(result.logps_BxN, policy[:, :2], atol=2e-5)


def test_a_rollout_looks_like_an_offline_batch(result, prompts):
  def looks(x):
    return (
      x.shape,
      x.dtype,
      x.sharding.is_equivalent_to(sharding.batch_sharding(MESH), x.ndim),
    )

  assert jax.tree.map(looks, result.batch) == jax.tree.map(looks, prompts)
  for name in ("prompts_BxS", "prompt_lengths_B", "weights_B", "ids_B"):
    np.testing.assert_array_equal(getattr(result.batch, name), getattr(prompts, name))


def test_a_third_response_is_kept(prompts, result):
  np.testing.assert_array_equal(
    result.batch.responses_BxNxT[:, 2], prompts.responses_BxNxT[:, 2]
  )
  np.testing.assert_array_equal(
    result.batch.lengths_BxN[:, 2], prompts.lengths_BxN[:, 2]
  )
  assert np.any(prompts.responses_BxNxT[:, 2] != result.batch.responses_BxNxT[:, 0])


def test_a_judge_without_opinion_leaves_the_order_to_coins(params, prompts, unordered):
  """Its answers have equal logits: every pair is a tie."""
  head = np.array(params["judge"]["head"]["kernel"])
  head[:, tiny.MARKERS.first_id] = head[:, tiny.MARKERS.second_id]
  indifferent = params | {"judge": params["judge"] | {"head": {"kernel": head}}}
  out = run(indifferent, prompts)
  np.testing.assert_array_equal(out.margins_B, 0.0)
  first = np.asarray(unordered.tokens_BxNxT)[:, 0]
  kept = (np.asarray(out.batch.responses_BxNxT)[:, 0] == first).all(-1)
  assert 0 < kept.sum() < 32
  key = jax.random.fold_in(KEY, rollout.COINS)
  coins = rollout.second_first(np.zeros(32), key, prompts.ids_B)
  np.testing.assert_array_equal(kept, ~coins)
  assert rollout.COINS > np.iinfo(prompts.ids_B.dtype).max  # keys no prompt's samples


def test_ties_are_decided_by_fair_coins_keyed_by_the_prompt():
  ids, zeros = jnp.arange(2000), jnp.zeros(2000)
  toss = jax.jit(rollout.second_first)
  coins = np.asarray(toss(zeros, KEY, ids))
  assert abs(coins.mean() - 0.5) < 4 * 0.5 / 2000**0.5
  np.testing.assert_array_equal(toss(zeros, KEY, ids[::-1]), coins[::-1])
  assert np.any(np.asarray(toss(zeros, jax.random.key(2), ids)) != coins)
  margins = np.where(np.arange(2000) % 2, 1.0, -1.0)
  np.testing.assert_array_equal(toss(margins, KEY, ids), margins < 0)


def test_the_step_key_changes_the_samples(params, prompts, result):
  other = run(params, prompts, jax.random.key(9)).batch.responses_BxNxT
  assert np.mean(np.asarray(other) != result.batch.responses_BxNxT) > 0.1


def test_decoding_casts_the_factors_of_products_and_nothing_else():
  model = t5.T5(dataclasses.replace(tiny.CFG, dtype="bfloat16"))
  cast = model.for_decoding(tiny.params())
  for path, leaf in jax.tree_util.tree_flatten_with_path(cast)[0]:
    name = sharding.path_name(path)
    full = name.endswith(("scale", "position", "embedding"))
    assert leaf.dtype == ("float32" if full else "bfloat16"), name
