"""The Cloud TPU API as a state machine with a script, and Cloud Storage as directories.

`FakeTpu` plays both. It is met in three ways: `FakeTpu.gcloud` understands the command
lines that `launch.gcloud` writes; `executable` puts that behind a program called
`gcloud`, which is started often: only quick imports here; `tpu_server.serve` is the
HTTP API, for a real `gcloud`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import fnmatch
import json
from pathlib import Path
import shutil
import sys
from typing import Any

ROOT = Path(__file__).parents[2]


class ApiError(Exception):
  """What the API answers instead: an HTTP code, a status, a message."""


class FakeTpu:
  """State in `directory`, so that processes can share it.

  The script is a list of lives, one per creation (the last one repeats), each a list of
  states that successive looks find (the last one stays). A word after a state is what a
  host then says of its training: `running`, or an exit status.
  """

  def __init__(self, directory: Path):
    self.directory = directory

  @classmethod
  def new(cls, directory: Path, lives: Sequence[Sequence[str]]) -> "FakeTpu":
    fake = cls(directory)
    directory.mkdir(parents=True)
    state = {"lives": lives, "created": 0, "resources": {}, "history": []}
    (directory / "state.json").write_text(json.dumps(state))
    return fake

  @contextlib.contextmanager
  def _state(self) -> Iterator[dict[str, Any]]:
    with open(self.directory / "lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      state = json.loads((self.directory / "state.json").read_text())
      yield state
      (self.directory / "state.json").write_text(json.dumps(state))

  @property
  def history(self) -> list[str]:
    """Every creation, change of state and deletion, in order."""
    with self._state() as state:
      return state["history"]

  # --- queued resources ---------------------------------------------------------------

  def create(self, name: str, body: dict[str, Any]) -> None:
    with self._state() as state:
      if name in state["resources"]:
        raise ApiError(409, "ALREADY_EXISTS", f"{name} already exists")
      lives = state["lives"]
      life = lives[min(state["created"], len(lives) - 1)]
      state["created"] += 1
      state["resources"][name] = {"body": body, "life": list(life), "state": ""}
      state["history"].append(f"create {name}")

  def describe(self, name: str) -> dict[str, Any]:
    """Looks once, after which the script goes on."""
    with self._state() as state:
      found = self._find(state, name)
      now, _, said = found["life"][0].partition(" ")
      if len(found["life"]) > 1:
        found["life"].pop(0)
      if now != found["state"]:
        found["state"] = now
        state["history"].append(f"{now} {name}")
      body = found["body"]
      if said:
        metadata = body["tpu"]["nodeSpec"][0]["node"]["metadata"]
        self.say(metadata, said)
      described: dict[str, Any] = {"state": now}
      if now == "FAILED":
        described["failedData"] = {"error": {"code": 8, "message": "no more capacity"}}
      return {**body, "name": name, "state": described}

  def delete(self, name: str, force: bool) -> None:
    with self._state() as state:
      found = self._find(state, name)
      if found["state"] not in ("SUSPENDED", "FAILED") and not force:
        raise ApiError(400, "FAILED_PRECONDITION", f"{name} is {found['state']}")
      del state["resources"][name]
      state["history"].append(f"delete {name}")

  def _find(self, state: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in state["resources"]:
      raise ApiError(404, "NOT_FOUND", f"Resource '{name}' was not found")
    return state["resources"][name]

  def say(self, metadata: dict[str, str], said: str, host: str = "host-0") -> None:
    """What startup.sh writes into the bucket."""
    directory = self.path(
      f"{metadata['alignment-workdir']}/launch/{metadata['alignment-name']}/"
      f"{metadata['alignment-launch']}"
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{host}.status").write_text(f"{host} {said}\n")
    if said != "running":
      (directory / f"{host}.log").write_text(f"step 7 of 9\nerror: said {said}\n")

  # --- storage ------------------------------------------------------------------------

  def path(self, address: str) -> Path:
    return self.directory / "gs" / address.removeprefix("gs://")

  def objects(self, bucket: str) -> dict[str, Path]:
    root = self.directory / "gs" / bucket
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p for p in files}

  # --- as a command line --------------------------------------------------------------

  def gcloud(self, command: Sequence[str]) -> str:
    """What `gcloud` prints for a command; raises ApiError where it would fail."""
    words = [w for w in command[1:] if not w.startswith("--")]
    flags = flags_of(command)
    match words:
      case ["compute", "tpus", "queued-resources", verb, name]:
        assert flags["zone"], "a zone is needed"
        if verb == "create":
          self.create(name, body_of(name, flags))
        elif verb == "describe":
          assert flags["format"] == "json"
          return json.dumps(self.describe(name))
        elif verb == "delete":
          assert "quiet" in flags, "would ask"
          self.delete(name, "force" in flags)
        else:
          raise AssertionError(verb)
      case ["storage", "cp", source, to]:
        self.path(to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, self.path(to))
      case ["storage", "cat", pattern]:
        bucket, _, glob = pattern.removeprefix("gs://").partition("/")
        found = [p for n, p in self.objects(bucket).items() if fnmatch.fnmatch(n, glob)]
        if not found:
          raise ApiError(404, "NOT_FOUND", "The following URLs matched no objects")
        return "".join(p.read_text() for p in found)
      case ["storage", "rsync", source, to]:
        assert "recursive" in flags
        shutil.copytree(self.path(source), to, dirs_exist_ok=True)
      case ["compute", "tpus", "tpu-vm", "ssh", node]:
        return f"ssh to {node}, worker {flags['worker']}: {flags['command']}\n"
      case _:
        raise AssertionError(f"not understood: {command}")
    return ""


def flags_of(command: Sequence[str]) -> dict[str, str]:
  return dict(w[2:].partition("=")[::2] for w in command if w.startswith("--"))


def metadata_of(flags: dict[str, str]) -> dict[str, str]:
  """The instance's metadata that these flags of `create` ask for."""
  delimiter, pairs = ",", flags["metadata"]
  if pairs.startswith("^"):
    _, delimiter, pairs = pairs.split("^", 2)
  metadata = dict(pair.split("=", 1) for pair in pairs.split(delimiter))
  for pair in flags["metadata-from-file"].split(","):
    key, path = pair.split("=", 1)
    metadata[key] = Path(path).read_text()
  return metadata


def body_of(name: str, flags: dict[str, str]) -> dict[str, Any]:
  """The request that `queued-resources create` with these flags sends."""
  spec: dict[str, Any] = {
    "node": {
      "acceleratorType": flags["accelerator-type"],
      "runtimeVersion": flags["runtime-version"],
      "metadata": metadata_of(flags),
    }
  }
  if "node-id" in flags:
    spec["nodeId"] = flags["node-id"]
  else:
    spec["multisliceParams"] = {
      "nodeCount": int(flags["node-count"]),
      "nodeIdPrefix": flags["node-prefix"],
    }
  body: dict[str, Any] = {"tpu": {"nodeSpec": [spec]}}
  if "spot" in flags:
    body["spot"] = {}
  if "reserved" in flags:
    body["guaranteed"] = {"reserved": True}
  return body


def executable(fake: FakeTpu, directory: Path) -> Path:
  """Writes a program `gcloud` that plays `fake`; its directory belongs on PATH."""
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / "gcloud"
  path.write_text(
    f"#!{sys.executable} -SE\n"
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    "from tests.launch import fake_tpu\n"
    f"fake_tpu.main({str(fake.directory)!r}, sys.argv)\n"
  )
  path.chmod(0o755)
  return path


def main(directory: str, argv: list[str]) -> None:
  try:
    print(FakeTpu(Path(directory)).gcloud(argv), end="")
  except ApiError as error:
    print(f"ERROR: (gcloud) {error.args[1]}: {error.args[2]}", file=sys.stderr)
    sys.exit(1)
