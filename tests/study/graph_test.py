"""The whole study at its smallest: run once, then looked at from all sides."""

import csv
import dataclasses
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.analysis import runs
from alignment.analysis.envelopes import KL_FLOOR
from alignment.core import evaluation as policy_eval
from alignment.core import optim, train_step
from alignment.data import pairs, readers, stream
from alignment.data.pairs import distinct_prompts
from alignment.models import huggingface, t5
from alignment.runtime.files import read_json, read_npz
from alignment.runtime.metrics import read_jsonl
from alignment.study import artefacts, commands, graph, recipes
from alignment.study.setting import Setting, seed_of
from alignment.study.stages import evaluate as eval_stages
from alignment.study.stages import train
from alignment.types import UserError
from tests import studies, synthetic, tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEYS = {  # of every line of evaluations.jsonl
  "run", "method", "task", "loss", "beta", "learning_rate", "world", "seed", "size",
  "step", "kl", "kl_stderr", "win_rate", "win_rate_stderr", "golden_score",
  "classification_accuracy", "chosen_log_ratio", "rejected_log_ratio",
  "response_length", "truncation_rate", "entropy", "decode_vs_score_max_abs_diff",
  "parameters", "dataset", "replay_window", "refresh_every", "on_policy_fraction",
  "self_classification_accuracy", "golden_score_stderr",
  "true_utility", "true_win_rate", "judge_accuracy_on_policy",
}  # fmt: skip
POLICY_RUNS = {f"world0_{name}" for name in recipes.runs(studies.every())}
REFERENCES = {"world0_best_of_n"}
LEVELS = {"world0_sft", "world0_golden_policy"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Where the nano study has run, and its figures and report are."""
  directory = tmp_path_factory.mktemp("study")
  config = studies.every()
  commands.run(config, directory, [], lambda: None)
  commands.finish(config, directory)
  return directory


@pytest.fixture(scope="module")
def built():
  return graph.build(studies.every(), 0)


def records(workdir) -> list[dict]:
  paths = sorted(workdir.glob("runs/*/evaluations.jsonl"))
  return [json.loads(line) for path in paths for line in path.open()]


# --- what has run ---------------------------------------------------------------------


def test_every_checkpoint_has_a_complete_record(workdir):
  found = records(workdir)
  assert {r["run"] for r in found} == POLICY_RUNS | LEVELS | REFERENCES
  assert len(POLICY_RUNS) == 20
  for r in found:
    assert r.keys() == KEYS
    assert all(math.isfinite(v) for v in r.values() if isinstance(v, float)), r
    for rate in ("win_rate", "true_win_rate", "truncation_rate"):
      assert 0 <= r[rate] <= 1
    assert 1 <= r["response_length"] <= studies.every().response_length
    size = "micro" if "sizemicro" in r["run"] else "nano"
    assert (r["task"], r["world"], r["size"]) == ("toy", 0, size)
  steps = {name: [r["step"] for r in found if r["run"] == name] for name in POLICY_RUNS}
  assert all(found == [4, 8] for found in steps.values())
  methods = {r["run"]: r["method"] for r in found}
  for name in POLICY_RUNS:
    assert name.startswith(f"world0_{methods[name]}_")
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


def test_win_rates_are_against_the_golden_policy_and_scores_against_sft(workdir, built):
  judge = built.setting.preference_model(built.setting.config.golden_pm)
  params = built.setting.load(built.models["golden_pm"].directory(workdir), judge.model)
  golden, sft = (
    read_npz(built.models[name].directory(workdir) / "responses.npz")
    for name in ("golden_samples", "sft_samples")
  )
  evaluation = built.evaluations["world0_online_ipo"]
  (record,) = (
    r for r in records(workdir) if (r["run"], r["step"]) == ("world0_online_ipo", 8)
  )
  ours = read_npz(evaluation.directory(workdir) / "step-8.npz")
  data = pairs.PairDataset.load(evaluation.inputs["pairs"].directory(workdir))
  prompts = data.batch(golden["rows"], **built.setting.lengths)

  def margins(other):
    batch = prompts.replace(
      responses_BxNxT=np.stack([ours["tokens"], other["tokens"]], 1),
      lengths_BxN=np.stack([ours["lengths"], other["lengths"]], 1),
    )
    return np.asarray(policy_eval.margins(judge, params, batch))

  wins = policy_eval.outcome(margins(golden))
  assert record["win_rate"] == pytest.approx(wins.mean())
  assert record["golden_score"] == pytest.approx(margins(sft).mean(), abs=1e-5)


def test_draws_that_should_be_independent_are(workdir, built):
  """All of SFT, for the same prompts: as opponent, evaluated, and in best-of-n."""
  directories = [
    built.evaluations[f"world0_{name}"].directory(workdir)
    for name in ("sft", "best_of_n")
  ]
  drawn = [read_npz(built.models["sft_samples"].directory(workdir) / "responses.npz")]
  drawn += [read_npz(min(directory.glob("step-*.npz"))) for directory in directories]
  for a, b in itertools.combinations(drawn, 2):
    assert (a["tokens"] != b["tokens"]).any(axis=1).mean() > 0.5
  sampled = built.policies["world0_final_vs_final_ipo"].inputs["pairs"]
  twice = pairs.PairDataset.load(sampled.directory(workdir))
  same = [np.array_equal(a, b) for a, b in zip(*twice.responses, strict=True)]
  assert np.mean(same) < 0.5


def test_each_world_is_evaluated_on_prompts_of_its_own(workdir, built):
  data = pairs.PairDataset.load(
    built.models["golden_data"].directory(workdir) / "train"
  )
  of_world = [
    eval_stages.evaluation_rows(dataclasses.replace(built.setting, world=world), data)
    for world in (0, 1)
  ]
  assert set(of_world[0]) != set(of_world[1])
  rows = read_npz(built.models["sft_samples"].directory(workdir) / "responses.npz")
  np.testing.assert_array_equal(rows["rows"], of_world[0])


def test_policies_classify_pairs_drawn_apart_from_the_prompts(workdir, built):
  """Counted anew, on the pairs that the seed of 'pairs' draws."""
  evaluation = built.evaluations["world0_online_ipo"]
  data = pairs.PairDataset.load(evaluation.inputs["pairs"].directory(workdir))
  rows = distinct_prompts(data, 32, seed_of("pairs", 0))
  assert set(rows) != set(eval_stages.evaluation_rows(built.setting, data)[:32])
  model = built.setting.model(built.setting.config.policy)
  policy = evaluation.inputs["policy"].directory(workdir)
  params = built.setting.load(policy, model, 8)
  ratios = built.setting.map_pairs(
    lambda batch: policy_eval.log_ratios(model, params, batch), data, rows
  )
  (record,) = (
    r for r in records(workdir) if (r["run"], r["step"]) == ("world0_online_ipo", 8)
  )
  wins = policy_eval.outcome(ratios[:, 0] - ratios[:, 1])
  assert record["classification_accuracy"] == pytest.approx(wins.mean())
  assert record["chosen_log_ratio"] == pytest.approx(ratios[:, 0].mean(), rel=1e-4)


def test_sft_is_where_kl_and_log_ratios_begin(workdir):
  (sft,) = (r for r in records(workdir) if r["method"] == "sft")
  assert abs(sft["kl"]) < 1e-6
  assert abs(sft["chosen_log_ratio"]) < 1e-4 and abs(sft["rejected_log_ratio"]) < 1e-4
  trained = [r for r in records(workdir) if r["run"] in POLICY_RUNS]
  assert all(r["kl"] > 1e-6 for r in trained)


def test_what_is_sampled_is_what_is_scored(workdir):
  found = [r["decode_vs_score_max_abs_diff"] for r in records(workdir)]
  assert max(d for d in found if d is not None) < 1e-4


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
  sft, online = {"sft": "sft_nano"}, start | {"judge": "proxy_pm"}
  stream = {"stream": "world0_online_ipo"}
  for name, expected in {
    "online_ipo": online,
    "semi_online_ipo_every3": online,
    "semi_online_ipo_every0": online,
    "hybrid_ipo_fraction0.5": online,
    "offline_ipo_lr0.01": start,
    "offline_dpo": start,
    "shuffled_ipo": sft | stream,
    "replay_ipo_window0": sft | stream,
    "shuffled_best_of_2": sft | {"stream": "world0_online_best_of_2"},
    "final_vs_final_ipo": sft | {"pairs": "data_final_vs_final_nano"},
    "online_ipo_sizemicro": {
      "sft": "sft_micro", "pairs": "golden_data_micro", "judge": "proxy_pm"
    },
    "shuffled_ipo_sizemicro": {
      "sft": "sft_micro", "stream": "world0_online_ipo_sizemicro"
    },
  }.items():  # fmt: skip
    assert inputs(built.policies[f"world0_{name}"]) == expected, name
  golden = {"golden_data": "golden_data", "golden_pm": "golden_pm"}
  for name, first, second in (
    ("final_vs_final", "world0_online_ipo", "world0_online_ipo"),
    ("sft_vs_early", "sft_nano", "world0_online_ipo"),
    ("early_vs_final", "world0_online_ipo", "golden_policy"),
  ):
    scored = built.policies[f"world0_{name}_ipo"].inputs["pairs"]
    sampled = scored.inputs["golden_data"]
    assert inputs(sampled) == golden | {"first": first, "second": second}


def test_preference_models_report_accuracies(workdir, built):
  for name in ("golden_pm", "proxy_pm"):
    report = read_json(built.models[name].directory(workdir) / "model.json")
    assert report["step"] in (4, 8)
    for key in ("validation_accuracy", "train_accuracy", "truth_accuracy"):
      assert 0 <= report[key] <= 1
    for of in ("validation", "truth"):  # of pairs that share no prompt
      accuracy, pairs_ = report[f"{of}_accuracy"], report["validation_pairs"]
      usual = math.sqrt(accuracy * (1 - accuracy) / (pairs_ - 1))
      assert report[f"{of}_stderr"] == pytest.approx(usual, rel=0.2)
    assert report["validation_pairs"] > 0


def test_prompts_that_choose_a_step_do_not_report_it(built, tmp_path, monkeypatch):
  """Seven pairs of four prompts: two choose, two report."""
  prompts = [[5], [5], [7], [9], [7], [11], [9]]
  rows = pairs.Ragged(np.array(prompts, np.int32).ravel(), np.arange(8))
  for split in ("train", "validation"):
    (tmp_path / split).mkdir()
    pairs.PairDataset(rows, (rows, rows)).save(tmp_path / split)
  margins = {4: [1, 1, 1, -1, -1, -1, 1], 8: [1, -1, 1, 1, -1, 1, 1]}
  asked = []

  def map_pairs(self, function, dataset, indices):
    step = function(None)
    asked.append((step, indices.tolist()))
    return np.array(margins[step], float)[indices]

  monkeypatch.setattr(train, "_train", lambda *_, **__: None)
  monkeypatch.setattr(Setting, "load_frozen", lambda *arguments: arguments[-1])
  monkeypatch.setattr(Setting, "map_pairs", map_pairs)
  monkeypatch.setattr(Setting, "true_gap", lambda *_: None)
  monkeypatch.setattr(policy_eval, "margins", lambda _, params, __: params)
  role = recipes.plain(built.setting.config.golden_pm)
  train.train_preference_model(built.setting, "pm", role, tmp_path, {"data": tmp_path})
  assert asked == [(4, [0, 1, 2, 4]), (8, [0, 1, 2, 4]), (4, [3, 5, 6]), (4, [0, 1, 2])]
  report = read_json(tmp_path / "model.json")
  assert report == {
    "step": 4,
    "validation_accuracy": pytest.approx(1 / 3),
    "validation_stderr": pytest.approx(
      2 / 9
    ),  # two prompts, one of them with two pairs
    "validation_pairs": 3,
    "train_accuracy": 1.0,
  }


@pytest.mark.parametrize("kind", ["offline", "online", "replay"])
def test_a_policys_draws_are_of_its_seed_and_world(workdir, built, monkeypatch, kind):
  artefact = built.policies[
    {"replay": "world0_replay_ipo_window2"}.get(kind, "world0_online_ipo")
  ]
  inputs = {name: of.directory(workdir) for name, of in artefact.inputs.items()}
  if kind == "offline":
    del inputs["judge"]
  sources = []
  monkeypatch.setattr(train, "_train", lambda *_, source, **__: sources.append(source))
  monkeypatch.setattr(train, "_sampler", lambda *_: None)
  monkeypatch.setattr(train, "write_json", lambda *_: None)
  for world, seed in ((0, 0), (0, 1), (1, 0), (0, 0)):
    setting = dataclasses.replace(built.setting, world=world)
    role = artefact.config["role"] | {"seed": seed, "record": False}
    train.train_policy(setting, "p", role, role, workdir, inputs)
  orders = [
    getattr(source, "prompts", source).host_batch(0).ids_B for source in sources
  ]
  assert [np.array_equal(orders[0], o) for o in orders] == [True, False, False, True]
  if kind == "online":
    keys = [jax.random.key_data(source.key).tolist() for source in sources]
    assert [key == keys[0] for key in keys] == [True, False, False, True]


def parameters(workdir, built, name: str, step: int):
  artefact = built.policies[f"world0_{name}"]
  model = built.setting.model(artefact.config["role"])
  return jax.device_get(built.setting.load(artefact.directory(workdir), model, step))


@pytest.mark.parametrize("step", [4, 8])
def test_a_replay_in_order_is_the_online_run_bit_for_bit(workdir, built, step):
  """App. F, made exact: the tandem."""
  online, replay = (
    parameters(workdir, built, name, step)
    for name in ("online_ipo", "replay_ipo_window0")
  )
  jax.tree.map(np.testing.assert_array_equal, online, replay)
  for other in ("replay_ipo_window2", "shuffled_ipo", "offline_ipo_lr0.003"):
    theirs = parameters(workdir, built, other, step)
    same = jax.tree.map(np.array_equal, online, theirs)
    assert not all(jax.tree.leaves(same)), other


def test_online_offline_and_replay_are_one_compilation(workdir, built):
  """All that trained a nano policy with IPO: one function, compiled once."""
  role = built.policies["world0_online_ipo"].config["role"]
  setting = built.setting
  model = setting.model(role)
  step = train_step.compiled(
    train_step.PolicyObjective(model, "ipo"),
    optim.Optimizer(**role["optimizer"]),
    role["microbatches"],
    setting.mesh,
    setting.rules,
    model,
    role["on_non_finite"] == "skip",
  )
  assert step._cache_size() == 1


def test_a_semi_online_run_begins_as_the_online_one(workdir, built):
  """Until it would have been renewed, who samples is SFT; then it is not."""
  every = {0: "semi_online_ipo_every0", 3: "semi_online_ipo_every3"}
  rows = {
    k: read_jsonl(built.policies[f"world0_{name}"].directory(workdir) / "metrics.jsonl")
    for k, name in every.items()
  }
  assert rows[0][0] == rows[3][0]  # steps 1 and 2
  assert rows[0][1] != rows[3][1]  # step 4 is sampled by the policy of step 3


def test_resampled_pairs_are_of_the_prompts_of_d_golden_in_golden_order(workdir, built):
  scored = built.policies["world0_sft_vs_early_ipo"].inputs["pairs"]
  sampled = pairs.PairDataset.load(scored.directory(workdir))
  golden = pairs.PairDataset.load(
    built.models["golden_data"].directory(workdir) / "train"
  )
  assert len(sampled) == len(golden)
  np.testing.assert_array_equal(sampled.prompts.values, golden.prompts.values)
  judge = built.setting.preference_model(built.setting.config.golden_pm)
  params = built.setting.load(built.models["golden_pm"].directory(workdir), judge.model)
  margins = built.setting.map_pairs(
    lambda batch: policy_eval.margins(judge, params, batch), sampled
  )
  assert margins.min() > -1e-5 and margins.max() > 0
  model = built.setting.model(built.setting.config.policy)
  start = built.setting.load(built.models["sft_nano"].directory(workdir), model)
  ratios = built.setting.map_pairs(
    lambda batch: policy_eval.log_ratios(model, start, batch), sampled
  )
  np.testing.assert_allclose(ratios, 0, atol=1e-4)  # the reference's own log-probs


def test_best_of_n_is_bounded_in_kl_and_measured_in_wins(workdir):
  found = [r for r in records(workdir) if r["method"] == "best_of_n"]
  assert [r["step"] for r in found] == [2, 3]
  for r in found:
    n = r["step"]
    assert r["kl"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert r["kl_stderr"] is None and r["win_rate_stderr"] > 0


def test_best_of_n_is_preferred_by_the_proxy(workdir, built):
  """The best of three is the best of two, or has beaten it."""
  judge = built.setting.preference_model(built.setting.config.proxy_pm)
  params = built.setting.load(built.models["proxy_pm"].directory(workdir), judge.model)
  directory = built.evaluations["world0_best_of_n"].directory(workdir)
  two, three = (read_npz(directory / f"step-{n}.npz") for n in (2, 3))
  rows = read_npz(built.models["sft_samples"].directory(workdir) / "responses.npz")
  data = pairs.PairDataset.load(
    built.policies["world0_online_ipo"].inputs["pairs"].directory(workdir)
  )
  batch = data.batch(rows["rows"], **built.setting.lengths).replace(
    responses_BxNxT=np.stack([three["tokens"], two["tokens"]], 1),
    lengths_BxN=np.stack([three["lengths"], two["lengths"]], 1),
  )
  margins = np.asarray(policy_eval.margins(judge, params, batch))
  assert margins.min() > -1e-5 and margins.max() > 0


def test_of_equal_samples_the_earlier_stays(workdir, built, tmp_path, monkeypatch):
  judged = lambda self, judge, params, a, b: np.zeros(len(a[0]))  # noqa: E731
  monkeypatch.setattr(policy_eval.Contest, "judged", judged)
  artefact = built.evaluations["world0_best_of_n"]
  inputs = {name: of.directory(workdir) for name, of in artefact.inputs.items()}
  setting = dataclasses.replace(
    built.setting, config=studies.every(**{"evaluation.best_of": (1, 3)})
  )
  c = setting.config
  eval_stages.evaluate_best_of_n(
    setting, {"run": "best"}, c.policy, c.proxy_pm, c.golden_pm, tmp_path, inputs
  )
  one, three = (read_npz(tmp_path / f"step-{n}.npz")["tokens"] for n in (1, 3))
  np.testing.assert_array_equal(one, three)


def test_best_of_n_draws_each_time_with_a_key_of_its_own(
  workdir, built, tmp_path, monkeypatch
):
  """Nine samples: eight together, then one more."""
  keys = set()
  sample = policy_eval.sample

  def noted(model, params, batch, key, *args, **kwargs):
    keys.add(tuple(jax.random.key_data(key).tolist()))
    return sample(model, params, batch, key, *args, **kwargs)

  monkeypatch.setattr(policy_eval, "sample", noted)
  artefact = built.evaluations["world0_best_of_n"]
  inputs = {name: of.directory(workdir) for name, of in artefact.inputs.items()}
  setting = dataclasses.replace(
    built.setting, config=studies.every(**{"evaluation.best_of": (9,)})
  )
  c = setting.config
  eval_stages.evaluate_best_of_n(
    setting, {"run": "best"}, c.policy, c.proxy_pm, c.golden_pm, tmp_path, inputs
  )
  assert len(keys) == 2


def test_the_stream_is_classified_by_all_three(workdir, built):
  """Accuracies are counted anew, from the artefacts."""
  setting, inputs = built.setting, built.classification.inputs
  online = inputs["online"].directory(workdir)
  recorded = stream.Stream.load(online / "stream", steps=8)

  def margins(name, batch):
    directory = inputs[name].directory(workdir)
    if name.endswith("_pm"):
      judge = setting.preference_model(setting.config[name])
      return policy_eval.margins(judge, setting.load(directory, judge.model), batch)
    model = setting.model(setting.config.policy)
    ratios = policy_eval.log_ratios(model, setting.load(directory, model), batch)
    return ratios[:, 0] - ratios[:, 1]

  expected = {}
  for step in (0, 3, 6):
    batch = recorded.batch(step * recorded.batch_size + np.arange(12))
    golden = np.asarray(margins("golden_pm", batch))
    for name in ("proxy_pm", "online", "offline"):
      right = (np.asarray(margins(name, batch)) * golden)[golden != 0]
      wins = (right > 0) + 0.5 * (right == 0)
      expected[name, step] = wins.mean(), wins.std(ddof=1) / len(wins) ** 0.5, len(wins)
  rows = read_jsonl(workdir / "classification" / "world0.jsonl")
  found = {
    (r["classifier"], r["step"]): (r["accuracy"], r["stderr"], r["pairs"]) for r in rows
  }
  assert len(rows) == len(expected) and found.keys() == expected.keys()
  for key, values in expected.items():
    assert found[key] == pytest.approx(values), key


def test_a_stream_shorter_than_what_is_asked_is_classified_once(
  workdir, built, tmp_path
):
  inputs = {n: of.directory(workdir) for n, of in built.classification.inputs.items()}
  setting = dataclasses.replace(
    built.setting, config=studies.every(**{"evaluation.stream_pairs": 999})
  )
  c = setting.config
  policies = dict.fromkeys(("online", "offline"), c.policy)
  eval_stages.classify_stream(
    setting, policies, c.golden_pm, c.proxy_pm, tmp_path, inputs
  )
  rows = read_jsonl(tmp_path / "classification.jsonl")
  assert [(row["step"], row["pairs"]) for row in rows] == [(0, 8 * 8)] * 3


def test_every_figure_is_drawn(workdir):
  drawn = {path.stem for path in (workdir / "figures").glob("*.png")}
  assert drawn == set(studies.every().figures)
  assert {path.stem for path in (workdir / "figures").glob("*.csv")} == drawn


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
    if r["method"] in ("online", "offline")
    and (r["loss"], r["size"]) == ("ipo", "nano")
    and r["kl"] >= KL_FLOOR
    for judge, rate in (("golden PM", "win_rate"), ("truth", "true_win_rate"))
  }
  assert points.keys() == expected.keys() and points
  for key, values in expected.items():
    assert points[key] == pytest.approx(values, rel=1e-5)
  assert (workdir / "figures" / "figure_01.png").read_bytes().startswith(b"\x89PNG")


def test_every_claim_is_in_the_csv(workdir):
  with open(workdir / "claims.csv", newline="", encoding="utf-8") as f:
    rows = list(csv.DictReader(f))
  assert {row["figure"] for row in rows} >= {"1", "4", "5", "9", "12", "13", "App. F"}
  assert {row["world"] for row in rows} == {"all", "0"}
  assert {row["verdict"] for row in rows if row["world"] == "all"} == {"undecided"}


def test_report_is_whole_and_self_contained(workdir):
  page = (workdir / "report.html").read_text(encoding="utf-8")
  references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
  assert references and all(r.startswith(("data:", "#")) for r in references)
  assert "@import" not in page and "url(http" not in page
  for text in ("golden_pm", "proxy_pm", "SFT", "online", "offline", "golden policy"):
    assert text in page, text
  # Held-out and true of the golden PM, and these and the golden PM's of the proxy.
  assert len(re.findall(r">[01]\.\d{3} ± 0\.\d{3}<", page)) == 5


def test_a_figure_without_its_runs_costs_nothing_else(workdir, tmp_path):
  (tmp_path / "artefacts").symlink_to(workdir / "artefacts")  # shared, as README says
  config = studies.every()
  runs_of = config.runs.to_dict()
  del runs_of["final_vs_final"]
  stale = tmp_path / "runs" / "world0_final_vs_final_ipo" / "evaluations.jsonl"
  stale.parent.mkdir(parents=True)
  stale.write_text("damaged")  # of an earlier configuration, and not looked at
  commands.run(config, tmp_path, ["data"], lambda: None)
  config.runs = runs_of
  config.figures = ("figure_05", "figure_01")
  with pytest.raises(UserError, match="figure_05: no evaluated run of final_vs_final"):
    commands.finish(config, tmp_path)
  assert (tmp_path / "figures" / "figure_01.png").exists()
  assert (tmp_path / "claims.csv").exists() and (tmp_path / "report.html").exists()


def test_a_judge_check_switched_on_later_holds(workdir, monkeypatch, tmp_path):
  (tmp_path / "artefacts").symlink_to(workdir / "artefacts")
  report = {"validation_accuracy": 0.5, "validation_stderr": 0.0, "train_accuracy": 0.5}
  monkeypatch.setattr(commands, "read_json", lambda _: report)
  config = studies.every(**{"evaluation.require_good_judge": True})
  with pytest.raises(UserError, match="golden preference model of world 0: held-out"):
    commands.finish(config, tmp_path)


def test_a_policy_ends_with_parameters_whatever_is_evaluated(workdir, tmp_path):
  (tmp_path / "artefacts").symlink_to(workdir / "artefacts")
  config = studies.every(**{"golden_policy.evaluate_at": (0.5,)})
  commands.run(config, tmp_path, ["golden_samples"], lambda: None)
  built = graph.build(config, 0).models
  for name in ("golden_policy", "golden_samples"):
    assert built[name].is_done(workdir)


def test_what_has_no_golden_label_is_not_classified():
  values, golden = np.array([2.0, -1.0, 0.0, 3.0]), np.array([1.0, 4.0, -2.0, 0.0])
  assert policy_eval.classified(values, golden).tolist() == [1.0, 0.0, 0.5]
  assert policy_eval.classified(values, 0 * golden).tolist() == []


def test_nothing_is_made_twice(workdir, monkeypatch):
  def make(*_):
    raise AssertionError("a finished stage ran again")

  monkeypatch.setattr(artefacts, "_try_to_make", make)
  commands.run(studies.every(workers=2, log_every=1), workdir, [], lambda: None)


# --- the command line on it -----------------------------------------------------------


def test_dry_run_says_what_is_left(capsys, workdir):
  commands.dry_run(studies.every(), workdir)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "done   data"
  assert "done   proxy_pm  <- golden_data, sft_nano" in lines
  assert all(line.startswith("done ") for line in lines)
  commands.dry_run(studies.every(), workdir, ["proxy_pm"])
  assert capsys.readouterr().out.splitlines() == [
    "done   data", "done   golden_pm  <- data",
    "done   golden_data  <- data, golden_pm", "done   sft_nano  <- data",
    "done   proxy_pm  <- golden_data, sft_nano",
  ]  # fmt: skip
  with pytest.raises(UserError, match="no stage is called 'proxy'; there are"):
    commands.dry_run(studies.every(), workdir, ["proxy"])
  commands.dry_run(studies.every(**{"policy.beta": 0.5}), workdir)
  lines = capsys.readouterr().out.splitlines()
  left = {line.split()[2] for line in lines if line.startswith("to do")}
  assert {f"evaluation_{name}" for name in POLICY_RUNS} < left
  assert not left & {"data", "golden_pm", "proxy_pm", "golden_policy", "sft_micro"}


def test_show_batch(capsys, workdir):
  commands.run(studies.every(), workdir, ["show_batch"], lambda: None)
  out = capsys.readouterr().out
  for name in ("prompt (", "preferred (", "other (", "judge reads ("):
    assert out.count(name) == 3
  prompt = re.search(r"prompt \((\d+) of 9 positions\)\n  text    (.*)\n", out)
  assert len(prompt[2].split()) == int(prompt[1])  # every token is shown
  assert re.search(r"  mask    1 x 9, 0 x 0\n", out)


def test_sample_from_any_model(capsys, workdir, built):
  prompt = " ".join(studies.every().vocab.words[:8])
  asked = {"sample.model": "world0_online_ipo", "sample.step": 4,
           "sample.prompts": (prompt,), "sample.responses": 3}  # fmt: skip
  commands.run(studies.every(**asked), workdir, ["sample"], lambda: None)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f"prompt: {prompt}"
  assert [line[:4] for line in lines[1:]] == ["  1:", "  2:", "  3:"]


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"sample.model": "golden"}, "model 'golden' is no model; there are sft_nano"),
    ({"sample.model": "golden_policy", "policy.beta": 9.0, "golden_policy.beta": 9.0},
     "sample.model 'golden_policy' is not trained yet: run --stages=golden_policy"),
    ({"sample.step": 5}, "params/5: no parameters saved at step 5; there are"),
    ({"sample.prompts": ("BA", 3)}, "sample.prompts has 3; its entries are texts"),
  ],
)  # fmt: skip
def test_sample_errors(workdir, overrides, message):
  with pytest.raises(UserError, match=message):
    commands.run(studies.every(**overrides), workdir, ["sample"], lambda: None)


def test_export_is_the_trained_model(workdir, built, tmp_path):
  asked = {"export.model": "sft_nano", "export.directory": str(tmp_path / "hf")}
  commands.run(studies.every(**asked), workdir, ["export"], lambda: None)
  artefact = built.models["sft_nano"]
  model = built.setting.model(artefact.config["role"])
  trained = built.setting.load(artefact.directory(workdir), model)
  exported = huggingface.read_params(tmp_path / "hf", model.cfg)
  jax.tree.map(np.testing.assert_array_equal, exported, jax.device_get(trained))
  # It knows its vocabulary: of as many words in another order, ids mean others.
  start = {"policy.init": str(tmp_path / "hf"), "sft.init": str(tmp_path / "hf")}
  graph.build(studies.nano(**start), 0)
  words = studies.nano().vocab.words
  with pytest.raises(UserError, match="hf: exported from a study with another vocab"):
    graph.build(studies.nano(**start, **{"vocab.words": words[::-1]}), 0)
  with pytest.raises(UserError, match="export.directory is not set"):
    commands.run(studies.every(), workdir, ["export"], lambda: None)


@pytest.mark.parametrize("content", [b"", b'{"step": '])
def test_damaged_artefact_is_one_line_that_says_what_to_delete(workdir, built, content):
  directory = built.models["golden_policy"].directory(workdir)
  path = directory / "model.json"
  whole = path.read_bytes()
  path.write_bytes(content)
  try:
    with pytest.raises(UserError) as error:
      commands.run(studies.every(), workdir, ["sample"], lambda: None)
  finally:
    path.write_bytes(whole)
  assert str(error.value) == f"{path}: damaged; delete {directory} to make it again"


def test_model_of_another_shape_is_named(workdir, built):
  """As when an artefact's directory is copied over another's by hand."""
  setting = built.setting
  directory = built.models["sft_nano"].directory(workdir)
  larger = setting.model({"size": "micro", "init": "scratch"})
  with pytest.raises(UserError, match="checkpoint of another model .*: parameter '"):
    setting.load(directory, larger)


def test_evaluation_resumes_after_its_last_checkpoint(workdir, built, monkeypatch):
  artefact = built.evaluations["world0_online_ipo"]
  directory = artefact.directory(workdir)
  whole = (directory / "evaluations.jsonl").read_bytes()
  for name in ("done.json", "evaluations.jsonl"):
    (directory / name).unlink()
  np.savez(directory / "step-8.npz", of="another program")
  with pytest.raises(UserError, match=r"step-8\.npz: damaged; delete"):
    artefacts.run([artefact], workdir)
  (directory / "step-8.npz").unlink()
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
  names = {run.name for run in runs.load_runs(workdir)}
  assert names == POLICY_RUNS | LEVELS | REFERENCES


# --- the graph ------------------------------------------------------------------------


def changed(**overrides) -> set[str]:
  """Names of the stages that are made again when keys are edited."""
  before, after = (
    {a.name: a.key for a in artefacts.closure(built.stages().values())}
    for built in (
      graph.build(studies.nano(), 0),
      graph.build(studies.nano(**overrides), 0),
    )
  )
  return {name for name in after if before.get(name) != after[name]}


PLAIN_RUNS = {f"world0_{name}" for name in recipes.runs(studies.nano())}
JUDGED = {f"evaluation_{name}" for name in PLAIN_RUNS | LEVELS}


def test_a_value_that_is_policys_own_makes_no_second_run():
  config = studies.nano()
  config.runs = {"mine": ({}, {"beta": (config.policy.beta, 9.0)})}
  assert list(recipes.runs(config)) == ["mine_ipo", "mine_ipo_beta9.0"]


def test_a_run_of_another_optimizer_keeps_the_rest_of_its_settings():
  config = studies.nano()
  config.runs = {"mine": {"optimizer": ({"b2": 0.9},), "evaluate_at": ((0.5, 1.0),)}}
  ((name, (_, recipe)),) = recipes.runs(config).items()
  assert recipe["optimizer"] == recipes.plain(config.policy.optimizer) | {"b2": 0.9}
  assert not set(name) & set("[]{}' /")  # it names directories


def test_models_that_start_from_a_checkpoint_are_reported_sampled_and_exported(
  tmp_path, capsys
):
  """Their stages' configurations have its checksums where they had its directory."""
  cfg = t5.config("nano", vocab_rows=384)
  huggingface.write(tmp_path / "nano", cfg, tiny.params(0, cfg))
  config = studies.nano(**{
    "sft.init": str(tmp_path / "nano"), "sample.model": "sft_nano",
    "export.model": "sft_nano", "export.directory": str(tmp_path / "hf"),
  })  # fmt: skip
  commands.run(config, tmp_path / "w", ["sft_nano"], lambda: None)
  commands.run(config, tmp_path / "w", ["sample", "export"], lambda: None)
  assert "prompt: " in capsys.readouterr().out
  assert (tmp_path / "hf" / "model.safetensors").exists()
  built = graph.build(config, 0)
  (row,) = commands._models(built, tmp_path / "w")
  assert (row["role"], row["init"]) == ("world0_sft_nano", "checkpoint")
  role = {"size": "nano", "init": config.sft.init}
  parameters = built.setting.parameter_count(built.setting.model(role))
  assert row["parameters"] == parameters


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"model.dtype": "float16"}, "model.dtype is 'float16'; use float32 or bfloat16"),
    ({"model.remat": "some"}, "model.remat is 'some'; use none or dots or full"),
    ({"golden_pm.evaluations": 0}, "golden_pm: evaluations is 0; give at least 1"),
    ({"sft.steps": 0}, "sft: steps is 0"),
    ({"proxy_pm.batch_size": -8}, "proxy_pm: batch_size is -8"),
    ({"policy.learning_rate": float("nan")}, "learning_rate is nan; give 0 or more"),
    ({"golden_policy.learning_rate": -0.1}, "learning_rate is -0.1"),
    ({"evaluation.prompts": 1}, "evaluation.prompts is 1; give at least 2"),
    ({"evaluation.kl_prompts": -1}, "evaluation.kl_prompts is -1"),
    ({"evaluation.batch_size": 0}, "evaluation.batch_size is 0"),
    ({"datasets": {"golden": ("sft", "sft")}}, "datasets.golden: the study has one of"),
    ({"datasets": {"d": ("sft",)}}, "datasets.d is ('sft',); name two models"),
    ({"evaluation.kl_prompts": 99}, "kl_prompts are more than evaluation.prompts"),
    ({"sample.responses": 0}, "sample.responses is 0; give at least 1"),
    ({"sample.temperature": float("nan")}, "sample.temperature is nan; give at least"),
    ({"response_length": 0}, "response_length is 0"),
    ({"data.validation_fraction": float("nan")}, "must lie between 0 and 1"),
    ({"data.num_pairs": -10}, "data.num_pairs is -10; give at least 0"),
    ({"data.language": {"care": (0.0, 1.0)}}, "data.language needs care from"),
    ({"sft.optimizer.clip_norm": -1.0}, "optimizer.clip_norm is -1.0; give at least 0"),
    ({"evaluation.best_of": (0,)}, "evaluation.best_of has 0"),
    ({"evaluation.best_of": (2, 2)}, "evaluation.best_of has a number twice"),
    ({"evaluation.best_of": ("a",)}, "evaluation.best_of has 'a'"),
    ({"runs": {"x/y": {"beta": (0.1,)}}}, "runs.x/y: a name has letters, digits"),
    ({"datasets": {"d": (1, 2)}}, "datasets.d is (1, 2); name two models"),
  ],
)
def test_numbers_out_of_range_are_refused_before_anything_runs(overrides, message):
  with pytest.raises(UserError, match=re.escape(message)):
    graph.build(studies.nano(**overrides), 0)


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
    ({"runs.offline.learning_rate": (3e-3,)}, set()),
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
  every = set(graph.build(studies.nano(), 0).stages())
  names = {
    a.name for a in artefacts.closure(graph.build(studies.nano(), 0).stages().values())
  }
  assert len(names) == len(every) + 1  # and golden_data_nano, which needs no name
  if kept >= {"sft_nano"}:
    kept = kept - {"sft_samples"}  # its prompts come with D_golden
  assert names - changed(**overrides) == kept


def test_worlds_share_nothing():
  built, other = (graph.build(studies.nano(), world) for world in (0, 1))
  keys = [
    {a.key for a in artefacts.closure(b.stages().values())} for b in (built, other)
  ]
  assert not keys[0] & keys[1]


def test_runs_that_start_from_a_checkpoint_share_it_and_its_scores(tmp_path):
  """However they are trained: both cost a pass over the model."""
  cfg = t5.config("nano", vocab_rows=384)
  huggingface.write(tmp_path / "nano", cfg, tiny.params(0, cfg))
  built = graph.build(studies.nano(**{"policy.init": str(tmp_path / "nano")}), 0)
  policies = [p for name, p in built.policies.items() if "offline" in name]
  assert len({p.key for p in policies}) == 2
  for name in ("sft", "pairs"):
    assert len({p.inputs[name].key for p in policies}) == 1


def test_runs_are_the_product_of_their_axes():
  config = studies.nano()
  config.runs = {
    "online": {"method": ("online",), "loss": ("ipo", "dpo")},
    "sweep": {"method": ("offline",), "beta": (0.1, 1.0), "steps": (4, 8)},
  }
  found = recipes.runs(config)
  assert set(found) == {
    "online_ipo", "online_dpo", "sweep_ipo_beta0.1_steps4", "sweep_ipo_beta0.1_steps8",
    "sweep_ipo_beta1.0_steps4", "sweep_ipo_beta1.0_steps8",
  }  # fmt: skip
  label, recipe = found["sweep_ipo_beta1.0_steps4"]
  assert label == "sweep"
  assert (recipe["method"], recipe["beta"], recipe["steps"]) == ("offline", 1.0, 4)
  assert recipe["size"] == config.policy.size  # the rest is as in policy


def test_an_entry_may_be_several_products():
  config = studies.nano()
  config.runs = {"online": ({"beta": (0.1, 0.2)}, {"loss": ("dpo",)})}
  assert set(recipes.runs(config)) == {
    "online_ipo_beta0.1", "online_ipo_beta0.2", "online_dpo"
  }  # fmt: skip


def test_the_default_online_run_is_recorded_unless_it_is_a_hybrid():
  for fraction in (1.0, 0.5):
    config = studies.nano(**{"policy.on_policy_fraction": fraction})
    online = graph.build(config, 0).policies["world0_online_ipo"]
    assert online.config["role"]["record"] == (fraction == 1)


def test_what_is_replayed_is_the_online_run_of_the_same_size_loss_and_seed():
  config = studies.nano()
  config.runs = {
    "replay": {
      "method": ("offline",), "dataset": ("stream",), "loss": ("dpo",), "seed": (3,),
      "size": ("micro",), "beta": (9.0,), "learning_rate": (9.0,),
    }
  }  # fmt: skip
  for online, expected in (
    ({}, ("online", "dpo", "micro", 3, config.policy.learning_rate)),
    ({"learning_rate": 0.5, "seed": 4}, ("online", "dpo", "micro", 4, 0.5)),
  ):
    config.runs.replay.stream = (online,)
    ((_, recipe),) = recipes.runs(config).values()
    found = recipes.stream_of(config, recipe)
    keys = ("method", "loss", "size", "seed", "learning_rate")
    assert tuple(found[key] for key in keys) == expected
    assert found["beta"] == config.policy.beta and found["record"]


@pytest.mark.parametrize(
  "label, changes, expected",
  [
    ("online", {}, (None, None, 1, 1.0)),
    ("hybrid", {"on_policy_fraction": 0.5}, (None, None, 1, 0.5)),
    ("offline", {"method": "offline"}, ("golden", None, None, 0.0)),
    ("replay", {"method": "offline", "dataset": "stream", "replay_window": 0},
     ("stream", 0, None, 0.0)),
    ("sft", {}, (None, None, None, None)),
    ("best_of_n", {"method": "offline"}, (None, None, None, None)),
  ],
)  # fmt: skip
def test_labels_say_only_what_has_a_meaning(label, changes, expected):
  recipe = recipes.plain(studies.nano().policy) | changes
  found = recipes.labels("name", label, recipe)
  keys = ("dataset", "replay_window", "refresh_every", "on_policy_fraction")
  assert tuple(found[key] for key in keys) == expected


def test_fractions_of_a_run_are_its_nearest_steps_from_the_first_on():
  recipe = {"steps": 10, "evaluate_at": (1.0, 0, 0.28)}
  assert recipes.evaluated_steps(recipe) == [1, 3, 10]
  assert recipes.checkpoint_at("", recipe, "0.28") == 3
  with pytest.raises(UserError, match="here: 0.5 is not among policy.evaluate_at"):
    recipes.checkpoint_at("here", recipe, "0.5")
  with pytest.raises(UserError, match="evaluate_at has 1.5; give fractions"):
    recipes.evaluated_steps(recipe | {"evaluate_at": (1.5,)})


def test_keys_of_the_other_method_change_nothing():
  offline = {"runs.offline.method": ("offline",)}
  for key, value in (
    *(("refresh_every", 7), ("temperature", 0.5), ("record", True)),
    ("replay_window", 3),  # of a fixed data set
  ):
    left = changed(**offline, **{f"policy.{key}": value})
    assert not any("offline" in name and "eval" not in name for name in left), key
  for key, value in (("replay_window", 3), ("stream", {"beta": 0.3})):
    left = changed(**{f"policy.{key}": value})
    assert "world0_online_ipo" not in left, key


@pytest.mark.parametrize(
  "axes, message",
  [
    (
      {"method": ("offline",), "dataset": ("strem",)},
      "dataset 'strem' is unknown; there are golden, stream, mine",
    ),
    (
      {"method": ("offline",), "dataset": ("mine",)},
      "datasets.mine: 'onlin@0.5' is no model; there are 'sft', 'golden_policy'",
    ),
    ({"on_policy_fraction": (0.0,)}, "on_policy_fraction must be above 0 and at most"),
    (
      {"on_policy_fraction": (0.5,), "record": (True,)},
      "mine_ipo_fraction0.5_recordTrue: only a run of on_policy_fraction 1 can be rec",
    ),
    ({"on_policy_fraction": (0.01,)}, "on_policy_fraction 0.01 of batch_size 8 is not"),
    ({"steps": (0,)}, "steps must be at least 1"),
    ({"top_p": (0.0,)}, r"top_p in \(0, 1\]"),
    ({"beta": ("1e-3",)}, "runs.mine.beta has '1e-3'; policy's is 0.*"),
    ({"beta": (float("inf"),)}, "runs.mine.beta has inf; policy's is"),
    ({"steps": (4.5,)}, "runs.mine.steps has 4.5; policy's is 8"),
    ({"record": (1,)}, "runs.mine.record has 1; policy's is False"),
    ({"init": (3,)}, "runs.mine.init has 3; policy's is 'sft'"),
    ({"optimizer": (3,)}, "runs.mine.optimizer has 3; policy's is {"),
    ({"optimizer": ({"bogus": 1},)}, "optimizer has no 'bogus'"),
    ({"beta": (0.0,)}, "beta is 0.0; give a number above 0"),
    ({"temperature": (0.0,)}, "temperature must be above 0"),
    (
      {"dataset": ("golden",)},
      "dataset has no meaning for its runs, whose method is 'on",
    ),
    ({"replay_window": (0,)}, "runs.mine.replay_window has no meaning"),
    ({"method": ("offline",), "temperature": (0.5,)}, "temperature has no meaning"),
    ({"method": ("offline",), "stream": ({"beta": 1.0},)}, "stream has no meaning"),
    ({"on_policy_fraction": (0.3,)}, "0.3 of batch_size 8 is not a number of pairs"),
    ({"warmup_steps": (-1,)}, "warmup_steps is -1; give at least 0"),
    (
      {"loss": ("dpo",), "loss_options": ({"label_smoothing": 0.7},)},
      r"'label_smoothing' of loss 'dpo' must be in \[0, 0.5\)",
    ),
    ({"refresh_every": (-1,)}, "refresh_every must be 0 .never. or a number of steps"),
    (
      {"method": ("offline",), "dataset": ("stream",), "replay_window": (-2,)},
      "replay_window must be -1",
    ),
    (
      {
        "method": ("offline",),
        "dataset": ("stream",),
        "stream": ({"beta": 0.2}, {"beta": 0.3}),
      },
      "two runs are called mine_ipo; method, loss, dataset and",
    ),
    ({"lr": (1e-3,)}, "runs.mine.lr is no key of policy; they are .*learning_rate"),
    ({"beta": 0.1}, "runs.mine.beta must be a tuple of values, not 0.1"),
    ({"beta": ()}, r"runs.mine.beta must be a tuple of values, not \(\)"),
    ({"loss": ("ipoo",)}, "loss 'ipoo'"),
    (
      {"method": ("offline",), "dataset": ("stream",), "stream": ({"lr": 1e-3},)},
      "policy.stream has 'lr', which is no key of an online policy",
    ),
    (
      {
        "method": ("offline",),
        "dataset": ("stream",),
        "stream": ({"method": "online"},),
      },
      "policy.stream has 'method', which is no key of an online policy",
    ),
    ({"method": ("onlin",)}, "world0_mine_ipo: method 'onlin' is unknown"),
    ({"loss": ("dpo",), "loss_options": ({"smooth": 0.1},)}, "dpo.*smooth"),
  ],
)
def test_bad_runs(axes, message):
  config = studies.nano()
  config.runs = {"mine": axes}
  config.datasets = {"mine": ("sft", "onlin@0.5")}
  with pytest.raises(UserError, match=message):
    graph.build(config, 0)


def test_a_new_format_of_data_is_a_function_and_its_file_is_in_the_key(
  tmp_path, monkeypatch
):
  def read_csv(c, counts):
    with open(c.path, newline="", encoding="utf-8") as file:
      for line, row in enumerate(csv.DictReader(file), start=2):
        example = readers.Example(
          row["prompt"], row["better"], row["worse"], f"{c.path}:{line}"
        )
        if readers.keep(example, c.on_bad_pair, counts):
          yield example

  monkeypatch.setitem(readers.FORMATS, "csv", read_csv)
  path = tmp_path / "pairs.csv"
  config = studies.nano(**{"data.format": "csv", "data.path": str(path)})
  config.data.on_bad_pair = "skip"
  keys = []
  for worse in ("b", "c"):
    rows = [f"p{i},a,{worse if i else 'a'}" for i in range(100)]
    path.write_text("\n".join(["prompt,better,worse", *rows]) + "\n")
    config.vocab.kind = "bytes"
    stage = graph.build(config, 0).models["data"]
    keys.append(stage.key)
  assert len(set(keys)) == 2
  commands.run(config, tmp_path, ["data"], lambda: None)
  statistics = read_json(stage.directory(tmp_path) / "statistics.json")
  assert statistics["reading"] == ["dropped 1 identical"]
  counts = [statistics[split][0].split()[0] for split in ("train", "validation")]
  assert sum(map(int, counts)) == 99


def test_validation_pairs_of_too_few_prompts_are_refused(tmp_path):
  path = tmp_path / "pairs.jsonl"
  lines = [
    {"prompt": f"p{i % 30}", "chosen": f"a{i}", "rejected": "b"} for i in range(300)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = studies.nano(**{"data.format": "files", "data.path": str(path)})
  config.vocab.kind = "bytes"
  with pytest.raises(
    UserError, match=r"[1-9]0 validation pairs .* 4 different prompts"
  ):
    commands.run(config, tmp_path, ["data"], lambda: None)
  config.data.validation_fraction = 0.3
  commands.run(config, tmp_path, ["data"], lambda: None)


def test_too_few_validation_pairs_are_refused_before_anything_is_trained(tmp_path):
  config = studies.nano(**{"data.num_pairs": 10})
  with pytest.raises(
    UserError, match=r"[0-3] validation pairs beside \d+, but prefere"
  ):
    commands.run(config, tmp_path, ["data"], lambda: None)


def test_labels_of_the_study_itself():
  config = studies.nano()
  config.runs = {"golden_policy": {}}
  with pytest.raises(
    UserError, match="runs.golden_policy: the study has a 'golden_pol"
  ):
    graph.build(config, 0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"log_every": 0}, "log_every is 0; give at least 1"),
    (
      {"figures": ("figure_99",)},
      "figures: no figure 'figure_99'; there are figure_01",
    ),
    (
      {"task": "other"},
      "has the results of task 'toy'; give 'other' a --workdir of its",
    ),
  ],
)
def test_what_could_not_be_finished_is_refused_at_the_start(tmp_path, changes, message):
  results = tmp_path / "runs" / "world0_sft"
  results.mkdir(parents=True)
  record = synthetic.make_run("world0_sft", "sft", [[1.0]], [0.0], task="toy").records
  (results / "evaluations.jsonl").write_text(json.dumps(record[0]) + "\n")
  with pytest.raises(UserError, match=message):
    commands.run(studies.nano(**changes), tmp_path, [], lambda: None)


def test_a_tasks_name_may_be_anything(tmp_path):
  results = tmp_path / "runs" / "world0_sft"
  results.mkdir(parents=True)
  (results / "evaluations.jsonl").write_text(json.dumps({"task": 'tâche "x"'}) + "\n")
  commands.dry_run(studies.nano(task='tâche "x"'), tmp_path)
  with pytest.raises(UserError, match="has the results of task 'tâche \"x\"'"):
    commands.dry_run(studies.nano(task='tâche "y"'), tmp_path)


def test_the_main_size_is_that_of_some_run():
  config = studies.nano(**{"runs": {"online": {"size": ("micro", "milli")}}})
  with pytest.raises(UserError, match="no run has it: set it to 'micro' or 'milli', w"):
    graph.build(config, 0)


def test_one_checkpoint_is_not_of_two_sizes(tmp_path):
  cfg = t5.config("nano", vocab_rows=128)
  huggingface.write(tmp_path / "nano", cfg, tiny.params(0, cfg))
  (tmp_path / "micro").symlink_to(tmp_path / "nano")
  sizes = {"runs": {"online": {"size": ("nano", "micro")}}}
  with pytest.raises(
    UserError, match="nano: cannot be both nano and micro; put {size}"
  ):
    graph.build(studies.nano(**sizes, **{"sft.init": str(tmp_path / "nano")}), 0)
  graph.build(studies.nano(**sizes, **{"sft.init": f"{tmp_path}/{{size}}"}), 0)


def test_the_toy_language_is_not_pooled():
  with pytest.raises(UserError, match="sft.data pools files and TFDS data sets, not"):
    graph.build(studies.nano(**{"sft.data": ({"num_pairs": 9},)}), 0)


@dataclasses.dataclass(frozen=True)
class Bag:
  """The README's idea of a model, and nothing of T5: words, added up."""

  vocab_rows: int
  live: int

  def init(self, key):
    a, b, c = jax.random.split(key, 3)
    normal = jax.random.normal
    return {
      "embedding": 0.1 * normal(a, (self.vocab_rows, 32)),
      "mix": {"kernel": 0.1 * normal(b, (32, 32))},
      "head": {"kernel": 0.1 * normal(c, (32, self.vocab_rows))},
    }

  def prepare(self, params, prompts_BxS, lengths_B, cross_keys_values=False):
    mask_BxS = jnp.arange(prompts_BxS.shape[1])[None] < lengths_B[:, None]
    words_BxSxD = params["embedding"][prompts_BxS] * mask_BxS[..., None]
    return words_BxSxD.sum(1) / jnp.maximum(lengths_B, 1)[:, None]

  def logits(self, params, context_BxD, responses_BxNxT):
    before = jnp.pad(responses_BxNxT[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return self._head(params, params["embedding"][before] + context_BxD[:, None, None])

  def init_cache(self, params, num_rows, max_length):
    return ()

  def decode_step(self, params, context_BxD, cache, tokens_BxN, position):
    h = params["embedding"][tokens_BxN] + context_BxD[:, None]
    return self._head(params, h), cache

  def frozen(self, params):
    return params

  def for_decoding(self, params):
    return params

  def _head(self, params, h):
    logits = jnp.tanh(h @ params["mix"]["kernel"]) @ params["head"]["kernel"]
    ids = jnp.arange(self.vocab_rows)
    dead = ((ids == 0) | (ids >= self.live)).reshape((1,) * (h.ndim - 1) + (-1,))
    return jnp.where(dead, -1e9, logits)


@pytest.mark.slow
def test_a_model_of_ones_own_runs_the_whole_study(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
    Setting, "model", lambda self, role: Bag(128, self.vocabulary.size)
  )
  anything = ((".*", ()),)
  config = studies.nano(layout=anything, decode_layout=anything)
  commands.run(config, tmp_path, [], lambda: None)
  commands.finish(config, tmp_path)
  rows = (
    (tmp_path / "runs/world0_online_ipo/evaluations.jsonl").read_text().splitlines()
  )
  assert max(json.loads(row)["decode_vs_score_max_abs_diff"] for row in rows) < 1e-5
  assert json.loads(rows[0])["parameters"] == 32 * 32 + 2 * 32 * 128


def test_unknown_key_of_pooled_data():
  config = studies.nano()
  config.sft.data = ({"nam": "chatbot_arena"},)
  with pytest.raises(UserError, match="sft.data has 'nam', which is no key of data"):
    graph.build(config, 0)
