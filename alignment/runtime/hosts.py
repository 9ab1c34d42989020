"""Several processes as one: start-up, what only the first one does, and pre-emption.

Every process runs the same program on its share of the devices, so all must make the
same decisions in the same order. Whatever depends on the file system is therefore
decided by the first process (`on_first`); it alone writes files (files.py;
checkpoints are written by all, through Orbax), and all read from a shared directory.

A process that is asked to stop (SIGTERM) lets its job reach a step that all processes
agree on, where `preempted` becomes true on each. One that vanishes is noticed by the
coordination service, which aborts the others (supervise.py says so): recovery is a
restart from outside.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import glob
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any, TypeVar

import jax
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from alignment.runtime import interrupts
from alignment.types import Preempted, UserError

T = TypeVar("T")

_SHUTDOWN_SECONDS = 15  # until a process that fails alone stops waiting for the others
_FOREVER_MS = 7 * 24 * 3600 * 1000  # a peer's death ends a wait, nothing else does


@dataclasses.dataclass
class _Job:
  """This process's part in the job that all processes are."""

  heartbeat_seconds: int = 0
  status_pipe: int | None = None  # where the supervisor (supervise.py) reads a status
  workers: list[subprocess.Popen] = dataclasses.field(default_factory=list)
  stopping: bool = False
  on_first_calls: int = 0  # names the answers; every process counts the same
  preempted_calls: int = 0  # likewise


_job = _Job()


# --- starting and ending --------------------------------------------------------------


def configured(
  coordinator: str, num_processes: int, process_id: int
) -> dict[str, Any] | None:
  """Arguments of `jax.distributed.initialize`; None for a process on its own.

  Given ones come first, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID; a TPU host needs none (`--num_processes=1` keeps it to itself).

  Raises:
    UserError: if some are missing, or contradict each other.
  """
  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
  if num_processes < 0:
    num_processes = _integer("JAX_NUM_PROCESSES")
  if process_id < 0:
    process_id = _integer("JAX_PROCESS_ID")
  if not coordinator and process_id < 0 and num_processes in (-1, 1):
    return {} if num_processes < 0 and _has_tpu() else None
  if not coordinator or num_processes < 1 or process_id < 0:
    raise UserError(
      "several processes need all of --coordinator=HOST:PORT, --num_processes and "
      f"--process_id; given: '{coordinator}', {num_processes}, {process_id}"
    )
  if not coordinator.rpartition(":")[2].isdigit():
    raise UserError(f"--coordinator '{coordinator}' is not HOST:PORT")
  if process_id >= num_processes:
    raise UserError(
      f"--process_id {process_id} is not below --num_processes {num_processes}"
    )
  return {
    "coordinator_address": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }


def _integer(variable: str) -> int:
  text = os.environ.get(variable, "-1")
  try:
    return int(text)
  except ValueError:
    raise UserError(f"{variable} is '{text}', not a number") from None


def _has_tpu() -> bool:
  """Whether this machine has TPU chips that JAX may use; does not start JAX."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def start(
  arguments: dict[str, Any] | None,
  heartbeat_seconds: int,
  status_pipe: int | None = None,
) -> None:
  """Joins the other processes, and listens for signals; before any JAX operation.

  Args:
    arguments: as `configured` found them.
    heartbeat_seconds: silence after which a process counts as dead.
    status_pipe: of this process's supervisor (`supervise.supervise`).

  Raises:
    UserError: if the coordinator cannot be reached.
  """
  interrupts.end_at_once(_leave)
  if arguments is None:
    signal.signal(signal.SIGTERM, _stop)
    return
  _job.heartbeat_seconds, _job.status_pipe = heartbeat_seconds, status_pipe
  try:
    jax.distributed.initialize(
      **arguments,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    text = str(error).splitlines()[0]
    raise UserError(f"the processes did not come together: {text}") from None


def end(status: int = 0) -> None:
  """Leaves the other processes: at once if they leave too, else after a while.

  They, and then this process too, may be aborted for it, so its status is told first.
  """
  tell_status(status)
  sys.stdout.flush()
  sys.stderr.flush()
  jax.distributed.shutdown()


def tell_status(status: int) -> None:
  """What this process will end with, should it be aborted on the way."""
  if _job.status_pipe is not None:
    os.write(_job.status_pipe, bytes([status]))


def _leave() -> None:
  """When this process is interrupted: nobody waits for it, and no worker goes on."""
  for process in _job.workers:
    process.kill()
  for process in _job.workers:
    with contextlib.suppress(ChildProcessError):  # it had ended before
      os.waitpid(process.pid, 0)  # Popen's own has a lock, which might be held
  tell_status(interrupts.STATUS)
  jax.distributed.shutdown()


def await_verdict(error: Exception) -> None:
  """After a failed computation: returns if no peer is gone, else never.

  Collectives may fail long before the coordination service knows why.
  """
  text = str(error).splitlines()[0]
  print(f"error: {text}; are all processes alive?", file=sys.stderr, flush=True)
  time.sleep(1.5 * _job.heartbeat_seconds + 5)


# --- the first process ----------------------------------------------------------------


def count() -> int:
  """How many processes there are; does not start JAX's devices."""
  return distributed.global_state.num_processes


def is_first() -> bool:
  """Whether this process writes files and prints; does not start JAX's devices."""
  return distributed.global_state.process_id == 0


def on_first(function: Callable[[], T]) -> T:
  """`function()` on the first process; its JSON result, or UserError, on all of them.

  All processes must come here, in the same order. What the first one wrote before is
  there to be read when this returns.
  """
  if count() == 1:
    return function()
  _job.on_first_calls += 1
  key, client = f"on_first/{_job.on_first_calls}", distributed.global_state.client
  assert client is not None
  if is_first():
    try:
      text = json.dumps({"value": function()})
    except UserError as error:
      text = json.dumps({"error": str(error)})
    client.key_value_set(key, text)
  else:
    text = client.blocking_key_value_get(key, _FOREVER_MS)
  answer = json.loads(text)
  if "error" in answer:
    raise UserError(answer["error"])
  return answer["value"]


def only_first(function: Callable[..., T]) -> Callable[..., T]:
  """A function that `on_first` calls."""

  @functools.wraps(function)
  def call(*args, **kwargs) -> T:
    return on_first(lambda: function(*args, **kwargs))

  return call


def wait_for_first() -> None:
  """Returns when the first process has come here."""
  on_first(lambda: None)


# --- pre-emption ----------------------------------------------------------------------


def _stop(*_) -> None:
  _job.stopping = True
  for process in _job.workers:
    process.terminate()


def pass_on_to(workers: list[subprocess.Popen]) -> None:
  """Local workers, which are asked to stop, or ended, when this process is."""
  _job.workers.extend(workers)


def preempted() -> bool:
  """Whether to stop here: true on all processes at the same call, and from then on.

  All processes must call this equally often.
  """
  if distributed.global_state.preemption_sync_manager is not None:
    _job.preempted_calls += 1
    if multihost_utils.reached_preemption_sync_point(_job.preempted_calls):
      _job.stopping = True
  return _job.stopping


def stop_if_preempted(what: str) -> None:
  """Raises Preempted, naming what is interrupted, if this is where all stop."""
  if preempted():
    raise Preempted(f"{what}: pre-empted")
