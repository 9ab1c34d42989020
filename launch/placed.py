"""A program on shapes: the function, how it is called, what else is alive meanwhile."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from alignment.data import vocabularies
from alignment.models import t5
from alignment.runtime import sharding
from alignment.study.setting import Setting
from alignment.types import Params

T5_LIVE_IDS = 32_100


@dataclasses.dataclass(frozen=True, eq=False)
class Placed(Setting):
  """A Setting on a given mesh, whose vocabulary and checkpoints may be elsewhere."""

  on: Mesh | AbstractMesh = None  # type: ignore[assignment]

  @property
  def mesh(self) -> Any:
    return self.on

  @functools.cache  # noqa: B019  (tracing an initialisation takes seconds)
  def abstract_params(self, model: t5.T5) -> Params:
    return super().abstract_params(model)

  @property
  def vocabulary(self) -> vocabularies.Vocabulary:
    """The study's own, or one of the size of T5's where no file is named."""
    if self.config.vocab.kind == "sentencepiece" and not self.config.vocab.path:
      return _stand_in()
    return super().vocabulary

  def origin(self, role: Any) -> Path | None:
    """None, for a model of the named size, unless the checkpoint is really there."""
    init = self.config.sft.init if role["init"] == "sft" else role["init"]
    directory = Path(init.replace("{size}", role["size"]))
    if init in ("", "scratch", "sft") or not (directory / "config.json").exists():
      return None
    return directory


Passes = tuple[tuple[t5.T5Config, int, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Work:
  """What an analytic estimate of a program needs to know (`fit.py`).

  `encoded` are (model config, rows, prompt length, responses, response length) of every
  forward pass; `kind` is "train", "rollout" or "forward".
  """

  kind: str
  encoded: Passes
  microbatches: int = 1


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function, on shapes.

  Attributes:
    name: for people.
    stages: of the study that run it.
    function: jitted; static arguments come first in `arguments`, as it takes them.
    arguments: as it is called, arrays abstract.
    held: what else is alive on the devices meanwhile, by name.
    work: for estimates.
  """

  name: str
  stages: tuple[str, ...]
  function: Any
  arguments: tuple[Any, ...]
  held: Mapping[str, Any]
  work: Work
  mesh: Any

  def lower(self) -> Any:
    with sharding.on(self.mesh):
      return self.function.lower(*self.arguments)

  @property
  def argument_bytes(self) -> int:
    return device_bytes(self.arguments)

  @property
  def held_bytes(self) -> int:
    return device_bytes(self.held)


def device_bytes(tree: Any) -> int:
  """Bytes on one device of the abstract arrays in a tree, other leaves apart."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.ShapeDtypeStruct):
      shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
      is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      total += math.prod(shape) * (8 if is_key else leaf.dtype.itemsize)
  return total


@functools.cache
def _stand_in() -> vocabularies.Vocabulary:
  others = vocabularies.WordVocabulary(("w",)).size - 1
  return vocabularies.WordVocabulary(
    tuple(f"w{i}" for i in range(T5_LIVE_IDS - others))
  )
