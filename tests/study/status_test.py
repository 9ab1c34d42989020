"""--stages=status: what is done, runs, has stopped or waits, from files alone."""

import json
import os

import pytest

from alignment.runtime import locks
from alignment.runtime.activity import Meter, telling
from alignment.study import artefacts, status
from alignment.types import UserError
from tests import studies

DOCUMENT = "--config=tests/studies.py"


@pytest.fixture
def study(tmp_path):
  """Data and SFT are made, the golden preference model is begun; nothing has run."""
  graph = studies.graph(studies.nano(), tmp_path)
  for artefact in (graph.data(), graph.sft("nano")):
    directory = artefact.directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / artefacts.DONE).write_text("{}")
  directory = graph.golden_pm().directory(tmp_path)
  directory.mkdir()
  rows = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (2, 4)]
  (directory / "metrics.jsonl").write_text("".join(rows))
  return graph


def shown(study, workdir) -> str:
  return "\n".join(status.lines(status.stages([study], workdir)))


def test_what_is_done_what_stopped_and_what_waits(study, tmp_path):
  text = shown(study, tmp_path)
  assert text.startswith("17 stages: 2 done, 1 stopped, 14 waiting\n")
  assert "stopped  golden_pm at step 4 of 8: the same command goes on" in text
  assert "done     data, sft_nano" in text
  assert "waiting  golden_data, proxy_pm, " in text and " and 6 more" in text
  (study.golden_pm().directory(tmp_path) / "metrics.jsonl").unlink()
  study.golden_pm().directory(tmp_path).rmdir()
  assert "ready    golden_pm" in shown(study, tmp_path)


def test_what_runs_says_how_fast_and_how_long_yet(study, tmp_path, monkeypatch):
  key = study.golden_pm().key
  said = locks.said_file(tmp_path, key)
  with locks.lock(tmp_path, key) as held:
    assert held
    assert "running  golden_pm\n         step 4 of 8 is logged" in shown(
      study, tmp_path
    )
    with telling("golden_pm", said), Meter("training", 8, "steps") as meter:
      meter.reach(4)
      monkeypatch.setattr(Meter, "rate", lambda _: 2.0)
      while not said.exists():
        pass
      text = shown(study, tmp_path)
      assert "         training 4/8 steps  2.0 steps/s, 2s left\n" in text
      assert f"process {os.getpid()}" in text and "silent" not in text
      os.utime(said, (0, 0))
      assert "silent for" in shown(study, tmp_path)
    assert not said.exists()
  assert "stopped  golden_pm" in shown(study, tmp_path)


def test_a_lease_on_a_bucket_counts_as_running(study, tmp_path):
  key = study.golden_pm().key
  (tmp_path / "locks").mkdir()
  (tmp_path / "locks" / f"{key}.lease").write_text("token 3")
  assert "running  golden_pm" in shown(study, tmp_path)


def test_data_that_are_not_named_are_not_looked_for_in_the_current_directory(tmp_path):
  config = studies.nano(**{"data.format": "files"})
  with pytest.raises(UserError, match="data.path is not set: name a file of pairs"):
    status.status(config, tmp_path)


def test_looking_takes_no_lock(study, tmp_path):
  key = study.golden_pm().key
  shown(study, tmp_path)
  assert not (tmp_path / "locks").exists()
  with locks.lock(tmp_path, key) as held:
    assert held and locks.is_held(tmp_path, key)
  assert locks.is_held(tmp_path, key) is False


def test_the_command_line_shows_it_and_leaves_nothing(cli, tmp_path):
  workdir = tmp_path / "none"
  code, out, told = cli(DOCUMENT, f"--workdir={workdir}", "--stages=status")
  assert (code, told) == (0, "")
  assert out.startswith("17 stages: 1 ready, 16 waiting\n")
  assert not workdir.exists()
  code, _, told = cli(DOCUMENT, f"--workdir={workdir}", "--stages=status,data")
  assert code == 1 and "stands alone" in told


def test_worlds_are_told_apart(tmp_path):
  config = studies.nano(worlds=2)
  names = {s.name for s in status.stages(status._studies(config), tmp_path)}
  assert {"world 0 golden_pm", "world 1 golden_pm", "evaluate_world1_sft"} <= names
