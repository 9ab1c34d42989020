"""Artefacts that are policies: the same loss and step wherever batches come from."""

import abc
from collections.abc import Callable, Iterator
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
from alignment.study.programs import Program, Work, device_bytes
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
  def base(self) -> Model | None:
    return self.sft if self.recipe.lora.rank else None

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
    recorder = self.recorder(directory)
    self.train(
      directory,
      read,
      params=lambda: self.sft.load(read),
      seed=self._seed(),
      source=self.source(read, recorder.add if recorder else None),
      keep=sorted({*self.recipe.evaluated_steps(), self.recipe.steps}),
      show=_SHOWN_OF_GROUPS if self.recipe.grouped else _SHOWN,
      before_save=recorder.commit if recorder else None,
    )
    write_json(directory / "model.json", {"step": self.recipe.steps})

  @abc.abstractmethod
  def source(self, read: Read, record: Record | None) -> sources.Source:
    """Where its batches come from; `record` is shown every rollout."""

  def read_by_step(self, load: Callable[[Model], Params]) -> list[train_step.Fixed]:
    if self.base is None and self.objective.reads_reference:
      return [train_step.Fixed(reference=load(self.sft))]
    return super().read_by_step(load)

  def recorder(self, directory: Path) -> streams.Recorder | None:
    """Keeps every rollout, where there are some and others learn from them."""
    del directory
    return None

  def programs(self) -> Iterator[Program]:
    S, T = self.setting.shapes.prompt_length, self.setting.shapes.response_length
    passes = ((self.model(), self.microbatch, S, self.responses, T),)
    label = f"policy step, {self.recipe.loss}"
    yield self.step_program(label, passes, self.held(), self._abstract_batch())

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

  def source(self, read: Read, record: Record | None) -> sources.OfflineSource:
    del record
    directories, seed = [read(self.pairs)], self._seed()
    return offline_source(self.setting, self.recipe, directories, seed, self.responses)


@dataclasses.dataclass(frozen=True, eq=False)
class ReplayPolicy(TrainedPolicy):
  """Learns from what an online run learned from, in its order or shuffled."""

  stream: TrainedPolicy

  def source(self, read: Read, record: Record | None) -> sources.StreamSource:
    del record
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

  def source(self, read: Read, record: Record | None) -> sources.OnlineSource:
    directories, seed = [read(self.pairs)], self._seed()
    return sources.OnlineSource(
      offline_source(self.setting, self.recipe, directories, seed, self._kept),
      self._sampler(read),
      jax.random.key(seed),
      self.recipe.on_policy_fraction,
      record,
    )

  def _sampler(self, read: Read) -> Callable[[Params, Batch, Array], rollout.Rollout]:
    """Rolls out with reference and judge; from SFT, if who samples never changes."""
    reference_params = self.sft.load_fixed(read)
    judge_params = self.judge.load_fixed(read)
    roll = rollout.compiled(self._roller(), self.setting.mesh)

    def sample(params: Params, prompts: Batch, key: Array) -> rollout.Rollout:
      behaviour = params if self.recipe.refresh_every else reference_params
      return roll(behaviour, reference_params, judge_params, prompts, key)

    return sample

  def _roller(self) -> rollout.Roller:
    recipe, sft = self.recipe, self.sft
    start = recipe if recipe.refresh_every else sft.start
    return rollout.Roller(
      self.setting.sampler(start, recipe.temperature, recipe.top_p),
      sft.model(),
      self.judge.judge(),
      recipe.samples,
      recipe.select,
      on_reference=self.base is not None and recipe.refresh_every > 0,
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
      "judge": self.judge.abstract_fixed(),
    }
    if self.read_by_step(lambda model: model.abstract_fixed()):
      del held["reference"]  # it is an argument of the step
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
    reference, judge = self.sft.abstract_fixed(), labeller.abstract_fixed()
    roller = self._roller()
    sampler_params = roller.behaviour(behaviour, reference)
    copied = device_bytes(roller.sampler.abstract_copy(sampler_params))
    passes = (
      (self.model(), rows, S, N, T),
      *labeller.own_judge().passes(rows, S, N, T),
      (self.model(), rows, S, self.responses, T),
    )
    return Program(
      f"rollout{_of(N)}, {self.recipe.size} judged by {labeller.recipe.size}",
      lambda: rollout.compiled(roller, self.setting.mesh),
      (behaviour, reference, judge, self._prompts(), shapes.key),
      held,
      Work("rollout", passes, copy_bytes=copied),
      self.setting.mesh,
      (self.name,),
      roller,
    )

  def _half_programs(self) -> Iterator[Program]:
    """What is compiled where the judge works on the host."""
    rows, shapes, N = self.recipe.batch_size, self.setting.shapes, self.recipe.samples
    S, T = shapes.prompt_length, shapes.response_length
    behaviour, held = self._behaviour()
    reference, judge = self.sft.abstract_fixed(), self.judge.abstract_fixed()
    mesh, roller, prompts = self.setting.mesh, self._roller(), self._prompts()
    generate, finish = rollout.halves(roller, mesh)
    with sharding.on(mesh):
      sampler_params = roller.behaviour(behaviour, reference)
      samples = jax.eval_shape(generate, sampler_params, prompts, shapes.key)
    copied = device_bytes(roller.sampler.abstract_copy(sampler_params))
    layout = sharding.batch_sharding(mesh)
    two = self.recipe.refresh_every > 0  # or it is the reference that samples
    beside = held | {"reference": reference} | ({"behaviour": behaviour} if two else {})
    held["judge"] = judge
    samples = sharding.with_layout(samples, jax.tree.map(lambda _: layout, samples))
    yield Program(
      f"samples of a rollout{_of(N)}, {self.recipe.size}",
      lambda: generate,
      (sampler_params, prompts, shapes.key),
      held | ({"reference": reference} if two and not roller.on_reference else {}),
      Work("rollout", ((self.model(), rows, S, N, T),), copy_bytes=copied),
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
