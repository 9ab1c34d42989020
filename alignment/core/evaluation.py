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
from scipy import special

from alignment.core import host_judges, logprobs, sampling, scoring
from alignment.core.judges import Judge, PreferenceModel
from alignment.core.rows import map_rows
from alignment.models.protocol import BASE, Model
from alignment.types import Array, Batch, Params, UserError

Responses = tuple[np.ndarray, np.ndarray]  # tokens_PxT, lengths_P
SAMPLES = 2  # per prompt: the first is judged, both say how a policy classifies its own


# A column of evaluations: (prompts, tokens_PxT, lengths_P) -> one number per prompt.
Column = Callable[[Batch, np.ndarray, np.ndarray], Any]
COLUMNS: dict[str, Column] = {}


def column(function: Column) -> Column:
  """Registers a column of one's own: its mean is in every record, under its name.

  Of host arrays: the fixed prompts as a batch, and the policy's responses to them.
  """
  COLUMNS[function.__name__] = function
  return function


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def sample(
  sampler: sampling.Sampler,
  params: Params,
  prompts: Batch,
  key: Array,
  num_samples: int,
  max_length: int,
) -> sampling.Samples:
  """Responses to the prompts of a batch, a function of (key, prompt id, sample)."""
  return sampling.generate(sampler, params, prompts, key, num_samples, max_length)


@functools.partial(jax.jit, static_argnums=(0, 2))
def divergence(
  model: Model,
  params: Params,
  reference: Model,
  reference_params: Params | None,
  batch: Batch,
  decoded_logps_BxNxT: Array,
) -> dict[str, Array]:
  """The policy against the reference on the policy's own two samples, each B.

  Without parameters of its own the reference is the base of the policy.

  At every token of the first sample the exact KL over the vocabulary (App. D), and the
  policy's entropy, summed over the response; beside the KL its estimates from that
  sample alone, k1 = sum of -log r and k3 = sum of r - 1 - log r over tokens, where
  r = pi_ref / pi (Schulman 2020); rho of the two samples, which is how the policy
  itself would label them (App. E.1). Also the largest difference between the
  sampler's log-probability of a token and the teacher-forced one: a permanent check
  that what was sampled is what is scored.
  """
  responses_Bx2xT, lengths_Bx2 = batch.responses_BxNxT, batch.lengths_BxN
  if reference_params is None:
    reference_params = params[BASE]
  policy = scoring.Predictions.of(model, params, batch)
  other = scoring.Predictions.of(reference, reference_params, batch)
  logps_Bx2xT, other_Bx2xT = (
    predictions.token_logps(responses_Bx2xT) for predictions in (policy, other)
  )
  ratios_Bx2xT = logps_Bx2xT - other_Bx2xT
  ratios_Bx2 = logprobs.sequence_logps(ratios_Bx2xT, lengths_Bx2)
  k3_Bx2xT = jnp.expm1(-ratios_Bx2xT) + ratios_Bx2xT
  inside_Bx2xT = logprobs.length_mask(lengths_Bx2, responses_Bx2xT.shape[2])
  error_Bx2xT = jnp.abs(logps_Bx2xT - decoded_logps_BxNxT)
  first, lengths_Bx1 = policy.first(1), lengths_Bx2[:, :1]
  return {
    "kl": first.kl(other.first(1), lengths_Bx1)[:, 0],
    "entropy": first.entropy(lengths_Bx1)[:, 0],
    "k1": ratios_Bx2[:, 0],
    "k3": logprobs.sequence_logps(k3_Bx2xT, lengths_Bx2)[:, 0],
    "rho": ratios_Bx2[:, 0] - ratios_Bx2[:, -1],
    "decode_vs_score": jnp.max(jnp.where(inside_Bx2xT, error_Bx2xT, 0.0), axis=(1, 2)),
  }


@functools.partial(jax.jit, static_argnums=0)
def log_ratios(model: Model, params: Params, batch: Batch) -> Array:
  """log pi(y|x) - log pi_ref(y|x) of a data set's pairs: float32 BxN."""
  return scoring.score(model, params, batch) - batch.ref_logps_BxN


def margins(judge: Judge, params: Params, batch: Batch) -> Array:
  """The judge's order-free margin of response 0 over response 1, B."""
  if judge.on_host:
    return host_judges.asked(judge.preference, params, batch)
  return host_judges.preference_on_device(judge, params, batch)


@functools.partial(jax.jit, static_argnums=0)
def both_orders(judge: PreferenceModel, params: Params, batch: Batch) -> Any:
  """Logit margins of the response read first over that read second, in both orders."""
  return judge.both_orders(params, batch)


def numbers(margins_P: np.ndarray) -> np.ndarray:
  """A judge's margins, of which none is NaN: that would pass for a loss, or an order.

  Raises:
    UserError: saying how many are.
  """
  if count := int(np.isnan(margins_P).sum()):
    raise UserError(
      f"{count} of {len(margins_P)} margins of a judge are not numbers: it has "
      "diverged; lower its learning rate, or take another"
    )
  return margins_P


def outcome(margins_B: np.ndarray) -> np.ndarray:
  """A margin as a result: win 1, tie 1/2, loss 0."""
  return (margins_B > 0) + 0.5 * (margins_B == 0)


def classified(margins_B: np.ndarray, truth_B: np.ndarray) -> np.ndarray:
  """Whether margins have the truth's sign (1/2 for none), where the truth has any."""
  return outcome(margins_B * np.sign(truth_B))[truth_B != 0]


def agreement(margins_B: np.ndarray, truth_B: np.ndarray) -> float:
  """How often margins have the truth's sign, where it has one; NaN if nowhere."""
  right = classified(margins_B, truth_B)
  return float(right.mean()) if len(right) else float("nan")


@dataclasses.dataclass(frozen=True)
class Contest:
  """Fixed prompts on which responses are compared by the golden judge.

  Attributes:
    judge, judge_params: the golden judge.
    proxy, proxy_params: the one that online policies learn from.
    prompts: host batch of the P prompts.
    opponent: the golden policy's responses to the prompts, (tokens_PxT, lengths_P).
    start: the SFT policy's, likewise: the zero of the golden score.
    utility: where the truth is known, (tokens_PxT, lengths_P) -> utilities_P.
  """

  judge: Judge
  judge_params: Params
  proxy: Judge
  proxy_params: Params
  prompts: Batch
  opponent: Responses
  start: Responses
  utility: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
  batch_size: int
  mesh: Mesh

  def record(
    self, responses: Responses, ended_P: np.ndarray
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """-> (how good the responses are, per-prompt outcomes by judge and responses)."""
    wins_P = outcome(self.compare(responses, self.opponent))
    score_P = self.compare(responses, self.start)
    proxy_P = self.judged(self.proxy, self.proxy_params, responses, self.start)
    record = {
      "win_rate": wins_P.mean(),
      "win_rate_stderr": _stderr(wins_P),
      "golden_score": score_P.mean(),
      "golden_score_stderr": _stderr(score_P),
      "proxy_score": proxy_P.mean(),
      "proxy_score_stderr": _stderr(proxy_P),
      "response_length": responses[1].mean(),
      "truncation_rate": 1 - ended_P.mean(),
    }
    for name, measure in COLUMNS.items():
      record[name] = np.mean(measure(self.prompts, *responses))
    outcomes = {"golden": wins_P, "tokens": responses[0], "lengths": responses[1]}
    outcomes["length_gaps"] = responses[1] - self.opponent[1]
    if self.utility:
      utility_P = self.utility(*responses)
      outcomes["truth"] = outcome(utility_P - self.utility(*self.opponent))
      record |= {
        "true_utility": utility_P.mean(),
        "true_win_rate": outcomes["truth"].mean(),
      }
    return {name: float(value) for name, value in record.items()}, outcomes

  def compare(self, a: Responses, b: Responses) -> np.ndarray:
    """The judge's margins of responses `a` over `b` to the fixed prompts, P."""
    return self.judged(self.judge, self.judge_params, a, b)

  def judged(
    self, judge: Judge, params: Params, a: Responses, b: Responses
  ) -> np.ndarray:
    """Any judge's margins of `a` over `b`, P."""
    both = self.prompts.replace(
      responses_BxNxT=np.stack([a[0], b[0]], 1), lengths_BxN=np.stack([a[1], b[1]], 1)
    )
    judged = self.map(lambda x: margins(judge, params, x), both, doing="judging")
    return numbers(judged)

  def map(self, function: Callable[..., Any], *trees: Any, doing: str) -> Any:
    """`function` over the rows of trees of host arrays."""

    def take(indices: np.ndarray) -> tuple[Any, ...]:
      return jax.tree.map(lambda x: x[indices], trees)

    count = len(jax.tree.leaves(trees)[0])
    return map_rows(function, take, np.arange(count), self.batch_size, self.mesh, doing)


@dataclasses.dataclass(frozen=True)
class PolicyEvaluation:
  """All that one checkpoint is asked, on fixed prompts and pairs.

  Attributes:
    contest: the prompts of the win rate, and who judges.
    reference, reference_params: what the KL is measured from.
    pairs: host batch of pairs of D_golden, with reference log-probabilities, on which
      the policy is read as a classifier.
    kl_prompts: how many of the prompts the KL is estimated on.
    key: for sampling; the same for every checkpoint.
  """

  contest: Contest
  sampler: sampling.Sampler
  reference: Model
  reference_params: Params
  pairs: Batch
  kl_prompts: int
  key: Array

  @property
  def model(self) -> Model:
    return self.sampler.model

  def __call__(self, params: Params) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """-> (the checkpoint's record, per-prompt outcomes by judge and its responses)."""
    contest = self.contest
    samples = self.sample(params, SAMPLES)
    first, second = (
      (samples.tokens_BxNxT[:, i], samples.lengths_BxN[:, i]) for i in (0, 1)
    )
    record, outcomes = contest.record(first, samples.ended_BxN[:, 0])
    between_P = contest.compare(first, second)
    record |= self._divergence(params, samples, between_P)
    record |= self._classification(params)
    if contest.utility:
      gap_P = contest.utility(*first) - contest.utility(*second)
      record["judge_accuracy_on_policy"] = agreement(between_P, gap_P)
    return {name: float(value) for name, value in record.items()}, outcomes

  def sample(self, params: Params, num_samples: int) -> sampling.Samples:
    """Responses to the fixed prompts."""
    prompts = self.contest.prompts
    T = prompts.responses_BxNxT.shape[2]
    return self.contest.map(
      lambda batch: sample(self.sampler, params, batch, self.key, num_samples, T),
      prompts,
      doing="sampling",
    )

  def _divergence(
    self, params: Params, samples: sampling.Samples, between_P: np.ndarray
  ) -> dict[str, float]:
    sampled = self.contest.prompts.replace(
      responses_BxNxT=samples.tokens_BxNxT, lengths_BxN=samples.lengths_BxN
    )
    reference = self.reference, None if BASE in params else self.reference_params
    per_prompt = self.contest.map(
      lambda batch, logps: divergence(self.model, params, *reference, batch, logps),
      *jax.tree.map(lambda x: x[: self.kl_prompts], (sampled, samples.logps_BxNxT)),
      doing="scoring",
    )
    return {
      "kl": per_prompt["kl"].mean(),
      "kl_stderr": _stderr(per_prompt["kl"]),
      "kl_k1_stderr": _stderr(per_prompt["k1"]),
      "kl_k3_stderr": _stderr(per_prompt["k3"]),
      "entropy": per_prompt["entropy"].mean(),
      "self_classification_accuracy": agreement(
        per_prompt["rho"], between_P[: self.kl_prompts]
      ),
      "decode_vs_score_max_abs_diff": per_prompt["decode_vs_score"].max(),
    }

  def _classification(self, params: Params) -> dict[str, float]:
    ratios_Qx2 = self.contest.map(
      lambda batch: log_ratios(self.model, params, batch), self.pairs, doing="scoring"
    )
    return {
      "classification_accuracy": outcome(ratios_Qx2[:, 0] - ratios_Qx2[:, 1]).mean(),
      "chosen_log_ratio": ratios_Qx2[:, 0].mean(),
      "rejected_log_ratio": ratios_Qx2[:, 1].mean(),
    }


def clustered_within(values_P: np.ndarray, clusters_P: np.ndarray) -> float:
  """Half the 95 % interval of a mean whose values vary together within a cluster.

  A cluster is a prompt; there are at least two. The standard error is from the sums of
  their deviations (the usual one where every cluster has one value), and the quantile
  Student's t: of few clusters the error itself is known badly.
  """
  _, at_P = np.unique(clusters_P, return_inverse=True)
  sums_C = np.bincount(at_P, values_P - values_P.mean())
  size = len(sums_C)
  stderr = np.sqrt(size / (size - 1) * (sums_C**2).sum()) / len(values_P)
  return float(special.stdtrit(size - 1, 0.975) * stderr)


def _stderr(values: np.ndarray) -> float:
  return float(values.std(ddof=1) / np.sqrt(len(values)))
