"""Whether stages fit this machine's memory: asked before anything runs, by estimate.

What a stage needs is what its largest program does (estimate.py). Devices with memory
of their own have it each; a CPU's devices share the machine's, as do local workers,
which may run any stages at once that do not wait for each other.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from pathlib import Path

import jax

from alignment.runtime import hosts
from alignment.study.artefacts import Artefact, closure
from alignment.study.estimate import estimate
from alignment.study.programs import Program
from alignment.types import UserError

# Estimates of judging and sampling are up to 20 % above what is compiled, and what
# could just fit is the user's to try.
_TRUSTED = 0.8
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Limit:
  """Bytes that there are, and how many devices of this process share them."""

  bytes: int
  where: str
  devices: int


@hosts.only_first
def check(stages: Iterable[Artefact], workers: int = 1) -> None:
  """Raises UserError, with the numbers, if stages that are to be made cannot fit.

  Where it cannot be told how much memory there is, nothing is refused.
  """
  limit = available()
  needs = [(stage, *need) for stage in stages if (need := _need(stage)) is not None]
  if limit is None or not needs:
    return
  together = _at_once(needs, workers)
  needed = sum(need for _, need, _ in together) * limit.devices
  if _TRUSTED * needed <= limit.bytes:
    return
  parts = ", ".join(
    f"{stage.name} {gib(need * limit.devices)} ({program.name})"
    for stage, need, program in together
  )
  instead = "take a smaller size, batch or context, or more devices"
  if len(together) > 1:
    instead = f"set --config.workers=1, or {instead}"
  raise UserError(
    f"out of memory, by estimate: {parts} GiB of {gib(limit.bytes)} GiB {limit.where}; "
    f"{instead}; --config.check_memory=False tries it all the same"
  )


def _need(stage: Artefact) -> tuple[int, Program] | None:
  """Bytes per device of a stage's largest program; None if it runs none."""
  needs = [(estimate(program).total, program) for program in stage.programs()]
  return max(needs, key=lambda need: need[0], default=None)


def _at_once(
  needs: Sequence[tuple[Artefact, int, Program]], workers: int
) -> list[tuple[Artefact, int, Program]]:
  """The largest stages, as many as workers, of which none needs another."""
  chosen: list[tuple[Artefact, int, Program]] = []
  before = {stage.key: {a.key for a in closure([stage])} for stage, _, _ in needs}
  for one in sorted(needs, key=lambda need: -need[1]):
    key = one[0].key
    others = (other.key for other, _, _ in chosen)
    if len(chosen) < workers and not any(
      key in before[other] or other in before[key] for other in others
    ):
      chosen.append(one)
  return chosen


# --- what there is --------------------------------------------------------------------


def available() -> Limit | None:
  """Memory for this process's devices; None where nobody says."""
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    stats = device.memory_stats() or {}
    size = stats.get("bytes_limit")
    return Limit(size, f"of a {device.device_kind}", 1) if size else None
  sizes = [size for size in (_of_machine(), _of_cgroup()) if size is not None]
  if not sizes:
    return None
  return Limit(min(sizes), "available on this machine", jax.local_device_count())


def _of_machine() -> int | None:
  """What could be had without swapping out what runs (Linux)."""
  if not _MEMINFO.exists():
    return None
  rows = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
  if "MemAvailable" not in rows:
    return None
  kib = (int(rows.get(key, "0").split()[0]) for key in ("MemAvailable", "SwapFree"))
  return 1024 * sum(kib)


def _of_cgroup() -> int | None:
  """What is left of a container's limit (cgroup v2, or v1); None without one."""
  for limit, used in (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
  ):
    try:
      total = (_CGROUP / limit).read_text().strip()
      taken = int((_CGROUP / used).read_text()) - _cached(_CGROUP / used)
    except (OSError, ValueError):
      continue
    if total.isdigit() and int(total) < 2**60:  # v1 writes a huge number for none
      return max(0, int(total) - taken)
  return None


def _cached(used: Path) -> int:
  """Of what a container uses, files that would make room."""
  rows = (
    line.split() for line in used.with_name("memory.stat").read_text().splitlines()
  )
  sizes = {row[0]: int(row[1]) for row in rows if len(row) == 2}
  return sizes.get("total_inactive_file", sizes.get("inactive_file", 0))


def gib(size: float) -> str:
  return f"{size / 2**30:.1f}"
