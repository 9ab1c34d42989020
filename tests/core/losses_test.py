"""Losses: closed forms, gradients, invariances, the registry, and TRL's values."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import logprobs, losses
from alignment.types import UserError

TRL = json.loads(
  (pathlib.Path(__file__).parents[1] / "fixtures" / "trl_losses.json").read_text()
)
# z -> f(z) in float64, written independently of the code under test.
CLOSED_FORMS = {
  "ipo": lambda z: (z - 0.5) ** 2,
  "dpo": lambda z: np.log1p(np.exp(-z)),
  "slic": lambda z: np.maximum(0, 1 - z),
  "truncated_squared": lambda z: np.maximum(0, 1 - z) ** 2,
  "exponential": lambda z: np.exp(-z),
  "savage": lambda z: 1 / (1 + np.exp(z)) ** 2,
}


def at_rho(name, rho, beta, **options):
  """The loss of pairs whose margins are `rho` and whose reference is not zero."""
  rho = jnp.asarray(rho, jnp.float32)
  zeros = jnp.zeros_like(rho)
  ref_logps = jnp.stack([zeros - 3.0, zeros - 3.0], axis=1)
  logps = jnp.stack([rho - 5.0, zeros - 5.0], axis=1)
  return losses.bind(name, options)(logps, ref_logps, beta)


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


def test_every_reference_loss_of_two_responses_has_its_closed_form_tested():
  assert set(CLOSED_FORMS) == {
    name for name, loss in losses.PAIRWISE.items() if loss.reference
  }


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


@pytest.mark.parametrize("name", losses.PAIRWISE)
def test_only_losses_with_a_reference_read_it(name):
  loss = losses.get(name)
  logps, ref_logps = random_pairs(n=loss.responses)
  bound = losses.bind(name)
  value = bound(logps, ref_logps, 0.3)
  assert value.shape == (6,) and value.dtype == jnp.float32
  shift = np.float32(16)  # of one response, in policy and reference alike
  both = bound(
    logps - [shift, 0, 0][: loss.responses],
    ref_logps - [shift, 0, 0][: loss.responses],
    0.3,
  )
  other_reference = bound(logps, ref_logps - [shift, 0, 0][: loss.responses], 0.3)
  if loss.reference:
    np.testing.assert_allclose(both, value, rtol=1e-4, atol=1e-6)
    assert np.any(np.abs(other_reference - value) > 1e-3)
  else:
    np.testing.assert_array_equal(other_reference, value)
    np.testing.assert_array_equal(bound(logps, ref_logps, 7.0), value)
    assert np.all(np.abs(both - value) > 1e-3)


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
    ("ipo", {"label_smoothing": 0.1}, "'ipo' has no option 'label_smoothing'.*none"),
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


def test_half_smoothing_is_a_user_error():
  with pytest.raises(UserError, match="label_smoothing"):
    at_rho("dpo", [0.0], 0.1, label_smoothing=0.5)


def test_bind_passes_its_options_on():
  logps, ref_logps = random_pairs(n=3)
  bound = losses.bind("slic_hf", {"delta": 2, "regularization": 0.0})
  np.testing.assert_allclose(
    jax.jit(bound)(logps, ref_logps, 0.1),
    np.maximum(0, 2 - logps[:, 0] + logps[:, 1]),
    rtol=1e-6,
  )


def test_a_loss_is_added_by_writing_one_function(monkeypatch):
  monkeypatch.setattr(losses, "PAIRWISE", dict(losses.PAIRWISE))

  @losses.pairwise()
  def cubic(logps_Bx2, ref_logps_Bx2, beta, *, margin=1.0):
    return jax.nn.relu(margin - beta * losses.rho(logps_Bx2, ref_logps_Bx2)) ** 3

  assert losses.get("cubic") == losses.PairwiseLoss(
    "cubic", cubic, responses=2, reference=True, options=("margin",)
  )
  np.testing.assert_allclose(at_rho("cubic", [0.0, 10.0], 0.1, margin=3), [27, 8])
  with pytest.raises(ValueError, match="'cubic'"):
    losses.pairwise()(cubic)


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

  smoothing = {"label_smoothing": case["label_smoothing"]}
  ours = {
    "sigmoid": losses.dpo(logps, ref_logps, beta),
    "aot": losses.bind("dpo", smoothing)(logps, ref_logps, beta),
    "hinge": losses.slic(logps, ref_logps, beta),
    "ipo": losses.ipo(logps / lengths, ref_logps / lengths, beta) / beta**2,
  }
  assert set(ours) == set(case["losses_B"])
  for name, value in ours.items():
    np.testing.assert_allclose(
      value, case["losses_B"][name], rtol=1e-4, atol=2e-5, err_msg=name
    )
  loss, weight = losses.sft(logps[:, :1], lengths[:, :1])
  np.testing.assert_allclose(loss.sum() / weight.sum(), case["sft"], rtol=1e-5)


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda case: f"beta{case['beta']}")
def test_agrees_with_trl(case):
  assert_agrees_with_trl(case)


def test_a_loss_reads_two_or_three_responses():
  with pytest.raises(ValueError, match="reads 2 or 3 responses, not 4"):
    losses.pairwise(responses=4)
