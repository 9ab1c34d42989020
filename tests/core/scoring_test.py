"""Large vocabularies: logits of as many positions at a time as a device holds."""

import functools

import jax
from jax.sharding import AbstractMesh
import pytest

from alignment.core import scoring
from alignment.models import registry
from alignment.runtime import sharding
from tests import tiny


@pytest.mark.parametrize("devices, positions", [(1, 1), (2, 2), (4, 3), (8, 5)])
def test_chunks_are_as_few_as_the_devices_allow(monkeypatch, devices, positions):
  """Every one gathers a sharded head, and sums its gradient over the devices."""
  model, batch, seen = registry.model(tiny.DECODERS["llama"]), tiny.batch(8), []

  class Head(type(model)):
    def logits(self, params, hidden):
      seen.append(hidden.shape[2])
      return super().logits(params, hidden)

  rows = 8 * 2 * model.cfg.vocab_rows
  monkeypatch.setattr(scoring, "WHOLE", 0)
  monkeypatch.setattr(scoring, "CHUNK", rows)  # one position, if one device has all
  mesh = AbstractMesh((1, devices, 1), sharding.AXES)
  with jax.sharding.use_abstract_mesh(mesh):
    score = functools.partial(scoring.score, Head(model.cfg))
    jax.eval_shape(score, tiny.params(0, model.cfg), batch)
  assert set(seen) == {positions}  # of T = 5
