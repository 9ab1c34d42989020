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
from alignment.models.lora import LORA, LoraModel
from alignment.models.protocol import BASE, Model, without_base
from alignment.runtime import checkpoint, sharding
from alignment.runtime.files import read_json
from alignment.study.models import Models
from alignment.study.recipes import Start
from alignment.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
  """The parameters of models, laid out over one mesh."""

  models: Models
  mesh: Mesh
  own_rules: sharding.Rules  # put before the families' own
  _alive: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

  def rules(self, model: Model) -> sharding.Rules:
    """How a model's parameters lie while they are trained or score."""
    return self.own_rules + model.layout_rules(self.mesh.shape["tensor"])

  def abstract(self, model: Model) -> Params:
    """Shapes, dtypes and layout of a model's parameters."""
    return _abstract(model, self.mesh, self.rules(model))

  def abstract_fixed(self, model: Model) -> Params:
    """The same of a model that is only read."""
    return _abstract_fixed(model, self.mesh, self.rules(model))

  def count(self, model: Model) -> int:
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

  def load(self, directory: Path, model: Model, step: int | None = None) -> Params:
    """Parameters of a finished model artefact: those it settled on, or of `step`."""
    return _restore(directory, self.abstract(model), step)

  def load_fixed(
    self, directory: Path, model: Model, step: int | None = None
  ) -> Params:
    """The same for a model that is only read: a reference, a judge, an opponent."""
    return _restore(directory, self.abstract_fixed(model), step)

  def load_trained(
    self, directory: Path, model: Model, step: int | None = None
  ) -> Params:
    """Those that were trained: all, or all but the base."""
    return _restore(directory, without_base(self.abstract(model)), step)

  def fixed(self, model: Model, params: Params) -> Params:
    """A model's parameters as `load_fixed` gives them."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, params)
    return jax.jit(model.cast_for_reading, out_shardings=layout)(params)

  def merged(self, model: LoraModel, base: Params, trained: Params) -> Params:
    """The family's parameters with the adapters' changes, laid out as the base."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, base)
    merge = jax.jit(model.merged, out_shardings=layout)
    return merge({BASE: base, LORA: trained[LORA]})

  def new_trained(self, model: Model, seed: int) -> Params:
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
    return jax.tree.map(
      lambda p, a: jax.make_array_from_callback(p.shape, a.sharding, p.__getitem__),
      huggingface.read_params(origin, model.cfg),
      self.abstract(model),
    )


def _restore(directory: Path, abstract: Params, step: int | None) -> Params:
  if step is None:
    step = read_json(directory / "model.json")["step"]
  return checkpoint.restore_params(directory, step, abstract)


@functools.cache  # tracing `init` takes longer than many a step of a small model
def _abstract(model: Model, mesh: Any, rules: sharding.Rules) -> Params:
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sharding.with_layout(shapes, sharding.shardings(shapes, mesh, rules))


@functools.cache
def _abstract_fixed(model: Model, mesh: Any, rules: sharding.Rules) -> Params:
  params = _abstract(model, mesh, rules)
  shapes = jax.eval_shape(model.cast_for_reading, params)
  return sharding.with_layout(shapes, jax.tree.map(lambda p: p.sharding, params))
