"""LoRA in a study: what its artefacts hold, share, and give to others."""

import json

import jax
import numpy as np
import pytest

from alignment.models import huggingface, registry
from alignment.models.huggingface import peft
from alignment.models.lora import LORA
from alignment.models.protocol import BASE
from alignment.runtime.fingerprints import fingerprints
from alignment.study import estimate, recipes
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")

LEARNERS = ("golden_pm", "proxy_pm", "policy", "golden_policy")
ADAMW = {"name": "adamw"}


def config(rank=2, roles=("golden_pm", "golden_policy"), **overrides):
  """The nano study, in which some roles train adapters of SFT."""
  c = studies.nano()
  for name in roles:
    c[name].update({"init": "sft", "learning_rate": 1e-2})
    c[name].optimizer.update(ADAMW)
    c[name].lora.update({"rank": rank, "alpha": 2.0 * rank})
  for name in ("sft", *LEARNERS):
    c[name].steps = 2
  c.golden_pm.evaluations = 1
  c.golden_policy.evaluate_at = (1.0,)
  c.update_from_flattened_dict(overrides)
  return c


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """An SFT with adapters of a checkpoint, a judge and a policy with adapters of it."""
  workdir = tmp_path_factory.mktemp("lora")
  vocabulary = studies.graph(studies.nano()).setting.vocabulary
  rows = -(-vocabulary.size // 128) * 128
  cfg = registry.config("llama_nano", vocab_rows=rows)
  params = jax.device_get(registry.model(cfg).init(jax.random.key(0)))
  huggingface.write(workdir / "checkpoint", cfg, params)
  roles = ("sft", "golden_pm", "golden_policy")
  c = config(roles=roles, **{"sft.init": str(workdir / "checkpoint")})
  for role in LEARNERS:
    c[role].update({"size": "llama_nano", "init": "sft"})
  c.sft.lora.targets = ("q_proj", "down_proj")
  studies.run(c, workdir / "study", ["golden_samples", "evaluate_world0_golden_policy"])
  return studies.graph(c), c, workdir


def test_checkpoints_hold_adapters_and_all_share_one_base(made):
  study, _, workdir = made
  where = lambda artefact: artefact.verified(workdir / "study")  # noqa: E731
  policy, judge = study.golden_policy(), study.golden_pm()
  assert policy.base is judge.base is study.sft("llama_nano")
  assert policy.base.base.kind == "import"
  for artefact in (policy, judge, policy.base):
    assert set(artefact.load_trained(where)) == {LORA}
  params, reference = policy.load_fixed(where), policy.base.load_fixed(where)
  assert set(params) == {BASE, LORA}
  for mine, theirs in zip(
    jax.tree.leaves(params[BASE]), jax.tree.leaves(reference), strict=True
  ):
    assert mine is theirs  # one copy in the process
  assert policy.base.model() == policy.model().model  # a start is read merged


def test_who_starts_from_adapters_starts_from_their_sum(made):
  study, _, workdir = made
  where = lambda artefact: artefact.verified(workdir / "study")  # noqa: E731
  sft = study.sft("llama_nano")
  sum_, base = (jax.device_get(a.load(where)) for a in (sft, sft.base))
  layers = jax.device_get(sft.load_trained(where)[LORA])["layers"]
  adapters = layers[0]["mlp"]["down"]
  change = np.matmul(adapters["a"], adapters["b"]) * 2.0
  kernels = [p["layers"][0]["mlp"]["down"]["kernel"] for p in (sum_, base)]
  np.testing.assert_allclose(kernels[0] - kernels[1], change, atol=1e-6)
  assert np.abs(change).max() > 1e-4
  up = [p["layers"][0]["mlp"]["up"]["kernel"] for p in (sum_, base)]
  np.testing.assert_array_equal(*up)  # no target
  assert fingerprints(sum_) == fingerprints(jax.device_get(sft.load_fixed(where)))


def test_evaluations_agree_with_what_was_sampled(made):
  study, _, workdir = made
  (name,) = (n for n in study.artefacts() if n.startswith("evaluate_world0_golden"))
  path = study.artefacts()[name].directory(workdir / "study") / "evaluations.jsonl"
  for record in map(json.loads, path.read_text().splitlines()):
    assert record["decode_vs_score_max_abs_diff"] < 2e-5
    assert record["kl"] > 0
    sft = study.sft("llama_nano")
    assert record["parameters"] == study.setting.parameters.count(sft.model())


def test_export_is_merged_or_only_the_adapters(made):
  study, c, workdir = made
  c = c.copy_and_resolve_references()
  for merge, name in ((True, "merged"), (False, "adapters")):
    c.export.update({"merge": merge, "directory": str(workdir / name)})
    studies.run(c, workdir / "study", ["export"])
  where = lambda artefact: artefact.verified(workdir / "study")  # noqa: E731
  policy = study.golden_policy()
  exported = huggingface.read_params(workdir / "merged", policy.model().cfg)
  jax.tree.map(
    np.testing.assert_array_equal, exported, jax.device_get(policy.load(where))
  )
  files = {path.name for path in (workdir / "adapters").iterdir()}
  assert files == {peft.CONFIG, peft.WEIGHTS}
  described = json.loads((workdir / "adapters" / peft.CONFIG).read_text())
  assert (described["r"], described["lora_alpha"]) == (2, 4.0)
  assert "q_proj" in described["target_modules"]
  assert described["base_model_name_or_path"] is None  # the study's own SFT
  c.export.update({"model": "sft_llama_nano", "directory": str(workdir / "sft")})
  studies.run(c, workdir / "study", ["export"])
  described = json.loads((workdir / "sft" / peft.CONFIG).read_text())
  assert described["base_model_name_or_path"] == str(workdir / "checkpoint")
  assert described["target_modules"] == ["q_proj", "down_proj"]


def test_without_adapters_there_is_nothing_new():
  """Neither in what determines an artefact's name nor in what it reads."""
  plain = studies.graph(studies.nano())
  for artefact in plain.models().values():
    assert "lora" not in json.dumps(artefact.settings())
    assert artefact.base is None
  ranks = [studies.graph(config(rank)).golden_policy().key for rank in (0, 2, 4)]
  assert len(set(ranks)) == 3
  same = studies.nano(**{"policy.lora.targets": ("q",)})  # of none
  assert [a.key for a in studies.graph(same).policies().values()] == [
    a.key for a in plain.policies().values()
  ]


def test_a_sweep_over_ranks_shares_all_but_the_policies():
  c = studies.nano(**{"policy.lora.alpha": 4.0, "policy.lora.rank": 2})
  c.runs = {"offline": {"method": ("offline",), "lora": ({}, {"rank": 4})}}
  runs = recipes.runs(c)
  assert [run.recipe.lora.rank for run in runs.values()] == [2, 4]
  assert {run.recipe.lora.alpha for run in runs.values()} == {4.0}
  first, second = studies.graph(c).policies().values()
  assert first.base is second.base and first.pairs is second.pairs


def test_a_replayed_run_has_the_adapters_of_the_run_that_it_replays():
  c = studies.nano(**{"policy.lora.rank": 2})
  recipe = recipes.PolicyRecipe.of(c.policy)
  c.policy.lora.rank = 0
  assert recipes.stream_of(c, recipe).lora == recipe.lora


def test_programs_count_the_base_once_and_no_moments_for_it():
  """As shapes: what the compile check and the fit tables add up."""
  full, lora = (
    {p.name: p for p in studies.graph(config(rank)).golden_policy().programs()}
    | {p.name: p for p in studies.graph(config(rank)).golden_pm().programs()}
    for rank in (0, 2)
  )
  bytes_ = studies.graph(config(0)).sft("nano").abstract_fixed()
  base = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(bytes_))
  step = "golden_pm step, nano"
  assert full[step].argument_bytes > 3 * base
  assert base < lora[step].argument_bytes < 1.6 * base
  assert estimate.flops(lora[step]) == estimate.flops(full[step]) * 2 / 3
  rolled = next(name for name in full if name.startswith("rollout"))
  # Policy, reference and judge; with adapters the base of each of the two roles.
  assert full[rolled].argument_bytes > 3 * base
  assert 2 * base < lora[rolled].argument_bytes < 2.8 * base


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"policy.lora.rank": -2}, "lora.rank is -2"),
    ({"policy.lora.alpha": 8.0}, "lora.alpha is 8.0, but lora.rank is 0"),
    ({"sft.lora.rank": 2}, "sft_nano: lora.rank is 2, but random parameters"),
    (
      {"golden_pm.lora.rank": 2, "golden_pm.init": "scratch"},
      "golden_pm: lora.rank is 2, but random parameters",
    ),
    (
      {"policy.lora.rank": 2, "policy.lora.targets": ("q_proj",)},
      "lora.targets: 'q_proj' names no kernels of all layers of this model; there are",
    ),
    (
      {"runs": {"a": {"lora": ({"ranks": 2},)}}},
      "runs.a: lora has no 'ranks'; it has alpha, rank, targets",
    ),
  ],
)
def test_what_cannot_be_is_refused_before_anything_runs(overrides, message):
  with pytest.raises(UserError) as error:
    studies.graph(studies.nano(**overrides))
  assert message in str(error.value) and "\n" not in str(error.value)


def test_adapters_of_a_model_without_any_are_not_exported(made):
  _, c, workdir = made
  plain = c.copy_and_resolve_references()
  plain.golden_policy.lora.update({"rank": 0, "alpha": 0.0})
  plain.export.update({"merge": False, "directory": str(workdir / "none")})
  with pytest.raises(UserError, match="is not trained yet|has no adapters"):
    studies.run(plain, workdir / "study", ["export"])
