"""What a world of a toy language can be won with: its optimum, and ways around it.

A study of policies decides nothing in a world whose best response needs no learning,
nor one of judges where anybody sees which response is better. `Audit.of` measures both,
offline and in seconds; `check` refuses a world that a trivial policy wins.

  python -m alignment.data.toy_audit rich 0 6    # worlds 0 to 5 of a language
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import sys

import numpy as np

from alignment.data import toy
from alignment.data.toy import NO_WORD, Language
from alignment.types import UserError

PROMPTS = 512  # on which policies are compared
PAIRS = 8192  # on which judges are; half of them to fit what is fitted
CLOSE = 0.5  # of the way from writers to the optimum: no trivial policy may come so far


@dataclasses.dataclass(frozen=True)
class Audit:
  """Mean true utilities of policies, and accuracies of judges on writers' pairs.

  Attributes:
    optimum: of the best response to each prompt that repeats no word and has no
      stranger, exactly.
    writers: of those that wrote the data.
    trivial: of policies that need not know what words are worth, by name.
    blind: accuracy of the utility of an average word: it knows costs and order, but
      neither weights nor kinds.
    no_topics, no_kinds: accuracies of those who know all else.
    linear: accuracy of the best sum over words, which is told the true utilities.
    raters: of the best judge there is, on labels: raters disagree with themselves.
  """

  world: int
  optimum: float
  writers: float
  trivial: dict[str, float]
  blind: float
  no_topics: float
  no_kinds: float
  linear: float
  raters: float

  @classmethod
  def of(cls, language: Language) -> "Audit":
    pairs = [language.block(i) for i in range(PAIRS // len(language.block(0)[2]))]
    posts = np.concatenate([p for p, _, _ in pairs])
    both = [np.concatenate([r[i] for _, r, _ in pairs]) for i in (0, 1)]
    values = language.values
    utility = [values.utilities(posts, responses) for responses in both]
    gap = utility[0] - utility[1]
    some = posts[:PROMPTS]
    return cls(
      world=language.world,
      optimum=float(optima(language, some).mean()),
      writers=float(np.mean(utility)),
      trivial={
        name: float(values.utilities(some, responses).mean())
        for name, responses in _trivial(language, some, both[0]).items()
      },
      blind=_accuracy(_without(language, posts, both, "words", "kinds"), gap),
      no_topics=_accuracy(_without(language, posts, both, "topics"), gap),
      no_kinds=_accuracy(_without(language, posts, both, "kinds"), gap),
      linear=_accuracy(_linear(language, posts, both, gap), gap),
      raters=float(np.mean(1 / (1 + np.exp(-np.abs(gap) / language.temperature)))),
    )

  @property
  def closest(self) -> tuple[str, float]:
    """The best trivial policy: its share of the way from writers to the optimum."""
    name = max(self.trivial, key=lambda n: self.trivial[n])
    way = self.optimum - self.writers
    return name, (self.trivial[name] - self.writers) / way if way > 0 else 1.0

  def check(self) -> None:
    """
    Raises:
      UserError: if a trivial policy wins this world, or comes close to the optimum.
    """
    name, share = self.closest
    if share > CLOSE:
      raise UserError(
        f"data.language: in world {self.world} a trivial policy ({name}, utility "
        f"{self.trivial[name]:.2f}) goes {share:.0%} of the way from the writers "
        f"({self.writers:.2f}) to the optimum ({self.optimum:.2f}), more than "
        f"{CLOSE:.0%}: raise what words cost, or choose another language"
      )

  def lines(self) -> list[str]:
    """For people."""
    name, share = self.closest
    return [
      f"true utility: optimum {self.optimum:.2f}, writers {self.writers:.2f}; "
      + ", ".join(f"{name} {value:.2f}" for name, value in self.trivial.items()),
      f"the best trivial policy ({name}) goes {share:.0%} of the way from the writers "
      "to the optimum",
      f"accuracy on the truth: blind to words {self.blind:.3f}, to topics "
      f"{self.no_topics:.3f}, to kinds of neighbours {self.no_kinds:.3f}; best sum "
      f"over words {self.linear:.3f}; of a perfect judge on raters' labels "
      f"{self.raters:.3f}",
    ]


@functools.cache
def audit_of(language: Language) -> Audit:
  """`Audit.of`, once per language and process."""
  return Audit.of(language)


def optima(language: Language, posts_PxS: np.ndarray) -> np.ndarray:
  """The utility of the best response that has each word of a post once at most.

  Float P, exact: over sets of the post's words, the best order that ends with each.
  Where kinds of neighbours cost much, a repeat or a stranger between them may earn
  more than it costs, so with kinds the best of all responses can be a little better.
  """
  v = language.values
  P, S = posts_PxS.shape
  gain_PxS = v.weights_ZxW[v.topics(posts_PxS)[:, None], posts_PxS]
  kinds_PxS = v.kinds_W[posts_PxS]
  step_PxSxS = v.kind_bonus_KxK[kinds_PxS[:, :, None], kinds_PxS[:, None, :]]
  step_PxSxS = step_PxSxS + v.order_bonus * np.triu(np.ones((S, S)), 1)
  best_MxPxS = np.full((1 << S, P, S), -np.inf, np.float32)
  best_P = np.zeros(P)
  for named in range(1, 1 << S):  # bits: a set comes after all of its subsets
    last = [s for s in range(S) if named >> s & 1]
    for s in last:
      before_PxS = best_MxPxS[named ^ (1 << s)]
      reached_P = (before_PxS + step_PxSxS[:, :, s]).max(axis=1)
      best_MxPxS[named, :, s] = gain_PxS[:, s] + (0 if len(last) == 1 else reached_P)
    cost = v.length_cost * max(0, len(last) - v.free_words)
    best_P = np.maximum(best_P, best_MxPxS[named].max(axis=1) - cost)
  return best_P


def _trivial(
  language: Language, posts_PxS: np.ndarray, written_NxT: np.ndarray
) -> dict[str, np.ndarray]:
  """Responses that need no knowledge of what is worth what, int PxT."""
  rng = np.random.default_rng(0)
  P = len(posts_PxS)
  common = np.argsort(-np.bincount(written_NxT[written_NxT != NO_WORD]), kind="stable")
  constants = [np.tile(common[:length], (P, 1)) for length in (1, 3, 6)]
  score = [language.values.utilities(posts_PxS, c).mean() for c in constants]
  half = posts_PxS.shape[1] // 2
  return {
    "copy": posts_PxS,
    "reversed copy": posts_PxS[:, ::-1],
    "shuffled prompt": rng.permuted(posts_PxS, axis=1),
    "first half": posts_PxS[:, :half],
    "first word": posts_PxS[:, :1],
    "most frequent word": constants[0],
    "constant": constants[int(np.argmax(score))],
    "nothing": np.full((P, 1), NO_WORD),
  }


def _accuracy(margin: np.ndarray, gap: np.ndarray) -> float:
  """How often a margin has the gap's sign, 1/2 where it has none."""
  right = (np.sign(margin) * np.sign(gap) + 1) / 2
  return float(right[gap != 0].mean())


def _without(
  language, posts_NxS: np.ndarray, both: list[np.ndarray], *unknown: str
) -> np.ndarray:
  """The margin of one who takes words, topics or kinds for average ones."""
  weights_ZxW = language.values.weights_ZxW
  bonus_KxK = language.values.kind_bonus_KxK
  if "words" in unknown:
    weights_ZxW = np.full_like(weights_ZxW, weights_ZxW.mean())
  if "topics" in unknown:
    weights_ZxW = np.broadcast_to(weights_ZxW.mean(axis=0), weights_ZxW.shape)
  if "kinds" in unknown:
    bonus_KxK = np.full_like(bonus_KxK, bonus_KxK.mean())
  average = dataclasses.replace(
    language.values, weights_ZxW=weights_ZxW, kind_bonus_KxK=bonus_KxK
  )
  first, second = (average.utilities(posts_NxS, responses) for responses in both)
  return first - second


def _linear(
  language, posts_NxS: np.ndarray, both: list[np.ndarray], gap_N: np.ndarray
) -> np.ndarray:
  """The margin of a sum over words, fitted to the other half's true gaps.

  What it sees: which words are named, which are not the post's, how many are repeated
  and how many are in the post's order.
  """
  N, W = len(posts_NxS), language.num_words

  def features(responses_NxT: np.ndarray) -> np.ndarray:
    counts = np.zeros((N, W + 1))
    np.add.at(counts, (np.arange(N)[:, None], responses_NxT), 1)
    counts = counts[:, :W]
    in_post = np.zeros((N, W), bool)
    np.put_along_axis(in_post, posts_NxS, True, axis=1)
    said = counts > 0
    place_NxW = np.full((N, W + 1), -1)
    np.put_along_axis(place_NxW, posts_NxS, np.arange(posts_NxS.shape[1])[None], 1)
    place = np.take_along_axis(place_NxW, responses_NxT % (W + 1), axis=1)
    rises = (place[:, :-1] >= 0) & (place[:, 1:] > place[:, :-1])
    extra = [(said & ~in_post).sum(1), (counts - said).sum(1), rises.sum(1)]
    return np.concatenate([said & in_post, np.stack(extra, 1)], axis=1)

  x = features(both[0]) - features(both[1])
  halves = np.arange(N) % 2 == 0
  margin = np.empty(N)
  for fitted in (halves, ~halves):
    weights = np.linalg.lstsq(x[fitted], gap_N[fitted], rcond=None)[0]
    margin[~fitted] = x[~fitted] @ weights
  return margin


def summary(audits: Sequence[Audit]) -> Iterator[str]:
  """Each number's mean and range over worlds."""
  numbers = {
    "optimum": [audit.optimum for audit in audits],
    "writers": [audit.writers for audit in audits],
    **{name: [a.trivial[name] for a in audits] for name in audits[0].trivial},
    "best trivial policy's share of the way": [a.closest[1] for a in audits],
  }
  for name, values in numbers.items():
    yield f"{name}: {np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
  for name in ("blind", "no_topics", "no_kinds", "linear", "raters"):
    values = [getattr(audit, name) for audit in audits]
    yield f"{name}: {np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main(name: str, first: str, count: str) -> None:
  fields, audits = {"easy": toy.EASY, "rich": toy.RICH}[name], []
  for world in range(int(first), int(first) + int(count)):
    audits.append(Audit.of(Language(world, **fields)))
    print(f"world {world}", *audits[-1].lines(), sep="\n  ")
  print("mean and range", *summary(audits), sep="\n  ")


if __name__ == "__main__":
  main(*sys.argv[1:])
