"""Artefacts that are policies: the same loss and step wherever batches come from."""

import abc
from collections.abc import Callable, Iterator, Mapping
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from alignment.core import losses, rollout, train_step
from alignment.data import sources
from alignment.data import stream as streams
from alignment.runtime import sharding
from alignment.runtime.files import read_json, write_json
from alignment.study.artefacts import Read
from alignment.study.programs import Program, Work
from alignment.study.recipes import PolicyRecipe
from alignment.study.stages.data import ScoredPairs
from alignment.study.stages.judging import Judge
from alignment.study.stages.models import (
  Model,
  TrainedModel,
  offline_source,
)
from alignment.study.stages.trained_judges import TrainedJudge
from alignment.types import Array, Batch, Params, UserError

Record = Callable[[int, rollout.Rollout], None]
_SHOWN = "loss", "rho", "accuracy", "response_length"  # metrics on progress lines
_SHOWN_OF_GROUPS = "score", "score_gap", "kl", "response_length"  # a loss means nothing


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPolicy(TrainedModel):
  """A policy. `OfflinePolicy`, `ReplayPolicy` and `OnlinePolicy` differ in `source`."""

  kind: ClassVar[str] = "policy"
  recipe: PolicyRecipe
  sft: Model  # where it starts, trained here or not, and its reference

  @property
  def objective(self) -> train_step.PolicyObjective:
    return train_step.PolicyObjective(
      self.model(), self.recipe.loss, self.recipe.loss_options
    )

  @property
  def beta(self) -> float:
    return self.recipe.beta

  @property
  def responses(self) -> int:
    """How many responses per prompt the loss reads."""
    r = self.recipe
    return r.samples if r.grouped else losses.get(r.loss).responses

  def settings(self) -> dict[str, Any]:
    return self.setting.judging | self.trained()

  def _seed(self) -> int:
    return self.setting.seed("policy", self.recipe.seed)

  def make(self, directory: Path, read: Read) -> None:
    recorder, fixed = self.recorder(directory), self.fixed(read)
    self.train(
      directory,
      params=lambda: self.setting.parameters.load(read(self.sft), self.model()),
      source=self.source(read, recorder.add if recorder else None, fixed),
      keep=sorted({*self.recipe.evaluated_steps(), self.recipe.steps}),
      show=_SHOWN_OF_GROUPS if self.recipe.grouped else _SHOWN,
      step=self._step(fixed),
      before_save=recorder.commit if recorder else None,
    )
    write_json(directory / "model.json", {"step": self.recipe.steps})

  @abc.abstractmethod
  def source(
    self, read: Read, record: Record | None, fixed: Mapping[str, Params]
  ) -> sources.Source:
    """Where its batches come from; `record` is shown every rollout."""

  def fixed(self, read: Read) -> dict[str, Params]:
    """Parameters that are only read while it trains, by name."""
    del read
    return {}

  def _step(self, fixed: Mapping[str, Params]) -> Callable[..., Any]:
    """The compiled step, with the reference for a loss that reads it."""
    step = self.step_function()
    if not self.objective.reads_reference:
      return step
    return lambda state, batch, hyper: step(state, batch, hyper, fixed["reference"])

  def recorder(self, directory: Path) -> streams.Recorder | None:
    """Keeps every rollout, where there are some and others learn from them."""
    del directory
    return None

  def programs(self) -> Iterator[Program]:
    S, T = self.setting.shapes.prompt_length, self.setting.shapes.response_length
    passes = ((self.model(), self.microbatch, S, self.responses, T),)
    held, reference = self.held(), []
    if self.objective.reads_reference:
      reference.append(held.pop("reference"))
    label = f"policy step, {self.recipe.loss}"
    yield self.step_program(label, passes, held, self._abstract_batch(), reference)

  def _abstract_batch(self) -> Batch:
    shapes, rows = self.setting.shapes, self.recipe.batch_size
    if self.recipe.grouped:
      return shapes.scored_batch(rows, self.responses)
    return shapes.batch(rows, self.responses)

  def held(self) -> dict[str, Params]:
    """Parameters that are alive while it trains, besides its state."""
    return {}


@dataclasses.dataclass(frozen=True, eq=False)
class OfflinePolicy(TrainedPolicy):
  """Learns from fixed pairs: D_golden, or those of `config.datasets`."""

  pairs: ScoredPairs

  def source(
    self, read: Read, record: Record | None, fixed: Mapping[str, Params]
  ) -> sources.OfflineSource:
    del record, fixed
    directories, seed = [read(self.pairs)], self._seed()
    return offline_source(self.setting, self.recipe, directories, seed, self.responses)


@dataclasses.dataclass(frozen=True, eq=False)
class ReplayPolicy(TrainedPolicy):
  """Learns from what an online run learned from, in its order or shuffled."""

  stream: TrainedPolicy

  def source(
    self, read: Read, record: Record | None, fixed: Mapping[str, Params]
  ) -> sources.StreamSource:
    del record, fixed
    directory = read(self.stream)
    steps = read_json(directory / "model.json")["step"]
    recorded = streams.Stream.load(directory / "stream", steps)
    if recorded.num_responses < self.responses:
      raise UserError(
        f"loss '{self.recipe.loss}' needs {self.responses} responses per prompt, but "
        f"the replayed stream has {recorded.num_responses}: record it with this loss"
      )
    return sources.StreamSource(
      recorded,
      self.recipe.batch_size,
      self.recipe.replay_window,
      self.setting.mesh,
      self._seed(),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class OnlinePolicy(TrainedPolicy):
  """Samples responses to the prompts of `pairs`, which a judge labels.

  Semi-online, an older policy samples (`refresh_every`); hybrid, a part of each batch
  keeps its pairs (`on_policy_fraction`).
  """

  pairs: ScoredPairs
  judge: Judge

  def source(
    self, read: Read, record: Record | None, fixed: Mapping[str, Params]
  ) -> sources.OnlineSource:
    directories, seed = [read(self.pairs)], self._seed()
    return sources.OnlineSource(
      offline_source(self.setting, self.recipe, directories, seed, self._kept),
      self._sampler(fixed),
      jax.random.key(seed),
      self.recipe.on_policy_fraction,
      record,
    )

  def fixed(self, read: Read) -> dict[str, Params]:
    parameters = self.setting.parameters
    return {
      "reference": parameters.load_fixed(read(self.sft), self.model()),
      "judge": self.judge.params(read(self.judge)),
    }

  def _sampler(
    self, fixed: Mapping[str, Params]
  ) -> Callable[[Params, Batch, Array], rollout.Rollout]:
    """Rolls out with reference and judge; from SFT, if who samples never changes."""
    roll = rollout.compiled(self._roller(), self.setting.mesh)

    def sample(params: Params, prompts: Batch, key: Array) -> rollout.Rollout:
      reference = fixed["reference"]
      behaviour = params if self.recipe.refresh_every else reference
      return roll(behaviour, reference, fixed["judge"], prompts, key)

    return sample

  def _roller(self) -> rollout.Roller:
    sampler = self.setting.sampler(
      self.recipe, self.recipe.temperature, self.recipe.top_p
    )
    return rollout.Roller(
      sampler,
      self.model(),
      self.judge.judge(),
      self.recipe.samples,
      self.recipe.select,
    )

  @property
  def refresh_every(self) -> int:
    return self.recipe.refresh_every or 1  # 0: never, see `_sampler`

  def recorder(self, directory: Path) -> streams.Recorder | None:
    if not self.recipe.record:
      return None
    described = {
      "config": self.key,
      "vocabulary": self.setting.vocabulary.fingerprint,
      "select": self.recipe.select,
    }
    return streams.Recorder(directory / "stream", described)

  # --- the same on shapes ---

  def held(self) -> dict[str, Params]:
    held = {
      "reference": self.sft.abstract_fixed(),
      "judge": self.judge.abstract_params(),
    }
    if self.recipe.refresh_every > 1:  # an earlier policy samples
      held["behaviour"] = self.abstract_state().params
    return held

  def programs(self) -> Iterator[Program]:
    if self.judge.judge().on_host:
      yield from self._half_programs()
    else:
      assert isinstance(self.judge, TrainedJudge)
      yield self._rollout_program(self.judge)
    yield from super().programs()

  def _rollout_program(self, labeller: TrainedJudge) -> Program:
    rows, shapes, N = self.recipe.batch_size, self.setting.shapes, self.recipe.samples
    S, T = shapes.prompt_length, shapes.response_length
    behaviour, held = self._behaviour()
    reference, judge = self.sft.abstract_fixed(), labeller.abstract_params()
    passes = (
      (self.model(), rows, S, N, T),
      *labeller.own_judge().passes(rows, S, N, T),
      (self.model(), rows, S, self.responses, T),
    )
    return Program(
      f"rollout{_of(N)}, {self.recipe.size} judged by {labeller.recipe.size}",
      lambda: rollout.compiled(self._roller(), self.setting.mesh),
      (behaviour, reference, judge, self._prompts(), shapes.key),
      held,
      Work("rollout", passes),
      self.setting.mesh,
      (self.name,),
      self._roller(),
    )

  def _half_programs(self) -> Iterator[Program]:
    """What is compiled where the judge works on the host."""
    rows, shapes, N = self.recipe.batch_size, self.setting.shapes, self.recipe.samples
    S, T = shapes.prompt_length, shapes.response_length
    behaviour, held = self._behaviour()
    reference, judge = self.sft.abstract_fixed(), self.judge.abstract_params()
    mesh, roller, prompts = self.setting.mesh, self._roller(), self._prompts()
    generate, finish = rollout.halves(roller, mesh)
    with sharding.on(mesh):
      samples = jax.eval_shape(generate, behaviour, prompts, shapes.key)
    layout = sharding.batch_sharding(mesh)
    two = self.recipe.refresh_every > 0  # or it is the reference that samples
    beside = held | {"reference": reference} | ({"behaviour": behaviour} if two else {})
    held["judge"] = judge
    samples = sharding.with_layout(samples, jax.tree.map(lambda _: layout, samples))
    yield Program(
      f"samples of a rollout{_of(N)}, {self.recipe.size}",
      lambda: generate,
      (behaviour, prompts, shapes.key),
      held | ({"reference": reference} if two else {}),
      Work("rollout", ((self.model(), rows, S, N, T),)),
      mesh,
      (self.name,),
      roller,
    )
    yield from self.judge.scores_programs(rows, N, (self.name,), beside)
    yield Program(
      f"selection of a rollout{_of(N)}, {self.recipe.size}",
      lambda: finish,
      (reference, prompts, shapes.key, samples, shapes.rows((rows, N), jnp.float32)),
      held | ({"behaviour": behaviour} if two else {}),
      Work("forward", ((self.model(), rows, S, self.responses, T),)),
      mesh,
      (self.name,),
      roller,
    )

  def _prompts(self) -> Batch:
    """What it samples to, with the responses that the data has."""
    return self.setting.shapes.batch(self.recipe.batch_size, self._kept)

  @property
  def _kept(self) -> int:
    """Responses of the data that come with its prompts: 3 if a loss reads a target."""
    return 2 if self.recipe.grouped else self.responses

  def _behaviour(self) -> tuple[Params, dict[str, Params]]:
    """The parameters that sample, and what of the training is held meanwhile."""
    state = self.abstract_state()
    held = {"moments": state.opt_state}
    if self.recipe.refresh_every == 1:
      return state.params, held
    held["parameters"] = state.params
    if self.recipe.refresh_every == 0:  # SFT samples
      return self.sft.abstract_fixed(), held
    return state.params, held


def _of(samples: int) -> str:
  """In a program's name: more samples than two."""
  return "" if samples == 2 else f" of {samples}"
