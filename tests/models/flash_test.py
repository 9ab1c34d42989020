"""A kernel's attention is the plain one's; here, on a CPU, the kernel is interpreted."""

import dataclasses
import functools

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

WHOLE, LOCAL = 0, 1


def on(platform: str):
  device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
  return sharding.on(
    AbstractMesh((1, 1, 1), sharding.AXES, abstract_device=device)
  )


def bfloat16(size: str, **overrides):
  return registry.config(size, dtype="bfloat16", **overrides)


@pytest.fixture
def kernel_anywhere(monkeypatch):
  monkeypatch.setattr(flash, "refusal", lambda cfg, platform: "")


# Windows and prompts of two lengths, heads that share keys, caps, norms of queries, both
# kinds of layers in a loop.
MODELS = {
  "llama": {},
  "qwen3": {"scan_layers": True},
  "gemma2": {"score_cap": 3.0, "scan_layers": True},
  "gpt_neox": {},
}


@pytest.mark.parametrize("family", MODELS)
def test_outputs_and_gradients_are_those_of_the_plain_way(family, kernel_anywhere):
  layers = 2 if family == "gemma2" else 1
  plain = small(family, num_layers=layers, **MODELS[family])
  params = random_params(plain)
  quick = jax.jit(loss_and_gradients, static_argnums=0, compiler_options=tiny.FAST)
  expected, ours = (
    quick(decoder.Decoder(cfg), params)
    for cfg in (plain, dataclasses.replace(plain, attention="flash"))
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4), ours, expected
  )
