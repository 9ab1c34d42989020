"""Every program on meshes of 8 devices, against one device.

Run by runtime/sharding_test.py in a process of its own, where 8 virtual devices exist.
"""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import evaluation, optim, rollout, sampling, train_step
from alignment.core.pointwise import PointwiseJudge
from alignment.models import decoder, flash, lora, registry, t5
from alignment.models.protocol import without_base
from alignment.models.reward import RewardModel
from alignment.runtime import sharding
from alignment.types import UserError
from tests import tiny

ROWS = 8
KEY = jax.random.key(11)
ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
# d_model, d_ff, vocabulary and inner width differ: a layout swapped would not divide.
CFG = dataclasses.replace(
  tiny.CFG, d_model=24, d_ff=40, encoder_layers=1, decoder_layers=2, scan_layers=True
)
MODEL = t5.T5(CFG)
JUDGE = dataclasses.replace(
  tiny.JUDGE, model=t5.T5(dataclasses.replace(CFG, live_ids=0))
)
REWARD = RewardModel(MODEL)
DECODERS = {name: decoder.Decoder(cfg) for name, cfg in tiny.DECODERS.items()}
LLAMA = DECODERS["llama"]
READER = decoder.Decoder(dataclasses.replace(LLAMA.cfg, live_ids=0))
MODELS = {"ipo": MODEL, "sft": MODEL, "pm": JUDGE.model, "rm": REWARD} | DECODERS
OBJECTIVES = {
  "ipo": train_step.PolicyObjective(MODEL, "ipo"),
  "sft": train_step.SupervisedObjective(MODEL),
  "pm": train_step.PreferenceObjective(JUDGE),
  "rm": train_step.RewardObjective(PointwiseJudge(REWARD)),
} | {name: train_step.PolicyObjective(m, "ipo") for name, m in DECODERS.items()}
# A large epsilon: where a gradient is but rounding, Adam would make much of it.
OPTIMIZERS = {
  "ipo": optim.Optimizer("adafactor", clip_norm=1.0),
  "sft": optim.Optimizer("adamw", epsilon=1e-3, weight_decay=0.01),
  "pm": optim.Optimizer("adamw", epsilon=1e-3),
  "rm": optim.Optimizer("adafactor"),
} | dict.fromkeys(DECODERS, optim.Optimizer("adamw", epsilon=1e-3))


SHAPES = [(2, 2, 2), (8, 1, 1), (2, 4, 1), (1, 2, 4)]
# What is compared in every run of the tests; the others are slow. A tensor axis of 4
# does not divide llama's 2 key heads.
ALWAYS = {("ipo", (1, 2, 4)), ("llama", (1, 2, 4))}
ALWAYS |= {(name, (2, 2, 2)) for name in ("ipo", "pm", "rm")}


@pytest.fixture
def mesh(request):
  assert jax.device_count() == 8
  return sharding.make_mesh(*request.param)


on_meshes = pytest.mark.parametrize("mesh", SHAPES, ids=str, indirect=True)
on_meshes_mostly_slow = pytest.mark.parametrize(
  "mesh",
  [SHAPES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[1:])],
  ids=str,
  indirect=True,
)


@functools.cache
def host_batch():
  """Ragged rows of unequal weights, one of them dropped."""
  weights = np.array([1, 2, 0, 1, 1, 0.5, 1, 1], np.float32)
  return tiny.batch(ROWS).replace(weights_B=weights)


def rules(model, mesh, decoding=False):
  return model.layout_rules(mesh.shape["tensor"], decoding)


def put(params, mesh, model=MODEL):
  layout = sharding.shardings(params, mesh, rules(model, mesh))
  return jax.device_put(params, layout)


def start(name):
  """Parameters on the host."""
  params = tiny.params(0, MODELS[name].cfg)
  if name == "rm":
    head = jax.device_get(REWARD.init_head(jax.random.key(1)))
    return REWARD.without_head(params) | head
  return params


def new_state(name, mesh):
  """As training makes it (`TrainedModel.train`)."""
  init = lambda p: train_step.init_state(p, OPTIMIZERS[name])  # noqa: E731
  model = MODELS[name]
  params = put(start(name), mesh, model)
  abstract = jax.eval_shape(init, params)
  layout = train_step.state_shardings(abstract, mesh, rules(model, mesh))
  return jax.jit(init, out_shardings=layout)(params)


def run_steps(name, mesh):
  """Two steps: the state, both metrics, and how often the step was compiled."""
  microbatches = 2 if mesh.shape["data"] == 2 else 1  # and 1 on one device
  step = train_step.compiled(
    OBJECTIVES[name],
    OPTIMIZERS[name],
    microbatches,
    mesh,
    rules(MODELS[name], mesh),
    MODELS[name],
  )
  state, metrics = new_state(name, mesh), []
  batch = sharding.put_batch(host_batch(), mesh)
  for beta in 0.1, 0.2:
    state, m = step(state, batch, train_step.hyper(1e-2, 2, beta=beta))
    metrics.append(sharding.fetch(m))
  return state, metrics, step._cache_size()


@functools.cache
def on_one_device(name):
  state, metrics, compilations = run_steps(name, ONE)
  assert compilations == 1
  return sharding.fetch(state), metrics


def test_parameters_travel_and_activations_stay():
  """Each device keeps its rows: what is gathered or summed is never a whole batch's."""
  mesh = sharding.make_mesh(1, 8, 1)
  step = train_step.compiled(
    OBJECTIVES["ipo"], OPTIMIZERS["ipo"], 1, mesh, t5.RULES, MODEL
  )
  state = train_step.abstract_state(MODEL, OPTIMIZERS["ipo"], mesh, t5.RULES)
  batch = sharding.put_batch(host_batch(), mesh)
  text = step.lower(state, batch, train_step.hyper(1e-2)).compile().as_text()
  moved = re.findall(r" (?:f32|bf16)\[([\d,]+)\]\S* all-(?:gather|reduce)", text)
  shapes = {tuple(map(int, shape.split(","))) for shape in moved}
  assert (CFG.d_model, CFG.d_ff) in shapes  # a kernel, whole for one product
  assert not [s for s in shapes if len(s) > 2 and s[0] == ROWS]


@pytest.mark.parametrize(
  "mesh, name",
  [
    pytest.param(
      s, n, marks=() if (n, s) in ALWAYS else pytest.mark.slow, id=f"{n}-{s}"
    )
    for n, s in itertools.product(OBJECTIVES, SHAPES)
  ],
  indirect=["mesh"],
)
def test_train_steps_equal_those_of_one_device(mesh, name):
  state, metrics, compilations = run_steps(name, mesh)
  expected, expected_metrics = on_one_device(name)
  assert compilations == 1, "the state did not keep its layout"
  for ours, theirs in zip(metrics, expected_metrics, strict=True):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs
    )
  ours = sharding.fetch(state.params)
  for (path, a), b, before in zip(
    jax.tree_util.tree_flatten_with_path(ours)[0],
    jax.tree.leaves(expected.params),
    jax.tree.leaves(start(name)),
    strict=True,
  ):
    # (A preference model's one decoder step leaves self-attention's queries alone.)
    moved = np.linalg.norm(b - before)
    assert np.linalg.norm(a - b) <= 1e-3 * moved, sharding.path_name(path)


@pytest.mark.parametrize("mesh", SHAPES[:1], ids=str, indirect=True)
def test_adapters_train_as_on_one_device(mesh):
  """Born sharded like the kernels that they change; the base stays where it is."""
  model = lora.wrap(MODEL, lora.LoraSettings(rank=3, alpha=6.0))
  objective = train_step.PolicyObjective(model, "ipo")
  optimizer = optim.Optimizer("adamw", epsilon=1e-3)
  rules, ends = model.layout_rules(mesh.shape["tensor"]), []
  for where in ONE, mesh:
    step = train_step.compiled(objective, optimizer, 1, where, rules, model)
    init = lambda key: without_base(model.init(key))  # noqa: E731
    trained = sharding.init_sharded(init, KEY, mesh=where, rules=rules)
    state = train_step.compiled_init(model, optimizer, where, rules)(trained)
    batch = sharding.put_batch(host_batch(), where)
    fixed = train_step.Fixed(base=put(tiny.params(0, CFG), where))
    for _ in range(2):
      state, _ = step(state, batch, train_step.hyper(1e-2, beta=0.1), fixed)
    assert step._cache_size() == 1, "the state did not keep its layout"
    ends.append(sharding.fetch(state.params))
  layout = state.params["lora"]["decoder"]["layers"]["mlp"]
  assert tuple(layout["up"]["a"].sharding.spec) == (None, "fsdp", None)
  assert tuple(layout["up"]["b"].sharding.spec) == (None, None, "tensor")
  assert tuple(layout["down"]["a"].sharding.spec) == (None, "tensor", None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *ends)


@on_meshes
def test_states_are_born_sharded(mesh):
  """No leaf that a rule shards lies whole on a device, moments included."""
  # The two optimizers; every family's rules.
  for name in ("ipo", "sft", *(DECODERS if mesh.shape["tensor"] == 4 else ())):
    state = new_state(name, mesh)
    spread = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
      where = sharding.path_name(path)
      if leaf.ndim < 2 or leaf.size <= leaf.shape[0]:
        continue  # scales, counts and placeholders
      spec = sharding.spec_for(where, leaf.shape, mesh, rules(MODELS[name], mesh))
      parts = np.prod([mesh.shape[a] for a in spec if a is not None], dtype=int)
      assert leaf.addressable_shards[0].data.size * parts == leaf.size, where
      spread += parts > 1 and where.startswith("opt_state")
    used = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
    assert (spread > 5) == used, name


@on_meshes
def test_factored_moments_lie_like_the_dimensions_they_keep(mesh):
  cfg = dataclasses.replace(CFG, d_model=128, d_ff=256, vocab_rows=160)
  init = lambda k: train_step.init_state(t5.T5(cfg).init(k), OPTIMIZERS["ipo"])  # noqa: E731
  abstract = jax.eval_shape(init, KEY)
  layout = train_step.state_shardings(abstract, mesh, t5.RULES)
  found = {}
  for (path, leaf), place in zip(
    jax.tree_util.tree_flatten_with_path(abstract.opt_state)[0],
    jax.tree.leaves(layout.opt_state),
    strict=True,
  ):
    name = sharding.path_name(path)
    for ending in "embedding", "encoder/layers/mlp/up/kernel":
      if name.endswith(ending):
        found[ending, leaf.shape] = place.spec
  spec = jax.sharding.PartitionSpec
  assert found["embedding", (160,)] == spec("tensor")
  assert found["embedding", (128,)] == spec("fsdp")
  assert found["encoder/layers/mlp/up/kernel", (1, 128)] == spec(None, "fsdp")
  assert found["encoder/layers/mlp/up/kernel", (1, 256)] == spec(None, "tensor")


@functools.cache
def roll(mesh, model, samples=2):
  """By a judge of the other family."""
  judge = dataclasses.replace(JUDGE, model=JUDGE.model if model == LLAMA else READER)
  decoding = sharding.Layout(mesh, rules(model, mesh, decoding=True))
  sampler = sampling.Sampler(model, (tiny.EOS,), decoding=decoding)
  roller = rollout.Roller(sampler, model, judge, samples, "best_worst")
  policy_params, reference, judge_params = (
    put(tiny.params(seed, m.cfg), mesh, m)
    for seed, m in ((0, model), (1, model), (2, judge.model))
  )
  prompts = sharding.put_batch(host_batch(), mesh)
  compiled = rollout.compiled(roller, mesh)
  return compiled(policy_params, reference, judge_params, prompts, KEY)


@on_meshes_mostly_slow
@pytest.mark.parametrize("model", [MODEL, LLAMA], ids=["t5", "llama"])
def test_rollouts_equal_those_of_one_device(mesh, model):
  ours, theirs = roll(mesh, model), roll(ONE, model)
  rows = sharding.batch_sharding(mesh)
  for leaf in jax.tree.leaves(ours):
    assert leaf.sharding.is_equivalent_to(rows, leaf.ndim)
  ours, theirs = sharding.fetch((ours, theirs))
  a, b = ours.batch.responses_BxNxT, theirs.batch.responses_BxNxT
  # The judge may order a pair the other way round only where it is all but indifferent.
  differs = (a != b).any((1, 2))
  flipped = differs & (a[:, 0] == b[:, 1]).all(-1) & (a[:, 1] == b[:, 0]).all(-1)
  assert np.all(theirs.margins_B[flipped] < 1e-5)
  assert np.all(~differs | flipped), "of 80 draws here, none is a near-tie"
  for name in "margins_B", "logps_BxN", "ended_BxN":
    x, y = (getattr(r, name)[~differs] for r in (ours, theirs))
    np.testing.assert_allclose(x, y, atol=1e-4)
  x, y = (r.batch.ref_logps_BxN[~differs] for r in (ours, theirs))
  np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", SHAPES[:1], ids=str, indirect=True)
def test_rollouts_of_four_samples_equal_those_of_one_device(mesh):
  ours, theirs = sharding.fetch((roll(mesh, MODEL, 4), roll(ONE, MODEL, 4)))
  for a, b in ((ours, theirs), (theirs, ours)):
    np.testing.assert_array_equal(a.scores_BxN[:, 0], a.scores_BxN.max(axis=1))
    tokens_Bx4xT = np.concatenate([a.batch.responses_BxNxT, a.unused_BxUxT], axis=1)
    others_Bx4xT = np.concatenate([b.batch.responses_BxNxT, b.unused_BxUxT], axis=1)
    for row, other in zip(tokens_Bx4xT.tolist(), others_Bx4xT.tolist(), strict=True):
      assert sorted(row) == sorted(other)  # ranks may differ where scores hardly do
    x, y = (np.sort(r.scores_BxN, axis=1) for r in (a, b))
    np.testing.assert_allclose(x, y, atol=1e-4)


COLLECTIVE = re.compile(
  r"= \w+\[([\d,]*)\]\S* "
  r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def token_loop_collectives(mesh, rules):
  """(kind, elements of its result) of every collective in the compiled token loop."""
  sampler = sampling.Sampler(MODEL, (tiny.EOS,), decoding=sharding.Layout(mesh, rules))
  sample = functools.partial(
    sampling.generate, sampler, num_samples=2, max_length=tiny.T
  )
  arguments = put(tiny.params(0, CFG), mesh), sharding.put_batch(host_batch(), mesh)
  with sharding.on(mesh):
    lowered = jax.jit(sample, compiler_options=tiny.FAST).lower(*arguments, KEY)
  program = lowered.compile()
  computations, name = {}, None
  for line in program.as_text().splitlines():
    if start := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
      name = start[1]
      computations[name] = []
    elif name:
      computations[name].append(line)
  lines = [line for body in computations.values() for line in body]
  loops = "\n".join(line for line in lines if " while(" in line)
  inside = set(re.findall(r"(?:condition|body)=%?([\w.-]+)", loops))
  assert inside
  found, todo = [], sorted(inside)
  while todo:
    for line in computations[todo.pop()]:
      called = re.findall(r"(?:calls|to_apply|body)=%?([\w.-]+)", line)
      todo += set(called) - inside
      inside.update(called)
      if collective := COLLECTIVE.search(line):
        sizes = [int(size) for size in collective[1].split(",") if size]
        found.append((collective[2], int(np.prod(sizes, dtype=int))))
  return found


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=str, indirect=True)
def test_no_parameter_moves_inside_the_token_loop(mesh):
  """Over fsdp alone nothing does, but for one bit: whether all rows have ended."""
  layer = tiny.params(0, CFG)["decoder"]["layers"]
  smallest = layer["self_attention"]["query"]["kernel"][0].size
  found = token_loop_collectives(mesh, t5.DECODE_RULES)
  assert ("all-reduce", 1) in found
  if mesh.shape["tensor"] == 1:
    assert found == [("all-reduce", 1)]
  assert all(size < smallest / mesh.shape["tensor"] for _, size in found)
  as_trained = token_loop_collectives(mesh, t5.RULES)
  assert len(as_trained) > len(found), "the layout makes no difference"


@on_meshes_mostly_slow
def test_evaluations_equal_those_of_one_device(mesh):
  ours, theirs = evaluate(mesh), evaluate(ONE)
  np.testing.assert_array_equal(ours[1]["tokens"], theirs[1]["tokens"])
  assert ours[0] == pytest.approx(theirs[0], rel=1e-4, abs=1e-4)


@functools.cache
def evaluate(mesh):
  prompts = tiny.batch(11)  # does not divide: the last batch is filled up
  contest = evaluation.Contest(
    judge=JUDGE,
    judge_params=put(tiny.params(2, JUDGE.model.cfg), mesh),
    proxy=JUDGE,
    proxy_params=put(tiny.params(3, JUDGE.model.cfg), mesh),
    prompts=prompts,
    opponent=(prompts.responses_BxNxT[:, 0], prompts.lengths_BxN[:, 0]),
    start=(prompts.responses_BxNxT[:, 1], prompts.lengths_BxN[:, 1]),
    utility=None,
    batch_size=8,
    mesh=mesh,
  )
  evaluator = evaluation.PolicyEvaluation(
    contest=contest,
    sampler=sampling.Sampler(MODEL, (tiny.EOS,)),
    reference=MODEL,
    reference_params=put(tiny.params(1, CFG), mesh),
    pairs=tiny.batch(9, seed=4),
    kl_prompts=6,
    key=KEY,
  )
  return evaluator(put(tiny.params(0, CFG), mesh))


def test_a_dimension_that_does_not_divide_is_an_error_with_its_name():
  odd = jax.eval_shape(t5.T5(dataclasses.replace(CFG, vocab_rows=21)).init, KEY)
  mesh = sharding.make_mesh(2, 2, 2)
  with pytest.raises(
    UserError, match=r"'embedding' \(21, 24\): dimension 21 .*'tensor'"
  ):
    sharding.shardings(odd, mesh, t5.RULES)


def test_a_mesh_may_leave_one_size_open_but_must_cover_all_devices():
  assert dict(sharding.make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  for shape in (2, 2, 1), (-1, 3, 1), (-1, -1, 2), (16, 1, 1), (-1, 16, 1), (0, 8, 1):
    with pytest.raises(UserError, match="does not cover 8 devices"):
      sharding.make_mesh(*shape)


def test_rows_lie_over_data_and_fsdp():
  mesh = sharding.make_mesh(2, 2, 2)
  x = sharding.put_batch({"x": np.arange(24).reshape(8, 3)}, mesh)["x"]
  assert {s.data.shape for s in x.addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(sharding.fetch(x), np.arange(24).reshape(8, 3))
  assert jnp.sum(x) == 276


@pytest.mark.parametrize("mesh", [(2, 1, 4)], ids=str, indirect=True)
def test_a_kernel_of_attention_has_its_rows_and_heads_on_each_device(mesh):
  """Also where two heads of keys are fewer than devices that share them."""
  cfg = registry.config("gemma2_nano", score_cap=3.0, window=3)
  rng = np.random.default_rng(0)
  B, H, G, K, S, N, T = 4, 2, 2, 16, 5, 2, 4  # noqa: N806
  shapes = (B, H, N, G, T, K), (B, H, N, K, T), (B, H, N, T, K), (B, H, K, S)
  arrays = [
    rng.normal(size=shape).astype(np.float32) for shape in (*shapes, (B, H, S, K))
  ]
  seen_B = np.array([0, 2, 5, 3], np.int32)

  def attend(query, keys, values, prompt_keys, prompt_values, seen_B):
    own, prompt = (keys, values), (prompt_keys, prompt_values)
    mixed = flash.attend(cfg, query, own, prompt, seen_B, kind=1)
    return (mixed**2).sum(), mixed

  outputs = []
  for where in (ONE, mesh):
    inputs = sharding.put_batch((*arrays, seen_B), where)
    with sharding.on(where):
      both = jax.grad(attend, argnums=range(5), has_aux=True)
      outputs.append(sharding.fetch(jax.jit(both)(*inputs)))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *outputs)
