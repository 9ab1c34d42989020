"""What is refused before anything runs, in one line."""

import json
import re

import pytest

from alignment.core import evaluation, losses
from alignment.models import huggingface, t5
from alignment.study import documents, recipes
from alignment.types import UserError
from tests import studies, synthetic, tiny


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"model.dtype": "float16"}, "model.dtype is 'float16'; use float32 or bfloat16"),
    ({"model.remat": "some"}, "model.remat is 'some'; use none or dots or full"),
    ({"golden_pm.evaluations": 0}, "golden_pm: evaluations is 0; give at least 1"),
    ({"sft.steps": 0}, "sft_nano: steps is 0"),
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
    ({"data.language": {"care": 1}}, "data.language.care is 1; give two numbers"),
    (
      {"data.language": {"weights": (0, "1")}},
      "language.weights is (0, '1'); give two",
    ),
    ({"data.language": {"topics": 2.5}}, "language.topics is 2.5; give a whole number"),
    ({"data.language": {"spread": "high"}}, "data.language.spread is 'high'; give a n"),
    (
      {"data.language": {"prompt_words": 20}},
      "1 to num_words prompt_words, at most 16",
    ),
    ({"layout": (("(", ("tensor",)),)}, "pattern '(', which is no regular expression"),
    ({"layout": (("up", ("fsdp", "fsdp")),)}, "layout has 'fsdp' twice for 'up'"),
    ({"layout": ("foo",)}, "layout has 'foo'; its entries are (pattern, axes)"),
    ({"evaluation.stream_pairs": 1}, "evaluation.stream_pairs is 1; give at least 2"),
    ({"sft.optimizer.clip_norm": -1.0}, "optimizer.clip_norm is -1.0; give at least 0"),
    ({"evaluation.best_of": (0,)}, "evaluation.best_of has 0"),
    ({"evaluation.best_of": (2, 2)}, "evaluation.best_of has a number twice"),
    ({"evaluation.best_of": ("a",)}, "evaluation.best_of has 'a'"),
    ({"runs": {"x/y": {"beta": (0.1,)}}}, "runs.x/y: a name has letters, digits"),
    ({"datasets": {"d": (1, 2)}}, "datasets.d is (1, 2); name two models"),
    ({"datasets": {"d": ("online@inf", "sft")}}, "'inf' is no fraction of a run"),
    ({"datasets": {"a/b": ("sft", "sft")}}, "datasets.a/b: a name has letters, digits"),
    ({"policy.size": "org/nano"}, "policy: size 'org/nano': a name has letters, digit"),
  ],
)
def test_numbers_out_of_range_are_refused_before_anything_runs(overrides, message):
  with pytest.raises(UserError, match=re.escape(message)):
    studies.graph(studies.nano(**overrides))


GROUP = {"loss": ("rloo",), "select": ("all",)}


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
    ({"loss": ("rloo",)}, "mine_rloo: loss 'rloo' reads all samples of a prompt: set"),
    ({"loss": ("grpo",), "select": ("best_worst",)}, "'grpo' reads all samples"),
    ({"select": ("all",)}, "mine_ipo_selectall: loss 'ipo' reads pairs: set select to"),
    ({"samples": (3,)}, "mine_ipo_samples3: select 'two' of 3 samples: set select to"),
    ({"samples": (1,)}, "mine_ipo_samples1: samples is 1; give at least 2"),
    ({"select": ("best",)}, "select 'best' is unknown; there are two, best_worst, all"),
    ({"method": ("offline",), "samples": (4,)}, "samples has no meaning for its runs"),
    (GROUP | {"refresh_every": (2,)}, "policy as it is, but refresh_every is 2"),
    (GROUP | {"refresh_every": (0,)}, "policy as it is, but refresh_every is 0"),
    (GROUP | {"on_policy_fraction": (0.5,)}, "but on_policy_fraction is 0.5"),
    ({"method": ("offline",), "loss": ("rloo",)}, "it is, but method is 'offline'"),
    (
      {
        "method": ("offline",),
        "dataset": ("stream",),
        "stream": ({"loss": "rloo", "select": "all"},),
      },
      "mine_ipo: its stream, of select 'all', has no pairs to replay",
    ),
    ({"steps": (0,)}, "mine_ipo_steps0: steps is 0; give at least 1"),
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
    (
      {
        "method": ("offline",),
        "dataset": ("stream",),
        "stream": ({"beta": "high"},),
      },
      "policy.stream.beta is 'high'; give a number",
    ),
    (
      {
        "method": ("offline",),
        "dataset": ("stream",),
        "stream": ({"loss": "slic_hf"},),
      },
      "loss 'ipo' reads 2 responses per prompt, but its stream, of loss 'slic_hf', h",
    ),
    (GROUP | {"temperature": (0.5,)}, "needs samples of the policy as it is, but temp"),
    (
      GROUP | {"top_p": (0.9,)},
      "needs samples of the policy as it is, but top_p is 0.9",
    ),
    ({"optimizer": ({"b1": "x"},)}, "runs.mine: optimizer.b1 is 'x'; give a number"),
    ({"method": ("onlin",)}, "mine_ipo: method 'onlin' is unknown"),
    ({"loss": ("dpo",), "loss_options": ({"smooth": 0.1},)}, "dpo.*smooth"),
  ],
)
def test_bad_runs(axes, message):
  config = studies.nano()
  config.runs = {"mine": axes}
  config.datasets = {"mine": ("sft", "onlin@0.5")}
  with pytest.raises(UserError, match=message):
    studies.graph(config)


def test_labels_of_the_study_itself():
  config = studies.nano()
  config.runs = {"golden_policy": {}}
  with pytest.raises(
    UserError, match="runs.golden_policy: the study has a 'golden_pol"
  ):
    studies.graph(config)


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
    studies.run(studies.nano(**changes), tmp_path)


def test_the_main_size_is_that_of_some_run():
  config = studies.nano(**{"runs": {"online": {"size": ("micro", "milli")}}})
  with pytest.raises(UserError, match="no run has it: set it to 'micro' or 'milli', w"):
    studies.graph(config)


def test_one_checkpoint_is_not_of_two_sizes(tmp_path):
  cfg = t5.config("nano", vocab_rows=128)
  huggingface.write(tmp_path / "nano", cfg, tiny.params(0, cfg))
  (tmp_path / "micro").symlink_to(tmp_path / "nano")
  sizes = {"runs": {"online": {"size": ("nano", "micro")}}}
  with pytest.raises(
    UserError, match="nano: cannot be both nano and micro; put {size}"
  ):
    studies.graph(studies.nano(**sizes, **{"sft.init": str(tmp_path / "nano")}))
  studies.graph(studies.nano(**sizes, **{"sft.init": f"{tmp_path}/{{size}}"}))


def test_what_sft_starts_from_for_one_size_is_what_its_policies_are(tmp_path):
  cfg = t5.config("nano", vocab_rows=128, d_ff=80)
  huggingface.write(tmp_path / "own", cfg, tiny.params(0, cfg))
  config = studies.nano(**{"runs": {"online": {"size": ("nano", "micro")}}})
  config.sft.by_size = {"nano": {"init": str(tmp_path / "own")}}
  study = studies.graph(config)
  for size, d_ff in (("nano", 80), ("micro", 128)):
    policy = study.policies()[f"world0_online_ipo_size{size}"]
    assert policy.model().cfg.d_ff == study.sft(size).model().cfg.d_ff == d_ff
  config.sft.by_size = {"nano": {"init": ""}}
  with pytest.raises(UserError, match="sft.init is '': give a checkpoint's directory"):
    studies.graph(config)


def test_what_a_section_of_one_size_does_not_name_stays_as_it_was():
  config = studies.nano()
  config.sft.optimizer.update({"name": "adamw", "b2": 0.99})
  config.sft.by_size = {"nano": {"optimizer": {"clip_norm": 1.0}}}
  optimizer = recipes.sft(config, "nano").optimizer
  assert (optimizer.name, optimizer.b2, optimizer.clip_norm) == ("adamw", 0.99, 1.0)
  config.policy.optimizer.b1 = 0.5
  config.policy.stream = {"optimizer": {"clip_norm": 2.0}}
  stream = recipes.stream_of(config, recipes.PolicyRecipe.of(config.policy))
  assert (stream.optimizer.b1, stream.optimizer.clip_norm) == (0.5, 2.0)


def test_the_toy_language_is_not_pooled():
  with pytest.raises(UserError, match="sft.data pools files and TFDS data sets, not"):
    studies.graph(studies.nano(**{"sft.data": ({"num_pairs": 9},)}))


def test_unknown_key_of_pooled_data():
  config = studies.nano()
  config.sft.data = ({"nam": "chatbot_arena"},)
  with pytest.raises(UserError, match="sft.data has 'nam', which is no key of data"):
    studies.graph(config)


def test_a_column_of_ones_own_has_a_name_of_its_own(monkeypatch):
  monkeypatch.setattr(evaluation, "COLUMNS", {"win_rate": len})
  with pytest.raises(UserError, match="column 'win_rate': records have one of this"):
    studies.graph(studies.nano())


def test_a_column_of_ones_own_makes_evaluations_anew(monkeypatch, tmp_path):
  plain = studies.graph(studies.nano()).evaluations()["world0_online_ipo"]
  monkeypatch.setattr(evaluation, "COLUMNS", {"words": len})
  other = studies.graph(studies.nano()).evaluations()["world0_online_ipo"]
  assert plain.key != other.key and plain.policy.key == other.policy.key
  keys = []
  for scale in ("1", "7"):
    path = tmp_path / f"{scale}.py"
    path.write_text(f"def words(x, y, lengths):\n  return {scale} * lengths\n")
    monkeypatch.setattr(evaluation, "COLUMNS", {"words": documents.load(path).words})
    keys.append(studies.graph(studies.nano()).evaluations()["world0_online_ipo"].key)
  assert keys[0] != keys[1]  # an edited column is another


def test_an_edited_loss_of_ones_own_makes_policies_anew(monkeypatch, tmp_path):
  monkeypatch.setattr(losses.registry, "LOSSES", dict(losses.LOSSES))
  keys = []
  for power in (2, 3):
    losses.registry.LOSSES.pop("own", None)
    path = tmp_path / f"{power}.py"
    path.write_text(
      "from alignment.core.losses import pairwise, rho\n\n@pairwise()\n"
      f"def own(logps, ref_logps, beta):\n  return rho(logps, ref_logps) ** {power}\n"
    )
    documents.load(path)
    study = studies.graph(studies.nano(**{"policy.loss": "own"}))
    keys.append(study.policies()["world0_online_own"].key)
  assert keys[0] != keys[1]


def test_a_hybrid_cannot_be_the_stream_of_figure_6():
  """It is no run of the configuration: the figure alone asks for it."""
  overrides = {"policy.on_policy_fraction": 0.5, "figures": ("figure_06",)}
  with pytest.raises(UserError, match="only a run of on_policy_fraction 1 can be rec"):
    studies.graph(studies.nano(**overrides))


def test_sft_is_checked_though_no_run_names_it():
  with pytest.raises(UserError, match="sft_nano: microbatches 0 does not divide"):
    studies.graph(studies.nano(**{"sft.microbatches": 0}))
