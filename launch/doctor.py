"""Says in words what keeps a slice's hosts from training together, within a time-out.

  python -m launch.doctor --workdir=DIRECTORY                       # on a TPU VM
  python -m launch.doctor --hosts=10.0.0.1,10.0.0.2 --host=0        # anywhere else

Runs on every host at the same time (`python -m launch.tpu doctor` does that, and the
start-up script before every start of training). The first host listens on the very port
on which training's coordinator will, the others call it, and all are told who called,
with which versions. A host that hangs JAX is so named before JAX can hang.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

COORDINATOR_PORT = 8482  # JAX's on Cloud TPU (jax/_src/clusters/cloud_tpu_cluster.py)
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
MAX_MESSAGE = 1 << 20  # bytes
MIN_FREE = 10 << 30  # bytes of disk for checkpoints on their way to the bucket


@dataclasses.dataclass(frozen=True)
class Finding:
  ok: bool
  words: str


# --- one host by itself ---------------------------------------------------------------


def versions() -> dict[str, str]:
  """Of everything whose difference between hosts would make programs differ."""
  versions = {"python": platform.python_version(), "code": Path.cwd().name}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = "none"
  return versions


def check_libtpu_lock(
  lock: Path = Path("/tmp/libtpu_lockfile"), proc: Path = Path("/proc")
) -> Finding:
  """Only one process may use a host's TPU, and a killed one may leave its lock file."""
  holders = sorted(set(_tpu_users(proc)))
  if holders:
    who = ", ".join(holders)
    return Finding(True, f"the TPU is in use by process {who}: training, or a leftover")
  if lock.exists():
    return Finding(
      False, f"{lock} is there, but no process uses the TPU: stale; sudo rm {lock}"
    )
  return Finding(True, "the TPU is free: no lock file, no process")


def _tpu_users(proc: Path) -> Iterator[str]:
  for link in proc.glob("[0-9]*/fd/*"):
    try:
      if os.readlink(link).startswith(("/dev/accel", "/dev/vfio/")):
        yield link.parts[-3]
    except OSError:
      pass  # ended meanwhile, or another user's


def check_directory(directory: Path) -> Finding:
  """Writes, reads, renames and deletes a file: what checkpoints need of a bucket."""
  start = time.monotonic()
  try:
    directory.mkdir(parents=True, exist_ok=True)
    first = directory / f".doctor-{uuid.uuid4().hex}"
    second = first.with_suffix(".renamed")
    first.write_text("well", encoding="utf-8")
    first.rename(second)
    text = second.read_text(encoding="utf-8")
    second.unlink()
  except OSError as error:
    return Finding(
      False,
      f"{directory} is not writable ({error.strerror}): is the bucket mounted, and may "
      "the slice's service account write to it?",
    )
  if text != "well":
    return Finding(False, f"{directory} returned other bytes than were written")
  took = time.monotonic() - start
  return Finding(True, f"{directory} is writable ({took:.1f} s for a round trip)")


def check_disk(directory: Path = Path("/tmp")) -> Finding:
  """gcsfuse stages what is written to a bucket on the local disk."""
  free = shutil.disk_usage(directory).free
  words = f"{free / 2**30:.0f} GiB are free on the disk of {directory}"
  if free < MIN_FREE:
    return Finding(False, f"{words}: too few to stage checkpoints; delete something")
  return Finding(True, words)


def within(seconds: float, check: Callable[[], Finding], what: str) -> Finding:
  """A check's finding, or that it gave none in time: a dead mount blocks for ever."""
  findings: list[Finding] = []
  thread = threading.Thread(target=lambda: findings.append(check()), daemon=True)
  thread.start()
  thread.join(seconds)
  return (
    findings[0] if findings else Finding(False, f"{what}: no answer in {seconds:g} s")
  )


# --- all hosts together ---------------------------------------------------------------


def roll_call(
  host: int, hosts: list[str], port: int, timeout: float, own_versions: dict[str, str]
) -> list[Finding]:
  """The first host collects everyone's versions; all learn who was there.

  Args:
    host: this host's place in `hosts`.
    hosts: addresses of all that are expected, the coordinator first.
    port: the coordinator's.
    timeout: seconds until those who have not called are missing.
    own_versions: this host's versions.
  """
  deadline = time.monotonic() + timeout
  if len(hosts) == 1:
    return [Finding(True, "this is the only host")]
  try:
    if host == 0:
      seen = _listen(len(hosts), port, deadline, own_versions)
    else:
      seen = _call(host, hosts[0], port, deadline, own_versions)
  except _Trouble as trouble:
    return [Finding(False, str(trouble))]
  return compare(seen, hosts)


def compare(seen: dict[int, dict[str, str]], hosts: list[str]) -> list[Finding]:
  """Who is missing, and who has other versions than the first host."""
  missing = [i for i in range(len(hosts)) if i not in seen]
  words = f"{len(seen)} of {len(hosts)} hosts are here"
  if missing:
    who = ", ".join(f"{i} ({hosts[i]})" for i in missing)
    words += f"; missing: {who}. Look at their logs: up, and past their installation?"
  findings = [Finding(not missing, words)]
  different = [
    f"{name}: {seen[i].get(name)} on host {i}, {expected} on host 0"
    for i in sorted(seen)
    for name, expected in seen.get(0, {}).items()
    if seen[i].get(name) != expected
  ]
  if different:
    findings.append(Finding(False, "versions differ: " + "; ".join(different)))
  else:
    findings.append(Finding(True, "versions are equal on all of them"))
  return findings


class _Trouble(Exception):
  """Why there can be no roll call."""


def _listen(
  expected: int, port: int, deadline: float, own_versions: dict[str, str]
) -> dict[int, dict[str, str]]:
  seen, calls = {0: own_versions}, []
  with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      server.bind(("", port))
    except OSError:
      raise _Trouble(
        f"port {port} of this host is taken: training runs already, or a leftover of it"
      ) from None
    server.listen(expected)
    while len(seen) < expected and (left := deadline - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        call, _ = server.accept()
        call.settimeout(5)
        message = json.loads(call.makefile().readline(MAX_MESSAGE))
        seen[int(message["host"])] = dict(message["versions"])
        calls.append(call)
      except (OSError, ValueError, KeyError, TypeError):
        continue  # late, or someone else's connection
    answer = json.dumps({str(i): v for i, v in seen.items()}).encode() + b"\n"
    for call in calls:
      with call:
        try:
          call.sendall(answer)
          call.recv(1)  # the caller closes first, so that the port is free at once
        except OSError:
          pass
  return seen


def _call(
  host: int, coordinator: str, port: int, deadline: float, own_versions: dict[str, str]
) -> dict[int, dict[str, str]]:
  where, why = f"{coordinator}:{port}", "no answer"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((coordinator, port), timeout=min(left, 10)) as call:
        call.sendall(
          json.dumps({"host": host, "versions": own_versions}).encode() + b"\n"
        )
        call.settimeout(max(deadline - time.monotonic(), 0) + 10)
        answer = call.makefile().readline(MAX_MESSAGE)
      return {int(i): dict(v) for i, v in json.loads(answer).items()}
    except socket.gaierror:
      why = "its name cannot be resolved"
    except ConnectionRefusedError:
      why = "nothing listens there: host 0 is not up yet, or its start-up has failed"
    except TimeoutError:
      why = (
        "no answer: a firewall? Hosts of a slice must reach each other: gcloud compute "
        f"firewall-rules create alignment --allow=tcp:{port},tcp:8431 --source-tags=..."
      )
    except (OSError, ValueError, AttributeError):
      why = "something answers, but not a doctor: training runs already, or a leftover"
    time.sleep(min(0.5, max(deadline - time.monotonic(), 0)))
  raise _Trouble(f"the coordinator {where} is not reachable from host {host}: {why}")


# --- who are we -----------------------------------------------------------------------


def metadata(key: str, timeout: float = 5) -> str:
  """An attribute of this instance, empty if there is none or no metadata server."""
  server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
    f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
    headers={"Metadata-Flavor": "Google"},
  )
  try:
    with urllib.request.urlopen(request, timeout=timeout) as response:
      return response.read().decode()
  except (urllib.error.URLError, OSError):
    return ""


def identity() -> tuple[int, list[str]]:
  """This host's place among the hosts of its slice, and their addresses."""
  endpoints = metadata("worker-network-endpoints")
  hosts = [part.split(":")[-1] for part in endpoints.split(",") if part]
  return int(metadata("agent-worker-number") or 0), hosts or ["localhost"]


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m launch.doctor",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--workdir", type=Path, help="the (mounted) working directory")
  parser.add_argument("--hosts", help="addresses of all hosts, the coordinator first")
  parser.add_argument("--host", type=int, help="this host's place among them")
  parser.add_argument("--port", type=int, default=COORDINATOR_PORT)
  parser.add_argument("--timeout", type=float, default=60, help="seconds, each check")
  options = parser.parse_args()
  if (options.hosts is None) != (options.host is None):
    parser.error("--hosts and --host belong together")
  if options.hosts is None:
    host, hosts = identity()
  else:
    host, hosts = options.host, options.hosts.split(",")
  if not 0 <= host < len(hosts):
    parser.error(f"--host {host} is not among {len(hosts)} hosts")
  findings = [check_libtpu_lock(), check_disk()]
  if options.workdir is not None:
    check = within(
      options.timeout, lambda: check_directory(options.workdir), str(options.workdir)
    )
    findings.append(check)
  findings += roll_call(host, hosts, options.port, options.timeout, versions())
  for finding in findings:
    print(f"doctor: {'ok ' if finding.ok else 'BAD'} {finding.words}", flush=True)
  return 0 if all(finding.ok for finding in findings) else 1


if __name__ == "__main__":
  status = main()
  sys.stdout.flush()
  os._exit(status)  # a thread that a dead mount blocks must not keep us
