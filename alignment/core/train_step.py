"""The one train step: supervised, preference model, online and offline policy alike.

An objective is a hashable function of (params, batch, beta) that returns metrics as
(sum, weight) pairs, 'loss' among them. One with `reads_reference` is given the
reference's parameters, too, unless they are the base of adapters. Gradients are those
of the loss's sum, divided once by its total weight: padding, microbatches and hosts
then weigh exactly as if the batch had been one.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from alignment.core import judges, losses, optim, pointwise, scoring
from alignment.models.protocol import Model, Network, base_of, with_base, without_base
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params, ScoredBatch, SumWeight, UserError

Objective = Callable[..., dict[str, SumWeight]]


class TrainState(struct.PyTreeNode):
  step: Array  # int32
  params: Params  # float32 masters of all that is trained
  opt_state: Any


class Fixed(struct.PyTreeNode):
  """Parameters that a step reads, and neither trains nor donates; None: no such.

  Attributes:
    base: of a model with adapters, whose reference it is.
    reference: for an objective that reads it, of a model without adapters.
  """

  base: Params | None = None
  reference: Params | None = None


class Hyper(struct.PyTreeNode):
  """Numbers a sweep varies: inputs of the compiled step, not constants in it."""

  learning_rate: Array
  warmup_steps: Array
  decay_steps: Array
  beta: Array


def hyper(
  learning_rate: float, warmup_steps: int = 0, decay_steps: int = 0, beta: float = 0.0
) -> Hyper:
  f32 = jnp.float32
  return Hyper(f32(learning_rate), f32(warmup_steps), f32(decay_steps), f32(beta))


@dataclasses.dataclass(frozen=True)
class PolicyObjective:
  """A loss on the policy's summed log-probabilities (losses).

  Of scored responses, metrics compare the best with the worst.

  A loss may want the KL from the reference at every token, whose gradient the
  reference's log-probabilities alone do not give: then the reference itself is read.
  """

  model: Model
  loss: str
  loss_options: tuple[tuple[str, float], ...] = ()

  @property
  def reads_reference(self) -> bool:
    return "kl_BxN" in losses.get(self.loss).needs

  def __call__(
    self,
    params: Params,
    batch: Batch,
    beta: Array,
    reference_params: Params | None = None,
  ) -> dict[str, SumWeight]:
    computed = {}
    if reference_params is None and self.reads_reference:
      reference_params = base_of(params)
    if reference_params is None:
      logps_BxN = scoring.score(self.model, params, batch)
    else:
      logps_BxN, computed["kl_BxN"] = scoring.score_and_kl(
        self.model, params, reference_params, batch
      )
    weights_B, total = batch.weights_B, batch.weights_B.sum()
    needs = needed(losses.get(self.loss), batch, computed)
    bound = losses.bind(self.loss, dict(self.loss_options))
    loss_B = bound(logps_BxN, batch.ref_logps_BxN, beta, **needs)
    ratios_BxN = logps_BxN - batch.ref_logps_BxN
    lengths_BxN = batch.lengths_BxN
    if isinstance(batch, ScoredBatch):
      ratios_BxN = best_and_worst(ratios_BxN, batch.scores_BxN)
    else:
      lengths_BxN = lengths_BxN[:, :2]  # a third is no sample
    rho_B = ratios_BxN[:, 0] - ratios_BxN[:, 1]
    correct_B = (rho_B > 0) + 0.5 * (rho_B == 0)
    lengths_B = lengths_BxN.mean(axis=1)

    def weighted(values_B: Array) -> SumWeight:
      return jnp.sum(values_B * weights_B), total

    metrics = {
      "loss": weighted(loss_B),
      "rho": weighted(rho_B),
      "accuracy": weighted(correct_B),
      "chosen_log_ratio": weighted(ratios_BxN[:, 0]),
      "rejected_log_ratio": weighted(ratios_BxN[:, 1]),
      "response_length": weighted(lengths_B),
    }
    if isinstance(batch, ScoredBatch):
      scores_BxN = batch.scores_BxN
      metrics["score"] = weighted(scores_BxN.mean(axis=1))
      metrics["score_gap"] = weighted(scores_BxN.max(axis=1) - scores_BxN.min(axis=1))
    for name, values_BxN in computed.items():
      metrics[name.removesuffix("_BxN")] = weighted(values_BxN.mean(axis=1))
    return metrics


def reads_reference(objective: Objective) -> bool:
  """Whether it reads the reference's parameters."""
  return getattr(objective, "reads_reference", False)


def needed(
  loss: losses.Loss, batch: Batch, computed: Mapping[str, Array] | None = None
) -> dict[str, Array]:
  """What a loss names beside log-probabilities: fields of the batch, or `computed`."""
  given = vars(batch) | dict(computed or {})
  lacking = sorted(loss.needs - given.keys())
  if lacking:
    raise UserError(
      f"loss {loss.name!r} needs {' and '.join(lacking)}, which batches of this run "
      "do not have: choose another loss"
    )
  return {need: given[need] for need in loss.needs}


def best_and_worst(values_BxN: Array, scores_BxN: Array) -> Array:
  """The values of the responses with the highest and the lowest score, Bx2."""
  chosen_Bx2 = jnp.stack([scores_BxN.argmax(axis=1), scores_BxN.argmin(axis=1)], axis=1)
  return jnp.take_along_axis(values_BxN, chosen_Bx2, axis=1)


@dataclasses.dataclass(frozen=True)
class SupervisedObjective:
  """Cross-entropy on every response of the batch (both of a pair), per token."""

  model: Model

  def __call__(self, params: Params, batch: Batch, beta: Array) -> dict[str, SumWeight]:
    del beta
    logps_BxN = scoring.score(self.model, params, batch)
    loss_B, tokens_B = losses.sft(logps_BxN, batch.lengths_BxN)
    return {
      "loss": (
        jnp.sum(loss_B * batch.weights_B),
        jnp.sum(tokens_B * batch.weights_B),
      )
    }


@dataclasses.dataclass(frozen=True)
class PreferenceObjective:
  """The pairwise preference loss over both orders of a labelled pair (App. A)."""

  preference_model: judges.PreferenceModel

  def __call__(self, params: Params, batch: Batch, beta: Array) -> dict[str, SumWeight]:
    del beta
    forward_B, backward_B = self.preference_model.both_orders(params, batch)
    loss_B = losses.preference(forward_B, backward_B)
    return _judged(loss_B, forward_B - backward_B, batch)


@dataclasses.dataclass(frozen=True)
class RewardObjective:
  """The loss of a reward model on a labelled pair."""

  judge: pointwise.PointwiseJudge

  def __call__(self, params: Params, batch: Batch, beta: Array) -> dict[str, SumWeight]:
    del beta
    margin_B = self.judge.preference(params, batch)
    return _judged(losses.bradley_terry(margin_B), margin_B, batch)


def _judged(loss_B: Array, margin_B: Array, batch: Batch) -> dict[str, SumWeight]:
  """The metrics of a judge, from margins of the response that is preferred."""
  correct_B = (margin_B > 0) + 0.5 * (margin_B == 0)
  weights_B, total = batch.weights_B, batch.weights_B.sum()
  return {
    "loss": (jnp.sum(loss_B * weights_B), total),
    "accuracy": (jnp.sum(correct_B * weights_B), total),
  }


def init_state(params: Params, optimizer: optim.Optimizer) -> TrainState:
  """A state at step 0 for given parameters, those that are trained."""
  return TrainState(jnp.int32(0), params, optimizer.transform().init(params))


def state_shardings(
  abstract: TrainState, mesh: Mesh, rules: sharding.Rules
) -> TrainState:
  """Layout of a whole state: moments lie where their parameters lie."""
  return TrainState(
    sharding.replicated(mesh),
    sharding.shardings(abstract.params, mesh, rules),
    sharding.state_shardings(abstract.opt_state, abstract.params, mesh, rules),
  )


@functools.cache
def abstract_state(
  model: Network, optimizer: optim.Optimizer, mesh: Mesh, rules: sharding.Rules
) -> TrainState:
  """Shapes, dtypes and layout of a model's training state, of which none is made."""
  shapes = jax.eval_shape(
    lambda key: init_state(without_base(model.init(key)), optimizer), jax.random.key(0)
  )
  return sharding.with_layout(shapes, state_shardings(shapes, mesh, rules))


@functools.cache
def compiled_init(
  model: Network, optimizer: optim.Optimizer, mesh: Mesh, rules: sharding.Rules
) -> Callable[[Params], TrainState]:
  """The jitted `init_state`; donates the parameters, which are no second set so."""
  abstract = abstract_state(model, optimizer, mesh, rules)
  return jax.jit(
    lambda params: init_state(params, optimizer),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    donate_argnums=0,
  )


@functools.cache
def _has_base(model: Network) -> bool:
  return base_of(jax.eval_shape(model.init, jax.random.key(0))) is not None


@functools.cache
def compiled(
  objective: Objective,
  optimizer: optim.Optimizer,
  microbatches: int,
  mesh: Mesh,
  rules: sharding.Rules,
  model: Network,
  skip_non_finite: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, SumWeight]]]:
  """The jitted step with explicit shardings, the state donated.

  Of (state, batch, hyper) and, where there is something that it reads but does not
  train, `Fixed`, which stays as it is laid out.

  Cached on what determines the program: every run of a sweep, online or offline, gets
  the same function and so the same compilation.
  """
  abstract = abstract_state(model, optimizer, mesh, rules)
  layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  as_given = [None] if _has_base(model) or reads_reference(objective) else []

  def step(state, batch, hyper, *fixed):
    with sharding.on(mesh):
      return train_step(
        state,
        batch,
        hyper,
        *fixed,
        objective=objective,
        optimizer=optimizer,
        microbatches=microbatches,
        skip_non_finite=skip_non_finite,
      )

  return jax.jit(
    step,
    in_shardings=(layout, rows, everywhere, *as_given),
    out_shardings=(layout, everywhere),
    donate_argnums=0,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  hyper: Hyper,
  fixed: Fixed = Fixed(),  # noqa: B008
  *,
  objective: Objective,
  optimizer: optim.Optimizer,
  microbatches: int = 1,
  skip_non_finite: bool = False,
) -> tuple[TrainState, dict[str, SumWeight]]:
  """One update: state in, state and unreduced metrics out.

  With `skip_non_finite` a step whose loss or gradient is not finite only counts itself
  (the metric 'skipped'): parameters, moments and other metrics stay as they were.
  """

  def minimised(params: Params, batch: Batch, beta: Array) -> dict[str, SumWeight]:
    return objective(with_base(params, fixed.base), batch, beta, **read)

  read = {} if fixed.reference is None else {"reference_params": fixed.reference}
  grads, metrics = gradients(minimised, state.params, batch, hyper.beta, microbatches)
  metrics["grad_norm"] = (optax.tree.norm(grads), jnp.float32(1.0))
  updates, opt_state = optimizer.transform().update(
    grads, state.opt_state, state.params
  )
  rate = optim.learning_rate(
    state.step.astype(jnp.float32),
    hyper.learning_rate,
    hyper.warmup_steps,
    hyper.decay_steps,
  )
  params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
  new = TrainState(state.step + 1, params, opt_state)
  if not skip_non_finite:
    return new, metrics
  finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(metrics["grad_norm"][0])
  kept = jax.tree.map(
    lambda after, before: jnp.where(finite, after, before), new, state
  )
  metrics = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), metrics)
  metrics["skipped"] = (jnp.where(finite, 0.0, 1.0), jnp.float32(1.0))
  return kept.replace(step=new.step), metrics


def gradients(
  objective: Objective, params: Params, batch: Batch, beta: Array, microbatches: int
) -> tuple[Params, dict[str, SumWeight]]:
  """Gradients of sum(loss)/sum(weight) over the batch, in k equal microbatches."""

  def loss_sum(params, part):
    metrics = objective(params, part, beta)
    return metrics["loss"][0], metrics

  def part_gradients(part):
    return jax.grad(loss_sum, has_aux=True)(params, part)

  if microbatches == 1:
    grads, metrics = part_gradients(batch)
  else:
    # Row i goes to microbatch i % k: every shard of a row-sharded batch keeps its rows.
    parts = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), batch
    )
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part_gradients, first)
    )

    def add(total, part):
      return jax.tree.map(jnp.add, total, part_gradients(part)), None

    (grads, metrics), _ = jax.lax.scan(add, zeros, parts)
  weight = jnp.maximum(metrics["loss"][1], 1e-8)
  return jax.tree.map(lambda g: g / weight, grads), metrics
