"""What is saved of the environment that bits depend on."""

import re

import jax
from jax.sharding import NamedSharding, PartitionSpec
import jaxlib
import numpy as np

from alignment.runtime import environment, sharding


def test_packages_and_mesh_are_part_of_the_environment():
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES)
  on_mesh = NamedSharding(mesh, PartitionSpec())
  state_on_mesh = {"step": np.int32(0), "x": jax.device_put(np.zeros(2), on_mesh)}
  wanted = {"x": jax.ShapeDtypeStruct((2,), np.float32, sharding=on_mesh)}
  saved, present = map(environment.environment, (state_on_mesh, wanted))
  assert saved == present and saved["mesh"] == dict.fromkeys(sharding.AXES, 1)
  assert saved["jaxlib"] == jaxlib.__version__
  assert environment.environment(np.zeros(2))["mesh"] is None


def test_changes_are_named_with_what_was():
  saved = environment.environment(np.zeros(2))
  assert list(environment.changes(saved, np.zeros(2))) == []
  cores = saved["cores"]
  assert list(environment.changes(saved | {"cores": 99}, np.zeros(2))) == [
    f"cores {cores}, was 99"
  ]


def test_version_and_commit_are_those_of_the_checkout():
  code = environment.code()
  assert re.fullmatch(r"[0-9a-f]{40}", code["commit"] or "0" * 40)
  assert (
    code["version"] and environment.environment(np.zeros(2)).items() >= code.items()
  )
