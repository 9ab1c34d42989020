"""A TL;DR-like language whose raters are a known noisy utility: no download, CPU-sized.

A prompt is a post of `prompt_words` words (in capitals); a response names those that
matter (in small letters). Every world has its own word weights. What makes a summary
good is known, so every judge in the study can itself be checked against the truth:

  utility = sum of weights of the distinct prompt words it names
          + order_bonus x adjacent named words that follow the prompt's order
          - repeat_cost x repeated words - off_prompt_cost x words not in the prompt
          - length_cost x words past `free_words`

Raters prefer response a over b with probability sigmoid((u_a - u_b) / temperature).
Responses come from a crowd of extractive writers. Each is written with a care of its
own, and mistakes (strangers, repeats, rambling) at rates of its own: judges see nearly
everything that a policy may come to write, and can learn what it is worth.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from alignment.data.readers import Example
from alignment.types import UserError

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t")
_NUCLEI = ("a", "e", "i", "o")
WORDS = tuple(o + n for o in _ONSETS for n in _NUCLEI)  # 48 syllables: ba be ... to


def words(num_words: int) -> tuple[str, ...]:
  """A language's whole vocabulary: posts shout (BA), summaries do not (ba)."""
  return tuple(w.upper() for w in WORDS[:num_words]) + WORDS[:num_words]


@dataclasses.dataclass(frozen=True)
class Language:
  """One world's language: who its writers are and what its raters value."""

  world: int
  num_words: int = 48  # of WORDS: the language's vocabulary
  prompt_words: int = 12
  response_words: int = 12
  order_bonus: float = 0.3
  repeat_cost: float = 0.7
  off_prompt_cost: float = 1.0
  length_cost: float = 0.4
  free_words: int = 5
  care: tuple[float, float] = (0.2, 6.0)  # a response's is log-uniform between them
  stranger_rate: float = 0.3  # words not from the prompt: a response's rate at most
  repeat_rate: float = 0.15  # words said just before: a response's rate at most
  temperature: float = 1.0

  def __post_init__(self):
    low, high = self.care
    possible = {
      f"2 to {len(WORDS)} num_words": 2 <= self.num_words <= len(WORDS),
      "1 to num_words prompt_words": 1 <= self.prompt_words <= self.num_words,
      "a positive number of response_words": self.response_words >= 1,
      "care from a positive number to one no smaller": 0 < low <= high < np.inf,
      "a stranger_rate in [0, 1]": 0 <= self.stranger_rate <= 1,
      "a repeat_rate in [0, 1]": 0 <= self.repeat_rate <= 1,
      "a temperature above 0": 0 < self.temperature < np.inf,
    }
    for needed, holds in possible.items():
      if not holds:
        raise UserError(f"data.language needs {needed}")

  def rng(self, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[self.world, stream]))

  def word_weights(self) -> np.ndarray:
    """float [num_words]: what naming each word is worth, 0 to 1.5."""
    return self.rng(0).permutation(np.linspace(0.0, 1.5, self.num_words))

  def utility(self, prompt: list[str], response: list[str]) -> float:
    """The truth about one response, given as words."""
    weights = dict(zip(WORDS, self.word_weights(), strict=False))
    place = {word.lower(): i for i, word in enumerate(prompt)}
    distinct = set(response)
    named = distinct & place.keys()
    total = sum(weights[w] for w in sorted(named))
    steps = zip(response, response[1:], strict=False)
    total += self.order_bonus * sum(
      place[a] < place[b] for a, b in steps if a in place and b in place
    )
    total -= self.repeat_cost * (len(response) - len(distinct))
    total -= self.off_prompt_cost * len(distinct - named)
    total -= self.length_cost * max(0, len(response) - self.free_words)
    return total

  def examples(self, num_pairs: int) -> Iterator[Example]:
    """`num_pairs` rated pairs, each of its own prompt."""
    rng = self.rng(1)
    weights = self.word_weights()
    for i in range(num_pairs):
      post = rng.choice(self.num_words, self.prompt_words, replace=False)
      prompt = [WORDS[w].upper() for w in post]
      first, second = (
        [WORDS[w] for w in self._write(rng, post, weights)] for _ in range(2)
      )
      gap = self.utility(prompt, first) - self.utility(prompt, second)
      if rng.random() >= 1 / (1 + np.exp(-gap / self.temperature)):
        first, second = second, first
      if first != second:
        yield Example(" ".join(prompt), " ".join(first), " ".join(second), f"toy:{i}")

  def _write(self, rng, post: np.ndarray, weights: np.ndarray) -> list[int]:
    """A noisy extract of the post: the more care, the better its words and order."""
    length = int(rng.integers(1, self.response_words + 1))
    care = np.exp(rng.uniform(*np.log(self.care)))
    stranger_rate = rng.uniform(0, self.stranger_rate)
    repeat_rate = rng.uniform(0, self.repeat_rate)
    appeal = care * weights[post] + rng.gumbel(size=len(post))
    chosen = np.argsort(-appeal)[:length]
    order = chosen + rng.normal(scale=6.0 / care, size=len(chosen))
    words = post[chosen[np.argsort(order)]]
    slips = rng.random(len(words))
    strangers = rng.integers(0, self.num_words, len(words))
    words = np.where(slips < stranger_rate, strangers, words)
    repeats = (slips > 1 - repeat_rate) & (np.arange(len(words)) > 0)
    return list(np.where(repeats, np.roll(words, 1), words))
