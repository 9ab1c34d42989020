"""Small files: whole or absent, and one clear line where they are damaged."""

import contextlib
import hashlib
import json
import os
import resource

import numpy as np
import pytest

from alignment.runtime import files
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


def test_an_npz_of_other_arrays_is_damaged(tmp_path):
  files.write_npz(tmp_path / "a.npz", x=np.zeros(1))
  assert files.read_npz(tmp_path / "a.npz", "x").keys() == {"x"}
  with pytest.raises(UserError, match=r"a\.npz: damaged; delete"):
    files.read_npz(tmp_path / "a.npz", "x", "record")


def test_a_checksum_follows_the_file(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"one")
  assert files.checksum(path) == hashlib.sha256(b"one").hexdigest()
  path.write_bytes(b"three")
  assert files.checksum(path) == hashlib.sha256(b"three").hexdigest()
  with pytest.raises(UserError, match="missing: No such file"):
    files.checksum(tmp_path / "missing")
  os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
  with pytest.raises(UserError, match="pipe: is a pipe, which can be read only once"):
    files.checksum(tmp_path / "pipe")


def test_a_checksum_reads_an_unchanged_file_once(tmp_path, monkeypatch):
  path = tmp_path / "a"
  path.write_bytes(b"one")
  first = files.checksum(path)
  monkeypatch.setattr(files.hashlib, "file_digest", None)  # any reading would fail
  assert files.checksum(path) == first


def test_only_unfinished_files_are_swept(tmp_path):
  (tmp_path / "train").mkdir()
  for name in (".a.json.123.partial", "train/.b.npz.9.partial", "c.partial", ".d"):
    (tmp_path / name).write_text("x")
  files.sweep(tmp_path)
  left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
  assert left == {"c.partial", ".d"}


@contextlib.contextmanager
def file_size_limit(size: int):
  """Any file of this process that grows past `size` bytes fails, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, kind):
  path = tmp_path / f"a.{kind}"
  write, read = getattr(files, f"write_{kind}"), getattr(files, f"read_{kind}")
  small, large = ({"x": np.arange(n, dtype=np.int32)} for n in (1, 10_000))
  if kind == "npz":
    write(path, **small)
    with file_size_limit(4096), pytest.raises(OSError) as error:
      write(path, **large)
    np.testing.assert_array_equal(read(path)["x"], small["x"])
  else:
    write(path, small["x"].tolist())
    with file_size_limit(4096), pytest.raises(OSError) as error:
      write(path, large["x"].tolist())
    assert read(path) == small["x"].tolist()
  assert error.value.filename == str(path)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


# --- sealed directories ---


@pytest.fixture
def sealed(tmp_path):
  """A finished directory with a file, one below, and what no seal speaks for."""
  directory = tmp_path / "stage-key"
  files.write_json(directory / "config.json", {"a": 1})
  (directory / "train").mkdir()
  np.save(directory / "train" / "prompts.values.npy", np.arange(100, dtype=np.int32))
  for name in ("params/1/d", "state/1/d", "tensorboard/events", ".hidden"):
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("x")
  sums = files.seal(directory)
  assert sums.keys() == {"config.json", "train/prompts.values.npy"}
  files.write_json(directory / files.DONE, {"key": "key", "files": sums})
  return directory


def flip(path, at=-1):
  data = bytearray(path.read_bytes())
  data[at] ^= 1
  path.write_bytes(data)


DAMAGE = {
  "bit flip": (
    lambda d: flip(d / "train/prompts.values.npy"),
    "train/prompts.values.npy: damaged; delete .* to make it again",
  ),
  "cut": (
    lambda d: os.truncate(d / "train/prompts.values.npy", 300),
    "train/prompts.values.npy: damaged; delete .* to make it again",
  ),
  "missing": (
    lambda d: (d / "config.json").unlink(),
    "config.json: missing; delete .* to make it again",
  ),
  "foreign config": (
    lambda d: files.write_json(d / "config.json", {"a": 2}),
    "config.json: damaged; delete .* to make it again",
  ),
  "foreign file": (
    lambda d: np.save(d / "train/column.margin.npy", np.zeros(3)),
    "train/column.margin.npy: does not belong to this artefact; remove it",
  ),
  "foreign marker": (
    lambda d: files.write_json(d / files.DONE, {"key": "other", "files": {}}),
    r"done.json: of another artefact \(other\); delete .* to make it again",
  ),
  "torn marker": (
    lambda d: os.truncate(d / files.DONE, 40),
    "done.json: damaged; delete .* to make it again",
  ),
  "empty marker": (
    lambda d: (d / files.DONE).write_text("{}"),
    "done.json: damaged; delete .* to make it again",
  ),
  "no marker": (
    lambda d: (d / files.DONE).unlink(),
    "done.json: missing; delete .* to make it again",
  ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_and_named(sealed, case):
  damage, message = DAMAGE[case]
  damage(sealed)
  with pytest.raises(UserError, match=message) as error:
    files.verify(sealed, "key")
  assert "\n" not in str(error.value)
  if "delete" in message:  # the whole artefact, wherever in it the file is
    assert f"delete {sealed} to make it again" in str(error.value)


def test_what_is_intact_is_verified_once_per_process(sealed, monkeypatch):
  files.verify(sealed, "key")
  (sealed / "tensorboard" / "more").write_text("x")
  monkeypatch.setattr(files, "_sealed", None)  # any further look would fail
  files.verify(sealed, "key")


# --- paths that users give ------------------------------------------------------------


def test_home_is_expanded_in_any_path(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert files.path_option("~/a/~", "--config.data.path") == tmp_path / "a" / "~"
  assert files.directory_option("~", "--workdir") == tmp_path
  assert files.directory_option("a b/*?é", "--workdir") == tmp_path / "a b" / "*?é"
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "text, reason",
  [
    ("", "--workdir is empty"),
    ("~nobody_of_this_name/a", "begins with ~nobody_of_this_name, whose home"),
    ("gs://bucket/a", "'gs://bucket/a' is an address, not a path; mount what is at gs"),
    ("a[1]/b", "has '[' in it, and Orbax reads brackets as a pattern: take"),
    ("a\\b", "has '\\' in it, and TensorStore reads it as a slash: take"),
    ("runs/logs:/b", "has 'gs:' in it, and Orbax reads it as an address: take"),
    ("/gs/bucket", "has '/gs/' in it, and Orbax reads it as an address: take"),
    ("a\nb", "has unprintable characters, or is not UTF-8"),
    ("a\udc80b", "has unprintable characters, or is not UTF-8"),
    ("file/b/c", "/file is not a directory"),
    ("file", "/file is not a directory"),
    ("locked/b/c", "/locked is not writable"),
    ("a" * 300 + "/b", "File name too long"),
  ],
)
def test_a_directory_that_cannot_be_used_is_one_line(
  tmp_path, monkeypatch, text, reason
):
  def access(path, mode):  # as of a user who is not root
    return os.stat(path).st_mode & 0o222 != 0

  monkeypatch.setattr(files.os, "access", access)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()
  (tmp_path / "locked").mkdir(mode=0o555)
  with pytest.raises(UserError) as raised:
    files.directory_option(text, "--workdir")
  line = str(raised.value)
  assert line.startswith("--workdir") and reason in line
  assert line.isprintable()
