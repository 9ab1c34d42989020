"""Applying a jitted function to any number of rows, in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from alignment.runtime import hosts, sharding
from alignment.runtime.activity import Meter


def map_rows(
  function: Callable[..., Any],
  rows: Callable[[np.ndarray], tuple[Any, ...]],
  indices: np.ndarray,
  batch_size: int,
  mesh: Mesh,
  doing: str = "evaluating",
) -> Any:
  """`function(*rows(indices))` with its [B, ...] outputs as numpy arrays.

  `rows` yields trees of host arrays, which are sharded by rows; every process asks for
  its own. The last batch is filled up with copies of its first row, whose outputs are
  dropped: one compilation serves any number of rows. `doing` names it for who waits.
  """
  sharding.check_batch(batch_size, mesh, "evaluation.batch_size")
  outputs = []
  with Meter(doing, len(indices), "rows") as meter:
    for start in range(0, len(indices), batch_size):
      hosts.stop_if_preempted("evaluation")
      wanted = indices[start : start + batch_size]
      count = len(wanted)
      filled = np.concatenate([wanted, np.full(batch_size - count, wanted[0])])

      def mine(at: np.ndarray, filled: np.ndarray = filled) -> tuple[Any, ...]:
        return rows(filled[at])

      batch = sharding.put_rows(mine, batch_size, mesh)
      with sharding.on(mesh):
        output = sharding.fetch(function(*batch))
      outputs.append(jax.tree.map(lambda x, n=count: x[:n], output))
      meter.reach(start + count)
  return jax.tree.map(lambda *xs: np.concatenate(xs), *outputs)
