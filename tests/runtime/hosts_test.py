"""Several real processes on this machine are one; and what becomes of one that stops.

Each launch is shared by several tests, since a process takes seconds to start.
"""

import contextlib
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from alignment.runtime import hosts, interrupts, metrics
from alignment.types import PREEMPTED_STATUS, Preempted, UserError
from tests import quickly
from tests.multihost import worker

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROOT = Path(__file__).parents[2]
STEPS = 24


def free_port() -> int:
  with contextlib.closing(socket.socket()) as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
  """(status, output) of each; none outlives the test."""
  try:
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    return [(p.returncode, out) for p, out in zip(processes, outputs, strict=True)]
  finally:
    for process in processes:
      process.kill()


def environment(devices: int) -> dict[str, str]:
  return (
    os.environ
    | quickly.ENVIRONMENT
    | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
      "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
  )


def launch(count: int, plan: list, heartbeat: int = 100) -> list[tuple[int, str]]:
  """Carries out a plan (tests/multihost/worker.py) with 4 devices in all."""
  arguments = [str(free_port()), str(count)]
  return finish(
    [
      subprocess.Popen(
        [
          *(sys.executable, "-m", "tests.multihost.worker"),
          *(*arguments, str(i), str(heartbeat), json.dumps(plan)),
        ],
        cwd=ROOT,
        env=environment(4 // count),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for i in range(count)
    ]
  )


def train(directory: Path, **arguments) -> list:
  return ["train", {"directory": str(directory), "steps": STEPS} | arguments]


def read(directory: Path) -> list:
  return ["read", {"directory": str(directory), "step": STEPS}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """All launches: what they wrote, and how their processes ended, by name."""
  directory = tmp_path_factory.mktemp("hosts")
  four, two, stopped = (directory / name for name in ("four", "two", "stopped"))
  llama = train(directory / "llama", family="llama")
  term, kill = signal.SIGTERM, signal.SIGKILL
  ends = {
    "four": launch(
      4, [train(four), train(directory / "four_stopped", signal=term, at=7, process=2)]
    ),
    "killed": launch(
      2,
      [read(four), train(two), llama, train(stopped, signal=kill, at=13, process=1)],
      heartbeat=10,
    ),
    "stopped": launch(2, [train(stopped, signal=term, at=17, process=1)]),
    "resumed": launch(2, [train(stopped)]),
  }
  return directory, ends


@pytest.mark.slow
def test_every_process_judges_its_own_rows_on_its_host(tmp_path):
  for count in (1, 2):
    (tmp_path / str(count)).mkdir()
    plan = [["roll", {"directory": str(tmp_path / str(count))}]]
    assert [status for status, _ in launch(count, plan)] == [0] * count
  with np.load(tmp_path / "1" / "rolled-0.npz") as alone:
    for i in range(2):
      with np.load(tmp_path / "2" / f"rolled-{i}.npz") as together:
        for name in alone:
          np.testing.assert_allclose(together[name], alone[name], atol=1e-5)


def saved_steps(directory: Path) -> list[int]:
  return sorted(int(path.name) for path in (directory / "state").iterdir())


def final(directory: Path, process: int = 0) -> dict[str, np.ndarray]:
  with np.load(directory / f"final-{process}.npz") as arrays:
    return dict(arrays)


def logged(directory: Path) -> dict[str, list[float]]:
  rows = metrics.read_jsonl(directory / "metrics.jsonl")
  return {key: [row[key] for row in rows] for key in rows[0]}


@pytest.mark.parametrize(
  "family, names", [("t5", ("two", "four")), ("llama", ("llama",))]
)
def test_two_and_four_processes_train_as_one(runs, tmp_path, family, names):
  directory, _ = runs
  worker.run(tmp_path, STEPS, family=family)
  expected = logged(tmp_path)
  ids = json.loads((tmp_path / "ids.json").read_text())
  assert len(ids) == 8 and len(set(map(tuple, ids))) == 8
  for name in names:
    assert json.loads((directory / name / "ids.json").read_text()) == ids
    found = logged(directory / name)
    assert found["step"] == expected["step"]
    for key in expected:
      np.testing.assert_allclose(found[key], expected[key], rtol=1e-3, atol=1e-4)
    for key, array in final(tmp_path).items():
      np.testing.assert_allclose(final(directory / name)[key], array, atol=2e-3)


def test_processes_agree_on_the_parameters(runs):
  directory, _ = runs
  for key, array in final(directory / "four").items():
    np.testing.assert_array_equal(final(directory / "four", 3)[key], array)


def test_four_processes_write_what_one_reads(runs):
  """And what two read: the launch `killed` begins with that."""
  worker.read(runs[0] / "four", STEPS)


@pytest.mark.parametrize("name, count", [("four", 4), ("stopped", 2)])
def test_a_signal_to_one_stops_all_at_the_same_step(runs, name, count):
  directory, ends = runs
  where = directory / {"four": "four_stopped"}.get(name, name)
  assert [status for status, _ in ends[name]] == [PREEMPTED_STATUS] * count, ends[name]
  lines = {out.strip().splitlines()[-1] for _, out in ends[name]}
  (line,) = lines
  step = int(line.split("at step ")[1].split(",")[0])
  assert line == f"tiny: pre-empted at step {step}, saved; run the same command again"
  if name == "four":
    assert saved_steps(where)[-1] == step
  assert 7 < step < STEPS


def test_a_process_that_vanishes_ends_the_others_with_a_clear_line(runs):
  (status, out), (killed, _) = runs[1]["killed"]
  assert killed == 128 + signal.SIGKILL
  assert status == PREEMPTED_STATUS, out
  assert out.strip().splitlines()[-1] == (
    "error: aborted, most likely because another process of this job is gone (see "
    "above; noticed within 10 s); run the same command again on all hosts"
  )


def test_killed_and_preempted_it_ends_the_same(runs):
  """SIGKILL to one of two, restarted, SIGTERM to one of two, restarted."""
  directory, ends = runs
  assert [status for status, _ in ends["resumed"]] == [0, 0], ends["resumed"]
  for key, array in final(directory / "two").items():
    np.testing.assert_array_equal(final(directory / "stopped")[key], array)
  written = [(directory / n / "metrics.jsonl").read_bytes() for n in ("two", "stopped")]
  assert written[0] == written[1] and written[0].count(b"\n") == STEPS // 3


@pytest.mark.slow
def test_so_does_a_decoder(tmp_path):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  killed = train(stopped, family="llama", signal=signal.SIGKILL, at=13, process=1)
  launch(2, [train(whole, family="llama"), killed], heartbeat=10)
  assert not (stopped / "final-0.npz").exists()
  preempted = train(stopped, family="llama", signal=signal.SIGTERM, at=17, process=1)
  ends = launch(2, [preempted]) + launch(2, [train(stopped, family="llama")])
  assert [status for status, _ in ends] == [PREEMPTED_STATUS] * 2 + [0, 0], ends
  for key, array in final(whole).items():
    np.testing.assert_array_equal(final(stopped)[key], array)


def test_what_the_first_refuses_all_refuse():
  for status, out in launch(2, [["refuse", {}]]):
    assert status == 1
    assert out.strip().splitlines()[-1] == "error: the first cannot read it"


def test_one_that_fails_alone_says_why_and_takes_the_others_along():
  (other, _), (status, out) = launch(2, [["fail_alone", {}]])
  assert status == 1 and "error: only I cannot read it\n" in out
  assert other == PREEMPTED_STATUS


def test_one_that_is_interrupted_ends_with_its_line_and_takes_the_others_along():
  (other, _), (status, out) = launch(2, [["interrupt_alone", {}]])
  assert status == interrupts.STATUS and out.count(interrupts.LINE) == 1
  assert other == PREEMPTED_STATUS


# --- the command line -----------------------------------------------------------------


def command(workdir: Path, *arguments: str) -> list[str]:
  return [
    *(sys.executable, "-m", "alignment.main"),
    *(f"--config={ROOT}/tests/multihost/nano.py", f"--workdir={workdir}", *arguments),
  ]


def start(*arguments: str) -> subprocess.Popen:
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=environment(1),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(process: subprocess.Popen, pattern: str, workdir: Path) -> None:
  deadline = time.monotonic() + 240
  while not list(workdir.glob(pattern)):
    assert process.poll() is None and time.monotonic() < deadline, finish([process])
    time.sleep(0.1)


def test_a_study_of_one_process_stops_saves_and_goes_on(tmp_path):
  options = ["--stages=sft_nano", "--config.sft.steps=100000"]
  process = start(*command(tmp_path, *options))
  wait_for(process, "artefacts/sft_nano-*/state/[1-9]*", tmp_path)
  process.terminate()
  ((status, out),) = finish([process])
  assert status == PREEMPTED_STATUS, out
  last = out.strip().splitlines()[-1]
  step = int(last.split("at step ")[1].split(",")[0])
  assert (
    last == f"sft_nano: pre-empted at step {step}, saved; run the same command again"
  )
  (stage,) = tmp_path.glob("artefacts/sft_nano-*")
  assert saved_steps(stage)[-1] == step
  assert not (stage / "done.json").exists()


@pytest.mark.slow
def test_a_signal_to_the_first_worker_stops_both(tmp_path):
  """They train two policies at the time; each says where it stopped."""
  assert (
    finish([start(*command(tmp_path, "--stages=proxy_pm,golden_policy"))])[0][0] == 0
  )
  options = ["--config.workers=2", "--config.policy.steps=100000"]
  process = start(*command(tmp_path, *options))
  policies = "artefacts/world0_*/state/[1-9]*"
  wait_for(process, policies, tmp_path)
  while len({path.parent for path in tmp_path.glob(policies)}) < 2:
    time.sleep(0.1)
  process.terminate()
  ((status, out),) = finish([process])
  assert status == PREEMPTED_STATUS, out
  lines = [line for line in out.splitlines() if "pre-empted at step" in line]
  assert len(lines) == 2 and all(line.startswith("world0_") for line in lines)
  assert not list(tmp_path.glob("artefacts/world0_*/done.json"))


@pytest.mark.slow
@pytest.mark.parametrize("count, size", [(2, "nano"), (4, "nano"), (2, "llama_nano")])
def test_a_study_of_several_processes_is_that_of_one(count, size, tmp_path):
  """All stages, with evaluations as close as 8 training steps keep rounding.

  And what the processes recorded together replays, on them, bit for bit.
  """
  roles = ("golden_pm", "proxy_pm", "policy", "golden_policy")
  sizes = [f"--config.{role}.size={size}" for role in roles]
  alone = start(*command(tmp_path / "one", *sizes))
  assert finish([alone])[0][0] == 0
  port = free_port()
  together = [
    start(
      *command(
        tmp_path / "several",
        *sizes,
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={count}",
        f"--process_id={i}",
      )
    )
    for i in range(count)
  ]
  ends = finish(together)
  assert [status for status, _ in ends] == [0] * count, ends
  printed = [out.count(": done in ") for _, out in ends]
  assert printed[0] > 10 and not any(printed[1:])
  assert (tmp_path / "several" / "report.html").exists()
  for path in sorted(tmp_path.glob("one/runs/*/evaluations.jsonl")):
    other = tmp_path / "several" / path.relative_to(tmp_path / "one")
    for a, b in zip(path.open(), other.open(), strict=True):
      one, several = json.loads(a), json.loads(b)
      assert one.keys() == several.keys()
      for key, value in one.items():
        if isinstance(value, float):
          assert several[key] == pytest.approx(value, rel=0.02, abs=0.05), key
        else:
          assert several[key] == value, key
  for names in (
    ("online_ipo", "replay_ipo_window0"),
    ("four_ipo_samples4_selectbest_worst", "four_again_ipo_window0"),
  ):
    online, replayed = (
      [json.loads(line) for line in path.open()]
      for name in names
      for path in tmp_path.glob(f"several/runs/world0_{name}/evaluations.jsonl")
    )
    assert len(online) == 2
    for one, other in zip(online, replayed, strict=True):
      del one["on_policy_fraction"]  # says of which kind the run is, not how it went
      measured = [key for key, value in one.items() if isinstance(value, float)]
      assert "kl" in measured
      assert [one[key] for key in measured] == [other[key] for key in measured]


# --- one process ----------------------------------------------------------------------


@pytest.mark.parametrize(
  "given, variables, expected",
  [
    (("", -1, -1), {}, None),
    (("", 1, -1), {}, None),
    (("h:1", 2, 1), {}, ("h:1", 2, 1)),
    (("", -1, -1), {"COORDINATOR_ADDRESS": "h:1", "NUM_PROCESSES": "4",
                    "PROCESS_ID": "0"}, ("h:1", 4, 0)),
    (("", 8, 3), {"COORDINATOR_ADDRESS": "h:1", "PROCESS_ID": "0"}, ("h:1", 8, 3)),
    (("", 2, 0), {}, "several processes need all of --coordinator"),
    (("h:1", 2, -1), {}, "several processes need all of"),
    (("h", 2, 0), {}, "--coordinator 'h' is not HOST:PORT"),
    (("h:1", 2, 2), {}, "--process_id 2 is not below --num_processes 2"),
    (("h:1", -1, 0), {"NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two', not a num"),
  ],
)  # fmt: skip
def test_configured(monkeypatch, given, variables, expected):
  for name in "COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID":
    monkeypatch.delenv(f"JAX_{name}", raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(f"JAX_{name}", value)
  if isinstance(expected, str):
    with pytest.raises(UserError, match=expected):
      hosts.configured(*given)
  else:
    found = hosts.configured(*given)
    assert found is None or tuple(found.values()) == expected
    assert (found is None) == (expected is None)


def test_workers_and_processes_do_not_mix(cli, tmp_path):
  status, _, err = cli(
    f"--config={ROOT}/configs/quickstart.py",
    f"--workdir={tmp_path}",
    "--coordinator=localhost:1",
    "--num_processes=2",
    "--process_id=0",
  )
  assert status == 1
  assert err == (
    "error: workers=2 share one host without accelerators; with several processes, or "
    "on a TPU, set --config.workers=1\n"
  )


def test_one_process_decides_for_itself(monkeypatch):
  assert hosts.on_first(lambda: (1, 2)) == (1, 2)
  monkeypatch.setattr(hosts, "_job", hosts._Job())
  hosts.stop_if_preempted("here")
  hosts._stop()
  with pytest.raises(Preempted, match="here: pre-empted"):
    hosts.stop_if_preempted("here")
