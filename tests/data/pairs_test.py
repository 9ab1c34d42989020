"""Pair stores: ragged rows, damage on disk, order and index."""

import tracemalloc

import numpy as np
import pytest

from alignment.data import pairs
from alignment.types import UserError


def ragged(rows):
  offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
  return pairs.Ragged(np.array(sum(rows, []), np.int32), offsets)


def same(a, b):
  """Whether two data sets hold the same pairs, row by row."""
  return (
    len(a) == len(b)
    and a.columns.keys() == b.columns.keys()
    and all(
      np.array_equal(x[i], y[i])
      for x, y in zip((a.prompts, *a.responses), (b.prompts, *b.responses), strict=True)
      for i in range(len(a))
    )
    and all(np.array_equal(a.columns[k], b.columns[k]) for k in a.columns)
  )


@pytest.fixture
def dataset():
  rng = np.random.default_rng(0)

  def rows(longest):
    return [rng.integers(2, 250, rng.integers(1, longest + 1)).tolist()
            for _ in range(50)]  # fmt: skip

  tokens = pairs.PairDataset(ragged(rows(12)), (ragged(rows(16)), ragged(rows(16))))
  ref_logps_Px2 = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
  return tokens.with_columns(
    ref_logps=ref_logps_Px2, margin=np.arange(50, dtype=np.float32)
  )


def test_padded_equals_a_loop():
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 9, rng.integers(0, 7)).tolist() for _ in range(40)]
  r = ragged(rows)
  indices = rng.integers(0, 40, 100)
  tokens, lengths = r.padded(indices, 6)
  assert tokens.dtype == lengths.dtype == np.int32
  for i, row, length in zip(indices, tokens, lengths, strict=True):
    assert row.tolist() == rows[i] + [0] * (6 - len(rows[i])) and length == len(rows[i])
    assert r[i].tolist() == rows[i]
  assert len(r) == 40 and r.lengths.tolist() == [len(row) for row in rows]
  assert r.padded(np.array([], int), 6)[0].shape == (0, 6)


def test_ragged_errors():
  r = ragged([[1], [2, 3, 4], []])
  with pytest.raises(ValueError, match="row 1 has 3 tokens, over 2"):
    r.padded([2, 1, 0], 2)
  for i in (-1, 3):
    with pytest.raises(IndexError):
      r.padded([0, i], 4)
    with pytest.raises(IndexError):
      r[i]


def test_batch(dataset):
  indices_B = np.array([7, 3, 7])
  batch = dataset.batch(indices_B, 12, 16)
  assert batch.prompts_BxS.shape == (3, 12) and batch.responses_BxNxT.shape == (
    3,
    2,
    16,
  )
  for b, i in enumerate(indices_B):
    length = batch.prompt_lengths_B[b]
    assert batch.prompts_BxS[b, :length].tolist() == dataset.prompts[i].tolist()
    for n in (0, 1):
      length = batch.lengths_BxN[b, n]
      row = batch.responses_BxNxT[b, n]
      assert row[:length].tolist() == dataset.responses[n][i].tolist()
      assert not row[length:].any()
  np.testing.assert_array_equal(
    batch.ref_logps_BxN, dataset.columns["ref_logps"][indices_B]
  )
  assert batch.weights_B.tolist() == [1, 1, 1] and batch.ids_B.tolist() == [7, 3, 7]
  dtypes = {name: array.dtype for name, array in vars(batch).items()}
  floats = {"ref_logps_BxN", "weights_B"}
  assert dtypes == {k: np.float32 if k in floats else np.int32 for k in dtypes}


def test_batch_columns_are_optional(dataset):
  bare = pairs.PairDataset(dataset.prompts, dataset.responses)
  assert not bare.batch([1, 2], 12, 16).ref_logps_BxN.any()
  named = bare.with_columns(ids=np.arange(50) + 1000)
  assert named.batch([1, 2], 12, 16).ids_B.tolist() == [1001, 1002]
  with pytest.raises(ValueError, match="over 4"):
    bare.batch(np.arange(50), 12, 4)


def test_columns_have_a_row_per_pair(dataset):
  with pytest.raises(ValueError, match="margin has 49 rows, prompts has 50"):
    dataset.with_columns(margin=np.zeros(49, np.float32))


def test_save_and_load(dataset, tmp_path):
  (tmp_path / "column.stale.npy").write_bytes(b"left by a killed attempt")
  dataset.save(tmp_path)
  loaded = pairs.PairDataset.load(tmp_path)
  assert same(loaded, dataset)
  assert isinstance(loaded.prompts.values, np.memmap)
  with pytest.raises(ValueError, match="read-only"):
    loaded.prompts.values[0] = 1
  # A data set may be saved over the files that it is mapped from.
  loaded.with_columns(extra=np.ones(50)).save(tmp_path)
  assert same(loaded, dataset)
  assert "extra" in pairs.PairDataset.load(tmp_path).columns


def test_no_row_need_have_tokens(tmp_path):
  empty = ragged([[], []])
  pairs.PairDataset(empty, (empty, empty)).save(tmp_path)
  assert len(pairs.PairDataset.load(tmp_path)) == 2


FILES = [
  f"{part}.{kind}.npy"
  for part in ("prompts", "responses0", "responses1")
  for kind in ("values", "offsets")
]


@pytest.mark.parametrize("name", [*FILES, "column.margin.npy"])
def test_cut_files(dataset, tmp_path, name):
  dataset.save(tmp_path)
  whole = (tmp_path / name).read_bytes()
  for keep in (0, 5, 40, 100, 128, len(whole) - 1):
    (tmp_path / name).write_bytes(whole[:keep])
    with pytest.raises(UserError, match=f"{name}: missing or damaged") as error:
      pairs.PairDataset.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_files(dataset, tmp_path, name):
  dataset.save(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=f"{name}: missing or damaged"):
    pairs.PairDataset.load(tmp_path)


def test_any_damaged_header_is_a_user_error_or_harmless(dataset, tmp_path):
  dataset.save(tmp_path)
  path = tmp_path / "prompts.offsets.npy"
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(300):
    damaged = bytearray(whole)
    damaged[rng.integers(0, 80)] = rng.integers(0, 256)
    path.write_bytes(damaged)
    try:
      assert same(pairs.PairDataset.load(tmp_path), dataset)
    except UserError as e:
      assert "prompts" in str(e)
      refused += 1
  assert refused > 200


@pytest.mark.parametrize(
  "offsets",
  [
    np.array([0, 2, 1, 3]),  # not monotone
    np.array([1, 2, 3, 3]),  # does not start at 0
    np.array([0, 1, 2, 4]),  # ends past the values
    np.array([0, 1, 2, 3], np.int32),
    np.array([0.0, 1, 2, 3]),
    np.array([[0, 3]]),
    np.zeros(0, np.int64),
  ],
)
def test_offsets_that_do_not_fit(tmp_path, offsets):
  r = ragged([[1], [2], [3]])
  pairs.PairDataset(r, (r, r)).save(tmp_path)
  np.save(tmp_path / "responses1.offsets.npy", offsets)
  with pytest.raises(UserError, match="responses1.offsets.npy: does not fit"):
    pairs.PairDataset.load(tmp_path)


def test_files_of_different_data_sets(dataset, tmp_path):
  dataset.save(tmp_path)
  np.save(tmp_path / "column.margin.npy", np.zeros(3))
  with pytest.raises(UserError, match="do not belong together .margin has 3 rows"):
    pairs.PairDataset.load(tmp_path)


def test_objects_are_not_unpickled(dataset, tmp_path):
  dataset.save(tmp_path)
  np.save(tmp_path / "column.margin.npy", np.array([print] * 50, object))
  with pytest.raises(UserError, match="column.margin.npy: missing or damaged"):
    pairs.PairDataset.load(tmp_path)


def test_with_order_swaps_both_responses_and_their_columns(dataset):
  swap = np.random.default_rng(2).random(50) < 0.5
  swapped = dataset.with_order(swap)
  for i in range(50):
    for n in (0, 1):
      source = 1 - n if swap[i] else n
      np.testing.assert_array_equal(
        swapped.responses[n][i], dataset.responses[source][i]
      )
      assert (
        swapped.columns["ref_logps"][i, n] == dataset.columns["ref_logps"][i, source]
      )
  np.testing.assert_array_equal(swapped.columns["margin"], dataset.columns["margin"])
  assert same(swapped.with_order(swap), dataset)
  assert same(dataset.with_order(np.zeros(50, bool)), dataset)
  for bad in (np.zeros(49, bool), np.zeros(50, int)):
    with pytest.raises(ValueError, match="not bool"):
      dataset.with_order(bad)


def test_distinct_prompts_are_all_of_them_once_in_an_order_of_the_seed():
  prompts = [[i % 7, 3] for i in range(40)]
  one = pairs.Ragged(np.array(prompts, np.int32).ravel(), 2 * np.arange(41))
  dataset = pairs.PairDataset(one, (one, one))
  chosen = [pairs.distinct_prompts(dataset, 5, seed) for seed in (0, 0, 1)]
  assert [len(set(c % 7)) for c in chosen] == [5] * 3  # row i has prompt i mod 7
  assert (chosen[0] == chosen[1]).all() and (chosen[0] != chosen[2]).any()
  assert len({tuple(sorted(c % 7)) for c in chosen}) == 2
  assert sorted(pairs.distinct_prompts(dataset, 100, 0) % 7) == list(range(7))


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_rows_are_copied_in_blocks_of_any_size(dataset, monkeypatch, rows):
  bare = pairs.PairDataset(dataset.prompts, dataset.responses)
  swap = np.random.default_rng(3).random(50) < 0.5
  twice = pairs.PairDataset.concatenate([bare, bare.with_order(swap)])
  monkeypatch.setattr(pairs, "_ROWS", rows)
  assert same(pairs.PairDataset.concatenate([bare, bare.with_order(swap)]), twice)
  assert len(twice) == 100
  for i in range(50):
    assert twice.prompts[i].tolist() == twice.prompts[50 + i].tolist()
    for n in (0, 1):
      other = twice.responses[n ^ int(swap[i])][i]
      assert twice.responses[n][50 + i].tolist() == other.tolist()


def test_an_order_is_applied_on_disk():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 60, 200_000)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  rows = pairs.Ragged(np.zeros(offsets[-1], np.int32), offsets)
  one_token = pairs.Ragged(np.ones(len(lengths), np.int32), np.arange(len(offsets)))
  tracemalloc.start()
  swapped = pairs.PairDataset(rows, (rows, one_token)).with_order(lengths % 2 == 0)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert isinstance(swapped.responses[0].values, np.memmap)
  assert (swapped.responses[0].lengths == np.where(lengths % 2, lengths, 1)).all()
  assert peak < rows.values.nbytes / 2 + 4 * offsets.nbytes
