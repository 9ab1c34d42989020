"""Kills a study again and again; what it leaves must equal an undisturbed study's.

  python -m tests.endurance.soak --kills=50 --seed=0

A victim is the command line itself in a process whose `os.rename` and `os.replace` are
wrapped: it dies by SIGKILL right before or right after one of them (they are where
anything becomes visible: files, checkpoints, done-markers), or some time after. Every
kill is armed only once the victim has committed something new, so each attempt gets
further than the one before. Nothing in the program knows of this.
"""

from collections import Counter
from collections.abc import Callable
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from tests import quickly

ROOT = Path(__file__).parents[2]
_ORBAX = ("params", "state")
_TIMED = ("tensorboard", "locks")  # hold times, or nothing
_DRAWN = (".png", ".html")


@dataclasses.dataclass(frozen=True)
class Kill:
  """After `progress` new commits: at the next one, or `seconds` later."""

  progress: int
  how: str  # before, after, clock
  seconds: float = 0.0


def plan(kills: int, seed: int) -> list[Kill]:
  """Half at commit points (in turn before and after them), half by the clock."""
  rng = random.Random(seed)
  found = []
  for i in range(kills):
    how = "clock" if i % 2 else ("before", "after")[i // 2 % 2]
    seconds = rng.uniform(0, 1.5) if how == "clock" else 0.0
    found.append(Kill(rng.randint(1, 5), how, seconds))
  return found


def victim(kill: Kill, report: Path) -> None:
  """Arms this process; it writes what it died at to `report`."""
  lock, commits = threading.Lock(), [0]

  def die(at: str) -> None:
    report.write_text(at)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

  def wrapped(rename: Callable[..., None], source: Any, target: Any, **kwargs) -> None:
    with lock:
      armed = commits[0] >= kill.progress
      new = not os.path.exists(target)
      if armed and kill.how == "before":
        die(f"before {kind(target)}")
      rename(source, target, **kwargs)
      if armed and kill.how == "after":
        die(f"after {kind(target)}")
      commits[0] += new
      if commits[0] == kill.progress and new and kill.how == "clock":
        threading.Timer(kill.seconds, die, ["clock"]).start()

  for name in ("rename", "replace"):
    setattr(os, name, functools.partial(wrapped, getattr(os, name)))


def kind(path: Any) -> str:
  """What a commit commits: a file's name, or which kind of checkpoint."""
  path = Path(path)
  name = path.name if path.parent.name not in _ORBAX else path.parent.name
  return re.sub(r"\d+", "#", name)


def snapshot(workdir: Path) -> dict[str, str]:
  """Checksums of all that a study leaves: files as bytes, checkpoints as arrays."""
  import jax
  import orbax.checkpoint as ocp

  found = {}
  for path in sorted(workdir.rglob("*")):
    name = path.relative_to(workdir)
    hidden = any(part.startswith(".") for part in name.parts)
    if hidden or path.is_dir() or path.suffix in _DRAWN:
      continue
    if not {*_ORBAX, *_TIMED} & set(name.parts):
      found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
  with ocp.StandardCheckpointer() as checkpointer:
    saved = [*workdir.glob("artefacts/*/params/*")]
    saved += workdir.glob("artefacts/*/state/*/[!_]*")
    for directory in filter(Path.is_dir, saved):
      tree = checkpointer.restore(directory)
      digest = hashlib.sha256()
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(jax.device_get(leaf).tobytes())
      found[str(directory.relative_to(workdir))] = digest.hexdigest()
  return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
  """Names of what is missing, additional or different."""
  names = expected.keys() | found.keys()
  return sorted(name for name in names if expected.get(name) != found.get(name))


class Study:
  """A study that is run to its end, or until it is killed."""

  def __init__(self, config: Path, scratch: Path, options: tuple[str, ...] = ()):
    self.options = (f"--config={config}", *options)
    self.scratch = scratch
    self.environment = {
      **os.environ,
      **quickly.ENVIRONMENT,
      "JAX_PLATFORMS": "cpu",
      # The first run compiles, all others load: a restart then takes seconds.
      "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

  def run(self, workdir: Path, kill: Kill | None = None) -> str | None:
    """What it died at; None if it ended.

    Raises:
      RuntimeError: if it failed otherwise.
    """
    report = self.scratch / "died"
    report.unlink(missing_ok=True)
    asked = json.dumps(dataclasses.asdict(kill) if kill else None)
    program = [
      sys.executable,
      "-m",
      "tests.endurance.soak",
      "--victim",
      asked,
      str(report),
    ]
    done = subprocess.run(
      [*program, *self.options, f"--workdir={workdir}"],
      cwd=ROOT,
      env=self.environment,
      capture_output=True,
      text=True,
    )
    if done.returncode == -signal.SIGKILL and report.exists():
      return report.read_text()
    if done.returncode:
      raise RuntimeError(f"status {done.returncode}: {done.stdout}\n{done.stderr}")
    return None

  def survives(self, kills: list[Kill]) -> tuple[list[str], int]:
    """What each kill hit, and how many studies it took; fails on any difference."""
    self.run(self.scratch / "undisturbed")
    expected = snapshot(self.scratch / "undisturbed")
    remaining, hits, studies = list(kills), [], 0
    while remaining:
      workdir = self.scratch / f"killed{studies}"
      while (
        died := self.run(workdir, remaining[0] if remaining else None)
      ) is not None:
        hits.append(died)
        remaining.pop(0)
        print(f"kill {len(hits)} of {len(kills)}: {died}", flush=True)
      different = differences(expected, snapshot(workdir))
      if different:
        raise AssertionError(f"{len(different)} differ: {different}")
      shutil.rmtree(workdir)
      studies += 1
    return hits, studies


def main(kills: int, seed: int) -> None:
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as scratch:
    config = ROOT / "tests" / "studies.py:soak"
    hits, studies = Study(config, Path(scratch)).survives(plan(kills, seed))
  for at, count in sorted(Counter(hits).items()):
    print(f"{count:4} {at}")
  print(
    f"soak: {len(hits)} kills (seed {seed}) of {studies} studies survived, all files "
    f"and arrays as undisturbed; {time.monotonic() - start:.0f} s"
  )


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  if sys.argv[1] == "--victim":
    asked = json.loads(sys.argv[2])
    if asked is not None:
      victim(Kill(**asked), Path(sys.argv[3]))
    sys.argv[1:] = sys.argv[4:]
    from alignment import main as main_lib

    quickly.collect_rarely()
    main_lib.cli()
  else:
    options = dict(option.removeprefix("--").split("=") for option in sys.argv[1:])
    main(int(options.get("kills", 50)), int(options.get("seed", 0)))
