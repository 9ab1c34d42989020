"""Interrupts a study again and again: each time it ends at once, with one line.

  python -m tests.endurance.interrupts --tries=100 --seed=0

As Ctrl-C in a terminal does, SIGINT goes to all processes of the study. Every second
try has two workers. What an interrupted study leaves is continued by the next try.
"""

from collections import Counter
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from alignment.runtime import interrupts
from tests.endurance import soak

# Before the program's first line Python answers SIGINT itself, with a traceback, and
# what a shell runs in the background ignores it. So it waits here, until it is heard.
_LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("launched", flush=True)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def interrupt(study: soak.Study, workdir: Path, workers: int, seconds: float) -> bool:
  """Interrupts a study so long after its start; False if it has ended before.

  Raises:
    AssertionError: if it ends with more than a line, with another status, not within a
      minute, or without one of its processes.
  """
  program = [sys.executable, "-c", _LAUNCHER, "-m", "alignment.main", *study.options]
  with subprocess.Popen(
    [*program, f"--workdir={workdir}", f"--config.workers={workers}"],
    cwd=soak.ROOT,
    env=study.environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,  # a process group of its own
  ) as process:
    try:
      assert process.stdout is not None
      process.stdout.readline()
      time.sleep(seconds)
      if process.poll() is not None:
        status = process.returncode
      else:
        os.killpg(process.pid, signal.SIGINT)
        status = process.wait(60)
      told = process.communicate(timeout=60)[1]
      at = f"{workers} workers, {seconds:.3f} s: status {status}, {told!r}"
      assert (status, told) in ((interrupts.STATUS, interrupts.LINE), (0, "")), at
      assert not _is_alive(process.pid), f"{at}, but a process is left"
      return status != 0
    finally:
      if _is_alive(process.pid):
        os.killpg(process.pid, signal.SIGKILL)


def _is_alive(group: int) -> bool:
  try:
    os.killpg(group, 0)
    return True
  except ProcessLookupError:
    return False


def main(tries: int, seed: int) -> None:
  start, rng = time.monotonic(), random.Random(seed)
  ends: Counter[str] = Counter()
  with tempfile.TemporaryDirectory() as scratch:
    study = soak.Study(soak.ROOT / "tests" / "studies.py", Path(scratch))
    workdir = Path(scratch) / "interrupted"
    while ends["interrupted"] < tries:
      workers = 1 + ends["interrupted"] % 2
      if interrupt(study, workdir, workers, rng.uniform(0, 12)):
        ends["interrupted"] += 1
      else:
        ends["ended"] += 1
        shutil.rmtree(workdir)
  print(
    f"interrupts: {tries} (seed {seed}) ended with one line and status "
    f"{interrupts.STATUS}, {ends['ended']} studies ended before; "
    f"{time.monotonic() - start:.0f} s"
  )


if __name__ == "__main__":
  options = dict(option.removeprefix("--").split("=") for option in sys.argv[1:])
  main(int(options.get("tries", 100)), int(options.get("seed", 0)))
