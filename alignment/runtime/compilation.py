"""Compiled programs that outlive their process: JAX's cache, beside the artefacts.

A restart, another worker and the next study in the same directory read what was
compiled before, also where the directory is moved or mounted elsewhere. XLA's keys do
not always notice what a CPU can do, and code for another one may end the process: each
kind of processor has a directory of its own.
Entries that are damaged are compiled anew, with a warning from JAX; the oldest go when
there are more than `MAX_BYTES`: at any time by JAX, on mounted buckets at a start only,
since JAX needs locks for it.
"""

import hashlib
from pathlib import Path
import platform

import jax
from jax.experimental.compilation_cache import compilation_cache

from alignment.runtime import hosts
from alignment.runtime.locks import is_fuse

MAX_BYTES = 2 * 2**30
CPUINFO = Path("/proc/cpuinfo")
_ENTRY, _USED = "-cache", "-atime"  # what JAX calls an entry, and when it was read


def keep(directory: Path) -> None:
  """Keeps compiled programs in `directory`, and reads those that are there."""
  directory = directory / machine()
  locked = not is_fuse(directory)
  if hosts.is_first():
    _mend(directory) if locked else _trim(directory)
  compilation_cache.reset_cache()  # what was compiled before has settled for none
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_compilation_cache_max_size", MAX_BYTES if locked else -1)
  # Small programs are most of a small study: what takes long to trace is not cached.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  # These are of GPUs, and put the directory's path into every key.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _mend(directory: Path) -> None:
  """Gives every entry its time: JAX keeps nothing more beside one that has none."""
  for entry in directory.glob(f"*{_ENTRY}"):
    used = entry.with_name(entry.name.removesuffix(_ENTRY) + _USED)
    if not used.exists():  # its process was killed
      used.write_bytes(bytes(8))  # the first to go


def _trim(directory: Path) -> None:
  """Removes the entries that were written first, where there are too many."""
  entries = [(p.stat(), p) for p in directory.glob(f"*{_ENTRY}")]
  excess = sum(stat.st_size for stat, _ in entries) - MAX_BYTES
  for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
    if excess > 0:
      path.unlink(missing_ok=True)
      excess -= stat.st_size


def machine() -> str:
  """A name for this machine's kind of processor, by what it can do."""
  features = platform.machine()
  if CPUINFO.exists():
    wanted = ("flags", "Features")  # x86 and ARM
    lines = CPUINFO.read_text().splitlines()
    features += next((line for line in lines if line.startswith(wanted)), "")
  return hashlib.sha256(features.encode()).hexdigest()[:12]
