"""A kernel's attention is the plain one's; on a CPU the kernel is interpreted."""

import dataclasses
import functools
import importlib.util
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh
import numpy as np
import pytest

from alignment.models import decoder, flash, registry
from alignment.runtime import sharding
from alignment.types import UserError
from tests import tiny
from tests.models.decoder_test import loss_and_gradients, random_params, small

ROOT = Path(__file__).parents[2]


def on(platform: str):
  device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
  return sharding.on(AbstractMesh((1, 1, 1), sharding.AXES, abstract_device=device))


def named(size: str = "qwen3_0_6b", **overrides):
  return registry.config(size, **{"dtype": "bfloat16", **overrides})


# Prompts of two lengths, heads that share keys; norms of queries, caps, windows that
# the sequences leave, and both kinds of layers in one loop.
MODELS = {
  "llama": {"num_layers": 1},
  "qwen3": {"num_layers": 1, "scan_layers": True},
  "gemma2": {"score_cap": 3.0, "scan_layers": True},
  "gpt_neox": {"num_layers": 1},
}


@pytest.mark.parametrize(
  "family",
  [pytest.param("qwen3", marks=pytest.mark.slow), "llama", "gemma2", "gpt_neox"],
)
def test_outputs_and_gradients_are_those_of_the_plain_way(family, monkeypatch):
  monkeypatch.setattr(flash, "refusal", lambda cfg, platform: "")
  plain = small(family, **MODELS[family])
  params = random_params(plain)
  quick = jax.jit(loss_and_gradients, static_argnums=0, compiler_options=tiny.FAST)
  expected, ours = (
    quick(decoder.Decoder(cfg), params)
    for cfg in (plain, dataclasses.replace(plain, attention="flash"))
  )
  close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, ours, expected)


@pytest.mark.parametrize("window", [0, 3])
def test_the_mask_is_what_each_query_sees(window):
  N, T, S, Q = 2, 4, 5, 9  # noqa: N806 - one query of padding
  seen = flash._Mask(N, T, S, Q, window).array()
  assert seen.shape == (Q, S + Q)
  for n in range(N):
    for t in range(T):
      for key in range(S + N * T):
        other, at = divmod(key - S, T)
        distance = S + t - key if key < S else t - at
        in_window = 0 <= distance < (window or 100)
        assert seen[n * T + t, key] == (in_window and (key < S or other == n))
  assert seen.any(axis=1).all()  # no softmax over nothing


@pytest.mark.parametrize("prompt", [True, False])
def test_cudnn_is_called_with_the_same_meaning(prompt):
  """No GPU is here: JAX's own computation of that call stands in for it."""
  rng = np.random.default_rng(0)
  B, A, H, S, K = 2, 4, 2, 128 if prompt else 0, 8  # noqa: N806
  query = jnp.asarray(rng.normal(size=(B, A, 128, K)), jnp.float32)
  keys, values = (
    jnp.asarray(rng.normal(size=(B, H, S + 128, K)), jnp.float32) for _ in "kv"
  )
  seen_BxS = jnp.arange(S)[None] < jnp.array([[3], [90]]) if prompt else None
  arguments = (small("llama"), flash._Mask(2, 60, S, 128, 5))
  arguments += (query, keys, values, seen_BxS)
  ours = flash._cudnn(*arguments, how="xla")
  np.testing.assert_allclose(ours, flash._splash(*arguments), atol=2e-5)


def test_auto_takes_the_kernel_where_it_is_worth_it():
  cfg = named()
  with on("tpu"):
    assert flash.is_used(cfg, 1024, 1024) and flash.is_used(cfg, 512, 1536)
    assert not flash.is_used(cfg, 1, 4096)  # a judge's answer
    assert not flash.is_used(cfg, 256, 256)
    assert not flash.is_used(named(attention="plain"), 1024, 1024)
    assert not flash.is_used(named(dtype="float32"), 1024, 1024)
    assert flash.is_used(named(attention="flash"), 1, 1)
  with on("gpu"):
    assert not flash.is_used(cfg, 1024, 1024)  # only where it is asked for
    assert flash.is_used(named(attention="flash"), 1024, 1024)
  with on("cpu"):
    assert not flash.is_used(cfg, 1024, 1024)


@pytest.mark.parametrize(
  "cfg, platform, why",
  [
    (named(), "cpu", "there is no kernel for a cpu"),
    (named(dtype="float32"), "tpu", "model.dtype is float32"),
    (named("gemma2_2b"), "gpu", "cannot cap scores, as gemma2 does"),
    (named("gemma3_1b"), "gpu", "cannot have heads of 256 channels"),
  ],
)
def test_a_kernel_that_is_not_there_is_refused(cfg, platform, why):
  registry.check_attention(cfg, platform)  # auto
  asked = dataclasses.replace(cfg, attention="flash")
  with pytest.raises(UserError, match=f"'flash', but .*{why}; use auto or plain"):
    registry.check_attention(asked, platform)


def test_t5_has_no_kernel_anywhere():
  with pytest.raises(UserError, match="'flash', but no kernel has T5's position bias"):
    registry.config("nano", attention="flash")


def test_estimates_have_no_scores_where_a_kernel_has_none():
  model = registry.model(named())
  with on("tpu"):
    kernel = model.costs(1024, 2, 256)
  plain = model.costs(1024, 2, 256)
  assert plain.scores == 16 * 1024 * 1024
  assert kernel.scores == plain.scores / 1024 * flash.TILE
  assert kernel.flops == plain.flops


COMPILE = """
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from alignment.models import flash, registry
from alignment.runtime import sharding
from launch.fit import topology

mesh = sharding.make_mesh(1, 2, 2, devices=topology.parse("v5e:2x2").devices())
cfg = registry.config("gemma2_nano", dtype="bfloat16", attention="flash")
B, H, G, K, S, N, T = 2, 2, 2, 16, 300, 2, 100
rows = sharding.batch_sharding(mesh)
own = (B, H, N, G, T, K), (B, H, N, K, T), (B, H, N, T, K)
shapes = *own, (B, H, K, S), (B, H, S, K)
arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=rows) for s in shapes]
lengths = jax.ShapeDtypeStruct((B,), jnp.int32, sharding=rows)
kind = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))

def total(q, k, v, prompt_k, prompt_v, lengths, kind):
  mixed = flash.attend(cfg, q, (k, v), (prompt_k, prompt_v), lengths, kind)
  return mixed.astype(jnp.float32).sum()

with sharding.on(mesh):
  gradients = jax.jit(jax.grad(total, argnums=range(5)))
  print(gradients.lower(*arrays, lengths, kind).compile().as_text())
"""


@pytest.mark.slow
def test_compiles_for_a_tpu_that_is_not_there():
  """Forward and backward, a window and a cap, on a mesh that splits rows and heads."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed")
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  for phase in ("fwd", "dq", "dkv"):
    assert f"splash_mha_{phase}_segmented" in result.stdout
