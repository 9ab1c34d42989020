"""Models that are only read take half the memory and compute the same bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import rollout
from alignment.models import t5
from alignment.runtime import checkpoint, sharding
from alignment.study.parameters import Parameters
from alignment.study.setting import Setting
from tests import studies, tiny


@pytest.fixture(scope="module")
def parameters() -> Parameters:
  return Setting.of(studies.nano(), 0).parameters


def saved(directory, model):
  """Parameters that need rounding, as a stage would have saved them at step 3."""
  params = jax.tree.map(jnp.asarray, tiny.params(1, model.cfg))
  checkpoints = checkpoint.Checkpoints(directory)
  checkpoints.save_params(3, params)
  checkpoints.close()
  return params


def test_parameters_are_loaded_into_the_layout_of_the_study(parameters):
  """Of its rules and mesh, also those that are only read, in their dtype."""
  model = t5.T5(dataclasses.replace(tiny.CFG, dtype="bfloat16"))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  layout = sharding.shardings(shapes, parameters.mesh, parameters.rules)
  for abstract in (parameters.abstract(model), parameters.abstract_fixed(model)):
    assert jax.tree.map(lambda leaf: leaf.sharding, abstract) == layout
  assert abstract["embedding"].dtype == jnp.bfloat16
  other = studies.nano(layout=((".*", ()),))
  flat = Setting.of(other, 0).parameters.abstract(model)["embedding"].sharding.spec
  assert flat == jax.sharding.PartitionSpec(None, None) != layout["embedding"].spec


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_bfloat16_computes_the_bits_of_the_masters(parameters, tmp_path, tied):
  cfg = dataclasses.replace(
    tiny.CFG, dtype="bfloat16", scan_layers=True, tied=tied, gated=not tied
  )
  model = t5.T5(cfg)
  masters = saved(tmp_path, model)
  frozen = parameters.load_fixed(tmp_path, model, 3)
  wide = {
    jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1]
    for path, leaf in jax.tree_util.tree_flatten_with_path(frozen)[0]
    if leaf.dtype == jnp.float32
  }
  assert wide == {"scale", "position"}  # used in float32, and small
  batch, key = tiny.batch(2), jax.random.key(3)
  scored = [tiny.logits(model, params, batch) for params in (masters, frozen)]
  np.testing.assert_array_equal(*scored)
  if not tied:
    sample = functools.partial(rollout.generate, model, num_samples=2, max_length=2)
    sample = jax.jit(sample, compiler_options=tiny.FAST)
    sampled = [sample(params, batch, key) for params in (masters, frozen)]
    jax.tree.map(np.testing.assert_array_equal, *sampled)


def test_frozen_float32_is_the_masters(parameters, tmp_path):
  masters = saved(tmp_path, tiny.POLICY)
  frozen = parameters.load_fixed(tmp_path, tiny.POLICY, 3)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b, strict=True), masters, frozen
  )
