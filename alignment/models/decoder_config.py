"""What sets the families of decoder-only transformers apart, and one model of them."""

import dataclasses
from typing import Any

from alignment.models.protocol import check_choices
from alignment.models.rope import Rope

_GEMMA = {
  "norm": "rms_plus_one",
  "activation": "gelu_tanh",
  "post_norms": True,
  "scale_embedding": True,
}
FAMILIES: dict[str, dict[str, Any]] = {  # a config.json's model_type -> its own flags
  "llama": {},
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qk_norm": True},
  "gemma2": _GEMMA,
  "gemma3_text": _GEMMA | {"qk_norm": True},
  "gpt_neox": {
    "norm": "layer",
    "activation": "gelu",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
  },
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape, family and numerics of a decoder; named sizes are in `sizes.py`."""

  model_type: str
  d_model: int
  d_ff: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_rows: int
  live_ids: int = (
    0  # rows from here on have no token, their ids no probability; 0: none
  )
  dead_ids: tuple[int, ...] = ()  # further rows without a token
  tied: bool = False
  norm: str = "rms"  # rms, rms_plus_one (1 + scale) or layer (with mean and bias)
  norm_epsilon: float = 1e-5
  activation: str = "silu"
  gated: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm of each head's queries and keys
  post_norms: bool = False  # of what attention and MLP give, before it is added
  parallel: bool = False  # attention and MLP read the same activations
  scale_embedding: bool = False  # by sqrt(d_model), rounded to the dtype
  query_scalar: float = 0.0  # scores are divided by its root; 0: head_dim
  score_cap: float = 0.0  # tanh caps; 0: none
  logit_cap: float = 0.0
  rope: Rope = Rope()
  rotary_dim: int = 0  # channels of a head that turn; 0: all
  local: tuple[bool, ...] = (False,)  # layers that see only a window, repeated
  window: int = 0  # tokens that a local layer's query sees, itself among them
  local_rope: Rope | None = None  # of local layers, where it differs
  max_positions: int = 8192  # that it was trained on: exported, not enforced
  dtype: str = "float32"
  scan_layers: bool = False
  remat: str = "none"
  attention: str = "auto"

  def __post_init__(self):
    check_choices(self)

  @property
  def kinds(self) -> tuple[int, ...]:
    """Of each layer: 1 if it is local."""
    return tuple(int(self.local[i % len(self.local)]) for i in range(self.num_layers))
