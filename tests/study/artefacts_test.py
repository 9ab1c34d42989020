"""Artefacts: found by what determines them, made once, whoever works on them."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import multiprocessing
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from alignment.runtime import locks
from alignment.runtime.files import read_json
from alignment.study import artefacts
from alignment.study.artefacts import Artefact
from alignment.types import UserError

SPAWN = multiprocessing.get_context("spawn")  # JAX does not survive a fork


@dataclasses.dataclass(frozen=True, eq=False)
class Plain(Artefact):
  """An artefact of anything: `fill(directory, {input name: its directory})`."""

  name: str = "a"
  setting: Any = None
  kind: str = "k"  # type: ignore[misc]
  config: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"x": 1})
  reads: Mapping[str, Artefact] = dataclasses.field(default_factory=dict)
  fill: Callable[[Path, Mapping[str, Path]], None] = lambda directory, inputs: None

  @property
  def inputs(self):
    return self.reads

  def settings(self):
    return dict(self.config)

  def make(self, directory, read):
    self.fill(directory, {name: read(a) for name, a in self.reads.items()})


def artefact(name="a", kind="k", config=None, inputs=None, make=None):
  make = make or (lambda directory, inputs: None)
  return Plain(
    name=name, kind=kind, config=config or {"x": 1}, reads=inputs or {}, fill=make
  )


def test_a_finished_directory_keeps_no_state(tmp_path):
  def make(directory, inputs):
    for name in ("state/4", "params/4"):
      (directory / name).mkdir(parents=True)

  made = artefact(make=make)
  artefacts.run([made], tmp_path)
  names = {path.name for path in made.directory(tmp_path).iterdir()}
  assert names == {"config.json", "done.json", "params"}


def test_key_follows_what_determines_the_numbers(monkeypatch):
  key = artefact().key
  assert artefact(name="other").key == key
  assert artefact(make=print).key == key
  upstream = artefact(config={"x": 2})
  keys = {
    key,
    artefact(kind="other").key,
    artefact(config={"x": 1, "y": None}).key,
    artefact(inputs={"in": artefact()}).key,
    artefact(inputs={"in": upstream}).key,
    artefact(inputs={"other": upstream}).key,
  }
  assert len(keys) == 6
  assert artefact(config={"x": 1, "y": 2}).key == artefact(config={"y": 2, "x": 1}).key
  with pytest.raises(ValueError, match="JSON compliant"):
    _ = artefact(config={"x": float("nan")}).key
  monkeypatch.setattr(artefacts, "VERSION", artefacts.VERSION + 1)
  assert artefact().key not in keys


def test_what_is_missing_takes_one_listing_however_many_stages_there_are(
  tmp_path, monkeypatch
):
  """A worker that waits looks five times a second, in what may be a bucket."""
  stages = [artefact(f"a{i}", config={"x": i}) for i in range(9)]
  artefacts.run(stages[:5], tmp_path)
  calls, glob = [], Path.glob
  monkeypatch.setattr(Path, "glob", lambda p, *a: calls.append(p) or glob(p, *a))
  assert artefacts._missing(stages, tmp_path) == [stage.key for stage in stages[5:]]
  assert len(calls) == 1


def test_closure_has_inputs_first_and_each_key_once():
  a = artefact("a")
  b = artefact("b", config={"x": 2}, inputs={"a": a})
  same = artefact("same", config={"x": 2}, inputs={"a": artefact("renamed")})
  c = artefact("c", config={"x": 3}, inputs={"b": same, "a": a})
  assert [x.name for x in artefacts.closure([b, c])] == ["a", "b", "c"]


def test_made_once_and_found_under_another_name(tmp_path):
  calls = []

  def make(directory, inputs):
    calls.append(inputs)
    (directory / "out").write_text("x")

  a = artefact("a", make=make)
  b = artefact("b", config={"x": 2}, inputs={"a": a}, make=make)
  artefacts.run([b], tmp_path)
  artefacts.run([b, a], tmp_path)
  assert calls == [{}, {"a": a.directory(tmp_path)}]
  renamed = artefact("renamed")
  assert renamed.is_done(tmp_path)
  assert renamed.directory(tmp_path) == a.directory(tmp_path)
  described = read_json(b.directory(tmp_path) / "config.json")
  assert described["config"] == {"x": 2}
  assert described["inputs"] == {"a": a.directory(tmp_path).name}


def test_failure_leaves_no_marker_and_the_next_run_mends_it(tmp_path):
  outcomes = iter([RuntimeError("no"), None])

  def make(directory, inputs):
    if error := next(outcomes):
      raise error

  a = artefact(make=make)
  b = artefact("b", config={"x": 2}, inputs={"a": a})
  with pytest.raises(RuntimeError, match="no"):
    artefacts.run([b], tmp_path)
  assert not a.is_done(tmp_path)
  assert not b.directory(tmp_path).exists()
  artefacts.run([b], tmp_path)
  assert a.is_done(tmp_path) and b.is_done(tmp_path)


def test_check_stops_between_stages(tmp_path):
  def check():
    raise RuntimeError("a fellow failed")

  with pytest.raises(RuntimeError, match="fellow"):
    artefacts.run([artefact()], tmp_path, check)
  assert not artefact().is_done(tmp_path)


def _work(workdir: Path, together) -> None:
  """One of two workers on a graph of five stages, of which three are independent."""

  def make(name):
    def write(directory, inputs):
      with open(workdir / "log", "a") as f:
        f.write(f"{name} {os.getpid()}\n")
      time.sleep(0.3)

    return write

  root = artefact("root", make=make("root"))
  parts = [
    artefact(f"part{i}", config={"i": i}, inputs={"root": root}, make=make(f"part{i}"))
    for i in range(3)
  ]
  last = {f"part{i}": part for i, part in enumerate(parts)}
  target = artefact("last", kind="last", inputs=last, make=make("last"))
  together.wait(60)  # a busy machine starts one long after the other
  artefacts.run([target], workdir)
  assert target.is_done(workdir)


def test_two_workers_share_the_work_and_make_nothing_twice(tmp_path):
  arguments = tmp_path, SPAWN.Barrier(2)
  workers = [SPAWN.Process(target=_work, args=arguments) for _ in range(2)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join(60)
  assert [worker.exitcode for worker in workers] == [0, 0]
  lines = (tmp_path / "log").read_text().splitlines()
  made = [line.split()[0] for line in lines]
  assert made[0] == "root" and made[-1] == "last"
  assert sorted(made) == ["last", "part0", "part1", "part2", "root"]
  assert len({line.split()[1] for line in lines}) == 2


def _hold(workdir: Path, held) -> None:
  with artefacts.lock(workdir, "key") as got:
    assert got
    held.set()
    time.sleep(60)


def test_death_frees_a_lock(tmp_path):
  held = SPAWN.Event()
  holder = SPAWN.Process(target=_hold, args=(tmp_path, held))
  holder.start()
  assert held.wait(60)
  with artefacts.lock(tmp_path, "key") as got:
    assert not got
  with artefacts.lock(tmp_path, "another") as got:
    assert got
  os.kill(holder.pid, signal.SIGKILL)
  holder.join()
  with artefacts.lock(tmp_path, "key") as got:
    assert got


@contextlib.contextmanager
def lease_holder(workdir: Path, and_then: str):
  """A process that holds the lease of "key", beating every 0.1 s."""
  code = (
    "import sys, time\nfrom pathlib import Path\nfrom alignment.runtime import locks\n"
    "locks.is_fuse = lambda directory: True\n"
    "locks.LEASE_SECONDS, locks.SETTLE_SECONDS = 0.6, 0.1\n"
    "with locks.lock(Path(sys.argv[1]), 'key') as got:\n"
    f"  print(got, flush=True)\n  {and_then}\n  time.sleep(100)"
  )
  command = [sys.executable, "-c", code, str(workdir)]
  holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  try:
    assert holder.stdout.readline() == b"True\n"
    yield holder
  finally:
    holder.kill()
    holder.communicate()


def test_where_there_are_no_locks_a_lease_expires_with_its_holder(
  tmp_path, monkeypatch
):
  clock = [0.0]
  monkeypatch.setattr(locks, "is_fuse", lambda directory: True)
  monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.0)
  monkeypatch.setattr(locks.time, "monotonic", lambda: clock[0])

  def free() -> bool:
    with locks.lock(tmp_path, "key") as got:
      return got

  lease = tmp_path / "locks" / "key.lease"
  with lease_holder(tmp_path, and_then="pass") as holder:
    for _ in range(3):  # it beats, so it holds for longer than a lease lasts
      seen = lease.read_text()
      assert not free()
      while lease.read_text() == seen:
        time.sleep(0.02)
      clock[0] += locks.LEASE_SECONDS + 1
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
  assert not free()
  clock[0] += locks.LEASE_SECONDS - 1
  assert not free()
  clock[0] += 2
  assert free()
  assert free()  # it was given back, not left to expire


def test_who_has_lost_a_lease_stops(tmp_path):
  steal = "(Path(sys.argv[1]) / 'locks' / 'key.lease').write_text('another 0')"
  with lease_holder(tmp_path, and_then=steal) as holder:
    assert holder.wait(60) == 1
    assert b"the lease was lost to another process" in holder.stderr.read()


def test_a_bucket_is_known_by_its_mount(tmp_path, monkeypatch):
  mounts = tmp_path / "mounts"
  mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path}/b fuse.gcsfuse rw 0 0\n")
  real = Path
  monkeypatch.setattr(
    locks, "Path", lambda p: mounts if p == "/proc/self/mounts" else real(p)
  )
  assert locks.is_fuse(tmp_path / "b" / "locks")
  assert not locks.is_fuse(tmp_path / "c")


def test_damaged_input_is_named_before_anything_is_made(tmp_path):
  def make(directory, inputs):
    (directory / "out").write_text("x" * 100)

  a = artefact("a", make=make)
  b = artefact("b", config={"x": 2}, inputs={"a": a}, make=make)
  artefacts.run([a], tmp_path)
  path = a.directory(tmp_path) / "out"
  path.write_text("y" * 100)
  with pytest.raises(UserError, match="out: damaged; delete .*a-.* to make it again"):
    artefacts.run([b], tmp_path)
  assert not b.directory(tmp_path).exists()
  shutil.rmtree(a.directory(tmp_path))  # as the line says
  artefacts.run([b], tmp_path)
  assert b.is_done(tmp_path)
