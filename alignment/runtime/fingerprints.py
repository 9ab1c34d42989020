"""Fingerprints of arrays: whether what is read is what was written.

Computed on the device before arrays are written and again after they are read: what
lies between (disk, network, decoding) is checked at the cost of one pass over memory,
whatever the layout.
"""

from typing import Any

import jax
import jax.numpy as jnp

from alignment.runtime.sharding import path_name
from alignment.types import Array


@jax.jit
def _fingerprints(arrays: dict[str, Array]) -> dict[str, Array]:
  def fingerprint(bits):
    weight = jnp.uint32(1)  # 1 + 2 x the flat index, modulo 2^32
    stride = 2
    for axis in reversed(range(bits.ndim)):
      index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
      weight = weight + index * jnp.uint32(stride % 2**32)
      stride *= bits.shape[axis]
    return jnp.sum(bits * weight, dtype=jnp.uint32)

  prints = {}
  for name, x in arrays.items():
    if x.dtype.itemsize == 4:
      bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    elif x.dtype.itemsize == 2:
      bits = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32)
    else:
      bits = x.astype(jnp.uint32)  # bool and small integers
    prints[f"{name}:{x.dtype}"] = fingerprint(bits)
    if x.dtype == jnp.float32:  # masters, which may be restored as bfloat16
      rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
      prints[f"{name}:bfloat16"] = fingerprint(rounded)
  return prints


def fingerprints(tree: Any) -> dict[str, int]:
  """32 bits of each array's content, by "path:dtype"; float32's also as bfloat16.

  The sum of bits_i (2 i + 1) modulo 2^32: exact integers, so independent of layout and
  devices. Any change of one element changes its array's, as its factor is odd.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  arrays = {path_name(path): leaf for path, leaf in leaves}
  return {name: int(x) for name, x in jax.device_get(_fingerprints(arrays)).items()}


def check_fingerprints(tree: Any, saved: dict[str, int]) -> None:
  """Raises ValueError naming the first array that is not as it was written."""
  present = fingerprints(tree)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = path_name(path)
    if saved.get(f"{name}:{leaf.dtype}") != present[f"{name}:{leaf.dtype}"]:
      raise ValueError(f"array '{name}' is not as it was written")
