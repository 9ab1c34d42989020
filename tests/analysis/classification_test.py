"""Figures of policies and the proxy as classifiers."""

import numpy as np
import pytest

from alignment.analysis.classifiers import correlation_with_accuracy
from alignment.analysis.figures import classification
from tests import synthetic


def test_figure_06_has_the_rows_it_was_given():
  classified = synthetic.classification()
  _, rows = classification.figure_06(classified)
  expected = {(c.classifier, c.step): c.accuracy for c in classified}
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
      of_series = synthetic.chosen(study, row["series"], default=True)
      expected = correlation_with_accuracy(of_series, row["judge"])
      assert row["value"] == expected.value


@pytest.mark.parametrize("key", ["chosen_log_ratio", "rejected_log_ratio"])
def test_figure_08_averages_the_runs(study, key):
  _, rows = classification.figure_08(study)
  runs = synthetic.chosen(study, "offline")
  means = {
    row["step"]: row["value"]
    for row in rows
    if (row["kind"], row["measured"], row["series"]) == ("mean", key, "offline")
  }
  expected = np.mean([run.measured_E(key) for run in runs], axis=0)
  assert means == dict(zip(runs[0].steps_E.tolist(), expected, strict=True))


def test_figures_7_and_8_are_at_the_settings_that_all_series_have(study):
  few = [r for r in study if r.series != "shuffled" or r.beta == 0.1]
  for draw in (classification.figure_07, classification.figure_08):
    _, rows = draw(few)
    used = {row["run"] for row in rows if "run" in row}
    assert len(used) == 3 and all("0.05" not in name for name in used)
