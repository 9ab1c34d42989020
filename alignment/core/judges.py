"""Judges: what says of a prompt's responses how good they are.

`Judge` is what rollouts, relabelling and evaluations ask of any. The preference model
reads a prompt and two responses, and says which is better:

r(x, y1, y2) = sigmoid(logit_A - logit_B) of two vocabulary ids at the next token
(App. A), so any checkpoint initialises it. Its input is assembled from tokens,
inside jit, by one function that training, relabelling and judging all call: nothing is
ever turned into text and tokenised again.
"""

import dataclasses
import itertools
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alignment.data.vocabularies import JudgeMarkers
from alignment.models.protocol import Model
from alignment.types import Array, Batch, Params, UserError


class Judge(Protocol):
  """Scores the responses of a prompt; hashable, for jit.

  Scores are comparable within a row only. Identical responses have equal ones, so that
  no tie is decided by rounding.
  """

  @property
  def on_host(self) -> bool:
    """Whether it is a Python function of host arrays, which cannot be traced.

    `scores` and `preference` then take numpy arrays, or some that numpy can read, and
    return numpy arrays; each process judges its own rows.
    """
    ...

  def check(self, prompt_length: int, response_length: int) -> None:
    """Raises UserError unless it can read prompts and responses of these lengths."""

  def passes(self, B: int, S: int, N: int, T: int) -> tuple[tuple[Any, ...], ...]:  # noqa: N803
    """What scores of N responses of T tokens cost within a compiled rollout.

    (model, B, S, N, T) of every forward pass; none for a judge on the host.
    """
    ...

  def scores(self, params: Params, batch: Batch) -> Array:
    """Of every response, float32 BxN: higher is better."""
    ...

  def preference(self, params: Params, batch: Batch) -> Array:
    """The order-free margin of response 0 over 1, float32 B: scores' difference."""
    ...


@dataclasses.dataclass(frozen=True)
class PreferenceModel:
  """A model with what it needs to compare two responses; hashable, for jit."""

  on_host: ClassVar[bool] = False
  model: Model
  markers: JudgeMarkers
  context_length: int  # tokens of the assembled input; the prompt is cut to fit
  truncate_prompt: str  # the side it loses: "left" (HH) or "right" (TL;DR)

  def passes(self, B: int, S: int, N: int, T: int) -> tuple[tuple[Any, ...], ...]:  # noqa: N803
    """Both orders of every pair."""
    del S, T
    return ((self.model, B, self.context_length, 1, 1),) * (N * (N - 1))

  def check(self, prompt_length: int, response_length: int) -> None:
    """Responses are never cut, so the budget must hold two of them and some prompt.

    Raises:
      UserError: if it does not.
    """
    markers = self.markers.before_first + self.markers.before_second + self.markers.end
    needed = 2 * response_length + len(markers) + min(prompt_length, 8)
    if self.context_length < needed:
      raise UserError(
        f"judge_context_length {self.context_length} cannot hold two responses of "
        f"{response_length} tokens and a prompt: set it to at least {needed}"
      )

  def logit_margin(
    self, params: Params, prompts_BxS, prompt_lengths_B, first_BxT, first_lengths_B,
    second_BxT, second_lengths_B,
  ) -> Array:  # fmt: skip
    """logit_A - logit_B, float32 B: r(x, first, second) before the sigmoid."""
    tokens_BxC, lengths_B = self.assemble(
      (prompts_BxS, prompt_lengths_B),
      (first_BxT, first_lengths_B),
      (second_BxT, second_lengths_B),
    )
    context = self.model.prepare(params, tokens_BxC, lengths_B)
    one_step = jnp.zeros((tokens_BxC.shape[0], 1, 1), jnp.int32)
    hidden_Bx1x1xD = self.model.hidden(params, context, one_step)
    logits_BxV = self.model.logits(params, hidden_Bx1x1xD)[:, 0, 0]
    return logits_BxV[:, self.markers.first_id] - logits_BxV[:, self.markers.second_id]

  def assemble(self, prompt, first, second) -> tuple[Array, Array]:
    """What the model reads, from (tokens, lengths) of each part: see `assemble`."""
    return assemble(
      prompt,
      first,
      second,
      markers=self.markers,
      context_length=self.context_length,
      truncate_prompt=self.truncate_prompt,
    )

  def both_orders(self, params: Params, batch: Batch) -> tuple[Array, Array]:
    """Logit margins of r(x, y_0, y_1) and of r(x, y_1, y_0), each B.

    Two calls of one function: concatenating both orders into one batch would let
    rounding break the antisymmetry of the label.
    """
    prompt = batch.prompts_BxS, batch.prompt_lengths_B
    first, second = (
      (batch.responses_BxNxT[:, i], batch.lengths_BxN[:, i]) for i in (0, 1)
    )
    return (
      self.logit_margin(params, *prompt, *first, *second),
      self.logit_margin(params, *prompt, *second, *first),
    )

  def preference(self, params: Params, batch: Batch) -> Array:
    """The order-free margin, float32 B: > 0 where response 0 is preferred.

    The sign of r(x, y_0, y_1) - r(x, y_1, y_0), taken on logits, where it does not
    saturate. Identical responses are exactly 0, whatever the rounding.
    """
    forward_B, backward_B = self.both_orders(params, batch)
    return jnp.where(identical(batch), 0.0, (forward_B - backward_B) / 2)

  def scores(self, params: Params, batch: Batch) -> Array:
    """Each response's mean margin over all N, itself (0) among them: float32 BxN.

      s_i = 1/N sum_j m_ij,  m_ij = [r(x, y_i, y_j) - r(x, y_j, y_i)] / 2 in logits

    Where margins are differences of some reward, s_i - s_j = m_ij: the scale does not
    depend on N. Of two responses they are half the margin and its negative, whose
    difference is `preference`, bit for bit.

    Every unordered pair is judged once, in both orders, so that m is antisymmetric by
    construction. Pairs come one after the other: the judge then holds the activations
    of B rows, as for N = 2, not of B N (N - 1) / 2, and B rows keep a device busy.
    """
    N = batch.lengths_BxN.shape[1]
    if N == 2:
      half_B = self.preference(params, batch) / 2
      return jnp.stack([half_B, -half_B], axis=1)

    def pair(indices_2: Array) -> Array:
      return self.preference(params, take_responses(batch, indices_2[None]))

    first_P, second_P = np.array([*itertools.combinations(range(N), 2)]).T
    margins_PxB = jax.lax.map(pair, jnp.stack([first_P, second_P], axis=1))
    zeros_NxNxB = jnp.zeros((N, N, margins_PxB.shape[1]), jnp.float32)
    margins_NxNxB = zeros_NxNxB.at[first_P, second_P].set(margins_PxB)
    margins_NxNxB = margins_NxNxB.at[second_P, first_P].set(-margins_PxB)
    return equal_if_identical(batch, jnp.mean(margins_NxNxB, axis=1).T)


def take_responses(batch: Batch, indices_BxK: Array) -> Batch:
  """The prompts with K of their responses each; indices may be one row for all.

  Log-probabilities of the reference are left as they are: a judge reads none.
  """
  B = batch.lengths_BxN.shape[0]
  indices_BxK = jnp.broadcast_to(indices_BxK, (B, indices_BxK.shape[1]))
  return batch.replace(
    responses_BxNxT=jnp.take_along_axis(
      batch.responses_BxNxT, indices_BxK[:, :, None], axis=1
    ),
    lengths_BxN=jnp.take_along_axis(batch.lengths_BxN, indices_BxK, axis=1),
  )


def equal_if_identical(batch: Batch, scores_BxN: Array) -> Array:
  """The scores, each response's that of the first response with the same tokens."""
  tokens_BxNxT, lengths_BxN = batch.responses_BxNxT, batch.lengths_BxN
  positions_1x1x1xT = jnp.arange(tokens_BxNxT.shape[2])[None, None, None]
  past_BxNx1xT = positions_1x1x1xT >= lengths_BxN[:, :, None, None]
  equal_BxNxNxT = tokens_BxNxT[:, :, None] == tokens_BxNxT[:, None]
  same_BxNxN = jnp.all(equal_BxNxNxT | past_BxNx1xT, axis=3)
  same_BxNxN &= lengths_BxN[:, :, None] == lengths_BxN[:, None]
  first_BxN = jnp.argmax(same_BxNxN, axis=2)
  return jnp.take_along_axis(scores_BxN, first_BxN, axis=1)


def identical(batch: Batch) -> Array:
  """bool B: responses 0 and 1 have the same tokens (padding is not compared)."""
  T = batch.responses_BxNxT.shape[2]
  inside_BxT = jnp.arange(T)[None, :] < batch.lengths_BxN[:, :1]
  same_BxT = batch.responses_BxNxT[:, 0] == batch.responses_BxNxT[:, 1]
  same_length_B = batch.lengths_BxN[:, 0] == batch.lengths_BxN[:, 1]
  return same_length_B & jnp.all(same_BxT | ~inside_BxT, axis=1)


def assemble(
  prompt: tuple[Array, Array],
  first: tuple[Array, Array],
  second: tuple[Array, Array],
  *,
  markers: JudgeMarkers,
  context_length: int,
  truncate_prompt: str,
) -> tuple[Array, Array]:
  """prompt, marker, first, marker, second, end: compacted to int32 BxC and lengths B.

  Each of `prompt`, `first`, `second` is (tokens, lengths). There are no padding holes
  between the parts. A prompt that does not fit loses its left or its right side
  (`truncate_prompt`), but not what every prompt begins with (`before_prompt`).
  Responses are always whole.
  """
  B = prompt[0].shape[0]

  def constant(ids: tuple[int, ...]) -> tuple[Array, Array]:
    tokens = jnp.broadcast_to(jnp.asarray(ids, jnp.int32)[None, :], (B, len(ids)))
    return tokens, jnp.full((B,), len(ids), jnp.int32)

  rest = [
    constant(markers.before_first), first, constant(markers.before_second), second,
    constant(markers.end),
  ]  # fmt: skip
  room_B = context_length - sum(lengths for _, lengths in rest)
  kept_B = jnp.minimum(prompt[1], room_B)
  skip_B = prompt[1] - kept_B if truncate_prompt == "left" else jnp.zeros_like(kept_B)

  # Column c comes from the part whose span [start, start + length) holds it.
  column_BxC = jnp.broadcast_to(jnp.arange(context_length)[None], (B, context_length))
  output_BxC = jnp.zeros((B, context_length), jnp.int32)
  start_B = jnp.zeros((B,), jnp.int32)
  parts = [(prompt[0], kept_B, skip_B)]
  parts += [(tokens, lengths, jnp.zeros_like(lengths)) for tokens, lengths in rest]
  for tokens, lengths_B, skipped_B in parts:
    offset_BxC = column_BxC - start_B[:, None]
    inside_BxC = (offset_BxC >= 0) & (offset_BxC < lengths_B[:, None])
    from_BxC = offset_BxC + skipped_B[:, None]
    if tokens is prompt[0] and (kept := len(markers.before_prompt)):
      from_BxC = jnp.where(offset_BxC < kept, offset_BxC, from_BxC)
    source_BxC = jnp.clip(from_BxC, 0, tokens.shape[1] - 1)
    picked_BxC = jnp.take_along_axis(tokens, source_BxC, axis=1)
    output_BxC = jnp.where(inside_BxC, picked_BxC, output_BxC)
    start_B = start_B + lengths_B
  return output_BxC, start_B
