"""Configurations: what keys they may have, what is a path, how documents are loaded."""

import pytest

from alignment import flags
from alignment.study import schema, schema_checks
from alignment.types import UserError
from tests import studies


@pytest.mark.parametrize(
  "value, like, expected",
  [
    (1, 2, True), (1.0, 2, False), (True, 2, False), (1, True, False), (None, 2, False),
    (1, 2.0, True), (float("nan"), 2.0, False), (float("inf"), 2.0, False),
    (10**400, 2.0, False), ("1", 2.0, False),
    ("", "a", True), (None, "a", False), ([], (), True), ("ab", (), False),
    ({}, schema.ConfigDict(), True), ((), schema.ConfigDict(), False),
  ],
)  # fmt: skip
def test_values_fit_their_keys(value, like, expected):
  assert schema_checks.fits(value, like) == expected


def test_a_section_that_is_assigned_whole_is_compared():
  """ConfigDict looks at neither the names nor the kinds of what is in it."""
  for section, message in (
    ({"data": 1, "fsdp": 1}, "has no 'mesh.tensor': update what alignment/study/sche"),
    ({"data": 1, "fsdp": 1, "tensor": 1, "pipe": 1}, "'mesh.pipe' is no key of the c"),
    ({"data": "1", "fsdp": 1, "tensor": 1}, "mesh.data is '1'; give a whole number"),
  ):
    c = schema.get_config()
    c.mesh = section
    with pytest.raises(UserError, match=message):
      schema_checks.check(c)
  schema_checks.check(schema.get_config())


def test_keys_that_are_of_others_may_be_added():
  c = schema.get_config()
  c.runs.mine = {"beta": (0.5,)}
  c.datasets.ours = ("sft", "sft")
  c.data.language.num_words = 24
  c.sft.by_size.nano = {"steps": 10}
  for role in (c.policy, c.golden_policy):
    role.loss_options.label_smoothing = 0.1
    role.stream.beta = 0.3
  with pytest.raises(AttributeError, match="lerning_rate"):
    c.policy.lerning_rate = 0.1
  schema_checks.check(c)


def test_a_reference_between_keys_stays_one_where_nothing_is_expanded():
  config = studies.document("tldr").get_config()
  schema.expand_paths(config)
  config.sft.init = "T5/{size}"
  assert config.golden_pm.init == "T5/{size}"


def test_a_mistake_in_a_neighbour_is_named_there(tmp_path):
  (tmp_path / "base.py").write_text("def get_config():\n  return 1 / 0\n")
  (tmp_path / "own.py").write_text(
    "from alignment.study import documents\n"
    "base = documents.load('base.py', beside=__file__)\n"
    "def get_config():\n  return base.get_config()\n"
  )
  with pytest.raises(UserError, match=r"base.py:2: ZeroDivisionError: division by"):
    flags.load(f"{tmp_path}/own.py")
  assert not list(tmp_path.glob("**/*.pyc"))
