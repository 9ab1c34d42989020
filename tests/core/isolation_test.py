"""Data order and draws depend on nothing but their keys: not on devices, nor on others.

What floating point allows to be exact is compared as bits here; training on other
layouts, which is not, within 1e-4 in sharding_test.py.
"""

import os
import subprocess
import sys

import pytest

from tests.endurance import soak

PROGRAM = """
import hashlib
import jax
import numpy as np
from alignment.core import rollout, sampling
from alignment.data import order
from alignment.models import t5
from alignment.runtime import sharding
from tests import tiny

def show(name, *arrays):
  content = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(arrays))
  print(name, hashlib.sha256(content).hexdigest(), flush=True)

mesh, key = sharding.make_mesh(), jax.random.key(5)
rows = sharding.batch_sharding(mesh)
print("devices", jax.device_count())
show("order", *(order.index_for(step, 24, 100, seed=3) for step in range(10)))
ids = jax.device_put(np.arange(100, 124, dtype=np.int32), rows)
draw = jax.jit(sampling.uniforms, static_argnums=(2, 3), out_shardings=rows)
show("draws", draw(key, ids, 2, 16))
coins = jax.jit(rollout.second_first, out_shardings=rows)
show("coins", coins(jax.device_put(np.zeros(24, np.float32), rows), key, ids))
init = sharding.init_sharded(
  tiny.POLICY.init, key, mesh=mesh, rules=t5.RULES
)
show("initial parameters", init)
"""


@pytest.fixture(scope="module")
def alone():
  return draws(devices=1)


def draws(devices: int) -> list[str]:
  flags = f"--xla_force_host_platform_device_count={devices}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  command = [sys.executable, "-c", PROGRAM]
  done = subprocess.run(
    command, cwd=soak.ROOT, env=environment, capture_output=True, text=True, check=True
  )
  first, *rest = done.stdout.splitlines()
  assert first == f"devices {devices}"
  assert len(rest) == 4
  return rest


def test_order_draws_and_initialisation_do_not_depend_on_devices(alone):
  assert draws(devices=8) == alone


def test_nor_on_what_else_runs(alone):
  busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
  try:
    assert draws(devices=1) == alone
  finally:
    busy.kill()
    busy.wait()
