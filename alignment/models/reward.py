"""Reward models: any family's body with a head that gives one number for a response.

The number is read off the hidden state that has seen the prompt and all of a response:
that of the response's last token. A decoder-only model is so what transformers calls a
sequence classifier with one label. Of a T5, the encoder reads the prompt, the decoder
the response. Either way the N responses of a prompt share the work on it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alignment.models.protocol import BASE, Costs, Model
from alignment.runtime.sharding import Rules
from alignment.types import Array, Params

HEAD = "head"  # what the families call the parameters that predict tokens
SCORE = "score"  # what a reward model has instead


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """A body and a scalar head, float32 and without a bias; hashable, for jit."""

  body: Model

  @property
  def cfg(self) -> Any:
    return self.body.cfg

  def init(self, key: Array) -> Params:
    """-> float32 parameters: those of the body, and a new head."""
    body_key, head_key = jax.random.split(key)
    return self.without_head(self.body.init(body_key)) | self.init_head(head_key)

  def init_head(self, key: Array) -> Params:
    """A new head, N(0, 1/D): rewards begin at unit size.

    Stiennon et al. (arXiv 2009.01325) begin so, too. From zeros Adafactor, which scales
    updates by the parameter's own size, would hardly move it.
    """
    D = self.cfg.d_model
    return {SCORE: {"weight": jax.random.normal(key, (D,)) * D**-0.5}}

  def without_head(self, params: Params) -> Params:
    """A language model's parameters but for those that only predict tokens."""
    if BASE in params:
      params = {**params, BASE: self.without_head(params[BASE])}
    return {name: below for name, below in params.items() if name != HEAD}

  def rewards(
    self,
    params: Params,
    prompts_BxS: Array,
    prompt_lengths_B: Array,
    responses_BxNxT: Array,
    lengths_BxN: Array,
  ) -> Array:
    """How good each response is, float32 BxN; right-padded, lengths count the end."""
    context = self.body.prepare(params, prompts_BxS, prompt_lengths_B)
    # Position t has read the tokens before t: one more has read all of them.
    longer = jnp.pad(responses_BxNxT, ((0, 0), (0, 0), (0, 1)))
    hidden_BxNxTxD = self.body.hidden(params, context, longer)
    last_BxNx1x1 = lengths_BxN[:, :, None, None]
    state_BxNxD = jnp.take_along_axis(hidden_BxNxTxD, last_BxNx1x1, axis=2)[:, :, 0]
    # A sum, not a product of matrices: accelerators would round its factors.
    weight_1x1xD = params[SCORE]["weight"].reshape(1, 1, -1)
    return jnp.sum(state_BxNxD.astype(jnp.float32) * weight_1x1xD, axis=-1)

  def cast_for_reading(self, params: Params) -> Params:
    """As the body's; the head stays float32."""
    body = {name: below for name, below in params.items() if name != SCORE}
    return self.body.cast_for_reading(body) | {SCORE: params[SCORE]}

  def layout_rules(self, tensor: int, decoding: bool = False) -> Rules:
    """As the body's; the head is on every device."""
    return ((rf"{SCORE}/weight$", (None,)), *self.body.layout_rules(tensor, decoding))

  def costs(self, S: int, N: int, T: int, tensor: int = 1) -> Costs:  # noqa: N803
    """Those of the body, which reads one position more but predicts no token."""
    cfg, costs = self.cfg, self.body.costs(S, N, T + 1, tensor)
    predicting = 2 * N * (T + 1) * cfg.d_model * cfg.vocab_rows
    return costs._replace(flops=costs.flops - predicting, logits=0.0)
