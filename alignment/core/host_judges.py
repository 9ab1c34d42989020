"""Judges that work on the host: rules, and models that have their own vocabulary.

They are called between compiled functions, each process for the rows that it holds.
Their arrays are numpy's. What they say of sampled responses is recorded with the stream
as any judge's scores are, so a replay asks nobody.
"""

from collections.abc import Callable
import dataclasses
import functools
import numbers
import traceback
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh, NamedSharding
import numpy as np

from alignment.core import rules
from alignment.core.judges import Judge
from alignment.data import translation
from alignment.data.translation import Translation
from alignment.data.vocabularies import Vocabulary
from alignment.runtime import sharding
from alignment.types import Array, Batch, Params, UserError

LARGEST = float(np.finfo(np.float32).max)  # score


@dataclasses.dataclass(frozen=True)
class RuleJudge:
  """A function of (prompt, response) text; without parameters."""

  rule: rules.Rule | rules.Truth | rules.Noisy
  vocabulary: Vocabulary  # that prompts and responses are written in

  on_host: ClassVar[bool] = True

  def passes(self, B: int, S: int, N: int, T: int) -> tuple[tuple[Any, ...], ...]:  # noqa: N803
    """Within a compiled rollout none."""
    return ()

  def check(self, prompt_length: int, response_length: int) -> None:
    """Any length will do."""

  def scores(self, params: Params, batch: Batch) -> np.ndarray:
    """What the rule says of every response, float32 BxN; equal texts are equal.

    Raises:
      UserError: naming rule and prompt, if it fails or says no finite number.
    """
    del params
    rows = translation.texts(self.vocabulary, sharding.local_rows(batch))
    ids_B = sharding.local_rows(batch.ids_B)
    return np.array(
      [self._row(i, *row) for i, row in zip(ids_B, rows, strict=True)], np.float32
    ).reshape(len(rows), -1)

  def preference(self, params: Params, batch: Batch) -> np.ndarray:
    """Score of response 0 less response 1, float32 B."""
    scores_BxN = self.scores(params, batch)
    return scores_BxN[:, 0] - scores_BxN[:, 1]

  def _row(self, i: int, prompt: str, responses: list[str]) -> list[float]:
    scores = {text: self._score(i, prompt, text) for text in dict.fromkeys(responses)}
    return [scores[text] for text in responses]

  def _score(self, i: int, prompt: str, response: str) -> float:
    where = f"judge '{self.rule.name}', prompt {i}, response {response[:40]!r}"
    try:
      score = self.rule(prompt, response)
    except Exception as error:  # a program of the user's: it may raise anything
      text = " ".join(str(error).split())
      line = traceback.extract_tb(error.__traceback__)[-1]
      at = f"{line.filename}:{line.lineno}"
      raise UserError(f"{where}: {at}: {type(error).__name__}: {text}") from error
    if not isinstance(score, numbers.Real | np.bool_):
      raise UserError(f"{where}: it returned {score!r}; a rule returns a number")
    if not abs(float(score)) <= LARGEST:
      raise UserError(f"{where}: it returned {score!r}; scores are finite float32")
    return float(score)


@dataclasses.dataclass(frozen=True)
class TranslatedJudge:
  """A judge that reads the study's text in a vocabulary of its own."""

  judge: Judge
  translation: Translation  # to what `judge` reads
  mesh: Mesh  # of its parameters

  on_host: ClassVar[bool] = True

  def passes(self, B: int, S: int, N: int, T: int) -> tuple[tuple[Any, ...], ...]:  # noqa: N803
    """Within a compiled rollout none."""
    return ()

  def check(self, prompt_length: int, response_length: int) -> None:
    """Of the study's lengths any will do: the judge has its own."""
    del prompt_length, response_length
    lengths = self.translation.prompt_length, self.translation.response_length
    self.judge.check(*lengths)

  def scores(self, params: Params, batch: Batch) -> np.ndarray:
    return self._asked(scores_on_device, params, batch)

  def preference(self, params: Params, batch: Batch) -> np.ndarray:
    return self._asked(preference_on_device, params, batch)

  def _asked(
    self, function: Callable[..., Array], params: Params, batch: Batch
  ) -> np.ndarray:
    """A compiled question about this process's rows; all processes ask together."""
    rows = self.translation.batch(sharding.local_rows(batch))
    translated = sharding.put_local_rows(rows, self.mesh)
    with sharding.on(self.mesh):
      return sharding.local_rows(function(self.judge, params, translated))


@functools.partial(jax.jit, static_argnums=0)
def scores_on_device(judge: Judge, params: Params, batch: Batch) -> Array:
  return judge.scores(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def preference_on_device(judge: Judge, params: Params, batch: Batch) -> Array:
  return judge.preference(params, batch)


def asked(
  function: Callable[[Params, Batch], np.ndarray], params: Params, batch: Batch
) -> Array:
  """A host judge's answer about a batch on devices, laid out by rows as the batch is.

  Each process asks about its own rows. About a batch of host arrays the answer is one.
  """
  answer = function(params, sharding.local_rows(batch))
  if not isinstance(batch.ids_B, jax.Array):
    return answer
  layout = batch.ids_B.sharding
  assert isinstance(layout, NamedSharding) and isinstance(layout.mesh, Mesh)
  return sharding.put_local_rows(answer, layout.mesh)
