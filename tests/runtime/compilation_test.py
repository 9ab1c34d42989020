"""The cache of compiled programs: same bits, kept per processor, safe when damaged."""

import os

import jax
from jax._src import compilation_cache, monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import optim, train_step
from alignment.models import t5
from alignment.runtime import compilation, sharding
from tests import tiny

OPTIONS = (
  "jax_compilation_cache_dir",
  "jax_compilation_cache_max_size",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture
def cache(tmp_path):
  """The cache in a directory of its own, and afterwards as it was; counts its hits."""
  before = {name: getattr(jax.config, name) for name in OPTIONS}
  hits = []

  def listen(event: str, **_) -> None:
    if event.endswith("compilation_cache/cache_hits"):
      hits.append(event)

  monitoring.register_event_listener(listen)
  compilation_cache.reset_cache()
  compilation.keep(tmp_path / "kept")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield tmp_path / "kept", hits
  monitoring.unregister_event_listener(listen)
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  jax.clear_caches()


def trained() -> list[np.ndarray]:
  """Two steps of a tiny policy, compiled or read: parameters and metrics."""
  jax.clear_caches()
  train_step.compiled.cache_clear()
  mesh, optimizer = sharding.make_mesh(), optim.Optimizer("adamw")
  objective = train_step.PolicyObjective(tiny.POLICY, "ipo")
  step = train_step.compiled(objective, optimizer, 1, mesh, t5.RULES, tiny.POLICY)
  params = jax.tree.map(jnp.asarray, tiny.params(0))
  state = train_step.init_state(params, optimizer)
  for seed in (0, 1):
    batch = sharding.put_batch(tiny.batch(4, seed), mesh)
    state, metrics = step(state, batch, train_step.hyper(1e-3, beta=0.1))
  return jax.tree.map(np.asarray, jax.tree.leaves((state, metrics)))


def test_results_are_the_same_bits_compiled_and_read(cache):
  directory, hits = cache
  compiled = trained()
  first = len(hits)
  assert list(directory.glob("*/*"))
  read = trained()
  assert len(hits) > 2 * first + 1
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    plain = trained()
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  for other in (read, plain):
    jax.tree.map(np.testing.assert_array_equal, compiled, other)


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_damaged_entries_are_compiled_anew(cache):
  directory, hits = cache
  compiled = trained()
  entries = [path for path in directory.glob("*/*") if path.is_file()]
  for path in entries:
    path.write_bytes(path.read_bytes()[:100])
  jax.tree.map(np.testing.assert_array_equal, compiled, trained())


def small(size: int) -> None:
  """Compiles a program that is another one for every size."""
  jax.jit(lambda x: x + 1)(jnp.ones(size))


def test_programs_are_found_where_the_directory_is_another(cache, tmp_path):
  directory, hits = cache
  small(3)
  compiled, count = {p.name for p in directory.glob("*/*-cache")}, len(hits)
  directory.rename(tmp_path / "moved")
  jax.clear_caches()
  compilation_cache.reset_cache()
  compilation.keep(tmp_path / "moved")
  small(3)
  assert compiled and len(hits) > count
  assert compiled == {p.name for p in tmp_path.glob("moved/*/*-cache")}


def test_a_program_that_was_compiled_before_does_not_switch_it_off(cache, tmp_path):
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  small(5)
  compilation.keep(tmp_path / "later")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  small(6)
  assert list(tmp_path.glob("later/*/*-cache"))


def test_an_entry_that_a_killed_process_left_without_its_time_is_mended(cache):
  directory, _ = cache
  small(3)
  (entry, *_) = directory.glob("*/*-atime")
  entry.unlink()
  compilation.keep(directory)
  assert entry.exists()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  count = len(list(directory.glob("*/*-cache")))
  small(4)  # JAX warns otherwise, and keeps nothing any more
  assert len(list(directory.glob("*/*-cache"))) > count


def test_on_a_mounted_bucket_the_oldest_entries_go_at_a_start(cache, monkeypatch):
  directory, _ = cache
  monkeypatch.setattr(compilation, "is_fuse", lambda _: True)
  monkeypatch.setattr(compilation, "MAX_BYTES", 250)
  for age, name in enumerate(("new", "old", "oldest")):
    path = directory / compilation.machine() / f"{name}-cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1000 - age, 1000 - age))
  compilation.keep(directory)
  assert jax.config.jax_compilation_cache_max_size == -1
  assert {path.name for path in directory.glob("*/*")} == {"new-cache", "old-cache"}


def test_another_processors_programs_lie_elsewhere(tmp_path, monkeypatch):
  names = set()
  for flags in ("avx2", "avx2 avx512f", "avx2"):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(compilation, "CPUINFO", tmp_path / "cpuinfo")
    names.add(compilation.machine())
  assert len(names) == 2
  monkeypatch.setattr(compilation, "CPUINFO", tmp_path / "none")
  assert compilation.machine()
