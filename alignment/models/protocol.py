"""What the rest of the code may ask of a model, whatever its family.

A prompt is prepared once, and all of its N responses share what that gives: the output
of an encoder, or a decoder's keys and values. A response starts with a token of the
context (T5: pad; a decoder-only model: the prompt's last token, which is therefore
computed with the response), so `hidden` and `decode_step` look the same for all.

Masks come from lengths alone, and no id is special to a model: a vocabulary says which
ids end a response, and which rows of the embedding have no token. The logits of those
are `layers.NEGATIVE` in every use of the model.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from alignment.models.stacks import REMAT
from alignment.runtime.sharding import Rules
from alignment.types import Array, Params, UserError

# A model's parameters under this name are fixed: a base that is the reference, too, and
# that a checkpoint of the model does not hold. All others are trained (models/lora.py).
BASE = "base"

CHOICES = {
  "dtype": ("float32", "bfloat16"),
  "remat": REMAT,
  "attention": ("auto", "plain", "flash"),
}


class Costs(NamedTuple):
  """What one prompt with its responses costs on one device, forward."""

  flops: int  # of matrix products, over all devices: [m, k] x [k, n] counts 2mkn
  saved: float  # bytes that the layers together keep for their backward pass
  scores: float  # attention scores of one layer, a count
  layer: float  # bytes that one layer computes but for the scores
  logits: float  # a count
  cache: float  # bytes that a sampler holds: keys and values of all layers
  kernels: float  # bytes of the largest layer's kernels in the compute dtype


class Config(Protocol):
  """What every family's configuration has; frozen, hence hashable."""

  @property
  def vocab_rows(self) -> int:
    """Rows of the embedding; the logits' last dimension."""

  @property
  def d_model(self) -> int:
    """Width of a hidden state."""

  @property
  def dtype(self) -> str:
    """In which products are computed: float32 or bfloat16."""

  @property
  def scan_layers(self) -> bool:
    """Layers are stacked, and compiled once."""

  @property
  def remat(self) -> str:
    """What the backward pass recomputes: see `stacks.REMAT`."""

  @property
  def attention(self) -> str:
    """How it is computed: plain, flash (flash.py), or auto: as suits the platform."""


def check_choices(cfg: Config) -> None:
  """Raises UserError for a value of dtype, remat or attention that does not exist."""
  for key, choices in CHOICES.items():
    if (given := getattr(cfg, key)) not in choices:
      raise UserError(f"model.{key} is '{given}'; use {' or '.join(choices)}")


class Context(Protocol):
  """What a prompt contributes to every response: a pytree, rows first."""

  @property
  def start_B(self) -> Array:  # noqa: N802
    """The token that `decode_step` takes at position 0, int32."""


class Network(Protocol):
  """What has parameters that are made, trained, laid out and read; hashable, for jit.

  A `Model` is one that predicts tokens; a `reward.RewardModel` is another.
  """

  def __hash__(self) -> int: ...

  @property
  def cfg(self) -> Any:
    """Its `Config`, which `dataclasses.replace` changes."""

  def init(self, key: Array) -> Params:
    """-> float32 parameters; the same values whether scanned or not."""

  def cast_for_reading(self, params: Params) -> Params:
    """Parameters of a model that is only read: what is always cast, cast once."""

  def layout_rules(self, tensor: int, decoding: bool = False) -> Rules:
    """How the parameters lie on a mesh whose tensor axis has this size.

    Raises:
      UserError: if the heads do not divide among so many devices.
    """

  def costs(self, S: int, N: int, T: int, tensor: int = 1) -> Costs:  # noqa: N803
    """Of a prompt of S tokens with N responses of T, split over a tensor axis."""


@runtime_checkable
class Model(Network, Protocol):
  """A model as pure functions of its parameters, one pytree."""

  def prepare(
    self,
    params: Params,
    prompts_BxS: Array,
    lengths_B: Array,
    for_decoding: bool = False,
  ) -> Any:
    """Right-padded prompts (of one token at least) -> `Context`, once for N responses.

    With `for_decoding` it has whatever `decode_step` would else compute at each token.
    """

  def hidden(self, params: Params, context: Any, responses_BxNxT: Array) -> Array:
    """Teacher forcing: BxNxTxD, from which position t predicts token t."""

  def logits(self, params: Params, hidden: Array) -> Array:
    """[..., D] -> float32 [..., V]: the head alone, so that it can be done in parts."""

  def init_cache(
    self, params: Params, context: Any, num_samples: int, max_length: int
  ) -> Any:
    """An empty cache for `num_samples` responses to each prompt of `context`."""

  def decode_step(
    self, params: Params, context: Any, cache: Any, tokens_BxN: Array, position: Array
  ) -> tuple[Array, Any]:
    """One token for every response: (float32 logits BxNxV, updated cache).

    `tokens_BxN` are the tokens before `position`: `context.start_B` at 0. `params` are
    from `for_decoding`, as are those that prepared the context.
    """

  def for_decoding(self, params: Params) -> Params:
    """Factors of products in the compute dtype, layers as a list: once per rollout."""


def without_base(params: Params) -> Params:
  """What of a model's parameters is trained, and saved."""
  if isinstance(params, dict) and BASE in params:
    return {name: below for name, below in params.items() if name != BASE}
  return params


def base_of(params: Params) -> Params | None:
  """What of them is fixed, if there is any."""
  return params.get(BASE) if isinstance(params, dict) else None


def with_base(params: Params, base: Params | None) -> Params:
  """All of them again; None is the base of a model that has none."""
  return params if base is None else {BASE: base, **params}
