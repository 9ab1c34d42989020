"""Losses of pairs, and of a pair with a supervised target."""

import jax
import jax.numpy as jnp

from alignment.core.losses.registry import pairwise
from alignment.core.losses.terms import per_token, responses, rho
from alignment.types import Array, UserError


@pairwise()
def ipo(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  length_normalized: bool = False,
) -> Array:
  """IPO, the paper's default: (z - 1/2)^2, least at rho = 1/(2 beta) (App. B).

  Scale: (beta rho - 1/2)^2 = beta^2 (rho - 1/(2 beta))^2. The IPO paper and TRL take
  the square without the beta^2 in front: the same minimum, but their gradients are
  1/beta^2 times ours, 100 at beta 0.1. TRL's log-ratios are means over tokens, which is
  `length_normalized` here (it reports that IPO's authors did so); the paper's formula
  has none of that. GPO's "squared" (z - 1)^2 is 4 times this loss at beta / 2, hence
  not a loss of its own here.
  """
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  return (z_B - 0.5) ** 2


@pairwise()
def dpo(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  label_smoothing: float = 0.0,
  nll: float = 0.0,
  length_normalized: bool = False,
) -> Array:
  """DPO: log(1 + e^-z) (App. B); with smoothing s, (1-s) f(z) + s f(-z) (cDPO).

  Without smoothing it has no minimum: it falls for ever, ever more slowly. With it, the
  minimum is at rho = log((1-s)/s) / beta. Raises UserError unless 0 <= s < 1/2.

  `nll` adds that weight times -log pi(y_w|x) / |y_w|, *per token* of each response, as
  in iterative RPO (arXiv 2404.19733). TRL ("sigmoid" with "sft") takes the mean over
  all tokens of a batch's preferred responses: equal for one pair.
  TRL calls the length-normalised form "sigmoid_norm".
  """
  _check_rate("dpo", "label_smoothing", label_smoothing)
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  loss_B = (1 - label_smoothing) * jax.nn.softplus(-z_B) + (
    label_smoothing * jax.nn.softplus(z_B)
  )
  if not nll:
    return loss_B
  return loss_B - nll * per_token(logps_Bx2, lengths_BxN)[:, 0]


@pairwise()
def robust(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  flip_rate: float = 0.1,
  length_normalized: bool = False,
) -> Array:
  """Robust DPO: ((1-e) f(z) - e f(-z)) / (1 - 2e), f(z) = log(1 + e^-z).

  If each label was flipped with probability e = `flip_rate`, this is in expectation DPO
  on the labels that were not (Chowdhury et al., arXiv 2403.00409). It has no
  minimum and is not bounded below: it falls like -e z / (1 - 2e). TRL calls e its
  label_smoothing. The default is ours; 0 is DPO. Raises UserError unless 0 <= e < 1/2.
  """
  _check_rate("robust", "flip_rate", flip_rate)
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  kept_B, flipped_B = jax.nn.softplus(-z_B), jax.nn.softplus(z_B)
  return ((1 - flip_rate) * kept_B - flip_rate * flipped_B) / (1 - 2 * flip_rate)


@pairwise()
def slic(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  length_normalized: bool = False,
) -> Array:
  """Hinge max(0, 1 - z) on the reference-normalised margin; 0 from rho = 1/beta (GPO).

  GPO and TRL call this SLiC, RSO "hinge-norm" (eq. 10, with gamma for beta). It has the
  shape of that loss only: see `slic_hf`.
  """
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  return jax.nn.relu(1 - z_B)


@pairwise()
def truncated_squared(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  length_normalized: bool = False,
) -> Array:
  """max(0, 1 - z)^2: squared, but flat at 0 from rho = 1/beta on (GPO)."""
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  return jax.nn.relu(1 - z_B) ** 2


@pairwise()
def exponential(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  length_normalized: bool = False,
) -> Array:
  """e^-z (GPO). No minimum.

  The formula is left as it is: below z = -88 it exceeds float32 and is +inf, value and
  gradient, for the step's finite check to report.
  """
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  return jnp.exp(-z_B)


@pairwise()
def savage(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None = None,
  *,
  length_normalized: bool = False,
) -> Array:
  """1 / (1 + e^z)^2 (GPO): bounded by 1 and not convex. No minimum.

  Its gradient vanishes at both ends, so very wrong pairs are given up on.
  """
  z_B = _z(logps_Bx2, ref_logps_Bx2, beta, lengths_BxN, length_normalized)
  return jax.nn.sigmoid(-z_B) ** 2


@pairwise()
def chi_po(
  logps_Bx2: Array, ref_logps_Bx2: Array, beta: float, *, clip: float = 10.0
) -> Array:
  """chi-PO: log(1 + e^-z), z = clip(beta [phi(y_w) - phi(y_l)]), phi = u + log u.

  u = pi(y|x) / pi_ref(y|x) is the ratio of the *whole* response's probabilities (hence
  no length normalisation). DPO has phi = log u, for a KL; u + log u regularises by
  chi^2 and KL together: an over-likely response costs exponentially. Larger beta is
  stronger. z is clipped to +-`clip`, the paper's 2 R_max, twice the largest reward
  (Huang et al., arXiv 2407.13399, Alg. 1); the default is ours. Outside, a pair has no
  gradient, on the wrong side too. log u is cut at 80 in u alone, as e^88 is beyond
  float32: no response of a pair gets there, and of two that do u says nothing.
  """
  log_u_Bx2 = responses(logps_Bx2, 2) - responses(ref_logps_Bx2, 2)
  phi_Bx2 = jnp.exp(jnp.minimum(log_u_Bx2, 80.0)) + log_u_Bx2
  z_B = jnp.clip(beta * (phi_Bx2[:, 0] - phi_Bx2[:, 1]), -clip, clip)
  return jax.nn.softplus(-z_B)


@pairwise(reference=False)
def simpo(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array,
  *,
  gamma: float = 0.5,
) -> Array:
  """SimPO: log(1 + e^-z), z = beta [log pi(y_w|x)/|y_w| - log pi(y_l|x)/|y_l|] - gamma.

  On means over tokens, without a reference (Meng et al., arXiv 2405.14734, eq. 6).
  beta is the scale of the reward, in nats per token (the paper takes 2 to 2.5, far from
  a DPO's); the margin that is aimed at is gamma / beta, so **larger beta asks for a
  smaller change**, though nothing ties the policy to where it began. TRL (its CPO
  trainer, with cpo_alpha = 0) has the same scale and gamma.
  """
  del ref_logps_Bx2
  mean_Bx2 = per_token(responses(logps_Bx2, 2), lengths_BxN)
  return jax.nn.softplus(gamma - beta * (mean_Bx2[:, 0] - mean_Bx2[:, 1]))


@pairwise(reference=False)
def orpo(
  logps_Bx2: Array, ref_logps_Bx2: Array, beta: float, lengths_BxN: Array
) -> Array:
  """ORPO: -log p(y_w) + beta log(1 + odds(y_l) / odds(y_w)), odds = p / (1 - p).

  p(y) is the geometric mean of the probabilities of y's tokens: log p = log pi / |y|
  (Hong et al., arXiv 2403.07691, eq. 3 to 7). beta is the paper's lambda, the weight
  of the preference beside the cross-entropy per token: **larger beta is weaker
  regularisation**, the other way round than elsewhere. TRL has the same scale; for
  decoder-only models its cross-entropy covers the prompt too, and it averages that over
  all tokens of a batch. log p is cut at -1e-7 in the odds, which end there.
  """
  del ref_logps_Bx2
  logp_Bx2 = per_token(responses(logps_Bx2, 2), lengths_BxN)
  cut_Bx2 = jnp.minimum(logp_Bx2, -1e-7)
  log_odds_Bx2 = cut_Bx2 - jax.nn.log1mexp(-cut_Bx2)
  odds_ratio_B = log_odds_Bx2[:, 0] - log_odds_Bx2[:, 1]
  return beta * jax.nn.softplus(-odds_ratio_B) - logp_Bx2[:, 0]


@pairwise(responses=3, reference=False)
def slic_hf(
  logps_Bx3: Array,
  ref_logps_Bx3: Array,
  beta: float,
  *,
  delta: float = 1.0,
  regularization: float = 1.0,
) -> Array:
  """SLiC-HF: max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lambda log pi(y_ref|x).

  On raw log-probabilities. Response 2 is the supervised target y_ref, and its
  cross-entropy, weighted by lambda = `regularization`, is what regularises: neither the
  reference policy nor beta is read. The margin `delta` is in nats of the *summed*
  log-probability. RSO, whose eq. 1 this is, takes delta = 20 and lambda = 0; both
  defaults are ours.
  """
  del ref_logps_Bx3, beta
  logps_Bx3 = responses(logps_Bx3, 3)
  hinge_B = jax.nn.relu(delta - logps_Bx3[:, 0] + logps_Bx3[:, 1])
  return hinge_B - regularization * logps_Bx3[:, 2]


@pairwise(reference=False)
def best_of_2(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """-log pi(y_w|x): not contrastive. Neither y_l, the reference nor beta is read.

  The paper's eq. 3 maximises log pi(y_w|x); it is printed with the sign reversed.
  """
  del ref_logps_Bx2, beta
  return -responses(logps_Bx2, 2)[:, 0]


def _z(
  logps_Bx2: Array,
  ref_logps_Bx2: Array,
  beta: float,
  lengths_BxN: Array | None,
  length_normalized: bool,
) -> Array:
  """z = beta rho, of log-ratios that are sums over tokens, or means."""
  if not length_normalized:
    return beta * rho(logps_Bx2, ref_logps_Bx2)
  return beta * rho(
    per_token(logps_Bx2, lengths_BxN), per_token(ref_logps_Bx2, lengths_BxN)
  )


def _check_rate(loss: str, option: str, value: float) -> None:
  if not 0 <= value < 0.5:
    raise UserError(f"option {option!r} of loss {loss!r} must be in [0, 0.5): {value}")
