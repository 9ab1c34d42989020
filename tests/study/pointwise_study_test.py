"""Pointwise judges in a study: trained, or imported as they are; what is refused."""

import json
from pathlib import Path
import re
import shutil

import jax
import numpy as np
import pytest

from alignment.core.pointwise import PointwiseJudge
from alignment.data import pairs
from alignment.models import huggingface, registry
from alignment.models.huggingface import classifiers
from alignment.runtime.files import read_json
from alignment.study import commands, inspect
from alignment.study.graph import Study
from alignment.study.stages.judging import margins_of
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")

FIXTURES = Path(__file__).parents[1] / "fixtures"
POINTWISE = {"golden_pm.kind": "pointwise", "proxy_pm.kind": "pointwise"}


def read(workdir: Path):
  """For `Artefact.make` and tests: where an artefact lies."""
  return lambda artefact: artefact.directory(workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Study, Path]:
  """Both judges pointwise, and an online policy: the proxy labels 4 samples each."""
  workdir = tmp_path_factory.mktemp("pointwise")
  config = studies.nano(**POINTWISE, runs={"online": {}})
  config.policy.update({"samples": 4, "select": "best_worst"})
  built = studies.graph(config, workdir)
  commands.run([built], workdir, ["proxy_pm", "world0_online_ipo"])
  return built, workdir


def test_both_judges_learn_and_report(trained):
  built, workdir = trained
  for judge in (built.golden_pm(), built.proxy_pm()):
    assert isinstance(judge.judge(), PointwiseJudge)
    directory = judge.directory(workdir)
    report = read_json(directory / "model.json")
    assert report["step"] in (4, 8) and report["orders_agree"] == 1
    for key in ("validation_accuracy", "train_accuracy", "truth_accuracy"):
      assert 0 <= report[key] <= 1
    log = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    assert [row["step"] for row in log] == [2, 4, 6, 8]
    assert all(0 < row["loss"] < 3 for row in log)


def test_d_golden_is_in_the_order_of_the_rewards(trained):
  built, workdir = trained
  judge = built.golden_pm()
  params = judge.load_fixed(read(workdir))
  assert set(params) == {"embedding", "encoder", "decoder", "score"}
  directory = built.golden_data().directory(workdir) / "validation"
  labelled = pairs.PairDataset.load(directory)
  margins = margins_of(built.setting, judge.judge(), params, labelled)
  assert np.all(margins >= 0) and np.mean(margins > 0) > 0.9
  np.testing.assert_allclose(margins, labelled.columns["margin"], atol=1e-5)


def test_a_proxy_starts_from_sft_with_a_new_head(trained):
  """And a golden one from scratch: never the head that predicts tokens."""
  built, workdir = trained
  setting, proxy = built.setting, built.proxy_pm()
  theirs = proxy.sft.load(read(workdir))
  start = setting.parameters.initial_judge(proxy.recipe, dict(theirs), seed=3)
  head = start.pop("score")
  assert theirs.pop("head") and head["weight"].ndim == 1
  jax.tree.map(np.testing.assert_array_equal, start, theirs)


def test_programs_are_those_that_run(trained):
  """The compile check sees one pass of all responses, and no comparison of orders."""
  built, _ = trained
  programs = built.golden_pm().programs()
  names = {program.name: program.work.passes for program in programs}
  S, T = built.setting.shapes.prompt_length, built.setting.shapes.response_length
  model = built.golden_pm().model()
  assert names == {
    "golden_pm step, nano": ((model, 8, S, 2, T),),
    "margins, nano": ((model, 16, S, 2, T),),
  }
  for program in built.golden_pm().programs():
    program.lower()


def test_what_only_a_pairwise_judge_reads_is_not_part_of_a_pointwise_one():
  def key(**overrides):
    return studies.graph(studies.nano(**overrides)).golden_pm().key

  plain, pointwise = key(), key(**POINTWISE)
  assert plain != pointwise
  assert key(judge_context_length=40) != plain
  assert key(judge_context_length=40, **POINTWISE) == pointwise
  assert key(judge_context_length=3, **POINTWISE) == pointwise  # refused of the other


def test_it_is_shown_what_it_reads_and_writes_no_text(trained, capsys):
  built, workdir = trained
  inspect.show_batch(built, workdir)
  lines = capsys.readouterr().out.splitlines()
  assert lines.count("the judge reads prompt and response as they are") == 3
  built.config.sample.model = "golden_pm"
  with pytest.raises(UserError, match="sample.model 'golden_pm' is a reward model"):
    inspect.sample(built, workdir)


# --- imported -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
  """A reward model of the nano study's vocabulary, as transformers would save it."""
  cfg = registry.config("llama_nano", vocab_rows=128)
  params = jax.jit(classifiers.network(cfg).init)(jax.random.key(5))
  directory = tmp_path_factory.mktemp("reward_model") / "checkpoint"
  huggingface.write(directory, cfg, jax.device_get(params))
  return directory


def imported(directory, **overrides):
  keys = {"init": str(directory), "steps": 0, "size": "llama_nano"}
  given = {f"golden_pm.{key}": value for key, value in keys.items()}
  return studies.nano(**POINTWISE | given | overrides)


def test_an_imported_reward_model_judges_as_it_is(checkpoint, tmp_path):
  built = studies.graph(imported(checkpoint), tmp_path)
  commands.run([built], tmp_path, ["golden_data"])
  judge = built.golden_pm()
  directory = judge.directory(tmp_path)
  report = read_json(directory / "model.json")
  assert report["step"] == 0 and not (directory / "metrics.jsonl").exists()
  validation = pairs.PairDataset.load(built.data().directory(tmp_path) / "validation")
  assert report["validation_pairs"] == len(validation)  # none had to choose a step
  params = judge.load_fixed(read(tmp_path))
  cfg = huggingface.read_config(checkpoint)
  jax.tree.map(
    np.testing.assert_array_equal,
    params,
    huggingface.read_reward_params(checkpoint, cfg),
  )
  assert [program.name for program in judge.programs()] == ["margins, llama_nano"]
  built.config.export.update({"model": "golden_pm", "directory": str(tmp_path / "out")})
  inspect.export(built, tmp_path)
  assert huggingface.is_reward_model(tmp_path / "out")
  exported = huggingface.read_reward_params(tmp_path / "out", cfg)
  jax.tree.map(np.testing.assert_array_equal, params, exported)


def test_only_the_checkpoint_and_the_data_determine_an_imported_judge(checkpoint):
  def key(**overrides):
    return studies.graph(imported(checkpoint, **overrides)).golden_pm().key

  assert key() == key(**{"golden_pm.learning_rate": 1.0, "golden_pm.evaluations": 3})
  assert key() != key(**{"data.num_pairs": 300})


def test_a_reward_model_can_be_trained_further(checkpoint, tmp_path):
  built = studies.graph(imported(checkpoint, **{"golden_pm.steps": 4}), tmp_path)
  judge = built.golden_pm()
  start = built.setting.parameters.initial_judge(judge.recipe, None, seed=0)
  cfg = huggingface.read_config(checkpoint)
  theirs = huggingface.read_reward_params(checkpoint, cfg)
  jax.tree.map(np.testing.assert_array_equal, start, theirs)


def test_a_language_model_gets_a_new_head(tmp_path):
  cfg = registry.config("pythia_nano", vocab_rows=128)
  params = jax.device_get(jax.jit(registry.model(cfg).init)(jax.random.key(2)))
  huggingface.write(tmp_path / "lm", cfg, params)
  keys = {"golden_pm.steps": 4, "golden_pm.size": "pythia_nano"}
  built = studies.graph(imported(tmp_path / "lm", **keys))
  recipe = built.golden_pm().recipe
  start = built.setting.parameters.initial_judge(recipe, None, seed=0)
  head = start.pop("score")["weight"]
  assert params.pop("head") and head.shape == (cfg.d_model,)
  jax.tree.map(np.testing.assert_array_equal, start, params)


# --- refused --------------------------------------------------------------------------


def refused(config) -> str:
  with pytest.raises(UserError) as info:
    studies.graph(config)
  message = str(info.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"golden_pm.kind": "listwise"}, "golden_pm.kind 'listwise' is unknown: there are"),
    (
      {"golden_pm.steps": 0},
      "golden_pm: steps is 0, and a pairwise judge has to learn",
    ),
    (
      {"proxy_pm.kind": "pointwise", "proxy_pm.steps": 0},
      "proxy_pm: steps is 0, so init must be a reward model's directory, not 'sft'",
    ),
    ({"proxy_pm.steps": -1}, "proxy_pm: steps is -1; give at least 1"),
  ],
)
def test_what_could_not_judge_is_refused_in_one_line(overrides, message):
  assert refused(studies.nano(**overrides)).startswith(message)


def test_a_language_model_cannot_judge_without_training(tmp_path):
  shutil.copytree(FIXTURES / "decoders" / "llama", tmp_path / "lm")
  message = refused(imported(tmp_path / "lm"))
  assert message.startswith(f"{tmp_path / 'lm'}: no reward model, as its architectures")


def test_a_reward_model_is_no_policy_and_no_pairwise_judge(checkpoint):
  for role in ("policy", "golden_policy", "sft"):
    keys = {f"{role}.init": str(checkpoint)} | (
      {f"{role}.size": "llama_nano"} if role != "sft" else {"proxy_pm.size": "nano"}
    )
    message = refused(studies.nano(**keys))
    assert message.startswith(f"{checkpoint}: a reward model, which predicts no tokens")
  keys = {"golden_pm.kind": "pairwise", "golden_pm.steps": 4}
  message = refused(imported(checkpoint, **keys))
  assert re.search("a reward model, .* set kind='pointwise'", message)


def test_a_head_of_two_labels_is_refused_before_anything_runs(checkpoint, tmp_path):
  from safetensors.numpy import load_file, save_file

  shutil.copytree(checkpoint, tmp_path / "two")
  weights = tmp_path / "two" / huggingface.WEIGHTS
  tensors = load_file(weights)
  save_file(tensors | {"score.weight": np.zeros((2, 48), "f")}, weights)
  assert refused(imported(tmp_path / "two")).startswith(
    f"{tmp_path / 'two'}: its head gives 2 numbers (num_labels), but a reward model"
  )
