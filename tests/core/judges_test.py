"""The preference model's input, and the exact symmetry of its labels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.core import judges
from alignment.types import UserError
from tests import tiny

MARKERS = tiny.MARKERS
preference = jax.jit(
  lambda params, batch: tiny.JUDGE.preference(params, batch),
  compiler_options=tiny.FAST,
)


@pytest.fixture(scope="module")
def params():
  return tiny.params(cfg=tiny.JUDGE.model.cfg)


@pytest.fixture(scope="module")
def batch():
  """16 pairs; the last 4 identical, with different rubbish in their padding."""
  batch = tiny.batch(16)
  tokens, lengths = batch.responses_BxNxT.copy(), batch.lengths_BxN.copy()
  tokens[12:, 1], lengths[12:, 1] = tokens[12:, 0], lengths[12:, 0]
  padding = np.arange(tiny.T) >= lengths[12:, 1, None]
  tokens[12:, 1] = np.where(padding, 7, tokens[12:, 1])
  assert padding.any(), "no longer a test of anything"
  tokens[:12, 0, 0], tokens[:12, 1, 0] = 4, 5
  return batch.replace(responses_BxNxT=tokens, lengths_BxN=lengths)


def swapped(batch):
  return batch.replace(
    responses_BxNxT=batch.responses_BxNxT[:, ::-1],
    lengths_BxN=batch.lengths_BxN[:, ::-1],
  )


def parts(batch):
  """(tokens, lengths) of prompt, first and second response."""
  return [(batch.prompts_BxS, batch.prompt_lengths_B)] + [
    (batch.responses_BxNxT[:, i], batch.lengths_BxN[:, i]) for i in (0, 1)
  ]


@functools.partial(jax.jit, static_argnums=(1, 2))
def assemble(parts, context_length, truncate_prompt):
  return judges.assemble(
    *parts,
    markers=MARKERS,
    context_length=context_length,
    truncate_prompt=truncate_prompt,
  )


@pytest.mark.parametrize("truncate_prompt", ["left", "right"])
@pytest.mark.parametrize("context_length", [18, 40])
def test_assembled_input_is_what_python_lists_would_be(context_length, truncate_prompt):
  batch = tiny.batch(32, seed=5)
  rng = np.random.default_rng(0)
  # What stands in the padding must not matter.
  rubbish = lambda x: np.where(x == 0, rng.integers(1, 20, x.shape), x).astype(np.int32)  # noqa: E731
  batch = batch.replace(
    prompts_BxS=rubbish(batch.prompts_BxS),
    responses_BxNxT=rubbish(batch.responses_BxNxT),
  )
  tokens_BxC, lengths_B = assemble(parts(batch), context_length, truncate_prompt)
  assert tokens_BxC.dtype == lengths_B.dtype == jnp.int32
  cut = 0
  for b in range(32):
    prompt, first, second = (list(x[b, : n[b]]) for x, n in parts(batch))
    rest = [
      *MARKERS.before_first,
      *first,
      *MARKERS.before_second,
      *second,
      *MARKERS.end,
    ]
    room = context_length - len(rest)
    cut += len(prompt) > room
    if truncate_prompt == "left":
      prompt = prompt[max(0, len(prompt) - room) :]
    expected = prompt[:room] + rest
    assert lengths_B[b] == len(expected)
    padding = [0] * (context_length - len(expected))
    assert tokens_BxC[b].tolist() == expected + padding
  assert (cut > 0) == (context_length == 18)


def test_swapping_the_responses_flips_every_label_exactly(params, batch):
  margins = np.asarray(preference(params, batch))
  np.testing.assert_array_equal(
    np.asarray(preference(params, swapped(batch))), -margins
  )
  assert np.all(margins[:12] != 0) and len(set(np.sign(margins[:12]))) == 2


def test_identical_responses_tie_exactly_whatever_their_padding_holds(params, batch):
  np.testing.assert_array_equal(judges.identical(batch), np.arange(16) >= 12)
  np.testing.assert_array_equal(np.asarray(preference(params, batch))[12:], 0.0)


def test_a_prefix_is_not_identical():
  batch = tiny.batch(1)
  tokens = np.array([[[3, 4, 5, 0, 0], [3, 4, 0, 0, 0]]], np.int32)
  batch = batch.replace(
    responses_BxNxT=tokens, lengths_BxN=np.array([[3, 2]], np.int32)
  )
  assert not judges.identical(batch)[0] and not judges.identical(swapped(batch))[0]


def test_margins_do_not_depend_on_how_far_things_are_padded(params, batch):
  def pad(x, by):
    widths = [(0, 0)] * (x.ndim - 1) + [(0, by)]
    return np.pad(x, widths, constant_values=9)

  longer = batch.replace(
    prompts_BxS=pad(batch.prompts_BxS, 3), responses_BxNxT=pad(batch.responses_BxNxT, 2)
  )
  wide = dataclasses.replace(tiny.JUDGE, context_length=tiny.JUDGE.context_length + 6)
  narrow = batch.replace(prompt_lengths_B=np.minimum(batch.prompt_lengths_B, 2))
  assert np.all(narrow.prompt_lengths_B + narrow.lengths_BxN.sum(1) + 5 <= 18)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5)
  close(preference(params, longer), preference(params, batch))
  wider = jax.jit(lambda p, b: wide.preference(p, b), compiler_options=tiny.FAST)
  close(wider(params, narrow), preference(params, narrow))


def test_margin_is_half_the_difference_of_two_answers(params, batch):
  """The two ids' logits after one decoder step over the assembled input."""

  @functools.partial(jax.jit, compiler_options=tiny.FAST)
  def answer(params, parts):
    tokens, lengths = assemble(parts, 18, "left")
    model = tiny.JUDGE.model
    step = jnp.zeros((16, 1, 1), jnp.int32)
    context = model.prepare(params, tokens, lengths)
    return model.logits(params, model.hidden(params, context, step))[:, 0, 0]

  prompt, first, second = parts(batch)
  forward = answer(params, [prompt, first, second])
  backward = answer(params, [prompt, second, first])
  expected = (forward[:, 16] - forward[:, 17] - backward[:, 16] + backward[:, 17]) / 2
  np.testing.assert_allclose(
    preference(params, batch)[:12], expected[:12], atol=1e-5, rtol=1e-5
  )


def test_check_says_how_long_the_context_must_be():
  needed = 2 * tiny.T + 5 + tiny.S
  exact = dataclasses.replace(tiny.JUDGE, context_length=needed)
  exact.check(tiny.S, tiny.T)
  short = dataclasses.replace(tiny.JUDGE, context_length=needed - 1)
  with pytest.raises(UserError, match=f"judge_context_length {needed - 1}.*{needed}$"):
    short.check(tiny.S, tiny.T)


def test_what_begins_every_prompt_stays_when_its_left_side_is_cut(batch):
  """As a tokenizer's BOS: not lost, and not written twice."""
  begun = dataclasses.replace(tiny.MARKERS, before_prompt=(2, 3))
  tokens = np.array([[2, 3, 4, 5, 6, 7]], np.int32)
  response = np.array([[8, 9]], np.int32), np.array([2], np.int32)
  for length, kept in ((6, [2, 3, 6, 7]), (4, [2, 3, 4, 5]), (3, [2, 3, 4])):
    assembled, _ = judges.assemble(
      (tokens, np.array([length], np.int32)), response, response,
      markers=begun, context_length=4 + 4 + 5, truncate_prompt="left",
    )  # fmt: skip
    assert np.asarray(assembled)[0, : len(kept)].tolist() == kept


def drawn(rows: int, responses: int):
  """Responses of few tokens, so that some of a prompt's are identical."""
  batch = tiny.batch(rows, seed=3, responses=responses, live=4)
  lengths_BxN = np.minimum(batch.lengths_BxN, 2)
  return batch.replace(lengths_BxN=lengths_BxN)


scores = jax.jit(tiny.JUDGE.scores, compiler_options=tiny.FAST)


def test_scores_of_two_responses_are_half_the_margin_each(params, batch):
  scores_Bx2 = np.asarray(scores(params, batch))
  margins_B = np.asarray(preference(params, batch))
  np.testing.assert_array_equal(scores_Bx2[:, 0] - scores_Bx2[:, 1], margins_B)
  np.testing.assert_array_equal(scores_Bx2[:, 0], -scores_Bx2[:, 1])


def test_a_score_is_the_mean_margin_over_all_responses(params):
  batch = drawn(24, 4)
  scores_BxN = np.asarray(scores(params, batch))
  margins_BxNxN = np.zeros((24, 4, 4))
  for i in range(4):
    for j in range(4):
      pair = judges.take_responses(batch, np.array([[i, j]]))
      margins_BxNxN[:, i, j] = preference(params, pair)
  np.testing.assert_allclose(scores_BxN, margins_BxNxN.mean(axis=2), atol=1e-6)
  np.testing.assert_allclose(scores_BxN.sum(axis=1), 0, atol=1e-5)


def test_identical_responses_have_equal_scores_whatever_the_rounding(params):
  batch = drawn(24, 4)
  scores_BxN, ties = np.asarray(scores(params, batch)), 0
  for b, (tokens_NxT, lengths_N) in enumerate(
    zip(batch.responses_BxNxT, batch.lengths_BxN, strict=True)
  ):
    texts = [tuple(t[:n]) for t, n in zip(tokens_NxT, lengths_N, strict=True)]
    for text in set(texts):
      of_text = {float(scores_BxN[b, i]) for i in range(4) if texts[i] == text}
      assert len(of_text) == 1
      ties += texts.count(text) > 1
  assert ties > 2, "no longer a test of anything"
  noise_BxN = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
  equal_BxN = np.asarray(judges.equal_if_identical(batch, noise_BxN))
  assert np.any(equal_BxN != noise_BxN) and np.all(equal_BxN[:, 0] == noise_BxN[:, 0])
