"""Runs as read from their files: in order, complete, and at one with one another."""

import json
import math

import numpy as np
import pytest

from alignment.analysis.runs import load_classification, load_runs
from alignment.types import UserError
from tests import synthetic

JUDGE = "golden PM"


def write_run(workdir, name="online_0", series="online", truth=True, **fields):
  """A run of two checkpoints and four prompts; fields override its records'."""
  wins_ExP = np.array([[1, 0.5, 1, 0.5], [0, 0.5, 0, 0.5]])
  run = synthetic.make_run(
    name,
    series,
    wins_ExP,
    [2.0, 1.0],
    steps=[20, 10],  # in any order
    truth=wins_ExP[:, ::-1] if truth else None,
    metrics=[{"step": 10, "loss": 1.0}],
  )
  for record in run.records:
    record.update(something_new=[1], **fields)
  return synthetic.write(workdir, run)


def test_runs_are_read_in_the_order_of_their_steps(tmp_path):
  write_run(tmp_path)
  write_run(tmp_path, "sft", "sft", beta=None, classification_accuracy=math.nan)
  (tmp_path / "runs" / "in_training").mkdir()
  run, sft = load_runs(tmp_path)
  assert (run.name, sft.series, sft.beta) == ("online_0", "sft", None)
  assert run.steps_E.tolist() == [10, 20] and run.kl_E.tolist() == [1, 2]
  assert run.win_rates_E(JUDGE).tolist() == [0.25, 0.75]
  assert run.wins["truth"].shape == (2, 4)
  assert [record["step"] for record in run.records] == [10, 20]
  assert (run.size, run.parameters, run.refresh_every) == ("micro", 40_000, 1)
  assert run.metrics == [{"step": 10, "loss": 1.0}]
  assert run.measured_E("response_length").tolist() == [8, 8]
  np.testing.assert_array_equal(sft.measured_E("classification_accuracy"), [np.nan] * 2)


def test_a_whole_study_comes_back_as_it_was_written(tmp_path):
  written = synthetic.study(tasks=("tldr", "chat_arena"))
  for run in written:
    synthetic.write(tmp_path, run)
  read = {run.name: run for run in load_runs(tmp_path)}
  assert read.keys() == {run.name for run in written}
  for run in written:
    again = read[run.name]
    assert (again.records, again.metrics) == (run.records, run.metrics)
    for judge, wins_ExP in run.wins.items():
      np.testing.assert_array_equal(again.wins[judge], wins_ExP)


def lines_of(directory):
  return (directory / "evaluations.jsonl").read_text().splitlines()


def damage_line(directory):
  (directory / "evaluations.jsonl").write_text(lines_of(directory)[0] + '\n{"run": "a')


def drop_key(key):
  def damage(directory):
    records = [json.loads(line) for line in lines_of(directory)]
    del records[1][key]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "evaluations.jsonl").write_text(text)

  return damage


def repeat_step(directory):
  lines = lines_of(directory)
  (directory / "evaluations.jsonl").write_text("\n".join([*lines, lines[0]]))


def cut_outcomes(directory):
  path = directory / "outcomes.npz"
  path.write_bytes(path.read_bytes()[:100])


def other_outcomes(**arrays):
  def damage(directory):
    np.savez(directory / "outcomes.npz", **arrays)

  return damage


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (damage_line, r"evaluations.jsonl:2: not JSON"),
    (drop_key("entropy"), r"evaluations.jsonl:2: no 'entropy'"),
    (drop_key("series"), r"evaluations.jsonl:2: no 'series'; evaluate this run again"),
    (drop_key("parameters"), r"evaluations.jsonl:2: no 'parameters'"),
    (drop_key("replay_window"), r"evaluations.jsonl:2: no 'replay_window'"),
    (drop_key("true_utility"), r"evaluations.jsonl:2: no 'true_utility'"),
    (repeat_step, r"evaluations.jsonl: a step is evaluated twice"),
    (lambda d: (d / "evaluations.jsonl").write_bytes(b"\xff\n"), "not UTF-8"),
    (lambda d: (d / "evaluations.jsonl").write_bytes(b""), "evaluations.jsonl: empty"),
    (lambda d: (d / "outcomes.npz").unlink(), r"outcomes.npz: missing"),
    (cut_outcomes, r"outcomes.npz: damaged"),
    (lambda d: (d / "outcomes.npz").write_bytes(b""), r"outcomes.npz: damaged"),
    (other_outcomes(steps_E=np.array([10, 20])), r"outcomes.npz: no 'golden_ExP'"),
    (
      other_outcomes(steps_E=np.array([10, 30]), golden_ExP=np.ones((2, 4))),
      r"outcomes.npz: steps \[10, 30\]",
    ),
    (
      other_outcomes(steps_E=np.array([10, 20]), golden_ExP=np.ones((1, 4))),
      r"golden_ExP has shape \(1, 4\)",
    ),
    (
      other_outcomes(steps_E=np.array([10, 20]), golden_ExP=np.full((2, 4), 0.7)),
      r"golden_ExP has values other than",
    ),
    (
      other_outcomes(steps_E=np.array([10, 20]), golden_ExP=np.ones((2, 4))),
      r"win_rate is not the mean of golden_ExP",
    ),
  ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
  damage(write_run(tmp_path))
  with pytest.raises(UserError, match=message):
    load_runs(tmp_path)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("run", 3, "'run' is 3, expected a string"),
    ("seed", 0.5, "'seed' is 0.5, expected an integer"),
    ("seed", True, "'seed' is True, expected an integer"),
    ("kl", math.nan, "'kl' is nan, expected a finite number"),
    ("beta", "x", "'beta' is 'x', expected a finite number or null"),
    ("method", "both", "'method' is 'both', expected online or offline or null"),
    ("default", 1, "'default' is 1, expected true or false"),
    ("seed", 10**30, "'seed' is 10*, expected an integer"),
    ("size", 3, "'size' is 3, expected a string"),
    ("refresh_every", 1.5, "'refresh_every' is 1.5, expected an integer or null"),
    ("entropy", [], r"'entropy' is \[\], expected a number or null"),
  ],
)
def test_fields_of_another_kind_are_named(tmp_path, field, value, message):
  write_run(tmp_path, **{field: value})
  with pytest.raises(UserError, match=f"evaluations.jsonl:1: {message}"):
    load_runs(tmp_path)


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
  with pytest.raises(UserError, match="no evaluated run"):
    load_runs(tmp_path)
  write_run(tmp_path)
  with pytest.raises(UserError, match="is also in"):
    load_runs([tmp_path, tmp_path])
  other = write_run(tmp_path, "online_1", truth=False)
  assert [run.name for run in load_runs(tmp_path, {"online_0"})] == ["online_0"]
  with pytest.raises(UserError, match="evaluate both alike"):
    load_runs(tmp_path)
  wins_ExP = np.array([[0.5, 0], [0.5, 1]])
  other_outcomes(steps_E=np.array([10, 20]), golden_ExP=wins_ExP)(other)
  with pytest.raises(UserError, match="2 prompts, but .*online_0 .* has 4"):
    load_runs(tmp_path)


# --- Classification -------------------------------------------------------------------


def write_classification(workdir, rows):
  path = workdir / "classification" / "world0.jsonl"
  path.parent.mkdir()
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROW = {"task": "tldr", "world": 0, "classifier": "online", "step": 10}
ROW |= {"accuracy": 0.5, "stderr": 0.1, "pairs": 64}


def test_classification_is_read_in_order(tmp_path):
  assert load_classification(tmp_path) == []
  write_classification(tmp_path, [ROW | {"step": 20}, ROW])
  rows = load_classification(tmp_path)
  assert [(row.step, row.accuracy, row.pairs) for row in rows] == [
    (10, 0.5, 64),
    (20, 0.5, 64),
  ]


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([ROW, {"task": "tldr"}], "world0.jsonl:2: no 'classifier'"),
    ([ROW | {"accuracy": None}], "'accuracy' is None, expected a finite number"),
    ([ROW, ROW], "world0.jsonl:2: online at step 10 of world 0 is there twice"),
    ([[]], "not a JSON object"),
  ],
)
def test_damaged_classification_is_named(tmp_path, rows, message):
  write_classification(tmp_path, rows)
  with pytest.raises(UserError, match=message):
    load_classification(tmp_path)


def test_a_classification_of_nothing_is_no_damage(tmp_path):
  """A collapsed stream has no pairs to classify: the other figures are drawn."""
  path = tmp_path / "classification" / "world0.jsonl"
  path.parent.mkdir()
  path.write_text("")
  assert load_classification(tmp_path) == []
