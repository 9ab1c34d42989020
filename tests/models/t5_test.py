"""Invariants of the model itself; huggingface_test.py compares it with transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import layers, t5
from alignment.types import UserError
from tests import tiny

B, N, S, T, V = 2, 3, 7, 6, 40
# Few buckets, so that these short sequences reach the logarithmic ones.
CFG = t5.config("nano", vocab_rows=V, buckets=8, max_distance=6)
SCAN = dataclasses.replace(CFG, scan_layers=True)
MODEL = t5.T5(CFG)
LENGTHS_B = np.array([S, 3])


@functools.cache
def random_params(cfg=CFG):
  """Parameters of about unit gain; norms too are random: a 1.0 could go unread."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32)

  params = jax.tree.map(draw, jax.eval_shape(MODEL.init, jax.random.key(0)))
  if cfg.scan_layers:
    for stack in params["encoder"], params["decoder"]:
      stack["layers"] = jax.tree.map(lambda *leaf: np.stack(leaf), *stack["layers"])
  return params


PROMPTS_BxS = np.random.default_rng(1).integers(2, V, (B, S))
RESPONSES_BxNxT = np.random.default_rng(2).integers(2, V, (B, N, T))


def teacher_forced(
  model, params, prompts_BxS, lengths_B, responses_BxNxT, for_decoding=False
):
  context = model.prepare(params, prompts_BxS, lengths_B, for_decoding)
  return model.logits(params, model.hidden(params, context, responses_BxNxT))


forward = jax.jit(teacher_forced, static_argnums=(0, 5), compiler_options=tiny.FAST)


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def decode(model, params, prompts_BxS, lengths_B, responses_BxNxT):
  """The logits of `forward`, one token at a time from the cache."""
  params = t5.with_layers_as_list(params, model.cfg)
  context = model.prepare(params, prompts_BxS, lengths_B, for_decoding=True)
  num_prompts, num_responses, length = responses_BxNxT.shape
  cache = model.init_cache(params, context, num_responses, length + 2)

  def step(carry, inputs):
    cache, last_BxN = carry
    position, token_BxN = inputs
    logits, cache = model.decode_step(params, context, cache, last_BxN, position)
    return (cache, token_BxN), logits

  start = jnp.full((num_prompts, num_responses), t5.PAD)
  inputs = jnp.arange(length), jnp.moveaxis(responses_BxNxT, 2, 0)
  _, logits = jax.lax.scan(step, (cache, start), inputs)
  return jnp.moveaxis(logits, 0, 2)


INPUTS = (PROMPTS_BxS, LENGTHS_B, RESPONSES_BxNxT)
close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-5)


@functools.cache
def reference():
  """Logits of the plain model, BxNxTxV: float32, layers as a list."""
  return forward(MODEL, random_params(), *INPUTS)


@pytest.mark.parametrize("cfg", [CFG, SCAN], ids=["list", "scan"])
def test_cached_decoding_is_teacher_forcing(cfg):
  close(decode(t5.T5(cfg), random_params(cfg), *INPUTS), reference())


@pytest.mark.parametrize("cfg", [CFG, SCAN], ids=["list", "scan"])
def test_precomputed_cross_attention_is_the_same(cfg):
  close(forward(t5.T5(cfg), random_params(cfg), *INPUTS, True), reference())


@functools.partial(jax.jit, compiler_options=tiny.FAST)
def by_protocol(params):
  """Teacher-forced logits, and the first ones of decoding."""
  context = MODEL.prepare(params, PROMPTS_BxS, LENGTHS_B, for_decoding=True)
  logits = MODEL.logits(params, MODEL.hidden(params, context, RESPONSES_BxNxT))
  cache = MODEL.init_cache(params, context, N, T)
  start_BxN = jnp.broadcast_to(context.start_B[:, None], (B, N))
  first, _ = MODEL.decode_step(params, context, cache, start_BxN, jnp.int32(0))
  return logits, first


def test_what_all_families_have_in_common():
  logits, first = by_protocol(random_params())
  close(logits, reference())
  close(first, reference()[:, :, 0])


def test_costs():
  """As derived by hand for T5 1.1 small, 128 tokens and two responses of 64."""
  model = t5.T5(t5.config("t5_1_1_small", dtype="bfloat16", remat="full"))
  D, F, H, V, S_, NT, T_ = 512, 1024, 384, 32128, 128, 128, 64
  encoder = S_ * 8 * (8 * D * H + 6 * D * F + 4 * S_ * H)
  decoder = NT * (12 * D * H + 6 * D * F + 4 * T_ * H + 4 * S_ * H) + S_ * 4 * D * H
  costs = model.costs(S_, 2, T_)
  assert costs.flops == encoder + 8 * decoder + NT * 2 * D * V
  assert costs.cache == 8 * (S_ + NT) * H * 2 * 2
  assert costs.saved == 8 * (S_ + NT) * D * 2
  assert costs.logits == NT * V
  assert model.costs(S_, 2, T_, tensor=2).scores == costs.scores / 2 == 3 * S_ * S_


def test_responses_together_are_responses_one_by_one():
  for n in range(N):
    one = forward(
      MODEL, random_params(), PROMPTS_BxS, LENGTHS_B, RESPONSES_BxNxT[:, n : n + 1]
    )
    close(one[:, 0], reference()[:, n])


def test_rows_do_not_see_each_other():
  lengths_B = np.array([LENGTHS_B[1], 2])
  prompts_BxS, responses_BxNxT = PROMPTS_BxS[::-1].copy(), RESPONSES_BxNxT[::-1].copy()
  prompts_BxS[1], responses_BxNxT[1] = 9, 8
  logits = forward(MODEL, random_params(), prompts_BxS, lengths_B, responses_BxNxT)
  close(logits[0], reference()[1])


@pytest.mark.parametrize("filler", [t5.PAD, 5])
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


def test_what_influences_what():
  """By gradient: no token is used twice, so its embedding's gradient tells."""
  rng = np.random.default_rng(3)
  ids = rng.permutation(np.arange(2, V))
  prompt_S, response_T = ids[:S], ids[S : S + T]
  length = 5  # of S = 7
  direction_D, direction_V = rng.normal(size=CFG.d_model), rng.normal(size=V)

  def outputs(embedding_VxD, params):
    params = {**params, "embedding": embedding_VxD}
    context = MODEL.prepare(params, prompt_S[None], jnp.array([length]))
    response_1x1xT = jnp.asarray(response_T)[None, None]
    logits = MODEL.logits(params, MODEL.hidden(params, context, response_1x1xT))
    return context.encoded_BxSxD[0] @ direction_D, logits[0, 0] @ direction_V

  jacobian = jax.jit(jax.jacrev(outputs), compiler_options=tiny.FAST)
  params = random_params()
  found = jax.device_get(jacobian(params["embedding"], params))
  encoder_SxV, decoder_TxV = (np.abs(j).max(axis=-1) for j in found)
  # The encoder sees the whole prompt, before and after, and none of what pads it.
  seen_SxS = encoder_SxV[:length, prompt_S]
  assert (seen_SxS[:, :length] > 1e-6).all()
  assert (seen_SxS[:, length:] == 0).all()
  # Token t is predicted from the prompt, the start and the tokens before it, exactly.
  assert (decoder_TxV[:, prompt_S[:length]] > 1e-6).all()
  assert (decoder_TxV[:, prompt_S[length:]] == 0).all()
  assert (decoder_TxV[:, t5.PAD] > 1e-6).all()
  before_TxT = np.tri(T, k=-1, dtype=bool)
  np.testing.assert_array_equal(decoder_TxV[:, response_T] > 1e-6, before_TxT)
  assert (decoder_TxV[:, response_T][~before_TxT] == 0).all()


@pytest.mark.parametrize("function", [forward, decode])
def test_dead_ids_have_probability_zero(function):
  model = t5.T5(dataclasses.replace(CFG, live_ids=30))
  logits = function(model, random_params(), *INPUTS)
  probs = jax.nn.softmax(logits, axis=-1)
  assert (probs[..., 30:] == 0).all() and (probs[..., t5.PAD] == 0).all()
  close(logits[..., 1:30], reference()[..., 1:30])


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def loss_and_gradients(model, params):
  def loss(params):
    logits = teacher_forced(model, params, *INPUTS)
    logps = jax.nn.log_softmax(logits)
    logps = jnp.take_along_axis(logps, RESPONSES_BxNxT[..., None], -1)
    return -logps.mean(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


@functools.cache
def reference_gradients():
  """The plain model's ((loss, logits), gradients), as numpy."""
  return jax.device_get(loss_and_gradients(MODEL, random_params()))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_and_remat_are_the_unrolled_model(remat):
  (loss, _), gradients = reference_gradients()
  model = t5.T5(dataclasses.replace(SCAN, remat=remat))
  found = loss_and_gradients(model, random_params(SCAN))
  (scan_loss, _), scan_gradients = jax.device_get(found)
  close(scan_loss, loss)
  jax.tree.map(close, t5.with_layers_as_list(scan_gradients, SCAN), gradients)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert (leaf != 0).any(), f"no gradient reaches {path}"


def test_list_and_stack_hold_the_same_numbers():
  listed, stacked = random_params(CFG), random_params(SCAN)
  equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  equal(t5.with_layers_stacked(listed), stacked)
  equal(t5.with_layers_as_list(stacked, SCAN), listed)
  equal(t5.with_layers_stacked(stacked), stacked)
  equal(t5.with_layers_as_list(listed, CFG), listed)


def test_bfloat16_is_close_to_float32():
  (_, exact_logits), exact = reference_gradients()
  model = t5.T5(dataclasses.replace(CFG, dtype="bfloat16"))
  (_, logits), rounded = jax.device_get(loss_and_gradients(model, random_params()))
  assert logits.dtype == np.float32
  error = np.abs(logits - exact_logits)
  assert 0 < error.max() < 0.1 and error.mean() < 0.02  # logits have std 1
  for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
    assert a.dtype == np.float32
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


def test_a_tied_head_trains_in_bfloat16():
  """XLA:CPU refuses some products of bfloat16, and only when they run."""
  cfg = dataclasses.replace(CFG, tied=True, dtype="bfloat16")
  params = {key: value for key, value in random_params().items() if key != "head"}
  (loss, _), gradients = jax.device_get(loss_and_gradients(t5.T5(cfg), params))
  for leaf in jax.tree.leaves((loss, gradients)):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
  "dtype, precision", [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")]
)
def test_float32_is_not_left_to_a_platforms_default(dtype, precision):
  """Which is bfloat16 products on TPUs, and TF32 on GPUs."""
  model = t5.T5(dataclasses.replace(CFG, dtype=dtype))
  program = jax.make_jaxpr(functools.partial(loss_and_gradients.__wrapped__, model))(
    random_params()
  )
  products = str(program).count("dot_general[")
  asked = str(program).count(
    f"precision=(Precision.{precision}, Precision.{precision})"
  )
  assert asked == products > 50


@pytest.mark.parametrize("rows", [(4,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_of_project(rows, dtype):
  rng = np.random.default_rng(4)
  # Numbers of bfloat16, so that both dtypes multiply the same ones.
  x, kernel, g = (
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(jnp.float32)
    for shape in ((*rows, 5), (5, 7), (*rows, 7))
  )

  def value_and_vjp(product, x):
    y, vjp = jax.vjp(product, x, kernel)
    return y, *vjp(g)

  y, dx, dkernel = jax.jit(value_and_vjp, static_argnums=0)(
    layers.project, x.astype(dtype)
  )
  plain_y, plain_dx, plain_dkernel = jax.jit(value_and_vjp, static_argnums=0)(
    jnp.matmul, x
  )
  assert y.dtype == jnp.float32
  close(y, plain_y)
  assert dx.dtype == dtype and dkernel.dtype == jnp.float32
  close(dkernel, plain_dkernel)
  close(dx.astype(jnp.float32), plain_dx, rtol=1e-5 if dtype == "float32" else 2**-8)


def bucket(relative: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
  """One bucket in integers: floor of a logarithm by comparing powers, no rounding."""
  offset = 0
  if bidirectional:
    buckets //= 2
    offset = buckets if relative > 0 else 0
    distance = abs(relative)
  else:
    distance = max(0, -relative)
  exact = buckets // 2
  if distance < exact:
    return offset + distance
  steps = buckets - exact  # from `exact` to `max_distance`, evenly in the logarithm
  far = exact
  while far < buckets - 1:
    passed = far + 1 - exact
    if distance**steps * exact**passed < max_distance**passed * exact**steps:
      break
    far += 1
  return offset + far


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
  "buckets, max_distance", [(32, 128), (8, 16), (8, 20), (16, 64), (4, 8), (64, 512)]
)
def test_relative_buckets(bidirectional, buckets, max_distance):
  relative = np.arange(-1100, 1101)
  rule = functools.partial(
    layers.relative_buckets,
    bidirectional=bidirectional,
    num_buckets=buckets,
    max_distance=max_distance,
  )
  wanted = [bucket(int(r), bidirectional, buckets, max_distance) for r in relative]
  np.testing.assert_array_equal(jax.jit(rule)(jnp.asarray(relative)), wanted)
  # All are in use, but for distance 0 to the right.
  assert set(wanted) >= set(range(buckets)) - {buckets // 2}


def test_initialisation():
  cfg = t5.config("tiny", vocab_rows=500, d_kv=48, encoder_layers=1)
  scan = dataclasses.replace(cfg, scan_layers=True)
  key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster

  def both(key):
    return t5.T5(cfg).init(key), t5.T5(scan).init(key)

  # Without the fusion emitters the two round differently.
  options = {"xla_backend_optimization_level": 0}
  params, stacked = jax.device_get(jax.jit(both, compiler_options=options)(key))
  listed = t5.with_layers_as_list(stacked, scan)
  jax.tree.map(np.testing.assert_array_equal, listed, params)
  d, inner = cfg.d_model, cfg.num_heads * cfg.d_kv
  stddevs = {
    "embedding": 1.0,
    "position": d**-0.5,
    "head": d**-0.5,
    "query": (d * cfg.d_kv) ** -0.5,
    "key": d**-0.5,
    "value": d**-0.5,
    "out": inner**-0.5,
    "gate": d**-0.5,
    "up": d**-0.5,
    "down": cfg.d_ff**-0.5,
  }
  seen, firsts = set(), []
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    assert leaf.dtype == np.float32
    names = [getattr(key, "key", None) for key in path]
    if names[-1] == "scale":
      assert (leaf == 1).all()
      continue
    name = names[-2] if names[-1] == "kernel" else names[-1]
    seen.add(name)
    error = 5 / (2 * leaf.size) ** 0.5  # five standard errors of a standard deviation
    np.testing.assert_allclose(leaf.std(), stddevs[name], rtol=error)
    assert abs(leaf.mean()) < 5 * stddevs[name] / leaf.size**0.5
    firsts.append(float(leaf.ravel()[0] / stddevs[name]))
  assert seen == set(stddevs)
  assert len(set(np.round(firsts, 5))) == len(firsts)  # no two tensors share a key


def test_kernels_are_2d():
  params = random_params()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key == "kernel":
      assert leaf.ndim == 2


@pytest.mark.parametrize(
  "size, count",  # as published for the checkpoints of these names
  [
    ("t5_1_1_small", 76_961_152),
    ("t5_1_1_base", 247_577_856),
    ("t5_1_1_large", 783_150_080),
    ("t5_1_1_xl", 2_849_757_184),
    ("t5_1_1_xxl", 11_135_332_352),
    ("t5_small", 60_506_624),
    ("t5_base", 222_903_552),
    ("t5_large", 737_668_096),
    ("t5_3b", 2_851_598_336),
    ("t5_11b", 11_307_321_344),
  ],
)
def test_sizes(size, count):
  def parameters(num_layers):
    cfg = t5.config(size, encoder_layers=num_layers, decoder_layers=num_layers)
    shapes = jax.eval_shape(t5.T5(cfg).init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

  one, two = parameters(1), parameters(2)
  cfg = t5.config(size)
  assert cfg.encoder_layers == cfg.decoder_layers
  assert one + (two - one) * (cfg.encoder_layers - 1) == count


def test_unknown_size():
  with pytest.raises(UserError, match="model.size 'huge' is unknown; choose from "):
    t5.config("huge")
