"""Studies whose judges are rules, the truth, or models of another vocabulary."""

import json
import re
import types

import jax
import numpy as np
import pytest

from alignment.core import rules
from alignment.data import pairs, stream, translation
from alignment.runtime.files import read_json
from alignment.study import publish
from alignment.study.stages import judging
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")

BYTES = {"kind": "bytes", "prompt_length": 27, "response_length": 27}
TRUTH = {"golden_pm.kind": "truth"}


def brevity(prompt: str, response: str, *, limit: int = 0) -> float:
  return -max(0, len(response.split()) - limit)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
  monkeypatch.setattr(rules, "RULES", {"brevity": brevity})


def made(config, workdir, *stages):
  """Where the stages of a study lie, which are made."""
  studies.run(config, workdir, stages)
  artefacts = studies.graph(config).artefacts()
  return [artefacts[stage].directory(workdir) for stage in stages]


def test_the_truth_labels_as_the_language_values(tmp_path):
  config = studies.nano(**TRUTH)
  labelled, judge = made(config, tmp_path, "golden_data", "golden_pm")
  dataset = pairs.PairDataset.load(labelled / "train")
  setting = studies.graph(config).setting
  gap_P = setting.true_gap(dataset, np.arange(len(dataset)))
  assert (gap_P >= 0).all() and gap_P.max() > 0
  np.testing.assert_allclose(dataset.columns["margin"], gap_P, atol=1e-5)
  report = read_json(judge / "model.json")
  assert report["truth_accuracy"] == 1
  assert 0.6 < report["validation_accuracy"] < 1  # the raters' noise


def test_the_training_accuracy_is_of_pairs_of_all_the_data():
  """The first pairs are of one topic of a file, or of one temperature of samples."""
  rows = pairs.Ragged(np.arange(9, dtype=np.int32), np.arange(10))
  dataset, asked = pairs.PairDataset(rows, (rows, rows)), []

  def margins(dataset, rows):
    asked.append(rows.tolist())
    return np.ones(len(rows))

  setting = types.SimpleNamespace(true_gap=lambda *_: None)
  judging.accuracies(setting, margins, dataset, dataset, np.arange(3))
  assert asked == [[0, 1, 2], [0, 4, 8]]
  assert judging.spread(20, 9).tolist() == list(range(9))


def test_noisy_truth_labels_otherwise_and_alike_when_made_again(tmp_path):
  noise = TRUTH | {"golden_pm.options": {"temperature": 2.0}}
  labels = []
  for name, overrides in ("a", noise), ("b", noise), ("c", TRUTH):
    config = studies.nano(**overrides)
    (labelled,) = made(config, tmp_path / name, "golden_data")
    labels.append(pairs.PairDataset.load(labelled / "train").responses[0].values)
  np.testing.assert_array_equal(labels[0], labels[1])
  assert not np.array_equal(labels[0], labels[2])


def test_a_rule_judges_without_training(tmp_path):
  config = studies.nano(**{"proxy_pm.kind": "brevity", "golden_pm.kind": "brevity"})
  golden, proxy = made(config, tmp_path, "golden_pm", "proxy_pm")
  assert {path.name for path in proxy.iterdir()} == {
    "config.json", "done.json", "model.json",
  }  # fmt: skip
  report = read_json(golden / "model.json")
  assert report.keys() == read_json(proxy / "model.json").keys()
  assert read_json(proxy / "model.json")["validation_accuracy"] > 0.9  # of its own


def test_what_determines_a_rule_determines_what_it_labels(monkeypatch):
  def keys(**overrides):
    overrides = {"proxy_pm.kind": "brevity"} | overrides
    artefacts = studies.graph(studies.nano(**overrides)).artefacts()
    return {name: artefact.key for name, artefact in artefacts.items()}

  before, same = keys(), keys(**{"proxy_pm.steps": 99, "proxy_pm.size": "milli"})
  assert before == same  # what a rule does not read
  edited = keys(**{"proxy_pm.options": {"limit": 2}})
  changed = {name for name in before if before[name] != edited[name]}
  assert {"proxy_pm", "world0_online_ipo", "evaluate_world0_online_ipo"} <= changed
  assert not changed & {"golden_pm", "golden_policy", "world0_offline_ipo_lr0.003"}

  def other(prompt, response, *, limit=0):
    return len(response)

  monkeypatch.setitem(rules.RULES, "brevity", other)
  assert keys()["proxy_pm"] != before["proxy_pm"]


@pytest.mark.parametrize(
  "kind", ["pairwise", pytest.param("pointwise", marks=pytest.mark.slow)]
)
def test_a_judge_of_bytes_reads_what_policies_write(tmp_path, kind):
  vocab = BYTES | {"response_length": 20, "context_length": 90}
  own = {"kind": kind, "vocab": vocab, "init": "scratch", "evaluations": 1}
  config = studies.nano(**TRUTH, **{f"proxy_pm.{key}": own[key] for key in own})
  config.sft.steps = config.proxy_pm.steps = config.policy.steps = 2
  config.policy.record = True
  config.runs = {"online": {}}
  online = "world0_online_ipo"
  golden, proxy, policy = made(config, tmp_path, "golden_data", "proxy_pm", online)
  (translated,) = tmp_path.glob("artefacts/golden_data_for_proxy_pm-*")
  study = studies.graph(config)
  ours, judge = study.setting, study.proxy_pm()
  words, letters = (
    pairs.PairDataset.load(directory / "validation")
    for directory in (golden, translated)
  )
  theirs = judge.setting.vocabulary
  cut = 0
  for i in range(len(words)):
    prompt = ours.vocabulary.decode_prompt(words.prompts[i])
    assert theirs.decode_prompt(letters.prompts[i]) == prompt
    for a, b in zip(words.responses, letters.responses, strict=True):
      text = ours.vocabulary.decode(a[i])
      assert theirs.decode(b[i]) == text[:20]
      cut += len(text) >= 20
  lost = read_json(translated / "translation.json")["validation"]
  assert lost["truncated_responses"] == pytest.approx(cut / (2 * len(words)))
  assert lost["truncated_prompts"] == 0 and cut
  assert read_json(proxy / "model.json").items() >= lost.items()
  rows = np.arange(8)
  params = judge.load_fixed(lambda _: proxy)
  margins_B = judge.judge().preference(params, words.batch(rows, **ours.lengths))
  batch = letters.batch(rows, **judge.setting.lengths)
  direct_B = jax.jit(judge.own_judge().preference)(params, batch)
  np.testing.assert_array_equal(margins_B, np.asarray(direct_B))

  recorded = stream.Stream.load(policy / "stream", 2)
  rows = np.arange(len(recorded))
  scores_BxN = judge.judge().scores(params, recorded.batch(rows))
  np.testing.assert_allclose(recorded.rows(rows)["scores"], scores_BxN, atol=1e-6)
  assert (scores_BxN[:, 0] >= scores_BxN[:, 1]).all() and np.ptp(scores_BxN) > 0


def test_a_study_without_any_learned_judge(tmp_path):
  """Golden is the truth, proxy a rule: rollouts, replay, evaluations, report."""
  config = studies.nano(
    **TRUTH,
    **{
      "proxy_pm.kind": "brevity",
      "evaluation.require_good_judge": True,  # which asks models only
      "evaluation.best_of": (2,),
      "figures": ("figure_06",),
      "evaluation.stream_steps": 2,
      "evaluation.stream_pairs": 12,
    },
  )
  replay = {"method": "offline", "dataset": "stream", "replay_window": 0}
  config.runs = {
    "online": {"method": ("online",)},
    "replay": {key: (value,) for key, value in replay.items()},
  }
  studies.run(config, tmp_path)
  study = studies.graph(config)
  policies = study.policies()
  online, replayed = (
    policies[f"world0_{n}"] for n in ("online_ipo", "replay_ipo_window0")
  )
  load = study.setting.parameters.load
  a, b = (
    jax.device_get(load(policy.directory(tmp_path), policy.model()))
    for policy in (online, replayed)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)

  recorded = stream.Stream.load(online.directory(tmp_path) / "stream", 8)
  batch = recorded.batch(np.arange(len(recorded)))
  words = study.setting.vocabulary
  for _, (preferred, other) in translation.texts(words, batch):
    assert len(preferred.split()) <= len(other.split())

  publish.publish(config, [study], tmp_path)
  for path in tmp_path.glob("runs/*/evaluations.jsonl"):
    for record in map(json.loads, path.read_text().splitlines()):
      assert record["win_rate"] == pytest.approx(record["true_win_rate"])
      assert record.get("judge_accuracy_on_policy") in (1, None)
  rows = {row["name"]: row for row in read_json(tmp_path / "study.json")["models"]}
  assert rows["world0_golden_pm"]["init"] == "truth"
  assert rows["world0_golden_pm"]["truth_accuracy"] == 1
  assert rows["world0_proxy_pm"]["init"] == "brevity"
  first, *_ = (tmp_path / "classification/world0.jsonl").read_text().splitlines()
  assert json.loads(first)["classifier"] == "proxy_pm"


@pytest.mark.parametrize(
  "overrides, message",
  [
    (
      {"proxy_pm.kind": "brevty"},
      "proxy_pm.kind 'brevty' is unknown: there are pairwise, pointwise, truth",
    ),
    (
      {"proxy_pm.kind": "brevity", "proxy_pm.options": {"max": 1}},
      "proxy_pm: judge 'brevity' has no option 'max': its options are limit",
    ),
    (
      {"golden_pm.kind": "truth", "golden_pm.options": {"temperature": -1.0}},
      "golden_pm: option 'temperature' of 'truth' is -1.0; give 0 or more",
    ),
    (
      {"proxy_pm.options": {"limit": 1}},
      "proxy_pm.options has no meaning for a judge of kind 'pairwise'",
    ),
    (
      {"proxy_pm.kind": "brevity", "proxy_pm.vocab": BYTES},
      "proxy_pm.vocab has no meaning for a judge of kind 'brevity': it reads text",
    ),
    (
      {"proxy_pm.vocab": BYTES},
      "proxy_pm: to a judge with a vocabulary of its own SFT's ids mean nothing",
    ),
    (
      {"golden_pm.vocab": {"kind": "byte"}},
      "golden_pm: vocab.kind is 'byte'; use sentencepiece",
    ),
    ({"golden_pm.vocab": {"sort": 1}}, "golden_pm.vocab has no 'sort'; there are kind"),
    (
      {"golden_pm.vocab": {"kind": "bytes", "prompt_length": "9"}},
      "golden_pm.vocab.prompt_length is '9'; give a whole number",
    ),
    (
      {"golden_pm.vocab": BYTES | {"response_length": 0}},
      "golden_pm.vocab: response_length is 0; give at least 2",
    ),
    (
      {"golden_pm.vocab": BYTES},
      "judge_context_length 30 cannot hold two responses of 27 tokens",
    ),
    (
      {"golden_pm.kind": "truth", "data.format": "files", "data.path": "x.jsonl"},
      "golden_pm: a judge of kind 'truth' is the toy language's utility",
    ),
  ],
)
def test_judges_that_cannot_be_are_refused_in_one_line(overrides, message):
  with pytest.raises(UserError, match=re.escape(message)):
    studies.graph(studies.nano(**overrides))
