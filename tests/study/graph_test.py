"""What feeds what, and what is made again when a key is edited; nothing is run."""

import dataclasses

import pytest

from alignment.models import huggingface, t5
from alignment.study import artefacts, recipes
from alignment.study.graph import Study
from alignment.study.recipes import PolicyRecipe
from alignment.study.setting import Setting
from alignment.study.stages.evaluations import labels_of
from tests import studies, tiny


def every(config, world: int = 0) -> list[artefacts.Artefact]:
  """All artefacts of a world."""
  study = Study(Setting.of(config, world))
  return artefacts.closure(study.artefacts().values())


def changed(**overrides) -> set[str]:
  """Names of the stages that are made again when keys are edited."""
  before, after = (
    {a.name: a.key for a in every(studies.nano(**edits))} for edits in ({}, overrides)
  )
  return {name for name in after if before.get(name) != after[name]}


RUNS = [*recipes.runs(studies.nano()), "sft", "golden_policy"]
JUDGED = {f"evaluate_world0_{name}" for name in RUNS}


@pytest.mark.parametrize(
  "overrides, expected",
  [
    ({"log_every": 1, "save_every": 1, "workers": 2, "mesh.fsdp": 1}, set()),
    ({"model.remat": "full", "notes": ("hello",), "sample.step": 3}, set()),
    ({"data.data_dir": "/elsewhere", "data.path": "/elsewhere"}, set()),
    ({"evaluation.batch_size": 8, "evaluation.require_good_judge": True}, set()),
    ({"evaluation.length_control": True}, set()),
    ({"evaluation.kl_prompts": 8}, JUDGED),
    ({"evaluation.prompts": 32}, JUDGED | {"golden_samples", "sft_samples"}),
    ({"policy.learning_rate": 1e-5},
     {"world0_online_ipo", "evaluate_world0_online_ipo"}),
    ({"golden_policy.beta": 0.7}, {"golden_policy", "golden_samples"} | JUDGED),
    ({"proxy_pm.steps": 4}, {"proxy_pm", "world0_online_ipo"} | JUDGED),
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
  named = studies.graph(studies.nano()).artefacts()
  names = {artefact.name for artefact in every(studies.nano())}
  assert names == named.keys()
  if kept >= {"sft_nano"}:
    kept = kept - {"sft_samples"}  # its prompts come with D_golden
  assert names - changed(**overrides) == kept


def test_worlds_share_nothing():
  first, second = ({a.key for a in every(studies.nano(), world)} for world in (0, 1))
  assert not first & second


def test_worlds_are_counted_without_those_left_out():
  config = studies.nano(worlds=3, first_world=4, without_worlds=(5, 9))
  assert recipes.worlds(config) == [4, 6, 7]


def test_runs_that_start_from_a_checkpoint_share_it_and_its_scores(tmp_path):
  """However they are trained: both cost a pass over the model."""
  cfg = t5.config("nano", vocab_rows=384)
  huggingface.write(tmp_path / "nano", cfg, tiny.params(0, cfg))
  study = studies.graph(studies.nano(**{"policy.init": str(tmp_path / "nano")}))
  policies = [p for name, p in study.policies().items() if "offline" in name]
  assert len({p.key for p in policies}) == 2
  for name in ("sft", "pairs"):
    assert len({p.inputs[name].key for p in policies}) == 1


def test_the_default_online_run_is_recorded_unless_it_is_a_hybrid():
  for fraction in (1.0, 0.5):
    config = studies.nano(**{"policy.on_policy_fraction": fraction})
    online = studies.graph(config).policies()["world0_online_ipo"]
    assert online.recipe.record == (fraction == 1)


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
  "series, changes, expected",
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
def test_records_say_only_what_has_a_meaning(series, changes, expected):
  recipe = dataclasses.replace(PolicyRecipe.of(studies.nano().policy), **changes)
  labels = labels_of("name", series, recipe)
  keys = ("dataset", "replay_window", "refresh_every", "on_policy_fraction")
  assert tuple(labels[key] for key in keys) == expected
