"""The doctor: what it says of hosts that are well, missing, different, unreachable."""

import os
from pathlib import Path
import socket
import subprocess
import sys
import threading
import time

import pytest

from launch import doctor

WELL = {"jax": "1", "python": "3"}
HOSTS = ["127.0.0.1", "10.0.0.2", "10.0.0.3"]


@pytest.fixture
def port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def roll_call(port: int, *, absent=(), timeout=10.0, **different) -> dict[int, list]:
  """What each of three hosts finds; `host2={...}` are versions of its own."""
  found = {}

  def one(host: int) -> None:
    mine = WELL | different.get(f"host{host}", {})
    found[host] = doctor.roll_call(host, HOSTS, port, timeout, mine)

  present = [host for host in range(3) if host not in absent]
  threads = [threading.Thread(target=one, args=(host,)) for host in present]
  for thread in reversed(threads):  # the coordinator comes last
    thread.start()
    time.sleep(0.05)
  for thread in threads:
    thread.join()
  return found


def words(findings) -> list[str]:
  return [f"{'ok' if f.ok else 'BAD'} {f.words}" for f in findings]


def test_all_hosts_are_here(port):
  found = roll_call(port)
  expected = ["ok 3 of 3 hosts are here", "ok versions are equal on all of them"]
  assert {host: words(f) for host, f in found.items()} == dict.fromkeys(
    range(3), expected
  )


def test_the_port_is_free_afterwards(port):
  roll_call(port)
  with socket.socket() as s:  # without SO_REUSEADDR
    s.bind(("", port))


def test_a_missing_host_is_named_within_the_time_out(port):
  start = time.monotonic()
  found = roll_call(port, absent=(1,), timeout=1)
  assert time.monotonic() - start < 5
  for host in (0, 2):  # all who are there learn it
    first = words(found[host])[0]
    assert first.startswith("BAD 2 of 3 hosts are here; missing: 1 (10.0.0.2). Look")


def test_other_versions_are_named(port):
  found = roll_call(port, host2={"jax": "2"})
  for findings in found.values():
    assert words(findings)[1] == "BAD versions differ: jax: 2 on host 2, 1 on host 0"


def test_no_coordinator(port):
  found = roll_call(port, absent=(0,), timeout=0.5)
  for findings in found.values():
    assert "nothing listens there: host 0 is not up yet" in words(findings)[0]
    assert f"127.0.0.1:{port} is not reachable" in words(findings)[0]


def test_a_firewall_drops_what_it_does_not_like(port, monkeypatch):
  def lost(*_, timeout):
    time.sleep(timeout)
    raise TimeoutError

  monkeypatch.setattr(socket, "create_connection", lost)
  [finding] = doctor.roll_call(1, HOSTS, port, 0.3, WELL)
  assert "no answer: a firewall?" in finding.words
  assert f"--allow=tcp:{port}" in finding.words


def test_a_name_that_does_not_resolve(port):
  hosts = ["no-such-host.invalid", "10.0.0.2"]
  [finding] = doctor.roll_call(1, hosts, port, 0.3, WELL)
  assert not finding.ok and "its name cannot be resolved" in finding.words


def test_the_port_is_taken(port):
  """By training itself; what the others reach is no doctor."""
  with socket.socket() as training:
    training.bind(("", port))
    training.listen()

    def hang_up():
      while True:
        try:
          training.accept()[0].close()
        except OSError:
          return

    threading.Thread(target=hang_up, daemon=True).start()
    found = roll_call(port, timeout=0.5)
    training.shutdown(socket.SHUT_RDWR)
  assert "is taken: training runs already" in found[0][0].words
  assert "something answers, but not a doctor" in found[1][0].words


def test_strangers_on_the_port_do_no_harm(port):
  def stranger():
    for _ in range(100):
      try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as s:
          s.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return
      except ConnectionRefusedError:
        time.sleep(0.02)

  thread = threading.Thread(target=stranger)
  thread.start()
  found = roll_call(port)
  thread.join()
  assert words(found[1])[0] == "ok 3 of 3 hosts are here"


def test_directories(tmp_path):
  assert doctor.check_directory(tmp_path / "new" / "workdir").ok
  assert not [*(tmp_path / "new" / "workdir").iterdir()]  # nothing is left behind
  (tmp_path / "file").write_text("")
  bad = doctor.check_directory(tmp_path / "file" / "workdir")
  assert not bad.ok and "is not writable (Not a directory)" in bad.words


def test_a_dead_mount_is_given_up_on():
  finding = doctor.within(0.2, lambda: time.sleep(60), "/gs/bucket")
  assert finding == doctor.Finding(False, "/gs/bucket: no answer in 0.2 s")


def test_libtpu_lock(tmp_path):
  lock, proc = tmp_path / "libtpu_lockfile", tmp_path / "proc"
  proc.mkdir()
  assert doctor.check_libtpu_lock(lock, proc).ok
  lock.write_text("")
  stale = doctor.check_libtpu_lock(lock, proc)
  assert not stale.ok and f"stale; sudo rm {lock}" in stale.words
  descriptors = proc / "4711" / "fd"
  descriptors.mkdir(parents=True)
  os.symlink("/dev/vfio/0", descriptors / "5")
  held = doctor.check_libtpu_lock(lock, proc)
  assert held.ok and "in use by process 4711" in held.words


def test_identity_as_jax_finds_it(monkeypatch):
  values = {"agent-worker-number": "1"}
  monkeypatch.setattr(doctor, "metadata", lambda key: values.get(key, ""))
  for endpoints in ("a:0:10.0.0.1,b:1:10.0.0.2", "10.0.0.1,10.0.0.2"):
    values["worker-network-endpoints"] = endpoints
    assert doctor.identity() == (1, ["10.0.0.1", "10.0.0.2"])


def test_the_command(tmp_path, port):
  """Three processes on this machine; one runs from other code."""
  address = ["--hosts=127.0.0.1,10.0.0.2,10.0.0.3", f"--port={port}", "--timeout=30"]
  root = Path(__file__).parents[2]
  processes = []
  for host in range(3):
    here = tmp_path / ("a" if host < 2 else "b")
    here.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "launch.doctor", f"--host={host}", *address]
    processes.append(
      subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'workdir'}"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
      )
    )
  for process in processes:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "doctor: ok  3 of 3 hosts are here" in output
    assert "doctor: BAD versions differ: code: b on host 2, a on host 0" in output
    assert "is writable" in output
