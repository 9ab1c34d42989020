"""Which rows the batch of a step reads: a pure function of (seed, step)."""

import functools

import numpy as np


def index_for(
  step: int, batch_size: int, size: int, seed: int, window: int | None = None
) -> np.ndarray:
  """Which of `size` rows the batch of `step` reads: indices_B, int64.

  A pure function: every epoch is a permutation of its own, and batches may straddle
  epochs. It knows nothing of hosts, which slice what it returns. With a `window`, rows
  are permuted only within windows of that many: a window of 1 keeps their order.
  """
  window = min(window or size, size)
  position_B = step * batch_size + np.arange(batch_size, dtype=np.int64)
  epoch_B, within_B = np.divmod(position_B, size)
  window_B, offset_B = np.divmod(within_B, window)
  number_B = epoch_B * -(-size // window) + window_B  # each shuffled in its own way
  indices_B = np.empty_like(position_B)
  for number in np.unique(number_B):
    inside_B = number_B == number
    start = int(window_B[inside_B][0]) * window
    order = _permutation(seed, int(number), min(window, size - start))
    indices_B[inside_B] = start + order[offset_B[inside_B]]
  return indices_B


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, number: int, size: int) -> np.ndarray:
  # Sorting raw bits: NumPy keeps a bit generator's stream stable across versions, but
  # not what Generator.permutation makes of it.
  bits = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(size)
  order = np.argsort(bits, kind="stable")
  order.setflags(write=False)
  return order
