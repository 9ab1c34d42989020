"""Laws of over-optimisation: they fit what they generate, and are drawn."""

import numpy as np
import pytest

from alignment.analysis import laws
from alignment.analysis.figures import laws as laws_figure
from tests import synthetic


@pytest.mark.parametrize("best_of_n", [False, True])
def test_the_laws_fit_what_they_generate(best_of_n):
  d = np.linspace(0.3, 4, 9)
  score = laws.law_terms(d, best_of_n) @ [1.5, 0.4]
  assert score[-1] == pytest.approx(4 * (1.5 - 0.4 * (4 if best_of_n else np.log(4))))
  np.testing.assert_allclose(laws.fit_law(d, score, best_of_n), [1.5, 0.4])


def test_laws_are_recovered(study):
  _, rows = laws_figure.laws(study)
  for series, alpha, beta in (("online", 2, 1), ("best_of_n", 1.5, 0.3)):
    coefficient = {
      row["kind"]: row["value"]
      for row in rows
      if row["kind"] in ("alpha", "beta") and row["series"] == series
    }
    assert coefficient == pytest.approx({"alpha": alpha, "beta": beta})
    d, score = np.transpose(
      [
        (row["d"], row["margin"])
        for row in rows
        if (row["kind"], row["series"]) == ("curve", series)
      ]
    )
    law = d * (alpha - beta * (d if series == "best_of_n" else np.log(d)))
    np.testing.assert_allclose(score, law)


def test_laws_have_intervals_over_checkpoints_or_worlds_and_leave_out_sft():
  d = np.array([0.01, 0.5, 1, 2, 3])  # the first is below the floor of KL
  runs = [
    synthetic.make_run(
      "on", "online", synthetic.drawn([0.5] * 5, seed=0), d**2, world=world,
      measured={"golden_score": [99, *(d * (alpha - 0.5 * np.log(d)) + noise)[1:]]},
    )
    for world, alpha, noise in (
      (0, 1, np.array([0, 0.1, -0.1, 0.1, -0.1])), (1, 2, 0), (2, 3, 0)
    )
  ]  # fmt: skip
  for chosen, over, alpha in (
    (runs[1:], "2 worlds", 2.5),
    (runs[:1], "checkpoints", 1),
  ):
    _, rows = laws_figure.laws(chosen)
    (coefficient,) = (row for row in rows if row["kind"] == "alpha")
    assert coefficient["interval_over"].startswith(over)
    assert coefficient["value"] == pytest.approx(alpha, abs=0.1)
    assert coefficient["low"] < coefficient["value"] < coefficient["high"]


def test_the_proxys_scores_have_a_panel_of_their_own():
  d = np.array([0.5, 1, 2, 3])
  golden, proxy = d * (1 - 0.5 * np.log(d)), d * (2 - 0.1 * np.log(d))
  scores = {"golden_score": golden.tolist(), "proxy_score": proxy.tolist()}
  wins_ExP = synthetic.drawn([0.5] * 4, seed=0)
  run = synthetic.make_run("on", "online", wins_ExP, d**2, measured=scores)
  figure, rows = laws_figure.laws([run])
  titles = [axes.get_title(loc="left") for axes in figure.axes]
  assert titles == ["tldr, golden PM", "tldr, proxy PM"]
  alphas = {row["score"]: row["value"] for row in rows if row["kind"] == "alpha"}
  assert alphas == pytest.approx({"golden_score": 1, "proxy_score": 2})
