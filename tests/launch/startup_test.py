"""startup.sh in a bare directory, with stand-ins for the metadata server and gcsfuse.

It really runs: the code is unpacked from a "bucket", the doctor speaks, and training
takes steps on the CPU, is pre-empted, and goes on where it was.
"""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import gcloud
from tests import quickly
from tests.launch.fake_tpu import flags_of, metadata_of

# The training program that most tests run instead of alignment.main: it counts its
# starts in the working directory and ends as the file `ends` says, one word per start.
PROGRAM = """
import pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
starts = workdir / "starts"
before = starts.read_text().splitlines() if starts.exists() else []
starts.write_text("\\n".join([*before, repr(sys.argv[2:])]) + "\\n")
end = (workdir / "ends").read_text().split()[len(before)]
if end == "wait":
  def stop(*_):
    (workdir / "saved").write_text("state")
    sys.exit(75)
  signal.signal(signal.SIGTERM, stop)
  (workdir / "waiting").write_text("")
  time.sleep(60)
if end == "error":
  sys.exit("error: a key is unknown")
if end == "apart":
  sys.exit("error: the processes did not come together: time out")
if end == "crash":
  raise RuntimeError("crashed")
sys.exit(int(end))
"""

STAND_INS = {
  # Mounting is a link; what is mounted already is a link already.
  "gcsfuse": 'b="${@: -2:1}"; at="${@: -1}"; rmdir "$at"; ln -s "$BUCKETS/$b" "$at"',
  "mountpoint": '[ -L "$2" ]',
  # The service manager: runs the command at once, and records what it was told.
  "systemd-run": """
printf '%s\\n' "$@" >"$ALIGNMENT_ROOT/unit"
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
""",
}


class Host:
  """A bare host: a directory, a metadata server, and programs that are not Google's."""

  def __init__(self, directory: Path, address: str, attributes: dict[str, str]):
    self.root, self.buckets = directory / "root", directory / "buckets"
    self.attributes = attributes
    self.workdir = self.buckets / "bucket" / "study"
    self.workdir.mkdir(parents=True)
    tools = directory / "bin"
    tools.mkdir()
    for name, text in STAND_INS.items():
      (tools / name).write_text(f"#!/bin/bash\n{text}\n")
      (tools / name).chmod(0o755)
    self.environment = {
      "PATH": f"{tools}:/usr/bin:/bin",
      "HOME": str(directory),
      "BUCKETS": str(self.buckets),
      "ALIGNMENT_ROOT": str(self.root),
      "ALIGNMENT_PAUSE": "0",
      "GCE_METADATA_IP": address,
      "JAX_PLATFORMS": "cpu",
      **quickly.ENVIRONMENT,
    }

  def create(self, *arguments: str, launch: str = "1") -> None:
    """What `launch.tpu create` leaves in the bucket and in the metadata."""
    job = gcloud.Job("study", "v5p-8", "z", "gs://bucket/study", arguments)
    source = gcloud.archive_address(job, archive := gcloud.pack())
    path = self.buckets / source.removeprefix("gs://")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive)
    self.attributes |= metadata_of(flags_of(gcloud.create(job, launch, source)))
    self.attributes["alignment-python"] = sys.executable

  def boot(self, **environment: str) -> subprocess.Popen:
    """Starts the start-up script as the guest agent would."""
    script = self.root.parent / "startup-script"
    script.write_text(self.attributes["startup-script"])
    return subprocess.Popen(
      ["bash", str(script)],
      env=self.environment | environment,
      cwd=self.root.parent,
      start_new_session=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  @property
  def log(self) -> str:
    return (self.root / "log").read_text() if (self.root / "log").exists() else ""

  def status(self, launch: str = "1") -> str:
    [path] = (self.workdir / "launch" / "study" / launch).glob("*.status")
    return path.read_text().split()[1]

  def starts(self) -> list[str]:
    path = self.workdir / "starts"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def host(tmp_path) -> Iterator[Host]:
  attributes: dict[str, str] = {}

  class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
      pass

    def do_GET(self) -> None:
      key = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
      known = key in attributes and self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(attributes[key].encode() if known else b"not found")

  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield Host(tmp_path, f"127.0.0.1:{server.server_port}", attributes)
  server.shutdown()
  server.server_close()


@pytest.fixture
def quick(host) -> Host:
  """A host whose code has PROGRAM for its alignment.main."""
  host.create("--config=configs/quickstart.py", "--config.task=gs://bucket/a b")
  source = (
    host.root
    / "source"
    / next(
      p.name.removesuffix(".tar.gz") for p in (host.workdir / "launch").glob("*.tar.gz")
    )
  )
  for name, text in (
    ("alignment/__init__.py", ""),
    ("alignment/main.py", PROGRAM),
    ("launch/__init__.py", ""),
    ("launch/doctor.py", "print('doctor: here')"),
  ):
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return host


def ends(host: Host, words: str) -> str:
  """The status that the host reports when training ends like this, start by start."""
  (host.workdir / "ends").write_text(words)
  boot = host.boot()
  output, _ = boot.communicate(timeout=60)
  assert boot.returncode == 0, output + host.log
  return host.status()


def wait_for(path: Path, boot: subprocess.Popen, host: Host) -> None:
  for _ in range(1200):
    if path.exists():
      return
    assert boot.poll() is None, host.log
    time.sleep(0.05)
  raise AssertionError(f"no {path}\n{host.log}")


def test_arguments_reach_training_with_buckets_as_directories(quick):
  assert ends(quick, "0") == "0"
  here = f"{quick.root}/gs/bucket"
  assert quick.starts() == [
    repr(["--config=configs/quickstart.py", f"--config.task={here}/a b"])
  ]
  unit = (quick.root / "unit").read_text()
  assert "--property=KillMode=mixed" in unit and "After=network" in unit


def test_the_copy_on_the_host_can_be_run_by_hand(quick):
  assert ends(quick, "0 0") == "0"
  kept = quick.root / "startup.sh"
  text = kept.read_text()
  subprocess.run(
    ["bash", kept], env=quick.environment, cwd="/", timeout=60, check=False
  )
  assert kept.read_text() == text
  assert len(quick.starts()) == 2


@pytest.mark.parametrize(
  "words, status, starts",
  [
    ("75 75 75 75 75 75 0", "0", 7),  # pre-empted, state saved: again
    ("134 crash 0", "0", 3),  # a peer died, a traceback: again
    ("error 0", "1", 1),  # the user's error: never again
    ("apart 0", "0", 2),  # not the user's
    ("crash " * 9, "1", 5),  # a crash that repeats: not for ever
    ("139 " * 9, "139", 5),
  ],
)
def test_what_training_is_started_again_after(quick, words, status, starts):
  assert ends(quick, words) == status
  assert len(quick.starts()) == starts


def test_the_end_of_the_log_is_in_the_bucket(quick):
  ends(quick, "error")
  [log] = (quick.workdir / "launch" / "study" / "1").glob("*.log")
  assert "error: a key is unknown" in log.read_text()
  assert log.stat().st_size <= 20_000


def test_a_shutdown_reaches_training_and_ends_the_script(quick):
  (quick.workdir / "ends").write_text("wait 0")
  boot = quick.boot()
  wait_for(quick.workdir / "waiting", boot, quick)
  assert quick.status() == "running"
  boot.terminate()  # as systemd does it: the main process alone
  boot.communicate(timeout=30)
  assert boot.returncode == 0
  assert (quick.workdir / "saved").exists()  # training was told, and waited for
  assert quick.status() == "running"  # for whoever watches, it has not ended
  assert len(quick.starts()) == 1
  assert ends(quick, "wait 0") == "0"  # the next boot goes on


def test_a_second_instance_leaves(quick):
  (quick.workdir / "ends").write_text("wait")
  first = quick.boot()
  wait_for(quick.workdir / "waiting", first, quick)
  second = quick.boot()
  output, _ = second.communicate(timeout=30)
  assert second.returncode == 0 and "training runs already" in output
  assert len(quick.starts()) == 1
  first.terminate()
  first.communicate(timeout=30)


def test_preparing_is_tried_again(quick):
  """The bucket may not be there at once."""
  hidden = quick.buckets.with_name("hidden")
  quick.buckets.rename(hidden)
  boot = quick.boot(ALIGNMENT_PAUSE="1")
  time.sleep(0.3)
  hidden.rename(quick.buckets)
  (quick.workdir / "ends").write_text("0")
  output, _ = boot.communicate(timeout=30)
  assert boot.returncode == 0, output
  assert quick.status() == "0"


def test_a_host_that_cannot_be_prepared_says_so_in_the_bucket(host):
  """Else `watch` would wait for it, and the slice cost money, for ever."""
  host.create("--config=configs/quickstart.py")
  [archive] = (host.workdir / "launch").glob("*.tar.gz")
  archive.write_bytes(b"half of an archive")
  boot = host.boot()
  boot.communicate(timeout=60)
  assert host.status() not in ("0", "running")
  [log] = (host.workdir / "launch" / "study" / "1").glob("*.log")
  assert "preparing failed" in log.read_text() and "gzip" in log.read_text()


def test_buckets_are_found_in_arguments_however_they_are_quoted(quick):
  """A tuple of paths is one argument."""
  (quick.buckets / "other-1.b").mkdir()
  paths = "('gs://bucket/a','gs://other-1.b/c')"
  quick.attributes["alignment-arguments"] = f'"--config.sft.data={paths}"'
  assert ends(quick, "0") == "0"
  assert (quick.root / "gs" / "other-1.b").is_symlink()
  assert {path.name for path in (quick.root / "gs").iterdir()} == {
    "bucket", "other-1.b"
  }  # fmt: skip


# --- the real thing -------------------------------------------------------------------


REAL = (
  *("--config=configs/quickstart.py", "--stages=sft_nano"),
  *("--config.policy.size=nano", "--config.golden_policy.size=nano"),
  *("--config.data.num_pairs=400", "--config.sft.batch_size=8"),
)


def test_a_bare_host_trains(host):
  """From nothing to training steps, by the script and alignment.main themselves."""
  host.create(*REAL, "--config.sft.steps=4")
  boot = host.boot()
  output, _ = boot.communicate(timeout=300)
  assert boot.returncode == 0, output + host.log
  assert host.status() == "0"
  assert "doctor: ok  this is the only host" in host.log
  assert "sft_nano: step 4/4" in host.log
  assert [*host.workdir.glob("artefacts/sft_nano-*/done.json")]


@pytest.mark.slow
def test_another_slice_goes_on_where_the_first_was_preempted(host):
  steps = ("--config.sft.steps=600", "--config.save_every=50", "--config.log_every=50")
  host.create(*REAL, *steps)
  boot = host.boot()
  for _ in range(6000):
    states = host.workdir.glob("artefacts/sft_nano-*/state/*")
    if saved := [int(path.name) for path in states if path.name.isdigit()]:
      break
    assert boot.poll() is None, host.log
    time.sleep(0.05)
  os.killpg(boot.pid, signal.SIGKILL)  # no notice at all
  boot.communicate()
  assert host.status() == "running"
  assert max(saved) < 600, "training was over before it could be killed"

  (host.root / "log").unlink()
  host.create(*REAL, *steps, launch="2")
  boot = host.boot()
  output, _ = boot.communicate(timeout=300)
  assert boot.returncode == 0, output + host.log
  assert host.status("2") == "0"
  printed = [int(n) for n in re.findall(r"step (\d+)", host.log)]
  assert printed[0] > max(saved) and printed[-1] == 600, host.log
  [metrics] = host.workdir.glob("artefacts/sft_nano-*/metrics.jsonl")
  logged = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
  assert logged == list(range(50, 601, 50))
