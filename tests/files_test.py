"""Small files: whole or absent, and one clear line where they are damaged."""

import json

import numpy as np
import pytest

from alignment import files
from alignment.types import UserError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
  path = tmp_path / "new" / "a.json"
  files.write_json(path, {"a": 1})

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(files.os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    files.write_json(path, {"a": 2})
  assert files.read_json(path) == {"a": 1}
  assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_json_is_sorted_and_has_no_nan(tmp_path):
  path = tmp_path / "a.json"
  files.write_json(path, {"b": 1, "a": [0.1]})
  assert list(json.loads(path.read_text())) == ["a", "b"]
  with pytest.raises(ValueError, match="JSON compliant"):
    files.write_json(path, float("nan"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", None])
def test_damaged_json_is_one_line_that_names_it(tmp_path, content):
  path = tmp_path / "a.json"
  if content is not None:
    path.write_bytes(content)
  reason = "missing" if content is None else "damaged"
  with pytest.raises(UserError, match=rf"a\.json: {reason}; delete .*to make it again"):
    files.read_json(path)


def test_npz_round_trip(tmp_path):
  path = tmp_path / "a.npz"
  arrays = {"x": np.arange(6).reshape(2, 3), "y": np.float32([0.5])}
  files.write_npz(path, **arrays)
  read = files.read_npz(path)
  assert read.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(read[name], array)
    assert read[name].dtype == array.dtype
  assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99, None])
def test_damaged_npz_is_one_line_that_names_it(tmp_path, keep):
  path = tmp_path / "a.npz"
  if keep is not None:
    files.write_npz(path, x=np.random.default_rng(0).random(100))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
  with pytest.raises(UserError, match=r"a\.npz: (missing|damaged); delete"):
    files.read_npz(path)
