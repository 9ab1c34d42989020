"""A study that is killed and restarted ends as one that was left alone."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from alignment.runtime import checkpoint
from tests.endurance import soak


@pytest.mark.slow
def test_a_study_of_two_families_survives_its_kills(tmp_path):
  """Some of `make soak`'s 50, in a study with an online run of each, and its replay."""
  survives(tmp_path, "families", 4)
  saved = {
    re.sub("-[^/]*", "", name): digest
    for name, digest in soak.snapshot(tmp_path / "undisturbed").items()
  }
  for size in ("nano", "llama_nano"):
    online, replay = (
      saved[f"artefacts/world0_{run}_size{size}/params/8"]
      for run in ("online_ipo", "replay_ipo_window0")
    )
    assert online == replay


@pytest.mark.slow
def test_runs_of_four_samples_survive_their_kills(tmp_path):
  survives(tmp_path, "short", 4)


def survives(tmp_path, which: str, kills: int) -> None:
  config = soak.ROOT / "tests" / f"studies.py:{which}"
  plan = [
    soak.Kill(12, "clock", 0.3),
    soak.Kill(20, "before"),
    soak.Kill(3, "after"),
    soak.Kill(6, "clock", 1.0),
  ][:kills]
  hits, studies = soak.Study(config, tmp_path).survives(plan)
  assert len(hits) == kills and studies >= 1


def test_the_plan_is_seeded_and_half_by_the_clock():
  plan = soak.plan(50, 0)
  assert plan == soak.plan(50, 0) != soak.plan(50, 1)
  count = {how: sum(kill.how == how for kill in plan) for how in ("before", "after")}
  assert count == {"before": 13, "after": 12}
  assert all(kill.progress > 0 for kill in plan)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_victim_dies_where_it_was_told(tmp_path, how):
  code = (
    "import os, sys\nfrom pathlib import Path\nfrom tests.endurance import soak\n"
    "root = Path(sys.argv[1])\n"
    f"soak.victim(soak.Kill(2, {how!r}), root / 'report')\n"
    "for name in 'abbcd':\n"
    "  (root / 'new').write_text(name)\n"
    "  os.replace(root / 'new', root / name)\n"
  )
  done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=soak.ROOT)
  assert done.returncode == -9
  # `a` and `b` are progress, the second `b` is none, but a commit to die at.
  assert (tmp_path / "report").read_text() == f"{how} b"
  assert sorted(p.name for p in tmp_path.iterdir() if p.name in "abcd") == ["a", "b"]


def test_differences_are_seen_in_files_and_in_arrays(tmp_path):
  stage = tmp_path / "artefacts" / "sft-1"
  params = {"kernel": np.arange(6, dtype=np.float32)}

  def write(params):
    checkpoints = checkpoint.Checkpoints(stage)
    checkpoints.save_params(4, params)
    checkpoints.save_state(4, {"state": params})
    checkpoints.close()

  write(params)
  for name, text in (("done.json", "{}"), ("figures/figure_01.csv", "a,b"),
                     ("runs/x/evaluations.jsonl", "{}\n"), ("stream/0.npz", "x"),
                     ("locks/a", "1"), ("figures/figure_01.png", "1")):  # fmt: skip
    path = tmp_path / name if "/" in name else stage / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  before = soak.snapshot(tmp_path)
  assert before.keys() == {
    "artefacts/sft-1/done.json", "artefacts/sft-1/params/4",
    "artefacts/sft-1/state/4/state", "figures/figure_01.csv",
    "runs/x/evaluations.jsonl", "stream/0.npz",
  }  # fmt: skip
  assert not soak.differences(before, soak.snapshot(tmp_path))
  (tmp_path / "stream/0.npz").write_text("y")
  (tmp_path / "runs/x/evaluations.jsonl").write_text(json.dumps({"a": 1}))
  os.remove(tmp_path / "figures/figure_01.csv")
  write({"kernel": np.nextafter(params["kernel"], np.float32(9))})
  changed = soak.differences(before, soak.snapshot(tmp_path))
  assert changed == [
    "artefacts/sft-1/params/4", "figures/figure_01.csv", "runs/x/evaluations.jsonl",
    "stream/0.npz",
  ]  # fmt: skip
