"""What the nano study leaves for people: figures, claims, the report."""

import csv
import re
import types

import numpy as np
import pytest

from alignment.analysis import runs
from alignment.analysis.envelopes import KL_FLOOR
from alignment.analysis.results import redraw
from alignment.data import pairs, translation
from alignment.data.vocabularies import HuggingFaceVocabulary
from alignment.runtime.files import read_json, write_json, write_npz
from alignment.study import checks, publish
from alignment.types import UserError
from tests import studies, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_every_figure_is_drawn(nano):
  drawn = {path.stem for path in (nano.workdir / "figures").glob("*.png")}
  assert drawn == set(studies.every().figures)
  assert {path.stem for path in (nano.workdir / "figures").glob("*.csv")} == drawn


def test_figure_1_draws_the_evaluations(nano):
  with open(nano.workdir / "figures" / "figure_01.csv", encoding="utf-8") as f:
    rows = list(csv.DictReader(f))
  points = {
    (r["judge"], r["run"], int(r["step"])): (float(r["kl"]), float(r["win_rate"]))
    for r in rows
    if r["kind"] == "point"
  }
  expected = {
    (judge, r["run"], r["step"]): (r["kl"], r[rate])
    for r in nano.records()
    if r["series"] in ("online", "offline")
    and (r["loss"], r["size"]) == ("ipo", "nano")
    and r["kl"] >= KL_FLOOR
    for judge, rate in (("golden PM", "win_rate"), ("truth", "true_win_rate"))
  }
  assert points.keys() == expected.keys() and points
  for key, values in expected.items():
    assert points[key] == pytest.approx(values, rel=1e-5)
  assert (
    (nano.workdir / "figures" / "figure_01.png").read_bytes().startswith(b"\x89PNG")
  )


def test_every_claim_is_in_the_csv(nano):
  with open(nano.workdir / "claims.csv", newline="", encoding="utf-8") as f:
    rows = list(csv.DictReader(f))
  assert {row["figure"] for row in rows} >= {"1", "4", "5", "9", "12", "13", "App. F"}
  assert {row["world"] for row in rows} == {"all", "0"}
  assert {row["verdict"] for row in rows if row["world"] == "all"} == {"undecided"}


def test_report_is_whole_and_self_contained(nano):
  page = (nano.workdir / "report.html").read_text(encoding="utf-8")
  references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
  assert references and all(r.startswith(("data:", "#")) for r in references)
  assert "@import" not in page and "url(http" not in page
  for text in ("golden_pm", "proxy_pm", "SFT", "online", "offline", "golden policy"):
    assert text in page, text
  # Held-out and true of the golden PM, and these and the golden PM's of the proxy.
  assert len(re.findall(r">[01]\.\d{3} ± 0\.\d{3}<", page)) == 5


def test_a_figure_without_its_runs_costs_nothing_else(nano, tmp_path):
  # Shared, as the documentation says.
  (tmp_path / "artefacts").symlink_to(nano.workdir / "artefacts")
  config = studies.every()
  runs_of = config.runs.to_dict()
  del runs_of["final_vs_final"]
  stale = tmp_path / "runs" / "world0_final_vs_final_ipo" / "evaluations.jsonl"
  stale.parent.mkdir(parents=True)
  stale.write_text("damaged")  # of an earlier configuration, and not looked at
  studies.run(config, tmp_path, ["data"])
  config.runs = runs_of
  config.figures = ("figure_05", "figure_01")
  with pytest.raises(UserError, match="figure_05: no evaluated run of final_vs_final"):
    studies.finish(config, tmp_path)
  assert (tmp_path / "figures" / "figure_01.png").exists()
  assert (tmp_path / "claims.csv").exists() and (tmp_path / "report.html").exists()


def test_every_world_says_what_its_language_can_be_won_with(tmp_path):
  config = studies.nano(worlds=2, first_world=3, without_worlds=(4,))
  studies.run(config, tmp_path, ["data"])
  worlds = checks.studies(config, tmp_path)
  lines = publish._data_statistics(worlds, tmp_path)
  optima = [line for line in lines if "language: true utility: optimum" in line]
  assert [line.partition("language")[0] for line in optima] == ["", "world 5, "]
  assert len({line.partition("language")[2] for line in optima}) == 2


def test_a_judge_check_switched_on_later_holds(nano, monkeypatch, tmp_path):
  (tmp_path / "artefacts").symlink_to(nano.workdir / "artefacts")
  report = {"validation_accuracy": 0.5, "validation_within": 0.0, "train_accuracy": 0.5}
  monkeypatch.setattr(publish, "read_json", lambda _: report)
  config = studies.every(**{"evaluation.require_good_judge": True})
  with pytest.raises(UserError, match="golden preference model of world 0: held-out"):
    studies.finish(config, tmp_path)


def test_loaded_runs_pass_their_own_checks(nano):
  names = {run.name for run in runs.load_runs(nano.workdir)}
  assert names == {r["run"] for r in nano.records()}


def test_published_files_say_all_that_is_drawn(nano, tmp_path):
  """Without configuration and artefacts: the same figures and claims, and a report."""
  for name in ("runs", "classification", "training"):
    (tmp_path / name).symlink_to(nano.workdir / name)
  study = read_json(nano.workdir / "study.json")
  figures = list(study["figures"][:2])  # drawing all of them takes half a minute
  write_json(tmp_path / "study.json", study | {"figures": figures})
  redraw(tmp_path)
  names = {f"figures/{path.name}" for path in (tmp_path / "figures").glob("*.csv")}
  assert len(names) == len(figures)
  for name in names | {"claims.csv"}:
    assert (tmp_path / name).read_bytes() == (nano.workdir / name).read_bytes()
  assert (tmp_path / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_prompts_of_samples_are_written_as_a_rule_reads_them(tmp_path, monkeypatch):
  """What a known utility pays for them can then be recomputed: no chat marks."""
  text = "Be kind.\n\nHuman: What is it?\n\nAssistant:"
  vocabulary = HuggingFaceVocabulary(tiny_tokenizer.write(tmp_path / "model", "chatml"))
  ids = np.array([vocabulary.fit_prompt(text, 200, "left").ids], np.int32)
  reply = np.array([vocabulary.encode("a mat")], np.int32)
  prompts, replies = (
    pairs.Ragged.from_padded(x, np.array([x.shape[1]])) for x in (ids, reply)
  )
  (tmp_path / "train").mkdir()
  pairs.PairDataset(prompts, (replies, replies)).save(tmp_path / "train")
  lengths = np.array([reply.shape[1]])
  write_npz(
    tmp_path / "responses.npz", rows=np.array([0]), tokens=reply, lengths=lengths
  )
  stage = types.SimpleNamespace(directory=lambda _: tmp_path)
  names = "sft_samples", "golden_samples", "golden_data"
  study = types.SimpleNamespace(
    world=0,
    setting=types.SimpleNamespace(vocabulary=vocabulary),
    **{name: lambda: stage for name in names},
  )
  monkeypatch.setattr(publish.runs_lib, "load_runs", lambda *_: [])
  _, (row,) = publish._samples(study, tmp_path, [])
  assert row["prompt"] == text
  batch = pairs.PairDataset.load(tmp_path / "train").batch([0], 200, 50)
  ((shown, _),) = translation.texts(vocabulary, batch)
  assert shown == text
