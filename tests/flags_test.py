"""Options give the values that are meant, or one line that names what is wrong."""

import importlib
from pathlib import Path

from absl import flags as absl_flags
from absl.testing import flagsaver
import pytest

from alignment import flags
from alignment.study import schema
from alignment.types import UserError

ROOT = Path(__file__).parents[1]
NANO = f"--config={ROOT}/tests/studies.py"


def parsed(*words: str):
  with flagsaver.flagsaver():
    flags.parse_flags(["main", *words])
    return flags.configuration()


@pytest.mark.parametrize(
  "option, expected",
  [
    ("policy.beta=0.5", 0.5),
    ("policy.beta=1", 1.0),
    ("policy.steps=12", 12),
    ("policy.record=True", True),
    ("policy.record=false", False),
    ("policy.size=micro", "micro"),
    ("data.path=a=b c.jsonl", "a=b c.jsonl"),
    ("vocab.path=", ""),
    ("evaluation.best_of=(2,8,32)", (2, 8, 32)),
    ("evaluation.best_of=[2]", (2,)),
    ("evaluation.best_of=4", (4,)),
    ("evaluation.best_of=()", ()),
    ("figures=figure_01", ("figure_01",)),
    ("sample.prompts=Why, though?", ("Why, though?",)),
    ("sample.prompts=('a', 'b')", ("a", "b")),
    ("policy.loss_options={'label_smoothing': 0.1}", {"label_smoothing": 0.1}),
    ("policy.loss_options.label_smoothing=0.1", 0.1),  # a section of free keys
    ("data.language.num_words=12", 12),
    ("runs.online.beta=(0.1, 0.3)", (0.1, 0.3)),
    ("runs={'online': {'beta': (0.1,)}}", {"online": {"beta": (0.1,)}}),
  ],
)
def test_a_value_is_of_its_keys_kind(option, expected):
  config = parsed(NANO, f"--config.{option}")
  value = config[option.partition("=")[0]]
  value = value.to_dict() if isinstance(expected, dict) else value
  assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
  "options, message",
  [
    (["policy.bta=1"], "'policy.bta' is no key of the configuration; all are in "
     "alignment/study/schema.py"),
    (["policy.beta.x=1"], "'policy.beta.x' is no key"),
    (["lock=1"], "'lock' is no key"),
    (["=1"], "'' is no key"),
    (["policy.steps=many"], "--config.policy.steps=many: give a whole number"),
    (["policy.steps=1.5"], "policy.steps=1.5: give a whole number"),
    (["policy.steps"], "policy.steps=: give a whole number"),
    (["policy.beta=nan"], "policy.beta is nan; give a number"),
    (["policy.record=2"], "policy.record=2: give True or False"),
    (["evaluation.best_of=(2"], r"best_of=\(2: give a tuple"),
    (["evaluation.best_of=('a',)"], "an element of evaluation.best_of is 'a'; give"),
    (["policy.loss_options=3"], "loss_options=3: give a dict of names and values"),
    (["policy.loss_options={1: 2}"], "loss_options has a key that is no text"),
    (["policy.loss_options={1: 2, 'a': 3}"], "loss_options has a key that is no text"),
    (["policy.loss_options={'a.b': 2}"], "give a dict"),
    (["mesh={'data': 1}"], "the configuration has no 'mesh.fsdp': update what alignm"),
    (["model.dtype.x=1"], "'model.dtype.x' is no key"),
    (["runs={'online': 3}"], "runs.online is 3; give a dict"),
    (["runs={'online': ({}, 3)}"], "runs.online is 3; give a dict"),
    (["datasets={'a': 3}"], "datasets.a is 3; give a tuple"),
    (["sft.by_size={'nano': 3}"], "sft.by_size.nano is 3; give a dict"),
    (["sft.by_size={'nano': {'steps': None}}"], "sft.by_size.nano.steps is None; give"),
    (["mesh.data=1", "mesh={}"], "--config.mesh overwrites --config.mesh.*: put"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named(options, message):
  with pytest.raises(UserError, match=message):
    parsed(NANO, *(f"--config.{option}" for option in options))


def test_options_come_in_several_forms(tmp_path):
  """One word or two, one dash or two, any order, from a file; the last one counts."""
  file = tmp_path / "options"
  file.write_text(f"# comment\n{NANO}:short\n--config.policy.beta=0.7\n")
  config = parsed(
    "--config.policy.steps", "3", f"--flagfile={file}", "-config.policy.seed=1",
    "--config.policy.steps=4",
  )  # fmt: skip
  assert (config.policy.steps, config.policy.beta, config.policy.seed) == (4, 0.7, 1)
  assert set(config.runs) == {"online", "replay"}  # of the document's argument


def test_flags_that_do_not_exist():
  for words, message in (
    (["--stagess=data"], "options: Unknown command line flag 'stagess'"),
    (["--flagfile=nowhere"], "options: .*nowhere"),
    (["--flagfile=" + str(Path(__file__).parent)], "options: .*irectory"),
    (["--" + "x" * 5000], "options: "),
    (["--config=a\0b"], r"a\\x00b: embedded null byte"),
    ([f"--config={__file__}"], "flags_test.py: AttributeError: .* 'get_config'$"),
    ([], "--config is required"),
    (["--config=nowhere.py"], "nowhere.py: No such file or directory"),
    ([f"--config={ROOT}"], "Is a directory"),
    (["--config=gs://bucket/study.py"], "gs: No such file"),
  ):
    with pytest.raises(UserError, match=message):
      parsed(*words)


@pytest.mark.parametrize("module", ["alignment.main", "launch.compile_check"])
def test_help_says_how_keys_are_set(module):
  importlib.import_module(module)
  text = absl_flags.FLAGS.module_help(module)
  assert "--config.KEY=VALUE" in text and schema.FILE in text.replace("\n    ", "")


def test_a_configuration_cannot_get_further_keys():
  config = parsed(NANO)
  with pytest.raises(AttributeError):
    config.policy.bta = 1


def test_home_is_expanded_wherever_a_path_is_asked_for(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "study.py").write_text((ROOT / "configs" / "quickstart.py").read_text())
  keys = "data.path data.data_dir vocab.path export.directory sft.init policy.init"
  config = parsed(
    "--config=~/study.py", *(f"--config.{key}=~/a/{{size}}" for key in keys.split()),
    "--config.sft.data=({'path': '~/b'}, {'name': '~'})",
    "--config.runs={'online': {'init': ('~/c', './~d')}}",
    "--config.sft.by_size.nano={'init': '~'}",
  )  # fmt: skip
  assert {config[key] for key in keys.split()} == {f"{tmp_path}/a/{{size}}"}
  assert config.golden_pm.init == "sft"
  assert config.sft.data == ({"path": f"{tmp_path}/b"}, {"name": "~"})
  assert config.runs.online.init == (f"{tmp_path}/c", "./~d")
  assert config.sft.by_size.nano.init == str(tmp_path)
  with pytest.raises(UserError, match="--config.vocab.path: '~nobody_here/a' begins w"):
    parsed(NANO, "--config.vocab.path=~nobody_here/a")
