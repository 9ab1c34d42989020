"""Which rows a step reads: every epoch once, in an order of its own."""

import numpy as np
import pytest

from alignment.data import order


@pytest.mark.parametrize("size, batch_size", [(7, 3), (3, 7), (1, 4), (12, 4), (5, 5)])
def test_index_for_covers_each_epoch_once(size, batch_size):
  steps = [order.index_for(s, batch_size, size, seed=3) for s in range(6 * size)]
  epochs = np.concatenate(steps).reshape(-1, size)
  assert len(epochs) == 6 * batch_size
  np.testing.assert_array_equal(
    np.sort(epochs), np.tile(np.arange(size), (len(epochs), 1))
  )


@pytest.mark.parametrize("size, batch_size, window", [(7, 3, 2), (10, 4, 4), (3, 7, 2)])
def test_index_for_permutes_within_windows(size, batch_size, window):
  steps = [order.index_for(s, batch_size, size, 3, window) for s in range(6 * size)]
  epochs = np.concatenate(steps).reshape(-1, size)
  for start in range(0, size, window):
    rows = np.arange(start, min(start + window, size))
    within = epochs[:, start : start + window]
    np.testing.assert_array_equal(np.sort(within), np.tile(rows, (len(epochs), 1)))
    assert len(np.unique(within, axis=0)) > 1 or len(rows) == 1


def test_index_for_is_a_function_of_position():
  stream = np.concatenate([order.index_for(s, 4, 50, seed=1) for s in range(60)])
  again = np.concatenate([order.index_for(s, 8, 50, seed=1) for s in range(30)])
  np.testing.assert_array_equal(stream, again)
  assert not np.array_equal(stream[:50], stream[50:100])
  other = np.concatenate([order.index_for(s, 4, 50, seed=2) for s in range(60)])
  assert not np.array_equal(stream, other)
  far = order.index_for(10**12, 32, 50, seed=1)
  assert far.dtype == np.int64 and 0 <= far.min() <= far.max() < 50
  # Pinned, for a resumed run relies on it.
  assert order.index_for(0, 8, 8, seed=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
  assert order.index_for(3, 8, 8, seed=1).tolist() == [3, 2, 5, 4, 6, 1, 0, 7]
