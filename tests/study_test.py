"""The whole study at its smallest: run once, then looked at from all sides."""

import csv
import json
import math
import re

import jax
import numpy as np
import pytest

from alignment import artefacts, commands, runs, study
from alignment.data import pairs
from alignment.evals import policy as policy_eval
from alignment.files import read_json, read_npz
from alignment.models import huggingface
from alignment.statistics import KL_FLOOR
from alignment.types import UserError
from tests import studies

KEYS = {  # of every line of evaluations.jsonl
  "run", "method", "task", "loss", "beta", "learning_rate", "world", "seed", "size",
  "step", "kl", "kl_stderr", "win_rate", "win_rate_stderr", "golden_score",
  "classification_accuracy", "chosen_log_ratio", "rejected_log_ratio",
  "response_length", "truncation_rate", "entropy", "decode_vs_score_max_abs_diff",
  "true_utility", "true_win_rate", "judge_accuracy_on_policy",
}  # fmt: skip
POLICY_RUNS = {
  "world0_online_ipo",
  "world0_offline_ipo_lr0.0003",
  "world0_offline_ipo_lr0.001",
}
LEVELS = {"world0_sft", "world0_golden_policy"}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Where the nano study has run, and its figures and report are."""
  directory = tmp_path_factory.mktemp("study")
  config = studies.nano()
  commands.run(config, directory, [], lambda: None)
  commands.finish(config, directory)
  return directory


@pytest.fixture(scope="module")
def built():
  return study.build(studies.nano(), 0)


def records(workdir) -> list[dict]:
  paths = sorted(workdir.glob("runs/*/evaluations.jsonl"))
  return [json.loads(line) for path in paths for line in path.open()]


# --- what has run ---------------------------------------------------------------------


def test_every_checkpoint_has_a_complete_record(workdir):
  found = records(workdir)
  assert {r["run"] for r in found} == POLICY_RUNS | LEVELS
  for r in found:
    assert r.keys() == KEYS
    assert all(math.isfinite(v) for v in r.values() if isinstance(v, float)), r
    for rate in ("win_rate", "true_win_rate", "truncation_rate"):
      assert 0 <= r[rate] <= 1
    assert 1 <= r["response_length"] <= studies.nano().response_length
    assert (r["task"], r["world"], r["size"]) == ("toy", 0, "nano")
  steps = {name: [r["step"] for r in found if r["run"] == name] for name in POLICY_RUNS}
  assert all(found == [4, 8] for found in steps.values())
  methods = {r["run"]: r["method"] for r in found}
  assert methods["world0_online_ipo"] == "online"
  assert methods["world0_offline_ipo_lr0.001"] == "offline"
  assert {methods[name] for name in LEVELS} == {"sft", "golden_policy"}


def test_outcomes_are_those_of_the_records(workdir):
  for r in records(workdir):
    arrays = read_npz(workdir / "runs" / r["run"] / "outcomes.npz")
    assert arrays.keys() == {"steps_E", "golden_ExP", "truth_ExP"}
    row = arrays["steps_E"].tolist().index(r["step"])
    for name, rate in (("golden_ExP", "win_rate"), ("truth_ExP", "true_win_rate")):
      wins_P = arrays[name][row]
      assert wins_P.shape == (48,)
      assert wins_P.mean() == pytest.approx(r[rate], abs=1e-6)
    stderr = arrays["golden_ExP"][row].std(ddof=1) / math.sqrt(48)
    assert stderr == pytest.approx(r["win_rate_stderr"], abs=1e-6)


def test_sft_is_where_kl_and_log_ratios_begin(workdir):
  (sft,) = (r for r in records(workdir) if r["method"] == "sft")
  assert abs(sft["kl"]) < 1e-6
  assert abs(sft["chosen_log_ratio"]) < 1e-4 and abs(sft["rejected_log_ratio"]) < 1e-4
  trained = [r for r in records(workdir) if r["method"] in ("online", "offline")]
  assert all(r["kl"] > 1e-6 for r in trained)


def test_what_is_sampled_is_what_is_scored(workdir):
  assert max(r["decode_vs_score_max_abs_diff"] for r in records(workdir)) < 1e-4


def test_golden_data_is_in_the_golden_models_order(workdir, built):
  """The margins are recomputed from the artefacts, not read from them."""
  setting = built.setting
  role = setting.config.golden_pm
  judge = setting.preference_model(role)
  params = setting.load(built.models["golden_pm"].directory(workdir), judge.model)
  for split in ("train", "validation"):
    initial, golden = (
      pairs.PairDataset.load(built.models[name].directory(workdir) / split)
      for name in ("data", "golden_data")
    )
    margins = setting.map_pairs(
      lambda batch: policy_eval.margins(judge, params, batch), golden
    )
    assert margins.min() > -1e-5
    np.testing.assert_allclose(golden.columns["margin"], margins, atol=1e-5)
    # The same pairs: only their order may differ.
    for i in range(len(golden)):
      both = [tuple(response[i]) for response in golden.responses]
      assert sorted(both) == sorted(
        tuple(response[i]) for response in initial.responses
      )
      np.testing.assert_array_equal(golden.prompts[i], initial.prompts[i])
    kept = np.mean([tuple(golden.responses[0][i]) == tuple(initial.responses[0][i])
                    for i in range(len(golden))])  # fmt: skip
    written = read_json(
      built.models["golden_data"].directory(workdir) / "agreement.json"
    )
    assert kept == pytest.approx(written[split])
    assert 0 < kept < 1


def test_who_learns_from_what(workdir, built):
  """The paper's figure 2, read from what the artefacts say they were made from."""

  def inputs(artefact):
    described = read_json(artefact.directory(workdir) / "config.json")["inputs"]
    return {name: directory.rsplit("-", 1)[0] for name, directory in described.items()}

  m = built.models
  assert inputs(m["sft_nano"]) == {"data": "data"}
  assert inputs(m["golden_pm"]) == {"data": "data"}
  assert inputs(m["proxy_pm"]) == {"data": "golden_data", "init": "sft_nano"}
  start = {"sft": "sft_nano", "pairs": "golden_data_nano"}
  assert inputs(m["golden_policy"]) == start | {"judge": "golden_pm"}
  for name, artefact in built.policies.items():
    judge = {"judge": "proxy_pm"} if "online" in name else {}
    assert inputs(artefact) == start | judge


def test_preference_models_report_accuracies(workdir, built):
  for name in ("golden_pm", "proxy_pm"):
    report = read_json(built.models[name].directory(workdir) / "model.json")
    assert report["step"] in (4, 8)
    for key in ("validation_accuracy", "train_accuracy", "truth_accuracy"):
      assert 0 <= report[key] <= 1
    assert report["validation_pairs"] > 0


def test_figure_1_draws_the_evaluations(workdir):
  with open(workdir / "figures" / "figure_01.csv", encoding="utf-8") as f:
    rows = list(csv.DictReader(f))
  points = {
    (r["judge"], r["run"], int(r["step"])): (float(r["kl"]), float(r["win_rate"]))
    for r in rows
    if r["kind"] == "point"
  }
  expected = {
    (judge, r["run"], r["step"]): (r["kl"], r[rate])
    for r in records(workdir)
    if r["method"] in ("online", "offline") and r["kl"] >= KL_FLOOR
    for judge, rate in (("golden PM", "win_rate"), ("truth", "true_win_rate"))
  }
  assert points.keys() == expected.keys()
  for key, values in expected.items():
    assert points[key] == pytest.approx(values, rel=1e-5)
  assert (workdir / "figures" / "figure_01.png").read_bytes().startswith(b"\x89PNG")


def test_report_is_whole_and_self_contained(workdir):
  page = (workdir / "report.html").read_text(encoding="utf-8")
  references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
  assert references and all(r.startswith(("data:", "#")) for r in references)
  assert "@import" not in page and "url(http" not in page
  for text in ("golden_pm", "proxy_pm", "SFT", "online", "offline", "golden policy"):
    assert text in page, text


def test_nothing_is_made_twice(workdir, monkeypatch):
  def make(*_):
    raise AssertionError("a finished stage ran again")

  monkeypatch.setattr(artefacts, "_try_to_make", make)
  commands.run(studies.nano(workers=2, log_every=1), workdir, [], lambda: None)


# --- the command line on it -----------------------------------------------------------


def test_dry_run_says_what_is_left(capsys, workdir):
  commands.dry_run(studies.nano(), workdir)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "done   data"
  assert "done   proxy_pm  <- golden_data, sft_nano" in lines
  assert all(line.startswith("done ") for line in lines)
  commands.dry_run(studies.nano(**{"policy.beta": 0.5}), workdir)
  lines = capsys.readouterr().out.splitlines()
  left = {line.split()[2] for line in lines if line.startswith("to do")}
  assert left == POLICY_RUNS | {f"evaluation_{name}" for name in POLICY_RUNS}


def test_show_batch(capsys, workdir):
  commands.run(studies.nano(), workdir, ["show_batch"], lambda: None)
  out = capsys.readouterr().out
  for name in ("prompt (", "preferred (", "other (", "judge reads ("):
    assert out.count(name) == 3
  prompt = re.search(r"prompt \((\d+) of 9 positions\)\n  text    (.*)\n", out)
  assert len(prompt[2].split()) == int(prompt[1])  # every token is shown
  assert re.search(r"  mask    1 x 9, 0 x 0\n", out)


def test_sample_from_any_model(capsys, workdir, built):
  prompt = " ".join(studies.nano().vocab.words[:8])
  asked = {"sample.model": "world0_online_ipo", "sample.step": 4,
           "sample.prompts": (prompt,), "sample.responses": 3}  # fmt: skip
  commands.run(studies.nano(**asked), workdir, ["sample"], lambda: None)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f"prompt: {prompt}"
  assert [line[:4] for line in lines[1:]] == ["  1:", "  2:", "  3:"]


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"sample.model": "golden"}, "model 'golden' is no model; there are sft_nano"),
    ({"sample.model": "golden_policy", "policy.beta": 9.0, "golden_policy.beta": 9.0},
     "sample.model 'golden_policy' is not trained yet: run --stages=golden_policy"),
    ({"sample.step": 5}, "params/5: no parameters saved at step 5"),
  ],
)  # fmt: skip
def test_sample_errors(workdir, overrides, message):
  with pytest.raises(UserError, match=message):
    commands.run(studies.nano(**overrides), workdir, ["sample"], lambda: None)


def test_export_is_the_trained_model(workdir, built, tmp_path):
  asked = {"export.model": "sft_nano", "export.directory": str(tmp_path / "hf")}
  commands.run(studies.nano(**asked), workdir, ["export"], lambda: None)
  artefact = built.models["sft_nano"]
  model = built.setting.model(artefact.config["role"])
  trained = built.setting.load(artefact.directory(workdir), model)
  exported = huggingface.read_params(tmp_path / "hf", model.cfg)
  jax.tree.map(np.testing.assert_array_equal, exported, jax.device_get(trained))
  with pytest.raises(UserError, match="export.directory is not set"):
    commands.run(studies.nano(), workdir, ["export"], lambda: None)


@pytest.mark.parametrize("content", [b"", b'{"step": '])
def test_damaged_artefact_is_one_line_that_says_what_to_delete(workdir, built, content):
  directory = built.models["golden_policy"].directory(workdir)
  path = directory / "model.json"
  whole = path.read_bytes()
  path.write_bytes(content)
  try:
    with pytest.raises(UserError) as error:
      commands.run(studies.nano(), workdir, ["sample"], lambda: None)
  finally:
    path.write_bytes(whole)
  assert str(error.value) == f"{path}: damaged; delete {directory} to make it again"


def test_model_of_another_shape_is_named(workdir, built):
  """As when an artefact's directory is copied over another's by hand."""
  setting = built.setting
  directory = built.models["sft_nano"].directory(workdir)
  larger = setting.model({"size": "micro", "init": "scratch"})
  with pytest.raises(UserError, match="checkpoint of another model: parameter '"):
    setting.load(directory, larger)


def test_evaluation_resumes_after_its_last_checkpoint(workdir, built, monkeypatch):
  artefact = built.evaluations["world0_online_ipo"]
  directory = artefact.directory(workdir)
  whole = (directory / "evaluations.jsonl").read_bytes()
  for name in ("done.json", "evaluations.jsonl", "step-8.npz"):
    (directory / name).unlink()
  calls = []
  evaluate = policy_eval.PolicyEvaluation.__call__
  monkeypatch.setattr(
    policy_eval.PolicyEvaluation,
    "__call__",
    lambda self, params: (calls.append(1), evaluate(self, params))[1],
  )
  artefacts.run([artefact], workdir)
  assert len(calls) == 1
  assert (directory / "evaluations.jsonl").read_bytes() == whole


def test_loaded_runs_pass_their_own_checks(workdir):
  assert {run.name for run in runs.load_runs(workdir)} == POLICY_RUNS | LEVELS


# --- the graph ------------------------------------------------------------------------


def changed(**overrides) -> set[str]:
  """Names of the stages that are made again when keys are edited."""
  before, after = (
    {a.name: a.key for a in artefacts.closure(built.stages().values())}
    for built in (
      study.build(studies.nano(), 0),
      study.build(studies.nano(**overrides), 0),
    )
  )
  return {name for name in after if before.get(name) != after[name]}


ALL_RUNS = POLICY_RUNS | {f"evaluation_{name}" for name in POLICY_RUNS}
JUDGED = {f"evaluation_{name}" for name in POLICY_RUNS | LEVELS}


@pytest.mark.parametrize(
  "overrides, expected",
  [
    ({"log_every": 1, "save_every": 1, "workers": 2, "mesh.fsdp": 1}, set()),
    ({"model.remat": "full", "notes": ("hello",), "sample.step": 3}, set()),
    ({"data.data_dir": "/elsewhere", "data.path": "/elsewhere"}, set()),
    ({"evaluation.batch_size": 8, "evaluation.require_good_judge": True}, set()),
    ({"evaluation.kl_prompts": 8}, JUDGED),
    ({"evaluation.prompts": 32}, JUDGED | {"golden_samples", "sft_samples"}),
    ({"policy.learning_rate": 1e-5},
     {"world0_online_ipo", "evaluation_world0_online_ipo"}),
    ({"golden_policy.beta": 0.7}, {"golden_policy", "golden_samples"} | JUDGED),
    ({"proxy_pm.steps": 4},
     {"proxy_pm", "world0_online_ipo", "evaluation_world0_online_ipo"}),
    ({"runs.offline.learning_rate": (3e-4,)}, set()),
  ],
)  # fmt: skip
def test_editing_a_key_re_runs_what_depends_on_it(overrides, expected):
  assert changed(**overrides) == expected


@pytest.mark.parametrize(
  "overrides, kept",
  [
    ({"golden_pm.steps": 4}, {"data", "sft_nano", "sft_samples"}),
    ({"sft.learning_rate": 1e-4}, {"data", "golden_pm", "golden_data"}),
    ({"data.num_pairs": 300}, set()),
    ({"vocab.words": (*studies.nano().vocab.words, "more")}, set()),
    ({"model.dtype": "bfloat16"}, {"data"}),
  ],
)
def test_editing_early_keys_keeps_only_what_is_independent(overrides, kept):
  every = set(study.build(studies.nano(), 0).stages())
  names = {
    a.name for a in artefacts.closure(study.build(studies.nano(), 0).stages().values())
  }
  assert len(names) == len(every) + 1  # and golden_data_nano, which needs no name
  if kept >= {"sft_nano"}:
    kept = kept - {"sft_samples"}  # its prompts come with D_golden
  assert names - changed(**overrides) == kept


def test_worlds_share_nothing(built):
  other = study.build(studies.nano(), 1)
  keys = [
    {a.key for a in artefacts.closure(b.stages().values())} for b in (built, other)
  ]
  assert not keys[0] & keys[1]


def test_runs_are_the_product_of_their_axes():
  config = studies.nano()
  config.runs = {
    "online": {"method": ("online",), "loss": ("ipo", "dpo")},
    "sweep": {"method": ("offline",), "beta": (0.1, 1.0), "steps": (4, 8)},
  }
  found = study.runs(config)
  assert set(found) == {
    "online_ipo", "online_dpo", "sweep_ipo_beta0.1_steps4", "sweep_ipo_beta0.1_steps8",
    "sweep_ipo_beta1.0_steps4", "sweep_ipo_beta1.0_steps8",
  }  # fmt: skip
  recipe = found["sweep_ipo_beta1.0_steps4"]
  assert (recipe["method"], recipe["beta"], recipe["steps"]) == ("offline", 1.0, 4)
  assert recipe["size"] == config.policy.size  # the rest is as in policy


@pytest.mark.parametrize(
  "axes, message",
  [
    ({"lr": (1e-3,)}, "runs.mine.lr is no key of policy; they are .*learning_rate"),
    ({"beta": 0.1}, "runs.mine.beta must be a tuple of values, not 0.1"),
    ({"beta": ()}, r"runs.mine.beta must be a tuple of values, not \(\)"),
    ({"loss": ("ipoo",)}, "loss 'ipoo'"),
    ({"method": ("onlin",)}, "world0_mine_ipo: method 'onlin' is unknown"),
    ({"loss": ("dpo",), "loss_options": ({"smooth": 0.1},)}, "dpo.*smooth"),
  ],
)
def test_bad_runs(axes, message):
  config = studies.nano()
  config.runs = {"mine": axes}
  with pytest.raises(UserError, match=message):
    study.build(config, 0)


def test_unknown_key_of_pooled_data():
  config = studies.nano()
  config.sft.data = ({"nam": "chatbot_arena"},)
  with pytest.raises(UserError, match="sft.data has 'nam', which is no key of data"):
    study.build(config, 0)
