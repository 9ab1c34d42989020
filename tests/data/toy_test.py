"""The generated worlds: their truth by hand, their raters by counting."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from alignment.data import toy, toy_audit
from alignment.types import UserError

PLAIN = toy.Language(
  world=0, order_bonus=0.3, repeat_cost=0.7, off_prompt_cost=1.0, length_cost=0.4,
  free_words=3,
)  # fmt: skip
A, B, C, D, E = toy.WORDS[10:15]
PROMPT = [word.upper() for word in (A, B, C, D)]
SMALL = toy.RICH | {
  "num_words": 12, "prompt_words": 5, "response_words": 5, "fewest_words": 1
}  # fmt: skip


def weights():
  return dict(zip(toy.WORDS, PLAIN.values.weights_ZxW[0], strict=True))


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
  assert PLAIN.utility(PROMPT, response) == pytest.approx(named + extra, abs=1e-5)


def by_hand(language: toy.Language, prompt: list[int], response: list[int]) -> float:
  """The utility as the module's docstring has it, one word after the other."""
  v = language.values
  total, seen = 0.0, set()
  for word in response:
    if word in seen:
      total -= v.repeat_cost
    elif word in prompt:
      total += v.weights_ZxW[prompt[0] % language.topics][word]
    else:
      total -= v.off_prompt_cost
    seen.add(word)
  for a, b in itertools.pairwise(response):
    if a in prompt and b in prompt and a != b:
      total += v.kind_bonus_KxK[v.kinds_W[a]][v.kinds_W[b]]
      total += v.order_bonus * (prompt.index(a) < prompt.index(b))
  return total - v.length_cost * max(0, len(response) - v.free_words)


@pytest.mark.parametrize("fields", [toy.EASY, toy.RICH], ids=["easy", "rich"])
def test_the_arrays_say_what_the_words_do_and_jax_what_numpy_does(fields):
  language = toy.Language(5, **fields)
  posts, (first, second), _ = language.block(0)
  posts, first, second = posts[:100], first[:100], second[:100]
  for responses in (first, second, posts[:, ::-1]):
    arrays = language.values.utilities(posts, responses)
    rows = [[w for w in row if w != toy.NO_WORD] for row in responses.tolist()]
    hand = [by_hand(language, p, r) for p, r in zip(posts.tolist(), rows, strict=True)]
    np.testing.assert_allclose(arrays, hand, atol=2e-5)
    texts = [[toy.WORDS[w] for w in row] for row in rows]
    prompts = [[toy.WORDS[w].upper() for w in post] for post in posts]
    np.testing.assert_array_equal(language.utilities(prompts, texts), arrays)
    device = language.values.utilities(jnp.asarray(posts), jnp.asarray(responses), jnp)
    np.testing.assert_allclose(device, arrays, atol=1e-4)


def test_equal_words_are_equal_to_the_last_bit_whatever_their_order():
  language = toy.Language(0, **toy.EASY | {"order_bonus": 0.0})
  posts, (first, _), _ = language.block(0)
  rng = np.random.default_rng(0)
  mixed = np.full_like(first, toy.NO_WORD)
  for row, response in zip(mixed, first, strict=True):
    said = rng.permutation(response[response != toy.NO_WORD])
    row[: len(said)] = said
  one, other = (language.values.utilities(posts, r) for r in (first, mixed))
  np.testing.assert_array_equal(one, other)


def test_worlds_of_the_rich_language_are_languages():
  """They differ in every bonus and cost; those of the easy one in words alone."""
  rich = [toy.Language(w, **toy.RICH).values for w in (0, 1)]
  easy = [toy.Language(w, **toy.EASY).values for w in (0, 1)]
  costs = "order_bonus", "repeat_cost", "off_prompt_cost", "length_cost"
  assert all(getattr(rich[0], c) != getattr(rich[1], c) for c in costs)
  assert all(getattr(easy[0], c) == getattr(easy[1], c) for c in costs)
  for one, other in (rich, easy):
    assert np.mean(one.weights_ZxW != other.weights_ZxW) > 0.8
  assert (rich[0].weights_ZxW < 0).any() and (rich[0].kind_bonus_KxK < 0).any()
  assert np.abs(rich[0].weights_ZxW[0] - rich[0].weights_ZxW[1]).max() > 0.5


def test_a_world_is_reproducible_and_another_world_is_another_text():
  first, again, other = (list(toy.Language(w).examples(50)) for w in (3, 3, 4))
  assert first == again
  assert not {e.prompt for e in first} & {e.prompt for e in other}
  head = list(itertools.islice(toy.Language(3).examples(5000), 20))
  assert head == first[:20]  # more pairs extend a world


@pytest.mark.parametrize("fields", [{}, toy.EASY, toy.RICH])
def test_examples_are_within_the_lengths_and_never_identical(fields):
  language = toy.Language(0, **fields)
  words = toy.WORDS[: language.num_words]
  sources = []
  for example in language.examples(1500):
    prompt, chosen, rejected = (
      text.split() for text in (example.prompt, example.chosen, example.rejected)
    )
    assert len(prompt) == len(set(prompt)) == language.prompt_words
    assert set(prompt) <= {word.upper() for word in words}
    assert {*chosen, *rejected} <= set(words)
    assert {*prompt, *chosen, *rejected} <= set(toy.words(language.num_words))
    assert all(1 <= len(r) <= language.response_words for r in (chosen, rejected))
    assert chosen != rejected
    sources.append(example.source)
  assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_raters_follow_the_logistic_of_the_utility_difference(temperature):
  """In bands of the gap, the better response is chosen as often as it should be."""
  language = dataclasses.replace(PLAIN, temperature=temperature)
  posts, (first, second), prefers_first = language.block(0)
  values = language.values
  gaps = values.utilities(posts, first) - values.utilities(posts, second)
  better = np.where(gaps > 0, prefers_first, ~prefers_first)
  probs = 1 / (1 + np.exp(-np.abs(gaps) / temperature))
  tested = 0
  for low, high in itertools.pairwise((0, 0.5, 1, 2, 4, np.inf)):
    band = (np.abs(gaps) > max(low, 1e-9)) & (np.abs(gaps) <= high)
    if band.sum() < 30:
      continue
    expected, variance = probs[band].sum(), (probs * (1 - probs))[band].sum()
    observed = better[band].sum()
    assert abs(observed - expected) <= 4 * np.sqrt(variance) + 0.5, (low, high)
    tested += 1
  assert tested >= 3


def test_examples_have_the_preferred_response_first():
  posts, responses, prefers_first = PLAIN.block(0)
  examples = {e.source: e for e in PLAIN.examples(200)}
  for i in range(200):
    if (example := examples.get(f"toy:{i}")) is not None:
      row = responses[0 if prefers_first[i] else 1][i]
      said = [toy.WORDS[w] for w in row if w != toy.NO_WORD]
      assert example.chosen.split() == said
      assert example.prompt.lower().split() == [toy.WORDS[w] for w in posts[i]]


def test_more_care_writes_better_on_average():
  def mean_utility(care):
    language = toy.Language(0, care=(care, care))
    posts, responses, _ = language.block(0)
    return np.mean([language.values.utilities(posts, r) for r in responses])

  assert mean_utility(0.25) < mean_utility(1.0) < mean_utility(4.0)


# --- what a world can be won with -----------------------------------------------------


def test_the_optimum_is_that_of_trying_every_response():
  language = toy.Language(2, **SMALL)
  posts = language.block(0)[0][:3]
  every = [
    order for n in range(6) for order in itertools.permutations(range(5), n)
  ]  # fmt: skip
  rows = np.full((len(every), 5), toy.NO_WORD)
  for post, optimum in zip(posts, toy_audit.optima(language, posts), strict=True):
    for row, order in zip(rows, every, strict=True):
      row[: len(order)] = post[list(order)]
    all_of_them = language.values.utilities(np.tile(post, (len(every), 1)), rows)
    assert optimum == pytest.approx(all_of_them.max(), abs=1e-4)


@pytest.mark.parametrize("fields", [toy.EASY, toy.RICH], ids=["easy", "rich"])
@pytest.mark.parametrize("world", [0, 1])
def test_no_world_can_be_won_without_learning(fields, world, monkeypatch):
  monkeypatch.setattr(toy_audit, "PROMPTS", 64)
  audit = toy_audit.Audit.of(toy.Language(world, **fields))
  audit.check()
  assert audit.writers < audit.optimum
  assert max(audit.trivial.values()) < (audit.writers + audit.optimum) / 2
  assert 0.75 < audit.raters < 0.85
  assert 0.5 < audit.blind < 0.76
  assert (audit.linear > 0.99) == (fields is toy.EASY)
  assert audit.linear < 0.82 or fields is toy.EASY


def test_a_language_whose_best_response_is_a_copy_is_refused():
  """As the easy language once was: four words were free, and none was worth less."""
  copied = toy.EASY | {"length_cost": 0.4, "free_words": 4, "order_bonus": 0.3}
  audit = toy_audit.Audit.of(toy.Language(0, **copied))
  assert audit.closest[0] == "copy"
  with pytest.raises(UserError, match=r"world 0 a trivial policy \(copy, utility"):
    audit.check()


def test_a_language_in_which_repeating_pays_is_refused():
  with pytest.raises(UserError, match="a repeat_cost above what a neighbour may earn"):
    toy.Language(0, repeat_cost=0.2, order_bonus=0.3)
