"""Sweeps: their plan, on this machine (also when killed), and on slices."""

import dataclasses
import itertools
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import threading
import time

import pytest

from alignment.study import artefacts, recipes
from alignment.types import UserError
from launch import gcloud, sweep
from launch.sweep import Member, Process
from tests import studies
from tests.launch import fake_tpu
from tests.launch.fake_tpu import FakeTpu

ROOT = Path(__file__).parents[2]
SIZES = """
from tests import studies
def get_config():
  c = studies.nano()
  c.runs = {
    "online": {"method": ("online",), "size": ("nano", "micro")},
    "offline": {"method": ("offline",), "size": ("nano", "micro"), "beta": (0.1, 1.0)},
  }
  return c
"""
BY_SIZE = """
def get_sweep():
  return {
    "by": "size",
    "shared": ("proxy_pm", "golden_samples", "sft_samples"),
    "slices": {"v5p": {"nano": "v5p-8", "micro": "v5p-16"}},
  }
"""
# Instead of alignment.main: says when it ran, and waits while a file `hold` is there.
PROGRAM = """
import os, pathlib, sys, time
workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
name = sys.argv[1]
def say(word):
  with open(workdir / "events", "a") as f:
    f.write(f"{word} {name}\\n")
say("start")
for _ in range(6000):
  if not (workdir / f"hold-{name}").exists():
    break
  time.sleep(0.05)
time.sleep(0.1)
fails = workdir / f"fails-{name}"
if fails.exists():
  words = fails.read_text().split()
  fails.write_text(" ".join(words[1:]))
  if words:
    if words[0] == "error":
      sys.exit("error: a key is unknown")
    sys.exit(int(words[0]))
say("end")
"""


@pytest.fixture
def files(tmp_path):
  """--config and --sweep of a small study with policies of two sizes."""
  (tmp_path / "sizes.py").write_text(SIZES)
  (tmp_path / "by_size.py").write_text(BY_SIZE)
  return f"--config={tmp_path / 'sizes.py'}", f"--sweep={tmp_path / 'by_size.py'}"


# --- the plan -------------------------------------------------------------------------


def stages_of(member: Member) -> list[str]:
  [stages] = [a for a in member.arguments if a.startswith("--stages=")]
  return stages.removeprefix("--stages=").split(",")


@pytest.mark.parametrize("worlds", [1, 2])
def test_the_plan_covers_every_run_once(files, worlds):
  arguments = [files[0], f"--config.worlds={worlds}", "--config.first_world=3"]
  config = sweep.load_config(arguments)
  assert config.worlds == worlds
  by_size = sweep.load_sweep(files[1].removeprefix("--sweep="))
  shared, members, [figures] = sweep.plan(config, by_size, arguments)
  evaluated = [name for m in members for name in stages_of(m)]
  names = recipes.runs(config)
  expected = [f"evaluate_world{w}_{name}" for w in (3, 4)[:worlds] for name in names]
  assert sorted(evaluated) == sorted(expected) and len(set(evaluated)) == len(evaluated)
  assert len(shared) == worlds and len(members) == 2 * worlds
  assert figures.arguments == tuple(arguments)
  for member in [*shared, *members]:  # alignment.main knows all these stages
    own = sweep.load_config([a for a in member.arguments if "--stages" not in a])
    study = studies.graph(own)
    assert set(stages_of(member)) <= set(study.artefacts())
  for member in members:
    assert all(f"size{member.size}" in name for name in stages_of(member))


@pytest.mark.parametrize("figure", ["figure_10", "figure_14"])
def test_what_members_share_is_made_before_them(figure):
  """Else two slices would make the same artefact at the same time."""
  arguments = [f"--config={ROOT}/configs/study.py:{figure}"]
  config = sweep.load_config(arguments)
  scaling = sweep.load_sweep(str(ROOT / "configs" / "sweeps" / "scaling.py"))
  [shared], members, _ = sweep.plan(config, scaling, arguments)
  study = studies.graph(config)

  def keys(member: Member) -> set[str]:
    targets = [study.artefacts()[name] for name in stages_of(member)]
    return {a.key for a in artefacts.closure(targets)}

  assert len(members) > 1
  for first, second in itertools.combinations(members, 2):
    assert keys(first) & keys(second) <= keys(shared)


def test_a_member_of_several_sizes_has_no_slice_of_one_of_them(files):
  config = sweep.load_config([files[0]])
  by_size = sweep.load_sweep(files[1].removeprefix("--sweep="))
  by_loss = dataclasses.replace(by_size, by="loss")
  _, [member], _ = sweep.plan(config, by_loss, [files[0]])
  assert (member.name, member.size) == ("ipo", "nano and micro")


def test_a_member_is_run_again_by_code_that_computes_other_numbers(files, monkeypatch):
  config = sweep.load_config([files[0]])
  member = Member("nano", "nano", (files[0],))
  before = sweep.tag(config, member)
  assert sweep.tag(config, member) == before
  monkeypatch.setattr(artefacts, "VERSION", artefacts.VERSION + 1)
  assert sweep.tag(config, member) != before


def test_bad_input(files, tmp_path):
  def fails(message: str, *words: str) -> None:
    with pytest.raises(UserError, match=message):
      sweep.sweep_main([*files, f"--workdir={tmp_path}/w", *words])

  larger = "--config.golden_pm.size=milli"
  fails("no v5p slice for size 'milli'", "--tpu=v5p", "--zone=z", "--", larger)
  fails("bta", "--", "--config.bta=1")
  fails("stages", "--", "--stages=data")
  fails("--tpu 'v4' is not in the sweep: v5p", "--tpu=v4", "--zone=z")
  fails("name the slices' generation", "--workdir=gs://bucket/w")
  fails("--zone is required", "--tpu=v5p", "--workdir=gs://bucket/w")
  fails("--jobs must be 1 or more", "--jobs=0")
  fails("nowhere.py", "--sweep=nowhere.py")
  fails("--poll: invalid seconds value: '-1'", "--poll=-1")
  (tmp_path / "empty.py").write_text("")
  fails("get_sweep", f"--sweep={tmp_path}/empty.py")
  (tmp_path / "odd.py").write_text("def get_sweep(): return {'bye': 'size'}")
  fails("bye", f"--sweep={tmp_path}/odd.py")


# --- this machine ---------------------------------------------------------------------

MEMBERS = (("shared",), ("a", "b", "c"), ("figures",))


def run_members(workdir: Path, jobs: int) -> bool:
  """Runs MEMBERS with PROGRAM here; True if all finished."""
  (workdir / "program.py").write_text(PROGRAM)
  free = sweep.shares(jobs)
  program = (sys.executable, "-S", str(workdir / "program.py"))
  phases = [
    [Process(Member(n, "", (n,)), workdir, "tag", free, program) for n in names]
    for names in MEMBERS
  ]
  return sweep.run(phases, 0.02, jobs)


def events(workdir: Path) -> list[str]:
  path = workdir / "events"
  return path.read_text().splitlines() if path.exists() else []


def test_phases_follow_each_other_and_jobs_are_limited(tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"hold-{name}").write_text("")

  def release():
    while not {"start a", "start b"} <= set(events(tmp_path)):
      time.sleep(0.02)
    time.sleep(0.3)
    seen.extend(events(tmp_path))
    for name in ("a", "b"):
      (tmp_path / f"hold-{name}").unlink()

  seen: list[str] = []
  thread = threading.Thread(target=release)
  thread.start()
  assert run_members(tmp_path, 2)
  thread.join()
  assert seen[:2] == ["start shared", "end shared"]
  assert sorted(seen[2:]) == ["start a", "start b"]  # and not c
  said = events(tmp_path)
  assert said[-2:] == ["start figures", "end figures"] and len(said) == 10


def test_finished_members_are_skipped(tmp_path):
  (tmp_path / "fails-b").write_text("error")
  assert not run_members(tmp_path, 1)
  assert "start figures" not in events(tmp_path)  # but c, after b, was run
  before = len(events(tmp_path))
  assert run_members(tmp_path, 1)
  assert events(tmp_path)[before:] == [
    "start b",
    "end b",
    "start figures",
    "end figures",
  ]


@pytest.mark.parametrize(
  "statuses, fine", [("75 75 75 75", True), ("134 1", True), ("139 139 139", False)]
)
def test_crashes_and_preemptions(tmp_path, statuses, fine):
  (tmp_path / "fails-a").write_text(statuses)
  assert run_members(tmp_path, 3) is fine


def test_members_have_cores_of_their_own():
  cores = os.sched_getaffinity(0)
  assert sorted(c for share in sweep.shares(len(cores)) for c in share) == sorted(cores)
  assert sweep.shares(len(cores) + 1) == [sorted(cores)] * (len(cores) + 1)


def test_a_killed_sweep_takes_its_members_along_and_goes_on(tmp_path):
  (tmp_path / "hold-b").write_text("")
  code = (
    "from tests.launch import sweep_test as t; t.run_members(t.Path(t.sys.argv[1]), 2)"
  )
  process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
  for _ in range(6000):
    if (tmp_path / "launch" / "c-tag.done").exists():
      break
    assert process.poll() is None
    time.sleep(0.02)
  process.kill()
  process.wait()
  (tmp_path / "hold-b").unlink()
  time.sleep(0.5)
  assert "end b" not in events(tmp_path)  # it died with the sweep
  before = len(events(tmp_path))
  assert run_members(tmp_path, 2)
  assert events(tmp_path)[before:] == [
    "start b",
    "end b",
    "start figures",
    "end figures",
  ]


@pytest.mark.slow
def test_a_whole_sweep_of_two_sizes_killed_on_the_way(files, tmp_path):
  command = [sys.executable, "-m", "launch.sweep", *files, "--jobs=2"]
  command.append(f"--workdir={tmp_path / 'w'}")

  def start() -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

  first = start()
  for _ in range(6000):
    if [*(tmp_path / "w" / "launch").glob("shared-*.done")]:
      break
    assert first.poll() is None, first.communicate()
    time.sleep(0.1)
  first.kill()
  first.communicate()
  second = start()
  output, _ = second.communicate(timeout=1200)
  assert second.returncode == 0, output
  assert "shared: finished before" in output
  assert (tmp_path / "w" / "figures" / "figure_01.png").exists()
  for size in ("nano", "micro"):  # figure 1 itself draws only the study's own size
    assert [*(tmp_path / "w" / "runs").glob(f"*_size{size}/evaluations.jsonl")]
  third = start()
  output, _ = third.communicate(timeout=600)
  assert output.count("finished before") == 4, output


# --- slices ---------------------------------------------------------------------------


def test_every_member_gets_a_slice_of_its_size(files, tmp_path, monkeypatch):
  api = FakeTpu.new(tmp_path / "tpu", [["ACTIVE running", "SUSPENDED"], ["ACTIVE 0"]])
  seen = []

  def run(command):
    seen.append(command)
    try:
      return api.gcloud(command)
    except fake_tpu.ApiError as error:
      raise gcloud.GcloudError(f"{error.args[1]}: {error.args[2]}") from None

  monkeypatch.setattr(gcloud, "run", run)
  monkeypatch.setattr(
    gcloud.Job, "__post_init__", lambda self: None
  )  # a config in /tmp
  monkeypatch.chdir(tmp_path)
  api.path("gs://bucket/w/figures").mkdir(parents=True)
  (api.path("gs://bucket/w/figures") / "figure_01.csv").write_text("drawn")
  words = [*files, "--workdir=gs://bucket/w", "--tpu=v5p", "--zone=z", "--poll=0"]
  words += ["--name=two", "--", "--config.policy.steps=10"]
  assert sweep.sweep_main(words) == 0
  created = [
    (c[5], fake_tpu.flags_of(c)["accelerator-type"])
    for c in seen
    if c[3:5] == ["queued-resources", "create"]
  ]
  assert created[0] == created[1] == ("two-shared", "v5p-8")  # pre-empted once
  assert created[-1] == ("two-figures", "v5p-8")
  assert set(created[2:-1]) == {("two-nano", "v5p-8"), ("two-micro", "v5p-16")}
  assert Path("two/figures/figure_01.csv").read_text() == "drawn"
  before = len(seen)
  assert sweep.sweep_main(words) == 0  # all has finished: nothing is asked for again
  assert not [c for c in seen[before:] if c[3:5] == ["queued-resources", "create"]]
  words[-1] = "--config.policy.steps=11"
  assert sweep.sweep_main(words) == 0  # something else: it is
  assert (
    len([c for c in seen[before:] if c[3:5] == ["queued-resources", "create"]]) == 4
  )


CHIPS_PER_UNIT = {"v4": 0.5, "v5p": 0.5, "v5e": 1, "v6e": 1}  # of an accelerator's N


@pytest.mark.parametrize("generation", CHIPS_PER_UNIT)
def test_the_scaling_sweep_fits_the_paper(generation, capsys, monkeypatch):
  """Every size has a slice, whose chips share the batches of that size evenly."""
  monkeypatch.chdir(ROOT)
  paper, path = "--config=configs/study.py:figure_14,tldr", "configs/sweeps/scaling.py"
  config = sweep.load_config([paper])
  words = ["--workdir=gs://bucket/w", f"--tpu={generation}", "--zone=z", "--dry_run"]
  assert sweep.sweep_main([paper, f"--sweep={path}", *words]) == 0
  lines = map(shlex.split, capsys.readouterr().out.splitlines())
  asked = {c[5]: fake_tpu.flags_of(c) for c in lines if c[4:5] == ["create"]}
  assert list(asked) == [
    "sweep-shared",
    *(f"sweep-t5-1-1-{size}" for size in ("large", "xl", "xxl")),
    "sweep-figures",
  ]
  trained = [recipe for _, recipe in recipes.runs(config).values()]
  for size in ("t5_1_1_large", "t5_1_1_xl", "t5_1_1_xxl"):
    flags = asked[f"sweep-{size.replace('_', '-')}"]
    arguments = fake_tpu.metadata_of(flags)["alignment-arguments"]
    [tensor] = re.findall(r"mesh\.tensor=(\d+)", arguments) or ["1"]
    units = int(flags["accelerator-type"].split("-")[1])
    rows = int(units * CHIPS_PER_UNIT[generation]) // int(tensor)  # data x fsdp
    batches = [r.batch_size for r in trained if r.size == size]
    batches.append(config.sft.by_size.get(size, config.sft)["batch_size"])
    batches.append(config.evaluation.batch_size)
    assert not [batch for batch in batches if batch % rows], (batches, rows)
