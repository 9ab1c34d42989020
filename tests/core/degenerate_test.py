"""Judges, policies and responses at their worst: each has a defined outcome."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.analysis import claims
from alignment.core import (
  evaluation,
  judges,
  logprobs,
  losses,
  rollout,
  sampling,
  scoring,
  train_step,
)
from alignment.runtime import sharding
from alignment.study.stages import evaluations, judging
from alignment.types import UserError
from tests import synthetic, tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

MESH = sharding.make_mesh()
ROWS = 64
LOSSES = ("ipo", "dpo", "slic", "truncated_squared", "exponential", "savage", "slic_hf",
          "best_of_2")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AlwaysFirst(judges.PreferenceModel):
  """Says A whatever it reads."""

  def logit_margin(self, params, prompts_BxS, *_):
    return jnp.full(prompts_BxS.shape[0], 7.0)


ALWAYS_A = AlwaysFirst(
  tiny.JUDGE.model, tiny.JUDGE.markers, tiny.JUDGE.context_length, "left"
)


def rolled(roller, policy):
  prompts = jax.tree.map(jnp.asarray, tiny.batch(ROWS))
  out = rollout.compiled(roller, MESH)(
    policy, tiny.params(1), tiny.params(2, tiny.JUDGE.model.cfg), prompts,
    jax.random.key(3),
  )  # fmt: skip
  return jax.tree.map(np.asarray, out)


def trains(batch, loss="ipo"):
  """Gradients of a step on the batch; they must be finite."""
  objective = train_step.PolicyObjective(tiny.POLICY, loss)
  grads, metrics = jax.jit(
    lambda p, b: train_step.gradients(objective, p, b, jnp.float32(0.1), 1)
  )(tiny.params(0), jax.tree.map(jnp.asarray, batch))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert all(math.isfinite(float(v)) for v, _ in metrics.values())
  return metrics


# --- a judge that always says A ---


def test_a_judge_that_always_says_a_prefers_nothing():
  """Both orders cancel, so every pair is a tie: a coin orders it, and it wins half."""
  out = rolled(rollout.Roller(tiny.SAMPLER, tiny.POLICY, ALWAYS_A), tiny.params(0))
  np.testing.assert_array_equal(out.margins_B, 0)
  informed = rolled(
    rollout.Roller(tiny.SAMPLER, tiny.POLICY, tiny.JUDGE), tiny.params(0)
  )
  # The same samples in another order: the coin's, which is neither always A nor B.
  same = (out.batch.responses_BxNxT == informed.batch.responses_BxNxT).all((1, 2))
  turned = out.batch.responses_BxNxT == informed.batch.responses_BxNxT[:, ::-1]
  assert (same | turned.all((1, 2))).all()
  assert ROWS / 4 < same.sum() < 3 * ROWS / 4
  np.testing.assert_array_equal(evaluation.outcome(out.margins_B), 0.5)
  trains(out.batch)


def test_a_judge_that_always_says_a_learns_from_both_orders():
  """log 2 at best: it gains on one order what it loses on the other."""
  objective = train_step.PreferenceObjective(ALWAYS_A)
  metrics = objective(None, tiny.batch(8), jnp.float32(0))
  loss, accuracy = (float(v / w) for v, w in (metrics["loss"], metrics["accuracy"]))
  assert accuracy == 0.5
  assert loss == pytest.approx((math.log1p(math.exp(7)) + math.log1p(math.exp(-7))) / 2)


def test_a_golden_judge_at_chance_stops_the_study():
  report = {"validation_accuracy": 0.5, "validation_within": 0.0, "train_accuracy": 0.5}
  with pytest.raises(UserError, match="accuracy 0.500 .* is not above 0.6: use more"):
    judging.check_judge(0, report)


# --- policies that end at once, or never ---


class Biased(type(tiny.POLICY)):
  """The tiny policy with a constant added to the logit of EOS."""

  bias = 0.0

  def _biased(self, logits):
    return logits.at[..., tiny.EOS].add(self.bias)

  def logits(self, *args):
    return self._biased(super().logits(*args))

  def decode_step(self, *args, **kwargs):
    logits, cache = super().decode_step(*args, **kwargs)
    return self._biased(logits), cache


def roller_of(model):
  return rollout.Roller(sampling.Sampler(model, (tiny.EOS,)), tiny.POLICY, tiny.JUDGE)


class EndsAtOnce(Biased):
  bias = 60.0


class NeverEnds(Biased):
  bias = -60.0


def test_empty_responses_are_ties_that_train():
  model = EndsAtOnce(tiny.CFG)
  out = rolled(roller_of(model), tiny.params(0))
  np.testing.assert_array_equal(out.batch.lengths_BxN, 1)  # EOS and nothing before it
  assert (out.batch.responses_BxNxT[..., 0] == tiny.EOS).all()
  assert out.ended_BxN.all()
  np.testing.assert_array_equal(out.margins_B, 0)  # identical responses
  metrics = trains(out.batch)
  assert float(metrics["rho"][0]) == 0


def test_a_response_of_no_tokens_scores_zero_and_trains():
  batch = tiny.batch(4)
  empty = batch.replace(lengths_BxN=np.zeros_like(batch.lengths_BxN))
  logps = scoring.score(tiny.POLICY, tiny.params(0), empty)
  np.testing.assert_array_equal(logps, 0)
  trains(empty)


def test_what_never_ends_is_cut_off_without_an_eos():
  model = NeverEnds(tiny.CFG)
  out = rolled(roller_of(model), tiny.params(0))
  np.testing.assert_array_equal(out.batch.lengths_BxN, tiny.T)
  assert not (out.batch.responses_BxNxT == tiny.EOS).any()
  assert not out.ended_BxN.any()
  trains(out.batch)


# --- ties everywhere ---


def test_all_ties_are_half_a_win_and_undecided():
  """Nowhere is index 0 the winner, and no statistic divides by the lack of variance."""
  runs = []
  for world in range(6):
    for method in ("online", "offline"):
      wins = synthetic.certain([0.5, 0.5])
      runs.append(
        synthetic.make_run(f"{method}{world}", method, wins, [1, 10], truth=wins,
                           world=world)
      )  # fmt: skip
  found = claims.claims(runs, resamples=50)
  ahead = {c.verdict for c in found if "more often" in c.statement}
  assert ahead and "agrees" not in ahead
  assert claims.format_claims(found)


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_responses_train(loss):
  batch = tiny.batch(4, responses=losses.get(loss).responses)
  same = batch.replace(
    responses_BxNxT=np.repeat(batch.responses_BxNxT[:, :1], batch.lengths_BxN.shape[1],
                              axis=1),
    lengths_BxN=np.repeat(batch.lengths_BxN[:, :1], batch.lengths_BxN.shape[1], axis=1),
  )  # fmt: skip
  trains(same, loss)


# --- divergence ---


def test_kl_of_extreme_logits_is_large_and_finite_until_float32_ends():
  def kl(scale):
    p, q = (np.zeros((1, 1, 1, 8), np.float32) for _ in range(2))
    p[..., 1], q[..., 2] = scale, scale
    return float(logprobs.exact_kl(p, q, np.ones((1, 1), np.int32))[0, 0])

  for scale in (1e2, 1e9, 1e30):
    assert kl(scale) == pytest.approx(scale, rel=1e-6)
  dead = np.full((1, 1, 1, 8), -1e9, np.float32)  # ids that neither can produce
  dead[..., 1] = 0
  assert float(logprobs.exact_kl(dead, dead, np.ones((1, 1), np.int32))[0, 0]) == 0


RECORD = {"kl": 1.0, "win_rate": 0.5, "entropy": 2.0, "kl_stderr": 0.1}


@pytest.mark.parametrize(
  "change",
  [{"kl": math.inf}, {"kl": math.nan}, {"win_rate": math.nan}, {"entropy": math.inf}],
)
def test_a_diverged_policy_is_named(change):
  (key,) = change
  with pytest.raises(
    UserError, match=f"^on at step 4: {key} is .*: this policy has div"
  ):
    evaluations._checked("on", 4, RECORD | change)


def test_a_mean_over_nothing_is_null():
  record = evaluations._checked(
    "on", 4, RECORD | {"judge_accuracy_on_policy": math.nan}
  )
  assert record == RECORD | {"judge_accuracy_on_policy": None}
  json.dumps(record, allow_nan=False)
