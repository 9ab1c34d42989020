"""Pairs of text as pairs of tokens: streamed, with statistics of what was dropped."""

from array import array
import dataclasses

import numpy as np

from alignment.data import pairs
from alignment.data.readers import Example
from alignment.data.vocabularies import EOS_ID, Vocabulary
from alignment.types import UserError


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What a `Tokenizer` kept and dropped.

  Lengths are (median, 90 %, max) of the kept pairs' tokens with EOS, before truncation.
  """

  pairs: int
  prompts: int  # distinct
  dropped: dict[str, int]  # pairs, by reason
  prompt_tokens: tuple[int, int, int]
  response_tokens: tuple[int, int, int]
  truncated_prompts: float  # fraction of pairs
  truncated_responses: float  # fraction of responses

  def lines(self) -> list[str]:
    """The statistics in words."""
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(self.dropped.items()))
    row = "{} tokens: median {:,}, 90 % {:,}, max {:,}; {:.1%} truncated"
    return [
      f"{self.pairs:,} pairs of {self.prompts:,} distinct prompts;"
      f" dropped: {dropped or 'none'}",
      row.format("prompt", *self.prompt_tokens, self.truncated_prompts),
      row.format("response", *self.response_tokens, self.truncated_responses),
    ]


class Tokenizer:
  """Tokenises pairs one by one; `chosen` becomes response 0.

  Tokens go to unnamed temporary files (in TMPDIR), so memory stays small. Every prompt
  ends with EOS, as T5's encoder inputs do, also when truncated. A response ends with
  EOS unless it was cut: none is invented.
  """

  def __init__(
    self,
    vocab: Vocabulary,
    *,
    prompt_length: int,
    response_length: int,
    truncate_prompt: str,
    long_response: str,
  ):
    """Says how pairs are tokenised.

    Args:
      vocab: the vocabulary.
      prompt_length: the most tokens of a prompt, EOS included.
      response_length: the most tokens of a response, EOS included.
      truncate_prompt: the side that a long prompt loses, 'left' or 'right'.
      long_response: 'truncate' cuts the end, 'drop' drops and counts the pair, 'error'.

    Raises:
      UserError: a bad option.
    """
    if truncate_prompt not in ("left", "right"):
      raise UserError(
        f"data.truncate_prompt is {truncate_prompt!r}; use 'left' or 'right'"
      )
    if long_response not in ("truncate", "drop", "error"):
      raise UserError(
        f"data.long_response is {long_response!r}; use 'truncate', 'drop' or 'error'"
      )
    for key, limit in ("prompt", prompt_length), ("response", response_length):
      if limit < 2:
        raise UserError(f"{key}_length is {limit}; use at least 2 (one is EOS's)")
    self._vocab, self._long_response = vocab, long_response
    self._prompt_length, self._truncate_prompt = prompt_length, truncate_prompt
    self._response_length = response_length
    self._dropped: dict[str, int] = {}
    self._prompts = pairs.RaggedWriter()
    self._responses = pairs.RaggedWriter(), pairs.RaggedWriter()
    self._prompt_hashes = array("q")
    # With EOS, before truncation.
    self._prompt_tokens, self._response_tokens = array("q"), array("q")

  def add(self, example: Example) -> None:
    """Takes a pair, or counts it as dropped.

    Reasons are 'long', 'untokenizable' (a response left without tokens) and 'identical
    tokens' (responses equal once truncated).

    Raises:
      UserError: a word the vocabulary lacks, or a long response under 'error'.
    """
    prompt = self._encode(example, "prompt")
    pair = [self._encode(example, field) for field in ("chosen", "rejected")]
    if not all(pair):
      self._drop("untokenizable")
      return
    lengths = [len(ids) + 1 for ids in pair]
    if max(lengths) > self._response_length and self._long_response != "truncate":
      if self._long_response == "drop":
        self._drop("long")
        return
      field = "chosen" if lengths[0] > self._response_length else "rejected"
      length = lengths[0] if field == "chosen" else lengths[1]
      raise UserError(
        f"{example.source}: field '{field}': {length} tokens with EOS, over"
        f" response_length={self._response_length}; raise it, or set"
        " data.long_response='truncate' or 'drop'"
      )
    pair = [[*ids, self._vocab.eos_id][: self._response_length] for ids in pair]
    if pair[0] == pair[1]:
      self._drop("identical tokens")
      return
    self._prompt_hashes.append(hash(example.prompt))
    self._prompt_tokens.append(len(prompt) + 1)
    self._response_tokens.extend(lengths)
    self._prompts.append(fit_prompt(prompt, self._prompt_length, self._truncate_prompt))
    for writer, ids in zip(self._responses, pair, strict=True):
      writer.append(ids)

  def __len__(self) -> int:
    """Pairs kept so far."""
    return len(self._prompt_tokens)

  def finish(self) -> tuple[pairs.PairDataset, Statistics]:
    """The pairs, and what was kept of them.

    Raises:
      UserError: no pair is left.
    """
    dropped = dict(self._dropped)
    if not self._prompt_tokens:
      raise UserError(
        f"no pairs are left to train on (dropped: {dropped}); check the data set,"
        " response_length and data.long_response"
      )
    first, second = self._responses
    responses = first.finish(), second.finish()
    dataset = pairs.PairDataset(self._prompts.finish(), responses)
    prompt_sizes = np.array(self._prompt_tokens)
    response_sizes = np.array(self._response_tokens)
    statistics = Statistics(
      pairs=len(dataset),
      prompts=len(np.unique(self._prompt_hashes)),
      dropped=dropped,
      prompt_tokens=_quantiles(prompt_sizes),
      response_tokens=_quantiles(response_sizes),
      truncated_prompts=float(np.mean(prompt_sizes > self._prompt_length)),
      truncated_responses=float(np.mean(response_sizes > self._response_length)),
    )
    return dataset, statistics

  def _encode(self, example: Example, field: str) -> list[int]:
    try:
      return self._vocab.encode(getattr(example, field))
    except UserError as e:
      raise UserError(f"{example.source}: field '{field}': {e}") from e

  def _drop(self, reason: str) -> None:
    self._dropped[reason] = self._dropped.get(reason, 0) + 1


def fit_prompt(ids: list[int], prompt_length: int, truncate_prompt: str) -> list[int]:
  """A prompt as encoders read it: cut on the given side to fit, EOS at its end."""
  excess = max(0, len(ids) + 1 - prompt_length)
  kept = ids[excess:] if truncate_prompt == "left" else ids[: len(ids) - excess]
  return [*kept, EOS_ID]


def _quantiles(lengths: np.ndarray) -> tuple[int, int, int]:
  median, most, longest = np.quantile(lengths, [0.5, 0.9, 1.0], method="higher")
  return int(median), int(most), int(longest)
