"""The smallest models and batches, and how to compare what two runs sampled."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from alignment.core import judges, sampling
from alignment.data import vocabularies
from alignment.models import registry, sizes, t5
from alignment.models.protocol import Config
from alignment.types import Array, Batch, Params

S, T = 7, 5  # prompt and response lengths
LIVE = 10  # ids 1 to 9 can be generated; 10 to 19 are the model's dead rows
CFG = t5.T5Config(
  d_model=16, d_ff=32, d_kv=4, num_heads=4, encoder_layers=1, decoder_layers=1,
  vocab_rows=20, live_ids=LIVE, buckets=4, max_distance=4,
)  # fmt: skip
POLICY = t5.T5(CFG)
EOS = 1
SAMPLER = sampling.Sampler(POLICY, ending_ids=(EOS,))
MARKERS = vocabularies.JudgeMarkers((12, 13), (14,), (15, 1), first_id=16, second_id=17)
JUDGE = judges.PreferenceModel(
  t5.T5(dataclasses.replace(CFG, live_ids=0)), MARKERS, 18, "left"
)


# Of every decoder-only family a small one with its features: heads that share keys and
# are not of the model's width, windows shorter than a prompt.
_DECODER = {
  "d_model": 24, "d_ff": 40, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
  "head_dim": 10, "vocab_rows": 20, "live_ids": LIVE, "scan_layers": True,
}  # fmt: skip
DECODERS = {
  named["model_type"]: registry.config(
    size, **_DECODER, **({"window": 3} if "window" in named else {})
  )
  for size, named in sizes.DECODERS.items()
  if size.endswith("_nano")
}


@functools.cache
def params(seed: int = 0, cfg: Config = CFG) -> Params:
  """Random parameters as numpy arrays, norms too: a scale of 1.0 could go unread."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(0, leaf.shape[-2] ** -0.5, leaf.shape).astype(np.float32)

  return jax.tree.map(draw, jax.eval_shape(registry.model(cfg).init, jax.random.key(0)))


def batch(rows: int, seed: int = 0, responses: int = 2, live: int = LIVE) -> Batch:
  """Ragged prompts and responses as numpy arrays; some responses are cut off."""
  rng = np.random.default_rng(seed)
  lengths_BxN = rng.integers(1, T + 1, (rows, responses)).astype(np.int32)
  tokens_BxNxT = rng.integers(2, live, (rows, responses, T)).astype(np.int32)
  last_BxN = lengths_BxN - 1
  ended_BxN = (lengths_BxN < T) | (rng.random((rows, responses)) < 0.5)
  at_end = (np.arange(T) == last_BxN[..., None]) & ended_BxN[..., None]
  tokens_BxNxT = np.where(at_end, EOS, tokens_BxNxT)
  tokens_BxNxT *= np.arange(T) <= last_BxN[..., None]
  prompt_lengths_B = rng.integers(1, S + 1, rows).astype(np.int32)
  prompts_BxS = rng.integers(2, live, (rows, S)).astype(np.int32)
  prompts_BxS *= np.arange(S) < prompt_lengths_B[:, None]
  return Batch(
    prompts_BxS=prompts_BxS,
    prompt_lengths_B=prompt_lengths_B,
    responses_BxNxT=tokens_BxNxT.astype(np.int32),
    lengths_BxN=lengths_BxN,
    ref_logps_BxN=rng.normal(-8, 3, (rows, responses)).astype(np.float32),
    weights_B=np.ones(rows, np.float32),
    ids_B=rng.permutation(1000)[:rows].astype(np.int32),
  )


@dataclasses.dataclass(frozen=True)
class Digits:
  """A judge that reads a response as a number: different ones, different scores."""

  on_host: ClassVar[bool] = False

  def scores(self, params, batch):
    del params
    places_T = 10 ** np.arange(T)
    inside_BxNxT = np.arange(T)[None, None] < batch.lengths_BxN[..., None]
    digits_BxNxT = batch.responses_BxNxT * inside_BxNxT
    return (digits_BxNxT * places_T[None, None]).sum(axis=2).astype(np.float32)


class HostDigits(Digits):
  on_host: ClassVar[bool] = True

  def scores(self, params, batch):
    """Of numpy arrays, as numpy arrays."""
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
    return super().scores(params, batch)


FAST = {  # compiles in half the time, see quickly.py
  "xla_backend_optimization_level": 0,
  "xla_cpu_use_fusion_emitters": False,
}


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
def logits(model: t5.T5, params: Params, batch: Batch) -> Array:
  """Teacher-forced logits of a batch's responses, BxNxTxV."""
  context = model.prepare(params, batch.prompts_BxS, batch.prompt_lengths_B)
  return model.logits(params, model.hidden(params, context, batch.responses_BxNxT))


def boundary_distance(logits_V: np.ndarray, draw: float) -> float:
  """How far a draw is from the nearest boundary of the cumulative distribution."""
  p = np.exp(np.float64(logits_V) - np.max(logits_V))
  return float(np.abs(np.cumsum(p) / p.sum() - draw).min())


def near_ties(
  model: t5.T5,
  params: Params,
  prompts: Batch,
  key: Array,
  a_BxNxT: np.ndarray,
  b_BxNxT: np.ndarray,
  tolerance: float = 1e-5,
) -> int:
  """How many responses two runs sampled differently from the same draws.

  Fails unless every one of them first differs where its draw lies within `tolerance`
  of a boundary of the distribution: where rounding alone decides.
  """
  a_BxNxT, b_BxNxT = np.asarray(a_BxNxT), np.asarray(b_BxNxT)
  B, N, length = a_BxNxT.shape
  draws = np.asarray(sampling.uniforms(key, jnp.asarray(prompts.ids_B), N, length))
  sampled = prompts.replace(responses_BxNxT=a_BxNxT)
  logits_BxNxTxV = np.asarray(logits(model, params, sampled))
  count = 0
  for b, n in np.argwhere((a_BxNxT != b_BxNxT).any(-1)):
    t = np.argmax(a_BxNxT[b, n] != b_BxNxT[b, n])
    distance = boundary_distance(logits_BxNxTxV[b, n, t], draws[b, n, t])
    assert distance < tolerance, f"row {b}, sample {n}, token {t}: {distance} away"
    count += 1
  return count
