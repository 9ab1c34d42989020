"""Programs on shapes: what a stage runs, how it is called, what else is alive.

An artefact lists its programs (`Artefact.programs`): the functions that its `make`
calls, the arrays only shapes with a layout. Nothing is computed; no data, vocabulary or
checkpoint needs to be at hand.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment.models.protocol import Network
from alignment.runtime import sharding
from alignment.types import Batch, ScoredBatch

# (model, rows, prompt length, responses, response length) of a forward pass
Pass = tuple[Network, int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Work:
  """What an analytic estimate of a program needs to know."""

  kind: str  # train, rollout, sample or forward
  passes: tuple[Pass, ...]
  microbatches: int = 1
  fixed: tuple[Pass, ...] = ()  # those of a train step that have no gradient
  backward: int = 2  # of how many forward passes it has the operations
  copy_bytes: int = 0  # on a device, of the parameters that a sampler makes for itself


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function, on shapes.

  Attributes:
    name: for people.
    function: makes the jitted function; not called for an estimate.
    arguments: as it is called, arrays abstract; static arguments where it takes them.
    held: what else is alive on the devices meanwhile, by name.
    work: for estimates.
    mesh: what it runs on.
    stages: names of the artefacts that run it.
    variant: hashable; what the function is made of, beside its arguments.
  """

  name: str
  function: Callable[[], Any]
  arguments: tuple[Any, ...]
  held: Mapping[str, Any]
  work: Work
  mesh: Mesh
  stages: tuple[str, ...] = ()
  variant: Any = None

  def lower(self) -> Any:
    with sharding.on(self.mesh):
      return self.function().lower(*self.arguments)

  @property
  def argument_bytes(self) -> int:
    return device_bytes(self.arguments)

  @property
  def held_bytes(self) -> int:
    return device_bytes(self.held)

  @property
  def identity(self) -> Any:
    """Hashable; equal for programs that compile to the same."""
    leaves, structure = jax.tree.flatten(self.arguments)
    shapes = tuple(
      (leaf.shape, leaf.dtype, leaf.sharding)
      if isinstance(leaf, jax.ShapeDtypeStruct)
      else leaf
      for leaf in leaves
    )
    return self.name, self.variant, self.work, structure, shapes


def distinct(programs: Iterable[Program]) -> list[Program]:
  """Each program once, with all stages that run it, and the most that is held."""
  listed: dict[Any, Program] = {}
  for program in programs:
    if (other := listed.get(program.identity)) is not None:
      longer = max(program, other, key=lambda p: p.held_bytes)
      stages = tuple(dict.fromkeys(other.stages + program.stages))
      program = dataclasses.replace(longer, stages=stages)
    listed[program.identity] = program
  return list(listed.values())


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Abstract arrays of a study: of these lengths, laid out over this mesh."""

  mesh: Mesh
  prompt_length: int
  response_length: int

  def batch(self, B: int, N: int = 2) -> Batch:  # noqa: N803
    """B prompts with N responses each."""
    S, T = self.prompt_length, self.response_length
    i32, f32 = jnp.int32, jnp.float32
    return Batch(
      prompts_BxS=self.rows((B, S), i32),
      prompt_lengths_B=self.rows((B,), i32),
      responses_BxNxT=self.rows((B, N, T), i32),
      lengths_BxN=self.rows((B, N), i32),
      ref_logps_BxN=self.rows((B, N), f32),
      weights_B=self.rows((B,), f32),
      ids_B=self.rows((B,), i32),
    )

  def scored_batch(self, B: int, N: int) -> ScoredBatch:  # noqa: N803
    """The same with a score for every response."""
    scores_BxN = self.rows((B, N), jnp.float32)
    return ScoredBatch(**vars(self.batch(B, N)), scores_BxN=scores_BxN)

  def rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    layout = sharding.batch_sharding(self.mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

  def everywhere(self, tree: Any) -> Any:
    """The tree's shapes, replicated."""
    layout = sharding.replicated(self.mesh)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), tree
    )

  @property
  def key(self) -> Any:
    return self.everywhere(jax.eval_shape(lambda: jax.random.key(0)))


def device_bytes(tree: Any) -> int:
  """Bytes on one device of the abstract arrays in a tree, other leaves apart."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.ShapeDtypeStruct):
      shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
      is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      total += math.prod(shape) * (8 if is_key else leaf.dtype.itemsize)
  return total
