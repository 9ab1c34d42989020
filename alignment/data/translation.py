"""What one vocabulary wrote, as another reads it: by way of text, on the host.

A judge may have a vocabulary of its own. What it reads is then the text of the prompt
as the study's vocabulary shows it to policies, and the text of what they wrote.
"""

from collections.abc import Iterable, Sequence
import dataclasses

import numpy as np

from alignment.data import chats
from alignment.data.chats import Conversation
from alignment.data.vocabularies import FittedPrompt, Vocabulary
from alignment.types import Batch, UserError


def read_prompt(vocabulary: Vocabulary, ids: Iterable[int]) -> str | Conversation:
  """What a prompt says, without the marks of its vocabulary.

  A text, or the messages from which a chat template wrote it. Of a template whose marks
  are not understood (marks.py) it is the text with them.
  """
  ids, start = list(ids), vocabulary.before_prompt
  if (conversation := vocabulary.conversation(ids)) is not None:
    return conversation
  if tuple(ids[: len(start)]) == start:
    ids = ids[len(start) :]
  return vocabulary.decode_prompt(ids)


def prompt_text(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
  """The same as text: messages as a transcript."""
  prompt = read_prompt(vocabulary, ids)
  return prompt if isinstance(prompt, str) else chats.transcript(prompt)


def texts(vocabulary: Vocabulary, batch: Batch) -> list[tuple[str, list[str]]]:
  """(prompt, its N responses) of every row of host arrays."""
  rows = zip(
    batch.prompts_BxS,
    batch.prompt_lengths_B,
    batch.responses_BxNxT,
    batch.lengths_BxN,
    strict=True,
  )
  return [
    (
      prompt_text(vocabulary, prompt_S[:length]),
      [
        vocabulary.decode(response_T[:n])
        for response_T, n in zip(responses_NxT, lengths_N, strict=True)
      ],
    )
    for prompt_S, length, responses_NxT, lengths_N in rows
  ]


@dataclasses.dataclass(frozen=True)
class Translation:
  """From one vocabulary to another, whose lengths are given; hashable.

  A prompt that a chat template wrote is written anew: by the target's template, or as a
  transcript where it has none.
  """

  source: Vocabulary
  target: Vocabulary
  prompt_length: int  # the most ids of a prompt, in the target
  response_length: int  # and of a response
  truncate_prompt: str  # the side that a long prompt loses

  def prompt(self, prompt: str | Conversation) -> FittedPrompt:
    """A prompt's ids, cut to fit.

    Raises:
      UserError: the target cannot write it.
    """
    return self.target.fit_prompt(prompt, self.prompt_length, self.truncate_prompt)

  def response(self, prompt: str | Conversation, ids: Iterable[int]) -> list[int]:
    """All ids of a response; its end, if it has one, becomes the target's."""
    ids = [int(i) for i in ids]
    written = self.target.written(prompt, self.source.decode(ids))
    ended = not set(self.source.ending_ids).isdisjoint(ids)
    return [*written, self.target.eos_id] if ended else written

  def batch(self, batch: Batch) -> Batch:
    """The same rows in the target's ids; host arrays, as those of `batch`.

    Raises:
      UserError: naming the row's id, for a prompt that the target cannot write.
    """
    prompts, responses = [], []
    for b in range(len(batch.ids_B)):
      length = int(batch.prompt_lengths_B[b])
      prompt = read_prompt(self.source, batch.prompts_BxS[b, :length])
      try:
        prompts.append(self.prompt(prompt).ids)
      except UserError as error:
        raise UserError(f"prompt {batch.ids_B[b]}, for the judge: {error}") from None
      for response_T, n in zip(
        batch.responses_BxNxT[b], batch.lengths_BxN[b], strict=True
      ):
        ids = self.response(prompt, response_T[:n])
        responses.append(ids[: self.response_length])
    prompts_BxS, prompt_lengths_B = _padded(prompts, self.prompt_length)
    flat, lengths = _padded(responses, self.response_length)
    shape = batch.lengths_BxN.shape
    return batch.replace(
      prompts_BxS=prompts_BxS,
      prompt_lengths_B=prompt_lengths_B,
      responses_BxNxT=flat.reshape(*shape, self.response_length),
      lengths_BxN=lengths.reshape(shape),
    )


def _padded(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows right-padded with 0, and their lengths, int32."""
  tokens = np.zeros((len(rows), width), np.int32)
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  return tokens, np.array([len(ids) for ids in rows], np.int32)
