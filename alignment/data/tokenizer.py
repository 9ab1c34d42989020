"""Pairs of text as pairs of tokens: streamed, split, with statistics."""

from array import array
import dataclasses
from typing import NamedTuple

import numpy as np

from alignment.data import pairs, transcripts
from alignment.data.chats import Conversation
from alignment.data.examples import Example, Messages, Reading
from alignment.data.split import Splitter
from alignment.data.vocabularies import FittedPrompt, Vocabulary
from alignment.types import UserError

WARN_UNKNOWN, MAX_UNKNOWN = 0.01, 0.1  # shares of tokens that the vocabulary lacks


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What there is in some tokenised pairs.

  Lengths are (median, 90 %, max) of tokens with EOS. They, and what is unknown, are
  counted before truncation.
  """

  pairs: int
  prompts: int  # distinct, as models read them
  repeated_prompts: int  # those of several pairs
  prompt_tokens: tuple[int, int, int]
  response_tokens: tuple[int, int, int]
  truncated_prompts: float  # fraction of pairs
  shortened_chats: float  # fraction of pairs whose prompts lost whole messages
  cut_texts: float  # fraction of pairs whose prompts lost a part of a text
  truncated_responses: float  # fraction of responses
  unknown_in_prompts: float  # fraction of tokens without EOS
  unknown_in_responses: float
  longer_wins: float  # of the pairs whose responses differ in length

  def lines(self) -> list[str]:
    """The statistics in words."""
    row = "{} tokens: median {:,}, 90 % {:,}, max {:,}; {:.1%} truncated"
    lines = [
      f"{self.pairs:,} pairs of {self.prompts:,} distinct prompts,"
      f" {self.repeated_prompts:,} of them in several pairs",
      row.format("prompt", *self.prompt_tokens, self.truncated_prompts),
      row.format("response", *self.response_tokens, self.truncated_responses),
      f"the longer response is preferred in {self.longer_wins:.1%} of pairs that differ"
      " in length",
    ]
    if self.shortened_chats:
      lines.append(
        f"{self.shortened_chats:.1%} of prompts lost whole messages to fit,"
        f" {self.cut_texts:.1%} a part of their text"
      )
    unknown = max(self.unknown_in_prompts, self.unknown_in_responses)
    if unknown:
      warning = "warning: " if unknown >= WARN_UNKNOWN else ""
      lines.append(
        f"{warning}{self.unknown_in_prompts:.2%} of the prompts' tokens and"
        f" {self.unknown_in_responses:.2%} of the responses' are unknown to the"
        " vocabulary"
      )
    return lines


class Tokenized(NamedTuple):
  """The pairs of one split, and what there is in them."""

  pairs: pairs.PairDataset
  statistics: Statistics


class Tokenizer:
  """Tokenises pairs one by one; `chosen` becomes response 0.

  The vocabulary writes prompts and responses as its model reads them. Tokens go to
  unnamed temporary files (in TMPDIR), so memory stays small. A response ends with EOS
  unless it was cut: none is invented.
  """

  def __init__(
    self,
    vocab: Vocabulary,
    reading: Reading,
    *,
    prompt_length: int,
    response_length: int,
    truncate_prompt: str,
    long_response: str,
  ):
    """Says how pairs are tokenised.

    Args:
      vocab: the vocabulary.
      reading: counts what is dropped.
      prompt_length: the most tokens of a prompt, with all that stands around it.
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
    self._vocab, self._reading = vocab, reading
    self._long_response = long_response
    self._prompt_length, self._truncate_prompt = prompt_length, truncate_prompt
    self._response_length = response_length
    self._prompts = pairs.RaggedWriter()
    self._responses = pairs.RaggedWriter(), pairs.RaggedWriter()
    self._splitter = Splitter()
    # Of every pair: tokens with EOS, before truncation, and how many are unknown.
    self._prompt_tokens, self._response_tokens = array("i"), array("i")
    self._unknown_in_prompts, self._unknown_in_responses = array("i"), array("i")
    self._messages_cut, self._text_cut = array("i"), array("b")

  def add(self, example: Example) -> None:
    """Takes a pair, or counts it as dropped.

    Reasons are 'long', 'untokenizable' (a response left without tokens), 'identical
    tokens' (responses equal once truncated) and 'identical but for unknown text'.

    Raises:
      UserError: a word the vocabulary lacks, a message that it cannot show, or a long
        response under 'error'.
    """
    read = self.read(example)
    if read is None:
      self._reading.dropped["untokenizable"] += 1
      return
    fitted, replies = read
    lengths = [len(reply) for reply in replies]
    if max(lengths) > self._response_length and self._long_response != "truncate":
      self._refuse_long(lengths, example.source)
      return
    cut = [reply[: self._response_length] for reply in replies]
    if cut[0] == cut[1]:
      lost = any(map(self._vocab.unknown, cut))
      reason = "identical but for unknown text" if lost else "identical tokens"
      self._reading.dropped[reason] += 1
      return
    opening = transcripts.opening(example.asked or example.prompt)
    self._splitter.add(opening, self._vocab.encode(opening), fitted.ids)
    self._prompt_tokens.append(len(fitted.whole))
    self._response_tokens.extend(lengths)
    self._messages_cut.append(fitted.messages_cut)
    self._text_cut.append(fitted.text_cut)
    unknown = self._vocab.unknown
    self._unknown_in_prompts.append(unknown(fitted.whole, _text(example.prompt)))
    for ids, reply in zip(replies, (example.chosen, example.rejected), strict=True):
      self._unknown_in_responses.append(unknown(ids, _text(reply)))
    self._prompts.append(fitted.ids)
    for writer, tokens in zip(self._responses, cut, strict=True):
      writer.append(tokens)

  def read(self, example: Example) -> tuple[FittedPrompt, list[list[int]]] | None:
    """The prompt, cut to fit, and both whole responses; None if one has no tokens.

    It is not taken.

    Raises:
      UserError: naming the field that this vocabulary cannot write.
    """
    vocab, field = self._vocab, "prompt"
    prompt: str | Conversation = example.prompt  # type: ignore[assignment]
    if not isinstance(prompt, str):
      prompt = Conversation(example.prompt, example.tools)  # type: ignore[arg-type]
    try:
      if example.tools and isinstance(prompt, str):
        raise UserError("'tools' stand beside a prompt that is no list of messages")
      fitted = vocab.fit_prompt(prompt, self._prompt_length, self._truncate_prompt)
      replies = []
      for field in ("chosen", "rejected"):
        replies.append(vocab.response(prompt, getattr(example, field)))
    except UserError as e:
      raise UserError(f"{example.source}: field '{field}': {e}") from e
    says_something = fitted.ids and min(map(len, replies)) > 1
    return (fitted, replies) if says_something else None

  def split(self, validation_fraction: float) -> dict[str, Tokenized]:
    """The pairs for 'train' and for 'validation'.

    Raises:
      UserError: no pair is left to train on, or text that the vocabulary lacks.
    """
    is_validation_P = self._splitter.is_validation(validation_fraction)
    if is_validation_P.all():
      raise UserError(
        f"no pairs are left to train on (dropped: {dict(self._reading.dropped)}); check"
        " the data set, response_length, data.long_response and"
        " data.validation_fraction"
      )
    self._check_known(self._statistics(np.arange(len(is_validation_P))))
    first, second = self._responses
    responses = first.finish(), second.finish()
    dataset = pairs.PairDataset(self._prompts.finish(), responses)
    rows = {
      "train": np.flatnonzero(~is_validation_P),
      "validation": np.flatnonzero(is_validation_P),
    }
    return {
      split: Tokenized(dataset.rows(of_split), self._statistics(of_split))
      for split, of_split in rows.items()
    }

  def _refuse_long(self, lengths: list[int], source: str) -> None:
    if self._long_response == "drop":
      self._reading.dropped["long"] += 1
      return
    field = "chosen" if lengths[0] > self._response_length else "rejected"
    length = lengths[0] if field == "chosen" else lengths[1]
    raise UserError(
      f"{source}: field '{field}': {length} tokens with EOS, over"
      f" response_length={self._response_length}; raise it, or set"
      " data.long_response='truncate' or 'drop'"
    )

  def _check_known(self, statistics: Statistics) -> None:
    for field in ("prompts", "responses"):
      share = getattr(statistics, f"unknown_in_{field}")
      if share >= MAX_UNKNOWN:
        raise UserError(
          f"{share:.1%} of the {field}' tokens are unknown to the vocabulary, which"
          " lacks their characters: set vocab to one that has them (vocab.kind='bytes'"
          " has all)"
        )

  def _statistics(self, rows: np.ndarray) -> Statistics:
    """Of the pairs at `rows`."""
    prompt_sizes = np.array(self._prompt_tokens)[rows]
    response_sizes = np.array(self._response_tokens).reshape(-1, 2)[rows]
    unknown = np.array(self._unknown_in_responses).reshape(-1, 2)[rows]
    _, counts = np.unique(self._splitter.prompts_P[rows], return_counts=True)
    unequal = response_sizes[response_sizes[:, 0] != response_sizes[:, 1]]
    return Statistics(
      pairs=len(rows),
      prompts=len(counts),
      repeated_prompts=int((counts > 1).sum()),
      prompt_tokens=_quantiles(prompt_sizes),
      response_tokens=_quantiles(response_sizes),
      truncated_prompts=_share(prompt_sizes > self._prompt_length),
      shortened_chats=_share(np.array(self._messages_cut)[rows] > 0),
      cut_texts=_share(np.array(self._text_cut)[rows] > 0),
      truncated_responses=_share(response_sizes > self._response_length),
      unknown_in_prompts=_ratio(
        np.array(self._unknown_in_prompts)[rows],
        prompt_sizes - len(self._vocab.after_prompt),
      ),
      unknown_in_responses=_ratio(unknown, response_sizes - 1),
      longer_wins=_share(unequal[:, 0] > unequal[:, 1]),
    )


def _text(said: str | Messages) -> str:
  if isinstance(said, str):
    return said
  return "".join(message["content"] or "" for message in said)


def _quantiles(lengths: np.ndarray) -> tuple[int, int, int]:
  if not lengths.size:
    return 0, 0, 0
  median, most, longest = np.quantile(lengths, [0.5, 0.9, 1.0], method="higher")
  return int(median), int(most), int(longest)


def _share(mask: np.ndarray) -> float:
  return float(np.mean(mask)) if mask.size else 0.0


def _ratio(unknown: np.ndarray, tokens: np.ndarray) -> float:
  total = int(np.sum(tokens))
  return int(np.sum(unknown)) / total if total else 0.0
