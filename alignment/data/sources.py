"""Sources of batches: offline pairs by index, and online rollouts.

A source's batch is a pure function of (seed, step, params). There is no iterator state:
resuming and replaying are calls with another step.
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol

import jax
from jax.sharding import Mesh
import numpy as np

from alignment import sharding
from alignment.data import pairs
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
    return sharding.put_batch(self.host_batch(step), self.mesh)

  def host_batch(self, step: int) -> Batch:
    """The same batch as numpy arrays.

    A third response, for losses with a supervised target, is the preferred one.
    """
    indices = pairs.index_for(step, self.batch_size, len(self.dataset), self.seed)
    batch = self.dataset.batch(indices, self.prompt_length, self.response_length)
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
  (alignment/rollout.py, with reference and judge already applied).
  """

  prompts: OfflineSource
  rollout: Callable[[Params, Batch, Array], Batch]
  key: Array

  def batch(self, step: int, params: Params) -> Batch:
    prompts = self.prompts.batch(step)
    return self.rollout(params, prompts, jax.random.fold_in(self.key, step))
