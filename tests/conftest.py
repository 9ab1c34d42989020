"""Every test runs under `jax_numpy_rank_promotion="raise"`: `[B] - [B, 1]` is a bug."""

from collections.abc import Callable
import os
from pathlib import Path
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl.testing import flagsaver
import jax
import pytest

from alignment.runtime import compilation
from tests import quickly

jax.config.update("jax_numpy_rank_promotion", "raise")
quickly.collect_rarely()
quickly.remember(Path(__file__).parents[1] / ".pytest_cache" / compilation.machine())


# Files that take half a minute or more, first: or one of two workers would end late.
LONG = (
  "made_test", "soak_test", "hosts_test", "configs_test", "sharding_test",
  "loop_test", "t5_test", "startup_test",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """A file's tests go to one worker; all files that look at the nano study to one."""
  nano = {item.path for item in items if "nano" in getattr(item, "fixturenames", ())}
  for item in items:
    group = "nano" if item.path in nano else str(item.path)
    item.add_marker(pytest.mark.xdist_group(group))
  items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_configure(config: pytest.Config) -> None:
  if config.getoption("dist", "no") == "loadgroup" and pytest.version_tuple >= (9, 2):
    raise pytest.UsageError(
      f"pytest {pytest.__version__} hides the groups from xdist, and every worker "
      "would make every study: install requirements.lock"
    )


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
  """TFDS leaves an empty directory for every builder: not in the machine's own."""
  tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))


@pytest.fixture(scope="module")
def compile_quickly():
  """For modules whose programs take longer to compile than to run."""
  with quickly.compiled():
    yield


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
  """`cli(*arguments)` runs the command line in here: (status, stdout, stderr)."""
  from alignment import main
  from alignment.runtime import hosts, output

  monkeypatch.setattr(output, "prepare", lambda: None)  # for good
  monkeypatch.setattr(hosts, "start", lambda *_: None)  # leaves signals alone

  def run(*arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    capsys.readouterr()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
      main.cli()
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err

  return run
