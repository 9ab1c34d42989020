"""Batches are pure functions of the step."""

import types

import jax
import numpy as np
import pytest

from alignment.data import pairs, sources
from alignment.runtime import sharding
from alignment.types import UserError
from tests import tiny

MESH = sharding.make_mesh()
SIZE = 11


def dataset():
  """Row i: prompt [i + 2], responses [i + 2, 5] and [i + 2]."""
  ids = np.arange(SIZE, dtype=np.int32) + 2
  one = pairs.Ragged(ids, np.arange(SIZE + 1))
  two = pairs.Ragged(np.stack([ids, ids * 0 + 5], 1).ravel(), 2 * np.arange(SIZE + 1))
  ref_logps = np.stack([ids, -ids], 1).astype(np.float32)
  return pairs.PairDataset(one, (two, one), {"ref_logps": ref_logps})


def offline(seed=0, **kwargs):
  return sources.OfflineSource(dataset(), 4, tiny.S, tiny.T, MESH, seed, **kwargs)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_is_a_function_of_the_step_alone():
  forwards, backwards = offline(), offline()
  batches = [forwards.batch(step) for step in range(9)]
  for step in reversed(range(9)):
    same(backwards.batch(step, params="ignored"), batches[step])
    same(batches[step], backwards.host_batch(step))
  assert batches[0].ref_logps_BxN.sharding == sharding.batch_sharding(MESH)


def test_every_epoch_visits_every_pair_once_in_an_order_of_its_own():
  source = offline()
  ids = np.concatenate([source.host_batch(step).ids_B for step in range(SIZE)])
  epochs = ids.reshape(4, SIZE)  # batches of 4 straddle epochs of 11
  for epoch in epochs:
    assert sorted(epoch) == list(range(SIZE))
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_another_seed_is_another_order():
  assert np.any(offline(seed=1).host_batch(0).ids_B != offline().host_batch(0).ids_B)


def test_rows_belong_together():
  batch = offline().host_batch(3)
  for b, i in enumerate(batch.ids_B):
    assert batch.prompts_BxS[b].tolist() == [i + 2] + [0] * (tiny.S - 1)
    assert batch.responses_BxNxT[b, 0].tolist() == [i + 2, 5, 0, 0, 0]
    assert batch.responses_BxNxT[b, 1].tolist() == [i + 2, 0, 0, 0, 0]
    assert batch.ref_logps_BxN[b].tolist() == [i + 2, -(i + 2)]
  assert batch.lengths_BxN.tolist() == [[2, 1]] * 4


def test_a_third_response_is_the_preferred_one():
  two, three = offline().host_batch(2), offline(num_responses=3).host_batch(2)
  for name in "responses_BxNxT", "lengths_BxN", "ref_logps_BxN":
    a, b = getattr(two, name), getattr(three, name)
    np.testing.assert_array_equal(b, np.concatenate([a, a[:, :1]], axis=1))


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
  class TwoShards:
    shape = {"data": 2, "fsdp": 1, "tensor": 1}

  with pytest.raises(UserError, match="batch_size 3 is not divisible .* 2 shards"):
    sources.OfflineSource(dataset(), 3, tiny.S, tiny.T, TwoShards(), 0)


def test_the_online_source_folds_the_step_into_its_key():
  key = jax.random.key(5)
  calls = []

  def rollout(params, prompts, key):
    calls.append((params, prompts, key))
    return types.SimpleNamespace(batch="batch")

  source = sources.OnlineSource(offline(), rollout, key)
  for step in (3, 0, 3):
    assert source.batch(step, f"params {step}") == "batch"
    params, prompts, used = calls[-1]
    assert params == f"params {step}"
    same(prompts, offline().batch(step))
    assert used == jax.random.fold_in(key, step)
  assert calls[0][2] != calls[1][2] and calls[0][2] == calls[2][2]
