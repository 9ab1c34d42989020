"""One mesh, `(data, fsdp, tensor)`, and an ordered table of layout rules.

Everything runs on the mesh, also when it has one device. A parameter that no rule
matches, or a dimension that its mesh axes do not divide, is an error with its name:
nothing silently falls back to being replicated.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from alignment.types import Array, UserError

AXES = ("data", "fsdp", "tensor")
# The first pattern found in a parameter's path decides. A spec names the mesh axes of
# the trailing dimensions, each an axis, a tuple of axes or None; a leading layer axis
# of stacked layers is never sharded. The rules belong to the model families.
Rules = tuple[tuple[str, tuple[Any, ...]], ...]


def mesh_shape(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
  """The sizes of the axes over so many devices; one may be -1: whatever is left.

  Raises:
    UserError: if the sizes do not multiply to the number of devices.
  """
  shape = [data, fsdp, tensor]
  if shape.count(-1) == 1:
    others = -math.prod(shape)
    shape[shape.index(-1)] = devices // others if others > 0 else 0
  if min(shape) < 1 or math.prod(shape) != devices:
    raise UserError(
      f"mesh (data={data}, fsdp={fsdp}, tensor={tensor}) does not cover "
      f"{devices} devices; the sizes must multiply to {devices} (one may be -1)"
    )
  return shape[0], shape[1], shape[2]


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh over all devices, or over some, of the shape that `mesh_shape` says.

  `devices` may be those of a TPU topology that is only compiled for.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(data, fsdp, tensor, len(devices))
  # Some shapes fit a two-dimensional slice only if an axis of it is divided.
  arranged = mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )
  types = (jax.sharding.AxisType.Auto,) * len(AXES)
  return Mesh(arranged, AXES, axis_types=types)


def rules(entries: Sequence[Any]) -> Rules:
  """Layout rules as configurations hold them, as hashable tuples.

  Raises:
    UserError: for an entry that is no pattern with axes.
  """
  for entry in entries:
    match entry:
      case [str(pattern), [*axes]] if all(
        isinstance(a, str | list | tuple | None) for a in axes
      ):
        _check_rule(pattern, axes)
        continue
    raise UserError(
      f"layout has {entry!r}; its entries are (pattern, axes), such as "
      "('mlp/up', (None, 'tensor'))"
    )
  return tuple(
    (pattern, tuple(tuple(a) if isinstance(a, list) else a for a in axes))
    for pattern, axes in entries
  )


def _check_rule(pattern: str, axes: Sequence[Any]) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    raise UserError(
      f"layout has the pattern {pattern!r}, which is no regular expression: {error}"
    ) from None
  each = ([axis] if isinstance(axis, str) else axis or () for axis in axes)
  named = [name for axis in each for name in axis]
  for axis in named:
    if named.count(axis) > 1:
      raise UserError(f"layout has {axis!r} twice for {pattern!r}")


def path_name(path: tuple[Any, ...]) -> str:
  """A pytree path as `decoder/layers/mlp/up/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_for(
  name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> PartitionSpec:
  """The layout of one parameter.

  Raises:
    UserError: if no rule matches, the rule does not fit the parameter or the mesh, or
      a dimension does not divide.
  """
  axes = next((axes for pattern, axes in rules if re.search(pattern, name)), None)
  if axes is None:
    raise UserError(f"no layout rule matches parameter '{name}' {shape}: add one")
  if len(axes) > len(shape):
    raise UserError(f"parameter '{name}' {shape}: its layout rule {axes} is too long")
  axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
  for size, axis in zip(shape, axes, strict=True):
    names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    if unknown := set(names) - set(AXES):
      raise UserError(
        f"parameter '{name}': its layout rule names {unknown}; axes are {AXES}"
      )
    parts = int(np.prod([mesh.shape[n] for n in names], dtype=int))
    if size % parts:
      raise UserError(
        f"parameter '{name}' {shape}: dimension {size} is not divisible by mesh axis "
        f"'{'x'.join(names)}' of size {parts}"
      )
  return PartitionSpec(*axes)


def shardings(abstract: Any, mesh: Mesh, rules: Rules) -> Any:
  """NamedShardings for a tree of parameters, or of shapes of them."""

  def one(path, leaf):
    return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

  return jax.tree_util.tree_map_with_path(one, abstract)


def with_layout(abstract: Any, layout: Any) -> Any:
  """Shapes and dtypes of `abstract`, laid out by `layout`."""

  def one(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(one, abstract, layout)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rules on a mesh; hashable, for jit."""

  mesh: Mesh
  rules: Rules

  def constrain(self, params: Any) -> Any:
    """Within a jitted function: the parameters, laid out so from here on."""
    layout = shardings(params, self.mesh, self.rules)
    return jax.lax.with_sharding_constraint(params, layout)


def state_shardings(abstract: Any, param_shapes: Any, mesh: Mesh, rules: Rules) -> Any:
  """Shardings of optimizer state: laid out like the parameter a leaf belongs to.

  A leaf belongs to the parameter whose path its own ends with. One of the same shape
  takes its layout; a factored second moment takes the layout of the dimensions it
  keeps; scalars and optax's one-element placeholders are replicated.
  """
  specs = {
    path_name(path): (leaf.shape, spec_for(path_name(path), leaf.shape, mesh, rules))
    for path, leaf in jax.tree_util.tree_flatten_with_path(param_shapes)[0]
  }

  def one(path, leaf):
    names = path_name(path).split("/")
    suffixes = ("/".join(names[i:]) for i in range(len(names)))
    owner = next((specs[s] for s in suffixes if s in specs), None)
    if owner is None or leaf.size <= 1 or len(leaf.shape) == 0:
      return replicated(mesh)
    shape, spec = owner
    axes = []
    remaining = list(zip(shape, spec, strict=True))
    for size in leaf.shape:  # a factored moment keeps a subsequence of the dimensions
      while remaining and remaining[0][0] != size:
        remaining.pop(0)
      if not remaining:
        return replicated(mesh)  # a per-layer scalar or placeholder
      axes.append(remaining.pop(0)[1])
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(one, abstract)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the data and fsdp axes."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def on(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
  """In here, also while tracing, `by_rows` knows the mesh."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
  """What a function that is being traced will run on: tpu, gpu or cpu.

  The mesh's (`on`), which may be of devices that are only compiled for.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def device_count() -> int:
  """Of the mesh (`on`) that what is being traced will run on; 1 without one."""
  return max(1, jax.sharding.get_abstract_mesh().size)


def by_rows(x: Array) -> Array:
  """Keeps activations [B, ...] where their rows are: over the data and fsdp axes.

  Left to itself the compiler lays them out like the width of an embedding table that is
  sharded over `fsdp`: every device then has all rows, and sums activations, many times
  the bytes, instead of gathering parameters. Without a mesh (`on`) x is as it came.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"), *free))


def check_batch(size: int, mesh: Mesh, what: str = "batch_size") -> None:
  """Raises UserError unless the mesh's data axes divide the batch."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if size % shards:
    raise UserError(
      f"{what} {size} is not divisible by the mesh's data x fsdp = {shards} shards"
    )


def init_sharded(init: Callable[..., Any], *args, mesh: Mesh, rules: Rules) -> Any:
  """Runs `init(*args)` so that every parameter is born with its layout."""
  out = shardings(jax.eval_shape(init, *args), mesh, rules)
  return jax.jit(init, out_shardings=out)(*args)


def put_rows(rows: Callable[[np.ndarray], Any], count: int, mesh: Mesh) -> Any:
  """A batch of `count` rows, sharded by rows; a process loads only what it holds.

  Args:
    rows: yields the host arrays of the rows of the batch at given positions.
    count: rows of the whole batch.
    mesh: whose data and fsdp axes share the rows out.
  """
  sharding = batch_sharding(mesh)
  shards = sharding.addressable_devices_indices_map((count,)).values()
  held = {index[0].indices(count)[:2] for index in shards if index is not None}
  held_rows = np.concatenate([np.arange(*span) for span in sorted(held)])

  def put(x):
    x = np.asarray(x)

    def block(index):
      start, stop, _ = index[0].indices(count)
      first = np.searchsorted(held_rows, start)
      return x[first : first + stop - start]

    return jax.make_array_from_callback((count, *x.shape[1:]), sharding, block)

  return jax.tree.map(put, rows(held_rows))


def local_rows(tree: Any) -> Any:
  """Arrays sharded by rows -> numpy arrays of the rows that this process holds.

  Host arrays are this process's already.
  """

  def local(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return np.asarray(x)
    parts = {shard.index[0].start: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(local, tree)


def put_local_rows(tree: Any, mesh: Mesh) -> Any:
  """The inverse: every process gives the rows that it holds."""
  rows = len(jax.tree.leaves(tree)[0])
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  spans = batch_sharding(mesh).addressable_devices_indices_map((shards,)).values()
  held = len({index[0].start for index in spans if index is not None})
  return put_rows(lambda at: tree, rows * shards // held, mesh)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Host arrays (the same on every process) -> arrays sharded by rows."""
  batch = jax.tree.map(np.asarray, batch)
  count = len(jax.tree.leaves(batch)[0])
  return put_rows(lambda at: jax.tree.map(lambda x: x[at], batch), count, mesh)


def fetch(tree: Any) -> Any:
  """Device arrays -> numpy arrays of the whole, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
