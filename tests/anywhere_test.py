"""The program runs from any directory: from a checkout, and as an installed package."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from alignment.runtime import allocator
from tests import quickly

ROOT = Path(__file__).parents[1]
OWN = """
from alignment.study import documents

base = documents.load("base.py", beside=__file__)


def get_config():
  c = base.get_config("bytes")
  c.data.validation_fraction = 0.3
  return c
"""


def run(
  cwd: Path, package: Path, *arguments: str, **environment: str
) -> tuple[str, str]:
  """`python -m arguments` of the modules in `package`; (stdout, stderr)."""
  done = subprocess.run(
    [sys.executable, "-m", *arguments],
    cwd=cwd,
    env={
      **os.environ, **quickly.ENVIRONMENT, allocator.NAME: "", "HOME": str(cwd),
      "PYTHONPATH": str(package), **environment,
    },
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout, done.stderr


def test_a_checkout_runs_from_elsewhere(tmp_path):
  out, _ = run(
    tmp_path, ROOT, "alignment.main", f"--config={ROOT}/configs/study.py:figure_01",
    "--workdir=~/results", "--dry_run",
  )  # fmt: skip
  assert "to do  golden_pm" in out and not (tmp_path / "~").exists()
  out, _ = run(
    tmp_path, ROOT, "launch.sweep", f"--config={ROOT}/configs/study.py:figure_14",
    f"--sweep={ROOT}/configs/sweeps/scaling.py", "--workdir=results", "--dry_run",
  )  # fmt: skip
  assert f"--workdir={tmp_path}/results" in out


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
  """Where `pip install .` has put a copy of this source, which is no longer there."""
  source, target = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
  for name in ("alignment", "launch", "configs", "tests"):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  for name in ("setup.py", "pyproject.toml"):
    shutil.copy(ROOT / name, source)
  subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
     "--no-build-isolation", "--no-compile", "--target", str(target), str(source)],
    check=True,
  )  # fmt: skip
  shutil.rmtree(source)
  return target


def test_an_installed_package_is_whole(installed):
  """Every module, and what the data sets and the launcher read besides."""
  for room in ("alignment", "launch"):
    files = {
      path.relative_to(ROOT)
      for path in (ROOT / room).rglob("*")
      if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(files) > 10
    assert not [file for file in files if not (installed / file).is_file()]
  assert not (installed / "configs").exists() and not (installed / "tests").exists()


def test_an_installed_package_runs_a_document_of_ones_own(installed, tmp_path):
  """On any terminal, too: a text that its encoding lacks is shown as escapes."""
  base = (ROOT / "configs" / "hh_small.py").read_text()
  (tmp_path / "base.py").write_text(base)
  (tmp_path / "own.py").write_text(OWN)
  row = '{"prompt": "%d", "chosen": "\\u2600 \U0001f600!", "rejected": "No."}\n'
  (tmp_path / "pairs.jsonl").write_text(
    "".join(row % i for i in range(40)), encoding="utf-8"
  )
  out, _ = run(
    tmp_path, installed, "alignment.main", "--config=own.py", "--workdir=results",
    "--config.data.path=~/pairs.jsonl", "--stages=show_batch",
    PYTHONIOENCODING="ascii",
  )  # fmt: skip
  assert (tmp_path / "results" / "artefacts").is_dir()
  assert "--- pair" in out and "\\ufffd" in out  # an emoji's bytes, one by one
