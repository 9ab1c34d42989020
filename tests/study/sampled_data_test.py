"""Pairs that the policies' start samples: D_initial rated by a rule, or D_golden."""

import json
import shutil

import numpy as np
import pytest

from alignment.core import evaluation, rules
from alignment.data import pairs
from alignment.runtime.files import read_json
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")


def vowels(prompt: str, response: str) -> float:
  return float(sum(c in "aeiou" for c in response)) + 0.01 * len(response)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
  monkeypatch.setattr(rules, "RULES", {"vowels": vowels})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Pairs to start from, and prompts with one that is too long and one twice."""
  directory = tmp_path_factory.mktemp("files")
  rows = (
    {"prompt": f"q{i}", "chosen": f"a{i}", "rejected": "b" * (1 + i % 5)}
    for i in range(60)
  )
  (directory / "pairs").write_text("".join(json.dumps(row) + "\n" for row in rows))
  prompts = [*(f"say {i}" for i in range(40)), "say 3", "much " * 9]
  (directory / "prompts").write_text("\n".join(prompts))
  return directory


def config_of(files, **overrides):
  c = studies.nano(
    **{
      "data.format": "files", "data.path": str(files / "pairs"),
      "data.validation_fraction": 0.3, "data.prompt_format": "Be kind. {prompt}?",
      "vocab.kind": "bytes", "prompt_length": 24, "response_length": 8,
      "judge_context_length": 64, "sampled.path": str(files / "prompts"),
      "sampled.validation_fraction": 0.2, "sampled.temperatures": (0.5, 1.5),
      "golden_pm.kind": "vowels", "sft.steps": 2,
    } | overrides
  )  # fmt: skip
  return c


def initial(files, **overrides):
  rater = {"sampled.data": "initial", "rater.kind": "vowels", "rater.temperature": 0.0}
  return config_of(files, **(rater | overrides))


def load(config, workdir, stage, split="train"):
  studies.run(config, workdir, [stage])
  artefact = studies.graph(config).artefacts()[stage]
  return pairs.PairDataset.load(artefact.directory(workdir) / split)


def test_every_prompt_gets_pairs_at_every_temperature(files, tmp_path):
  config = initial(files)
  train = load(config, tmp_path, "sampled_data")
  validation = load(config, tmp_path, "sampled_data", "validation")
  temperatures, counts = np.unique(train.columns["temperature"], return_counts=True)
  assert temperatures.tolist() == [0.5, 1.5]
  decode = studies.graph(config).setting.vocabulary.decode_prompt
  texts = [
    {decode(each.prompts[i]) for i in range(len(each))} for each in (train, validation)
  ]
  assert not texts[0] & texts[1]
  assert texts[0] | texts[1] == {f"Be kind. say {i}?" for i in range(40)}
  assert len(texts[1]) >= 4
  # Two pairs each, but for those whose responses are the same.
  assert all(0.5 * 2 * len(texts[0]) <= n <= 2 * len(texts[0]) for n in counts)
  directory = studies.graph(config).sampled_data().directory(tmp_path)
  report = read_json(directory / "statistics.json")
  assert report["reading"] == ["1 prompts are over 24 tokens, and left out"]
  assert {path.name for path in directory.iterdir()} == {
    "config.json", "done.json", "statistics.json", "train", "validation",
  }  # fmt: skip


def test_every_temperature_has_draws_of_its_own(files, tmp_path):
  config = initial(files, **{"sampled.temperatures": (1.5, 1.5)})
  train = load(config, tmp_path, "sampled_data")
  first = [train.responses[0][i].tolist() for i in range(len(train))]
  half = len(first) // 2
  assert first[:half] != first[-half:]


def test_a_stage_that_was_killed_goes_on_and_samples_the_same(
  files, tmp_path, monkeypatch
):
  config, calls = initial(files), []
  whole = load(config, tmp_path / "a", "sampled_data")
  sample = evaluation.sample

  def killed(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return sample(*arguments)

  monkeypatch.setattr(evaluation, "sample", killed)
  with pytest.raises(KeyboardInterrupt):
    load(config, tmp_path / "b", "sampled_data")
  again = load(config, tmp_path / "b", "sampled_data")
  # Of both splits and temperatures, 16 prompts at a time: none is asked again.
  assert len(calls) == 1 + 2 * (3 + 1)
  for a, b in zip(
    (whole.prompts, *whole.responses), (again.prompts, *again.responses), strict=True
  ):
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.offsets, b.offsets)


def test_samples_stay_with_their_prompts_if_a_restart_has_another_batch_size(
  files, tmp_path, monkeypatch
):
  """Whoever ran out of memory takes fewer rows at a time, and goes on."""
  config, calls = initial(files), []
  sample = evaluation.sample

  def killed(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return sample(*arguments)

  monkeypatch.setattr(evaluation, "sample", killed)
  with pytest.raises(KeyboardInterrupt):
    load(config, tmp_path, "sampled_data")
  smaller = initial(files, **{"evaluation.batch_size": 8})
  again = load(smaller, tmp_path, "sampled_data")
  rows = [(again.prompts[i].tolist(), again.responses[0][i].tolist()) for i in range(9)]
  pairs_of_all = len(again)
  shutil.rmtree(studies.graph(config).sampled_data().directory(tmp_path))
  whole = load(config, tmp_path, "sampled_data")
  assert pairs_of_all == len(whole)
  assert rows == [
    (whole.prompts[i].tolist(), whole.responses[0][i].tolist()) for i in range(9)
  ]


def test_labels_follow_the_utility_up_to_noise(files, tmp_path):
  agreements = []
  for temperature in (0.0, 3.0, 3.0):
    config = initial(files, **{"rater.temperature": temperature})
    dataset = load(config, tmp_path / str(len(agreements)), "data")
    gap_P = studies.graph(config).setting.true_gap(dataset, np.arange(len(dataset)))
    agreements.append((gap_P >= 0).mean())
  assert agreements[0] == 1
  assert 0.5 < agreements[1] < 0.95
  assert agreements[1] == agreements[2]


def test_the_truth_says_what_a_perfect_judge_reaches(files, tmp_path):
  config = initial(files, **{"rater.temperature": 0.5})
  studies.run(config, tmp_path, ["truth"])
  artefacts = studies.graph(config).artefacts()
  report = read_json(artefacts["truth"].directory(tmp_path) / "model.json")
  assert 0.5 < report["validation_accuracy"] <= 1 == report["truth_accuracy"]


def test_d_golden_is_of_the_files_prompts_in_the_golden_judges_order(files, tmp_path):
  config = config_of(files, **{"sampled.data": "golden"})
  dataset = load(config, tmp_path, "golden_data")
  study = studies.graph(config)
  decode = study.setting.vocabulary
  assert decode.decode_prompt(dataset.prompts[0]).startswith("Be kind. say ")
  for i in range(len(dataset)):
    first, second = (vowels("", decode.decode(r[i])) for r in dataset.responses)
    assert first >= second
  human = pairs.PairDataset.load(study.data().directory(tmp_path) / "train")
  assert decode.decode_prompt(human.prompts[0]).startswith("Be kind. q")
  assert study.golden_pm().inputs["data"] is study.data()
  for policy in study.policies().values():
    assert policy.inputs["pairs"].dataset is study.golden_data()


def test_what_is_read_has_the_key_that_it_had():
  """Of results that are kept: the new keys say nothing where they are not used."""
  data = studies.graph(studies.nano()).data()
  assert "prompt_format" not in data.settings()["data"]
  assert data.inputs == {}


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"sampled.data": "silver"}, "sampled.data is 'silver'"),
    ({"sampled.data": "initial"}, "rater.kind is not set"),
    ({"sampled.data": "initial", "rater.kind": "vow"}, "rater: there is no rule 'vow'"),
    ({"sampled.data": "golden", "sampled.pairs": 0}, "sampled.pairs must be"),
    ({"sampled.data": "golden", "sampled.temperatures": (0.0,)}, "numbers above 0"),
    ({"data.prompt_format": "no place"}, "once"),
    ({"sampled.data": "golden", "data.format": "toy"}, "the toy language's pairs"),
  ],
)
def test_errors_are_one_line(files, overrides, message):
  with pytest.raises(UserError, match=message):
    studies.graph(config_of(files, **overrides))


def test_prompts_whose_responses_are_all_the_same_do_not_count(files, tmp_path):
  """What judges are held out on would be one prompt, or none."""
  stage = studies.graph(initial(files)).artefacts()["sampled_data"]
  prompts = pairs.Ragged(np.arange(12, dtype=np.int32), 2 * np.arange(7))
  tokens_Qx2xT = np.ones((6, 2, 3), np.int32)
  tokens_Qx2xT[:3, 1] = 2  # the others' two responses are the same
  whole = {
    "rows": np.arange(6),
    "tokens": tokens_Qx2xT,
    "lengths": np.full((6, 2), 3),
    "temperature": np.ones(6),
    "ended": np.ones((6, 2), bool),
  }
  assert len(stage._assembled(prompts, whole, "train")[0]) == 3
  with pytest.raises(UserError, match="3 validation prompts have two different respo"):
    stage._assembled(prompts, whole, "validation")


def test_too_few_prompts_are_refused(files, tmp_path):
  config = initial(files, **{"sampled.num_prompts": 5})
  with pytest.raises(UserError, match="of 5 prompts that fit are for validation"):
    studies.run(config, tmp_path, ["sampled_data"])
