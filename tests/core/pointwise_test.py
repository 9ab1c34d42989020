"""The pointwise judge: rewards as scores, exact ties, and what training minimises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import losses, optim, pointwise, train_step
from alignment.models.reward import RewardModel
from tests import tiny

JUDGE = pointwise.PointwiseJudge(RewardModel(tiny.POLICY))
scores = jax.jit(JUDGE.scores, compiler_options=tiny.FAST)
preference = jax.jit(JUDGE.preference, compiler_options=tiny.FAST)


@pytest.fixture(scope="module")
def params():
  body = JUDGE.model.without_head(tiny.params())
  return body | jax.device_get(JUDGE.model.init_head(jax.random.key(1)))


def repeated(rows: int, responses: int):
  """Responses of which some of a prompt's are identical, padding apart."""
  batch = tiny.batch(rows, responses=responses)
  tokens, lengths = batch.responses_BxNxT.copy(), batch.lengths_BxN.copy()
  tokens[:, -1], lengths[:, -1] = tokens[:, 0], lengths[:, 0]
  padding = np.arange(tiny.T) >= lengths[:, -1, None]
  tokens[:, -1] = np.where(padding, 7, tokens[:, -1])
  assert padding.any(), "no longer a test of anything"
  return batch.replace(responses_BxNxT=tokens, lengths_BxN=lengths)


def test_scores_are_the_rewards_and_equal_for_identical_responses(params):
  batch = repeated(16, 3)
  scores_BxN = np.asarray(scores(params, batch))
  assert scores_BxN.dtype == np.float32
  np.testing.assert_array_equal(scores_BxN[:, 0], scores_BxN[:, 2])
  rewards = jax.jit(JUDGE.model.rewards, compiler_options=tiny.FAST)
  rewards_BxN = rewards(
    params, batch.prompts_BxS, batch.prompt_lengths_B, batch.responses_BxNxT,
    batch.lengths_BxN,
  )  # fmt: skip
  np.testing.assert_allclose(scores_BxN, rewards_BxN, atol=1e-5)


def test_identical_responses_are_equal_whatever_the_rounding():
  """Of a model whose rewards are but noise."""

  class Noise:
    def rewards(self, params, prompts, prompt_lengths, responses, lengths_BxN):
      return np.random.default_rng(0).normal(size=lengths_BxN.shape)

  scores_BxN = pointwise.PointwiseJudge(Noise()).scores({}, repeated(16, 3))
  np.testing.assert_array_equal(scores_BxN[:, 0], scores_BxN[:, 2])
  assert np.mean(scores_BxN[:, 0] != scores_BxN[:, 1]) > 0.5


def test_preference_is_the_difference_of_the_first_two_scores(params):
  """A third response, the supervised target of some losses, changes nothing."""
  batch = tiny.batch(16, responses=3)
  margins_B = np.asarray(preference(params, batch))
  scores_BxN = np.asarray(scores(params, batch))
  np.testing.assert_allclose(margins_B, scores_BxN[:, 0] - scores_BxN[:, 1], atol=1e-5)
  pair = jax.tree.map(lambda x: x[:, :2] if x.ndim > 1 else x, batch)
  pair = pair.replace(prompts_BxS=batch.prompts_BxS)
  np.testing.assert_array_equal(preference(params, pair), margins_B)
  swapped = pair.replace(
    responses_BxNxT=pair.responses_BxNxT[:, ::-1], lengths_BxN=pair.lengths_BxN[:, ::-1]
  )
  np.testing.assert_allclose(preference(params, swapped), -margins_B, atol=1e-5)


def test_identical_responses_tie_exactly(params):
  np.testing.assert_array_equal(preference(params, repeated(16, 2)), 0.0)


def test_any_lengths_can_be_judged():
  JUDGE.check(10**9, 1)
  assert not JUDGE.on_host


def test_bradley_terry_is_the_negative_log_likelihood():
  margins_B = np.array([0.0, 1.5, -2.0, 200.0, -200.0], np.float32)
  expected_B = -np.log(1 / (1 + np.exp(-np.float64(margins_B[:3]))))
  loss_B = np.asarray(losses.bradley_terry(jnp.asarray(margins_B)))
  np.testing.assert_allclose(loss_B[:3], expected_B, rtol=1e-6)
  assert loss_B[3] == 0 and loss_B[4] == 200  # neither infinite nor not a number
  gradient = jax.vmap(jax.grad(lambda m: losses.bradley_terry(m[None])[0]))
  expected_B = -1 / (1 + np.exp(np.float64(margins_B[:3])))  # sigmoid(m) - 1
  np.testing.assert_allclose(gradient(margins_B)[:3], expected_B, rtol=1e-6)
  with pytest.raises(ValueError, match="must be"):
    losses.bradley_terry(jnp.zeros((2, 1)))


def test_objective_is_the_loss_of_the_rewards_difference(params):
  batch = tiny.batch(8)
  weights_B = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
  batch = batch.replace(weights_B=weights_B)
  objective = train_step.RewardObjective(JUDGE)
  metrics = jax.jit(objective)(params, batch, 0.0)
  margins_B = np.asarray(preference(params, batch))
  loss, total = metrics["loss"]
  assert total == 6
  expected = (np.log1p(np.exp(-margins_B)) * weights_B).sum()
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  right_B = (margins_B > 0) + 0.5 * (margins_B == 0)
  assert float(metrics["accuracy"][0]) == (right_B * weights_B).sum()


def test_training_teaches_it_the_labels(params):
  """Of pairs whose better response begins with a certain token."""
  batch = tiny.batch(32)
  tokens = batch.responses_BxNxT.copy()
  tokens[:, 0, 0], tokens[:, 1, 0] = 4, 5
  batch = batch.replace(responses_BxNxT=tokens, lengths_BxN=np.full((32, 2), tiny.T))
  optimizer = optim.Optimizer("adamw")
  step = jax.jit(
    functools.partial(
      train_step.train_step,
      objective=train_step.RewardObjective(JUDGE),
      optimizer=optimizer,
      microbatches=2,
    ),
    compiler_options=tiny.FAST,
  )
  state = train_step.init_state(params, optimizer)
  log = []
  for _ in range(12):
    state, metrics = step(state, batch, train_step.hyper(1e-2))
    log.append(float(metrics["loss"][0]) / 32)
  assert log[-1] < 0.1 < log[0] and float(metrics["accuracy"][0]) == 32
