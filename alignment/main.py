"""The command line: everything a configuration describes, or some of its stages.

  python -m alignment.main --config=configs/quickstart.py --workdir=/tmp/quickstart
  python -m alignment.main --config=... --workdir=... --config.policy.beta=0.5
  python -m alignment.main --config=... --workdir=... --stages=show_batch

Finished stages are skipped; a killed one resumes. On several hosts the same command
runs on each (alignment/runtime/hosts.py). SIGTERM saves and exits with status 75.
"""

from collections.abc import Callable
import errno
import os
from pathlib import Path
import re
import subprocess
import sys
import traceback
import warnings

from alignment.runtime import allocator, interrupts

if __name__ == "__main__":  # before imports that take a second
  interrupts.end_at_once()
  allocator.keep_memory()

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from alignment.runtime import hosts, supervise, workers
from alignment.types import PREEMPTED_STATUS, Preempted, UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The study's configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of artefacts and results.")
_STAGES = flags.DEFINE_list(
  "stages", [], "Some stages by name (and what they need), instead of the whole study."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print the stages (of --stages) and whether each is done."
)
_WORKER = flags.DEFINE_integer(
  "worker", 0, "Index of a local worker; set by the first."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "HOST:PORT of process 0, where several processes run this; TPU hosts find it.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", -1, "How many processes run this.", lower_bound=-1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", -1, "Which of them this is, from 0.", lower_bound=-1
)
_HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds",
  100,
  "Silence after which a process counts as dead, and the others stop.",
  lower_bound=1,
)

_SCHEMA = "alignment/study/schema.py"
_OF_THE_DISK = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  # Of paths that lead elsewhere than they should.
  errno.EEXIST,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ENOTEMPTY,
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise UserError(f"unexpected argument '{argv[1]}': options start with --")
  for flag in ("config", "workdir"):
    if not flags.FLAGS[flag].value:
      raise UserError(f"--{flag} is required")
  config, workdir = _CONFIG.value, Path(_WORKDIR.value or "")
  if set("[]") & set(str(workdir.absolute())):
    raise UserError(
      f"--workdir: {workdir.absolute()} has brackets, which Orbax expands"
    )
  count = config.workers if not (_STAGES.value or _DRY_RUN.value) else 1
  processes = hosts.configured(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  status_pipe = None
  if processes is not None:
    if count > 1:
      raise UserError(
        f"workers={count} share one host without accelerators; with several "
        "processes, or on a TPU, set --config.workers=1"
      )
    status_pipe = supervise.supervise(_HEARTBEAT.value)
  workers.share_cores(_WORKER.value, count)
  if _WORKER.value:
    supervise.die_with_parent()
  hosts.start(processes, _HEARTBEAT.value, status_pipe)
  from alignment.study import commands, graph

  commands.check_keys(config)
  if _DRY_RUN.value:
    commands.dry_run(config, workdir, _STAGES.value)
    return
  graph.build_all(config)  # a bad configuration is one line, not one of every worker
  fellows = [] if _WORKER.value else start_fellows(count)
  try:
    commands.run(config, workdir, _STAGES.value, lambda: check(fellows))
    for fellow in fellows:
      fellow.wait()
    check(fellows)
    if not _WORKER.value and not _STAGES.value:
      commands.finish(config, workdir)
  finally:
    for fellow in fellows:
      fellow.terminate()
    for fellow in fellows:
      fellow.wait()
  hosts.end()


def start_fellows(count: int) -> list[subprocess.Popen]:
  """The other workers of this machine: this command again, with an index."""
  command = [sys.executable, "-m", "alignment.main", *sys.argv[1:]]
  return workers.start([[*command, f"--worker={i}"] for i in range(1, count)])


def check(fellows: list[subprocess.Popen]) -> None:
  """Raises if a fellow worker was pre-empted or failed (it has said why)."""
  statuses = {fellow.poll() for fellow in fellows}
  if PREEMPTED_STATUS in statuses:
    raise Preempted("a worker was pre-empted")
  if statuses - {None, 0}:
    raise UserError("a worker failed, see above; the same command resumes")


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; an unknown or ill-typed key is one line that names it."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is not None:
      _CONFIG.value.lock()  # raises if the file could not be loaded
    return rest
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    RecursionError,  # of absl's search for a similar name, or a value of parentheses
    MemoryError,
    SyntaxError,
  ) as error:
    text = error.args[0] if isinstance(error, KeyError) else error  # not its repr
    if raised := re.search(r"Traceback .*\n(\S[^\n]*)\s*$", str(text), re.DOTALL):
      text = raised[1]
    if unknown := re.match(r"'?Key \"(.*?)\" does not exist", str(text)):
      text = f"'{unknown[1]}' is no key of the configuration; all are in {_SCHEMA}"
    key = re.findall(r"\w+", str(text))[:1]  # ml_collections says "'key'", and no more
    for flag in (word.partition("=")[0] for word in argv):
      if flag.startswith("--config.") and set(key) & set(flag.split(".")[1:]):
        text = f"{flag} is no key of the configuration; all are in {_SCHEMA}"
    told = "".join(traceback.format_exception(error))
    at = re.findall(r'File "([^"]+)", line (\d+), in get_config', told)
    files = [word for word in argv if word.startswith("--config=") and raised]
    where = ":".join(at[-1]) if at else [*files, "options"][0]
    raise UserError(f"{where}: " + " ".join(str(text).split())) from None


def cli() -> None:
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or TensorFlow talks of it
  # Orbax tells every step of every save, and raises its errors besides logging them.
  logging.set_verbosity(logging.FATAL)
  silence_failed_saves()
  exit_with_status(lambda: app.run(main, flags_parser=parse_flags))


def silence_failed_saves() -> None:
  """Without this, pages from Orbax and TensorStore follow our line about a full disk.

  When one write of a save fails, the others are left behind: coroutines that nobody
  awaits, and callbacks into an event loop that is closed.
  """
  warnings.filterwarnings("ignore", "coroutine", RuntimeWarning)

  def hook(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      sys.__unraisablehook__(unraisable)

  sys.unraisablehook = hook


def exit_with_status(program: Callable[[], None]) -> None:
  """Runs it; ends with a line and a status instead of an exception of ours."""
  try:
    program()
    return
  except UserError as error:
    line, status = f"error: {error}", 1
  except BrokenPipeError:
    # Python would fail once more when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    line, status = "error: nobody reads this output; the same command resumes", 1
  except OSError as error:
    if error.errno not in _OF_THE_DISK:
      hosts.tell_status(1)
      raise
    where = f"{error.filename}: " if error.filename else ""
    line = (
      f"error: {where}{error.strerror}; what was finished before is intact: mend this, "
      "then the same command resumes"
    )
    status = 1
  except Preempted as stop:
    line, status = f"{stop}; run the same command again", PREEMPTED_STATUS
  except Exception as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and hosts.count() > 1:
      hosts.await_verdict(error)
    hosts.tell_status(1)
    raise
  print(line, file=sys.stderr)
  hosts.end(status)
  sys.exit(status)


if __name__ == "__main__":
  cli()
