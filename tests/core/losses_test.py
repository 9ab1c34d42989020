"""Losses: closed forms, gradients, invariances, the registry, and TRL's values."""

import json
import math
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import logprobs, losses
from alignment.study import documents
from alignment.types import UserError

pytestmark = pytest.mark.usefixtures("compile_quickly")

REPOSITORY = pathlib.Path(__file__).parents[2]
TRL = json.loads((REPOSITORY / "tests" / "fixtures" / "trl_losses.json").read_text())
# z -> f(z) in float64, written independently of the code under test.
CLOSED_FORMS = {
  "ipo": lambda z: (z - 0.5) ** 2,
  "dpo": lambda z: np.log1p(np.exp(-z)),
  "slic": lambda z: np.maximum(0, 1 - z),
  "truncated_squared": lambda z: np.maximum(0, 1 - z) ** 2,
  "exponential": lambda z: np.exp(-z),
  "savage": lambda z: 1 / (1 + np.exp(z)) ** 2,
  "robust": lambda z: (
    (0.9 * np.log1p(np.exp(-z)) - 0.1 * np.log1p(np.exp(z))) / (1 - 2 * 0.1)
  ),
}


# Losses of more than z: (logps, ref_logps, beta, lengths, scores, kl) -> loss_B, in
# float64. What a loss holds fixed is `fixed`, made of the unmoved arrays.
def chi_po_form(logps, ref_logps, beta, lengths, fixed, kl, clip=10.0):
  phi = np.exp(logps - ref_logps) + logps - ref_logps
  return np.log1p(np.exp(-np.clip(beta * (phi[:, 0] - phi[:, 1]), -clip, clip)))


def simpo_form(logps, ref_logps, beta, lengths, fixed, kl, gamma=0.5):
  mean = logps / lengths
  return np.log1p(np.exp(gamma - beta * (mean[:, 0] - mean[:, 1])))


def orpo_form(logps, ref_logps, beta, lengths, fixed, kl):
  p = np.exp(logps / lengths)
  odds = p / (1 - p)
  return -np.log(p[:, 0]) + beta * np.log1p(odds[:, 1] / odds[:, 0])


def dpo_nll_form(logps, ref_logps, beta, lengths, fixed, kl):
  ratio = logps - ref_logps
  z = beta * (ratio[:, 0] - ratio[:, 1])
  return np.log1p(np.exp(-z)) - 0.7 * logps[:, 0] / lengths[:, 0]


def rloo_form(logps, ref_logps, beta, lengths, fixed, kl):
  returns = fixed["scores"] - beta * fixed["kl"]
  n = returns.shape[1]
  advantages = (returns - returns.mean(1, keepdims=True)) * n / (n - 1)
  return np.mean(beta * kl - advantages * logps, axis=1)


def grpo_form(logps, ref_logps, beta, lengths, fixed, kl):
  scores = fixed["scores"]
  std = np.sqrt(
    np.sum((scores - scores.mean(1, keepdims=True)) ** 2, axis=1, keepdims=True)
    / (scores.shape[1] - 1)
  )
  advantages = (scores - scores.mean(1, keepdims=True)) / (std + 1e-4)
  return np.mean((beta * kl - advantages * logps) / lengths, axis=1)


ARRAY_FORMS = [
  ("chi_po", {}, chi_po_form),
  ("simpo", {}, simpo_form),
  ("orpo", {}, orpo_form),
  ("dpo", {"nll": 0.7}, dpo_nll_form),
  ("rloo", {}, rloo_form),
  ("grpo", {}, grpo_form),
]


def at_rho(name, rho, beta, **options):
  """The loss of pairs whose margins are `rho` and whose reference is not zero."""
  rho = jnp.asarray(rho, jnp.float32)
  zeros = jnp.zeros_like(rho)
  ref_logps = jnp.stack([zeros - 3.0, zeros - 3.0], axis=1)
  logps = jnp.stack([rho - 5.0, zeros - 5.0], axis=1)
  return losses.bind(name, options)(logps, ref_logps, beta)


def random_arrays(name, seed=0, rows=6):
  """Everything a loss may name; ratios of a moderate size."""
  rng = np.random.default_rng(seed)
  responses = losses.get(name).responses
  n = 4 if responses == losses.GROUP else responses
  logps = rng.normal(-20, 4, (rows, n)).astype(np.float32)
  return (
    logps,
    logps - rng.normal(0, 1.5, (rows, n)).astype(np.float32),
    {
      "lengths_BxN": rng.integers(1, 30, (rows, n)),
      "scores_BxN": rng.normal(0, 2, (rows, n)).astype(np.float32),
      "kl_BxN": rng.exponential(2, (rows, n)).astype(np.float32),
    },
  )


def only_needed(name, arrays):
  return {key: arrays[key] for key in losses.get(name).needs}


def random_pairs(seed=0, n=2, rows=6):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(-20, 4, (rows, n)).astype(np.float32),
    rng.normal(-20, 4, (rows, n)).astype(np.float32),
  )


def test_rho_by_hand_and_its_sign_under_a_swap():
  logps = jnp.array([[-1.0, -4.0], [-7.0, -2.0]])
  ref_logps = jnp.array([[-2.0, -3.5], [-7.0, -2.0]])
  np.testing.assert_array_equal(losses.rho(logps, ref_logps), [1.5, 0.0])
  logps, ref_logps = random_pairs()
  np.testing.assert_array_equal(
    losses.rho(logps[:, ::-1], ref_logps[:, ::-1]), -losses.rho(logps, ref_logps)
  )


@pytest.mark.parametrize(
  ("name", "at_0", "at_10"),  # beta 0.1, so z is 0 and 1
  [
    ("ipo", 0.25, 0.25),
    ("dpo", math.log(2), 0.31326169),
    ("slic", 1, 0),
    ("truncated_squared", 1, 0),
    ("exponential", 1, 0.36787944),
    ("savage", 0.25, 0.07232949),
  ],
)
def test_values_by_hand(name, at_0, at_10):
  np.testing.assert_allclose(at_rho(name, [0.0, 10.0], 0.1), [at_0, at_10], rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_value_and_gradient_are_those_of_the_closed_form(name):
  """Gradients against central differences of a float64 copy of the formula."""
  beta, step, form = 0.3, 1e-5, CLOSED_FORMS[name]
  logps, ref_logps = random_pairs()

  def exact(logps):
    ratio = np.asarray(logps, np.float64) - np.asarray(ref_logps, np.float64)
    return form(beta * (ratio[:, 0] - ratio[:, 1]))

  function = losses.get(name).function
  np.testing.assert_allclose(
    function(logps, ref_logps, beta), exact(logps), rtol=2e-5, atol=1e-7
  )
  grad = jax.grad(lambda x: function(x, ref_logps, beta).sum())(logps)
  assert grad.dtype == jnp.float32
  for n in range(2):
    nudge = step * np.eye(2)[n]
    numeric = (exact(logps + nudge) - exact(logps - nudge)) / (2 * step)
    np.testing.assert_allclose(grad[:, n], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("name", "options", "form"), ARRAY_FORMS, ids=[f"{n}{o}" for n, o, _ in ARRAY_FORMS]
)
def test_value_and_gradient_are_those_of_the_formula_on_all_arrays(name, options, form):
  """In log-probabilities and, where it is read, in the KL; scores get no gradient."""
  beta, step = 0.3, 1e-5
  logps, ref_logps, arrays = random_arrays(name)
  fixed = {
    "scores": np.float64(arrays["scores_BxN"]),
    "kl": np.float64(arrays["kl_BxN"]),
  }

  def exact(logps, kl):
    return form(
      np.float64(logps), np.float64(ref_logps), beta, arrays["lengths_BxN"], fixed, kl
    )

  def ours(logps, **moved):
    needed = only_needed(name, arrays | moved)
    return losses.bind(name, options)(logps, ref_logps, beta, **needed)

  kl = fixed["kl"]
  np.testing.assert_allclose(ours(logps), exact(logps, kl), rtol=2e-5, atol=1e-6)
  grad = jax.grad(lambda x: ours(x).sum())(logps)
  grad_kl = jax.grad(lambda x: ours(logps, kl_BxN=x).sum())(arrays["kl_BxN"])
  scores = arrays["scores_BxN"]
  assert not jax.grad(lambda x: ours(logps, scores_BxN=x).sum())(scores).any()
  for n in range(logps.shape[1]):
    nudge = step * np.eye(logps.shape[1])[n]
    up, down = np.float64(logps) + nudge, np.float64(logps) - nudge
    numeric = (exact(up, kl) - exact(down, kl)) / (2 * step)
    np.testing.assert_allclose(grad[:, n], numeric, rtol=2e-4, atol=1e-6)
    numeric = (exact(logps, kl + nudge) - exact(logps, kl - nudge)) / (2 * step)
    np.testing.assert_allclose(grad_kl[:, n], numeric, rtol=2e-4, atol=1e-6)


def test_every_loss_has_its_formula_tested():
  by_hand = {"slic_hf", "best_of_2"}
  assert {*CLOSED_FORMS, *(name for name, _, _ in ARRAY_FORMS), *by_hand} == set(
    losses.LOSSES
  )


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_length_normalized_is_the_loss_of_means_over_tokens(name):
  logps, ref_logps, arrays = random_arrays(name)
  lengths = arrays["lengths_BxN"]
  bound = losses.bind(name, {"length_normalized": True})
  expected = losses.get(name).function(logps / lengths, ref_logps / lengths, 3.0)
  np.testing.assert_allclose(
    bound(logps, ref_logps, 3.0, lengths_BxN=lengths), expected, rtol=1e-5
  )
  with pytest.raises(ValueError, match="lengths_BxN"):
    bound(logps, ref_logps, 3.0)
  with pytest.raises(ValueError, match="differ"):
    bound(logps, ref_logps, 3.0, lengths_BxN=lengths[:, :1])
  without = losses.get(name).function(logps, ref_logps, 3.0)
  with_unread = losses.bind(name)(logps, ref_logps, 3.0, lengths_BxN=lengths)
  np.testing.assert_array_equal(with_unread, without)


def test_robust_undoes_flipped_labels_in_expectation():
  logps, ref_logps = random_pairs()
  bound = losses.bind("robust", {"flip_rate": 0.2})
  straight = bound(logps, ref_logps, 0.3)
  flipped = bound(logps[:, ::-1], ref_logps[:, ::-1], 0.3)
  np.testing.assert_allclose(
    0.8 * straight + 0.2 * flipped,
    losses.dpo(logps, ref_logps, 0.3),
    rtol=1e-4,
    atol=1e-5,
  )


def test_chi_po_is_clipped_on_both_sides_and_finite_everywhere():
  """By hand at ratio e: phi = e + 1 against 1 + 0; beta 1. Then far outside."""
  ref_logps = jnp.zeros((5, 2))
  logps = jnp.array([[1.0, 0.0], [0.0, 3.0], [500.0, 0.0], [500.0, 500.0], [-900, 0.0]])
  value, vjp = jax.vjp(lambda x: losses.chi_po(x, ref_logps, 1.0, clip=5.0), logps)
  expected = np.log1p(np.exp([-math.e, 5.0, -5.0, 0.0, 5.0]))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  (grad,) = vjp(jnp.ones(5))
  sigmoid = 1 / (1 + math.exp(math.e))
  np.testing.assert_allclose(grad[0], [-sigmoid * (math.e + 1), sigmoid * 2], rtol=1e-5)
  np.testing.assert_array_equal(grad[jnp.array([1, 2, 4])], 0)
  assert np.all(np.isfinite(grad))


@pytest.mark.parametrize(("log_ratios", "z"), [((30, 25), 10), ((21, 50), -10)])
def test_two_far_likelier_responses_are_clipped_in_chi_po_and_not_taken_for_equal(
  log_ratios, z
):
  value, vjp = jax.vjp(
    lambda x: losses.chi_po(x, jnp.zeros((1, 2)), 0.1), jnp.array([log_ratios], float)
  )
  np.testing.assert_allclose(value, np.log1p(np.exp(-z)), rtol=1e-6)
  np.testing.assert_array_equal(vjp(jnp.ones(1))[0], 0)


def test_directions_of_beta_without_a_reference():
  """SimPO: a margin of gamma / beta is at log 2. ORPO: beta weighs the preference."""
  lengths = jnp.array([[4, 2]])
  for beta in (0.5, 2.0):
    logps = jnp.array([[4 * 0.5 / beta - 8, -4.0]])  # means differ by gamma / beta
    value = losses.simpo(logps, logps, beta, lengths)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-5)
  logps = jnp.array([[-4.0, -4.0]])
  at_0, at_1, at_3 = (
    losses.orpo(logps, logps, beta, lengths)[0] for beta in (0.0, 1.0, 3.0)
  )
  assert at_0 == 1.0  # the cross-entropy per token alone
  np.testing.assert_allclose(at_3 - at_0, 3 * (at_1 - at_0), rtol=1e-5)


def test_certain_and_empty_responses_are_finite_in_orpo():
  logps = jnp.array([[0.0, -3.0], [-3.0, 0.0], [0.0, 0.0], [-1e-9, -1e4]])
  lengths = jnp.array([[3, 3], [3, 0], [0, 0], [1, 1]])
  value, vjp = jax.vjp(lambda x: losses.orpo(x, x, 0.5, lengths), logps)
  assert np.all(np.isfinite(value)) and np.all(np.isfinite(vjp(jnp.ones(4))[0]))


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_group_losses_do_not_depend_on_order_or_a_constant_in_the_scores(name):
  logps, ref_logps, arrays = random_arrays(name)
  needed = only_needed(name, arrays)

  def gradient(order, shift=0.0):
    given = {key: value[:, order] for key, value in needed.items()}
    given["scores_BxN"] = given["scores_BxN"] + np.float32(shift)
    function = losses.bind(name)
    return jax.grad(lambda x: function(x, x, 0.3, **given).sum())(logps[:, order])

  order = [2, 0, 3, 1]
  straight = gradient([0, 1, 2, 3])
  np.testing.assert_allclose(gradient(order), straight[:, order], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    gradient([0, 1, 2, 3], 5.0), straight, rtol=1e-3, atol=1e-5
  )
  # All alike: nothing to learn but the KL.
  needed["scores_BxN"] = np.full_like(logps, 0.1)
  needed["kl_BxN"] = np.full_like(logps, 0.5)
  np.testing.assert_allclose(gradient(order), 0, atol=1e-3)


def test_rloo_is_an_unbiased_gradient_of_score_minus_kl():
  """Summed over every group of 2 from 3^2 responses, of a policy with prefixes."""
  rng = np.random.default_rng(0)
  policy = jnp.asarray(rng.normal(0, 1, 12), jnp.float32)
  reference = jnp.asarray(rng.normal(0, 1, 12), jnp.float32)
  first, second = np.divmod(np.arange(9), 3)  # the responses' two tokens
  scores, beta = rng.normal(0, 1, 9).astype(np.float32), 0.7

  def both(parameters):  # next-token log-probabilities: at the start, after each token
    tables = [jax.nn.log_softmax(parameters[:3])]
    return tables + list(jax.nn.log_softmax(parameters[3:].reshape(3, 3), axis=-1))

  def logps_and_kl(parameters):
    tables, other = both(parameters), both(reference)
    kl = [jnp.sum(jnp.exp(p) * (p - q)) for p, q in zip(tables, other, strict=True)]
    after = jnp.stack(tables[1:])
    logps = tables[0][first] + after[first, second]
    return logps, kl[0] + jnp.stack(kl[1:])[first]

  def objective(parameters):
    logps, _ = logps_and_kl(parameters)
    ratio = logps - logps_and_kl(reference)[0]
    return jnp.sum(jnp.exp(logps) * (scores - beta * ratio))

  groups = np.stack([a.ravel() for a in np.meshgrid(np.arange(9), np.arange(9))], 1)

  def expected_loss(parameters):
    logps, kl = logps_and_kl(parameters)
    chances = jax.lax.stop_gradient(jnp.exp(logps[groups].sum(1)))
    value = losses.rloo(logps[groups], None, beta, scores[groups], kl[groups])
    return jnp.sum(chances * value)

  np.testing.assert_allclose(
    jax.jit(jax.grad(expected_loss))(policy),
    -jax.jit(jax.grad(objective))(policy),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_ipo_is_beta_squared_times_the_ipo_papers_form(beta):
  def papers(rho):
    return (rho - 1 / (2 * beta)) ** 2

  def ours(rho):
    return at_rho("ipo", rho[None], beta)[0]

  for rho in jnp.array([-3.0, 0.0, 2.0, 8.0]):
    np.testing.assert_allclose(ours(rho), beta**2 * papers(rho), rtol=1e-5)
    np.testing.assert_allclose(
      jax.grad(ours)(rho), beta**2 * jax.grad(papers)(rho), rtol=1e-5
    )
  assert jax.grad(ours)(jnp.float32(1 / (2 * beta))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
  ("name", "options", "target"),  # the smallest minimiser is target / beta
  [
    ("ipo", {}, 0.5),
    ("dpo", {"label_smoothing": 0.1}, math.log(9)),
    ("slic", {}, 1.0),
    ("truncated_squared", {}, 1.0),
  ],
)
def test_larger_beta_keeps_the_minimiser_closer_to_the_reference(name, options, target):
  rho = np.arange(-5, 40, 0.01)
  for beta in (0.1, 0.5, 1.0):
    values = np.asarray(at_rho(name, rho, beta, **options), np.float64)
    minimiser = rho[np.argmax(values <= values.min() + 1e-9)]
    assert minimiser == pytest.approx(target / beta, abs=0.12)


@pytest.mark.parametrize("name", ["dpo", "exponential", "savage"])
def test_losses_without_a_minimum_fall_for_ever(name):
  assert np.all(np.diff(at_rho(name, np.arange(-40.0, 60.0, 2.0), 0.2)) < 0)


def test_what_a_swap_of_the_responses_does():
  logps, ref_logps = random_pairs()
  beta = 0.3
  z = beta * losses.rho(logps, ref_logps)

  def gain(name):
    function = losses.get(name).function
    swapped = function(logps[:, ::-1], ref_logps[:, ::-1], beta)
    return swapped - function(logps, ref_logps, beta)

  np.testing.assert_allclose(gain("ipo"), 2 * z, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gain("dpo"), z, rtol=1e-4, atol=1e-5)
  # sqrt f(z) + sqrt f(-z) = sigmoid(-z) + sigmoid(z) = 1
  savage = losses.savage(logps, ref_logps, beta)
  flipped = losses.savage(logps[:, ::-1], ref_logps[:, ::-1], beta)
  np.testing.assert_allclose(savage**0.5 + flipped**0.5, 1, rtol=1e-5)


def test_label_smoothing_is_a_mixture_of_both_labels():
  logps, ref_logps = random_pairs()
  straight = losses.dpo(logps, ref_logps, 0.3)
  flipped = losses.dpo(logps[:, ::-1], ref_logps[:, ::-1], 0.3)
  smoothed = losses.dpo(logps, ref_logps, 0.3, label_smoothing=0.2)
  np.testing.assert_allclose(smoothed, 0.8 * straight + 0.2 * flipped, rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_only_losses_with_a_reference_read_it(name):
  loss = losses.get(name)
  logps, ref_logps, arrays = random_arrays(name)
  needed = only_needed(name, arrays)
  value = losses.bind(name)(logps, ref_logps, 0.3, **needed)
  assert value.shape == (6,) and value.dtype == jnp.float32
  shift = np.zeros(logps.shape[1], np.float32)
  shift[0] = 2  # of one response, in policy and reference alike
  both = losses.bind(name)(logps - shift, ref_logps - shift, 0.3, **needed)
  other_reference = losses.bind(name)(logps, ref_logps - shift, 0.3, **needed)
  if loss.reference:
    np.testing.assert_allclose(both, value, rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(other_reference - value) > 1e-3)
  else:
    np.testing.assert_array_equal(other_reference, value)
    assert np.all(np.abs(both - value) > 1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_identical_responses_have_finite_gradients(name):
  logps, ref_logps, arrays = random_arrays(name)
  needed = only_needed(name, {key: value[:, :1] for key, value in arrays.items()})
  same = {key: np.repeat(x, logps.shape[1], axis=1) for key, x in needed.items()}
  logps, ref_logps = (
    np.repeat(x[:, :1], x.shape[1], axis=1) for x in (logps, ref_logps)
  )

  def loss(logps):
    return losses.bind(name)(logps, ref_logps, 0.3, **same).sum()

  value, grad = jax.value_and_grad(loss)(logps)
  assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_losses_that_read_no_beta():
  for name in ("slic_hf", "best_of_2"):
    logps, ref_logps, _ = random_arrays(name)
    values = [losses.bind(name)(logps, ref_logps, beta) for beta in (0.3, 7.0)]
    np.testing.assert_array_equal(*values)


def test_what_each_loss_needs():
  def needing(*needs):
    return {n for n, loss in losses.LOSSES.items() if loss.needs == set(needs)}

  assert needing() == {"chi_po", "slic_hf", "best_of_2"}
  assert needing("scores_BxN", "kl_BxN") == {"rloo"}
  assert needing("lengths_BxN", "scores_BxN", "kl_BxN") == {"grpo"}
  assert {n for n, loss in losses.LOSSES.items() if loss.on_policy} == {"rloo", "grpo"}
  assert {n: x.responses for n, x in losses.LOSSES.items() if x.responses != 2} == {
    "slic_hf": 3, "rloo": "group", "grpo": "group",
  }  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_extreme_margins(name):
  rho = jnp.array([-1e4, 1e4])
  value, vjp = jax.vjp(lambda r: at_rho(name, r, 1.0), rho)
  (grad,) = vjp(jnp.ones(2))
  if name == "exponential":  # the formula itself is out of range: inf, never NaN
    np.testing.assert_array_equal(value, [np.inf, 0])
    np.testing.assert_array_equal(grad, [-np.inf, 0])
  else:
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(grad))
  expected = {
    "ipo": [1.0001e8, 0.9999e8],
    "dpo": [1e4, 0],
    "slic": [10001, 0],
    "truncated_squared": [1.0002e8, 0],
    "savage": [1, 0],
    "robust": [11250, -1250],
  }
  if name in expected:
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-30)


def test_slic_hf_by_hand():
  logps = jnp.array([[-2.0, -2.5, -7.0], [-1.0, -4.0, -7.0]])
  value = losses.slic_hf(logps, logps, 0.1, delta=1.0, regularization=0.5)
  np.testing.assert_allclose(value, [0.5 + 3.5, 0 + 3.5])
  grad = jax.grad(
    lambda x: losses.slic_hf(x, logps, 0.1, delta=1.0, regularization=0.5).sum()
  )(logps)
  np.testing.assert_allclose(grad, [[-1, 1, -0.5], [0, 0, -0.5]])


def test_best_of_2_reads_the_preferred_response_only():
  logps, ref_logps = random_pairs()
  np.testing.assert_array_equal(losses.best_of_2(logps, ref_logps, 0.1), -logps[:, 0])
  grad = jax.grad(lambda x: losses.best_of_2(x, ref_logps, 0.1).sum())(logps)
  np.testing.assert_array_equal(grad, np.tile([-1.0, 0.0], (6, 1)))


def test_sft_is_a_mean_over_tokens_not_over_rows():
  loss, weight = losses.sft(
    jnp.array([[-2.0, -4.0], [-30.0, -4.0]]), jnp.array([[1, 2], [15, 2]])
  )
  np.testing.assert_array_equal(loss, [6, 34])
  np.testing.assert_array_equal(weight, [3, 17])
  assert weight.dtype == jnp.float32
  assert loss.sum() / weight.sum() == 2.0


def test_preference_by_hand_and_its_symmetry():
  first, second = jnp.array([0.0, 2.0, -1.0]), jnp.array([0.0, -2.0, 3.0])
  r_wl, r_lw = (1 / (1 + np.exp(-np.float64(x))) for x in (first, second))
  np.testing.assert_allclose(
    losses.preference(first, second),
    -0.5 * np.log(r_wl) - 0.5 * np.log(1 - r_lw),
    rtol=1e-6,
  )
  assert losses.preference(first, second)[0] == pytest.approx(math.log(2))
  # The other label on the same two readings: by softplus(a) - softplus(-a) = a.
  np.testing.assert_allclose(
    losses.preference(second, first) - losses.preference(first, second),
    (first - second) / 2,
    rtol=1e-5,
    atol=1e-6,
  )
  extreme = jnp.array([-1e4, 1e4])
  value, vjp = jax.vjp(losses.preference, extreme, -extreme)
  np.testing.assert_allclose(value, [1e4, 0])
  np.testing.assert_allclose(vjp(jnp.ones(2)), [[-0.5, 0], [0.5, 0]])


@pytest.mark.parametrize(
  ("logps_shape", "ref_logps_shape"),
  [((4, 2), (4,)), ((4, 2), (1, 2)), ((4,), (4,)), ((4, 3), (4, 3)), ((4, 1), (4, 1))],
)
def test_wrong_shapes_raise_instead_of_broadcasting(logps_shape, ref_logps_shape):
  with pytest.raises(ValueError):
    losses.ipo(jnp.zeros(logps_shape), jnp.zeros(ref_logps_shape), 0.1)


def test_wrong_shapes_raise_in_the_others_too():
  pair, triple = jnp.zeros((4, 2)), jnp.zeros((4, 3))
  with pytest.raises(ValueError, match=r"\[B, 3\]"):
    losses.slic_hf(pair, pair, 0.1)
  with pytest.raises(ValueError, match=r"\[B, 2\]"):
    losses.best_of_2(triple, triple, 0.1)
  with pytest.raises(ValueError, match="lengths"):
    losses.sft(pair, jnp.ones(4, jnp.int32))
  with pytest.raises(ValueError, match=r"\[B\]"):
    losses.preference(jnp.zeros(4), jnp.zeros((4, 1)))


def test_an_unknown_loss_names_the_known_ones():
  with pytest.raises(UserError, match="'sigmoid'.*best_of_2.*dpo.*ipo"):
    losses.get("sigmoid")


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("ipo", {"delta": 0.1}, "'ipo' has no option 'delta'.*are length_normalized"),
    ("best_of_2", {"delta": 0.1}, "'best_of_2' has no option 'delta'.*none"),
    ("grpo", {"scores_BxN": 0.1}, "'grpo' has no option 'scores_BxN'"),
    ("ipo", {"length_normalized": 1}, "'length_normalized'.*True or False, not 1"),
    ("simpo", {"gamma": True}, "'gamma' of loss 'simpo' must be a number"),
    ("dpo", {"beta": 0.1}, "'dpo' has no option 'beta'.*label_smoothing"),
    ("dpo", {"label_smoothing": "0.1"}, "'label_smoothing' of loss 'dpo'.*'0.1'"),
    ("slic_hf", {"delta": -1.0}, "'delta' of loss 'slic_hf'"),
    ("slic_hf", {"regularization": math.nan}, "'regularization'"),
    ("slic_hf", {"delta": True}, "'delta'"),
  ],
)
def test_bad_options_are_user_errors(name, options, message):
  with pytest.raises(UserError, match=message):
    losses.bind(name, options)


@pytest.mark.parametrize(
  ("name", "option"), [("dpo", "label_smoothing"), ("robust", "flip_rate")]
)
def test_half_of_the_labels_flipped_is_a_user_error(name, option):
  with pytest.raises(UserError, match=option):
    at_rho(name, [0.0], 0.1, **{option: 0.5})
  with pytest.raises(UserError, match=option):
    losses.check(name, {option: 0.5})


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_passes_its_own_check(name):
  assert losses.check(name) is losses.get(name)


def test_bind_passes_its_options_on():
  logps, ref_logps = random_pairs(n=3)
  bound = losses.bind("slic_hf", {"delta": 2, "regularization": 0.0})
  np.testing.assert_allclose(
    jax.jit(bound)(logps, ref_logps, 0.1),
    np.maximum(0, 2 - logps[:, 0] + logps[:, 1]),
    rtol=1e-6,
  )


@pytest.fixture
def registry(monkeypatch):
  """What is registered is forgotten after the test."""
  registered = dict(losses.LOSSES)
  yield
  losses.LOSSES.clear()
  losses.LOSSES.update(registered)


def test_the_page_adds_a_loss_by_writing_one_function(registry):
  page = (REPOSITORY / "docs" / "losses.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  names = {}
  exec(code, names)
  cubic = names["cubic"]
  assert losses.get("cubic") == losses.Loss(
    "cubic",
    cubic,
    responses=2,
    reference=True,
    needs=frozenset({"lengths_BxN"}),
    on_policy=False,
    options=("margin",),
  )
  logps, ref_logps, arrays = random_arrays("cubic")
  lengths = arrays["lengths_BxN"]
  mean = (logps - ref_logps) / lengths
  np.testing.assert_allclose(
    names["loss_B"](logps, ref_logps, 0.1, lengths_BxN=lengths),
    np.maximum(0, 3 - 0.1 * (mean[:, 0] - mean[:, 1])) ** 3,
    rtol=1e-5,
  )
  losses.pairwise()(cubic)  # a file may be run again
  with pytest.raises(ValueError, match="two losses are called 'ipo'"):
    exec(code.replace("def cubic", "def ipo"), {})


def test_an_edited_loss_of_ones_own_is_another(registry, tmp_path):
  page = (REPOSITORY / "docs" / "losses.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  sources = []
  for name, text in (("a", code), ("a", code), ("b", code.replace("** 3", "** 2"))):
    path = tmp_path / name / "own.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    losses.LOSSES.pop("cubic", None)
    documents.load(path)
    documents.load(path)
    sources.append(losses.own_source("cubic"))
  assert sources[0] == sources[1] != sources[2] and sources[0]
  assert not losses.own_source("ipo")  # this package's have VERSION


def test_the_page_has_every_loss_with_what_it_needs():
  page = (REPOSITORY / "docs" / "losses.md").read_text()
  rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \| [^|]* \|$", page, re.MULTILINE)
  assert [name for name, _ in rows] == [*dict.fromkeys(name for name, _ in rows)]
  for name, needs in rows:
    loss = losses.get(name)
    read = {"reference"} if loss.reference else set()
    read |= {need.removesuffix("_BxN") for need in loss.needs}
    assert set(re.findall(r"reference|lengths|scores|kl", needs)) == read, name
  assert {name for name, _ in rows} == set(losses.LOSSES)


def test_a_loss_can_name_only_what_there_is(registry):
  with pytest.raises(ValueError, match="'mine' names 'length', but can have only leng"):

    @losses.pairwise()
    def mine(logps_Bx2, ref_logps_Bx2, beta, length):
      return beta


def test_losses_can_be_imported_without_models_or_tensorflow():
  code = (
    "import sys, alignment.core.losses\n"
    "heavy = ('alignment.models', 'tensorflow')\n"
    "print([name for name in sys.modules if name.startswith(heavy)])"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
  )
  assert run.stdout == "[]\n", run.stderr


def assert_agrees_with_trl(case):
  """Ours, from the same logits, against the values of TRL's own code.

  TRL sums a response's log-probabilities, as here, except for IPO: there it averages
  over the tokens of each response, and its square has no beta^2 in front.
  """
  lengths, beta = jnp.array(case["lengths_BxN"]), case["beta"]

  def logps_of(logits):
    tokens = jnp.array(case["responses_BxNxT"])
    per_token = logprobs.token_logps(jnp.array(logits, jnp.float32), tokens)
    return logprobs.sequence_logps(per_token, lengths)

  logps = logps_of(case["logits_BxNxTxV"])
  ref_logps = logps_of(case["ref_logits_BxNxTxV"])
  np.testing.assert_allclose(logps, case["logps_BxN"], rtol=1e-5)
  np.testing.assert_allclose(ref_logps, case["ref_logps_BxN"], rtol=1e-5)

  def ours(name, **options):
    needed = {"lengths_BxN": lengths} if losses.get(name).needs else {}
    return losses.bind(name, options)(logps, ref_logps, beta, **needed)

  smoothing = case["label_smoothing"]
  ours_B = {
    "sigmoid": ours("dpo"),
    "sigmoid_norm": ours("dpo", length_normalized=True),
    "sigmoid+sft": ours("dpo", nll=0.5),
    "aot": ours("dpo", label_smoothing=smoothing),
    "robust": ours("robust", flip_rate=smoothing),
    "hinge": ours("slic"),
    "ipo": ours("ipo", length_normalized=True) / beta**2,
    "simpo": ours("simpo"),
    "orpo": ours("orpo"),
  }
  assert set(ours_B) == set(case["losses_B"])
  atol = 2e-5 / (1 - 2 * smoothing)  # "robust" divides rounding errors by it
  for name, value in ours_B.items():
    np.testing.assert_allclose(
      value, case["losses_B"][name], rtol=1e-4, atol=atol, err_msg=name
    )
  loss, weight = losses.sft(logps[:, :1], lengths[:, :1])
  np.testing.assert_allclose(loss.sum() / weight.sum(), case["sft"], rtol=1e-5)


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda case: f"beta{case['beta']}")
def test_agrees_with_trl(case):
  assert_agrees_with_trl(case)


def assert_group_gradients_agree_with_trl(case):
  """Ours in the log-probability of each token, given TRL's estimates of the KL.

  The gradient through RLOO's exact KL is ours alone: TRL's estimate is held fixed.
  """
  lengths, scores = jnp.array(case["lengths_BxN"]), jnp.array(case["scores_BxN"])
  logps_BxNxT = jnp.array(case["token_logps_BxNxT"])
  ref_logps_BxNxT = jnp.array(case["ref_token_logps_BxNxT"])

  def rloo(logps_BxNxT):
    log_ratios = jax.lax.stop_gradient(logps_BxNxT - ref_logps_BxNxT)
    kl = logprobs.sequence_logps(log_ratios, lengths)
    logps = logprobs.sequence_logps(logps_BxNxT, lengths)
    return losses.rloo(logps, logps, case["beta"], scores, kl).mean()

  def grpo(logps_BxNxT):
    other_way = ref_logps_BxNxT - logps_BxNxT
    kl = logprobs.sequence_logps(jnp.exp(other_way) - other_way - 1, lengths)
    logps = logprobs.sequence_logps(logps_BxNxT, lengths)
    return losses.grpo(logps, logps, case["beta"], lengths, scores, kl).mean()

  for name, function in {"rloo": rloo, "grpo": grpo}.items():
    np.testing.assert_allclose(
      jax.jit(jax.grad(function))(logps_BxNxT),
      case["gradients_BxNxT"][name],
      rtol=1e-4,
      atol=1e-6,
      err_msg=name,
    )


@pytest.mark.parametrize("case", TRL["groups"], ids=lambda case: f"beta{case['beta']}")
def test_group_gradients_agree_with_trl(case):
  assert_group_gradients_agree_with_trl(case)


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 3, 2)])
def test_a_group_has_at_least_two_responses(shape):
  array = jnp.zeros(shape)
  with pytest.raises(ValueError, match="N at least 2"):
    losses.rloo(array, array, 0.1, array, array)
  with pytest.raises(ValueError, match="N at least 2"):
    losses.grpo(array, array, 0.1, array, array[:1], array)


def test_a_loss_reads_two_or_three_responses():
  with pytest.raises(ValueError, match="reads 2 or 3 responses, not 4"):
    losses.pairwise(responses=4)
