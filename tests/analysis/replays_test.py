"""Training statistics of a replay beside its online run, and their figures."""

import numpy as np
import pytest

from alignment.analysis import figures, replays
from alignment.analysis.figures import training
from tests import synthetic


def make_run(rates, kls=None, series="online", **fields):
  kls = list(range(1, len(rates) + 1)) if kls is None else kls
  return synthetic.make_run("r", series, synthetic.certain(rates), kls, **fields)


def test_training_statistics_of_a_replay_beside_its_online_run():
  def rows(losses):
    return [{"step": i, "loss": loss, "zero": 0.0} for i, loss in enumerate(losses)]

  own = {"default": True}  # settings are the configuration's own
  online = [make_run([0.5, 0.5], metrics=rows([1, 2, 4, 8]), **own)]
  replay = [make_run([0.5, 0.5], series="replay", metrics=rows([1, 2, 4.4, 8]), **own)]
  assert replays.training_difference(replay, online).value == pytest.approx(0.1 / 8)
  for field, other in (
    *(("world", 1), ("task", "chat_arena"), ("loss", "dpo"), ("size", "nano")),
    *(("beta", 9.0), ("learning_rate", 9.0), ("seed", 1)),
    ("default", False),  # the same β may not be all: temperatures have no label
  ):
    unlike = make_run([0.5, 0.5], metrics=rows([1, 2]), **own | {field: other})
    assert replays.training_difference(replay, [unlike]).reason, field


def test_a_replay_with_settings_of_its_own_has_no_online_run():
  """Its stream was sampled with the configuration's settings, not with its own."""
  rows = [{"step": 1, "loss": 1.0}]
  settings = {"beta": 9.0, "metrics": rows}
  replay = [make_run([0.5], series="replay", **settings)]
  assert not replays.pairs(replay, [make_run([0.5], **settings)])
  # Nor with the same β and rate: its steps or its optimizer may be others.
  assert not replays.pairs(replay, [make_run([0.5], **settings, default=True)])


def test_appendix_f_pairs_a_replay_with_its_online_run(study):
  (replay,) = synthetic.chosen(study, "replay", replay_window=0)
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


def test_training_curves_are_small_multiples_of_the_metrics():
  rows = [{"step": 0, "loss": 2.0}, {"step": 10, "loss": float("nan"), "rate": 1}]
  figure = figures.training_curves([*rows, {"step": 20, "loss": 1.0, "name": "x"}])
  assert [axes.get_title("left") for axes in figure.axes] == ["loss", "rate"]
  line = figure.axes[0].lines[0]
  assert line.get_xdata().tolist() == [0, 10, 20]
  np.testing.assert_array_equal(line.get_ydata(), [2, np.nan, 1])
  assert figures.training_curves([]).axes == []
