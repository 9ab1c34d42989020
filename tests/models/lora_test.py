"""LoRA around every family: one function, merged or not, and at first the base's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import lora, registry
from alignment.models.decoder_config import FAMILIES
from alignment.models.lora import LORA, LoraSettings
from alignment.models.protocol import BASE, with_base, without_base
from alignment.runtime import sharding
from alignment.types import UserError
from tests import tiny
from tests.models import decoder_test

pytestmark = pytest.mark.usefixtures("compile_quickly")

SETTINGS = LoraSettings(rank=3, alpha=6.0)
SCANNED = ("t5", "gemma2", "gpt_neox")  # the others are lists of layers
INPUTS = decoder_test.INPUTS
NO_TENSOR = jax.sharding.AbstractMesh((2, 2, 2), sharding.AXES)


def config(family, **overrides):
  if family == "t5":
    return dataclasses.replace(tiny.CFG, vocab_rows=40, live_ids=0, **overrides)
  return decoder_test.small(family, **overrides)


def adapted(cfg, settings=SETTINGS, seed=0):
  """A model with adapters and its parameters, of which those that were 0 are not."""
  model = lora.wrap(registry.model(cfg), settings)
  params = jax.device_get(jax.jit(model.init)(jax.random.key(seed)))
  rng = np.random.default_rng(seed)
  draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
  return model, {BASE: params[BASE], LORA: jax.tree.map(draw, params[LORA])}


@pytest.mark.parametrize("family", ["t5", *FAMILIES])
def test_merged_parameters_compute_what_unmerged_ones_do(family):
  """Scored and decoded; and adapters as they are made change nothing, to the bit."""
  model, params = adapted(config(family, scan_layers=family in SCANNED))
  base, merged = params[BASE], jax.jit(model.merged)(params)
  unchanged = {BASE: base, LORA: model.init(jax.random.key(1))[LORA]}
  plain = decoder_test.forward(model.model, base, *INPUTS)
  np.testing.assert_array_equal(
    decoder_test.forward(model, unchanged, *INPUTS), plain, strict=True
  )
  logits = decoder_test.forward(model, params, *INPUTS)
  decoder_test.close(logits, decoder_test.forward(model.model, merged, *INPUTS))
  assert np.abs(np.asarray(logits) - plain).max() > 0.1
  decoder_test.close(decoder_test.decode(model, params, *INPUTS), logits)


@pytest.mark.parametrize("family", ["t5", "llama", "gpt_neox"])
def test_every_adapter_matters(family):
  """The gradient of none is zero, and that of the base is not asked for."""
  model, params = adapted(config(family, scan_layers=family in SCANNED))

  def loss(trained, base):
    logits = decoder_test.teacher_forced(model, with_base(trained, base), *INPUTS)
    return jnp.sum(jnp.sin(logits * 10))

  gradient = jax.jit(jax.grad(loss), compiler_options=tiny.FAST)
  grads = gradient(without_base(params), params[BASE])
  assert set(grads) == {LORA}
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(leaf).max() > 0, sharding.path_name(path)


def test_bfloat16_merges_in_float32_and_rounds_once():
  model, params = adapted(config("llama", dtype="bfloat16"))
  params = model.cast_for_reading(params)
  kernel = params[BASE]["layers"][0]["mlp"]["up"]["kernel"]
  a, b = (params[LORA]["layers"][0]["mlp"]["up"][name] for name in "ab")
  assert kernel.dtype == jnp.bfloat16 and a.dtype == jnp.float32
  summed = np.asarray(kernel, np.float32) + 2.0 * a.astype(np.float64) @ b
  decoding = model.for_decoding(params)["layers"][0]["mlp"]["up"]["kernel"]
  assert decoding.dtype == jnp.bfloat16
  ulp = np.abs(summed) * 2**-8
  assert (np.abs(np.asarray(decoding, np.float32) - summed) <= ulp).all()


def test_a_change_below_the_rounding_of_bfloat16_is_scored():
  model, params = adapted(config("llama", dtype="bfloat16"))
  small = jax.tree.map(lambda leaf: leaf * 1e-2, params[LORA])
  params = model.cast_for_reading({BASE: params[BASE], LORA: small})
  merged = jax.jit(model.merged)(params)
  same = jax.tree.map(lambda a, b: (a == b).mean(), merged, params[BASE])
  assert same["layers"][0]["mlp"]["up"]["kernel"] > 0.5  # most is lost by rounding
  base, logits = (
    decoder_test.forward(*which, *INPUTS)
    for which in ((model.model, params[BASE]), (model, params))
  )
  assert np.abs(np.asarray(base) - logits).max() > 0


@pytest.mark.parametrize("family", ["t5", "qwen3", "gpt_neox"])
def test_adapters_are_born_as_pefts_scanned_or_not(family):
  """A uniform in +-1/sqrt(inputs), B zero; no two alike."""
  forms = [
    jax.jit(lora.wrap(registry.model(config(family, scan_layers=scan)), SETTINGS).init)
    for scan in (False, True)
  ]
  listed, stacked = (form(jax.random.key(3))[LORA] for form in forms)
  draws = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(stacked):
    keys = [key.key for key in path]
    at = keys.index("layers") + 1
    stack = functools.reduce(lambda tree, key: tree[key], keys[:at], listed)
    for i, layer in enumerate(leaf):
      same = functools.reduce(lambda tree, key: tree[key], keys[at:], stack[i])
      np.testing.assert_array_equal(same, layer, strict=True)
      if keys[-1] == "b":
        assert not layer.any()
      else:
        bound = layer.shape[0] ** -0.5
        assert np.abs(layer).max() <= bound and np.std(layer) > 0.4 * bound
        draws.append(float(layer[0, 0]) / bound)
  assert len(set(draws)) == len(draws)


def kernels(family, *targets, **overrides):
  """The names of what has adapters, without their stacks."""
  settings = LoraSettings(2, targets=targets)
  model = lora.wrap(registry.model(config(family, **overrides)), settings)
  return {"/".join(path[path.index("layers") + 1 :]) for path in model.kernels}


def test_targets_have_the_names_of_the_checkpoints_modules():
  assert kernels("llama", "q_proj", "v_proj") == {"attention/query", "attention/value"}
  assert kernels("llama", "mlp.up_proj", scan_layers=True) == {"mlp/up"}
  assert kernels("t5", "q", "wi_0") == {
    "attention/query", "self_attention/query", "cross_attention/query", "mlp/gate"
  }  # fmt: skip
  assert kernels("t5", "EncDecAttention.v") == {"cross_attention/value"}
  assert len(kernels("qwen2", "all-linear")) == 7
  assert kernels("gpt_neox", "query_key_value") == {
    "attention/query", "attention/key", "attention/value"
  }  # fmt: skip


def test_what_files_keep_as_one_tensor_shares_an_a():
  model, params = adapted(config("gpt_neox"), LoraSettings(2, targets=("all-linear",)))
  layer = params[LORA]["layers"][0]["attention"]
  assert {name: sorted(below) for name, below in layer.items()} == {
    "query": ["a", "b"], "key": ["b"], "value": ["b"], "out": ["a", "b"]
  }  # fmt: skip
  merged = model.merged(params)["layers"][0]["attention"]["key"]["kernel"]
  change = merged - params[BASE]["layers"][0]["attention"]["key"]["kernel"]
  np.testing.assert_allclose(change, layer["query"]["a"] @ layer["key"]["b"], atol=1e-5)


@pytest.mark.parametrize(
  "family, target, names",
  [
    ("llama", "q_prj", "k_proj, o_proj, q_proj"),
    ("t5", "q_proj", "q, "),
    ("gpt_neox", "q_proj", "query_key_value"),
    ("gemma2", "lm_head", "q_proj"),  # tied: the embedding is no kernel
    ("llama", "embed_tokens", "q_proj"),
    ("llama", "layers.0.self_attn.q_proj", "of all layers"),
  ],
)
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(
  family, target, names
):
  with pytest.raises(UserError, match=f"lora.targets: '{target}' names no") as error:
    kernels(family, "all-linear", target)
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=names):
    kernels(family, target)


def test_an_untied_head_is_adapted_only_if_it_is_named():
  cfg = config("llama", tied=False)
  every = lora.wrap(registry.model(cfg), LoraSettings(2))
  assert ("head",) not in every.kernels
  named = lora.wrap(registry.model(cfg), LoraSettings(2, targets=("lm_head",)))
  assert named.kernels == (("head",),)
  assert set(named.init(jax.random.key(0))[LORA]) == {"head"}


@pytest.mark.parametrize(
  "values, message",
  [
    ({"rank": -1}, "lora.rank is -1"),
    ({"rank": 2.5}, "lora.rank is 2.5"),
    ({"alpha": 16.0}, "lora.alpha is 16.0, but lora.rank is 0"),
    ({"rank": 2, "alpha": -1.0}, "lora.alpha is -1.0"),
    ({"rank": 2, "targets": ()}, "lora.targets is ()"),
    ({"rank": 2, "targets": ("q", 3)}, "give a tuple of names"),
  ],
)
def test_settings_that_mean_nothing_are_refused(values, message):
  with pytest.raises(UserError) as error:
    LoraSettings(**values)
  assert message in str(error.value)


def test_rank_0_is_the_model_itself_and_alpha_0_the_rank():
  model = registry.model(config("llama"))
  assert lora.wrap(model, LoraSettings()) is model
  assert LoraSettings(8).scale == 1.0 and LoraSettings(8, 16.0).scale == 2.0


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", ["t5", "llama", "gpt_neox"])
def test_adapters_lie_like_the_kernels_that_they_change(family, scan):
  model = lora.wrap(registry.model(config(family, scan_layers=scan)), SETTINGS)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  layout = sharding.shardings(shapes, NO_TENSOR, model.layout_rules(2))
  base, adapters = (
    {
      sharding.path_name(path): leaf.spec
      for path, leaf in jax.tree_util.tree_leaves_with_path(layout[part])
    }
    for part in (BASE, LORA)
  )
  for name, spec in adapters.items():
    kernel = base[f"{name[:-2]}/kernel"]
    wanted = (kernel[-2], None) if name.endswith("/a") else (None, kernel[-1])
    assert tuple(spec)[-2:] == wanted, name
  assert {"fsdp", "tensor"} <= {axis for spec in adapters.values() for axis in spec}
