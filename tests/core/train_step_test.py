"""One train step: exact in its weights and microbatches, and compiled exactly once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import losses, optim, rollout, scoring, train_step
from alignment.data import pairs, sources
from alignment.models import t5
from alignment.runtime import sharding
from alignment.types import ScoredBatch, UserError
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

MESH = sharding.make_mesh()
BETA = 0.1
IPO = train_step.PolicyObjective(tiny.POLICY, "ipo")
SFT = train_step.SupervisedObjective(tiny.POLICY)
PM = train_step.PreferenceObjective(tiny.JUDGE)
OBJECTIVES = {"ipo": IPO, "sft": SFT, "pm": PM}
ADAMW = optim.Optimizer("adamw", weight_decay=0.01, clip_norm=1.0)


def params_for(name, seed=0):
  return tiny.params(seed, tiny.JUDGE.model.cfg if name == "pm" else tiny.CFG)


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(objective, params, batch, microbatches=1):
  return train_step.gradients(objective, params, batch, jnp.float32(BETA), microbatches)


@pytest.fixture(scope="module")
def batch():
  """8 ragged rows of unequal weights, two of them dropped."""
  weights = np.array([1, 1, 0, 2, 1, 0, 0.5, 1], np.float32)
  return tiny.batch(8).replace(weights_B=weights)


@pytest.fixture(scope="module")
def whole(batch):
  """Every objective's gradients of the batch as one."""
  return {n: gradients(o, params_for(n), batch) for n, o in OBJECTIVES.items()}


def assert_close(ours, theirs, relative):
  """Leaf by leaf, relative to the leaf's norm (a leaf of zeros must be zeros)."""
  for (path, a), b in zip(
    jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree.leaves(theirs), strict=True
  ):
    error = np.linalg.norm(np.asarray(a) - b)
    assert error <= relative * np.linalg.norm(b), sharding.path_name(path)


@pytest.mark.parametrize("name", ["ipo", "sft"])
@pytest.mark.parametrize("microbatches", [4])
def test_microbatches_weigh_exactly_like_one_batch(batch, whole, name, microbatches):
  """Also where a microbatch has less weight than another: row i goes to i % 4."""
  parts = batch.weights_B.reshape(-1, microbatches).sum(0)
  assert len(set(parts)) > 1
  grads, metrics = gradients(OBJECTIVES[name], params_for(name), batch, microbatches)
  assert_close(grads, whole[name][0], 1e-5)
  for key, (value, weight) in whole[name][1].items():
    np.testing.assert_allclose(metrics[key][0], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics[key][1], weight, rtol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_of_weight_0_have_no_influence_at_all(batch, whole, name):
  other = tiny.batch(8, seed=1)
  dropped = batch.weights_B == 0

  def replaced(x, y):
    return np.where(dropped.reshape((-1,) + (1,) * (x.ndim - 1)), y, x)

  changed = jax.tree.map(replaced, batch, other).replace(weights_B=batch.weights_B)
  assert np.any(changed.responses_BxNxT != batch.responses_BxNxT)
  jax.tree.map(
    np.testing.assert_array_equal,
    gradients(OBJECTIVES[name], params_for(name), changed),
    whole[name],
  )


def test_a_row_of_weight_2_counts_like_two_rows(batch, whole):
  """Which also makes the dropped rows absent, not merely inert."""
  rows = np.array([0, 1, 3, 3, 4, 7, 6, 6])
  repeated = jax.tree.map(lambda x: x[rows], batch)
  weights = np.array([1, 1, 1, 1, 1, 1, 0.25, 0.25], np.float32)
  repeated = repeated.replace(weights_B=weights)
  for name, objective in OBJECTIVES.items():
    grads, _ = gradients(objective, params_for(name), repeated)
    assert_close(grads, whole[name][0], 1e-5)


def test_a_batch_of_weight_0_has_gradient_0(batch):
  nothing = batch.replace(weights_B=np.zeros(8, np.float32))
  grads, metrics = gradients(IPO, params_for("ipo"), nothing)
  assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))
  assert float(metrics["loss"][1]) == 0


def test_policy_metrics_are_sums_and_weights(batch, whole):
  logits = tiny.logits(tiny.POLICY, params_for("ipo"), batch)
  logps = np.asarray(jax.nn.log_softmax(logits))
  picked = np.take_along_axis(logps, batch.responses_BxNxT[..., None], -1)[..., 0]
  inside = np.arange(tiny.T) < batch.lengths_BxN[..., None]
  ratios = np.where(inside, picked, 0).sum(-1) - batch.ref_logps_BxN
  rho, w = ratios[:, 0] - ratios[:, 1], batch.weights_B
  expected = {
    "loss": (BETA * rho - 0.5) ** 2,
    "rho": rho,
    "accuracy": rho > 0,
    "chosen_log_ratio": ratios[:, 0],
    "rejected_log_ratio": ratios[:, 1],
    "response_length": batch.lengths_BxN.mean(1),
  }
  metrics = whole["ipo"][1]
  assert set(metrics) == set(expected)
  for name, values in expected.items():
    np.testing.assert_allclose(metrics[name][0], (values * w).sum(), rtol=1e-4)
    assert metrics[name][1] == w.sum()

  total, tokens = whole["sft"][1]["loss"]
  per_row = -np.where(inside, picked, 0).sum((1, 2))
  np.testing.assert_allclose(total, (per_row * w).sum(), rtol=1e-5)
  assert tokens == (batch.lengths_BxN.sum(1) * w).sum()


def test_preference_metrics_are_of_both_orders(batch, whole):
  orders = jax.jit(tiny.JUDGE.both_orders)
  forward, backward = map(np.asarray, orders(params_for("pm"), batch))
  loss = np.asarray(losses.preference(forward, backward))
  metrics, w = whole["pm"][1], batch.weights_B
  np.testing.assert_allclose(metrics["loss"][0], (loss * w).sum(), rtol=1e-5)
  right = (forward > backward) + 0.5 * (forward == backward)
  np.testing.assert_allclose(metrics["accuracy"][0], (right * w).sum(), rtol=1e-6)
  assert metrics["loss"][1] == metrics["accuracy"][1] == w.sum()


def compiled(objective, model):
  return train_step.compiled(objective, ADAMW, 1, MESH, t5.RULES, model)


def new_state(params):
  """As training makes it: born with its layout, sharing no buffer."""
  init = lambda p: train_step.init_state(p, ADAMW)  # noqa: E731
  abstract = jax.eval_shape(init, params)
  layout = train_step.state_shardings(abstract, MESH, t5.RULES)
  return jax.jit(init, out_shardings=layout)(params)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_goes_down(name):
  model = tiny.JUDGE.model if name == "pm" else tiny.POLICY
  step, state = compiled(OBJECTIVES[name], model), new_state(params_for(name))
  batch = tiny.batch(8, seed=3)
  batch = batch.replace(ref_logps_BxN=np.full((8, 2), -8, np.float32))
  batch = sharding.put_batch(batch, MESH)
  hyper = train_step.hyper(3e-3, warmup_steps=2, beta=BETA)
  history = []
  for _ in range(30):
    state, metrics = step(state, batch, hyper)
    history.append(float(metrics["loss"][0] / metrics["loss"][1]))
  assert int(state.step) == 30
  assert history[-1] < 0.6 * history[0]


def dataset(batch):
  def ragged(x, n):
    rows = [row[:k] for row, k in zip(x, n, strict=True)]
    return pairs.Ragged(np.concatenate(rows), np.cumsum([0, *n], dtype=np.int64))

  responses = [
    ragged(batch.responses_BxNxT[:, i], batch.lengths_BxN[:, i]) for i in (0, 1)
  ]
  prompts = ragged(batch.prompts_BxS, batch.prompt_lengths_B)
  return pairs.PairDataset(prompts, tuple(responses))


def test_offline_and_online_run_one_compilation_whatever_the_sweep():
  """And: the state is donated, the reference is not touched."""
  step = compiled(IPO, tiny.POLICY)
  before = step._cache_size()  # 0, or 1 if another test ran the very same program
  offline = sources.OfflineSource(dataset(tiny.batch(11)), 8, tiny.S, tiny.T, MESH, 0)
  # A roller that no other test has: `compiled` is shared by all of a process.
  sampler = dataclasses.replace(tiny.SAMPLER, temperature=0.9)
  roller = rollout.Roller(sampler, tiny.POLICY, tiny.JUDGE)
  sampler = rollout.compiled(roller, MESH)
  reference = jax.device_put(tiny.params(0))
  judge = jax.device_put(params_for("pm", 2))
  online = sources.OnlineSource(
    offline,
    lambda params, prompts, key: sampler(params, reference, judge, prompts, key),
    jax.random.key(0),
  )
  results = []
  for source in (offline, online):
    for rate, beta in ((1e-3, 0.1), (3e-3, 0.5)):
      state = new_state(reference)
      for i in range(2):
        old = state
        hyper = train_step.hyper(rate, warmup_steps=i, decay_steps=9, beta=beta)
        state, _ = step(state, source.batch(i, state.params), hyper)
        assert all(x.is_deleted() for x in jax.tree.leaves(old.params))
      results.append(np.asarray(state.params["head"]["kernel"]))
  assert step._cache_size() == 1 and before <= 1
  assert sampler._cache_size() == 1
  assert (
    compiled(train_step.PolicyObjective(t5.T5(tiny.CFG), "ipo"), tiny.POLICY) is step
  )
  assert len({r.tobytes() for r in results}) == 4  # the numbers did arrive
  jax.tree.map(np.testing.assert_array_equal, reference, tiny.params(0))


def test_learning_rate_scales_the_update_of_its_step(batch):
  step = compiled(IPO, tiny.POLICY)
  put = sharding.put_batch(batch, MESH)
  moved = []
  for rate in (1e-3, 2e-3):
    state, _ = step(new_state(tiny.params()), put, train_step.hyper(rate, 4, beta=BETA))
    change = np.asarray(state.params["embedding"]) - tiny.params()["embedding"]
    moved.append(np.abs(change).max())
  assert moved[1] == pytest.approx(2 * moved[0], rel=1e-2)
  assert moved[0] == pytest.approx(1e-3 / 4, rel=0.05)  # Adam's first step: 1/warmup


def test_an_unknown_loss_is_named(batch):
  with pytest.raises(UserError, match="unknown loss 'ippo'"):
    jax.eval_shape(
      train_step.PolicyObjective(tiny.POLICY, "ippo"), tiny.params(), batch, BETA
    )


@pytest.fixture
def given_logps(monkeypatch):
  """Parameters are the log-probabilities themselves: no model is compiled."""
  monkeypatch.setattr(train_step.scoring, "score", lambda model, params, batch: params)


def random_logps(batch):
  shape = batch.lengths_BxN.shape
  return np.random.default_rng(0).normal(-8, 3, shape).astype(np.float32)


def test_an_objective_gives_a_loss_the_lengths_that_it_names(batch, given_logps):
  objective = train_step.PolicyObjective(tiny.POLICY, "simpo", (("gamma", 0.3),))
  logps = random_logps(batch)
  loss_B = losses.simpo(logps, None, BETA, batch.lengths_BxN, gamma=0.3)
  expected = jnp.sum(loss_B * batch.weights_B)
  metrics = objective(logps, batch, BETA)
  np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-6)


@pytest.fixture
def scored():
  """A batch of 3 scored responses, and a loss of scores alone, "reinforce"."""
  registered = dict(losses.LOSSES)

  @losses.group()
  def reinforce(logps_BxN, ref_logps_BxN, beta, scores_BxN):
    return -jnp.mean(scores_BxN * logps_BxN, axis=1)

  plain = tiny.batch(4, responses=3)
  scores = np.array([[1, 3, 2], [0, 0, 0], [5, -1, 0], [-3, -2, -1]], np.float32)
  yield ScoredBatch(**vars(plain), scores_BxN=scores)
  losses.LOSSES.clear()
  losses.LOSSES.update(registered)


def test_scored_responses_are_compared_best_with_worst(scored, given_logps):
  objective = train_step.PolicyObjective(tiny.POLICY, "reinforce")
  logps = random_logps(scored)
  grads, metrics = gradients(objective, logps, scored)
  np.testing.assert_allclose(grads, -scored.scores_BxN / 3 / 4, rtol=1e-5)
  ratios = logps - scored.ref_logps_BxN
  best, worst = ratios[np.arange(4), [1, 0, 0, 2]], ratios[np.arange(4), [0, 0, 1, 0]]
  expected = {
    "loss": -np.mean(scored.scores_BxN * logps, axis=1).sum(),
    "rho": (best - worst).sum(),
    "accuracy": (best > worst).sum() + 0.5 * (best == worst).sum(),
    "chosen_log_ratio": best.sum(),
    "rejected_log_ratio": worst.sum(),
    "response_length": scored.lengths_BxN.mean(axis=1).sum(),
    "score": scored.scores_BxN.mean(axis=1).sum(),
    "score_gap": 2 + 0 + 6 + 2,
  }
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name][0], value, rtol=1e-5, err_msg=name)


def test_a_loss_whose_needs_a_batch_has_not_is_named(scored, batch, given_logps):
  def run(loss, batch):
    objective = train_step.PolicyObjective(tiny.POLICY, loss)
    objective(random_logps(batch), batch, BETA)

  with pytest.raises(UserError, match="'reinforce' needs scores_BxN, which batches"):
    run("reinforce", batch)
  with pytest.raises(UserError, match="'rloo' needs kl_BxN, which batches"):
    run("rloo", scored)


@pytest.mark.parametrize("loss", ["rloo", "grpo"])
def test_losses_of_groups_read_the_reference(scored, loss):
  """Their gradient is that of the formula, in microbatches and through `compiled`."""
  objective = train_step.PolicyObjective(tiny.POLICY, loss)
  assert objective.reads_reference and not IPO.reads_reference
  params, reference = jax.tree.map(jnp.array, (tiny.params(0), tiny.params(1)))
  with_kl = functools.partial(scoring.score_and_kl, tiny.POLICY)

  def formula(params):
    logps_BxN, kl_BxN = with_kl(params, reference, scored)
    needs = {"scores_BxN": scored.scores_BxN, "kl_BxN": kl_BxN}
    if loss == "grpo":
      needs["lengths_BxN"] = scored.lengths_BxN
    loss_B = losses.bind(loss)(logps_BxN, None, BETA, **needs)
    return loss_B.mean(), kl_BxN.mean()

  expected, kl = jax.jit(jax.grad(formula, has_aux=True))(params)
  both = functools.partial(objective, reference_params=reference)
  for microbatches in (1, 2):
    grads, metrics = gradients(both, params, scored, microbatches)
    assert_close(grads, expected, 1e-5)
    np.testing.assert_allclose(metrics["kl"][0] / metrics["kl"][1], kl, rtol=1e-5)
  plain = optim.Optimizer("adamw", b1=0.0)
  step = train_step.compiled(objective, plain, 1, MESH, t5.RULES, tiny.POLICY)
  state = train_step.init_state(jax.tree.map(jnp.array, params), plain)
  put = sharding.put_batch(scored, MESH)
  fixed = train_step.Fixed(reference=reference)
  _, metrics = step(state, put, train_step.hyper(1e-3, beta=BETA), fixed)
  np.testing.assert_allclose(metrics["kl"][0] / metrics["kl"][1], kl, rtol=1e-5)
