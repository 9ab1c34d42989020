"""A recorded run: what is read is what was written, or an error that names it."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from alignment.core import rollout
from alignment.data import sources, stream
from alignment.runtime import sharding
from alignment.types import ScoredBatch, UserError
from tests import tiny

B, STEPS = 4, 6
MESH = sharding.make_mesh()
DESCRIBED = {"config": "0123", "vocabulary": "abcd", "select": "best_worst"}


def rolled(step: int, responses: int = 2, samples: int = 2) -> rollout.Rollout:
  """Of which two samples were selected, or all, where there are as many responses."""
  rng = np.random.default_rng(step)
  unused = tiny.batch(B, seed=step + 100, responses=samples - min(samples, responses))
  return rollout.Rollout(
    batch=tiny.batch(B, seed=step, responses=responses).replace(
      weights_B=rng.random(B, np.float32)
    ),
    unused_BxUxT=unused.responses_BxNxT,
    unused_lengths_BxU=unused.lengths_BxN,
    scores_BxN=rng.normal(size=(B, samples)).astype(np.float32),
    logps_BxN=rng.normal(size=(B, samples)).astype(np.float32),
    ended_BxN=rng.random((B, samples)) < 0.5,
  )


def record(directory, commits, first=0, change=lambda step, r: r, described=DESCRIBED):
  recorder = stream.Recorder(directory, described)
  for end in commits:
    for step in range(first, end):
      recorder.add(step, change(step, jax.tree.map(jax.numpy.asarray, rolled(step))))
    recorder.commit(end)
    first = end


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  directory = tmp_path_factory.mktemp("run") / "stream"
  record(directory, (2, 4, 6))
  return directory


@pytest.fixture
def copy(recorded, tmp_path):
  return shutil.copytree(recorded, tmp_path / "run" / "stream")


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def test_every_batch_comes_back_bit_for_bit(recorded):
  recorded_stream = stream.Stream.load(recorded, STEPS)
  assert len(recorded_stream) == STEPS * B and recorded_stream.num_responses == 2
  for step in (5, 0, 3):
    same(recorded_stream.batch(step * B + np.arange(B)), rolled(step).batch)
  rows = recorded_stream.rows(np.array([9, 2]))
  assert rows["step"].tolist() == [2, 0]
  for row, (step, b) in zip(rows, ((2, 1), (0, 2)), strict=True):
    for name in "scores", "logps", "ended":
      expected = getattr(rolled(step), f"{name}_BxN")[b]
      np.testing.assert_array_equal(row[name], expected)


def test_three_responses_are_kept(tmp_path):
  recorder = stream.Recorder(tmp_path, DESCRIBED)
  recorder.add(0, rolled(0, responses=3))
  recorder.commit(1)
  recorded_stream = stream.Stream.load(tmp_path, 1)
  assert recorded_stream.num_responses == 3
  same(recorded_stream.batch(np.arange(B)), rolled(0, responses=3).batch)


def test_samples_that_were_not_selected_are_kept(tmp_path):
  recorder = stream.Recorder(tmp_path, DESCRIBED)
  recorder.add(0, rolled(0, samples=5))
  recorder.commit(1)
  recorded_stream = stream.Stream.load(tmp_path, 1)
  rows, expected = recorded_stream.rows(np.arange(B)), rolled(0, samples=5)
  assert expected.unused_BxUxT.shape == (B, 3, tiny.T)
  np.testing.assert_array_equal(rows["unused"], expected.unused_BxUxT)
  np.testing.assert_array_equal(rows["unused_lengths"], expected.unused_lengths_BxU)
  np.testing.assert_array_equal(rows["scores"], expected.scores_BxN)
  batch = recorded_stream.batch(np.arange(B))
  same(batch, expected.batch)  # a pair like any other
  assert not isinstance(batch, ScoredBatch)


@pytest.mark.parametrize("samples", [2, 4])
def test_a_batch_of_all_samples_comes_back_with_their_scores(tmp_path, samples):
  r = rolled(0, responses=samples, samples=samples)
  r = r.replace(batch=ScoredBatch(**vars(r.batch), scores_BxN=r.scores_BxN))
  recorder = stream.Recorder(tmp_path, DESCRIBED | {"select": "all"})
  recorder.add(0, r)
  recorder.commit(1)
  same(stream.Stream.load(tmp_path, 1).batch(np.arange(B)), r.batch)


def source(recorded, window, seed=0):
  recorded_stream = stream.Stream.load(recorded, STEPS)
  return sources.StreamSource(recorded_stream, B, window, MESH, seed)


def order(recorded, window, epoch=0, seed=0) -> list[int]:
  """Rows in the order in which one epoch of a replay visits them."""
  replay = source(recorded, window, seed)
  everything = replay.stream.batch(np.arange(STEPS * B))
  place = {row.tobytes(): i for i, row in enumerate(everything.ref_logps_BxN)}
  assert len(place) == STEPS * B  # rows can be told apart
  batches = (replay.host_batch(epoch * STEPS + s) for s in range(STEPS))
  return [place[row.tobytes()] for b in batches for row in b.ref_logps_BxN]


def test_in_order_it_is_the_run_itself(recorded):
  replay = source(recorded, window=0)
  for step in (0, 5, 2):
    same(replay.batch(step), rolled(step).batch)
  assert replay.batch(0).ref_logps_BxN.sharding == sharding.batch_sharding(MESH)
  assert order(recorded, 0, epoch=1) == list(range(STEPS * B))  # and begins again


def test_shuffled_within_windows_of_batches(recorded):
  rows = order(recorded, window=4)  # 6 batches: windows of 4 and 2
  first, second = rows[: 4 * B], rows[4 * B :]
  assert sorted(first) == list(range(4 * B)) != first
  assert sorted(second) == list(range(4 * B, 6 * B)) != second
  assert max(abs(row - i) for i, row in enumerate(rows)) >= B  # out of its batch
  assert len({tuple(order(recorded, 4, epoch)) for epoch in range(3)}) == 3


def test_windows_are_batches_of_the_recorded_run(recorded):
  """Whatever batches the replay learns from."""
  recorded_stream = stream.Stream.load(recorded, STEPS)
  halves = sources.StreamSource(recorded_stream, B // 2, 2, MESH, 0)
  rows = np.concatenate([halves.host_batch(s).ref_logps_BxN for s in range(4)])
  recorded_rows = recorded_stream.batch(np.arange(2 * B)).ref_logps_BxN
  assert sorted(map(tuple, rows)) == sorted(map(tuple, recorded_rows))
  first = {tuple(row) for row in rows[:B]}
  assert first - {tuple(row) for row in recorded_rows[:B]}  # not within B // 2 * 2 rows


def test_shuffled_over_all(recorded):
  rows = order(recorded, window=-1)
  assert sorted(rows) == list(range(STEPS * B))
  assert any(row >= 4 * B for row in rows[: 4 * B])
  assert rows != order(recorded, window=-1, seed=1)
  assert rows == order(recorded, window=1000)  # a window beyond the end is all


def test_what_was_not_committed_is_not_there(tmp_path):
  directory = tmp_path / "stream"
  recorder = stream.Recorder(directory, DESCRIBED)
  for step in range(3):
    recorder.add(step, rolled(step))
    if step == 1:
      recorder.commit(2)
  with pytest.raises(UserError, match="records steps up to 2 of 3; delete"):
    stream.Stream.load(directory, 3)
  assert [p.name for p in directory.iterdir() if p.name.startswith(".")] == []


def test_a_resumed_run_records_again_and_must_match(copy):
  before = {p.name: p.read_bytes() for p in copy.iterdir()}
  record(copy, (4, 6), first=2)
  assert {p.name: p.read_bytes() for p in copy.iterdir()} == before

  for changed, shard in ((3, "00000002-00000004"), (5, "00000004-00000006")):

    def change(step, r, changed=changed):
      return r.replace(scores_BxN=r.scores_BxN + (step == changed))

    with pytest.raises(UserError, match=f"steps-{shard}.*came out differently"):
      record(copy, (4, 6), first=2, change=change)
    stream.Stream.load(copy, STEPS)  # what was there is still whole


def test_other_commit_points_replace_what_they_overlap(copy):
  record(copy, (3, 6), first=2)
  recorded_stream = stream.Stream.load(copy, STEPS)
  for step in range(STEPS):
    same(recorded_stream.batch(step * B + np.arange(B)), rolled(step).batch)


def test_steps_must_match_whatever_the_commit_points(copy):
  def change(step, r):
    return r.replace(scores_BxN=r.scores_BxN + (step == 3))

  with pytest.raises(UserError, match="recorded again, step 3 came out differently"):
    record(copy, (5, 6), first=2, change=change)
  stream.Stream.load(copy, STEPS)  # what was there is still whole
  record(copy, (5, 6), first=2)
  assert sorted(p.name for p in copy.glob("steps-*")) == [
    f"steps-{first:08d}-{end:08d}.array_record"
    for first, end in ((0, 2), (2, 5), (5, 6))
  ]


def test_a_recorder_refuses_the_record_of_another_run(copy):
  with pytest.raises(UserError, match="manifest.json: is not of this run .vocabulary"):
    stream.Recorder(copy, DESCRIBED | {"vocabulary": "other"})


SHARD = "steps-00000002-00000004.array_record"


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda d: (d / SHARD).unlink(), f"{SHARD}: missing"),
    (lambda d: (d / SHARD).write_bytes(b""), f"{SHARD}: damaged .its checksum"),
    (
      lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:-9]),
      f"{SHARD}: damaged",
    ),
    (lambda d: shutil.copy(d / "steps-00000000-00000002.array_record", d / SHARD),
     f"{SHARD}: damaged"),
    (lambda d: (d / "manifest.json").unlink(), "manifest.json: missing"),
    (lambda d: (d / "manifest.json").write_text("{"), "manifest.json: damaged"),
    (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json: damaged"),
  ],
)  # fmt: skip
def test_damage_is_named(copy, damage, message):
  damage(copy)
  with pytest.raises(UserError, match=message):
    stream.Stream.load(copy, STEPS)


def test_a_manifest_cannot_lead_elsewhere_nor_skip(copy):
  path = copy / "manifest.json"
  manifest = json.loads(path.read_text())
  shards = manifest["shards"]
  for changed, message in (
    ([shards[0] | {"file": "../elsewhere"}, *shards[1:]], "outside of its directory"),
    ([shards[0], shards[2]], "records steps up to 2 of 6"),
    ([shards[0] | {"records": 7}, *shards[1:]], "8 records, 7 by the manifest"),
  ):
    path.write_text(json.dumps(manifest | {"shards": changed}))
    with pytest.raises(UserError, match=message):
      stream.Stream.load(copy, STEPS)


def test_a_hybrid_batch_keeps_the_data_sets_pairs_after_the_sampled_ones():
  prompts, sampled = tiny.batch(B, seed=0), tiny.batch(B, seed=1)
  offline = types.SimpleNamespace(batch=lambda _: prompts, batch_size=B, mesh=MESH)
  shown = []
  hybrid = sources.OnlineSource(
    offline,
    lambda params, batch, key: types.SimpleNamespace(batch=sampled),
    jax.random.key(0),
    on_policy_fraction=0.7,  # 2.8 of 4 rows
    record=lambda step, r: shown.append(step),
  )
  batch = hybrid.batch(7, None)
  same(jax.tree.map(lambda x: x[:3], batch), jax.tree.map(lambda x: x[:3], sampled))
  same(jax.tree.map(lambda x: x[3:], batch), jax.tree.map(lambda x: x[3:], prompts))
  assert shown == [7]
