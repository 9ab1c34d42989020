"""A policy's evaluation: win rate, KL, classification, and what its samples look like.

One jitted function looks at responses that another has sampled. All quantities are per
prompt until they are summarised, so that figures can resample prompts.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from alignment import logprobs, rollout, sampling
from alignment.evals.rows import map_rows
from alignment.judge import PreferenceModel
from alignment.models import t5
from alignment.train_step import score
from alignment.types import Array, Batch, Params

Responses = tuple[np.ndarray, np.ndarray]  # tokens_PxT, lengths_P


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def sample(
  model: t5.T5,
  params: Params,
  prompts: Batch,
  key: Array,
  num_samples: int,
  max_length: int,
  temperature: float = 1.0,
  top_p: float = 1.0,
) -> sampling.Samples:
  """Responses to the prompts of a batch, a function of (key, prompt id, sample)."""
  return rollout.generate(
    model, params, prompts, key, num_samples, max_length, temperature, top_p
  )


@functools.partial(jax.jit, static_argnums=(0, 2))
def divergence(
  model: t5.T5,
  params: Params,
  reference: t5.T5,
  reference_params: Params,
  batch: Batch,
  decoded_logps_BxNxT: Array,
) -> dict[str, Array]:
  """The policy against the reference on the policy's own samples (App. D), each B.

  At every token of the first sample the exact KL over the vocabulary, and the policy's
  entropy, summed over the response. Also the largest difference between the sampler's
  log-probability of a token and the teacher-forced one: a permanent check that what was
  sampled is what is scored.
  """
  prompt = batch.prompts_BxS, batch.prompt_lengths_B
  responses_Bx1xT = batch.responses_BxNxT[:, :1]
  lengths_Bx1 = batch.lengths_BxN[:, :1]
  policy = model.logits(params, model.prepare(params, *prompt), responses_Bx1xT)
  context = reference.prepare(reference_params, *prompt)
  other = reference.logits(reference_params, context, responses_Bx1xT)
  logps_Bx1xT = logprobs.token_logps(policy, responses_Bx1xT)
  inside_Bx1xT = logprobs.length_mask(lengths_Bx1, responses_Bx1xT.shape[2])
  error_Bx1xT = jnp.abs(logps_Bx1xT - decoded_logps_BxNxT[:, :1])
  return {
    "kl": logprobs.exact_kl(policy, other, lengths_Bx1)[:, 0],
    "entropy": logprobs.entropy(policy, lengths_Bx1)[:, 0],
    "decode_vs_score": jnp.max(jnp.where(inside_Bx1xT, error_Bx1xT, 0.0), axis=(1, 2)),
  }


@functools.partial(jax.jit, static_argnums=0)
def log_ratios(model: t5.T5, params: Params, batch: Batch) -> Array:
  """log pi(y|x) - log pi_ref(y|x) of a data set's pairs: float32 BxN."""
  return score(model, params, batch) - batch.ref_logps_BxN


@functools.partial(jax.jit, static_argnums=0)
def margins(judge: PreferenceModel, params: Params, batch: Batch) -> Array:
  """The judge's order-free margin of response 0 over response 1, B."""
  return judge.preference(params, batch)


def outcome(margins_B: np.ndarray) -> np.ndarray:
  """A margin as a result: win 1, tie 1/2, loss 0."""
  return (margins_B > 0) + 0.5 * (margins_B == 0)


@dataclasses.dataclass(frozen=True)
class PolicyEvaluation:
  """All that one checkpoint is asked, on fixed prompts and pairs.

  Attributes:
    prompts: host batch of the P prompts of the win rate.
    pairs: host batch of pairs of D_golden, with reference log-probabilities, on which
      the policy is read as a classifier.
    kl_prompts: how many of the prompts the KL is estimated on.
    opponent: the golden policy's responses to the prompts, (tokens_PxT, lengths_P).
    start: the SFT policy's, likewise: the zero of the golden score.
    utility: where the truth is known, (tokens_PxT, lengths_P) -> utilities_P.
    key: for sampling; the same for every checkpoint.
  """

  model: t5.T5
  reference_params: Params
  judge: PreferenceModel
  judge_params: Params
  prompts: Batch
  pairs: Batch
  kl_prompts: int
  opponent: Responses
  start: Responses
  utility: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
  key: Array
  batch_size: int
  mesh: Mesh

  def __call__(self, params: Params) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """-> (the checkpoint's record, per-prompt outcomes by judge and its responses)."""
    samples = self.sample(params, 2 if self.utility else 1)
    mine = samples.tokens_BxNxT[:, 0], samples.lengths_BxN[:, 0]
    wins_P = outcome(self.compare(mine, self.opponent))
    record = {
      "win_rate": wins_P.mean(),
      "win_rate_stderr": _stderr(wins_P),
      "golden_score": self.compare(mine, self.start).mean(),
      "response_length": mine[1].mean(),
      "truncation_rate": 1 - samples.ended_BxN[:, 0].mean(),
      **self._divergence(params, samples),
      **self._classification(params),
    }
    outcomes = {"golden": wins_P, "tokens": mine[0], "lengths": mine[1]}
    if self.utility:
      mine_P = self.utility(*mine)
      second = samples.tokens_BxNxT[:, 1], samples.lengths_BxN[:, 1]
      gap_P = mine_P - self.utility(*second)
      agree_P = outcome(self.compare(mine, second) * np.sign(gap_P))
      outcomes["truth"] = outcome(mine_P - self.utility(*self.opponent))
      record |= {
        "true_utility": mine_P.mean(),
        "true_win_rate": outcomes["truth"].mean(),
        # Where the truth is indifferent there is nothing to agree with.
        "judge_accuracy_on_policy": agree_P[gap_P != 0].mean(),
      }
    return {name: float(value) for name, value in record.items()}, outcomes

  def sample(self, params: Params, num_samples: int) -> sampling.Samples:
    """Responses to the fixed prompts."""
    T = self.prompts.responses_BxNxT.shape[2]
    return self._map(
      lambda batch: sample(self.model, params, batch, self.key, num_samples, T),
      self.prompts,
    )

  def compare(self, a: Responses, b: Responses) -> np.ndarray:
    """The judge's margins of responses `a` over `b` to the fixed prompts, P."""
    both = self.prompts.replace(
      responses_BxNxT=np.stack([a[0], b[0]], 1), lengths_BxN=np.stack([a[1], b[1]], 1)
    )
    return self._map(lambda x: margins(self.judge, self.judge_params, x), both)

  def _divergence(self, params: Params, samples: sampling.Samples) -> dict[str, float]:
    sampled = self.prompts.replace(
      responses_BxNxT=samples.tokens_BxNxT, lengths_BxN=samples.lengths_BxN
    )
    per_prompt = self._map(
      lambda batch, logps: divergence(
        self.model, params, self.model, self.reference_params, batch, logps
      ),
      *jax.tree.map(lambda x: x[: self.kl_prompts], (sampled, samples.logps_BxNxT)),
    )
    return {
      "kl": per_prompt["kl"].mean(),
      "kl_stderr": _stderr(per_prompt["kl"]),
      "entropy": per_prompt["entropy"].mean(),
      "decode_vs_score_max_abs_diff": per_prompt["decode_vs_score"].max(),
    }

  def _classification(self, params: Params) -> dict[str, float]:
    ratios_Qx2 = self._map(lambda b: log_ratios(self.model, params, b), self.pairs)
    return {
      "classification_accuracy": outcome(ratios_Qx2[:, 0] - ratios_Qx2[:, 1]).mean(),
      "chosen_log_ratio": ratios_Qx2[:, 0].mean(),
      "rejected_log_ratio": ratios_Qx2[:, 1].mean(),
    }

  def _map(self, function: Callable[..., Any], *trees: Any) -> Any:
    def take(indices: np.ndarray) -> tuple[Any, ...]:
      return jax.tree.map(lambda x: x[indices], trees)

    count = len(jax.tree.leaves(trees)[0])
    return map_rows(function, take, np.arange(count), self.batch_size, self.mesh)


def _stderr(values: np.ndarray) -> float:
  return float(values.std(ddof=1) / np.sqrt(len(values)))
