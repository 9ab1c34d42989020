"""What every part of the system exchanges: a batch of responses, and user errors.

Shape letters used throughout the code base: B prompts in a batch, N responses per
prompt, S prompt length, T response length, C judge-input length, V vocabulary, L
layers, H heads, K key/value width per head, D model width, F feed-forward width.
"""

from typing import Any

from flax import struct

# A jax.Array, or a numpy array on its way to or from one. The type says nothing: shapes
# are in names, which no checker reads.
Array = Any
Params = Any  # a pytree of arrays
SumWeight = tuple[Array, Array]  # a metric before it is reduced: (sum, weight)


class UserError(Exception):
  """An error that the user can mend: one line that names the thing and what to do.

  What it quotes may come from hostile files: line breaks and control characters are
  shown as escapes, and what is too long for a line to be read is cut.
  """

  def __init__(self, message: str):
    shown = (
      message if len(message) <= 2000 else f"{message[:1500]} ... {message[-400:]}"
    )
    super().__init__("".join(c if c.isprintable() else _escaped(c) for c in shown))


def _escaped(character: str) -> str:
  return character.encode("unicode_escape").decode()


class Preempted(Exception):
  """Asked to stop, and stopped where nothing is lost; says where."""


PREEMPTED_STATUS = 75  # exit status (sysexits' EX_TEMPFAIL): run the same command again


class Batch(struct.PyTreeNode):
  """Prompts with N responses each: the only thing a train step ever sees.

  Offline pairs, online rollouts and replayed streams all yield this pytree, with the
  same shapes and dtypes, which is why they run the same compiled train step.

  For pairs, response 0 is the preferred one, response 1 the other; a third, where a
  loss asks for it, is the supervised target. Lengths count EOS; a response that was
  cut off has none. Masks always come from lengths, never from `id != pad`.
  """

  prompts_BxS: Array  # int32, right-padded
  prompt_lengths_B: Array  # int32
  responses_BxNxT: Array  # int32, right-padded
  lengths_BxN: Array  # int32
  ref_logps_BxN: Array  # float32, log pi_ref(y|x) summed over the response's tokens
  weights_B: Array  # float32, 0 drops the row
  ids_B: Array  # int32, the prompt's index in its data set: keys random draws


class ScoredBatch(Batch):
  """A batch whose responses a judge has scored: what group losses learn from.

  Responses are in no particular order; scores are comparable within a row.
  """

  scores_BxN: Array  # float32
