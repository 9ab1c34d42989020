"""Parameters of a study's models: their shapes, layout, checkpoints and beginnings."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from alignment.models import huggingface
from alignment.models.protocol import Network
from alignment.runtime import checkpoint, sharding
from alignment.runtime.files import read_json
from alignment.study.models import Models
from alignment.study.recipes import PreferenceRecipe, Start
from alignment.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
  """The parameters of models, laid out over one mesh."""

  models: Models
  mesh: Mesh
  own_rules: sharding.Rules  # put before the families' own

  def rules(self, model: Network) -> sharding.Rules:
    """How a model's parameters lie while they are trained or score."""
    return self.own_rules + model.layout_rules(self.mesh.shape["tensor"])

  def abstract(self, model: Network) -> Params:
    """Shapes, dtypes and layout of a model's parameters."""
    return _abstract(model, self.mesh, self.rules(model))

  def abstract_fixed(self, model: Network) -> Params:
    """The same of a model that is only read."""
    return _abstract_fixed(model, self.mesh, self.rules(model))

  def count(self, model: Network) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.abstract(model)))

  def load(self, directory: Path, model: Network, step: int | None = None) -> Params:
    """Parameters of a finished model artefact: those it settled on, or of `step`."""
    return _restore(directory, self.abstract(model), step)

  def load_fixed(
    self, directory: Path, model: Network, step: int | None = None
  ) -> Params:
    """The same for a model that is only read: a reference, a judge, an opponent."""
    return _restore(directory, self.abstract_fixed(model), step)

  def initial(self, start: Start, sft: Path | None, seed: int) -> Params:
    """Where a model starts: the SFT's checkpoint, a Hugging Face one, or scratch."""
    model = self.models.model(start)
    if sft is not None:
      return self.load(sft, model)
    origin = self.models.origin(start)
    if origin is None:
      return sharding.init_sharded(
        model.init, jax.random.key(seed), mesh=self.mesh, rules=self.rules(model)
      )
    return self._put(huggingface.read_params(origin, model.cfg), model)

  def initial_judge(
    self, recipe: PreferenceRecipe, sft: Path | None, seed: int
  ) -> Params:
    """The same of a judge; a reward model starts as one, or with a new head."""
    if recipe.kind != "pointwise":
      return self.initial(recipe, sft, seed)
    model = self.models.reward_model(recipe)
    origin = None if sft is not None else self.models.origin(recipe)
    if origin is not None and huggingface.is_reward_model(origin):
      return self._put(huggingface.read_reward_params(origin, model.cfg), model)
    head = sharding.init_sharded(
      model.init_head, jax.random.key(seed), mesh=self.mesh, rules=self.rules(model)
    )
    return model.without_head(self.initial(recipe, sft, seed)) | head

  def _put(self, params: Params, model: Network) -> Params:
    """Arrays of the host, laid out."""
    return jax.tree.map(
      lambda p, a: jax.make_array_from_callback(p.shape, a.sharding, p.__getitem__),
      params,
      self.abstract(model),
    )


def _restore(directory: Path, abstract: Params, step: int | None) -> Params:
  if step is None:
    step = read_json(directory / "model.json")["step"]
  return checkpoint.restore_params(directory, step, abstract)


@functools.cache  # tracing `init` takes longer than many a step of a small model
def _abstract(model: Network, mesh: Any, rules: sharding.Rules) -> Params:
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sharding.with_layout(shapes, sharding.shardings(shapes, mesh, rules))


@functools.cache
def _abstract_fixed(model: Network, mesh: Any, rules: sharding.Rules) -> Params:
  params = _abstract(model, mesh, rules)
  shapes = jax.eval_shape(model.cast_for_reading, params)
  return sharding.with_layout(shapes, jax.tree.map(lambda p: p.sharding, params))
