"""A working directory alone is redrawn: all files, the same bytes, errors in a line."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from alignment.analysis import __main__ as command
from alignment.analysis import published, results
from alignment.types import UserError
from tests import synthetic

MODEL = {
  "name": "world0_proxy_pm",
  "parameters": 40_000,
  "init": "scratch",
  "steps": 8,
  "train_accuracy": 0.75,
  "validation_accuracy": 0.9,
  "validation_within": 0.02,
  "truth_accuracy": None,
  "truth_within": None,
}
STUDY = {
  "task": "tldr",
  "worlds": [0],
  "figures": ["figure_06", "figure_07"],
  "notes": ["A note."],
  "runs": ["on", "off", "shuffled"],
  "classified_worlds": [0],
  "data": ["train: 400 pairs"],
  "models": [MODEL],
  "training": ["sft"],
  "samples": {
    "note": "Of world 0.",
    "rows": [{"prompt": "p", "responses": {"a": "b"}}],
  },
}


@pytest.fixture(name="workdir")
def _workdir(tmp_path):
  """A study of three runs; a fourth, of another configuration, is not its."""
  for i, (name, series) in enumerate(
    [("on", "online"), ("off", "offline"), ("shuffled", "shuffled"), ("x", "hybrid")]
  ):
    wins_ExP = synthetic.drawn([0.3, 0.4, 0.5], seed=i)
    measured = {"classification_accuracy": [0.5, 0.6, 0.7]}
    run = synthetic.make_run(
      name, series, wins_ExP, [1, 2, 3], default=True, measured=measured
    )
    synthetic.write(tmp_path, run)
  for world in (0, 1):
    rows = [row for row in synthetic.classification(2) if row.world == world]
    text = "".join(json.dumps(vars(row)) + "\n" for row in rows)
    write(tmp_path / "classification" / f"world{world}.jsonl", text)
  write(tmp_path / "training" / "sft.jsonl", '{"step": 1, "loss": 2.0}\n')
  return publish(tmp_path)


def write(path, text):
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)


def publish(workdir, **fields):
  (workdir / "study.json").write_text(json.dumps(STUDY | fields))
  return workdir


def drawn(workdir):
  """name -> bytes of what was made."""
  paths = [*workdir.glob("figures/*"), workdir / "claims.csv", workdir / "report.html"]
  return {path.name: path.read_bytes() for path in paths}


def test_a_directory_is_redrawn_with_the_same_bytes(workdir, capsys):
  results.redraw(workdir)
  out = capsys.readouterr().out
  first = drawn(workdir)
  assert set(first) == {
    *("figure_06.png", "figure_06.csv", "figure_07.png", "figure_07.csv"),
    *("claims.csv", "report.html"),
  }
  for name in first:
    assert any(line.endswith(name) for line in out.splitlines()), name
  assert 'paper: "little or no positive correlation' in out
  assert b"1 world" in first["figure_06.csv"] and b"2 worlds" not in first["claims.csv"]
  page = first["report.html"].decode()
  for words in ("tldr, world 0", "0.900 ± 0.020", "A note.", "Of world 0.", ">sft<"):
    assert words in page
  assert b"hybrid" not in first["figure_07.csv"]
  for path in (workdir / "figures").iterdir():
    path.unlink()
  results.redraw(workdir)
  assert drawn(workdir) == first
  assert capsys.readouterr().out == out


def test_win_rates_at_equal_length_are_written_where_lengths_are_recorded(
  workdir, capsys
):
  results.redraw(workdir)
  assert not (workdir / "length_control.csv").exists()
  path = workdir / "runs" / "on" / "outcomes.npz"
  with np.load(path) as file:
    arrays = dict(file)
  gaps_ExP = np.random.default_rng(0).integers(-9, 20, arrays["golden_ExP"].shape)
  np.savez(path, length_gaps_ExP=gaps_ExP, **arrays)
  capsys.readouterr()
  results.redraw(workdir)
  assert f"{workdir}/length_control.csv" in capsys.readouterr().out.splitlines()
  with (workdir / "length_control.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [(row["run"], row["step"]) for row in rows] == [
    ("on", "0"), ("on", "100"), ("on", "200")
  ]  # fmt: skip
  assert all(0 < float(row["low"]) < float(row["high"]) < 1 for row in rows)


def test_equal_length_is_one_more_judge_of_figures_and_claims(workdir, capsys):
  publish(workdir, length_control=True, figures=["figure_04"])
  with pytest.raises(UserError, match="no lengths; evaluate it again"):
    results.redraw(workdir)
  assert not (workdir / "claims.csv").exists()
  for name in STUDY["runs"]:
    path = workdir / "runs" / name / "outcomes.npz"
    with np.load(path) as file:
      arrays = dict(file)
    gaps_ExP = np.random.default_rng(0).integers(-9, 20, arrays["golden_ExP"].shape)
    if name == "on":
      gaps_ExP[1:] = 9  # always longer
    np.savez(path, length_gaps_ExP=gaps_ExP, **arrays)
  results.redraw(workdir)
  judges = {"golden PM", "golden PM at equal length"}
  for name in ("figures/figure_04.csv", "claims.csv"):
    with (workdir / name).open() as file:
      assert {row["judge"] for row in csv.DictReader(file)} - {"-"} == judges
  page = (workdir / "report.html").read_text()
  assert "judged by the golden PM at equal length" in page
  assert "(1 run, 8 tokens)" in page  # of each line
  for said in (page, capsys.readouterr().out):
    assert "have guesses for win rates" in said
    assert ": on at 100, 200." in said


def test_figures_without_runs_are_named_when_all_else_is_written(workdir):
  publish(workdir, figures=["figure_06", "figure_13", "staleness"])
  with pytest.raises(UserError, match="figure_13: no .*; staleness: no evaluated run"):
    results.redraw(workdir)
  made = set(drawn(workdir))
  assert made == {"figure_06.png", "figure_06.csv", "claims.csv", "report.html"}


def test_what_a_study_says_is_read(workdir):
  publish(workdir, something_new=1)
  study = published.load(workdir)
  assert (study.task, study.worlds, study.samples_note) == ("tldr", [0], "Of world 0.")
  assert study.models == [published.Model(**MODEL)]
  audit = {"orders_agree": 1, "prefers_longer": None, "labels_prefer_longer": 0.5}
  audit |= {"accuracy_by_margin": [0.5, 1]}
  publish(workdir, models=[MODEL | {"audit": audit}])
  assert published.load(workdir).models[0].audit == published.Audit(**audit)
  assert study.samples == [published.Sample("p", {"a": "b"})]


@pytest.mark.parametrize("accuracy, told", [(0.84, True), (0.85, False), (None, False)])
def test_a_world_whose_golden_judge_misses_the_truth_is_refused(
  workdir, accuracy, told, capsys
):
  golden = MODEL | {"name": "world0_golden_pm", "truth_accuracy": accuracy}
  publish(workdir, models=[golden], figures=[])
  results.redraw(workdir)
  words = "counts for no claim: the golden PM agrees with the truth on 0.840"
  assert (f"world 0 {words}" in capsys.readouterr().out) == told
  assert (f"World 0 {words}" in (workdir / "report.html").read_text()) == told
  assert (b"world 0: the golden PM" in (workdir / "claims.csv").read_bytes()) == told


def test_code_is_named_where_it_is_known(workdir):
  publish(workdir)
  assert (published.load(workdir).version, published.load(workdir).commit) == (
    None,
  ) * 2
  publish(workdir, version="0.1.0", commit=None)
  results.redraw(workdir)
  assert "<footer>version 0.1.0</footer>" in (workdir / "report.html").read_text()


def test_what_earlier_configurations_left_is_not_read(workdir):
  results.redraw(workdir)
  first = drawn(workdir)
  write(workdir / "classification" / "world1.jsonl", "damaged")
  write(workdir / "runs" / "x" / "evaluations.jsonl", "damaged")
  results.redraw(workdir)
  assert drawn(workdir) == first


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"commit": 7}, "study.json: 'commit' is 7, expected a string or null"),
    ({"task": None}, "study.json: 'task' is None, expected a string"),
    ({"task": "\ud800"}, "'task' is .*, expected a string"),
    ({"worlds": []}, "'worlds' is .*, expected a list of integers, at least one"),
    ({"figures": ["figure_99"]}, "'figures' is .*, expected a list, each figure_01 or"),
    ({"runs": ["../x"]}, "'runs' is .*, expected a list, each the name of a file"),
    ({"training": ["\0"]}, "'training' is .*, expected a list, each the name of a"),
    ({"models": [{"name": "x"}]}, r"study.json: models\[0\]: no 'parameters'; run the"),
    ({"models": [MODEL, MODEL | {"steps": "8"}]}, r"models\[1\]: 'steps' is '8'"),
    ({"models": [MODEL | {"audit": {}}]}, r"models\[0\].audit: no 'orders_agree'; run"),
    ({"samples": []}, "'samples' is .*, expected an object"),
    ({"samples": {"note": ""}}, "study.json: samples: no 'rows'"),
    (
      {"samples": {"note": "", "rows": [{"prompt": "p", "responses": {"a": 1}}]}},
      r"samples.rows\[0\]: 'responses' is .*, expected an object of strings",
    ),
  ],
)
def test_a_study_of_another_kind_is_refused(workdir, fields, message):
  publish(workdir, **fields)
  with pytest.raises(UserError, match=message):
    results.redraw(workdir)
  assert not (workdir / "report.html").exists()


@pytest.mark.parametrize("content", [b"", b'{"task": "tl', b"[]", b"\xff", b"[" * 9999])
def test_a_damaged_study_is_named(workdir, content):
  (workdir / "study.json").write_bytes(content)
  with pytest.raises(UserError, match="study.json: .*run the study's command again"):
    results.redraw(workdir)


@pytest.mark.parametrize(
  "name",
  [
    "study.json",
    "runs/off/evaluations.jsonl",
    "classification/world0.jsonl",
    "training/sft.jsonl",
  ],
)
def test_a_missing_file_is_named_before_anything_is_written(workdir, name):
  (workdir / name).unlink()
  with pytest.raises(UserError, match=f"{name}: missing"):
    results.redraw(workdir)
  assert not (workdir / "figures").exists()


def test_damaged_training_statistics_are_named(workdir):
  write(workdir / "training" / "sft.jsonl", '{"step": 1}\n{"step": "x"}\n')
  with pytest.raises(UserError, match="sft.jsonl:2: 'step' is 'x', expected an intege"):
    results.redraw(workdir)


# --- The command ----------------------------------------------------------------------


def test_the_command_redraws_a_directory_of_the_home(workdir, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(workdir.parent))
  publish(workdir, figures=[])
  assert command.main([f"~/{workdir.name}"]) == 0
  assert (workdir / "report.html").exists()
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    ([], "error: one working directory is needed; the command is python -m alignment"),
    (["a", "b"], "error: one working directory is needed"),
    (["--workdir=a"], "error: no option '--workdir=a'"),
    (["/nowhere"], "error: /nowhere: no such directory"),
    (["~nobody-of-this-name/x"], "error: ~nobody-of-this-name/x: Could not determine"),
    (["."], "error: study.json: missing; run the study's command again"),
  ],
)
def test_bad_arguments_are_one_line(arguments, line, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert command.main(arguments) == 1
  out, err = capsys.readouterr()
  assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_a_directory_that_cannot_be_written_is_one_line(workdir, capsys):
  (workdir / "figures").write_text("a file")
  assert command.main([str(workdir)]) == 1
  err = capsys.readouterr().err
  assert err.startswith("error: ") and "figures" in err and err.count("\n") == 1


def test_the_command_runs_by_itself():
  done = subprocess.run(
    [sys.executable, "-m", "alignment.analysis", "/nowhere"],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": os.getcwd()},
  )
  assert (done.returncode, done.stdout) == (1, "")
  assert done.stderr.startswith("error: /nowhere: no such directory")
