"""LoRA and judges: reward models, judges of their own vocabulary; what is refused."""

import json

import jax
import numpy as np
import pytest

from alignment.models import huggingface, registry
from alignment.models.huggingface import classifiers
from alignment.models.lora import LORA
from alignment.models.protocol import BASE
from alignment.study import inspect
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")

TRUTH = {"golden_pm.kind": "truth"}
ADAPTED = {"init": "sft", "learning_rate": 1e-2, "lora.rank": 2, "steps": 2}
POINTWISE = {f"proxy_pm.{key}": value for key, value in ADAPTED.items()} | {
  "proxy_pm.kind": "pointwise", "proxy_pm.evaluations": 1, "proxy_pm.warmup_steps": 0
}  # fmt: skip
BYTES = {"kind": "bytes", "response_length": 20, "context_length": 90}


def checkpoint(directory, network=registry.model, vocab_rows=128, **overrides):
  """A tiny one with a head of its own."""
  cfg = registry.config("pythia_nano", vocab_rows=vocab_rows, **overrides)
  params = jax.device_get(jax.jit(network(cfg).init)(jax.random.key(5)))
  huggingface.write(directory, cfg, params)
  return str(directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A reward model with adapters of SFT, and a policy with such that learns by RLOO."""
  workdir = tmp_path_factory.mktemp("lora_judges")
  start = checkpoint(workdir / "checkpoint")
  groups = {"loss": "rloo", "select": "all", "samples": 3, **ADAPTED}
  c = studies.nano(
    **TRUTH, **POINTWISE, **{f"policy.{key}": value for key, value in groups.items()}
  )
  for role in ("golden_pm", "proxy_pm", "policy", "golden_policy"):
    c[role].size = "pythia_nano"
  c.sft.update({"init": start, "steps": 2})
  c.policy.evaluate_at = (1.0,)
  c.runs = {"online": {}}
  study = studies.graph(c)
  studies.run(c, workdir / "study", ["world0_online_rloo"])
  return study, c, workdir


def test_a_reward_model_has_adapters_on_its_body_and_a_head_of_its_own(trained):
  study, _, workdir = trained
  where = lambda artefact: artefact.verified(workdir / "study")  # noqa: E731
  judge, sft = study.proxy_pm(), study.sft("pythia_nano")
  assert judge.base is sft
  params, start = judge.load_trained(where), sft.load_fixed(where)
  assert set(params) == {LORA, "score"}
  seed = study.setting.seed("proxy_pm")
  new = study.setting.parameters.new_trained(judge.model(), seed)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, new)
  assert all(leaf > 0 for leaf in jax.tree.leaves(moved))
  assert moved["score"]["weight"] > 1e-3
  read = judge.load_fixed(where)
  assert "head" in start and "head" not in read[BASE]
  for leaf, other in zip(
    jax.tree.leaves(read[BASE]),
    jax.tree.leaves({name: start[name] for name in read[BASE]}),
    strict=True,
  ):
    assert leaf is other  # one copy in the process


def test_a_merged_reward_model_scores_as_the_one_with_adapters(trained):
  study, _, workdir = trained
  where = lambda artefact: artefact.verified(workdir / "study")  # noqa: E731
  judge = study.proxy_pm()
  study.config.export.update(
    {"model": "proxy_pm", "directory": str(workdir / "exported")}
  )
  inspect.export(study, workdir / "study")
  cfg = judge.model().cfg
  exported = huggingface.read_reward_params(workdir / "exported", cfg)
  rng = np.random.default_rng(0)
  rows = rng.integers(1, 20, (3, 5)), np.full(3, 5), rng.integers(1, 20, (3, 2, 4))
  rewards = [
    jax.jit(model.rewards)(params, *rows, np.full((3, 2), 4))
    for model, params in (
      (judge.model(), judge.load_fixed(where)),
      (classifiers.network(cfg), exported),
    )
  ]
  np.testing.assert_allclose(*rewards, atol=1e-5)
  study.config.export.update({"merge": False, "directory": str(workdir / "none")})
  with pytest.raises(UserError, match="'proxy_pm', a reward model, the head is"):
    inspect.export(study, workdir / "study")


def test_a_policy_learns_from_groups_with_its_base_as_the_reference(trained):
  study, _, workdir = trained
  (policy,) = study.policies().values()
  log = policy.directory(workdir / "study") / "metrics.jsonl"
  rows = [json.loads(line) for line in log.read_text().splitlines()]
  assert rows and all(np.isfinite(row["kl"]) and row["score_gap"] > 0 for row in rows)
  programs = {program.name: program for program in policy.programs()}
  step = programs["policy step, rloo, pythia_nano"]
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  base = size(policy.base.abstract_fixed())
  assert base < size(step.arguments) < 1.8 * base
  assert set(step.held) == {"judge"}
  assert step.work.fixed == step.work.passes and step.work.backward == 1


def test_a_judge_on_the_host_does_not_count_the_base_twice():
  c = studies.nano(**TRUTH, **{"proxy_pm.kind": "truth", "policy.lora.rank": 2})
  policy = studies.graph(c).policies()["world0_online_ipo"]
  programs = {program.name.split(",")[0]: program for program in policy.programs()}
  samples = programs["samples of a rollout"]
  assert set(samples.arguments[0]) == {BASE, LORA}
  assert "reference" not in samples.held
  assert BASE not in programs["selection of a rollout"].held["behaviour"]
  for program in programs.values():
    program.lower()


def test_a_judge_of_its_own_vocabulary_has_adapters_of_its_checkpoint(tmp_path):
  start = checkpoint(tmp_path / "bytes", vocab_rows=384)
  own = {"init": start, "vocab": BYTES, "size": "pythia_nano", "lora.rank": 2}
  c = studies.nano(**TRUTH, **{f"proxy_pm.{key}": own[key] for key in own})
  study = studies.graph(c)
  judge = study.proxy_pm()
  assert judge.base.kind == "import" and judge.base.setting is judge.setting
  assert set(judge.abstract_fixed()) == {BASE, LORA}
  assert judge.abstract_fixed()[BASE]["embedding"].shape[0] == 384
  for program in judge.programs():
    program.lower()


def refused(**overrides):
  with pytest.raises(UserError) as error:
    studies.graph(studies.nano(**overrides))
  assert "\n" not in str(error.value)
  return str(error.value)


def test_adapters_of_what_is_not_trained_are_refused(tmp_path):
  message = "golden_pm: lora.rank is 2, but nothing of this judge is trained"
  rule = TRUTH | {"golden_pm.init": "sft", "golden_pm.lora.rank": 2}
  assert refused(**rule).startswith(message)
  directory = checkpoint(tmp_path / "reward", classifiers.network)
  keys = {"kind": "pointwise", "init": directory, "size": "pythia_nano"}
  imported = {f"golden_pm.{key}": keys[key] for key in keys} | {"golden_pm.steps": 0}
  assert refused(**imported, **{"golden_pm.lora.rank": 2}).startswith(message)


def test_adapters_of_a_reward_models_checkpoint_or_of_no_head_are_refused(tmp_path):
  keys = {"kind": "pointwise", "size": "pythia_nano", "lora.rank": 2}
  pointwise = {f"golden_pm.{key}": keys[key] for key in keys}
  reward = checkpoint(tmp_path / "reward", classifiers.network)
  message = refused(**pointwise, **{"golden_pm.init": reward})
  assert message.endswith("set kind='pointwise' and lora.rank=0")
  model = checkpoint(tmp_path / "model")
  targets = {"golden_pm.lora.targets": ("embed_out",)}
  message = refused(**pointwise, **{"golden_pm.init": model}, **targets)
  assert message.startswith("lora.targets is ('embed_out',), which names the head")
