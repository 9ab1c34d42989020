"""Cloud TPU's queued resources, through the `gcloud` command line.

The only file that knows `gcloud`: a `Job` says what is wanted, functions that return a
list of strings are exact commands (what `--dry_run` prints), `Cloud` runs them.
"""

from collections.abc import Callable, Sequence
import dataclasses
import datetime
import gzip
import hashlib
import io
import json
from pathlib import Path
import re
import shlex
import subprocess
import tarfile
import tempfile

from alignment.types import UserError

SOURCE = Path(__file__).parents[1]  # what a slice runs: these entries of it
SOURCE_ENTRIES = (
  "alignment",
  "configs",
  "launch",
  "requirements.lock",
  "requirements-tpu.lock",
)
STARTUP = Path(__file__).with_name("startup.sh")
DIRECTORY = "/opt/alignment"  # of startup.sh, on every host
LOG = f"{DIRECTORY}/log"

# By the prefix of the accelerator type: the runtime that JAX is meant to run on.
# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
  "v4": "tpu-ubuntu2204-base",
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
CAPACITIES = ("on-demand", "spot", "reserved")


@dataclasses.dataclass(frozen=True)
class Job:
  """A command of `alignment.main` and the slice it runs on.

  Raises:
    UserError: for a name, an accelerator or a working directory that cannot be.
  """

  name: str  # of the queued resource and its node
  tpu: str  # v5p-64, v6e-16, v5e-16 (that is v5litepod-16), ...
  zone: str
  workdir: str  # gs://bucket/path
  arguments: tuple[str, ...]  # of alignment.main, without --workdir
  capacity: str = "on-demand"
  project: str = ""  # empty: gcloud's own
  slices: int = 1
  create_flags: tuple[str, ...] = ()  # further flags of `queued-resources create`
  tag: str = ""  # ends the names of its launches; only those say that it has finished

  def __post_init__(self):
    if not re.fullmatch("[a-z]([-a-z0-9]{0,58}[a-z0-9])?", self.name):
      raise UserError(
        f"--name '{self.name}': lower-case letters, digits and hyphens, a letter first"
      )
    if self.generation not in RUNTIMES or not re.fullmatch(r"\w+-\d+", self.tpu):
      names = ", ".join(f"{g}-N" for g in RUNTIMES)
      raise UserError(f"--tpu '{self.tpu}' is unknown; there are {names} and v5e-N")
    if not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]+/.*[^/]", self.workdir):
      raise UserError(f"--workdir '{self.workdir}' is not gs://BUCKET/DIRECTORY")
    if self.capacity not in CAPACITIES:
      names = ", ".join(CAPACITIES)
      raise UserError(f"--capacity '{self.capacity}' is unknown; there are {names}")
    if self.slices < 1:
      raise UserError(f"--slices must be 1 or more, not {self.slices}")
    for argument in self.arguments:
      path = Path(argument.removeprefix("--config=").split(":")[0])
      if not argument.startswith("--config="):
        continue
      if path.parts[:1] != ("configs",) or not (SOURCE / path).is_file():
        raise UserError(f"{argument}: the slice gets only what is in {SOURCE}/configs")

  @property
  def accelerator(self) -> str:
    return self.tpu.replace("v5e-", "v5litepod-")

  @property
  def generation(self) -> str:
    return self.accelerator.partition("-")[0]

  @property
  def where(self) -> list[str]:
    project = [f"--project={self.project}"] if self.project else []
    return [f"--zone={self.zone}", *project]

  @property
  def nodes(self) -> list[str]:
    """The TPU VMs' names."""
    if self.slices == 1:
      return [self.name]
    return [f"{self.name}-{i}" for i in range(self.slices)]

  def status_directory(self, launch: str) -> str:
    """Where the hosts of one launch say how they are."""
    return f"{self.workdir}/launch/{self.name}/{launch}"


# --- commands -------------------------------------------------------------------------


def create(job: Job, launch: str, source: str) -> list[str]:
  """The request for a slice whose hosts run `startup.sh` at every boot.

  Args:
    job: what to run, and where.
    launch: names this request; what hosts say about an earlier one does not count.
    source: gs:// address of the code.
  """
  metadata = {
    "alignment-name": job.name,
    "alignment-launch": launch,
    "alignment-source": source,
    "alignment-workdir": job.workdir,
    "alignment-arguments": shlex.join(job.arguments),
  }
  text = "".join(metadata.values())
  delimiter = next(d for d in ("|", "#", "@@", "%%%") if d not in text)
  pairs = delimiter.join(f"{key}={value}" for key, value in metadata.items())
  node = [f"--node-id={job.name}"]
  if job.slices > 1:
    node = [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
  return [
    *_queued_resources("create", job),
    *node,
    f"--accelerator-type={job.accelerator}",
    f"--runtime-version={RUNTIMES[job.generation]}",
    *({"spot": ["--spot"], "reserved": ["--reserved"]}.get(job.capacity, [])),
    "--scopes=https://www.googleapis.com/auth/cloud-platform",
    f"--metadata=^{delimiter}^{pairs}",
    f"--metadata-from-file=startup-script={STARTUP}",
    *job.create_flags,
  ]


def describe(job: Job) -> list[str]:
  return [*_queued_resources("describe", job), "--format=json"]


def delete(job: Job) -> list[str]:
  """Deletes the request together with its slice: that is what --force means."""
  return [*_queued_resources("delete", job), "--force", "--quiet"]


def ssh(job: Job, node: str, command: str, worker: str = "all") -> list[str]:
  """Runs a command on some hosts of one slice."""
  return [
    *("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *job.where),
    *(f"--worker={worker}", f"--command={command}"),
  ]


def upload(path: Path, to: str) -> list[str]:
  return ["gcloud", "storage", "cp", "--no-clobber", str(path), to]


def read_status(job: Job, launch: str) -> list[str]:
  """Prints one line per host: its name, and `running` or training's exit status."""
  return ["gcloud", "storage", "cat", f"{job.status_directory(launch)}/*.status"]


def read_log(job: Job, launch: str) -> list[str]:
  """Prints the ends of the logs of hosts whose training has ended."""
  return ["gcloud", "storage", "cat", f"{job.status_directory(launch)}/*.log"]


def download(source: str, to: Path) -> list[str]:
  return ["gcloud", "storage", "rsync", "--recursive", source, str(to)]


def _queued_resources(verb: str, job: Job) -> list[str]:
  return ["gcloud", "compute", "tpus", "queued-resources", verb, job.name, *job.where]


# --- running them ---------------------------------------------------------------------


class GcloudError(Exception):
  """A `gcloud` command failed; the message is its own."""


@dataclasses.dataclass(frozen=True)
class Resource:
  """A queued resource as the API describes it."""

  state: str  # WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, ...
  launch: str  # as given to `create`; empty if something else made it
  error: str  # why it is FAILED
  workdir: str = ""  # likewise, and its arguments
  arguments: str = ""

  def runs(self, job: Job) -> bool:
    """Whether it was created for this job, as it is now."""
    told = (job.workdir, shlex.join(job.arguments))
    ours = bool(self.launch) and self.launch.endswith(job.tag)
    return ours and (self.workdir, self.arguments) == told


@dataclasses.dataclass(frozen=True)
class Cloud:
  """Runs the commands; `run` takes one and returns its output or raises GcloudError."""

  run: Callable[[Sequence[str]], str]

  def create(self, job: Job) -> str:
    """Uploads the code and asks for the slice; returns the launch's name."""
    launch = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S-%f}{job.tag}"
    archive = pack()
    source = archive_address(job, archive)
    with tempfile.TemporaryDirectory() as directory:
      path = Path(directory) / Path(source).name
      path.write_bytes(archive)
      self.run(upload(path, source))
    self.run(create(job, launch, source))
    return launch

  def describe(self, job: Job) -> Resource | None:
    """None if there is no such resource."""
    try:
      resource = json.loads(self.run(describe(job)))
    except GcloudError as error:
      if "NOT_FOUND" in str(error):
        return None
      raise
    state = resource.get("state", {})
    specs = resource.get("tpu", {}).get("nodeSpec", [{}])
    metadata = specs[0].get("node", {}).get("metadata", {})
    failure = state.get("failedData", {}).get("error", {})
    return Resource(
      state=state.get("state", "STATE_UNSPECIFIED"),
      launch=metadata.get("alignment-launch", ""),
      error=failure.get("message", ""),
      workdir=metadata.get("alignment-workdir", ""),
      arguments=metadata.get("alignment-arguments", ""),
    )

  def delete(self, job: Job) -> None:
    self.run(delete(job))

  def status(self, job: Job, launch: str) -> dict[str, str]:
    """What every host that has got so far says: `running`, or an exit status."""
    lines = self._statuses(job, launch)
    return dict(line.split() for line in lines if len(line.split()) == 2)

  def has_finished(self, job: Job) -> bool:
    """Whether some launch of this job, with its tag, has."""
    lines = self._statuses(job, f"*{job.tag}")
    return any(line.split()[1:] == ["0"] for line in lines)

  def _statuses(self, job: Job, launch: str) -> list[str]:
    try:
      return self.run(read_status(job, launch)).splitlines()
    except GcloudError as error:
      if "matched no objects" in str(error) or "404" in str(error):
        return []
      raise

  def log(self, job: Job, launch: str) -> str:
    """The end of training's log, once it has ended."""
    try:
      return self.run(read_log(job, launch))
    except GcloudError as error:
      return f"(no log: {error})"


def run(command: Sequence[str]) -> str:
  """Runs one command; returns what it printed.

  Raises:
    GcloudError: if it fails or takes ten minutes.
    UserError: if gcloud is not installed.
  """
  try:
    result = subprocess.run(
      command, capture_output=True, text=True, check=False, timeout=600
    )
  except FileNotFoundError:
    raise UserError(
      f"{command[0]} is not installed: see https://cloud.google.com/sdk/docs/install"
    ) from None
  except subprocess.TimeoutExpired:
    raise GcloudError(f"{shlex.join(command[:6])}: no answer in 600 s") from None
  if result.returncode:
    said = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
    raise GcloudError(f"{shlex.join(command[:6])}: {said}")
  return result.stdout


def interact(command: Sequence[str]) -> int:
  """Runs one command on this terminal; returns its exit status."""
  try:
    return subprocess.run(command, check=False).returncode
  except FileNotFoundError:
    raise UserError(f"{command[0]} is not installed") from None


def pack() -> bytes:
  """The code that a slice runs, as a .tar.gz whose bytes depend on its content only."""

  def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if info.name.endswith(("__pycache__", ".pyc")):
      return None
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    return info

  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for entry in SOURCE_ENTRIES:
      tar.add(SOURCE / entry, entry, filter=plain)
  return gzip.compress(buffer.getvalue(), mtime=0)


def archive_address(job: Job, archive: bytes) -> str:
  """Where packed code lies in the bucket: named by its content."""
  digest = hashlib.sha256(archive).hexdigest()[:16]
  return f"{job.workdir}/launch/source-{digest}.tar.gz"
