"""What the nano study made: data, judges and policies, and what they learned from."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy import special

from alignment.core import audits, evaluation
from alignment.data import pairs, stream
from alignment.runtime.files import read_json
from alignment.runtime.metrics import read_jsonl
from alignment.study import artefacts
from alignment.study.recipes import Start
from alignment.study.setting import Setting
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")


def golden_margins(nano, dataset):
  """The golden preference model's, computed anew."""
  setting, judge = nano.study.setting, nano.study.golden_pm().judge()
  params = setting.parameters.load(nano.directory("golden_pm"), judge.model)
  return setting.map_pairs(
    lambda batch: evaluation.margins(judge, params, batch), dataset
  )


def test_golden_data_is_in_the_golden_models_order(nano):
  """The margins are recomputed from the artefacts, not read from them."""
  agreement = read_json(nano.directory("golden_data") / "agreement.json")
  for split in ("train", "validation"):
    initial, golden = nano.data("data", split), nano.data("golden_data", split)
    margins = golden_margins(nano, golden)
    assert margins.min() > -1e-5
    np.testing.assert_allclose(golden.columns["margin"], margins, atol=1e-5)
    kept = []
    for i in range(len(golden)):  # the same pairs: only their order may differ
      before, after = (
        [tuple(response[i]) for response in dataset.responses]
        for dataset in (initial, golden)
      )
      assert sorted(before) == sorted(after)
      kept.append(before == after)
      np.testing.assert_array_equal(golden.prompts[i], initial.prompts[i])
    assert np.mean(kept) == pytest.approx(agreement[split])
    assert 0 < np.mean(kept) < 1


def test_who_learns_from_what(nano):
  """The paper's figure 2, read from what the artefacts say they were made from."""

  def inputs(artefact):
    described = read_json(nano.read(artefact) / "config.json")["inputs"]
    return {name: directory.rsplit("-", 1)[0] for name, directory in described.items()}

  models = nano.study.models()
  assert inputs(models["sft_nano"]) == {"data0": "data"}
  assert inputs(models["golden_pm"]) == {"data": "data"}
  assert inputs(models["proxy_pm"]) == {"data": "golden_data", "sft": "sft_nano"}
  start = {"sft": "sft_nano", "pairs": "golden_data_nano"}
  assert inputs(models["golden_policy"]) == start | {"judge": "golden_pm"}
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
    assert inputs(nano.policy(name)) == expected, name
  golden = {"golden_data": "golden_data", "golden_pm": "golden_pm"}
  for name, first, second in (
    ("final_vs_final", "world0_online_ipo", "world0_online_ipo"),
    ("sft_vs_early", "sft_nano", "world0_online_ipo"),
    ("early_vs_final", "world0_online_ipo", "golden_policy"),
  ):
    sampled = nano.policy(f"{name}_ipo").pairs.dataset
    assert inputs(sampled) == golden | {"first": first, "second": second}


def test_preference_models_report_accuracies(nano):
  for name in ("golden_pm", "proxy_pm"):
    report = read_json(nano.directory(name) / "model.json")
    assert report["step"] in (4, 8)
    for key in ("validation_accuracy", "train_accuracy", "truth_accuracy"):
      assert 0 <= report[key] <= 1
    for measure in ("validation", "truth"):  # of pairs that share no prompt
      accuracy, count = report[f"{measure}_accuracy"], report["validation_pairs"]
      usual = math.sqrt(accuracy * (1 - accuracy) / (count - 1))
      within = special.stdtrit(count - 1, 0.975) * usual
      assert report[f"{measure}_within"] == pytest.approx(within, rel=0.2)
    assert report["validation_pairs"] > 0
    for key in ("orders_agree", "prefers_longer", "labels_prefer_longer"):
      assert 0 <= report[key] <= 1
    counts = [each["pairs"] for each in report["by_margin"]]
    assert sum(counts) == report["validation_pairs"] and np.ptp(counts) <= 1
    right = sum(each["pairs"] * each["accuracy"] for each in report["by_margin"])
    accuracy = right / report["validation_pairs"]
    assert accuracy == pytest.approx(report["validation_accuracy"])


def test_prompts_that_choose_a_step_do_not_report_it(nano, tmp_path, monkeypatch):
  """Seven pairs of four prompts: two choose, two report."""
  prompts = [[5], [5], [7], [9], [7], [11], [9]]
  rows = pairs.Ragged(np.array(prompts, np.int32).ravel(), np.arange(8))
  for split in ("train", "validation"):
    (tmp_path / split).mkdir()
    pairs.PairDataset(rows, (rows, rows)).save(tmp_path / split)
  margins = {4: [1, 1, 1, -1, -1, -1, 1], 8: [1, -1, 1, 1, -1, 1, 1]}
  asked = []

  def map_pairs(self, function, dataset, indices, doing=""):
    step = function(None)
    asked.append((step, indices.tolist()))
    return np.array(margins[step], float)[indices]

  judge = nano.study.golden_pm()
  monkeypatch.setattr(type(judge), "train", lambda *_, **__: None)
  monkeypatch.setattr(type(judge), "load_fixed", lambda *arguments: arguments[-1])
  monkeypatch.setattr(Setting, "map_pairs", map_pairs)
  monkeypatch.setattr(Setting, "true_gap", lambda *_: None)
  monkeypatch.setattr(evaluation, "margins", lambda _, params, __: params)
  monkeypatch.setattr(evaluation, "both_orders", lambda _, params, __: params)
  monkeypatch.setattr(audits, "orders_agree", lambda *_: 0.5)
  judge.make(tmp_path, lambda _: tmp_path)
  choosing, reporting = [0, 1, 2, 4], [3, 5, 6]
  assert asked == [
    (4, choosing), (8, choosing), (4, reporting), (4, [0, 3, 6]), (4, reporting)
  ]  # fmt: skip
  report = read_json(tmp_path / "model.json")
  assert report == {
    "step": 4,
    "validation_accuracy": pytest.approx(1 / 3),
    # Two prompts, one of them with two pairs.
    "validation_within": pytest.approx(special.stdtrit(1, 0.975) * 2 / 9),
    "validation_pairs": 3,
    "train_accuracy": pytest.approx(2 / 3),  # of pairs from its beginning to its end
    "orders_agree": 0.5,
    "prefers_longer": None,  # all have one token
    "labels_prefer_longer": None,
    "by_margin": [
      {"least_margin": 1.0, "accuracy": right, "pairs": 1} for right in (0.0, 0.0, 1.0)
    ],
  }


FOUR = "four_ipo_samples4_selectbest_worst"
RUNS = ("offline_ipo_lr0.003", "online_ipo", "replay_ipo_window2")


@pytest.mark.parametrize("run", RUNS)
def test_a_policys_draws_are_of_its_seed_and_world(nano, run):
  policy, drawn = nano.policy(run), []
  for world, seed in ((0, 0), (0, 1), (1, 0), (0, 0)):
    setting = dataclasses.replace(nano.study.setting, world=world)
    recipe = dataclasses.replace(policy.recipe, seed=seed)
    other = dataclasses.replace(policy, setting=setting, recipe=recipe)
    drawn.append(other.source(nano.read, None))
  orders = [getattr(source, "prompts", source).host_batch(0).ids_B for source in drawn]
  assert [np.array_equal(orders[0], o) for o in orders] == [True, False, False, True]
  if run == "online_ipo":
    keys = [jax.random.key_data(source.key).tolist() for source in drawn]
    assert [key == keys[0] for key in keys] == [True, False, False, True]


@pytest.mark.parametrize("step", [4, 8])
def test_a_replay_in_order_is_the_online_run_bit_for_bit(nano, step):
  """App. F, made exact: the tandem."""
  online, replay = (
    nano.params(name, step) for name in ("online_ipo", "replay_ipo_window0")
  )
  jax.tree.map(np.testing.assert_array_equal, online, replay)
  for other in ("replay_ipo_window2", "shuffled_ipo", "offline_ipo_lr0.003"):
    theirs = nano.params(other, step)
    same = jax.tree.map(np.array_equal, online, theirs)
    assert not all(jax.tree.leaves(same)), other


@pytest.mark.parametrize("step", [4, 8])
def test_a_replay_of_the_best_and_the_worst_of_four_is_that_run_bit_for_bit(nano, step):
  online, replay, two = (
    nano.params(name, step) for name in (FOUR, "four_again_ipo_window0", "online_ipo")
  )
  jax.tree.map(np.testing.assert_array_equal, online, replay)
  assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, online, two)))


def test_a_stream_has_all_samples_and_what_was_learned_from_follows_from_it(nano):
  recorded = stream.Stream.load(nano.read(nano.policy(FOUR)) / "stream", steps=8)
  rows = recorded.rows(np.arange(len(recorded)))
  scores = rows["scores"]
  assert scores.shape == (64, 4) and rows["unused"].shape[:2] == (64, 2)
  np.testing.assert_array_equal(scores[:, 0], scores.max(axis=1))
  np.testing.assert_array_equal(scores[:, 1], scores.min(axis=1))
  assert np.all(scores[:, 2] >= scores[:, 3])
  assert recorded.batch(np.arange(3)).lengths_BxN.shape == (3, 2)
  setting, judge = nano.study.setting, nano.study.proxy_pm()
  params = setting.parameters.load_fixed(nano.read(judge), judge.model())
  everything = recorded.batch(np.arange(16)).replace(
    responses_BxNxT=np.concatenate([rows["responses"], rows["unused"]], 1)[:16],
    lengths_BxN=np.concatenate([rows["lengths"], rows["unused_lengths"]], 1)[:16],
  )
  again = jax.jit(judge.judge().scores)(params, everything)
  np.testing.assert_allclose(again, scores[:16], atol=1e-5)


@pytest.mark.parametrize("loss", ["rloo", "grpo"])
def test_losses_of_groups_train_online(nano, loss):
  policy = nano.policy(f"groups_{loss}_samples3_selectall")
  rows = read_jsonl(nano.read(policy) / "metrics.jsonl")
  assert rows[0]["score"] == pytest.approx(0, abs=1e-5)  # of margins, which cancel
  assert all(row["score_gap"] > 0 and math.isfinite(row["loss"]) for row in rows)
  assert rows[0]["kl"] < rows[-1]["kl"]  # it began as the reference


def test_online_offline_and_replay_are_one_compilation(nano):
  """All that trained a nano policy with IPO: one function, compiled once."""
  assert nano.compilations == 1


def test_a_semi_online_run_begins_as_the_online_one(nano):
  """Until it would have been renewed, who samples is SFT; then it is not."""
  never, third = (
    read_jsonl(nano.read(nano.policy(f"semi_online_ipo_every{k}")) / "metrics.jsonl")
    for k in (0, 3)
  )
  assert never[0] == third[0]  # steps 1 and 2
  assert never[1] != third[1]  # step 4 is sampled by the policy of step 3


def test_resampled_pairs_are_of_the_prompts_of_d_golden_in_golden_order(nano):
  setting, policy = nano.study.setting, nano.policy("sft_vs_early_ipo")
  sampled = pairs.PairDataset.load(nano.read(policy.pairs))
  golden = nano.data("golden_data")
  assert len(sampled) == len(golden)
  np.testing.assert_array_equal(sampled.prompts.values, golden.prompts.values)
  margins = golden_margins(nano, sampled)
  assert margins.min() > -1e-5 and margins.max() > 0
  model = policy.model()
  start = setting.parameters.load(nano.directory("sft_nano"), model)
  ratios = setting.map_pairs(
    lambda batch: evaluation.log_ratios(model, start, batch), sampled
  )
  np.testing.assert_allclose(ratios, 0, atol=1e-4)  # the reference's own log-probs


def test_a_policy_ends_with_parameters_whatever_is_evaluated(nano, tmp_path):
  (tmp_path / "artefacts").symlink_to(nano.workdir / "artefacts")
  config = studies.every(**{"golden_policy.evaluate_at": (0.5,)})
  studies.run(config, tmp_path, ["golden_samples"])
  models = studies.graph(config).models()
  for name in ("golden_policy", "golden_samples"):
    assert models[name].is_done(nano.workdir)


def test_nothing_is_made_twice(nano, monkeypatch):
  def make(*_):
    raise AssertionError("a finished stage ran again")

  monkeypatch.setattr(artefacts, "_try_to_make", make)
  studies.run(studies.every(workers=2, log_every=1), nano.workdir)


def test_model_of_another_shape_is_named(nano):
  """As when an artefact's directory is copied over another's by hand."""
  setting = nano.study.setting
  larger = setting.model(Start("micro", "scratch"))
  with pytest.raises(UserError, match="checkpoint of another model .*: parameter '"):
    setting.parameters.load(nano.directory("sft_nano"), larger)
