"""What the nano study found: every number counted anew, from its artefacts."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from alignment.core import evaluation
from alignment.data import pairs, stream
from alignment.data.pairs import distinct_prompts
from alignment.runtime.files import read_npz
from alignment.runtime.metrics import read_jsonl
from alignment.study import artefacts
from alignment.study.setting import seed_of
from alignment.study.stages.evaluations import prompt_rows
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEYS = {  # of every line of evaluations.jsonl
  "run", "series", "method", "default", "task", "loss", "beta", "learning_rate",
  "world", "seed", "size", "step", "kl", "kl_stderr", "kl_k1_stderr", "kl_k3_stderr",
  "win_rate", "win_rate_stderr", "proxy_score", "proxy_score_stderr",
  "golden_score", "golden_score_stderr", "classification_accuracy", "chosen_log_ratio",
  "rejected_log_ratio", "response_length", "truncation_rate", "entropy",
  "decode_vs_score_max_abs_diff", "parameters", "dataset", "replay_window",
  "refresh_every", "on_policy_fraction", "self_classification_accuracy",
  "true_utility", "true_win_rate", "judge_accuracy_on_policy",
}  # fmt: skip
LEVELS = {"world0_sft", "world0_golden_policy", "world0_best_of_n"}


def test_every_checkpoint_has_a_complete_record(nano):
  records = nano.records()
  assert {r["run"] for r in records} == nano.runs | LEVELS
  assert len(nano.runs) == 24
  for r in records:
    assert r.keys() == KEYS
    assert all(math.isfinite(v) for v in r.values() if isinstance(v, float)), r
    for rate in ("win_rate", "true_win_rate", "truncation_rate"):
      assert 0 <= r[rate] <= 1
    assert 1 <= r["response_length"] <= studies.every().response_length
    size = "micro" if "sizemicro" in r["run"] else "nano"
    assert (r["task"], r["world"], r["size"]) == ("toy", 0, size)
  for name in nano.runs:
    of_run = nano.records(name)
    assert [r["step"] for r in of_run] == [4, 8]
    assert name.startswith(f"world0_{of_run[0]['series']}_")
  levels = {r["series"]: r["method"] for r in records if r["run"] in LEVELS}
  assert levels == {"sft": None, "golden_policy": "online", "best_of_n": None}


def test_a_record_says_whether_its_settings_are_the_configurations(nano):
  defaults = {r["run"] for r in nano.records() if r["default"]}
  assert {"world0_online_ipo", "world0_offline_ipo_lr0.003"} <= defaults
  assert not defaults & (LEVELS | {"world0_offline_ipo_lr0.01", "world0_online_dpo"})


def test_outcomes_are_those_of_the_records(nano):
  for r in nano.records():
    arrays = read_npz(nano.workdir / "runs" / r["run"] / "outcomes.npz")
    assert arrays.keys() == {"steps_E", "golden_ExP", "truth_ExP", "length_gaps_ExP"}
    assert arrays["length_gaps_ExP"].shape == arrays["golden_ExP"].shape
    row = arrays["steps_E"].tolist().index(r["step"])
    for name, rate in (("golden_ExP", "win_rate"), ("truth_ExP", "true_win_rate")):
      wins_P = arrays[name][row]
      assert wins_P.shape == (48,)
      assert wins_P.mean() == pytest.approx(r[rate], abs=1e-6)
    stderr = arrays["golden_ExP"][row].std(ddof=1) / math.sqrt(48)
    assert stderr == pytest.approx(r["win_rate_stderr"], abs=1e-6)


def judged(nano, judge, first, second, rows):
  """A judge's margins of one set of responses over another, to the same prompts."""
  setting, pm = nano.study.setting, judge.judge()
  params = setting.parameters.load(judge.directory(nano.workdir), pm.model)
  batch = nano.evaluated_pairs().batch(rows, **setting.lengths)
  batch = batch.replace(
    responses_BxNxT=np.stack([first["tokens"], second["tokens"]], 1),
    lengths_BxN=np.stack([first["lengths"], second["lengths"]], 1),
  )
  return np.asarray(evaluation.margins(pm, params, batch))


def test_win_rates_are_against_the_golden_policy_and_scores_against_sft(nano):
  golden, sft = nano.responses("golden_samples"), nano.responses("sft_samples")
  directory = nano.directory("evaluate_world0_online_ipo")
  ours, record = read_npz(directory / "step-8.npz"), nano.record("world0_online_ipo", 8)
  pm, rows = nano.study.golden_pm(), golden["rows"]
  wins = evaluation.outcome(judged(nano, pm, ours, golden, rows))
  assert record["win_rate"] == pytest.approx(wins.mean())
  score = judged(nano, pm, ours, sft, rows).mean()
  assert record["golden_score"] == pytest.approx(score, abs=1e-5)
  score = judged(nano, nano.study.proxy_pm(), ours, sft, rows).mean()
  assert record["proxy_score"] == pytest.approx(score, abs=1e-5)


def test_draws_that_should_be_independent_are(nano):
  """All of SFT, for the same prompts: as opponent, evaluated, and in best-of-n."""
  drawn = [nano.responses("sft_samples")]
  for name in ("sft", "best_of_n"):
    directory = nano.directory(f"evaluate_world0_{name}")
    drawn.append(read_npz(min(directory.glob("step-*.npz"))))
  for a, b in itertools.combinations(drawn, 2):
    assert (a["tokens"] != b["tokens"]).any(axis=1).mean() > 0.5
  twice = pairs.PairDataset.load(nano.read(nano.policy("final_vs_final_ipo").pairs))
  same = [np.array_equal(a, b) for a, b in zip(*twice.responses, strict=True)]
  assert np.mean(same) < 0.5


def test_each_world_is_evaluated_on_prompts_of_its_own(nano):
  data = nano.data("golden_data")
  rows_of_world = [
    prompt_rows(dataclasses.replace(nano.study.setting, world=world), data)
    for world in (0, 1)
  ]
  assert set(rows_of_world[0]) != set(rows_of_world[1])
  rows = nano.responses("sft_samples")["rows"]
  np.testing.assert_array_equal(rows, rows_of_world[0])


def test_policies_classify_pairs_drawn_apart_from_the_prompts(nano):
  """Counted anew, on the pairs that the seed of 'pairs' draws."""
  setting, data = nano.study.setting, nano.evaluated_pairs()
  rows = distinct_prompts(data, 32, seed_of("pairs", 0))
  assert set(rows) != set(prompt_rows(setting, data)[:32])
  model, params = nano.policy("online_ipo").model(), nano.params("online_ipo", 8)
  ratios = setting.map_pairs(
    lambda batch: evaluation.log_ratios(model, params, batch), data, rows
  )
  record = nano.record("world0_online_ipo", 8)
  wins = evaluation.outcome(ratios[:, 0] - ratios[:, 1])
  assert record["classification_accuracy"] == pytest.approx(wins.mean())
  assert record["chosen_log_ratio"] == pytest.approx(ratios[:, 0].mean(), rel=1e-4)


def test_sft_is_where_kl_and_log_ratios_begin(nano):
  (sft,) = nano.records("world0_sft")
  assert abs(sft["kl"]) < 1e-6
  assert abs(sft["chosen_log_ratio"]) < 1e-4 and abs(sft["rejected_log_ratio"]) < 1e-4
  assert all(r["kl"] > 1e-6 for run in nano.runs for r in nano.records(run))


def test_what_is_sampled_is_what_is_scored(nano):
  differences = [r["decode_vs_score_max_abs_diff"] for r in nano.records()]
  assert max(d for d in differences if d is not None) < 1e-4


def test_what_has_no_golden_label_is_not_classified():
  values, golden = np.array([2.0, -1.0, 0.0, 3.0]), np.array([1.0, 4.0, -2.0, 0.0])
  assert evaluation.classified(values, golden).tolist() == [1.0, 0.0, 0.5]
  assert evaluation.classified(values, 0 * golden).tolist() == []


# --- best-of-n ------------------------------------------------------------------------


def test_best_of_n_is_bounded_in_kl_and_measured_in_wins(nano):
  records = nano.records("world0_best_of_n")
  assert [r["step"] for r in records] == [2, 3]
  for r in records:
    n = r["step"]
    assert r["kl"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert r["kl_stderr"] is None and r["win_rate_stderr"] > 0


def test_best_of_n_is_preferred_by_the_proxy(nano):
  """The best of three is the best of two, or has beaten it."""
  directory = nano.directory("evaluate_world0_best_of_n")
  two, three = (read_npz(directory / f"step-{n}.npz") for n in (2, 3))
  rows = nano.responses("sft_samples")["rows"]
  margins = judged(nano, nano.study.proxy_pm(), three, two, rows)
  assert margins.min() > -1e-5 and margins.max() > 0


def test_of_equal_samples_the_earlier_stays(nano, tmp_path, monkeypatch):
  judged = lambda self, judge, params, a, b: np.zeros(len(a[0]))  # noqa: E731
  monkeypatch.setattr(evaluation.Contest, "judged", judged)
  study = nano.with_config(**{"evaluation.best_of": (1, 3)})
  study.evaluations()["world0_best_of_n"].make(tmp_path, nano.read)
  one, three = (read_npz(tmp_path / f"step-{n}.npz")["tokens"] for n in (1, 3))
  np.testing.assert_array_equal(one, three)


def test_best_of_n_draws_each_time_with_a_key_of_its_own(nano, tmp_path, monkeypatch):
  """Nine samples: eight together, then one more."""
  keys = set()
  sample = evaluation.sample

  def noted(model, params, batch, key, *args, **kwargs):
    keys.add(tuple(jax.random.key_data(key).tolist()))
    return sample(model, params, batch, key, *args, **kwargs)

  monkeypatch.setattr(evaluation, "sample", noted)
  study = nano.with_config(**{"evaluation.best_of": (9,)})
  study.evaluations()["world0_best_of_n"].make(tmp_path, nano.read)
  assert len(keys) == 2


# --- figure 6 -------------------------------------------------------------------------


def test_the_stream_is_classified_by_all_three(nano):
  """Accuracies are counted anew, from the artefacts."""
  classification, parameters = (
    nano.study.classification(),
    nano.study.setting.parameters,
  )
  recorded = stream.Stream.load(nano.read(classification.online) / "stream", steps=8)

  def margins(name, batch):
    artefact = getattr(classification, name)
    params = parameters.load(nano.read(artefact), artefact.model())
    if name.endswith("_pm"):
      return evaluation.margins(artefact.judge(), params, batch)
    ratios = evaluation.log_ratios(artefact.model(), params, batch)
    return ratios[:, 0] - ratios[:, 1]

  expected = {}
  for step in (0, 3, 6):
    batch = recorded.batch(step * recorded.batch_size + np.arange(12))
    golden = np.asarray(margins("golden_pm", batch))
    for name in ("proxy_pm", "online", "offline"):
      right = (np.asarray(margins(name, batch)) * golden)[golden != 0]
      wins = (right > 0) + 0.5 * (right == 0)
      expected[name, step] = wins.mean(), wins.std(ddof=1) / len(wins) ** 0.5, len(wins)
  rows = read_jsonl(nano.workdir / "classification" / "world0.jsonl")
  written = {
    (r["classifier"], r["step"]): (r["accuracy"], r["stderr"], r["pairs"]) for r in rows
  }
  assert len(rows) == len(expected) and written.keys() == expected.keys()
  for key, values in expected.items():
    assert written[key] == pytest.approx(values), key


def test_a_stream_shorter_than_what_is_asked_is_classified_once(nano, tmp_path):
  study = nano.with_config(**{"evaluation.stream_pairs": 999})
  study.classification().make(tmp_path, nano.read)
  rows = read_jsonl(tmp_path / "classification.jsonl")
  assert [(row["step"], row["pairs"]) for row in rows] == [(0, 8 * 8)] * 3


# --- resuming -------------------------------------------------------------------------


def test_evaluation_resumes_after_its_last_checkpoint(nano, monkeypatch):
  artefact = nano.study.evaluations()["world0_online_ipo"]
  directory = nano.read(artefact)
  whole = (directory / "evaluations.jsonl").read_bytes()
  for name in ("done.json", "evaluations.jsonl"):
    (directory / name).unlink()
  np.savez(directory / "step-8.npz", of="another program")
  with pytest.raises(UserError, match=r"step-8\.npz: damaged; delete"):
    artefacts.run([artefact], nano.workdir)
  (directory / "step-8.npz").unlink()
  calls = []
  evaluate = evaluation.PolicyEvaluation.__call__
  monkeypatch.setattr(
    evaluation.PolicyEvaluation,
    "__call__",
    lambda self, params: (calls.append(1), evaluate(self, params))[1],
  )
  artefacts.run([artefact], nano.workdir)
  assert len(calls) == 1
  assert (directory / "evaluations.jsonl").read_bytes() == whole
