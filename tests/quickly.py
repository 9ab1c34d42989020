"""Compiling faster than users do, where a program runs for a moment only.

XLA then neither optimises nor uses its fusion emitters, whose passes are 40 % of the
time. Programs round differently so: what is compared bit for bit is compiled alike.
"""

from collections.abc import Iterator
import contextlib
import gc
import os
from pathlib import Path
from unittest import mock

import jax
from jax._src import compiler  # options of all programs of one process: not public

ENVIRONMENT = {
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
}


@contextlib.contextmanager
def compiled(fusion_emitters: bool = False) -> Iterator[None]:
  """What `ENVIRONMENT` does for a whole process, for what is compiled within."""
  options = compiler.get_compile_options

  def with_ours(*args, **kwargs):
    found = options(*args, **kwargs)
    ours = ("xla_cpu_use_fusion_emitters", str(fusion_emitters))
    found.env_option_overrides = [*found.env_option_overrides, ours]
    return found

  jax.clear_caches()  # or a program might be one that was compiled outside
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    with mock.patch.object(compiler, "get_compile_options", with_ours):
      yield
  finally:
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def collect_rarely() -> None:
  """Tracing makes objects that stay: looking for garbage among them is 8 % of it."""
  gc.set_threshold(100_000, 20, 20)


def remember(directory: Path) -> None:
  """Keeps compiled programs for the next run of the tests, and reads those there are.

  Of this process and those it starts, unless the environment names a directory.
  """
  cached = {
    "jax_compilation_cache_dir": str(directory),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  for name, value in cached.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)
