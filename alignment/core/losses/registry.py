"""Which losses there are, what each needs, and which options it has."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp

from alignment.core.digests import in_one_file, source_digest
from alignment.types import Array, UserError

LossFn = Callable[..., Array]
NEEDS = ("lengths_BxN", "scores_BxN", "kl_BxN")
GROUP = "group"


@dataclasses.dataclass(frozen=True)
class Loss:
  """A registered loss and what it needs from the data."""

  name: str
  function: LossFn
  responses: Any  # 2: preferred and other; 3: and the target; or GROUP
  reference: bool  # whether the reference's log-probabilities are read
  needs: frozenset[str]  # which of NEEDS it is given
  on_policy: bool  # whether it is right only for samples of the policy as it is now
  options: tuple[str, ...]  # the function's keyword-only arguments


LOSSES: dict[str, Loss] = {}


def pairwise(
  *, responses: int = 2, reference: bool = True
) -> Callable[[LossFn], LossFn]:
  """Registers a function under its own name, and returns it unchanged."""
  if responses not in (2, 3):
    raise ValueError(f"a pairwise loss reads 2 or 3 responses, not {responses}")
  return functools.partial(_register, responses, reference, False)


def group(
  *, reference: bool = False, on_policy: bool = True
) -> Callable[[LossFn], LossFn]:
  """As `pairwise`, for a loss of all N >= 2 responses of a prompt, in any order."""
  return functools.partial(_register, GROUP, reference, on_policy)


def _register(
  responses: int | str, reference: bool, on_policy: bool, function: LossFn
) -> LossFn:
  name = function.__name__
  if name in LOSSES and not in_one_file(LOSSES[name].function, function):
    raise ValueError(f"two losses are called {name!r}")  # one file may be run again
  parameters = inspect.signature(function).parameters.values()
  options = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
  needs = [p.name for p in parameters if p.name not in options][3:]
  for need in needs:
    if need not in NEEDS:
      raise ValueError(
        f"loss {name!r} names {need!r}, but can have only {', '.join(NEEDS)} after beta"
      )
  LOSSES[name] = Loss(
    name, function, responses, reference, frozenset(needs), on_policy, options
  )
  return function


def own_source(name: str) -> str:
  """What tells versions of a loss of one's own apart; "" for a loss of this package."""
  function = get(name).function
  own = not (function.__module__ or "").startswith(f"{__package__}.")
  return source_digest(function) if own else ""


def get(name: str) -> Loss:
  """The loss of that name; UserError with the names there are if it has none."""
  if name not in LOSSES:
    raise UserError(f"unknown loss {name!r}: choose one of {', '.join(sorted(LOSSES))}")
  return LOSSES[name]


def bind(name: str, options: Mapping[str, Any] | None = None) -> LossFn:
  """`(logps_BxN, ref_logps_BxN, beta, **needs) -> loss_B` with the options filled in.

  Raises UserError, naming it, for an unknown loss, an option that this loss does not
  have (beta is not an option: it would be applied twice) and a value that is not a
  finite number of at least 0, or not True or False where that is the choice.
  """
  loss = get(name)
  options = dict(options or {})
  for key, value in options.items():
    if key not in loss.options:
      choice = ", ".join(loss.options) or "none"
      raise UserError(f"loss {name!r} has no option {key!r}: its options are {choice}")
    default = inspect.signature(loss.function).parameters[key].default
    if isinstance(default, bool) and not isinstance(value, bool):
      raise UserError(
        f"option {key!r} of loss {name!r} must be True or False, not {value!r}"
      )
    if not isinstance(default, bool) and not _is_amount(value):
      raise UserError(
        f"option {key!r} of loss {name!r} must be a number of at least 0, not {value!r}"
      )
  return functools.partial(loss.function, **options)


def check(name: str, options: Mapping[str, Any] | None = None) -> Loss:
  """The loss, if `bind` accepts the options and the loss itself their values.

  Losses refuse what is out of range when they are called: here on shapes, in
  milliseconds, where a run would be refused only after its models were loaded.
  """
  loss, bound = get(name), bind(name, options)
  n = 2 if loss.responses == GROUP else loss.responses
  array = jax.ShapeDtypeStruct((1, n), jnp.float32)
  jax.eval_shape(bound, array, array, 1.0, **dict.fromkeys(loss.needs, array))
  return loss


def _is_amount(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value) and value >= 0
