"""Losses: pure functions of log-probabilities, never of models.

Every policy loss has the same signature, so that a config can swap one for another:

  loss_B = loss(logps_BxN, ref_logps_BxN, beta, *, options)

`logps` are `logprobs.sequence_logps`: summed over tokens, in nats. Index 0 is the
preferred response y_w, index 1 the other, y_l. Results are float32, one per prompt,
unreduced. Most losses are f(z), z = beta * rho, where (`rho` below)

  rho = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)].

beta enters through z only, and once: **larger beta is stronger regularisation**, as z
then reaches f's flat part at a smaller rho. That is the scale of the paper's App. B;
TRL, the IPO paper and the body's eq. 1 scale IPO differently (see `ipo`).

To add a loss, write one function here; its keyword-only arguments are its options,
which a config sets by name, and the registry does the rest:

  @pairwise()
  def cubic(logps_Bx2, ref_logps_Bx2, beta, *, margin=1.0):
    '''max(0, margin - z)^3 ...'''
    return jax.nn.relu(margin - beta * rho(logps_Bx2, ref_logps_Bx2)) ** 3

`@pairwise(responses=3)` asks the data for a third response, the supervised target;
`@pairwise(reference=False)` says that the reference's log-probabilities are not read.

Sources: the paper (arXiv 2405.08448), App. A and B; GPO, generalised preference
optimisation (arXiv 2402.05749); SLiC-HF (arXiv 2305.10425), as its authors state it in
RSO (arXiv 2309.06657).
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp

from alignment.types import Array, SumWeight, UserError

LossFn = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class PairwiseLoss:
  """A registered loss and what it needs from the data."""

  name: str
  function: LossFn
  responses: int  # 2: preferred and other; 3: and the supervised target
  reference: bool  # whether the reference's log-probabilities are read
  options: tuple[str, ...]  # the function's keyword-only arguments


PAIRWISE: dict[str, PairwiseLoss] = {}


def pairwise(
  *, responses: int = 2, reference: bool = True
) -> Callable[[LossFn], LossFn]:
  """Registers a function under its own name, and returns it unchanged."""
  if responses not in (2, 3):
    raise ValueError(f"a pairwise loss reads 2 or 3 responses, not {responses}")

  def register(function: LossFn) -> LossFn:
    name = function.__name__
    if name in PAIRWISE:
      raise ValueError(f"two losses are called {name!r}")
    parameters = inspect.signature(function).parameters.values()
    options = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    PAIRWISE[name] = PairwiseLoss(name, function, responses, reference, options)
    return function

  return register


def get(name: str) -> PairwiseLoss:
  """The loss of that name; UserError with the names there are if it has none."""
  if name not in PAIRWISE:
    known = ", ".join(sorted(PAIRWISE))
    raise UserError(f"unknown loss {name!r}: choose one of {known}")
  return PAIRWISE[name]


def bind(name: str, options: Mapping[str, Any] | None = None) -> LossFn:
  """`(logps_BxN, ref_logps_BxN, beta) -> loss_B` with the options filled in.

  Raises UserError, naming it, for an unknown loss, an option that this loss does not
  have (beta is not an option: it would be applied twice) and a value that is not a
  finite number of at least 0.
  """
  loss = get(name)
  options = dict(options or {})
  for key, value in options.items():
    if key not in loss.options:
      known = ", ".join(loss.options) or "none"
      raise UserError(f"loss {name!r} has no option {key!r}: its options are {known}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
      raise UserError(
        f"option {key!r} of loss {name!r} must be a number of at least 0, not {value!r}"
      )
  return functools.partial(loss.function, **options)


def rho(logps_Bx2: Array, ref_logps_Bx2: Array) -> Array:
  """The log-ratio margin rho(x, y_w, y_l) in nats, float32[B]; > 0 prefers y_w.

  Swapping the responses changes its sign exactly.
  """
  if logps_Bx2.shape != ref_logps_Bx2.shape:
    raise ValueError(
      f"policy {logps_Bx2.shape} and reference {ref_logps_Bx2.shape} differ in shape"
    )
  log_ratios_Bx2 = _responses(logps_Bx2, 2) - _responses(ref_logps_Bx2, 2)
  return log_ratios_Bx2[:, 0] - log_ratios_Bx2[:, 1]


@pairwise()
def ipo(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """IPO, the paper's default: (z - 1/2)^2, least at rho = 1/(2 beta) (App. B).

  Scale: (beta rho - 1/2)^2 = beta^2 (rho - 1/(2 beta))^2. The IPO paper and TRL take
  the square without the beta^2 in front (TRL on log-probabilities averaged over tokens,
  besides): the same minimum, but their gradients are 1/beta^2 times ours, 100 at beta
  0.1. GPO's "squared" (z - 1)^2 is 4 times this loss at beta / 2, hence not a loss of
  its own here.
  """
  return (beta * rho(logps_Bx2, ref_logps_Bx2) - 0.5) ** 2


@pairwise()
def dpo(
  logps_Bx2: Array, ref_logps_Bx2: Array, beta: float, *, label_smoothing: float = 0.0
) -> Array:
  """DPO: log(1 + e^-z) (App. B); with smoothing s, (1-s) f(z) + s f(-z) (cDPO).

  Without smoothing it has no minimum: it falls for ever, ever more slowly. With it, the
  minimum is at rho = log((1-s)/s) / beta. Raises UserError unless 0 <= s < 1/2.
  """
  if not 0 <= label_smoothing < 0.5:
    raise UserError(
      f"option 'label_smoothing' of loss 'dpo' must be in [0, 0.5): {label_smoothing}"
    )
  z_B = beta * rho(logps_Bx2, ref_logps_Bx2)
  return (1 - label_smoothing) * jax.nn.softplus(-z_B) + (
    label_smoothing * jax.nn.softplus(z_B)
  )


@pairwise()
def slic(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """Hinge max(0, 1 - z) on the reference-normalised margin; 0 from rho = 1/beta (GPO).

  GPO and TRL call this SLiC, RSO "hinge-norm" (eq. 10, with gamma for beta). It has the
  shape of that loss only: see `slic_hf`.
  """
  return jax.nn.relu(1 - beta * rho(logps_Bx2, ref_logps_Bx2))


@pairwise()
def truncated_squared(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """max(0, 1 - z)^2: squared, but flat at 0 from rho = 1/beta on (GPO)."""
  return jax.nn.relu(1 - beta * rho(logps_Bx2, ref_logps_Bx2)) ** 2


@pairwise()
def exponential(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """e^-z (GPO). No minimum.

  The formula is left as it is: below z = -88 it exceeds float32 and is +inf, value and
  gradient, for the step's finite check to report.
  """
  return jnp.exp(-beta * rho(logps_Bx2, ref_logps_Bx2))


@pairwise()
def savage(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """1 / (1 + e^z)^2 (GPO): bounded by 1 and not convex. No minimum.

  Its gradient vanishes at both ends, so very wrong pairs are given up on.
  """
  return jax.nn.sigmoid(-beta * rho(logps_Bx2, ref_logps_Bx2)) ** 2


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
  logps_Bx3 = _responses(logps_Bx3, 3)
  hinge_B = jax.nn.relu(delta - logps_Bx3[:, 0] + logps_Bx3[:, 1])
  return hinge_B - regularization * logps_Bx3[:, 2]


@pairwise(reference=False)
def best_of_2(logps_Bx2: Array, ref_logps_Bx2: Array, beta: float) -> Array:
  """-log pi(y_w|x): not contrastive. Neither y_l, the reference nor beta is read.

  The paper's eq. 3 maximises log pi(y_w|x); it is printed with the sign reversed.
  """
  del ref_logps_Bx2, beta
  return -_responses(logps_Bx2, 2)[:, 0]


def sft(logps_BxN: Array, lengths_BxN: Array) -> SumWeight:
  """Supervised fine-tuning on all N responses: (sum_B, weight_B), both float32.

  The loss is the mean negative log-probability *per token*, sum / weight. Both parts
  stay unreduced, so that the mean is over tokens however they fall into rows,
  microbatches and hosts.
  """
  if logps_BxN.ndim != 2 or logps_BxN.shape != lengths_BxN.shape:
    raise ValueError(
      f"logps {logps_BxN.shape} and lengths {lengths_BxN.shape} must both be [B, N]"
    )
  loss_B = -jnp.sum(logps_BxN.astype(jnp.float32), axis=-1)
  return loss_B, jnp.sum(lengths_BxN, axis=-1).astype(jnp.float32)


def preference(logit_first_B: Array, logit_second_B: Array) -> Array:
  """The preference model's loss, float32[B], trained on both orders (App. A).

    -1/2 log r(x, y_w, y_l) - 1/2 log(1 - r(x, y_l, y_w)),  r = sigmoid(logit)

  `logit_first` reads the preferred response first, `logit_second` reads it second; both
  say how likely the response read *first* is to be the better one. A model with no
  opinion has loss log 2.
  """
  if logit_first_B.ndim != 1 or logit_first_B.shape != logit_second_B.shape:
    raise ValueError(
      f"logits {logit_first_B.shape} and {logit_second_B.shape} must both be [B]"
    )
  # -log sigmoid(a) = softplus(-a); -log(1 - sigmoid(a)) = softplus(a): never log 0.
  return 0.5 * jax.nn.softplus(-logit_first_B.astype(jnp.float32)) + (
    0.5 * jax.nn.softplus(logit_second_B.astype(jnp.float32))
  )


def _responses(logps_BxN: Array, n: int) -> Array:
  """As float32, after checking the shape: broadcasting would hide a mistake."""
  if logps_BxN.ndim != 2 or logps_BxN.shape[1] != n:
    raise ValueError(f"log-probabilities must be [B, {n}], not {logps_BxN.shape}")
  return logps_BxN.astype(jnp.float32)
