"""Invariants of decoders; decoder_files_test.py compares them with transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import decoder, layers, registry, sizes, stacks
from alignment.models.decoder_config import FAMILIES, DecoderConfig
from alignment.models.protocol import Model
from alignment.models.rope import Rope
from alignment.runtime import sharding
from alignment.types import UserError
from tests import tiny

B, N, S, T, V = 2, 3, 7, 5, 40
LENGTHS_B = np.array([S, 3])
PROMPTS_BxS = np.random.default_rng(1).integers(0, V, (B, S))
RESPONSES_BxNxT = np.random.default_rng(2).integers(0, V, (B, N, T))
INPUTS = (PROMPTS_BxS, LENGTHS_B, RESPONSES_BxNxT)

NANO = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
        "gemma3_text": "gemma3", "gpt_neox": "pythia"}  # fmt: skip


def small(family: str, **overrides) -> DecoderConfig:
  """Two layers of a family, in odd shapes; windows that these sequences leave."""
  shape = {
    "d_model": 24, "d_ff": 20, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 10, "vocab_rows": V, "max_positions": 64,
  }  # fmt: skip
  if family.startswith("gemma"):
    shape |= {"local": (True, False), "window": 3}
  return registry.config(f"{NANO[family]}_nano", **shape | overrides)


# Everything at once: two kinds of layers, shared heads, norms before, inside and after.
CFG = small("gemma3_text", score_cap=3.0, logit_cap=4.0, local_rope=Rope(20.0))
SCAN = dataclasses.replace(CFG, scan_layers=True)
MODEL = decoder.Decoder(CFG)


@functools.cache
def random_params(cfg=CFG):
  """Parameters of about unit gain; norms and biases too: a 1.0 could go unread."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32)

  listed = decoder.Decoder(dataclasses.replace(cfg, scan_layers=False))
  params = jax.tree.map(draw, jax.eval_shape(listed.init, jax.random.key(0)))
  if cfg.scan_layers:
    params["layers"] = jax.tree.map(lambda *leaf: np.stack(leaf), *params["layers"])
  return params


def teacher_forced(model, params, prompts_BxS, lengths_B, responses_BxNxT):
  context = model.prepare(params, prompts_BxS, lengths_B)
  return model.logits(params, model.hidden(params, context, responses_BxNxT))


forward = jax.jit(teacher_forced, static_argnums=0, compiler_options=tiny.FAST)
close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def decode(model, params, prompts_BxS, lengths_B, responses_BxNxT):
  """The logits of `forward`, one token at a time from the cache."""
  params = model.for_decoding(params)
  context = model.prepare(params, prompts_BxS, lengths_B, for_decoding=True)
  num_prompts, num_responses, length = responses_BxNxT.shape
  cache = model.init_cache(params, context, num_responses, length + 2)

  def step(carry, inputs):
    cache, last_BxN = carry
    position, token_BxN = inputs
    logits, cache = model.decode_step(params, context, cache, last_BxN, position)
    return (cache, token_BxN), logits

  start = jnp.broadcast_to(context.start_B[:, None], (num_prompts, num_responses))
  inputs = jnp.arange(length), jnp.moveaxis(jnp.asarray(responses_BxNxT), 2, 0)
  _, logits = jax.lax.scan(step, (cache, start), inputs)
  return jnp.moveaxis(logits, 0, 2)


@functools.cache
def reference():
  """Logits of the plain model, BxNxTxV: float32, layers as a list."""
  return forward(MODEL, random_params(), *INPUTS)


@pytest.mark.parametrize("cfg", [CFG, SCAN], ids=["list", "scan"])
def test_cached_decoding_is_teacher_forcing(cfg):
  close(decode(decoder.Decoder(cfg), random_params(cfg), *INPUTS), reference())


def test_a_response_alone_is_as_beside_others():
  for n in range(N):
    one = forward(
      MODEL, random_params(), PROMPTS_BxS, LENGTHS_B, RESPONSES_BxNxT[:, n : n + 1]
    )
    close(one[:, 0], reference()[:, n])


def test_a_batch_of_one():
  for b in range(B):
    alone = PROMPTS_BxS[b : b + 1, : LENGTHS_B[b]], LENGTHS_B[b : b + 1]
    logits = forward(MODEL, random_params(), *alone, RESPONSES_BxNxT[b : b + 1])
    close(logits[0], reference()[b])


def test_where_the_prompt_ends_changes_nothing():
  """What is a prompt's end for one is a response's beginning for another."""
  prompt_1xS, response = PROMPTS_BxS[:1], RESPONSES_BxNxT[:1, :1]
  moved = np.concatenate([prompt_1xS[:, None, -2:], response], axis=2)
  shorter = prompt_1xS, np.array([S - 2])
  logits = forward(MODEL, random_params(), *shorter, moved)
  close(logits[0, 0, 2:], reference()[0, 0])


@pytest.mark.parametrize("filler", [0, 5])
def test_padding_changes_nothing(filler):
  pad = functools.partial(np.pad, constant_values=filler)
  logits = forward(
    MODEL,
    random_params(),
    pad(PROMPTS_BxS, ((0, 0), (0, 4))),
    LENGTHS_B,
    pad(RESPONSES_BxNxT, ((0, 0), (0, 0), (0, 3))),
  )
  close(logits[:, :, :T], reference())


def test_what_pads_a_prompt_is_not_read():
  prompts_BxS = PROMPTS_BxS.copy()
  prompts_BxS[1, 3:] = 11
  logits = forward(MODEL, random_params(), prompts_BxS, LENGTHS_B, RESPONSES_BxNxT)
  np.testing.assert_array_equal(logits, reference())


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_what_influences_what(local):
  """By gradient: no token is used twice, so its embedding's gradient tells."""
  window = 3
  cfg = small("qwen3", num_layers=1, local=(local,), window=window, tied=False)
  model, params, length = decoder.Decoder(cfg), random_params(cfg), 5  # of S = 7
  rng = np.random.default_rng(3)
  ids = rng.permutation(V)
  prompt_S, response_T = ids[:S], ids[S : S + T]
  direction_V = rng.normal(size=V)

  def outputs(embedding_VxD):
    inputs = prompt_S[None], jnp.array([length]), jnp.asarray(response_T)[None, None]
    changed = {**params, "embedding": embedding_VxD}
    return teacher_forced(model, changed, *inputs)[0, 0] @ direction_V

  jacobian = jax.jit(jax.jacrev(outputs), compiler_options=tiny.FAST)
  seen_TxV = np.abs(jax.device_get(jacobian(params["embedding"]))).max(axis=-1)
  sequence = np.concatenate([prompt_S[:length], response_T])
  # Token t is predicted from all before it, or from as many as the window holds.
  position, query = np.arange(length + T), length - 1 + np.arange(T)[:, None]
  wanted = (position <= query) & (position > query - window if local else True)
  np.testing.assert_array_equal(seen_TxV[:, sequence] > 1e-6, wanted)
  assert (seen_TxV[:, sequence][~wanted] == 0).all()
  assert (seen_TxV[:, prompt_S[length:]] == 0).all()


def test_dead_ids_have_probability_zero():
  model = decoder.Decoder(dataclasses.replace(CFG, live_ids=30, dead_ids=(4, 17)))
  live = np.setdiff1d(np.arange(30), (4, 17))
  for function in (forward, decode):
    logits = function(model, random_params(), *INPUTS)
    probs = jax.nn.softmax(logits, axis=-1)
    assert (np.delete(np.asarray(probs), live, axis=-1) == 0).all()
    close(logits[..., live], reference()[..., live])


def loss_and_gradients(model, params):
  def loss(params):
    logits = teacher_forced(model, params, *INPUTS)
    logps = jax.nn.log_softmax(logits)
    logps = jnp.take_along_axis(logps, RESPONSES_BxNxT[..., None], -1)
    return -logps.mean(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


quick_gradients = jax.jit(
  loss_and_gradients, static_argnums=0, compiler_options=tiny.FAST
)


@functools.cache
def reference_gradients():
  """The plain model's ((loss, logits), gradients), as numpy."""
  return jax.device_get(quick_gradients(MODEL, random_params()))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_and_remat_are_the_unrolled_model(remat):
  (loss, _), gradients = reference_gradients()
  model = decoder.Decoder(dataclasses.replace(SCAN, remat=remat))
  (scan_loss, _), scan_gradients = jax.device_get(
    quick_gradients(model, random_params(SCAN))
  )
  close(scan_loss, loss)
  listed = decoder.with_layers_as_list(scan_gradients, SCAN)
  jax.tree.map(close, listed, gradients)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert (leaf != 0).any(), f"no gradient reaches {path}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_step_of_every_family(family):
  """XLA:CPU refuses some products of bfloat16, and only when they run."""
  cfg = small(family, num_layers=1, dtype="bfloat16")
  params = random_params(cfg)
  outputs = jax.device_get(quick_gradients(decoder.Decoder(cfg), params))
  for leaf in jax.tree.leaves(outputs):
    assert leaf.dtype == np.float32
    assert np.isfinite(leaf).all()


def test_bfloat16_is_close_to_float32():
  (_, exact_logits), exact = reference_gradients()
  model = decoder.Decoder(dataclasses.replace(SCAN, dtype="bfloat16"))
  (_, logits), rounded = jax.device_get(quick_gradients(model, random_params(SCAN)))
  error = np.abs(logits - exact_logits)
  assert 0 < error.mean() < 0.05 and error.max() < 0.3  # logits have std 1
  rounded = decoder.with_layers_as_list(rounded, SCAN)
  for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
    assert np.linalg.norm(a - b) < 0.15 * np.linalg.norm(b)


def test_decoding_in_bfloat16():
  model = decoder.Decoder(dataclasses.replace(CFG, dtype="bfloat16"))
  error = np.abs(decode(model, random_params(), *INPUTS) - reference())
  assert 0 < error.mean() < 0.05 and error.max() < 0.3  # logits have std 1


@pytest.mark.parametrize(
  "dtype, precision", [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")]
)
def test_float32_is_not_left_to_a_platforms_default(dtype, precision):
  """Which is bfloat16 products on TPUs, and TF32 on GPUs."""
  model = decoder.Decoder(dataclasses.replace(CFG, dtype=dtype))
  traced = jax.make_jaxpr(functools.partial(loss_and_gradients, model))
  program = str(traced(random_params()))
  asked = program.count(f"precision=(Precision.{precision}, Precision.{precision})")
  assert asked == program.count("dot_general[") > 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_of_a_head_that_is_a_table(dtype):
  rng = np.random.default_rng(4)
  # Numbers of bfloat16, so that both dtypes multiply the same ones.
  x, table, g = (
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(jnp.float32)
    for shape in ((2, 3, 5), (7, 5), (2, 3, 7))
  )

  def value_and_vjp(product, x):
    y, vjp = jax.vjp(product, x, table)
    return y, *vjp(g)

  ours = jax.jit(value_and_vjp, static_argnums=0)(layers.project_onto, x.astype(dtype))
  plain = value_and_vjp(lambda x, table: x @ table.T, x)
  assert [leaf.dtype for leaf in ours] == [jnp.float32, dtype, jnp.float32]
  tolerances = (1e-5, 1e-5 if dtype == "float32" else 2**-8, 1e-5)
  for a, b, rtol in zip(ours, plain, tolerances, strict=True):
    close(a.astype(jnp.float32), b, rtol=rtol)


def test_llama_3_frequencies():
  """Of the published scaling: fast channels as they were, slow ones 8 times slower."""
  rope = Rope(500_000.0, "llama3", factor=8.0)
  plain = Rope(500_000.0).frequencies(128).astype(np.float64)
  scaled = rope.frequencies(128)
  wavelengths = 2 * np.pi / plain
  fast, slow = wavelengths < 8192 / 4, wavelengths > 8192 / 1
  np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
  np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
  between = ~fast & ~slow
  assert between.sum() >= 5
  assert (scaled[between] < plain[between]).all()
  assert (scaled[between] > plain[between] / 8).all()


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "gemma3_text"])
def test_initialisation(family):
  cfg = small(family, d_model=64, d_ff=96)
  scan = dataclasses.replace(cfg, scan_layers=True)
  key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster

  def both(key):
    return decoder.Decoder(cfg).init(key), decoder.Decoder(scan).init(key)

  # Without the fusion emitters the two round differently.
  options = {"xla_backend_optimization_level": 0}
  params, stacked = jax.device_get(jax.jit(both, compiler_options=options)(key))
  listed = decoder.with_layers_as_list(stacked, scan)
  jax.tree.map(np.testing.assert_array_equal, listed, params)
  logits = forward(decoder.Decoder(cfg), params, *INPUTS)
  assert 0.5 < np.std(logits) < 2
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    assert leaf.dtype == np.float32
    assert (leaf.ndim == 2) == (path[-1].key in ("kernel", "embedding"))


# As published for the checkpoints of these names.
COUNTS = {
  "smollm2_135m": 134_515_008,
  "smollm2_360m": 361_821_120,
  "smollm2_1_7b": 1_711_376_384,
  "llama_3_2_1b": 1_235_814_400,
  "llama_3_2_3b": 3_212_749_824,
  "llama_3_1_8b": 8_030_261_248,
  "llama_3_1_70b": 70_553_706_496,
  "qwen2_5_0_5b": 494_032_768,
  "qwen2_5_1_5b": 1_543_714_304,
  "qwen2_5_3b": 3_085_938_688,
  "qwen2_5_7b": 7_615_616_512,
  "qwen2_5_14b": 14_770_033_664,
  "qwen2_5_32b": 32_763_876_352,
  "qwen2_5_72b": 72_706_203_648,
  "qwen3_0_6b": 596_049_920,
  "qwen3_1_7b": 1_720_574_976,
  "qwen3_4b": 4_022_468_096,
  "qwen3_8b": 8_190_735_360,
  "qwen3_14b": 14_768_307_200,
  "qwen3_32b": 32_762_123_264,
  "gemma2_2b": 2_614_341_888,
  "gemma2_9b": 9_241_705_984,
  "gemma2_27b": 27_227_128_320,
  "gemma3_270m": 268_098_176,
  "gemma3_1b": 999_885_952,
  "pythia_70m": 70_426_624,
  "pythia_160m": 162_322_944,
  "pythia_410m": 405_334_016,
  "pythia_1b": 1_011_781_632,
  "pythia_1_4b": 1_414_647_808,
  "pythia_2_8b": 2_775_208_960,
  "pythia_6_9b": 6_857_302_016,
  "pythia_12b": 11_846_072_320,
}


def shapes_of(cfg):
  return jax.eval_shape(registry.model(cfg).init, jax.random.key(0))


def test_sizes():
  small_ones = {
    f"{name}_{size}"
    for name in NANO.values()
    for size in ("nano", "micro", "milli", "tiny")
  }
  assert set(sizes.DECODERS) == set(COUNTS) | small_ones | {"llama_pico"}
  for name, count in COUNTS.items():
    cfg = registry.config(name)
    one, two = (
      sum(leaf.size for leaf in jax.tree.leaves(shapes_of(shorter)))
      for shorter in (dataclasses.replace(cfg, num_layers=n) for n in (1, 2))
    )
    assert one + (two - one) * (cfg.num_layers - 1) == count, name


def test_choices_that_do_not_exist():
  with pytest.raises(UserError, match="model.size 'huge' is unknown; choose from nano"):
    registry.config("huge")
  for key in ("dtype", "remat", "attention"):
    with pytest.raises(UserError, match=f"model.{key} is 'other'; use "):
      registry.config("llama_nano", **{key: "other"})


@pytest.mark.parametrize("family", ["t5", *FAMILIES])
def test_every_family_is_a_model_and_can_be_laid_out(family):
  cfg = registry.config("nano" if family == "t5" else f"{NANO[family]}_nano")
  model = registry.model(cfg)
  assert isinstance(model, Model) and hash(model) == hash(registry.model(cfg))
  params = jax.tree_util.tree_leaves_with_path(shapes_of(cfg))
  heads = cfg.num_heads
  mesh = jax.sharding.AbstractMesh((1, 2, heads), sharding.AXES)
  for decoding in (False, True):
    rules = model.layout_rules(heads, decoding)
    specs = [
      sharding.spec_for(sharding.path_name(path), (96,) * leaf.ndim, mesh, rules)
      for path, leaf in params
    ]
    assert any("fsdp" in str(spec) for spec in specs) != decoding
    assert any("tensor" in str(spec) for spec in specs)
  with pytest.raises(UserError, match=f"{heads} attention heads are not divisible by"):
    model.layout_rules(heads + 1)


def test_few_heads_of_keys_are_not_split():
  model = registry.model(registry.config("gemma3_1b"))
  for tensor, axis in ((1, "tensor"), (4, None)):
    rules = dict(model.layout_rules(tensor))
    assert rules[r"(key|value)/kernel$"] == ("fsdp", axis)
    assert rules[r"(query|gate|up)/kernel$"] == ("fsdp", "tensor")


def matmul_flops(function, *args) -> int:
  """Of a traced function's products, counted from its equations."""
  total = 0
  for equation in jax.make_jaxpr(function)(*args).eqns:
    inner = [equation]
    while inner:
      eqn = inner.pop()
      for value in eqn.params.values():
        if hasattr(value, "jaxpr"):
          inner += value.jaxpr.eqns
        elif hasattr(value, "eqns"):
          inner += value.eqns
      if eqn.primitive.name == "dot_general":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        depth = int(np.prod([shape[i] for i in contracting]))
        total += 2 * depth * int(np.prod(eqn.outvars[0].aval.shape))
  return total


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
def test_counted_operations_are_those_of_the_program(family):
  cfg = small(family)
  model, params = decoder.Decoder(cfg), shapes_of(cfg)
  traced = matmul_flops(functools.partial(teacher_forced, model), params, *INPUTS)
  assert traced == B * model.costs(S, N, T).flops


def test_costs_scale_as_they_should():
  cfg = registry.config("llama_3_1_8b", dtype="bfloat16", remat="full")
  model = registry.model(cfg)
  whole, part = model.costs(1024, 2, 256), model.costs(1024, 2, 256, tensor=8)
  assert part.flops == whole.flops
  for field in ("scores", "logits", "cache", "kernels"):
    assert getattr(part, field) == getattr(whole, field) / 8
  assert whole.cache == 32 * (1024 + 512) * 8 * 128 * 2 * 2
  assert whole.logits == 512 * 128256
  plain = registry.model(dataclasses.replace(cfg, remat="none"))
  assert plain.costs(1024, 2, 256).saved > 3 * whole.saved


def test_fold_gives_each_layer_its_kind_and_extra():
  layers_ = [{"w": jnp.float32(i)} for i in range(4)]
  kinds, extra = (0, 1, 0, 1), [jnp.float32(10 * i) for i in range(4)]

  def body(kind, carry, params, extra):
    return carry + params["w"] + 100 * kind, extra + params["w"]

  for remat in stacks.REMAT:
    listed = stacks.fold(body, 0.0, layers_, extra, kinds, remat)
    stacked = stacks.fold(
      body, 0.0, stacks.stack_layers(layers_), jnp.stack(extra), kinds, remat
    )
    assert listed[0] == stacked[0] == 206
    np.testing.assert_array_equal(np.stack(listed[1]), stacked[1])
