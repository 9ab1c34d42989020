"""Judges that are models: trained on labelled pairs, or imported."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alignment.core import audits, evaluation, host_judges, judges, train_step
from alignment.core.judges import PreferenceModel
from alignment.core.pointwise import PointwiseJudge
from alignment.data import pairs
from alignment.data.translation import Translation
from alignment.models.reward import RewardModel
from alignment.runtime.activity import progress
from alignment.runtime.files import read_json, write_json
from alignment.study.artefacts import Artefact, Read
from alignment.study.models import TrainableJudge
from alignment.study.programs import Program, Work
from alignment.study.recipes import PreferenceRecipe
from alignment.study.stages.judging import (
  REPORT,
  Judge,
  accuracies,
  check_judge,
  margins_of,
)
from alignment.study.stages.models import (
  Model,
  TrainedModel,
  offline_source,
  save,
)
from alignment.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedJudge(TrainedModel, Judge):
  """A judge that is a model, kept where its accuracy on validation pairs is best.

  Half of the validation prompts choose the step, the other half report the accuracy. A
  reward model that judges as it is imported has no step to choose: all of them report.
  Where it has a vocabulary of its own, so has its `setting`, and so have its `data`.
  """

  kind: ClassVar[str] = "preference_model"
  recipe: PreferenceRecipe
  data: Artefact
  sft: Model | None  # where it starts, if that is the study's own or a base
  translation: Translation | None = None  # to its own vocabulary, if it has one

  def judge(self) -> judges.Judge:
    own = self.own_judge()
    if self.translation is None:
      return own
    return host_judges.TranslatedJudge(own, self.translation, self.setting.mesh)

  def own_judge(self) -> TrainableJudge:
    """What reads batches in its own vocabulary."""
    return self.setting.judge(self.recipe)

  def model(self) -> Any:
    """A language model, or a reward model, which is none."""
    return self.own_judge().model

  @property
  def base(self) -> Model | None:
    return self.sft if self.recipe.lora.rank else None

  def read_of_base(self, params: Params) -> Params:
    model = self.model()
    return model.without_head(params) if isinstance(model, RewardModel) else params

  def check_usable(self, directory: Path) -> None:
    check_judge(self.setting.world, read_json(directory / REPORT))

  @property
  def objective(self) -> train_step.Objective:
    judge = self.own_judge()
    if isinstance(judge, PointwiseJudge):
      return train_step.RewardObjective(judge)
    return train_step.PreferenceObjective(judge)

  def settings(self) -> dict[str, Any]:
    pairwise = self.recipe.kind == "pairwise"
    what_it_reads = self.setting.judging if pairwise else self.setting.numerics
    return what_it_reads | self.trained() | {"name": self.name}

  def make(self, directory: Path, read: Read) -> None:
    setting, recipe = self.setting, self.recipe
    seed, parts = setting.seed(self.name), recipe.evaluations
    keep = sorted({recipe.steps * (i + 1) // parts for i in range(parts)})
    if recipe.imported:
      save(directory, self._initial(read, seed))
    else:
      self.train(
        directory,
        read,
        params=lambda: self._initial(read, seed),
        seed=seed,
        source=offline_source(setting, recipe, [read(self.data) / "train"], seed),
        keep=keep,
        show=("loss", "accuracy"),
      )
    with_own = lambda needed: directory if needed is self else read(needed)  # noqa: E731
    report = self._report(with_own, keep)
    if self.translation is not None:
      report |= read_json(read(self.data) / "translation.json")["validation"]
    write_json(directory / REPORT, report)
    of_truth = report.get("truth_accuracy")
    progress(
      f"{self.name}: best at step {report['step']}; accuracy "
      f"{report['validation_accuracy']:.3f} on held-out pairs, "
      f"{report['train_accuracy']:.3f} on training pairs"
      + ("" if of_truth is None else f", {of_truth:.3f} on the truth")
    )

  def _initial(self, read: Read, seed: int) -> Params:
    sft = self.sft.load(read) if self.sft else None
    return self.setting.parameters.initial_judge(self.recipe, sft, seed)

  def _report(self, read: Read, steps: Sequence[int]) -> dict[str, Any]:
    """The step that judges best, and how well it judges."""
    setting, judge, data = self.setting, self.own_judge(), read(self.data)
    train_set = pairs.PairDataset.load(data / "train")
    validation = pairs.PairDataset.load(data / "validation")
    prompts = validation.prompt_numbers()
    choosing = prompts < len(np.unique(prompts)) // 2
    if self.recipe.imported:
      choosing[:] = False

    def accuracy(step: int) -> float:  # one set of parameters at a time
      params = self.load_fixed(read, step)
      rows = np.flatnonzero(choosing)
      return evaluation.outcome(
        margins_of(setting, judge, params, validation, rows)
      ).mean()

    # Of equals, the earliest.
    step = 0 if self.recipe.imported else max(steps, key=accuracy)
    params = self.load_fixed(read, step)
    margins = functools.partial(margins_of, setting, judge, params)
    reporting = np.flatnonzero(~choosing)
    report = accuracies(setting, margins, train_set, validation, reporting)
    if isinstance(judge, PreferenceModel):
      orders = setting.map_pairs(
        lambda batch: evaluation.both_orders(judge, params, batch),
        validation,
        reporting,
      )
      report["orders_agree"] = audits.orders_agree(*orders)
    return {"step": step, **report}

  def programs(self) -> Iterator[Program]:
    judge, shapes = self.own_judge(), self.setting.shapes
    S, T = shapes.prompt_length, shapes.response_length
    if not self.recipe.imported:
      passes = judge.passes(self.microbatch, S, 2, T)
      yield self.step_program(f"{self.name} step", passes, {})
    yield from self.margins_programs((self.name,), {})
    if isinstance(judge, PreferenceModel):
      yield self._judging_program("both orders", evaluation.both_orders, (self.name,))

  def margins_programs(
    self, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Iterator[Program]:
    yield self._judging_program(
      "margins", host_judges.preference_on_device, stages, held
    )

  def _judging_program(
    self,
    label: str,
    function: Any,
    stages: tuple[str, ...],
    held: Mapping[str, Params] | None = None,
  ) -> Program:
    """A jitted function of (judge, parameters, a batch of evaluated pairs)."""
    setting, judge, shapes = self.setting, self.own_judge(), self.setting.shapes
    rows = setting.config.evaluation.batch_size
    passes = judge.passes(rows, shapes.prompt_length, 2, shapes.response_length)
    return Program(
      f"{label}, {self.recipe.size}",
      lambda: function,
      (judge, self.abstract_fixed(), shapes.batch(rows)),
      held or {},
      Work("forward", passes),
      setting.mesh,
      stages,
    )

  def scores_programs(
    self, rows: int, count: int, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Iterator[Program]:
    setting, judge = self.setting, self.own_judge()
    if self.translation is None:  # a part of the rollout
      return
    lengths = setting.shapes.prompt_length, count, setting.shapes.response_length
    yield Program(
      f"scores of {count}, {self.recipe.size}",
      lambda: host_judges.scores_on_device,
      (judge, self.abstract_fixed(), setting.shapes.batch(rows, count)),
      held,
      Work("forward", judge.passes(rows, *lengths)),
      setting.mesh,
      stages,
    )
