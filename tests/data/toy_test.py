"""The generated world: its truth by hand, its raters by counting."""

import dataclasses
import itertools

import numpy as np
import pytest

from alignment.data import toy

PLAIN = toy.Language(
  world=0, order_bonus=0.3, repeat_cost=0.7, off_prompt_cost=1.0, length_cost=0.4,
  free_words=3,
)  # fmt: skip
A, B, C, D, E = toy.WORDS[10:15]
PROMPT = [word.upper() for word in (A, B, C, D)]


def weights():
  return dict(zip(toy.WORDS, PLAIN.word_weights(), strict=True))


@pytest.mark.parametrize(
  "response, extra",
  [
    ([], 0.0),
    ([A], 0.0),
    ([B, A], 0.0),  # against the prompt's order
    ([A, B], 0.3),
    ([A, C, B], 0.3),
    ([A, B, C], 0.6),
    ([A, A], -0.7),  # a repeat is neither in order nor worth anything
    ([A, B, A], 0.3 - 0.7),
    ([A, E], -1.0),  # a stranger
    ([A, E, B], -1.0),  # breaks the order's chain
    ([E, E], -1.0 - 0.7),
    ([A, B.upper()], -1.0),  # a summary that shouts names nothing
    ([A, B, C, D], 0.9 - 0.4),  # one word too long
    ([D, C, B, A, A], -0.7 - 0.8),
  ],
)
def test_utility_by_hand(response, extra):
  named = sum(weights()[w] for w in set(response) & {A, B, C, D})
  assert PLAIN.utility(PROMPT, response) == pytest.approx(named + extra)


def test_words_are_worth_0_to_1_5_and_worlds_differ_in_which():
  ours = toy.Language(0).word_weights()
  theirs = toy.Language(1).word_weights()
  np.testing.assert_allclose(np.sort(ours), np.linspace(0, 1.5, 48))
  np.testing.assert_allclose(np.sort(theirs), np.sort(ours))
  assert np.mean(ours != theirs) > 0.8


def test_a_world_is_reproducible_and_another_world_is_another_text():
  first, again, other = (list(toy.Language(w).examples(50)) for w in (3, 3, 4))
  assert first == again
  assert not {e.prompt for e in first} & {e.prompt for e in other}
  head = list(itertools.islice(toy.Language(3).examples(5000), 20))
  assert head == first[:20]  # more pairs extend a world


def test_examples_are_within_the_lengths_and_never_identical():
  language = toy.Language(0)
  for example in language.examples(500):
    prompt, chosen, rejected = (
      text.split() for text in (example.prompt, example.chosen, example.rejected)
    )
    assert len(prompt) == len(set(prompt)) == language.prompt_words
    assert set(prompt) <= {word.upper() for word in toy.WORDS}
    assert {*chosen, *rejected} <= set(toy.WORDS)
    assert {*prompt, *chosen, *rejected} <= set(toy.words(48))
    assert all(1 <= len(r) <= language.response_words for r in (chosen, rejected))
    assert chosen != rejected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_raters_follow_the_logistic_of_the_utility_difference(temperature):
  """In bands of the gap, the better response is chosen as often as it should be."""
  language = dataclasses.replace(PLAIN, temperature=temperature)
  gaps = np.array([
    language.utility(e.prompt.split(), e.chosen.split())
    - language.utility(e.prompt.split(), e.rejected.split())
    for e in language.examples(3000)
  ])  # fmt: skip
  probs = 1 / (1 + np.exp(-np.abs(gaps) / temperature))
  tested = 0
  for low, high in itertools.pairwise((0, 0.5, 1, 2, 4, np.inf)):
    band = (np.abs(gaps) > max(low, 1e-9)) & (np.abs(gaps) <= high)
    if band.sum() < 30:
      continue
    expected, variance = probs[band].sum(), (probs * (1 - probs))[band].sum()
    observed = np.sum(gaps[band] > 0)
    assert abs(observed - expected) <= 4 * np.sqrt(variance) + 0.5, (low, high)
    tested += 1
  assert tested >= 4


def test_more_care_writes_better_on_average():
  posts = [np.random.default_rng(i).choice(48, 12, replace=False) for i in range(300)]

  def mean_utility(care):
    language = toy.Language(0, care=(care, care))
    rng, weights = np.random.default_rng(0), language.word_weights()
    written = [language._write(rng, post, weights) for post in posts]
    words = lambda ids: [toy.WORDS[i] for i in ids]  # noqa: E731
    pairs = zip(posts, written, strict=True)
    return np.mean([language.utility(words(p), words(w)) for p, w in pairs])

  assert mean_utility(0.25) < mean_utility(1.0) < mean_utility(4.0)
