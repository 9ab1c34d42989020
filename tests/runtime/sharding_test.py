"""Layout rules; and, in a process with 8 devices, that layouts change no result."""

import os
from pathlib import Path
import subprocess
import sys

import jax
from jax.sharding import PartitionSpec
import pytest

from alignment.models import t5
from alignment.runtime import sharding
from alignment.types import UserError
from tests import quickly, tiny

MESH = jax.sharding.AbstractMesh((2, 2, 4), sharding.AXES)


@pytest.mark.parametrize(
  "marker", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_results_on_8_devices_equal_those_on_one(marker):
  """tests/multidevice/meshes.py; its own report is shown where it fails."""
  root = Path(__file__).parents[2]
  environment = (
    os.environ
    | quickly.ENVIRONMENT
    | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
  )
  command = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-m",
    marker,
  ]
  result = subprocess.run(
    [*command, "tests/multidevice/meshes.py"],
    cwd=root,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameter_of_a_t5_has_a_layout(scan):
  cfg = t5.config("nano", vocab_rows=64, scan_layers=scan, num_heads=4)
  params = jax.eval_shape(t5.T5(cfg).init, jax.random.key(0))
  layout = jax.tree.map(lambda s: s.spec, sharding.shardings(params, MESH, t5.RULES))
  assert layout["embedding"] == PartitionSpec("tensor", "fsdp")
  assert layout["head"]["kernel"] == PartitionSpec("fsdp", "tensor")
  layers = layout["decoder"]["layers"]
  layer, lead = (layers, (None,)) if scan else (layers[1], ())
  expected = {
    ("self_attention", "query"): ("fsdp", "tensor"),
    ("cross_attention", "out"): ("tensor", "fsdp"),
    ("mlp", "gate"): ("fsdp", "tensor"),
    ("mlp", "down"): ("tensor", "fsdp"),
  }
  for (part, name), axes in expected.items():
    assert layer[part][name]["kernel"] == PartitionSpec(*lead, *axes)
  assert layer["mlp_norm"]["scale"] == PartitionSpec(*lead, None)


def test_the_first_rule_that_matches_decides():
  rules = ((r"head/kernel$", ("tensor", None)), (r"kernel$", (None, "fsdp")))
  assert sharding.spec_for("head/kernel", (8, 8), MESH, rules) == PartitionSpec(
    "tensor", None
  )
  assert sharding.spec_for("x/kernel", (3, 8, 8), MESH, rules) == PartitionSpec(
    None, None, "fsdp"
  )


def test_a_parameter_without_a_rule_is_an_error_with_its_name():
  params = {"decoder": {"adapter": {"bias": jax.ShapeDtypeStruct((4,), "float32")}}}
  with pytest.raises(UserError, match=r"no layout rule matches .*decoder/adapter/bias"):
    sharding.shardings(params, MESH, t5.RULES)


def test_a_dimension_that_does_not_divide_is_an_error_with_its_name():
  params = jax.eval_shape(tiny.POLICY.init, jax.random.key(0))
  params["head"]["kernel"] = jax.ShapeDtypeStruct((16, 18), "float32")
  message = r"'head/kernel' \(16, 18\): dimension 18 .* 'tensor' of size 4"
  with pytest.raises(UserError, match=message):
    sharding.shardings(params, MESH, t5.RULES)


@pytest.mark.parametrize(
  "axes, message",
  [
    ((("fsdp", "tensor"), None), r"dimension 18 .* 'fsdpxtensor' of size 8"),
    (("rows", None), r"'head/kernel': its layout rule names {'rows'}; axes are"),
    ((None, None, "fsdp"), r"'head/kernel' \(18, 16\): its layout rule .* is too long"),
  ],
)
def test_a_rule_that_does_not_fit_is_an_error_with_the_name(axes, message):
  rules = sharding.rules([["kernel$", list(axes)]])
  with pytest.raises(UserError, match=message):
    sharding.spec_for("head/kernel", (18, 16), MESH, rules)


def test_a_dimension_may_lie_over_two_axes():
  rules = sharding.rules([["kernel$", [["fsdp", "tensor"], None]]])
  spec = sharding.spec_for("head/kernel", (16, 3), MESH, rules)
  assert spec == PartitionSpec(("fsdp", "tensor"), None)


def test_a_batch_that_does_not_divide_is_an_error():
  sharding.check_batch(8, MESH)
  with pytest.raises(UserError, match="evaluation rows 6 is not divisible .* 4 shards"):
    sharding.check_batch(6, MESH, "evaluation rows")


def test_a_mesh_that_does_not_cover_the_devices_is_an_error():
  with pytest.raises(
    UserError, match=r"mesh \(data=2, fsdp=1, tensor=1\) .* 1 devices"
  ):
    sharding.make_mesh(2)
