"""Trackers: what is sent where, once, also after a kill; no part of any number."""

import importlib.util
import json
import sys
import types

import pytest

from alignment.runtime import metrics, tracking
from alignment.runtime.tracking import Tracking
from alignment.types import UserError
from tests import studies
from tests.runtime.files_test import file_size_limit

WANDB = Tracking(("wandb",), "toy", "0123abcd")


class Run:
  """A run of the stand-in: what was logged, by step."""

  def __init__(self, **about):
    self.about, self.logged, self.finished = about, [], False

  def log(self, values, step):
    self.logged.append((step, values))

  def finish(self):
    self.finished = True


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in for the package; its runs, in order."""
  runs: list[Run] = []
  module = types.ModuleType("wandb")
  module.__spec__ = importlib.util.spec_from_loader("wandb", None)
  module.init = lambda **about: runs.append(Run(**about)) or runs[-1]
  module.Settings = lambda **settings: settings
  module.Image = lambda path: ("image", path)
  module.Table = lambda columns, data: ("table", columns, data)
  module.Error = type("Error", (Exception,), {})
  module.login = lambda: None
  monkeypatch.setitem(sys.modules, "wandb", module)
  return runs


def log(directory, first_step: int, steps) -> None:
  """A process that resumes from a step, logs some, and is gone."""
  run = metrics.MetricLog(directory, "sft_nano", 8, first_step, 0, WANDB)
  for step in steps:
    run.write(step, {"loss": step / 10}, ())


def test_the_same_scalars_go_to_every_tracker(wandb, tmp_path):
  both = Tracking(("tensorboard", "wandb"), "toy", "0123abcd")
  run = metrics.MetricLog(tmp_path, "sft_nano", 4, 0, 0, both)
  run.write(2, {"loss": 0.5}, ())
  run.close()
  (sent,) = wandb
  assert sent.logged == [(2, {"loss": 0.5})] and sent.finished
  assert sent.about["id"] == "0123abcd" and sent.about["group"] == "toy"
  assert sent.about["resume"] == "allow" and sent.about["dir"] == str(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "metrics.jsonl", "tensorboard", "wandb"
  ]  # fmt: skip


def test_no_point_is_doubled_by_kills(wandb, tmp_path):
  log(tmp_path, 0, (2, 4, 6))  # killed; its last state is of step 2
  log(tmp_path, 2, (4,))  # killed again, before it is where the first one was
  log(tmp_path, 2, (4, 6, 8))
  steps = [step for run in wandb for step, _ in run.logged]
  assert steps == [2, 4, 6, 8]
  assert len({run.about["id"] for run in wandb}) == 1
  rows = metrics.read_jsonl(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [2, 4, 6, 8]


def test_a_full_disk_does_not_lose_the_step_that_was_sent(wandb, tmp_path):
  run = metrics.MetricLog(tmp_path, "sft_nano", 8, 0, 0, WANDB)
  run.write(2, {"loss": 0.2}, ())
  with file_size_limit(0), pytest.raises(UserError, match="wandb: cannot be written"):
    run.write(4, {"loss": 0.4}, ())
  log(tmp_path, 2, (4, 6))
  assert [step for run in wandb for step, _ in run.logged] == [2, 4, 6]


def test_figures_and_claims_are_sent_once(wandb, tmp_path):
  (tmp_path / "figures").mkdir()
  (tmp_path / "figures" / "figure_01.png").write_bytes(b"png")
  (tmp_path / "claims.csv").write_text("figure,claim\n1,gap\n")
  for _ in range(2):
    tracking.send_results(WANDB, tmp_path)
  (run,) = wandb
  ((_, values),) = run.logged
  assert values == {
    "figure_01": ("image", str(tmp_path / "figures/figure_01.png")),
    "claims": ("table", ["figure", "claim"], [["1", "gap"]]),
  }
  (tmp_path / "claims.csv").write_text("figure,claim\n1,peak\n")
  tracking.send_results(WANDB, tmp_path)
  assert len(wandb) == 2 and wandb[0].about["id"] != wandb[1].about["id"]
  tracking.send_results(Tracking(), tmp_path / "none")  # nobody asks for it


def test_what_cannot_track_is_refused_in_a_line(wandb, monkeypatch, tmp_path):
  with pytest.raises(UserError, match="'mlflow' is unknown; there are 'tensorboard'"):
    studies.graph(studies.nano(tracking=("mlflow",)))
  error = sys.modules["wandb"].Error

  def login():
    raise error("No API key configured. Use `wandb login` to log in.")

  monkeypatch.setattr(sys.modules["wandb"], "login", login)
  with pytest.raises(UserError, match="No API key.* Or set WANDB_MODE=offline$"):
    studies.graph(studies.nano(tracking=("wandb",)))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"wandb, which is not installed: pip install -e"):
    studies.graph(studies.nano(tracking=("tensorboard", "wandb")))


def test_a_tracker_that_fails_is_a_line(wandb, monkeypatch, tmp_path):
  def init(**_):
    raise OSError("no space left\nmore")

  monkeypatch.setattr(sys.modules["wandb"], "init", init)
  with pytest.raises(UserError, match=r"wandb: cannot be written \(no space left\)"):
    metrics.MetricLog(tmp_path, "sft", 4, 0, 0, WANDB)


def test_tracking_is_no_part_of_any_hash(wandb):
  graphs = [
    studies.graph(studies.nano(tracking=trackers))
    for trackers in ((), ("tensorboard",), ("tensorboard", "wandb"))
  ]
  keys = [{n: a.key for n, a in graph.artefacts().items()} for graph in graphs]
  assert keys[0] == keys[1] == keys[2]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_the_real_package_writes_a_run_offline(monkeypatch, tmp_path):
  monkeypatch.setenv("WANDB_MODE", "offline")
  tracking.check(("wandb",))
  log(tmp_path, 0, (2, 4))
  run = metrics.MetricLog(tmp_path, "sft_nano", 8, 2, 2, WANDB)
  run.write(4, {"loss": 0.4}, ())
  run.write(6, {"loss": 0.6}, ())
  run.close()
  (file,) = tmp_path.glob("wandb/offline-run-*/run-0123abcd.wandb")
  assert file.stat().st_size and (tmp_path / "wandb/sent").read_text() == "6"
  assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
