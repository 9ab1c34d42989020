"""Parameters of a study's models: their shapes, layout, checkpoints and beginnings."""

from collections.abc import Callable, Hashable
import dataclasses
import functools
from pathlib import Path
from typing import Any
import weakref

import jax
from jax.sharding import Mesh

from alignment.models import huggingface
from alignment.models.lora import LoraModel
from alignment.models.protocol import BASE, Network, with_base, without_base
from alignment.models.reward import RewardModel
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
  _alive: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

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
    """Of a model with adapters, those of the model that they make when merged."""
    params = self.abstract(model)
    return sum(leaf.size for leaf in jax.tree.leaves(params.get(BASE, params)))

  def shared(self, key: Hashable, load: Callable[[], Params]) -> Params:
    """What `load()` gives, once per process: as long as someone holds all of it."""
    structure, leaves = self._alive.get(key, (None, []))
    arrays = [leaf() for leaf in leaves]
    if arrays and all(array is not None for array in arrays):
      return jax.tree.unflatten(structure, arrays)
    params = load()
    leaves, structure = jax.tree.flatten(params)
    self._alive[key] = structure, list(map(weakref.ref, leaves))
    return params

  def load(self, directory: Path, model: Network, step: int | None = None) -> Params:
    """Parameters of a finished model artefact: those it settled on, or of `step`."""
    return _restore(directory, self.abstract(model), step)

  def load_fixed(
    self, directory: Path, model: Network, step: int | None = None
  ) -> Params:
    """The same for a model that is only read: a reference, a judge, an opponent."""
    return _restore(directory, self.abstract_fixed(model), step)

  def load_trained(
    self, directory: Path, model: Network, step: int | None = None
  ) -> Params:
    """Those that were trained: all, or all but the base."""
    return _restore(directory, without_base(self.abstract(model)), step)

  def fixed(self, model: Network, params: Params) -> Params:
    """A model's parameters as `load_fixed` gives them."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, params)
    return jax.jit(model.cast_for_reading, out_shardings=layout)(params)

  def merged(self, model: Network, base: Params, trained: Params) -> Params:
    """The parameters of a model without adapters, with their changes."""
    adapted = model.body if isinstance(model, RewardModel) else model
    assert isinstance(adapted, LoraModel)
    params = with_base(trained, base)
    shapes = jax.eval_shape(adapted.merged, params)
    layout = sharding.shardings(shapes, self.mesh, self.rules(model))
    return jax.jit(adapted.merged, out_shardings=layout)(params)

  def new_trained(self, model: Network, seed: int) -> Params:
    """Those that are trained, as `init` makes them."""
    return sharding.init_sharded(
      lambda key: without_base(model.init(key)),
      jax.random.key(seed),
      mesh=self.mesh,
      rules=self.rules(model),
    )

  def initial(self, start: Start, seed: int) -> Params:
    """Where a model starts: a Hugging Face checkpoint, or scratch."""
    model = self.models.model(start)
    origin = self.models.origin(start)
    if origin is None:
      return sharding.init_sharded(
        model.init, jax.random.key(seed), mesh=self.mesh, rules=self.rules(model)
      )
    return self._put(huggingface.read_params(origin, model.cfg), model)

  def initial_judge(
    self, recipe: PreferenceRecipe, sft: Params | None, seed: int
  ) -> Params:
    """The same of a judge, of `sft`'s parameters if there are such.

    A reward model starts as one, or with a new head.
    """
    if recipe.kind != "pointwise":
      return self.initial(recipe, seed) if sft is None else sft
    model = self.models.reward_model(recipe)
    origin = None if sft is not None else self.models.origin(recipe)
    if origin is not None and huggingface.is_reward_model(origin):
      return self._put(huggingface.read_reward_params(origin, model.cfg), model)
    head = sharding.init_sharded(
      model.init_head, jax.random.key(seed), mesh=self.mesh, rules=self.rules(model)
    )
    start = self.initial(recipe, seed) if sft is None else sft
    return model.without_head(start) | head

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
