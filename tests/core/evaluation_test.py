"""The exact KL against enumeration, and an evaluation against plain counting."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from alignment.core import evaluation, rows, sampling, scoring
from alignment.models import t5
from alignment.runtime import sharding
from alignment.types import UserError
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

MESH = sharding.make_mesh()
KEY = jax.random.key(7)
P, Q = tiny.params(0), tiny.params(1)


def divergence(params, reference, batch, decoded=None, model=tiny.POLICY):
  if decoded is None:
    decoded = np.zeros(batch.responses_BxNxT.shape, np.float32)
  out = evaluation.divergence(model, params, model, reference, batch, decoded)
  return jax.tree.map(np.asarray, out)


def log_softmax(model, params, batch):
  logits = np.float64(tiny.logits(model, params, batch))
  return (
    logits
    - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))[..., None]
    - logits.max(-1, keepdims=True)
  )


def test_kl_and_entropy_are_the_sums_over_vocabulary_and_tokens():
  batch = tiny.batch(8)
  logp, logq = (log_softmax(tiny.POLICY, p, batch)[:, 0] for p in (P, Q))
  p = np.exp(logp)
  inside = np.arange(tiny.T) < batch.lengths_BxN[:, :1]
  out = divergence(P, Q, batch)
  kl = ((p * (logp - logq)).sum(-1) * inside).sum(-1)
  entropy = -((p * logp).sum(-1) * inside).sum(-1)
  np.testing.assert_allclose(out["kl"], kl, rtol=1e-4)
  np.testing.assert_allclose(out["entropy"], entropy, rtol=1e-4)
  assert kl.min() > 0.01


def test_expected_kl_is_the_kl_between_the_distributions_of_responses():
  """Over all 85 responses of a vocabulary of 5 and length 3: exact, no sampling."""
  live, length = 6, 3
  model = t5.T5(dataclasses.replace(tiny.CFG, live_ids=live))
  words = range(2, live)
  every = [
    (*m, tiny.EOS) for n in range(length) for m in itertools.product(words, repeat=n)
  ] + list(itertools.product(words, repeat=length))
  R = len(every)
  prompt = tiny.batch(1, live=live)
  batch = jax.tree.map(lambda x: np.repeat(x[:1], R, 0), prompt).replace(
    responses_BxNxT=np.array([[r + (0,) * (length - len(r))] for r in every], np.int32),
    lengths_BxN=np.array([[len(r)] for r in every], np.int32),
  )
  logp, logq = (
    np.array([
      sum(token_logps[t, token] for t, token in enumerate(r))
      for token_logps, r in zip(log_softmax(model, p, batch)[:, 0], every, strict=True)
    ])
    for p in (P, Q)
  )  # fmt: skip
  probs = np.exp(logp)
  assert probs.sum() == pytest.approx(1, abs=1e-5)
  out = divergence(P, Q, batch, model=model)
  exact = (probs * (logp - logq)).sum()
  assert (probs * out["kl"]).sum() == pytest.approx(exact, rel=1e-4)
  assert (probs * out["entropy"]).sum() == pytest.approx(
    -(probs * logp).sum(), rel=1e-4
  )
  assert exact > 0.1
  for estimate in ("k1", "k3"):  # unbiased, both
    assert (probs * out[estimate]).sum() == pytest.approx(exact, rel=1e-4)
  np.testing.assert_allclose(out["k1"], logp - logq, rtol=1e-3, atol=1e-5)
  assert out["k3"].min() >= 0


def test_kl_of_a_model_with_itself_is_0_and_otherwise_is_never_negative():
  batch = tiny.batch(8)
  np.testing.assert_array_equal(divergence(P, P, batch)["kl"], 0.0)
  rng = np.random.default_rng(0)
  near = jax.tree.map(
    lambda x: x + 1e-4 * rng.normal(size=x.shape).astype(np.float32), P
  )
  kl = divergence(P, near, batch)["kl"]
  assert np.all(kl >= 0) and np.all(kl < 1e-3) and np.any(kl > 0)


def test_kl_does_not_depend_on_padding():
  batch = tiny.batch(8)
  longer = batch.replace(
    prompts_BxS=np.pad(batch.prompts_BxS, [(0, 0), (0, 3)], constant_values=9),
    responses_BxNxT=np.pad(
      batch.responses_BxNxT, [(0, 0), (0, 0), (0, 4)], constant_values=9
    ),
  )
  ours, theirs = divergence(P, Q, longer), divergence(P, Q, batch)
  for name in "kl", "entropy":
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5)


@functools.cache
def evaluator(utility=False):
  prompts = tiny.batch(11)

  def value(tokens, lengths):
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    return ((tokens == 6) & inside).sum(1) - 0.1 * lengths

  contest = evaluation.Contest(
    judge=tiny.JUDGE,
    judge_params=tiny.params(2, tiny.JUDGE.model.cfg),
    proxy=tiny.JUDGE,
    proxy_params=tiny.params(3, tiny.JUDGE.model.cfg),
    prompts=prompts,
    opponent=(prompts.responses_BxNxT[:, 0], prompts.lengths_BxN[:, 0]),
    start=(prompts.responses_BxNxT[:, 1], prompts.lengths_BxN[:, 1]),
    utility=value,
    batch_size=4,  # the last batches of 11, 9 and 6 rows are filled up
    mesh=MESH,
  )
  return evaluation.PolicyEvaluation(
    contest=contest,
    sampler=tiny.SAMPLER,
    reference=tiny.POLICY,
    reference_params=Q,
    pairs=tiny.batch(9, seed=4),
    kl_prompts=6,
    key=KEY,
  )


@pytest.fixture(scope="module")
def evaluated():
  return evaluator()(P)


def test_sampling_and_scoring_agree(evaluated):
  assert evaluated[0]["decode_vs_score_max_abs_diff"] < 2e-5


def test_decode_vs_score_finds_a_wrong_log_probability_of_a_token_but_not_of_padding():
  batch = tiny.batch(8)
  exact = np.take_along_axis(
    log_softmax(tiny.POLICY, P, batch), batch.responses_BxNxT[..., None], -1
  )[..., 0]
  inside = np.arange(tiny.T) < batch.lengths_BxN[..., None]
  decoded = np.where(inside, exact, 99.0).astype(np.float32)
  assert divergence(P, Q, batch, decoded)["decode_vs_score"].max() < 2e-5
  decoded[3, 0, batch.lengths_BxN[3, 0] - 1] += 0.25
  wrong = divergence(P, Q, batch, decoded)["decode_vs_score"]
  np.testing.assert_allclose(wrong, np.eye(8)[3] * 0.25, atol=1e-4)


def test_the_record_is_what_plain_counting_gives(evaluated):
  record, outcomes = evaluated
  e = evaluator()
  samples = jax.tree.map(np.asarray, e.sample(P, 2))
  tokens, lengths = samples.tokens_BxNxT, samples.lengths_BxN
  np.testing.assert_array_equal(outcomes["tokens"], tokens[:, 0])
  np.testing.assert_array_equal(outcomes["lengths"], lengths[:, 0])
  gaps = lengths[:, 0] - evaluator().contest.opponent[1]
  np.testing.assert_array_equal(outcomes["length_gaps"], gaps)

  def margins(a, b, params=e.contest.judge_params):
    both = e.contest.prompts.replace(
      responses_BxNxT=np.stack([a[0], b[0]], 1), lengths_BxN=np.stack([a[1], b[1]], 1)
    )
    prefer = jax.jit(tiny.JUDGE.preference)
    return np.asarray(prefer(params, both))

  mine, second = ((tokens[:, i], lengths[:, i]) for i in (0, 1))
  wins = margins(mine, e.contest.opponent)
  expected = (wins > 0) + 0.5 * (wins == 0)
  np.testing.assert_array_equal(outcomes["golden"], expected)
  assert record["win_rate"] == pytest.approx(expected.mean())
  assert record["win_rate_stderr"] == pytest.approx(expected.std(ddof=1) / 11**0.5)
  scores = margins(mine, e.contest.start)
  assert record["golden_score"] == pytest.approx(scores.mean(), abs=1e-5)
  assert record["golden_score_stderr"] == pytest.approx(
    scores.std(ddof=1) / 11**0.5, rel=1e-4
  )
  by_proxy = margins(mine, e.contest.start, e.contest.proxy_params)
  assert record["proxy_score"] == pytest.approx(by_proxy.mean(), abs=1e-5)
  assert record["proxy_score_stderr"] == pytest.approx(
    by_proxy.std(ddof=1) / 11**0.5, rel=1e-4
  )
  assert record["response_length"] == pytest.approx(lengths[:, 0].mean())
  no_eos = [tiny.EOS not in t[:n] for t, n in zip(*mine, strict=True)]
  assert record["truncation_rate"] == pytest.approx(np.mean(no_eos))

  sampled = e.contest.prompts.replace(responses_BxNxT=tokens, lengths_BxN=lengths)
  kl = divergence(P, Q, sampled)["kl"][:6]
  assert record["kl"] == pytest.approx(kl.mean(), rel=1e-4)
  assert record["kl_stderr"] == pytest.approx(kl.std(ddof=1) / 6**0.5, rel=1e-4)

  score = jax.jit(scoring.score, static_argnums=0)
  ratios = np.asarray(score(tiny.POLICY, P, e.pairs)) - e.pairs.ref_logps_BxN
  right = (ratios[:, 0] > ratios[:, 1]).mean()
  assert record["classification_accuracy"] == pytest.approx(right)
  assert record["chosen_log_ratio"] == pytest.approx(ratios[:, 0].mean(), rel=1e-4)
  assert record["rejected_log_ratio"] == pytest.approx(ratios[:, 1].mean(), rel=1e-4)

  both = score(tiny.POLICY, P, sampled), score(tiny.POLICY, Q, sampled)
  own = (np.asarray(both[0]) - np.asarray(both[1]))[:6]
  golden = margins(mine, second)[:6]
  assert np.all(golden != 0)
  labelled = np.sign(own[:, 0] - own[:, 1]) == np.sign(golden)
  assert record["self_classification_accuracy"] == pytest.approx(labelled.mean())
  k1 = own[:, 0].std(ddof=1) / 6**0.5
  assert record["kl_k1_stderr"] == pytest.approx(k1, rel=1e-4)

  truth = e.contest.utility(*mine)
  gap, judged = truth - e.contest.utility(*second), margins(mine, second)
  known = gap != 0
  agrees = (np.sign(gap) == np.sign(judged)) + 0.5 * (judged == 0)
  assert agrees[known].mean() != 0.5  # or a wrong sign would not be seen
  assert record["judge_accuracy_on_policy"] == pytest.approx(agrees[known].mean())
  assert record["true_utility"] == pytest.approx(truth.mean())
  beaten = truth - e.contest.utility(*e.contest.opponent)
  won = (beaten > 0) + 0.5 * (beaten == 0)
  assert record["true_win_rate"] == pytest.approx(won.mean())
  np.testing.assert_array_equal(outcomes["truth"], won)


def test_the_worst_prompt_decides_how_far_scoring_is_off(monkeypatch):
  e = evaluator()
  errors = np.array([0.1, 0.9, 0.2, 0.0, 0.3, 0.1])
  parts = dict.fromkeys(("kl", "k1", "k3", "entropy", "rho"), errors)
  parts["decode_vs_score"] = errors
  monkeypatch.setattr(evaluation.Contest, "map", lambda *_, **__: parts)
  samples = sampling.Samples(*[np.zeros((11, 2, tiny.T))] * 4)
  record = e._divergence(P, samples, np.ones(11))
  assert record["decode_vs_score_max_abs_diff"] == 0.9


def test_equal_log_ratios_classify_nothing(monkeypatch):
  ratios_Qx2 = np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 0.0], [0.0, 5.0]])
  monkeypatch.setattr(evaluation.Contest, "map", lambda *_, **__: ratios_Qx2)
  record = evaluator()._classification(P)
  assert record["classification_accuracy"] == (0.5 + 1 + 0.5 + 0) / 4


def test_the_same_checkpoint_gives_the_same_record(evaluated):
  again, _ = evaluator()(P)
  assert again == evaluated[0]


def test_a_policy_ties_with_its_own_responses(evaluated):
  own = evaluated[1]["tokens"], evaluated[1]["lengths"]
  contest = dataclasses.replace(
    evaluator().contest, opponent=own, start=own, utility=None
  )
  record, outcomes = dataclasses.replace(evaluator(), contest=contest)(P)
  assert record["win_rate"] == 0.5 and record["golden_score"] == 0
  assert record["win_rate_stderr"] == 0
  assert "true_utility" not in record and "truth" not in outcomes


def test_agreement_is_over_what_the_truth_decides():
  margins, truth = np.array([1.0, -2.0, 0.0, 3.0]), np.array([2.0, 1.0, -1.0, 0.0])
  assert evaluation.agreement(margins, truth) == pytest.approx((1 + 0 + 0.5) / 3)
  assert np.isnan(evaluation.agreement(margins, 0 * truth))


def test_ties_count_half():
  outcomes = evaluation.outcome(np.array([2.0, 0.0, -0.1]))
  np.testing.assert_array_equal(outcomes, [1, 0.5, 0])


def test_intervals_of_pairs_that_share_prompts():
  values, alone = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), np.arange(5)
  usual = stats.t.ppf(0.975, 4) * values.std(ddof=1) / 5**0.5
  assert evaluation.clustered_within(values, 7 - alone) == pytest.approx(usual)
  # Every pair twice is no more than every pair once.
  twice = evaluation.clustered_within(np.repeat(values, 2), np.repeat(alone, 2))
  assert twice == pytest.approx(usual)


@pytest.mark.parametrize("clusters", [4, 10, 100])
def test_intervals_of_few_prompts_cover_the_mean(clusters):
  rng = np.random.default_rng(0)
  prompts = np.repeat(np.arange(clusters), 1 + np.arange(clusters) % 3)
  covered = []
  for _ in range(2000):
    values = rng.normal(size=clusters)[prompts] + rng.normal(size=len(prompts))
    within = evaluation.clustered_within(values, prompts)
    covered.append(abs(values.mean()) <= within)
  assert abs(np.mean(covered) - 0.95) < 0.02


def test_rows_are_mapped_in_order_in_batches_of_one_shape():
  shapes = []

  def double(batch):
    shapes.append(batch.shape)
    return {"x": 2 * batch}

  out = rows.map_rows(double, lambda i: (10 * i,), np.array([5, 3, 1, 4, 2]), 2, MESH)
  assert out["x"].tolist() == [100, 60, 20, 80, 40] and shapes == [(2,)] * 3


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
  class Shards:
    shape = {"data": 2, "fsdp": 2, "tensor": 1}

  with pytest.raises(UserError, match="evaluation.batch_size 6 is not divisible"):
    rows.map_rows(None, None, np.arange(6), 6, Shards())


def test_a_column_of_ones_own_is_its_mean_over_prompts(monkeypatch):
  monkeypatch.setattr(evaluation, "COLUMNS", {})

  @evaluation.column
  def prompt_share(prompts, tokens_PxT, lengths_P):
    return lengths_P / (prompts.prompt_lengths_B + lengths_P)

  prompts, contest = tiny.batch(11), evaluator().contest
  responses = prompts.responses_BxNxT[:, 0], prompts.lengths_BxN[:, 0]
  record, _ = contest.record(responses, np.ones(11))
  share = responses[1] / (prompts.prompt_lengths_B + responses[1])
  assert record["prompt_share"] == pytest.approx(share.mean())


def test_a_judge_that_says_no_number_is_refused_and_not_taken_for_a_loss(monkeypatch):
  contest = evaluator().contest
  monkeypatch.setattr(
    evaluation, "margins", lambda *_: np.array([1.0, np.nan, -1.0, np.inf])
  )
  with pytest.raises(UserError, match="3 of 11 margins of a judge are not numbers"):
    contest.compare(contest.opponent, contest.start)
