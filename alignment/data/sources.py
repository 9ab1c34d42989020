"""Sources of batches: offline pairs by index, online rollouts, recorded streams.

A source's batch is a pure function of (seed, step, params). There is no iterator state:
resuming and replaying are calls with another step.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from alignment.data import order, pairs, stream
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params


class Source(Protocol):
  """Anything with batches by step."""

  def batch(self, step: int, params: Params) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class OfflineSource:
  """A fixed data set, reshuffled every epoch by a permutation of (seed, epoch)."""

  dataset: pairs.PairDataset
  batch_size: int
  prompt_length: int
  response_length: int
  mesh: Mesh
  seed: int
  num_responses: int = 2

  def __post_init__(self):
    sharding.check_batch(self.batch_size, self.mesh)

  def batch(self, step: int, params: Params = None) -> Batch:
    del params
    return sharding.put_rows(
      lambda rows: self.host_batch(step, rows), self.batch_size, self.mesh
    )

  def host_batch(self, step: int, rows: Any = slice(None)) -> Batch:
    """The same batch, or some rows of it, as numpy arrays.

    A third response, for losses with a supervised target, is the preferred one.
    """
    indices = order.index_for(step, self.batch_size, len(self.dataset), self.seed)
    batch = self.dataset.batch(indices[rows], self.prompt_length, self.response_length)
    if self.num_responses == 2:
      return batch
    take = np.array([0, 1, 0])
    return batch.replace(
      responses_BxNxT=batch.responses_BxNxT[:, take],
      lengths_BxN=batch.lengths_BxN[:, take],
      ref_logps_BxN=batch.ref_logps_BxN[:, take],
    )


@dataclasses.dataclass(frozen=True)
class OnlineSource:
  """The same prompts in the same order; the policy writes the responses.

  `rollout(params, prompts, key)` samples, judges, orders and scores on the device
  (alignment/core/rollout.py, with reference and judge already applied).

  With an `on_policy_fraction` below 1 the rows after that share of the batch keep the
  pair of the data set: a hybrid of both methods on the same prompts. `record` is shown
  every rollout.
  """

  prompts: OfflineSource
  rollout: Callable[[Params, Batch, Array], Any]
  key: Array
  on_policy_fraction: float = 1.0
  record: Callable[[int, Any], None] | None = None

  def batch(self, step: int, params: Params) -> Batch:
    prompts = self.prompts.batch(step)
    rollout = self.rollout(params, prompts, jax.random.fold_in(self.key, step))
    if self.record is not None:
      self.record(step, rollout)
    if self.on_policy_fraction == 1:
      return rollout.batch
    sampled = round(self.on_policy_fraction * self.prompts.batch_size)
    return _first_rows(self.prompts.mesh)(rollout.batch, prompts, sampled)


@functools.cache
def _first_rows(mesh: Mesh) -> Callable[[Batch, Batch, int], Batch]:
  """The first rows of one batch, the others of another: no row changes its place."""

  def first_rows(a: Batch, b: Batch, count: Array) -> Batch:
    def choose(x: Array, y: Array) -> Array:
      first = jnp.arange(x.shape[0]) < count
      return jnp.where(first.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, a, b)

  return jax.jit(first_rows, out_shardings=sharding.batch_sharding(mesh))


@dataclasses.dataclass(frozen=True)
class StreamSource:
  """A recorded online run as a fixed data set.

  `window` says how far its pairs are shuffled: 0 not at all (the tandem of App. F: the
  recorded batches, bit for bit), k within windows of k batches, -1 over the whole run.
  Past its end it begins again, shuffled anew.
  """

  stream: stream.Stream
  batch_size: int
  window: int
  mesh: Mesh
  seed: int

  def __post_init__(self):
    sharding.check_batch(self.batch_size, self.mesh)

  def batch(self, step: int, params: Params = None) -> Batch:
    del params
    return sharding.put_rows(
      lambda rows: self.host_batch(step, rows), self.batch_size, self.mesh
    )

  def host_batch(self, step: int, rows: Any = slice(None)) -> Batch:
    """The same batch, or some rows of it, as numpy arrays."""
    size = len(self.stream)
    shuffled = {0: 1, -1: size}.get(self.window, self.window * self.stream.batch_size)
    indices = order.index_for(step, self.batch_size, size, self.seed, shuffled)
    return self.stream.batch(indices[rows])
