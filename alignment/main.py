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
import signal
import sys

from absl import app, flags
import jax

from alignment.flags import configuration, parse_flags
from alignment.runtime import allocator, hosts, output, workers
from alignment.runtime.files import directory_option
from alignment.study import artefacts
from alignment.types import PREEMPTED_STATUS, Preempted, UserError

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
  config = configuration()
  if not _WORKDIR.value:
    raise UserError("--workdir is required")
  workdir = directory_option(_WORKDIR.value, "--workdir")
  count = config.workers if not (_STAGES.value or _DRY_RUN.value) else 1
  start_processes(count)
  from alignment.study import commands, graph

  if _DRY_RUN.value:
    commands.dry_run(config, workdir, _STAGES.value)
    return
  graph.build_all(config)  # a bad configuration is one line, not one of every worker
  is_first = not _WORKER.value
  with workers.started(count - 1 if is_first else 0) as fellows:
    commands.run(config, workdir, _STAGES.value, fellows.check)
    fellows.wait()
    if is_first and not _STAGES.value:
      commands.finish(config, workdir)
  hosts.end()


def start_processes(count: int) -> None:
  """Joins the processes of other hosts, or takes a share of this machine's cores.

  Args:
    count: how many workers this machine has.

  Raises:
    UserError: for workers where there are several processes, or a TPU.
  """
  processes = hosts.configured(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  if processes is not None:
    if count > 1:
      raise UserError(
        f"workers={count} share one host without accelerators; with several "
        "processes, or on a TPU, set --config.workers=1"
      )
    hosts.supervise(_HEARTBEAT.value)
  artefacts.worker_environment(_WORKER.value, count)
  if _WORKER.value:
    hosts.die_with_parent()
  hosts.start(processes, _HEARTBEAT.value)


def cli() -> None:
  allocator.keep_memory()
  output.prepare()
  exit_with_status(lambda: app.run(main, flags_parser=parse_flags))


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
  except KeyboardInterrupt:
    line, status = "interrupted; the same command resumes", 128 + signal.SIGINT
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
