"""Figures: every number drawn is in the CSV, and it is the evaluations' number."""

import csv
import dataclasses

import numpy as np
import pytest

from alignment.analysis import figures
from alignment.analysis.envelopes import envelope, gap_at_equal_kl, peak_gap
from alignment.analysis.figures import (
  classification,
  laws,
  scaling,
  style,
  training,
  win_rate,
)
from alignment.analysis.measures import correlation_with_accuracy
from alignment.types import UserError
from tests import synthetic


def make_run(name, method, rates, kls, truth=True, **fields):
  seed = len(name) + 100 * len(kls)
  return synthetic.make_run(
    name,
    method,
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
  png, table = figures.draw("figure_01", runs, tmp_path / "figures")
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
    offline = [run for run in runs if run.method == "offline"]
    drawn = [
      [float(row[key]) for key in ("kl", "win_rate", "low", "high")]
      for row in rows
      if (row["kind"], row["judge"], row["method"]) == ("envelope", judge, "offline")
    ]
    np.testing.assert_allclose(np.transpose(drawn), envelope(offline, judge), rtol=1e-5)
    naive = [
      float(row["win_rate"])
      for row in rows
      if (row["kind"], row["judge"]) == ("envelope_naive", judge)
      and row["method"] == "online"
    ]
    rates = runs[0].win_rates_E(judge)[1:]
    np.testing.assert_allclose(naive, np.maximum.accumulate(rates), rtol=1e-5)
    levels = {
      row["method"]: float(row["win_rate"])
      for row in rows
      if (row["kind"], row["judge"]) == ("level", judge)
    }
    sft = by_name["sft"].win_rates_E(judge)[0]
    assert levels == pytest.approx({"golden_policy": 0.5, "sft": sft})


def test_the_same_runs_give_the_same_bytes_and_nothing_is_left_over(tmp_path, runs):
  for folder in ("a", "b"):
    figures.draw("figure_01", runs, tmp_path / folder)
  for name in ("figure_01.csv", "figure_01.png"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
  assert len(list((tmp_path / "a").iterdir())) == 2


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


def test_one_panel_per_task_and_only_methods_of_the_figure():
  runs = [
    make_run("on", "online", [0.5], [1], task="tldr", truth=False),
    make_run("o", "online", [0.5], [0], task="helpfulness", truth=False),  # all at SFT
    make_run("shuffled", "shuffled", [0.5], [2], task="tldr", truth=False),
  ]
  figure, rows = win_rate.figure_01(runs)
  assert len(figure.axes) == 2
  assert {row["task"] for row in rows} == {"tldr"}  # the other has nothing above KL 0
  assert {row["method"] for row in rows} == {"online"}


def test_what_cannot_be_drawn_is_named(tmp_path, runs):
  with pytest.raises(UserError, match="no figure 'figure_99'; there are figure_01"):
    figures.draw("figure_99", runs, tmp_path)
  assert not list(tmp_path.iterdir())


# --- All figures, of one study --------------------------------------------------------


@pytest.fixture(name="study", scope="module")
def _study():
  return synthetic.study()


CLASSIFIED = synthetic.classification()


def chosen(runs, method, **fields):
  fields = {"loss": "ipo", "size": "micro"} | fields
  return [
    run
    for run in runs
    if run.method == method and all(getattr(run, k) == v for k, v in fields.items())
  ]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_with_labelled_axes(name, study, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or b"png")
  png, table = figures.draw(name, study, tmp_path, CLASSIFIED)
  assert (png.name, table.name) == (f"{name}.png", f"{name}.csv")
  assert len(read_csv(table)) > 5
  for axes in drawn[0].axes:
    assert axes.get_xlabel() and axes.get_ylabel()
  titles = [axes.get_title("left") for axes in drawn[0].axes]
  assert titles[0].startswith("tldr")
  if name not in ("figure_06", "figure_08", "appendix_e1", "appendix_f", "laws"):
    assert sum("true utility" in t for t in titles) == len(titles) / 2
  assert style.png(drawn[0]).startswith(b"\x89PNG")


def test_a_legend_has_as_many_columns_as_fit():
  columns = []
  for label in ("a", "shuffled, t5_1_1_xl (12 runs)", "a label of its own " * 9):
    figure, axes_list = style.panels(2)
    for i in range(7):
      axes_list[i % 2].plot([0, 1], [0, 1], label=f"{label} {i}")
    style.shared_legend(figure, axes_list)
    style.png(figure)
    (legend,) = figure.legends
    columns.append(legend._ncols)
    if columns[-1] > 1:
      assert legend.get_window_extent().x0 >= 0
      assert legend.get_window_extent().x1 <= figure.bbox.width
  assert columns == [4, 3, 1]


@pytest.mark.parametrize(
  ("name", "without", "message"),
  [
    ("figure_01", ("online", "offline"), "no evaluated run of online and offline"),
    ("figure_04", ("shuffled",), "figure_04: no evaluated run of shuffled; add them"),
    ("figure_05", ("final_vs_final",), "no evaluated run of final_vs_final"),
    (
      "figure_07",
      ("shuffled", "offline"),
      "no evaluated run of shuffled and offline at policy's hyper-parameters",
    ),
    ("figure_12", ("sft_vs_early",), "figure_12 out of config.figures"),
    ("figure_13", ("replay",), "no evaluated run of replay"),
    ("appendix_f", ("replay",), "no evaluated run of replay"),
    ("staleness", ("semi_online",), "no evaluated run of semi_online"),
    ("hybrid", ("hybrid",), "no evaluated run of hybrid"),
    ("figure_09", (), "no evaluated run of online and offline and shuffled"),
    ("figure_10", (), "policies larger than the main size"),
    ("figure_11", (), "at a second policy size"),
    ("losses", (), "with two losses"),
    ("figure_06", (), "classifiers"),
  ],
)
def test_missing_runs_are_named(name, without, message, study, tmp_path):
  left = [r for r in study if r.method not in without and r.size == "micro"]
  left = [r for r in left if r.loss == "ipo"]
  with pytest.raises(UserError, match=message):
    figures.draw(name, left, tmp_path)
  assert not list(tmp_path.iterdir())


def test_best_of_n_is_a_line_of_its_evaluations(study):
  _, rows = win_rate.figure_01(study)
  found = [r for r in rows if (r["kind"], r["judge"]) == ("best_of_n", "truth")]
  (run,) = chosen(study, "best_of_n")
  above = run.kl_E >= 0.01
  assert [r["step"] for r in found] == run.steps_E[above].tolist()
  assert [r["win_rate"] for r in found] == run.win_rates_E("truth")[above].tolist()


@pytest.mark.parametrize(
  ("draw", "front", "behind"),
  [
    (win_rate.figure_09, ("best_of_2", "micro"), ("ipo", "micro")),
    (win_rate.figure_10, ("ipo", "milli"), ("ipo", "micro")),
  ],
)
def test_what_is_compared_with_is_behind(draw, front, behind, study):
  _, rows = draw(study)
  of = {
    kind: {(r["loss"], r["size"]) for r in rows if r["kind"] == kind}
    for kind in ("point", "envelope")
  }
  assert of == {"point": {front}, "envelope": {front, behind}}
  assert {r["method"] for r in rows if r["kind"] == "point"} == {
    *("online", "offline", "shuffled"),
  }


def test_figure_13_tells_windows_apart(study):
  _, rows = win_rate.figure_13(study)
  points = [row for row in rows if row["kind"] == "point"]
  assert {(r["series"], r["replay_window"]) for r in points} == {
    ("as recorded", 0),
    ("windows of 4 batches", 4),
    ("windows of 64 batches", 64),
    ("uniformly shuffled", -1),
  }
  everything = dataclasses.replace(chosen(study, "replay")[0], replay_window=-1)
  _, rows = win_rate.figure_13([*study, everything])
  assert "replayed, uniformly shuffled" in {row.get("series") for row in rows}
  for row in points:
    (run,) = (run for run in study if run.name == row["run"])
    assert run.replay_window == row["replay_window"]
  assert {row["beta"] for row in points} == {0.1}  # the setting that all of them have
  _, rows = win_rate.figure_04(study)
  assert {row["beta"] for row in rows if row["kind"] == "point"} == {0.05, 0.1}


def test_figure_06_has_the_rows_it_was_given():
  _, rows = classification.figure_06(CLASSIFIED)
  expected = {(c.classifier, c.step): c.accuracy for c in CLASSIFIED}
  assert {(r["classifier"], r["step"]): r["value"] for r in rows} == expected
  of_two = synthetic.classification(worlds=2)
  _, rows = classification.figure_06(of_two)
  assert {row["interval_over"] for row in rows} == {"2 worlds"}


def test_figure_07_has_every_checkpoint_and_the_correlations(study):
  _, rows = classification.figure_07(study)
  by_name = {run.name: run for run in study}
  for row in rows:
    if row["kind"] == "point":
      run = by_name[row["run"]]
      at = run.steps_E.tolist().index(row["step"])
      assert row["accuracy"] == run.measured_E("classification_accuracy")[at]
      assert row["win_rate"] == run.win_rates_E(row["judge"])[at]
    else:
      of_method = chosen(study, row["method"], default=True)
      expected = correlation_with_accuracy(of_method, row["judge"])
      assert row["value"] == expected.value


@pytest.mark.parametrize("key", ["chosen_log_ratio", "rejected_log_ratio"])
def test_figure_08_averages_the_runs(study, key):
  _, rows = classification.figure_08(study)
  runs = chosen(study, "offline")
  means = {
    row["step"]: row["value"]
    for row in rows
    if (row["kind"], row["measured"], row["method"]) == ("mean", key, "offline")
  }
  expected = np.mean([run.measured_E(key) for run in runs], axis=0)
  assert means == dict(zip(runs[0].steps_E.tolist(), expected, strict=True))


def test_figures_7_and_8_are_at_the_settings_that_all_methods_have(study):
  few = [r for r in study if r.method != "shuffled" or r.beta == 0.1]
  for draw in (classification.figure_07, classification.figure_08):
    _, rows = draw(few)
    used = {row["run"] for row in rows if "run" in row}
    assert len(used) == 3 and all("0.05" not in name for name in used)


def test_figures_11_and_14_are_quantiles_over_all_evaluations(study):
  _, relative = scaling.figure_11(study)
  _, absolute = scaling.figure_14(study)
  for rows, is_relative in ((relative, True), (absolute, False)):
    assert len(rows) == 2 * 3 * 2  # judges, methods, sizes
    for row in rows:
      best = {}
      for method in (row["method"], "online"):
        runs = chosen(study, method, size=row["size"], beta=0.1)
        rates = np.concatenate([run.win_rates_E(row["judge"]) for run in runs])
        best[method] = np.quantile(rates, 0.9)
      expected = best[row["method"]] - (best["online"] if is_relative else 0)
      assert row["value"] == pytest.approx(expected)
      assert row["log2_relative"] == {"micro": 0, "milli": 2}[row["size"]]


def test_dials_are_gaps_to_online(study):
  (online,) = (r for r in chosen(study, "online") if r.beta == 0.1)
  for draw, method, key in (
    (scaling.staleness, "semi_online", "refresh_every"),
    (scaling.hybrid, "hybrid", "on_policy_fraction"),
  ):
    _, rows = draw(study)
    gaps = {"peak": peak_gap, "equal KL": gap_at_equal_kl}
    found = [row for row in rows if row["method"] == method]
    positions = {row["position"] for row in found}
    runs = {getattr(run, key): run for run in chosen(study, method)}
    if method == "semi_online":
      runs["never"] = runs.pop(0)
    assert positions == runs.keys()
    for row in found:
      run = runs[row["position"]]
      expected = gaps[row["kind"]]([run], [online], row["judge"])
      assert (row["value"], row["low"]) == (expected.value, expected.low)


def test_laws_are_recovered(study):
  _, rows = laws.laws(study)
  for method, alpha, beta in (("online", 2, 1), ("best_of_n", 1.5, 0.3)):
    found = {
      row["kind"]: row["value"]
      for row in rows
      if row["kind"] in ("alpha", "beta") and row["method"] == method
    }
    assert found == pytest.approx({"alpha": alpha, "beta": beta})
    d, score = np.transpose(
      [
        (row["d"], row["golden_score"])
        for row in rows
        if (row["kind"], row["method"]) == ("curve", method)
      ]
    )
    law = d * (alpha - beta * (d if method == "best_of_n" else np.log(d)))
    np.testing.assert_allclose(score, law)


def test_laws_have_intervals_over_checkpoints_or_worlds_and_leave_out_sft():
  d = np.array([0.01, 0.5, 1, 2, 3])  # the first is below the floor of KL
  runs = [
    make_run(
      "on", "online", [0.5] * 5, d**2, world=world,
      measured={"golden_score": [99, *(d * (alpha - 0.5 * np.log(d)) + noise)[1:]]},
    )
    for world, alpha, noise in (
      (0, 1, np.array([0, 0.1, -0.1, 0.1, -0.1])), (1, 2, 0), (2, 3, 0)
    )
  ]  # fmt: skip
  for of, over, alpha in ((runs[1:], "2 worlds", 2.5), (runs[:1], "checkpoints", 1)):
    _, rows = laws.laws(of)
    (found,) = (row for row in rows if row["kind"] == "alpha")
    assert found["interval_over"].startswith(over)
    assert found["value"] == pytest.approx(alpha, abs=0.1)
    assert found["low"] < found["value"] < found["high"]


def test_appendix_f_pairs_a_replay_with_its_online_run(study):
  (replay,) = chosen(study, "replay", replay_window=0)
  replay.metrics[-1]["loss"] *= 1.01
  try:
    _, rows = training.appendix_f(study)
  finally:
    replay.metrics[-1]["loss"] /= 1.01
  assert {row["statistic"] for row in rows} == {"loss", "grad_norm", "accuracy"}
  assert {row["online_run"] for row in rows} == {"world0_tldr_online_beta0.1"}
  different = [row for row in rows if row["relative_difference"] > 0]
  assert [(r["statistic"], r["step"]) for r in different] == [("loss", 600)]
  assert different[0]["relative_difference"] == pytest.approx(0.01)


# --- Parts ----------------------------------------------------------------------------


def test_csv_rounds_floats_and_leaves_absent_values_empty():
  rows = [{"kind": "a,b", "x": 1 / 3, "n": 7}, {"kind": "c", "y": float("nan")}]
  expected = 'kind,x,n,y\n"a,b",0.333333,7,\nc,,,\n'
  assert figures.csv_bytes(rows).decode() == expected


def test_training_curves_are_small_multiples_of_the_metrics():
  rows = [{"step": 0, "loss": 2.0}, {"step": 10, "loss": float("nan"), "rate": 1}]
  figure = figures.training_curves([*rows, {"step": 20, "loss": 1.0, "name": "x"}])
  assert [axes.get_title("left") for axes in figure.axes] == ["loss", "rate"]
  line = figure.axes[0].lines[0]
  assert line.get_xdata().tolist() == [0, 10, 20]
  np.testing.assert_array_equal(line.get_ydata(), [2, np.nan, 1])
  assert figures.training_curves([]).axes == []
