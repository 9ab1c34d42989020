"""Scoring responses with a model: log-probabilities, KL and entropy, whatever V is.

Up to `WHOLE` rows of a vocabulary logits are made whole: there is little to save, and a
loop would cost time. Beyond, they are made for a few positions of T at a time
(logprobs.py), and BxNxTxV is never stored.
"""

import dataclasses
import functools

from alignment.core import logprobs
from alignment.models.protocol import Model
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params

WHOLE = 65_536  # rows of a vocabulary
CHUNK = 2**26  # logits that a device makes at a time, where there are more: 256 MB


def score(model: Model, params: Params, batch: Batch) -> Array:
  """log pi(y|x), summed over each response's tokens: float32 BxN."""
  return Predictions.of(model, params, batch).logps(batch)


def score_and_kl(
  model: Model, params: Params, reference_params: Params, batch: Batch
) -> tuple[Array, Array]:
  """The same, and the exact KL from the reference, summed over tokens: each BxN."""
  policy = Predictions.of(model, params, batch)
  reference = Predictions.of(model, reference_params, batch)
  return policy.logps(batch), policy.kl(reference, batch.lengths_BxN)


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a model predicts at every token of a batch's responses, while tracing.

  Attributes:
    hidden_BxNxTxD: position t predicts token t.
    logits_BxNxTxV: float32, or None where they are too many to be held.
  """

  model: Model
  params: Params
  hidden_BxNxTxD: Array
  logits_BxNxTxV: Array | None

  @classmethod
  def of(cls, model: Model, params: Params, batch: Batch) -> "Predictions":
    context = model.prepare(params, batch.prompts_BxS, batch.prompt_lengths_B)
    hidden_BxNxTxD = model.hidden(params, context, batch.responses_BxNxT)
    whole = model.cfg.vocab_rows <= WHOLE
    logits = model.logits(params, hidden_BxNxTxD) if whole else None
    return cls(model, params, hidden_BxNxTxD, logits)

  def first(self, count: int) -> "Predictions":
    """Those of the first so many responses."""
    logits = None if self.logits_BxNxTxV is None else self.logits_BxNxTxV[:, :count]
    hidden = self.hidden_BxNxTxD[:, :count]
    return dataclasses.replace(self, hidden_BxNxTxD=hidden, logits_BxNxTxV=logits)

  def logps(self, batch: Batch) -> Array:
    """log pi(y|x) of the batch's responses, float32 BxN."""
    logps_BxNxT = self.token_logps(batch.responses_BxNxT)
    return logprobs.sequence_logps(logps_BxNxT, batch.lengths_BxN)

  def token_logps(self, responses_BxNxT: Array) -> Array:
    """log pi(token), float32 BxNxT."""
    if self.logits_BxNxTxV is not None:
      return logprobs.token_logps(self.logits_BxNxTxV, responses_BxNxT)
    return logprobs.chunked_token_logps(
      self.hidden_BxNxTxD, self._head, responses_BxNxT, self._chunk
    )

  def kl(self, other: "Predictions", lengths_BxN: Array) -> Array:
    """Exact KL from another model's, summed over tokens: float32 BxN."""
    if self.logits_BxNxTxV is not None and other.logits_BxNxTxV is not None:
      return logprobs.exact_kl(self.logits_BxNxTxV, other.logits_BxNxTxV, lengths_BxN)
    return logprobs.chunked_kl(
      self.hidden_BxNxTxD,
      self._head,
      other.hidden_BxNxTxD,
      other._head,
      lengths_BxN,
      self._chunk,
    )

  def entropy(self, lengths_BxN: Array) -> Array:
    """Summed over tokens, float32 BxN."""
    if self.logits_BxNxTxV is not None:
      return logprobs.entropy(self.logits_BxNxTxV, lengths_BxN)
    return logprobs.chunked_entropy(
      self.hidden_BxNxTxD, self._head, lengths_BxN, self._chunk
    )

  @property
  def _head(self) -> logprobs.Head:
    return functools.partial(self.model.logits, self.params)

  @property
  def _chunk(self) -> int:
    """Positions of T to make logits of at a time, rows shared out over devices.

    Every chunk gathers the head once more, and sums its gradient over the devices.
    """
    B, N, _, _ = self.hidden_BxNxTxD.shape
    logits = CHUNK * sharding.device_count()
    return max(1, logits // (B * N * self.model.cfg.vocab_rows))
