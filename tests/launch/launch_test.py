"""The launcher against a TPU API that pre-empts: commands, restart loop, bad input."""

import contextlib
import dataclasses
import io
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tarfile

import pytest

from alignment.types import UserError
from launch import gcloud, gke, tpu, watch
from launch.gcloud import Cloud, GcloudError, Job
from tests.launch import fake_tpu, tpu_server
from tests.launch.fake_tpu import FakeTpu, flags_of

ARGUMENTS = ("--config=configs/tldr.py", "--config.sft.init=gs://data/T5 1.1/{size}")
OPTIONS = (
  "--name=xxl",
  "--tpu=v5p-64",
  "--zone=us-east5-a",
  "--capacity=spot",
  "--workdir=gs://bucket/xxl",
  "--poll=0",
)
PREEMPTED_ONCE = (
  ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE running", "SUSPENDING",
   "SUSPENDED"),
  ("WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE running", "ACTIVE 0"),
)  # fmt: skip
LIFE_OF_PREEMPTED_ONCE = [
  "create xxl",
  "WAITING_FOR_RESOURCES xxl",
  "PROVISIONING xxl",
  "ACTIVE xxl",
  "SUSPENDING xxl",
  "SUSPENDED xxl",
  "delete xxl",
  "create xxl",
  "WAITING_FOR_RESOURCES xxl",
  "ACTIVE xxl",
  "delete xxl",
]


def job(**changes) -> Job:
  return Job(
    **{
      "name": "xxl",
      "tpu": "v5p-64",
      "zone": "us-east5-a",
      "workdir": "gs://bucket/xxl",
      "arguments": ARGUMENTS,
      "capacity": "spot",
      **changes,
    }
  )


@pytest.fixture
def fake(tmp_path):
  """`fake(*lives)`: the API; `fake.watcher` looks at it from inside this process."""

  def make(*lives) -> FakeTpu:
    return FakeTpu.new(tmp_path / "tpu", lives)

  return make


def cloud(fake: FakeTpu, seen: list | None = None) -> Cloud:
  def run(command):
    if seen is not None:
      seen.append(command)
    try:
      return fake.gcloud(command)
    except fake_tpu.ApiError as error:
      raise GcloudError(f"ERROR: {error.args[1]}: {error.args[2]}") from None

  return Cloud(run)


def watched(fake: FakeTpu, **options) -> watch.Verdict:
  watcher = watch.Watcher(job(), cloud(fake), **options)
  return watch.watch([watcher], poll=0)["xxl"]


# --- the restart loop -----------------------------------------------------------------


def test_preempted_slices_are_deleted_and_created_again(fake):
  api = fake(*PREEMPTED_ONCE)
  assert watched(api) == watch.Verdict(True, "finished")
  assert api.history == LIFE_OF_PREEMPTED_ONCE


def test_every_creation_has_a_status_of_its_own(fake):
  """What hosts said before a pre-emption must not count for the slice that follows."""
  api = fake(("ACTIVE running", "SUSPENDED"), ("ACTIVE", "ACTIVE 0"))
  watched(api)
  said = [p for p in (api.directory / "gs").rglob("*.status")]
  assert sorted(p.read_text() for p in said) == ["host-0 0\n", "host-0 running\n"]
  assert len({p.parent for p in said}) == 2


def test_a_user_error_is_shown_and_not_repeated(fake):
  api = fake(("ACTIVE running", "ACTIVE 1"))
  verdict = watched(api)
  assert not verdict.ok
  assert verdict.words.startswith("training ended: host-0 with status 1\n")
  assert verdict.words.endswith("\n  error: said 1")
  assert api.history == ["create xxl", "ACTIVE xxl", "delete xxl"]


def test_one_host_that_finished_speaks_for_all(fake):
  api = fake(("ACTIVE 134",))
  api.create("xxl", fake_tpu.body_of("xxl", flags_of(gcloud.create(job(), "1", "gs:"))))
  node = api.describe("xxl")["tpu"]["nodeSpec"][0]["node"]
  api.say(node["metadata"], "0", host="host-1")
  assert watched(api).ok


def test_kept_slices_are_not_deleted(fake):
  api = fake(("ACTIVE 0",))
  assert watched(api, keep=True).ok
  assert "delete xxl" not in api.history


@pytest.mark.parametrize("state", ["ACTIVE 0", "SUSPENDED", "FAILED"])
@pytest.mark.parametrize("other", ["arguments", "workdir", "launch", "tag"])
def test_a_slice_that_runs_something_else_is_let_be(fake, state, other):
  """It would be called finished, be waited for without end, or be deleted."""
  api = fake((state,))
  body = fake_tpu.body_of("xxl", flags_of(gcloud.create(job(), "1", "gs:")))
  metadata = body["tpu"]["nodeSpec"][0]["node"]["metadata"]
  ours = job()
  match other:
    case "tag":
      ours = dataclasses.replace(ours, tag="-new")
    case "launch":
      metadata["alignment-launch"] = ""
    case _:
      metadata[f"alignment-{other}"] = "gs://other/else"
  api.create("xxl", body)
  verdict = watch.watch([watch.Watcher(ours, cloud(api))], poll=0)["xxl"]
  assert not verdict.ok and "there is a slice of this name, which" in verdict.words
  assert "delete xxl" not in api.history


def test_hosts_that_say_nothing_are_noticed(fake, monkeypatch, capsys):
  """They may be unable to mount the bucket, where they would say it."""
  hours = itertools.count(0, 1800)
  monkeypatch.setattr(watch.time, "monotonic", lambda: next(hours))
  assert watched(fake(("ACTIVE",) * 5 + ("ACTIVE 0",))).ok
  assert capsys.readouterr().out.count("`launch.tpu doctor` may tell why") == 1


def test_failed_requests_are_repeated_a_few_times(fake):
  api = fake(("WAITING_FOR_RESOURCES", "FAILED"))
  verdict = watched(api)
  assert verdict == watch.Verdict(False, "the request failed: no more capacity")
  assert api.history.count("create xxl") == watch.MAX_FAILURES
  assert api.history[-1] == "delete xxl"


def test_failures_are_forgotten_once_a_slice_came_up(fake):
  failing = [("FAILED",)] * (watch.MAX_FAILURES - 1)
  api = fake(*failing, ("ACTIVE", "SUSPENDED"), *failing, ("ACTIVE 0",))
  assert watched(api).ok


def test_a_watch_that_is_started_again_goes_on(fake):
  """All that is known of a job is in the cloud: kill the watch wherever you like."""
  api = fake(*PREEMPTED_ONCE)
  verdict = None
  while verdict is None:
    verdict = watch.Watcher(job(), cloud(api)).step()
    if api.history[-1] == "delete xxl" and api.history.count("create xxl") == 2:
      break  # a new watch would rightly begin a third life
  assert api.history == LIFE_OF_PREEMPTED_ONCE


def test_gcloud_may_fail_now_and_then(fake, capsys):
  api = fake(("WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE 0"))
  healthy, calls = cloud(api), []

  def run(command):
    calls.append(command)
    if len(calls) in (4, 5, 7):
      raise GcloudError("503: try later")
    return healthy.run(command)

  assert watch.watch([watch.Watcher(job(), Cloud(run))], poll=0)["xxl"].ok
  assert capsys.readouterr().out.count("503: try later; trying again") == 3


@pytest.mark.parametrize("healthy_calls, calls_made", [(0, 1), (3, 3 + 5)])
def test_gcloud_that_goes_on_failing_ends_the_watch(fake, healthy_calls, calls_made):
  """At once if nothing ever worked: not logged in, no quota, a zone without TPUs."""
  healthy, calls = cloud(fake(("WAITING_FOR_RESOURCES",))), []

  def run(command):
    calls.append(command)
    if len(calls) > healthy_calls:
      raise GcloudError("403: no")
    return healthy.run(command)

  verdict = watch.watch([watch.Watcher(job(), Cloud(run))], poll=0)["xxl"]
  assert verdict == watch.Verdict(False, "403: no")
  assert len(calls) == calls_made


# --- the command line, with a stand-in for gcloud -------------------------------------


@pytest.fixture
def launcher(monkeypatch, tmp_path):
  """`launcher(api, command, *words)` runs launch.tpu with the stand-in on PATH."""

  def run(api: FakeTpu, *words: str) -> subprocess.CompletedProcess:
    fake_tpu.executable(api, tmp_path / "bin")
    return subprocess.run(
      [sys.executable, "-m", "launch.tpu", *words],
      env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
      cwd=gcloud.SOURCE,
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def test_a_whole_run_through_the_stand_in(fake, launcher):
  api = fake(*PREEMPTED_ONCE)
  result = launcher(api, "run", *OPTIONS, "--", *ARGUMENTS)
  assert result.returncode == 0, result.stderr
  assert api.history == LIFE_OF_PREEMPTED_ONCE
  assert "xxl: ACTIVE, training on 1 host(s)" in result.stdout
  assert result.stdout.endswith("xxl: finished\n")


def test_commands_in_this_process(fake, monkeypatch, capsys, tmp_path):
  api = fake(("WAITING_FOR_RESOURCES", "ACTIVE running", "ACTIVE"))
  monkeypatch.setattr(gcloud, "run", cloud(api).run)
  monkeypatch.setattr(gcloud, "interact", lambda c: print(api.gcloud(c)) or 0)
  (tmp_path / "xxl.args").write_text(
    "\n".join([*OPTIONS, "# a comment", "--", *map(shlex.quote, ARGUMENTS)])
  )
  options = f"@{tmp_path / 'xxl.args'}"
  with pytest.raises(UserError, match="no xxl in us-east5-a to watch"):
    tpu.main(["watch", options])
  assert tpu.main(["create", options]) == 0
  with pytest.raises(UserError, match=r"is there already \(WAITING_FOR_RESOURCES\)"):
    tpu.main(["create", options])
  body = api.describe("xxl")
  metadata = body["tpu"]["nodeSpec"][0]["node"]["metadata"]
  assert tuple(shlex.split(metadata["alignment-arguments"])) == ARGUMENTS
  capsys.readouterr()
  assert tpu.main(["log", options]) == 0
  assert "tail -n 100 -F /opt/alignment/log" in capsys.readouterr().out
  assert tpu.main(["doctor", options]) == 0
  assert "worker all: sudo bash /opt/alignment/startup.sh doctor" in (
    capsys.readouterr().out
  )
  api.say(metadata, "1")
  assert tpu.main(["log", options]) == 0  # the hosts may be gone: from the bucket
  assert "error: said 1" in capsys.readouterr().out
  assert tpu.main(["delete", options]) == 0
  assert tpu.main(["delete", options]) == 0
  assert capsys.readouterr().out == "xxl: there is none in us-east5-a\n"


def test_options_of_a_file_and_of_the_command_line(tmp_path, capsys):
  """A word after @FILE is the launcher's, though FILE ends in training's arguments."""
  path = tmp_path / "a.args"
  path.write_text("--a 'b c'  # comment\n--\n--x=1\n")
  assert tpu.expand([f"@{path}", "--d", "--", "--x=2"]) == (
    ["--a", "b c", "--d"],
    ["--x=1", "--x=2"],
  )
  path.write_text("\n".join([*OPTIONS, "--", *map(shlex.quote, ARGUMENTS)]))
  assert tpu.main(["run", f"@{path}", "--dry_run"]) == 0
  assert capsys.readouterr().out.startswith("gcloud storage cp")


@pytest.mark.parametrize(
  "words, message",
  [
    (["run", *OPTIONS], "no --config=... after --"),
    (["fly", *OPTIONS], "invalid choice: 'fly'"),
    (["run", *OPTIONS, "--tpu=v3-8", "--", *ARGUMENTS], "--tpu 'v3-8' is unknown"),
    (["run", *OPTIONS, "--tpu=v5p", "--", *ARGUMENTS], "--tpu 'v5p' is unknown"),
    (["run", *OPTIONS, "--name=X", "--", *ARGUMENTS], "--name 'X': lower-case"),
    (["run", *OPTIONS, "--workdir=/w", "--", *ARGUMENTS], "is not gs://BUCKET/DIREC"),
    (["run", *OPTIONS, "--workdir=gs://b", "--", *ARGUMENTS], "is not gs://BUCKET/DI"),
    (["run", *OPTIONS, "--slices=0", "--", *ARGUMENTS], "--slices must be 1 or more"),
    (["run", *OPTIONS, "--", "--config=configs/no.py"], "the slice gets only what is"),
    (["run", *OPTIONS, "--", f"--config={__file__}"], "the slice gets only what is in"),
    (["run", "@nowhere.args"], "nowhere.args: .*No such file"),
  ],
)
def test_bad_input(words, message):
  with pytest.raises(UserError, match=message):
    tpu.main(words)


def test_gcloud_that_is_not_installed(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match="gcloud is not installed"):
    tpu.main(["run", *OPTIONS, "--", *ARGUMENTS])


# --- the commands themselves ----------------------------------------------------------


def test_dry_run_prints_what_a_run_runs(fake, capsys):
  seen: list[list[str]] = []
  watcher = watch.Watcher(job(), cloud(fake(("ACTIVE", "ACTIVE 1")), seen))
  watch.watch([watcher], poll=0)
  capsys.readouterr()
  assert tpu.main(["run", *OPTIONS, "--dry_run", "--", *ARGUMENTS]) == 0
  printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]

  def general(command):  # a launch is named by its time, an archive by its directory
    launch = next(
      w.partition("alignment-launch=")[2].partition("|")[0]
      for c in seen
      for w in c
      if "alignment-launch=" in w
    )
    words = [w.replace(launch, "LAUNCH") for w in command]
    return [w.rpartition("/")[2] if w.endswith("tar.gz") else w for w in words]

  unique = []
  for command in map(general, seen):
    if command not in unique:
      unique.append(command)
  assert sorted(unique) == sorted(map(general, printed))


@pytest.mark.parametrize(
  "accelerator, kind, runtime",
  [
    ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
    ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-64", "v5p-64", "v2-alpha-tpuv5"),
    ("v6e-8", "v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_generations(accelerator, kind, runtime):
  flags = flags_of(gcloud.create(job(tpu=accelerator), "1", "gs:"))
  assert (flags["accelerator-type"], flags["runtime-version"]) == (kind, runtime)


def test_capacities_and_multislice():
  def flags(**changes):
    return flags_of(gcloud.create(job(**changes), "1", "gs:"))

  assert "spot" in flags() and "reserved" not in flags()
  assert "reserved" in flags(capacity="reserved")
  assert not {"spot", "reserved"} & flags(capacity="on-demand").keys()
  several = flags(slices=2, create_flags=("--network=mine",))
  assert (several["node-count"], several["node-prefix"]) == ("2", "xxl")
  assert "node-id" not in several and several["network"] == "mine"
  assert job(slices=2).nodes == ["xxl-0", "xxl-1"]


def test_metadata_survives_any_argument():
  for text in ("a,b=c", "a|b", "a|b#c", "'\"$x`"):
    arguments = ("--config=configs/tldr.py", f"--config.task={text}")
    flags = flags_of(gcloud.create(job(arguments=arguments), "1", "gs:"))
    body = fake_tpu.body_of("xxl", flags)
    metadata = body["tpu"]["nodeSpec"][0]["node"]["metadata"]
    assert tuple(shlex.split(metadata["alignment-arguments"])) == arguments
    assert metadata["startup-script"] == gcloud.STARTUP.read_text()


def test_packed_code_is_complete_and_the_same_every_time():
  archive = gcloud.pack()
  assert archive == gcloud.pack()
  with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
    names = tar.getnames()
  assert {"alignment/main.py", "configs/quickstart.py", "launch/doctor.py"} <= set(
    names
  )
  assert {"requirements.lock", "requirements-tpu.lock"} <= set(names)
  assert not [n for n in names if n.endswith(".pyc") or "__pycache__" in n]


def test_gke_commands(capsys):
  words = ["--cluster=c", "--zone=z", "--project=p", "--tpu=v6e-64", "--name=xxl"]
  words += ["--workdir=gs://bucket/xxl", "--slices=2", "--"]
  words += ["--config=configs/tldr.py", "--config.data.data_dir=gs://bucket/the data"]
  assert gke.main(words) == 0
  attach, create = map(shlex.split, capsys.readouterr().out.splitlines())
  assert attach[:3] == ["xpk", "storage", "attach"]
  assert {"--mount-point=/gs/bucket", "--bucket=bucket"} <= set(attach)
  assert {"--num-slices=2", "--tpu-type=v6e-64"} <= set(create)
  command = shlex.split(flags_of(create)["command"])
  assert "--workdir=/gs/bucket/xxl" in command
  assert "--config.data.data_dir=/gs/bucket/the data" in command


# --- a real gcloud, talking to a local server -----------------------------------------

needs_gcloud = pytest.mark.skipif(
  shutil.which("gcloud") is None, reason="the Google Cloud CLI is not installed"
)


@pytest.fixture
def real(fake, monkeypatch, tmp_path):
  """`real(*lives)`: (api, its requests) that the installed gcloud will talk to."""
  with contextlib.ExitStack() as stack:

    def make(*lives):
      api = fake(*lives)
      address, requests = stack.enter_context(tpu_server.serve(api))
      environment = tpu_server.gcloud_environment(address, tmp_path / "config")
      for name, value in environment.items():
        monkeypatch.setenv(name, value)
      return api, requests

    yield make


@needs_gcloud
def test_real_gcloud_sends_what_the_stand_in_assumes(real):
  api, requests = real(("ACTIVE",))
  assert tpu.main(["create", *OPTIONS, "--", *ARGUMENTS]) == 0
  assert {who for who, _ in requests} == {"Bearer a-token"}
  body = api.describe("xxl")
  launch = body["tpu"]["nodeSpec"][0]["node"]["metadata"]["alignment-launch"]
  [name] = api.objects("bucket")
  assert api.objects("bucket")[name].read_bytes() == gcloud.pack()
  command = gcloud.create(job(), launch, f"gs://bucket/{name}")
  assumed = fake_tpu.body_of("xxl", flags_of(command))
  [spec], [assumed_spec] = body["tpu"]["nodeSpec"], assumed["tpu"]["nodeSpec"]
  assert body["spot"] == assumed["spot"] == {}
  assert spec["nodeId"] == assumed_spec["nodeId"]
  for key, value in assumed_spec["node"].items():
    assert spec["node"][key] == value


@needs_gcloud
@pytest.mark.slow
def test_a_whole_run_through_a_real_gcloud(real, capsys):
  api, _ = real(*PREEMPTED_ONCE)
  assert tpu.main(["run", *OPTIONS, "--", *ARGUMENTS]) == 0
  assert api.history == LIFE_OF_PREEMPTED_ONCE
  assert capsys.readouterr().out.endswith("xxl: finished\n")
