"""Figures of policy size, staleness and hybrid batches."""

import numpy as np
import pytest

from alignment.analysis.figures import scaling
from alignment.analysis.gaps import gap_at_equal_kl, peak_gap
from tests import synthetic


def test_figures_11_and_14_are_quantiles_over_all_evaluations(study):
  _, relative = scaling.figure_11(study)
  _, absolute = scaling.figure_14(study)
  for rows, is_relative in ((relative, True), (absolute, False)):
    assert len(rows) == 2 * 3 * 2  # judges, methods, sizes
    for row in rows:
      best = {}
      for series in (row["series"], "online"):
        runs = synthetic.chosen(study, series, size=row["size"], beta=0.1)
        rates = np.concatenate([run.win_rates_E(row["judge"]) for run in runs])
        best[series] = np.quantile(rates, 0.9)
      expected = best[row["series"]] - (best["online"] if is_relative else 0)
      assert row["value"] == pytest.approx(expected)
      assert row["log2_relative"] == {"micro": 0, "milli": 2}[row["size"]]


def test_dials_are_gaps_to_online(study):
  (online,) = (r for r in synthetic.chosen(study, "online") if r.beta == 0.1)
  for draw, series, key in (
    (scaling.staleness, "semi_online", "refresh_every"),
    (scaling.hybrid, "hybrid", "on_policy_fraction"),
  ):
    _, rows = draw(study)
    gaps = {"peak": peak_gap, "equal KL": gap_at_equal_kl}
    placed = [row for row in rows if row["series"] == series]
    positions = {row["position"] for row in placed}
    runs = {getattr(run, key): run for run in synthetic.chosen(study, series)}
    if series == "semi_online":
      runs["never"] = runs.pop(0)
    assert positions == runs.keys()
    for row in placed:
      run = runs[row["position"]]
      expected = gaps[row["kind"]]([run], [online], row["judge"])
      assert (row["value"], row["low"]) == (expected.value, expected.low)
