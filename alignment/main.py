"""The command line: everything a configuration describes, or some of its stages.

  python -m alignment.main --config=configs/quickstart.py --workdir=/tmp/quickstart
  python -m alignment.main --config=... --workdir=... --config.policy.beta=0.5
  python -m alignment.main --config=... --workdir=... --stages=show_batch
  python -m alignment.main --config=... --workdir=... --stages=status

Finished stages are skipped; a killed one resumes. On several hosts the same command
runs on each (alignment/runtime/hosts.py). SIGTERM saves and exits with status 75.
"""

from alignment.runtime import allocator, interrupts

if __name__ == "__main__":  # before imports that take a second
  interrupts.end_at_once()
  allocator.keep_memory()

from pathlib import Path

from absl import app, flags
import jax
from ml_collections import ConfigDict

from alignment.flags import configuration, parse_flags
from alignment.runtime import compilation, hosts, output, supervise, workers
from alignment.runtime.exits import exit_with_status
from alignment.runtime.files import directory_option
from alignment.types import UserError

flags.declare_key_flag("config")  # for --help
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


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise UserError(f"unexpected argument '{argv[1]}': options start with --")
  config = configuration()
  if not _WORKDIR.value:
    raise UserError("--workdir is required")
  workdir = directory_option(_WORKDIR.value, "--workdir")
  if "status" in _STAGES.value:
    show_status(config, workdir)
    return
  count = config.workers if not (_STAGES.value or _DRY_RUN.value) else 1
  start_processes(count)
  # After the processes have come together.
  from alignment.study import checks, commands

  studies = checks.studies(config, workdir)
  if _DRY_RUN.value:
    commands.dry_run(studies, workdir, _STAGES.value)
    return
  is_first = not _WORKER.value
  if config.check_memory and is_first:
    commands.check_memory(studies, workdir, _STAGES.value, count)
  if config.keep_compiled:
    compilation.keep(workdir / "compiled")
  with workers.started(count - 1 if is_first else 0) as fellows:
    commands.run(studies, workdir, _STAGES.value, fellows.check)
    fellows.wait()
    if is_first and not _STAGES.value:
      from alignment.study import publish  # imports Matplotlib: seconds

      publish.finish(config, studies, workdir)
  hosts.end()


def show_status(config: ConfigDict, workdir: Path) -> None:
  """What runs meanwhile, here or elsewhere: beside it, so without its devices.

  Raises:
    UserError: if other stages are asked for, too.
  """
  if _STAGES.value != ["status"]:
    raise UserError("--stages=status looks at a study that runs, and stands alone")
  jax.config.update("jax_platforms", "cpu")
  from alignment.study import status

  status.status(config, workdir)


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


def cli() -> None:
  output.prepare()
  exit_with_status(lambda: app.run(main, flags_parser=parse_flags))


if __name__ == "__main__":
  cli()
