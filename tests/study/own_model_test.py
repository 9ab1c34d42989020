"""A model that has nothing of T5 runs the whole study."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from alignment.study.models import Models
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")


@dataclasses.dataclass(frozen=True)
class Bag:
  """The README's idea of a model, and nothing of T5: words, added up."""

  vocab_rows: int
  live: int

  def init(self, key):
    a, b, c = jax.random.split(key, 3)
    normal = jax.random.normal
    return {
      "embedding": 0.1 * normal(a, (self.vocab_rows, 32)),
      "mix": {"kernel": 0.1 * normal(b, (32, 32))},
      "head": {"kernel": 0.1 * normal(c, (32, self.vocab_rows))},
    }

  def prepare(self, params, prompts_BxS, lengths_B, cross_keys_values=False):
    mask_BxS = jnp.arange(prompts_BxS.shape[1])[None] < lengths_B[:, None]
    words_BxSxD = params["embedding"][prompts_BxS] * mask_BxS[..., None]
    return words_BxSxD.sum(1) / jnp.maximum(lengths_B, 1)[:, None]

  def logits(self, params, context_BxD, responses_BxNxT):
    before = jnp.pad(responses_BxNxT[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return self._head(params, params["embedding"][before] + context_BxD[:, None, None])

  def init_cache(self, params, num_rows, max_length):
    return ()

  def decode_step(self, params, context_BxD, cache, tokens_BxN, position):
    h = params["embedding"][tokens_BxN] + context_BxD[:, None]
    return self._head(params, h), cache

  def frozen(self, params):
    return params

  def for_decoding(self, params):
    return params

  def _head(self, params, h):
    logits = jnp.tanh(h @ params["mix"]["kernel"]) @ params["head"]["kernel"]
    ids = jnp.arange(self.vocab_rows)
    dead = ((ids == 0) | (ids >= self.live)).reshape((1,) * (h.ndim - 1) + (-1,))
    return jnp.where(dead, -1e9, logits)


@pytest.mark.slow
def test_a_model_of_ones_own_runs_the_whole_study(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(Models, "model", lambda self, _: Bag(128, self.vocabulary.size))
  anything = ((".*", ()),)
  config = studies.nano(layout=anything, decode_layout=anything)
  studies.run(config, tmp_path, [])
  studies.finish(config, tmp_path)
  evaluations = tmp_path / "runs/world0_online_ipo/evaluations.jsonl"
  rows = evaluations.read_text().splitlines()
  assert max(json.loads(row)["decode_vs_score_max_abs_diff"] for row in rows) < 1e-5
  assert json.loads(rows[0])["parameters"] == 32 * 32 + 2 * 32 * 128
