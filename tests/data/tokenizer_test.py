"""Tokenisation: what is kept, cut and dropped, and what is said of it."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from alignment.data import tokenizer
from alignment.data.readers import Example
from alignment.data.vocabularies import ByteVocabulary, WordVocabulary
from alignment.types import UserError

VOCAB = ByteVocabulary()
LIMITS = {
  "prompt_length": 8,
  "response_length": 5,
  "truncate_prompt": "left",
  "long_response": "truncate",
}


def examples(*triples):
  return [Example(*t, f"f.jsonl:{i}") for i, t in enumerate(triples, start=1)]


def random_examples(n, seed=0, longest=20):
  rng = np.random.default_rng(seed)

  def text(k):
    return bytes(rng.integers(97, 123, rng.integers(1, longest))).decode() + str(k)

  return [Example(text(i), text(0), text(1), f"f.jsonl:{i}") for i in range(n)]


def tokenize(triples, vocab=VOCAB, **changes):
  tokens = tokenizer.Tokenizer(vocab, **(LIMITS | changes))
  for example in triples:
    tokens.add(example)
  return tokens.finish()


def test_tokenize_ends_prompts_and_whole_responses_with_eos():
  dataset, statistics = tokenize(examples(("ab", "cd", "e")))
  a, eos = VOCAB.encode("a")[0], VOCAB.eos_id
  assert dataset.prompts[0].tolist() == [a, a + 1, eos]
  assert dataset.responses[0][0].tolist() == [a + 2, a + 3, eos]
  assert dataset.responses[1][0].tolist() == [a + 4, eos]
  assert statistics.dropped == {} and statistics.pairs == 1


@pytest.mark.parametrize("side, kept", [("left", "456789X"), ("right", "0123456")])
def test_long_prompts_lose_the_named_side_and_keep_eos(side, kept):
  dataset, statistics = tokenize(
    examples(("0123456789X", "a", "b"), ("0123456", "a", "b")), truncate_prompt=side
  )
  assert dataset.prompts[0].tolist() == [*VOCAB.encode(kept), VOCAB.eos_id]
  assert dataset.prompts[1].tolist() == [*VOCAB.encode("0123456"), VOCAB.eos_id]
  assert statistics.truncated_prompts == 0.5
  assert statistics.prompt_tokens == (12, 12, 12)


def test_long_responses():
  # With EOS: 6 (one over), 5 (fits) and 7 tokens.
  triples = examples(("p", "abcde", "a"), ("p", "abcd", "a"), ("p", "a", "abcdef"))
  dataset, statistics = tokenize(triples)
  assert dataset.responses[0][0].tolist() == VOCAB.encode("abcde")  # no EOS is invented
  assert dataset.responses[0][1].tolist() == [*VOCAB.encode("abcd"), VOCAB.eos_id]
  assert statistics.truncated_responses == 2 / 6 and statistics.dropped == {}
  dataset, statistics = tokenize(triples, long_response="drop")
  assert len(dataset) == 1 and statistics.dropped == {"long": 2}
  assert statistics.truncated_responses == 0
  with pytest.raises(
    UserError, match="f.jsonl:1: field 'chosen': 6 tokens with EOS, over response_"
  ):
    tokenize(triples, long_response="error")
  with pytest.raises(UserError, match="f.jsonl:3: field 'rejected': 7 tokens"):
    tokenize(triples[1:], long_response="error")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("limit", [2, 3, 9])
def test_truncation_never_empties_or_overflows(side, limit):
  dataset, statistics = tokenize(
    random_examples(200),
    prompt_length=limit,
    response_length=limit,
    truncate_prompt=side,
  )
  assert len(dataset) + sum(statistics.dropped.values()) == 200
  for i in range(len(dataset)):
    assert 2 <= len(dataset.prompts[i]) <= limit
    assert dataset.prompts[i][-1] == VOCAB.eos_id
    for response in dataset.responses:
      assert 2 <= len(response[i]) <= limit
      assert VOCAB.eos_id not in response[i][:-1]
    assert dataset.responses[0][i].tolist() != dataset.responses[1][i].tolist()


def test_pairs_without_a_difference_left_are_counted():
  class Silent(ByteVocabulary):
    """Knows no '?', as SentencePiece knows no zero-width space."""

    def encode(self, text):
      return super().encode(text.replace("?", ""))

  triples = examples(("p", "abcdeX", "abcdeY"), ("p", "?", "a"), ("p", "a", "b"))
  dataset, statistics = tokenize(triples, Silent())
  assert len(dataset) == 1
  assert statistics.dropped == {"identical tokens": 1, "untokenizable": 1}


def test_statistics_in_words():
  triples = examples(*[("p" * (i + 1), "a" * (i + 1), "b") for i in range(10)])
  again = triples[0]._replace(chosen="c")
  _, statistics = tokenize([*triples, again])
  statistics = dataclasses.replace(statistics, dropped={"long": 1200})
  assert statistics.pairs == 11 and statistics.prompts == 10
  assert statistics.prompt_tokens == (6, 10, 11)
  assert statistics.lines() == [
    "11 pairs of 10 distinct prompts; dropped: 1,200 long",
    "prompt tokens: median 6, 90 % 10, max 11; 27.3% truncated",
    "response tokens: median 2, 90 % 9, max 11; 27.3% truncated",
  ]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"truncate_prompt": "middle"}, "data.truncate_prompt is 'middle'; use"),
    ({"long_response": "keep"}, "data.long_response is 'keep'; use"),
    ({"prompt_length": 1}, "prompt_length is 1; use at least 2"),
    ({"response_length": 0}, "response_length is 0; use at least 2"),
  ],
)
def test_bad_options(changes, message):
  with pytest.raises(UserError, match=message):
    tokenize(examples(("p", "a", "b")), **changes)


def test_no_pairs_left():
  with pytest.raises(UserError, match=r"no pairs are left .*'long': 1"):
    tokenize(examples(("p", "abcdef", "b")), long_response="drop")


def test_unknown_words_name_line_and_field():
  triples = examples(("red", "red", "blue"), ("red", "red", "green"))
  with pytest.raises(
    UserError, match="f.jsonl:2: field 'rejected': unknown word 'green'"
  ):
    tokenize(triples, vocab=WordVocabulary(("red", "blue")))


def test_tokens_do_not_stay_in_memory():
  triple = Example("p" * 400, "a" * 99, "b" * 99, "")
  n = 6000
  tracemalloc.start()
  dataset, _ = tokenize([triple] * n, prompt_length=512, response_length=128)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  tokens = sum(len(r.values) for r in (dataset.prompts, *dataset.responses))
  assert tokens == 601 * n  # 14 MB, of which the prompts' last megatoken was buffered
  assert peak < 0.8 * 4 * tokens
