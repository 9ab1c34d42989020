"""The table that a run ends with: the best checkpoint of every series."""

import dataclasses

from alignment.analysis.best import best_checkpoints
from tests import synthetic


def test_the_best_checkpoint_of_every_series_with_its_interval(study):
  lines = best_checkpoints(study).splitlines()
  assert lines[0].split() == [
    "best",
    "of",
    "run",
    "step",
    "KL",
    "tokens",
    "golden",
    "PM",
    "truth",
    *("at", "equal", "length"),
  ]
  assert lines[-1].startswith("sft ")
  assert not any("golden_policy" in line for line in lines)
  online = [run for run in study if run.series == "online"]
  best = max(run.win_rates_E("golden PM").max() for run in online)
  (row,) = (line for line in lines if line.startswith("online "))
  run = next(run for run in online if run.name == row.split()[1])
  at = run.steps_E.tolist().index(int(row.split()[2]))
  assert run.win_rates_E("golden PM")[at] == best
  assert f"{run.kl_E[at]:.2f}  8.0     {best:.3f} ± " in row
  assert max(map(len, lines)) <= 130


def test_an_unknown_truth_and_equals():
  (run, *_) = synthetic.study()
  wins = {"golden PM": run.wins["golden PM"] * 0 + 1}
  line = best_checkpoints([dataclasses.replace(run, wins=wins)]).splitlines()[1]
  assert line.split()[2] == str(run.steps_E[0])  # the first of equals
  assert line.endswith("1.000 ± 0.000  unknown")
  assert best_checkpoints([]) == ""
