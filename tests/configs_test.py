"""Every config: instantiated, study into a graph, and run for a step at tiny size."""

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict
import pytest

from alignment.analysis import figures
from alignment.data import datasets
from alignment.runtime.metrics import read_jsonl
from alignment.study import artefacts, recipes, schema
from alignment.types import UserError
from tests import studies

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROLES = ("sft", "golden_pm", "proxy_pm", "policy", "golden_policy")
CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = {
  name: studies.document(name)
  for name in ("tldr", "helpfulness", "harmlessness", "chat_arena")
}
TASKS = ("toy", *PAPER)
DECODERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "pythia")
MODULES = PAPER | {
  name: studies.document(name)
  for name in (
    "hh_small", "own_model", "quickstart", "qwen3_8b", "smollm2", "smollm2_arguments",
    "study",
  )
}  # fmt: skip
OF_A_MODEL = ("own_model", "smollm2", "smollm2_arguments")  # MODEL after the colon


def config_of(name: str) -> ConfigDict:
  return MODULES[name].get_config(*(["MODEL"] if name in OF_A_MODEL else []))


tldr, study_config = MODULES["tldr"], MODULES["study"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
  rows = (
    {
      "prompt": f"What is {i}?",
      "chosen": f"It is {i}.",
      "rejected": "No " + "o" * (i % 9),
    }
    for i in range(60)
  )
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def tiny(config: ConfigDict, pairs: Path) -> ConfigDict:
  """The config's own stages, numerics, optimizers and losses, but a step of each."""
  for name in ROLES:
    role = config[name]
    role.update({"steps": 1, "batch_size": 4 * role.microbatches, "warmup_steps": 1})
    if name != "sft":
      role.size = "nano"
      if role.init == "MODEL" or "policy" in name:  # a directory that is not there
        role.init = "sft"
  config.sft.init = "scratch"
  config.golden_pm.evaluations = config.proxy_pm.evaluations = 1
  config.policy.evaluate_at = config.golden_policy.evaluate_at = (1.0,)
  if "steps" in config.runs.get("offline", {}):
    config.runs.offline.steps = (1,)
  config.workers = 1
  config.evaluation.update(
    {"prompts": 4, "kl_prompts": 4, "pairs": 4, "batch_size": 4,
     "require_good_judge": False}
  )  # fmt: skip
  config.log_every = config.save_every = 1
  if config.data.format != "toy":
    config.data.update(
      {"format": "files", "path": str(pairs), "validation_fraction": 0.3}
    )
    config.vocab.update({"kind": "bytes"})
    config.prompt_length = config.response_length = 12
    config.judge_context_length = 48
  return config


RULES = {"smollm2_truth"}  # what documents load


def test_every_config_is_tested():
  assert {path.stem for path in CONFIGS.glob("*.py")} == MODULES.keys() | RULES


@pytest.mark.parametrize("name", MODULES)
def test_opens_with_command_hardware_and_duration(name):
  text = MODULES[name].__doc__
  assert f"--config=configs/{name}.py" in text
  for word in ("ardware", "uration"):
    assert word in text, word


@pytest.mark.parametrize("name", MODULES)
def test_has_no_keys_of_its_own(name):
  """Every key is declared in schema.py; what runs there are is a study's own."""

  def keys(config):
    flat = ConfigDict({**config.to_dict(), "runs": {}, "data": {}, "datasets": {}})
    flat.sft.by_size, flat.rater.options = {}, {}
    return {
      *_paths(flat), *(f"data.{key}" for key in config.data if key != "language")
    }  # fmt: skip

  assert keys(config_of(name)) == keys(schema.get_config())


def _paths(config: ConfigDict, prefix: str = "") -> set[str]:
  found = set()
  for key, value in config.items():
    if isinstance(value, ConfigDict) and len(value):
      found |= _paths(value, f"{prefix}{key}.")
    else:
      found.add(prefix + key)
  return found


@pytest.mark.parametrize("name", MODULES)
def test_builds(name, pairs):
  config = tiny(config_of(name), pairs)
  study = studies.graph(config)
  expected = len(recipes.runs(config))
  assert len(study.policies()) == expected > 1
  methods = {a.recipe.method for a in study.policies().values()}
  assert methods == {"online", "offline"}


@pytest.mark.parametrize("family", [*DECODERS, "mamba"])
def test_the_quickstart_has_roles_of_any_family(cli, tmp_path, family):
  config = f"--config={CONFIGS}/quickstart.py:{family}"
  status, out, err = cli(config, f"--workdir={tmp_path}", "--dry_run")
  if family == "mamba":
    assert err.startswith("error: model.size 'mamba_nano' is unknown; choose from ")
    return
  assert status == 0, err
  assert f"to do  sft_{family}_nano" in out
  study = studies.graph(MODULES["quickstart"].get_config(family))
  models = [study.golden_pm(), study.proxy_pm(), *study.policies().values()]
  kinds = {artefact.model().cfg.model_type for artefact in models}
  kind = {"pythia": "gpt_neox", "gemma3": "gemma3_text"}.get(family, family)
  assert kinds == {kind}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name):
  c = PAPER[name].get_config()
  assert c.task == name
  assert (c.prompt_length, c.response_length) == (1024, 128)
  sizes = [c[role].size for role in ROLES if role != "sft"]
  assert sizes == ["t5_1_1_xxl"] + ["t5_1_1_large"] * 3
  # Pairs, of which SFT has two targets each.
  assert [c[role].batch_size for role in ROLES] == [64, 16, 32, 32, 32]
  assert [c[role].learning_rate for role in ROLES] == [3e-5, 1e-4, 1e-4, 1e-5, 1e-5]
  assert [c[role].warmup_steps for role in ROLES] == [0, 1000, 1000, 0, 0]
  assert (c.sft.steps, c.policy.steps, c.golden_policy.steps) == (4000, 4000, 4000)
  assert (c.policy.loss, c.policy.beta, c.policy.temperature) == ("ipo", 0.1, 1.0)
  runs = recipes.runs(c)
  sweep = {
    (r.learning_rate, r.beta, r.steps)
    for _, r in runs.values()
    if r.method == "offline"
  }
  assert sweep == {
    (rate, beta, steps)
    for rate in (3e-6, 1e-5, 3e-5)
    for beta in (0.1, 0.5, 1.0)
    for steps in (4000, 20_000)
  }
  assert len(runs) == len(sweep) + 1
  e = c.evaluation
  assert (e.prompts, e.kl_prompts, e.pairs) == (2048, 256, 256)
  assert e.require_good_judge
  assert c.data.name in datasets.NAMES
  assert c.data.truncate_prompt == ("right" if name == "tldr" else "left")
  assert {entry["name"] for entry in c.sft.data} == set(datasets.NAMES)
  assert c.data.name in {entry["name"] for entry in c.sft.data}


def test_figures_share_what_they_have_in_common():
  """Figure 12 needs no recorded stream, figure 5 that of the same online run."""
  keys = []
  for figure in ("figure_05", "figure_12"):
    study = studies.graph(study_config.get_config(figure))
    found = {a.name: a.key for a in artefacts.closure(study.artefacts().values())}
    keys.append(found["data_final_vs_final"])
  assert keys[0] == keys[1]


@pytest.mark.parametrize("dial", study_config.DIALS)
def test_a_dial_of_the_study_has_few_runs(dial):
  config = study_config.get_config(f"all,{dial}")
  figures, groups = study_config.DIALS[dial]
  methods = {"online", "offline", "shuffled"} if dial == "rate" else groups
  assert config.figures == figures and set(config.runs) == methods
  assert config.task == f"toy_{dial}"
  stages = studies.graph(config).artefacts()
  assert ("sft_llama_milli" in stages) == (
    dial in ("rate", "proxy")
  )  # the golden model's
  assert config.data.language.response_words == (2 if dial == "short" else 10)
  assert (len(recipes.runs(config)) == 1) == (dial == "proxy")


@pytest.mark.parametrize("task", ("toy", "tldr"))
@pytest.mark.parametrize("figure", study_config.FIGURES)
def test_every_figure_is_a_config_at_both_scales(figure, task, pairs):
  config = tiny(study_config.get_config(f"{figure},{task}"), pairs)
  assert config.figures == (figure,)
  assert set(recipes.runs(config)) <= set(
    recipes.runs(study_config.get_config(f"all,{task}"))
  )
  study = studies.graph(config)
  assert (study.classification() is not None) == (figure == "figure_06")
  series = {name for name, _ in recipes.runs(config).values()}
  needed = set(study_config.FIGURES[figure]) & {"online", "offline", "shuffled"}
  assert needed <= series


def test_the_papers_figures_are_all_there():
  numbers = {f"figure_{n:02d}" for n in (1, *range(4, 15))}
  assert numbers <= study_config.FIGURES.keys()


def test_every_drawn_figure_has_its_runs():
  assert study_config.FIGURES.keys() == figures.FIGURES.keys()


def test_the_papers_recipes_by_size():
  config = study_config.get_config("figure_10,tldr")
  online = {
    r.size: (r.batch_size, r.learning_rate)
    for series, r in recipes.runs(config).values()
    if series == "online"
  }
  assert online == {
    "t5_1_1_large": (32, 1e-5), "t5_1_1_xl": (16, 1e-5), "t5_1_1_xxl": (8, 1e-5)
  }  # fmt: skip
  assert {size: (r["batch_size"], r["learning_rate"], r["steps"])
          for size, r in config.sft.by_size.items()} == {
    "t5_1_1_xl": (8, 1e-5, 8000), "t5_1_1_xxl": (4, 1e-5, 8000)
  }  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_what_is_replayed_is_among_the_online_runs(task):
  config = study_config.get_config(f"figure_14,{task}")
  runs = recipes.runs(config).values()
  online = [r.described() for series, r in runs if series == "online"]
  replays = [r for series, r in runs if series == "shuffled"]
  assert len({r.size for r in replays}) >= 3
  for recipe in replays:
    stream = recipes.stream_of(config, recipe).described()
    assert stream | {"record": False} in online


def test_a_replay_learns_from_the_online_run_of_its_own_loss():
  config = study_config.get_config("figure_13")
  replay = dataclasses.replace(
    recipes.PolicyRecipe.of(config.policy),
    method="offline", dataset="stream", loss="dpo",
    loss_options=(("label_smoothing", 0.1),), seed=3, replay_window=4,
  )  # fmt: skip
  stream = recipes.stream_of(config, replay)
  for key in ("loss", "loss_options", "seed"):
    assert getattr(stream, key) == getattr(replay, key)
  assert (stream.method, stream.record) == ("online", True)


def test_seeds_are_not_hyper_parameters():
  config = study_config.get_config("figure_07")
  default = recipes.PolicyRecipe.of(config.policy)
  free = dataclasses.replace(default, seed=7, refresh_every=10)
  assert recipes.is_default(config, free)
  for changed in ({"beta": 2 * default.beta}, {"temperature": 0.5}, {"samples": 4}):
    other = dataclasses.replace(default, **changed)
    assert not recipes.is_default(config, other), changed


@pytest.mark.parametrize("figure", ["figure_07", "figure_08", "appendix_e1"])
@pytest.mark.parametrize("task", TASKS)
def test_every_method_has_one_run_of_default_hyper_parameters(figure, task):
  config = study_config.get_config(f"{figure},{task}")
  series = [
    s for s, r in recipes.runs(config).values() if recipes.is_default(config, r)
  ]
  assert sorted(series) == ["offline", "online", "shuffled"]


def test_a_dial_has_figures_of_its_own():
  with pytest.raises(UserError, match="'truth' has figures of its own: all,truth"):
    study_config.get_config("figure_05,truth")


@pytest.mark.parametrize("chosen", ["figure_02", "all,summaries"])
def test_unknown_figures_and_tasks_are_named(chosen):
  name = chosen.split(",")[-1]
  with pytest.raises(UserError, match=f"no (figure|task) '{name}'; there are"):
    study_config.get_config(chosen)


def test_golden_model_starts_where_sft_starts_unless_told():
  c = tldr.get_config()
  c.sft.init = "/models/{size}"
  assert (c.golden_pm.init, c.proxy_pm.init) == ("/models/{size}", "sft")
  c.golden_pm.init = "/other"
  assert (c.sft.init, c.golden_pm.init) == ("/models/{size}", "/other")


def test_tasks_share_the_sft_of_all_four(pairs):
  """The paper's one SFT: the same artefact in the same working directory."""
  keys = set()
  for module in PAPER.values():
    study = studies.graph(tiny(module.get_config(), pairs))
    keys.add(study.models()["sft_nano"].key)
    assert len(study.models()["sft_nano"].inputs) == 4
  assert len(keys) == 1


def test_a_step_of_every_stage_at_the_papers_numerics(pairs, tmp_path):
  """bfloat16, scanned and rematerialised layers, Adafactor, pooled SFT."""
  c = tiny(tldr.get_config(), pairs)
  c.runs = {"online": {"method": ("online",)}, "offline": {"method": ("offline",)}}
  study = studies.graph(c)
  evaluated = "evaluate_world0_online_ipo"
  artefacts.run([study.artefacts()[evaluated], *study.policies().values()], tmp_path)
  for name in ("sft_nano", "golden_pm", "proxy_pm", "golden_policy", *study.policies()):
    directory = study.artefacts()[name].directory(tmp_path)
    assert [row["step"] for row in read_jsonl(directory / "metrics.jsonl")] == [1]
  (row,) = read_jsonl(
    study.artefacts()[evaluated].directory(tmp_path) / "evaluations.jsonl"
  )
  assert row["step"] == 1 and abs(row["kl"]) < 0.1
