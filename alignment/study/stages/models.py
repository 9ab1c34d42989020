"""Artefacts that are models: SFT, and imported checkpoints.

What trains shares one base: an objective, a source of batches and a start make a
`loop.Learner`, which `make` runs and `programs` puts on shapes.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from alignment.core import evaluation, loop, train_step
from alignment.core.optim import Optimizer
from alignment.data import pairs, sources
from alignment.models import protocol
from alignment.runtime import checkpoint
from alignment.runtime.files import checksum, write_json
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Pass, Program, Work, device_bytes
from alignment.study.recipes import Recipe, Start
from alignment.study.setting import Setting
from alignment.types import Batch, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Model(Artefact):
  """Parameters under `params/<step>`, and in `model.json` the step it settled on."""

  @property
  @abc.abstractmethod
  def start(self) -> Start:
    """Which model it is."""

  def model(self) -> protocol.Model:
    """As others read it."""
    return self.setting.model(self.start)

  @property
  def base(self) -> "Model | None":
    """The fixed model whose adapters it has, or had until they were merged."""
    return None

  def load(self, read: Read, step: int | None = None) -> Params:
    """Float32 parameters to start from: those it settled on, or of `step`.

    Adapters are merged.
    """
    return self.setting.parameters.load(read(self), self.model(), step)

  def load_fixed(self, read: Read, step: int | None = None) -> Params:
    """The same where they are only read: a reference, a judge, an opponent.

    One copy is made, however many ask while it is held.
    """
    key = read(self), step
    return self.setting.parameters.shared(key, lambda: self._load_fixed(read, step))

  def _load_fixed(self, read: Read, step: int | None) -> Params:
    return self.setting.parameters.load_fixed(read(self), self.model(), step)

  def abstract_fixed(self) -> Params:
    """Shapes and layout of its parameters where it is only read."""
    return self.setting.parameters.abstract_fixed(self.model())

  def sample_program(
    self, count: int, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Program:
    """`count` responses to each of a batch of prompts that are evaluated together."""
    setting, shapes, model = self.setting, self.setting.shapes, self.model()
    S, T = shapes.prompt_length, shapes.response_length
    rows = setting.config.evaluation.batch_size
    sampler, params = setting.sampler(self.start), self.abstract_fixed()
    copied = device_bytes(sampler.abstract_copy(params))
    return Program(
      f"sample {count}, {self.start.size}",
      lambda: evaluation.sample,
      (sampler, params, shapes.batch(rows), shapes.key, count, T),
      held,
      Work("sample", ((model, rows, S, count, T),), copy_bytes=copied),
      setting.mesh,
      stages,
    )

  def log_ratios_program(
    self, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Program:
    """Log-ratios of a batch of pairs that are evaluated together."""
    setting, shapes, model = self.setting, self.setting.shapes, self.model()
    S, T = shapes.prompt_length, shapes.response_length
    rows = setting.config.evaluation.batch_size
    return Program(
      f"log_ratios, {self.start.size}",
      lambda: evaluation.log_ratios,
      (model, self.abstract_fixed(), shapes.batch(rows)),
      held,
      Work("forward", ((model, rows, S, 2, T),)),
      setting.mesh,
      stages,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ImportedModel(Model):
  """A Hugging Face checkpoint as a model artefact, at step 0."""

  kind: ClassVar[str] = "import"
  imported: Start

  @property
  def start(self) -> Start:
    return self.imported

  def settings(self) -> dict[str, Any]:
    role = described_start(dataclasses.asdict(self.imported))
    return self.setting.sizes | {"role": role}

  def make(self, directory: Path, read: Read) -> None:
    del read
    save(directory, self.setting.parameters.initial(self.imported, seed=0))
    write_json(directory / "model.json", {"step": 0})


def save(directory: Path, params: Params) -> None:
  """Parameters that nothing trains: of step 0."""
  checkpoints = checkpoint.Checkpoints(directory)
  checkpoints.save_params(0, params)
  checkpoints.close()


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel(Model):
  """A model that the training loop makes."""

  recipe: Recipe

  @property
  def start(self) -> Start:
    return self.recipe

  @property
  @abc.abstractmethod
  def objective(self) -> train_step.Objective:
    """What its steps minimise."""

  @property
  def beta(self) -> float:
    return 0.0

  @property
  def optimizer(self) -> Optimizer:
    return self.recipe.optimizer

  @property
  def refresh_every(self) -> int:
    """Steps between renewals of the parameters that its source is handed."""
    return 1

  # --- parameters ---

  def trained_model(self) -> protocol.Network:
    """With its adapters, if it has any."""
    return self.model()

  def load_trained(self, read: Read, step: int | None = None) -> Params:
    """What was trained: all of its parameters, or all but the base."""
    p, model = self.setting.parameters, self.trained_model()
    return p.load_trained(read(self), model, step)

  def load(self, read: Read, step: int | None = None) -> Params:
    if self.base is None:
      return super().load(read, step)
    base, p = self.read_of_base(self.base.load(read)), self.setting.parameters
    return p.merged(self.trained_model(), base, self.load_trained(read, step))

  def _load_fixed(self, read: Read, step: int | None) -> Params:
    if self.base is None:
      return super()._load_fixed(read, step)
    base = self.read_of_base(self.base.load_fixed(read))
    return protocol.with_base(self.load_trained(read, step), base)

  def read_of_base(self, params: Params) -> Params:
    """Which of the parameters of its base it has."""
    return params

  def read_by_step(self, load: Callable[[Model], Params]) -> list[train_step.Fixed]:
    """What its steps read but do not train, if there is any.

    `load` gives the parameters of a model that is only read: arrays, or shapes.
    """
    if self.base is None:
      return []
    return [train_step.Fixed(base=self.read_of_base(load(self.base)))]

  def trained(self) -> dict[str, Any]:
    """How it is trained, as JSON: a part of `settings`."""
    return {"role": described_start(self.recipe.described())}

  # --- training ---

  def train(
    self,
    directory: Path,
    read: Read,
    *,
    params: Callable[[], Params],
    seed: int,
    source: sources.Source,
    keep: Sequence[int],
    show: tuple[str, ...],
    before_save: Callable[[int], None] | None = None,
  ) -> None:
    """Runs the loop.

    `params()` are the parameters at step 0, all of which are trained unless there is a
    base; then `seed` is that of its adapters.
    """
    function, p = self.step_function(), self.setting.parameters
    fixed = self.read_by_step(lambda model: model.load_fixed(read))
    if self.base is not None:
      params = lambda: p.new_trained(self.trained_model(), seed)  # noqa: E731
    learner = loop.Learner(
      abstract_state=self.abstract_state(),
      init_state=lambda: self._init_state()(params()),
      step=lambda *arguments: function(*arguments, *fixed),
      hyper=self.hyper(),
    )
    schedule = loop.Schedule(
      steps=self.recipe.steps,
      keep_params_at=tuple(keep),
      log_every=self.setting.config.log_every,
      save_every=self.setting.config.save_every,
      refresh_every=self.refresh_every,
      show=show,
      tracking=self.setting.tracking(self.key),
    )
    loop.train(self.name, directory, learner, source, schedule, before_save)

  def abstract_state(self) -> train_step.TrainState:
    p, model = self.setting.parameters, self.trained_model()
    return train_step.abstract_state(model, self.optimizer, p.mesh, p.rules(model))

  def _init_state(self) -> Callable[[Params], train_step.TrainState]:
    p, model = self.setting.parameters, self.trained_model()
    return train_step.compiled_init(model, self.optimizer, p.mesh, p.rules(model))

  def step_function(self) -> Callable[..., Any]:
    """The compiled train step."""
    p, model = self.setting.parameters, self.trained_model()
    return train_step.compiled(
      self.objective,
      self.optimizer,
      self.recipe.microbatches,
      p.mesh,
      p.rules(model),
      model,
      self.recipe.on_non_finite == "skip",
    )

  def hyper(self) -> train_step.Hyper:
    r = self.recipe
    decay_steps = r.steps if r.decay else 0
    return train_step.hyper(r.learning_rate, r.warmup_steps, decay_steps, self.beta)

  # --- the same on shapes ---

  def step_program(
    self,
    label: str,
    passes: tuple[Pass, ...],
    held: Mapping[str, Params],
    batch: Batch | None = None,
  ) -> Program:
    """The train step; `passes` are those of one microbatch.

    On a batch of pairs if no other is given. A reference that the objective reads makes
    the same passes.
    """
    shapes, k = self.setting.shapes, self.recipe.microbatches
    numbers = shapes.everywhere(train_step.hyper(0.0))
    batch = batch or shapes.batch(self.recipe.batch_size)
    fixed = self.read_by_step(lambda model: model.abstract_fixed())
    reads_reference = train_step.reads_reference(self.objective)
    # Without a base gradients of parameters are as much work as those of activations.
    backward = 2 if self.base is None else 1
    return Program(
      f"{label}, {self.recipe.size}",
      self.step_function,
      (self.abstract_state(), batch, numbers, *fixed),
      held,
      Work("train", passes, k, passes if reads_reference else (), backward),
      self.setting.mesh,
      (self.name,),
      (self.objective, self.optimizer, self.recipe.on_non_finite),
    )

  @property
  def microbatch(self) -> int:
    return self.recipe.batch_size // self.recipe.microbatches


@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedModel(TrainedModel):
  """SFT: supervised fine-tuning on both responses of every pair of all data, pooled."""

  kind: ClassVar[str] = "sft"
  data: tuple[Artefact, ...]
  imported: Model | None = None  # the base of adapters

  @property
  def start(self) -> Start:
    return self.recipe.without_lora  # others start from it: adapters are merged

  @property
  def base(self) -> Model | None:
    return self.imported

  @property
  def objective(self) -> train_step.Objective:
    return train_step.SupervisedObjective(self.trained_model())

  def trained_model(self) -> protocol.Model:
    return self.setting.model(self.recipe)

  def _load_fixed(self, read: Read, step: int | None) -> Params:
    if self.base is None:
      return super()._load_fixed(read, step)
    return self.setting.parameters.fixed(self.model(), self.load(read, step))

  def settings(self) -> dict[str, Any]:
    return self.setting.numerics | self.trained()

  def make(self, directory: Path, read: Read) -> None:
    setting, recipe = self.setting, self.recipe
    seed = setting.seed("sft")
    datasets = [read(data) / "train" for data in self.data]
    self.train(
      directory,
      read,
      params=lambda: setting.parameters.initial(recipe, seed),
      seed=seed,
      source=offline_source(setting, recipe, datasets, seed),
      keep=[recipe.steps],
      show=("loss",),
    )
    write_json(directory / "model.json", {"step": recipe.steps})

  def programs(self) -> Iterator[Program]:
    T, S = self.setting.shapes.response_length, self.setting.shapes.prompt_length
    passes = ((self.model(), self.microbatch, S, 2, T),)
    yield self.step_program("SFT step", passes, {})


def offline_source(
  setting: Setting,
  recipe: Recipe,
  directories: Sequence[Path],
  seed: int,
  num_responses: int = 2,
) -> sources.OfflineSource:
  """Pairs of one or more data sets, by index."""
  parts = [pairs.PairDataset.load(directory) for directory in directories]
  return sources.OfflineSource(
    dataset=pairs.PairDataset.concatenate(parts),
    batch_size=recipe.batch_size,
    **setting.lengths,
    mesh=setting.mesh,
    seed=seed,
    num_responses=num_responses,
  )


def described_start(role: dict[str, Any]) -> dict[str, Any]:
  """A role with a checkpoint's content for its directory."""
  if role["init"] in ("scratch", "sft"):
    return role
  directory = Path(role["init"].replace("{size}", role["size"]))
  files = sorted(directory.glob("*.safetensors")) + [directory / "config.json"]
  return role | {"init": [checksum(file) for file in files]}
