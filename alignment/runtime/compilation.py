"""Compiled programs that outlive their process: JAX's cache, beside the artefacts.

A restart, another worker and the next study in the same directory read what was
compiled before. XLA's keys do not always notice what a CPU can do, and code for another
one may end the process: each kind of processor has a directory of its own.
Entries that are damaged are compiled anew, with a warning from JAX; the oldest go when
there are more than `MAX_BYTES`.
"""

import hashlib
from pathlib import Path
import platform

import jax

MAX_BYTES = 2 * 2**30
CPUINFO = Path("/proc/cpuinfo")


def keep(directory: Path) -> None:
  """Keeps compiled programs in `directory`, and reads those that are there."""
  directory = directory / machine()
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
  # Small programs are most of a small study: what takes long to trace is not cached.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def machine() -> str:
  """A name for this machine's kind of processor, by what it can do."""
  features = platform.machine()
  if CPUINFO.exists():
    wanted = ("flags", "Features")  # x86 and ARM
    lines = CPUINFO.read_text().splitlines()
    features += next((line for line in lines if line.startswith(wanted)), "")
  return hashlib.sha256(features.encode()).hexdigest()[:12]
