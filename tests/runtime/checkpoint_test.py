"""Checkpoints: restored as they were, and one clear line where they do not fit."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.runtime import checkpoint, environment
from alignment.types import UserError
from tests.runtime.files_test import file_size_limit

PARAMS = {"encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def state(step):
  return {"step": jnp.int32(step), "params": jax.tree.map(jnp.asarray, PARAMS)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("stage")
  checkpoints = checkpoint.Checkpoints(directory)
  for step in (1, 2, 3):
    checkpoints.save_state(step, {"state": state(step)})
  checkpoints.save_params(2, PARAMS)
  checkpoints.close()
  return directory


def test_parameters_round_trip(saved):
  restored = checkpoint.restore_params(saved, 2, abstract(PARAMS))
  np.testing.assert_array_equal(
    restored["encoder"]["kernel"], PARAMS["encoder"]["kernel"], strict=True
  )


def test_newest_of_two_states(saved, capsys):
  assert sorted(p.name for p in (saved / "state").iterdir()) == ["2", "3"]
  checkpoints = checkpoint.Checkpoints(saved)
  restored = checkpoints.restore({"state": abstract(state(0))})
  checkpoints.close()
  assert restored is not None
  assert int(restored["state"]["step"]) == 3
  assert capsys.readouterr().out == ""  # the environment is the same: no warning


def test_nothing_saved_is_none(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.restore({"state": abstract(state(0))}) is None
  checkpoints.close()


def test_another_environment_warns(saved, monkeypatch, capsys):
  elsewhere = environment.environment(state(0)) | {"cores": 99}
  monkeypatch.setattr(environment, "environment", lambda _: elsewhere)
  checkpoints = checkpoint.Checkpoints(saved)
  restored = checkpoints.restore({"state": abstract(state(0))})
  assert restored is not None
  assert int(restored["state"]["step"]) == 3
  checkpoints.close()
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith(f"warning: {saved.name} resumes under cores 99, was")


def test_a_path_that_would_send_arrays_elsewhere_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"checkpoints: .* TensorStore reads it as a sla"):
    checkpoint.Checkpoints(tmp_path / "a\\b")
  assert not list(tmp_path.iterdir())


def test_states_wait_for_the_parameters_before_them(tmp_path, monkeypatch):
  """Else a kill between the two loses parameters that no resumed run writes again."""
  checkpoints = checkpoint.Checkpoints(tmp_path)
  calls = []
  waiting = checkpoints._params.wait_until_finished
  monkeypatch.setattr(
    checkpoints._params,
    "wait_until_finished",
    lambda: (calls.append("wait"), waiting()),
  )
  monkeypatch.setattr(
    checkpoints._states, "save", lambda step, **_: calls.append(f"state {step}")
  )
  checkpoints.save_params(2, PARAMS)
  calls.clear()
  checkpoints.save_state(2, {"state": state(2)})
  assert calls == ["wait", "state 2"]
  checkpoints.close()


@pytest.mark.parametrize(
  "other, message",
  [
    (
      {"encoder": {"kernel": np.zeros((2, 4), np.float32)}},
      r"parameter 'encoder/kernel' has shape \(2, 3\) there, \(2, 4\) in",
    ),
    (
      {"decoder": {"kernel": np.zeros((2, 3), np.float32)}},
      r"parameter 'decoder/kernel' has shape None there",
    ),
    (
      PARAMS | {"head": np.zeros(2, np.float32)},
      "parameter 'head' has shape None there",
    ),
  ],
)
def test_another_models_parameters(saved, other, message):
  with pytest.raises(UserError, match="checkpoint of another model .*: " + message):
    checkpoint.restore_params(saved, 2, abstract(other))


def test_missing_step(saved):
  with pytest.raises(
    UserError, match=r"params/7: no parameters saved at step 7; there are those of \["
  ):
    checkpoint.restore_params(saved, 7, abstract(PARAMS))


def largest(directory):
  return max(
    (p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )


def flip_every_byte(path):
  path.write_bytes(bytes(b ^ 0x10 for b in path.read_bytes()))


DAMAGE = {
  "no metadata": lambda d: next(d.rglob("_METADATA")).unlink(),
  "no manifest": lambda d: [p.unlink() for p in d.rglob("manifest.ocdbt")],
  "no data": lambda d: [shutil.rmtree(p) for p in d.rglob("d")],
  "empty file": lambda d: os.truncate(largest(d / "d"), 0),
  "half a file": lambda d: os.truncate(
    largest(d / "d"), largest(d / "d").stat().st_size // 2
  ),
  "flipped bits": lambda d: [flip_every_byte(p) for p in d.rglob("d/*") if p.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parameters_are_named(saved, tmp_path, damage):
  directory = tmp_path / "stage"
  shutil.copytree(saved / "params", directory / "params")
  DAMAGE[damage](directory / "params" / "2")
  with pytest.raises(UserError, match="params/2: damaged .*; delete") as error:
    checkpoint.restore_params(directory, 2, abstract(PARAMS))
  assert "\n" not in str(error.value)


def test_other_values_of_the_same_shapes_are_found(saved, tmp_path):
  """What no structure and no checksum of Orbax shows: only the fingerprint does."""
  directory = tmp_path / "stage"
  shutil.copytree(saved, directory)
  checkpoints = checkpoint.Checkpoints(directory)
  other = jax.tree.map(lambda x: x + np.float32(1e-7), PARAMS)
  checkpoints.save_params(5, other)
  checkpoints.close()
  metadata = "_CHECKPOINT_METADATA"
  shutil.copy(directory / "params/2" / metadata, directory / "params/5" / metadata)
  with pytest.raises(
    UserError, match="array 'encoder/kernel' is not as it was written"
  ):
    checkpoint.restore_params(directory, 5, abstract(PARAMS))


def test_other_values_in_a_state_are_found(saved, tmp_path, capsys):
  directory = tmp_path / "stage"
  shutil.copytree(saved, directory)
  checkpoints = checkpoint.Checkpoints(directory)
  other = jax.tree.map(lambda x: x + np.float32(1e-7), PARAMS)
  checkpoints.save_state(4, {"state": state(3) | {"params": other}})
  checkpoints.close()
  metadata = "_CHECKPOINT_METADATA"
  shutil.copy(directory / "state/3" / metadata, directory / "state/4" / metadata)
  checkpoints = checkpoint.Checkpoints(directory)
  restored = checkpoints.restore({"state": abstract(state(0))})
  checkpoints.close()
  np.testing.assert_array_equal(
    restored["state"]["params"]["encoder"]["kernel"], PARAMS["encoder"]["kernel"]
  )
  reason = "array 'state/params/encoder/kernel' is not as it was written"
  assert reason in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_intact_state_is_taken_with_a_warning(
  saved, tmp_path, damage, capsys
):
  directory = tmp_path / "stage"
  shutil.copytree(saved, directory)
  DAMAGE[damage](directory / "state" / "3" / "state")
  checkpoints = checkpoint.Checkpoints(directory)
  restored = checkpoints.restore({"state": abstract(state(0))})
  assert int(restored["state"]["step"]) == 2
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f"warning: {directory / 'state' / '3'} is damaged (")
  assert line.endswith("continues from step 2")
  checkpoints.save_state(3, {"state": state(3)})  # in the place of the damaged one
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(directory)
  assert int(checkpoints.restore({"state": abstract(state(0))})["state"]["step"]) == 3
  checkpoints.close()


def test_without_an_intact_state_a_person_decides(saved, tmp_path):
  directory = tmp_path / "stage"
  shutil.copytree(saved, directory)
  for step in "23":
    DAMAGE["no data"](directory / "state" / step / "state")
  checkpoints = checkpoint.Checkpoints(directory)
  with pytest.raises(UserError, match="state: no saved state is intact .*; delete"):
    checkpoints.restore({"state": abstract(state(0))})
  checkpoints.close()
  assert sorted(p.name for p in (directory / "state").iterdir()) == ["2", "3"]


def test_another_models_state_is_not_damage(saved):
  other = {"step": jnp.int32(0), "params": {"encoder": {"kernel": np.zeros((4, 3))}}}
  checkpoints = checkpoint.Checkpoints(saved)
  with pytest.raises(UserError, match="another model .*: parameter 'params"):
    checkpoints.restore({"state": abstract(other)})
  checkpoints.close()


def test_a_full_disk_is_one_line_and_the_state_before_it_stays(tmp_path):
  large = {"x": np.random.default_rng(0).random(100_000).astype(np.float32)}
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save_state(1, {"state": large})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with file_size_limit(50_000), pytest.raises(UserError) as error:
    checkpoints.save_state(2, {"state": large})
    checkpoints.close()
  assert str(error.value).startswith(
    f"{tmp_path}: a checkpoint could not be written (File too large); "
  )
  again = checkpoint.Checkpoints(tmp_path)
  restored = again.restore({"state": abstract(large)})
  np.testing.assert_array_equal(restored["state"]["x"], large["x"])
  again.save_state(2, {"state": large})
  again.close()
  assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["1", "2"]


def test_a_disk_that_is_too_full_is_told_before_a_write_begins(tmp_path, monkeypatch):
  x = {"x": np.zeros(1_000_000, np.float32)}
  checkpoints = checkpoint.Checkpoints(tmp_path)
  usage = shutil.disk_usage(tmp_path)._replace(free=3_900_000)
  monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
  for save in (checkpoints.save_params, checkpoints.save_state):
    with pytest.raises(
      UserError, match="takes 4.0 MB, but only 3.9 MB are free: make room"
    ):
      save(1, x)
  checkpoints.close()
  assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_masters_are_checked_as_what_they_are_restored_to(tmp_path):
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2**32, 10_000, np.uint32)
  x = bits.view(np.float32)  # denormals and ties among them
  x = np.where(np.isnan(x), np.float32(1), x)
  x[:4] = np.array([1.00390625, 1.01171875, 1e-40, -1e-40], np.float32)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save_params(1, {"x": x})
  checkpoints.close()
  as_read = {"x": jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)}
  restored = checkpoint.restore_params(tmp_path, 1, as_read)
  assert restored["x"].dtype == jnp.bfloat16
