"""The pointwise judge: a reward model that gives each response a number of its own.

Bradley and Terry's model makes preferences of rewards, p(y1 > y2) = sigmoid(r1 - r2):
margins are on the same scale as the logits of the pairwise preference model, and they
agree with each other, whatever is compared. It reads prompt and response as a policy
does, token by token and whole: no marker, no part of the prompt cut for a judge.
"""

import dataclasses
from typing import Any, ClassVar

from alignment.core.judges import equal_if_identical
from alignment.models.reward import RewardModel
from alignment.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class PointwiseJudge:
  """A reward model as a `judges.Judge`."""

  on_host: ClassVar[bool] = False
  model: RewardModel

  def check(self, prompt_length: int, response_length: int) -> None:
    """Reads whatever a policy can: nothing is refused."""

  def passes(self, B: int, S: int, N: int, T: int) -> tuple[tuple[Any, ...], ...]:  # noqa: N803
    """What it costs to score N responses of T tokens: (model, B, S, N, T) per pass."""
    return ((self.model, B, S, N, T),)

  def scores(self, params: Params, batch: Batch) -> Array:
    """The rewards, float32 BxN. The prompt is read once for all N responses."""
    rewards_BxN = self.model.rewards(
      params,
      batch.prompts_BxS,
      batch.prompt_lengths_B,
      batch.responses_BxNxT,
      batch.lengths_BxN,
    )
    return equal_if_identical(batch, rewards_BxN)

  def preference(self, params: Params, batch: Batch) -> Array:
    """r(x, y_0) - r(x, y_1), float32 B; a third response is not read."""
    pair = batch.replace(
      responses_BxNxT=batch.responses_BxNxT[:, :2], lengths_BxN=batch.lengths_BxN[:, :2]
    )
    rewards_Bx2 = self.scores(params, pair)
    return rewards_Bx2[:, 0] - rewards_Bx2[:, 1]
