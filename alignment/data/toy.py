"""TL;DR-like languages whose raters are a known noisy utility: no download, CPU-sized.

A prompt is a post of `prompt_words` words (in capitals); a response names those that
matter (in small letters). Every world has a language of its own: which words it values,
and, with a `spread`, how much each bonus and cost is. What makes a summary good is
known, so every judge in the study can itself be checked against the truth:

  utility = sum of weights of the distinct prompt words it names: a word's weight
            depends on the post's topic, which its first word tells
          + order_bonus x adjacent named words that follow the prompt's order
          + bonus or cost of their kinds, for any two adjacent named words
          - repeat_cost x repeated words - off_prompt_cost x words not in the prompt
          - length_cost x words past `free_words`

Raters prefer response a over b with probability sigmoid((u_a - u_b) / temperature).
Responses come from a crowd of extractive writers. The two of a pair are written with
like care, and with mistakes (strangers, repeats) at like rates, so that few pairs are
obvious; over pairs both differ, so that judges see nearly everything that a policy may
come to write, and can learn what it is worth.

`EASY` has one topic and no kinds: a judge learns it in a minute. In `RICH` neither a
sum over words nor anything else that ignores topic and neighbours represents the
utility. `toy_audit.py` measures what a world can be won with.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from types import ModuleType
from typing import Any

import numpy as np

from alignment.data.readers import Example
from alignment.types import UserError

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t")
_NUCLEI = ("a", "e", "i", "o")
WORDS = tuple(o + n for o in _ONSETS for n in _NUCLEI)  # 48 syllables: ba be ... to
NO_WORD = -1  # what fills rows of word numbers that are shorter than others

# Fields of `Language`: what a document's `data.language` says.
EASY: dict[str, Any] = {
  "num_words": 24,
  "prompt_words": 8,
  "response_words": 8,
  "order_bonus": 0.2,
  "temperature": 0.45,
}
RICH: dict[str, Any] = {
  "num_words": 32,
  "prompt_words": 10,
  "response_words": 10,
  "fewest_words": 5,
  "weights": (-0.6, 0.6),
  "topics": 2,
  "topic_weight": 0.9,
  "kinds": 3,
  "kind_bonus": 0.8,
  "order_bonus": 0.15,
  "repeat_cost": 1.5,
  "length_cost": 0.1,
  "spread": 0.3,
  "temperature": 0.8,
  "stranger_rate": 0.05,
}
LONGEST = 16  # words of a post: its best response is found among all sets of them


def words(num_words: int) -> tuple[str, ...]:
  """A language's whole vocabulary: posts shout (BA), summaries do not (ba)."""
  return tuple(w.upper() for w in WORDS[:num_words]) + WORDS[:num_words]


def numbers(texts: Sequence[Sequence[str]]) -> np.ndarray:
  """Rows of words as rows of their numbers, int PxT, filled with NO_WORD.

  What is not among WORDS gets a number of its own after theirs.
  """
  known = {word: i for i, word in enumerate(WORDS)}
  rows = np.full((len(texts), max(map(len, texts), default=0)), NO_WORD)
  for row, text in zip(rows, texts, strict=True):
    row[: len(text)] = [known.setdefault(word, len(known)) for word in text]
  return rows


@dataclasses.dataclass(frozen=True)
class Values:
  """What the raters of one world value, as arrays.

  Attributes:
    weights_ZxW: of each word, by topic.
    kinds_W: each word's kind.
    kind_bonus_KxK: what a word of one kind right before one of another is worth.
  """

  weights_ZxW: np.ndarray
  kinds_W: np.ndarray
  kind_bonus_KxK: np.ndarray
  order_bonus: float
  repeat_cost: float
  off_prompt_cost: float
  length_cost: float
  free_words: int

  def topics(self, prompts_PxS):
    return prompts_PxS[:, 0] % self.weights_ZxW.shape[0]

  def utilities(self, prompts_PxS, responses_PxT, xp: ModuleType = np):
    """The truth about responses, given as numbers of words: float P.

    Every sum runs over the prompt's words or over whole numbers, and is rounded: the
    same words in another order are equal to the last bit.

    Args:
      prompts_PxS: distinct words.
      responses_PxT: anything; NO_WORD from their ends on.
      xp: numpy, or jax.numpy.
    """
    weights, kinds, bonus = map(
      xp.asarray, (self.weights_ZxW, self.kinds_W, self.kind_bonus_KxK)
    )
    inside_PxT = responses_PxT != NO_WORD
    at_PxTxS = responses_PxT[:, :, None] == prompts_PxS[:, None, :]
    named_PxS = at_PxTxS.any(axis=1)
    same_PxTxT = responses_PxT[:, :, None] == responses_PxT[:, None, :]
    first_PxT = inside_PxT & ~xp.tril(same_PxTxT, -1).any(axis=2)
    length_P, distinct_P = inside_PxT.sum(axis=1), first_PxT.sum(axis=1)
    worth_PxS = weights[self.topics(prompts_PxS)[:, None], prompts_PxS]
    total_P = (worth_PxS * named_PxS).sum(axis=1)
    total_P = total_P - self.repeat_cost * (length_P - distinct_P)
    total_P = total_P - self.off_prompt_cost * (distinct_P - named_PxS.sum(axis=1))
    total_P = total_P - self.length_cost * xp.maximum(0, length_P - self.free_words)

    place_PxT = at_PxTxS.argmax(axis=2)
    said_PxT = at_PxTxS.any(axis=2)  # words of the prompt
    a, b = place_PxT[:, :-1], place_PxT[:, 1:]
    adjacent_PxU = said_PxT[:, :-1] & said_PxT[:, 1:]
    total_P = total_P + self.order_bonus * (adjacent_PxU & (a < b)).sum(axis=1)
    kind_PxS = kinds[prompts_PxS]
    of_a, of_b = (xp.take_along_axis(kind_PxS, x, axis=1) for x in (a, b))
    total_P = total_P + (bonus[of_a, of_b] * (adjacent_PxU & (a != b))).sum(axis=1)
    return xp.round(total_P, 5)


@dataclasses.dataclass(frozen=True)
class Language:
  """One world's language: who its writers are and what its raters value."""

  world: int
  num_words: int = 48  # of WORDS: the language's vocabulary
  prompt_words: int = 12
  response_words: int = 12  # that writers write at most
  fewest_words: int = 1  # and at least
  # What raters value.
  weights: tuple[float, float] = (0.0, 1.5)  # of words: evenly between these
  topics: int = 1
  topic_weight: float = 0.0  # that a topic adds to a word's weight, or takes, at most
  kinds: int = 1
  kind_bonus: float = 0.0  # that neighbours of two kinds are worth, or cost, at most
  order_bonus: float = 0.2
  repeat_cost: float = 0.7
  off_prompt_cost: float = 1.0
  length_cost: float = 0.9
  free_words: int = 0
  spread: float = 0.0  # a world's bonuses and costs: up to this part more or less
  temperature: float = 1.0
  # Who writes.
  care: tuple[float, float] = (0.7, 3.0)  # a pair's is log-uniform between them
  stranger_rate: float = 0.1  # words not from the prompt: a pair's rate at most
  repeat_rate: float = 0.05  # words said just before: a pair's rate at most

  def __post_init__(self):
    low, high = self.care
    possible = {
      f"2 to {len(WORDS)} num_words": 2 <= self.num_words <= len(WORDS),
      f"1 to num_words prompt_words, at most {LONGEST}": (
        1 <= self.prompt_words <= min(self.num_words, LONGEST)
      ),
      "1 to prompt_words response_words": 1 <= self.response_words <= self.prompt_words,
      "1 to response_words fewest_words": 1 <= self.fewest_words <= self.response_words,
      "at least 1 topics and kinds": self.topics >= 1 and self.kinds >= 1,
      "care from a positive number to one no smaller": 0 < low <= high < np.inf,
      "a stranger_rate in [0, 1]": 0 <= self.stranger_rate <= 1,
      "a repeat_rate in [0, 1]": 0 <= self.repeat_rate <= 1,
      "a spread in [0, 1)": 0 <= self.spread < 1,
      "a repeat_cost above what a neighbour may earn, and an off_prompt_cost above 0": (
        self._strict
      ),
      "a temperature above 0": 0 < self.temperature < np.inf,
    }
    for needed, holds in possible.items():
      if not holds:
        raise UserError(f"data.language needs {needed}")

  @property
  def _strict(self) -> bool:
    """Whether a repeat costs more than a neighbour may earn, and a stranger at all.

    So none pays at a response's end. Between neighbours that cost much one still may.
    """
    most = (1 + self.spread) * max(0.0, self.order_bonus) + self.kind_bonus
    return self.off_prompt_cost > 0 and (1 - self.spread) * self.repeat_cost > most

  def rng(self, stream: int, block: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[self.world, stream + 16 * block]))

  @functools.cached_property
  def values(self) -> Values:
    rng, W, K = self.rng(0), self.num_words, self.kinds
    weights_W = rng.permutation(np.linspace(*self.weights, W))
    shift_W = np.linspace(-self.topic_weight, self.topic_weight, W)
    bonuses = np.linspace(-self.kind_bonus, self.kind_bonus, K * K) if K > 1 else [0.0]
    shifts = [rng.permutation(shift_W) for _ in range(self.topics)]
    factors = rng.uniform(1 - self.spread, 1 + self.spread, 4).tolist()
    return Values(
      weights_ZxW=weights_W + np.stack(shifts),
      kinds_W=rng.permutation(np.arange(W) % K),
      kind_bonus_KxK=rng.permutation(bonuses).reshape(K, K),
      order_bonus=self.order_bonus * factors[0],
      repeat_cost=self.repeat_cost * factors[1],
      off_prompt_cost=self.off_prompt_cost * factors[2],
      length_cost=self.length_cost * factors[3],
      free_words=self.free_words,
    )

  # --- the truth ---

  def utility(self, prompt: Sequence[str], response: Sequence[str]) -> float:
    """The truth about one response, given as words."""
    return float(self.utilities([prompt], [response])[0])

  def utilities(
    self, prompts: Sequence[Sequence[str]], responses: Sequence[Sequence[str]]
  ) -> np.ndarray:
    """The truth about a response to each prompt, given as words: float P."""
    posts = numbers([[word.lower() for word in prompt] for prompt in prompts])
    return self.values.utilities(posts, numbers(responses))

  # --- the raters' and writers' part ---

  def examples(self, num_pairs: int) -> Iterator[Example]:
    """`num_pairs` rated pairs, each of its own prompt."""
    for start in range(0, num_pairs, _BLOCK):
      posts, responses, prefers_first = self.block(start // _BLOCK)
      for i in range(min(_BLOCK, num_pairs - start)):
        prompt = " ".join(WORDS[w].upper() for w in posts[i])
        pair = [" ".join(WORDS[w] for w in r[i] if w >= 0) for r in responses]
        chosen, rejected = pair if prefers_first[i] else pair[::-1]
        if chosen != rejected:
          yield Example(prompt, chosen, rejected, f"toy:{start + i}")

  def block(self, number: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A block of pairs as numbers of words: posts, the two responses, who is preferred.

    Returns:
      int NxS; two of int NxT; bool N, where the first is preferred.
    """
    rng, values = self.rng(1, number), self.values
    posts = rng.permuted(np.tile(np.arange(self.num_words), (_BLOCK, 1)), axis=1)
    posts = posts[:, : self.prompt_words]
    least, most = np.log(self.care)
    care = np.exp(rng.uniform(least, most, (_BLOCK, 1)))
    stranger_rate = rng.uniform(0, self.stranger_rate, (_BLOCK, 1))
    repeat_rate = rng.uniform(0, self.repeat_rate, (_BLOCK, 1))
    first, second = (
      self._write(rng, posts, care, stranger_rate, repeat_rate) for _ in range(2)
    )
    gap = values.utilities(posts, first) - values.utilities(posts, second)
    prefers_first = rng.random(_BLOCK) < 1 / (1 + np.exp(-gap / self.temperature))
    return posts, [first, second], prefers_first

  def _write(self, rng, posts_NxS, care, stranger_rate, repeat_rate) -> np.ndarray:
    """Noisy extracts of posts, int NxS: the more care, the better words and order."""
    N, S = posts_NxS.shape
    weights = self.values.weights_ZxW
    appeal = care * weights[self.values.topics(posts_NxS)[:, None], posts_NxS]
    chosen = np.argsort(-(appeal + rng.gumbel(size=(N, S))), axis=1)
    order = chosen + rng.normal(size=(N, S)) * 6.0 / care
    length = rng.integers(self.fewest_words, self.response_words + 1, (N, 1))
    outside = np.arange(S) >= length  # what is not chosen goes to the end
    chosen = np.take_along_axis(
      chosen, np.argsort(np.where(outside, np.inf, order), axis=1), axis=1
    )
    said = np.take_along_axis(posts_NxS, chosen, axis=1)
    slips = rng.random((N, S))
    strangers = rng.integers(0, self.num_words, (N, S))
    said = np.where(slips < stranger_rate, strangers, said)
    repeats = (slips > 1 - repeat_rate) & (np.arange(S) > 0)
    said = np.where(repeats, np.roll(said, 1, axis=1), said)
    return np.where(outside, NO_WORD, said)


_BLOCK = 1024  # pairs that are made at once; a part of what a world is
