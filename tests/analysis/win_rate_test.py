"""Win rate against KL: every number drawn is in the CSV, and is the evaluations'."""

import csv
import dataclasses

import numpy as np
import pytest

from alignment.analysis import figures
from alignment.analysis.envelopes import envelope
from alignment.analysis.figures import win_rate
from tests import synthetic


def make_run(name, series, rates, kls, truth=True, **fields):
  seed = len(name) + 100 * len(kls)
  return synthetic.make_run(
    name,
    series,
    synthetic.drawn(rates, seed),
    kls,
    truth=synthetic.drawn(rates, seed + 1) if truth else None,
    **fields,
  )


@pytest.fixture(name="runs")
def _runs():
  return [
    make_run("on", "online", [0.2, 0.3, 0.5, 0.7], [0, 0.5, 3, 9]),
    make_run("off_a", "offline", [0.2, 0.3, 0.4], [0.001, 1, 4]),
    make_run("off_bb", "offline", [0.4, 0.5, 0.3], [0.8, 2, 20]),
    make_run("sft", "sft", [0.25], [0], loss="sft"),
    make_run("golden_policy", "golden_policy", [0.5], [7]),
  ]


def read_csv(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_figure_01_has_every_point_and_envelope(tmp_path, runs):
  png, table, _ = figures.draw("figure_01", runs, tmp_path / "figures")
  assert png.name == "figure_01.png" and png.read_bytes().startswith(b"\x89PNG")
  rows = read_csv(table)
  by_name = {run.name: run for run in runs}
  points = [row for row in rows if row["kind"] == "point"]
  assert len(points) == 2 * (3 + 2 + 3)  # two judges; KL below the floor left out
  for row in points:
    run = by_name[row["run"]]
    at = run.steps_E.tolist().index(int(row["step"]))
    assert float(row["kl"]) == pytest.approx(run.kl_E[at])
    win_rate = run.wins[row["judge"]][at].mean()
    assert float(row["win_rate"]) == pytest.approx(win_rate)
  for judge in ("golden PM", "truth"):
    offline = [run for run in runs if run.series == "offline"]
    drawn = [
      [float(row[key]) for key in ("kl", "win_rate", "low", "high")]
      for row in rows
      if (row["kind"], row["judge"], row["series"]) == ("envelope", judge, "offline")
    ]
    np.testing.assert_allclose(np.transpose(drawn), envelope(offline, judge), rtol=1e-5)
    naive = [
      float(row["win_rate"])
      for row in rows
      if (row["kind"], row["judge"]) == ("envelope_naive", judge)
      and row["series"] == "online"
    ]
    rates = runs[0].win_rates_E(judge)[1:]
    np.testing.assert_allclose(naive, np.maximum.accumulate(rates), rtol=1e-5)
    levels = {
      row["series"]: float(row["win_rate"])
      for row in rows
      if (row["kind"], row["judge"]) == ("level", judge)
    }
    sft = by_name["sft"].win_rates_E(judge)[0]
    assert levels == pytest.approx({"golden_policy": 0.5, "sft": sft})


def test_axes_are_labelled_logarithmic_and_alike_under_both_judges(runs):
  figure, _ = win_rate.figure_01(runs)
  by_model, by_truth = figure.axes
  assert by_model.get_xscale() == "log"
  assert by_model.get_xlabel() == "KL(policy, SFT), nats"
  assert by_model.get_ylabel() == "win rate against golden policy"
  assert by_model.get_title("left") == "tldr, judged by the golden PM"
  assert by_truth.get_title("left") == "tldr, judged by the true utility"
  assert by_model.get_ylim() == by_truth.get_ylim()
  legend = [text.get_text() for text in figure.legends[0].get_texts()]
  assert legend == ["online (1 run)", "offline (2 runs)", "golden policy (0.5)", "SFT"]


def test_one_panel_per_task_and_only_series_of_the_figure():
  runs = [
    make_run("on", "online", [0.5], [1], task="tldr", truth=False),
    make_run("o", "online", [0.5], [0], task="helpfulness", truth=False),  # all at SFT
    make_run("shuffled", "shuffled", [0.5], [2], task="tldr", truth=False),
  ]
  figure, rows = win_rate.figure_01(runs)
  assert len(figure.axes) == 2
  assert {row["task"] for row in rows} == {"tldr"}  # the other has nothing above KL 0
  assert {row["series"] for row in rows} == {"online"}


def test_best_of_n_is_a_line_of_its_evaluations(study):
  _, rows = win_rate.figure_01(study)
  points = [r for r in rows if (r["kind"], r["judge"]) == ("best_of_n", "truth")]
  (run,) = synthetic.chosen(study, "best_of_n")
  above = run.kl_E >= 0.01
  assert [r["step"] for r in points] == run.steps_E[above].tolist()
  assert [r["win_rate"] for r in points] == run.win_rates_E("truth")[above].tolist()


@pytest.mark.parametrize(
  ("draw", "front", "behind"),
  [
    (win_rate.figure_09, ("best_of_2", "micro"), ("ipo", "micro")),
    (win_rate.figure_10, ("ipo", "milli"), ("ipo", "micro")),
  ],
)
def test_what_is_compared_with_is_behind(draw, front, behind, study):
  _, rows = draw(study)
  drawn = {
    kind: {(r["loss"], r["size"]) for r in rows if r["kind"] == kind}
    for kind in ("point", "envelope")
  }
  assert drawn == {"point": {front}, "envelope": {front, behind}}
  assert {r["series"] for r in rows if r["kind"] == "point"} == {
    *("online", "offline", "shuffled"),
  }


def test_figure_13_tells_windows_apart(study):
  _, rows = win_rate.figure_13(study)
  points = [row for row in rows if row["kind"] == "point"]
  assert {(r["label"], r["replay_window"]) for r in points} == {
    ("as recorded", 0),
    ("windows of 4 batches", 4),
    ("windows of 64 batches", 64),
    ("uniformly shuffled", -1),
  }
  everything = dataclasses.replace(
    synthetic.chosen(study, "replay")[0], replay_window=-1
  )
  _, rows = win_rate.figure_13([*study, everything])
  assert "replayed, uniformly shuffled" in {row.get("label") for row in rows}
  for row in points:
    (run,) = (run for run in study if run.name == row["run"])
    assert run.replay_window == row["replay_window"]
  assert {row["beta"] for row in points} == {0.1}  # the setting that all of them have
  _, rows = win_rate.figure_04(study)
  assert {row["beta"] for row in rows if row["kind"] == "point"} == {0.05, 0.1}
