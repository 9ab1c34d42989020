"""Artefacts that are policies: the same loss and step wherever batches come from."""

import abc
from collections.abc import Callable, Iterator
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax

from alignment.core import losses, rollout, train_step
from alignment.data import sources
from alignment.data import stream as streams
from alignment.runtime.files import read_json, write_json
from alignment.study.artefacts import Read
from alignment.study.programs import Program, Work
from alignment.study.recipes import PolicyRecipe
from alignment.study.stages.data import ScoredPairs
from alignment.study.stages.models import (
  Model,
  TrainedJudge,
  TrainedModel,
  offline_source,
)
from alignment.types import Array, Batch, Params, UserError

Record = Callable[[int, rollout.Rollout], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPolicy(TrainedModel):
  """A policy. `OfflinePolicy`, `ReplayPolicy` and `OnlinePolicy` differ in `source`."""

  kind: ClassVar[str] = "policy"
  recipe: PolicyRecipe
  sft: Model  # where it starts, trained here or not, and its reference

  @property
  def objective(self) -> train_step.Objective:
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
    return losses.get(self.recipe.loss).responses

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
      show=("loss", "rho", "accuracy", "response_length"),
      refresh_every=self.refresh_every,
      before_save=recorder.commit if recorder else None,
    )
    write_json(directory / "model.json", {"step": self.recipe.steps})

  @abc.abstractmethod
  def source(self, read: Read, record: Record | None) -> sources.Source:
    """Where its batches come from; `record` is shown every rollout."""

  @property
  def refresh_every(self) -> int:
    """Steps between renewals of the parameters that the source is handed."""
    return 1

  def recorder(self, directory: Path) -> streams.Recorder | None:
    """Keeps every rollout, where there are some and others learn from them."""
    del directory
    return None

  def programs(self) -> Iterator[Program]:
    S, T = self.setting.shapes.prompt_length, self.setting.shapes.response_length
    passes = ((self.model(), self.microbatch, S, self.responses, T),)
    label = f"policy step, {self.recipe.loss}"
    yield self.step_program(label, passes, self.held(), self.responses)

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
  judge: TrainedJudge

  def source(self, read: Read, record: Record | None) -> sources.OnlineSource:
    directories, seed = [read(self.pairs)], self._seed()
    return sources.OnlineSource(
      offline_source(self.setting, self.recipe, directories, seed, self.responses),
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
    sampler = self.setting.sampler(start, recipe.temperature, recipe.top_p)
    on_reference = self.base is not None and recipe.refresh_every > 0
    return rollout.Roller(sampler, sft.model(), self.judge.judge(), on_reference)

  @property
  def refresh_every(self) -> int:
    return self.recipe.refresh_every or 1  # 0: never, see `_sampler`

  def recorder(self, directory: Path) -> streams.Recorder | None:
    if not self.recipe.record:
      return None
    described = {"config": self.key, "vocabulary": self.setting.vocabulary.fingerprint}
    return streams.Recorder(directory / "stream", described)

  # --- the same on shapes ---

  def held(self) -> dict[str, Params]:
    held = {"judge": self.judge.abstract_fixed()}
    if self.base is None:  # else the reference is an argument of the step
      held["reference"] = self.sft.abstract_fixed()
    if self.recipe.refresh_every > 1:  # an earlier policy samples
      held["behaviour"] = self.abstract_state().params
    return held

  def programs(self) -> Iterator[Program]:
    yield self._rollout_program()
    yield from super().programs()

  def _rollout_program(self) -> Program:
    shapes, state, judge = (
      self.setting.shapes,
      self.abstract_state(),
      self.judge.judge(),
    )
    reference, judge_params = self.sft.abstract_fixed(), self.judge.abstract_fixed()
    behaviour, held = state.params, {"moments": state.opt_state}
    if self.recipe.refresh_every == 0:  # SFT samples
      behaviour, held["parameters"] = reference, state.params
    elif self.recipe.refresh_every > 1:
      held["parameters"] = state.params
    rows, model = self.recipe.batch_size, self.model()
    S, T = shapes.prompt_length, shapes.response_length
    judging = (judge.model, rows, judge.context_length, 1, 1)
    passes = (
      (model, rows, S, rollout.SAMPLES, T),
      judging,
      judging,
      (model, rows, S, self.responses, T),
    )
    return Program(
      f"rollout, {self.recipe.size} judged by {self.judge.recipe.size}",
      lambda: rollout.compiled(self._roller(), self.setting.mesh),
      (
        behaviour,
        reference,
        judge_params,
        shapes.batch(rows, self.responses),
        shapes.key,
      ),
      held,
      Work("rollout", passes),
      self.setting.mesh,
      (self.name,),
      self._roller(),
    )
