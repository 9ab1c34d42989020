"""T5 1.1 and the original T5: one encoder pass per prompt, N responses per prompt.

Parameters are one pytree. Its `layers` are either stacked on a leading axis, run by
`lax.scan`, or a list, run one by one; every function here takes both, so decoding can
use a list (caches are then updated in place) of a model that trains stacked. Both hold
the same numbers: `stack_layers` and `unstack_layers` convert.

The responses' axis N is folded into the batch for self-attention and into the query
axis for cross-attention, so prompt work is done once and nothing is repeated.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from alignment.models import layers as lib
from alignment.models.protocol import Costs, check_choices
from alignment.models.sizes import T5 as SIZES
from alignment.models.stacks import (
  rematerialised,
  stack_layers,
  unstack_layers,
)
from alignment.runtime import sharding
from alignment.types import Array, Params, UserError

PAD = 0  # also the decoder's start token


# How parameters lie on the mesh: runtime/sharding.py.
RULES: sharding.Rules = (
  (r"embedding$", ("tensor", "fsdp")),
  (r"head/kernel$", ("fsdp", "tensor")),
  (r"(query|key|value)/kernel$", ("fsdp", "tensor")),
  (r"out/kernel$", ("tensor", "fsdp")),
  (r"(gate|up)/kernel$", ("fsdp", "tensor")),
  (r"down/kernel$", ("tensor", "fsdp")),
  (r"position$", (None, "tensor")),
  (r"scale$", (None,)),
)

# Decoding a token does not pay for gathering a parameter: nothing is split over fsdp.
DECODE_RULES: sharding.Rules = tuple(
  (pattern, tuple(None if axis == "fsdp" else axis for axis in axes))
  for pattern, axes in RULES
)


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Shape and numerics of a T5; named sizes are in `SIZES`."""

  d_model: int
  d_ff: int
  d_kv: int
  num_heads: int
  encoder_layers: int
  decoder_layers: int
  vocab_rows: int = 32128
  live_ids: int = 0  # ids in [1, live_ids) have probability; 0: all rows, pad included
  dead_ids: tuple[int, ...] = ()  # further ids without probability
  gated: bool = True
  tied: bool = False
  scale_logits: bool = True  # by d_model^-0.5 where the head is tied
  buckets: int = 32
  max_distance: int = 128
  norm_epsilon: float = 1e-6
  dtype: str = "float32"
  scan_layers: bool = False
  remat: str = "none"  # none, dots (keep products without a batch axis) or full
  attention: str = "auto"  # which is plain here

  def __post_init__(self):
    check_choices(self)
    if self.attention == "flash":
      raise UserError(
        "model.attention is 'flash', but no kernel has T5's position biases; use auto "
        "or plain"
      )


def config(size: str, **overrides) -> T5Config:
  """A named size with overrides.

  Raises:
    UserError: for an unknown size.
  """
  if size not in SIZES:
    raise UserError(f"model.size '{size}' is unknown; choose from {', '.join(SIZES)}")
  return T5Config(**{**SIZES[size], **overrides})


class EncoderLayer(nn.Module):
  cfg: T5Config

  @nn.compact
  def __call__(self, x_BxSxD: Array, bias: Array) -> Array:
    attention, mlp, norm = _parts(self.cfg)
    y = norm(name="attention_norm")(x_BxSxD)
    attend = attention(name="attention")
    x_BxSxD = x_BxSxD + attend(y, attend.keys_values(y), bias)
    return x_BxSxD + mlp(name="mlp")(norm(name="mlp_norm")(x_BxSxD))


class DecoderLayer(nn.Module):
  cfg: T5Config

  def setup(self):
    attention, mlp, norm = _parts(self.cfg)
    self.self_norm, self.self_attention = norm(), attention()
    self.cross_norm, self.cross_attention = norm(), attention()
    self.mlp_norm, self.mlp = norm(), mlp()

  def cross_keys_values(self, encoded_BxSxD: Array) -> tuple[Array, Array]:
    return self.cross_attention.keys_values(encoded_BxSxD)

  def __call__(self, x_BxNxTxD, self_bias, encoded, cross, cross_bias, write=None):
    """One layer over T new positions of N responses.

    `cross` is `cross_keys_values(encoded)` where it was computed beforehand, else None.
    `write`, in decoding, puts the new keys and values into the cache and returns it;
    without it they are all there is to attend to. -> (activations, keys and values).
    """
    if cross is None:
      cross = self.cross_keys_values(encoded)
    B, N, T, D = x_BxNxTxD.shape
    y = self.self_norm(x_BxNxTxD).reshape(B * N, T, D)
    keys_values = self.self_attention.keys_values(y)
    if write is not None:
      keys_values = write(keys_values)
    y = self.self_attention(y, keys_values, self_bias)
    x = x_BxNxTxD + y.reshape(B, N, T, D)
    y = self.cross_norm(x).reshape(B, N * T, D)
    x = x + self.cross_attention(y, cross, cross_bias).reshape(B, N, T, D)
    return x + self.mlp(self.mlp_norm(x)), keys_values


def _parts(cfg: T5Config) -> tuple[Callable, Callable, Callable]:
  """Constructors of a layer's attention, MLP and norm."""
  dtype = jnp.dtype(cfg.dtype)
  return (
    lambda **k: lib.Attention(cfg.d_model, cfg.num_heads, cfg.d_kv, dtype, **k),
    lambda **k: lib.MLP(cfg.d_model, cfg.d_ff, cfg.gated, dtype, **k),
    lambda **k: lib.RMSNorm(cfg.norm_epsilon, dtype, **k),
  )


class Context(struct.PyTreeNode):
  """What a prompt contributes to every response: computed once."""

  encoded_BxSxD: Array
  mask_BxS: Array  # bool
  # Per decoder layer keys (BxHxKxS) and values (BxHxSxK), if they were asked for;
  # training computes them inside the layer, where rematerialisation can drop them.
  cross: Any = None

  @property
  def start_B(self) -> Array:  # noqa: N802
    """The token that every response starts with."""
    return jnp.full(self.mask_BxS.shape[:1], PAD, jnp.int32)


@dataclasses.dataclass(frozen=True)
class T5:
  """The model as pure functions of its parameters; hashable, so jit can key on it."""

  cfg: T5Config

  def init(self, key: Array) -> Params:
    """-> float32 parameters, initialised as T5X does; same values scanned or not."""
    cfg = self.cfg
    keys = jax.random.split(key, 6)
    normal = jax.random.normal
    x = jnp.zeros((1, 1, cfg.d_model))
    zero = jnp.zeros((1, 1, 1, 1))

    def stack(init: Callable, key: Array, num_layers: int) -> Params:
      params = [init(k)["params"] for k in jax.random.split(key, num_layers)]
      return stack_layers(params) if cfg.scan_layers else params

    def bias(key: Array) -> Array:
      return normal(key, (cfg.buckets, cfg.num_heads)) * cfg.d_model**-0.5

    encoder, decoder = EncoderLayer(cfg), DecoderLayer(cfg)
    params = {
      "embedding": normal(keys[0], (cfg.vocab_rows, cfg.d_model)),
      "encoder": {
        "position": bias(keys[1]),
        "layers": stack(
          lambda k: encoder.init(k, x, zero), keys[2], cfg.encoder_layers
        ),
        "norm": {"scale": jnp.ones((cfg.d_model,))},
      },
      "decoder": {
        "position": bias(keys[3]),
        "layers": stack(
          lambda k: decoder.init(k, x[None], zero, x, None, zero),
          keys[4],
          cfg.decoder_layers,
        ),
        "norm": {"scale": jnp.ones((cfg.d_model,))},
      },
    }
    if not cfg.tied:
      head = normal(keys[5], (cfg.d_model, cfg.vocab_rows)) * cfg.d_model**-0.5
      params["head"] = {"kernel": head}
    return params

  def prepare(
    self,
    params: Params,
    prompts_BxS: Array,
    lengths_B: Array,
    for_decoding: bool = False,
  ) -> Context:
    """Encodes right-padded prompts."""
    S = prompts_BxS.shape[1]
    mask_BxS = jnp.arange(S)[None, :] < lengths_B[:, None]
    positions = jnp.arange(S)
    bias_HxSxS = self._position_bias(params["encoder"], positions, positions, True)
    mask_bias = _mask_bias(mask_BxS)
    layer = EncoderLayer(self.cfg)

    def body(x, layer_params):
      # Added in here, or the sum and its gradient, BxHxSxS, would outlive all layers.
      bias = bias_HxSxS[None] + mask_bias
      return layer.apply({"params": layer_params}, sharding.by_rows(x), bias), None

    x = self._embed(params, prompts_BxS)
    x, _ = self._run(body, x, params["encoder"]["layers"])
    encoded = self._norm(params["encoder"], sharding.by_rows(x))
    cross = self._cross(params, encoded) if for_decoding else None
    return Context(encoded, mask_BxS, cross)

  def hidden(self, params: Params, context: Context, responses_BxNxT: Array) -> Array:
    """Teacher forcing: BxNxTxD, from which position t predicts token t."""
    T = responses_BxNxT.shape[2]
    inputs_BxNxT = jnp.pad(
      responses_BxNxT[:, :, :-1], ((0, 0), (0, 0), (1, 0)), constant_values=PAD
    )
    positions = jnp.arange(T)
    decoder = params["decoder"]
    self_bias = self._position_bias(decoder, positions, positions, False)[None]
    cross_bias = _mask_bias(context.mask_BxS)
    layer = DecoderLayer(self.cfg)

    def body(x, inputs):
      x = sharding.by_rows(x)
      layer_params, cross = inputs
      x, _ = layer.apply(
        {"params": layer_params}, x, self_bias, context.encoded_BxSxD, cross, cross_bias
      )
      return x, None

    x = self._embed(params, inputs_BxNxT)
    x, _ = self._run(body, x, decoder["layers"], context.cross)
    return self._norm(decoder, sharding.by_rows(x))

  def logits(self, params: Params, hidden: Array) -> Array:
    """The head alone: [..., D] -> float32 [..., V]; dead ids get the same -1e9."""
    return self._head(params, hidden)

  def init_cache(
    self, params: Params, context: Context, num_samples: int, max_length: int
  ) -> Any:
    """Empty keys and values (layers as a list)."""
    num_rows = context.mask_BxS.shape[0] * num_samples
    shape = (num_rows, self.cfg.num_heads, max_length, self.cfg.d_kv)
    values = jnp.zeros(shape, jnp.dtype(self.cfg.dtype))
    return [(values.swapaxes(2, 3), values) for _ in params["decoder"]["layers"]]

  def decode_step(
    self,
    params: Params,
    context: Context,
    cache: Any,
    tokens_BxN: Array,
    position: Array,
  ) -> tuple[Array, Any]:
    """One token for every response: (float32 logits BxNxV, updated cache).

    `tokens_BxN` is the previous token (`PAD` at position 0). `params` must have its
    layers as a list and `context` its cross-attention keys and values.
    """
    max_length = cache[0][0].shape[3]
    decoder = params["decoder"]
    self_bias = self._position_bias(
      decoder, position[None], jnp.arange(max_length), False
    )[None]
    cross_bias = _mask_bias(context.mask_BxS)
    layer = DecoderLayer(self.cfg)
    x = self._embed(params, tokens_BxN[:, :, None])
    new_cache = []
    for layer_params, cross, old in zip(
      decoder["layers"], context.cross, cache, strict=True
    ):

      def write(new, old=old):
        put = jax.lax.dynamic_update_slice_in_dim
        return put(old[0], new[0], position, 3), put(old[1], new[1], position, 2)

      x, updated = layer.apply(
        {"params": layer_params}, x, self_bias, None, cross, cross_bias, write
      )
      new_cache.append(updated)
    logits_BxNx1xV = self._head(params, self._norm(decoder, x))
    return logits_BxNx1xV[:, :, 0], new_cache

  def cast_for_reading(self, params: Params) -> Params:
    """Parameters of a model that is only read: kernels and embedding in its dtype.

    They are cast to it wherever they are used, so nothing computed changes, and a
    bfloat16 reference or judge takes half of the masters' memory.
    """
    return self._cast(params, ("kernel", "embedding"))

  def for_decoding(self, params: Params) -> Params:
    """Kernels in the compute dtype, layers as a list: once per rollout.

    What is no factor of a product stays float32: position tables, norms, and the
    embedding, of which a few rows are read, unless it is the head too.
    """
    factors = ("kernel", "embedding") if self.cfg.tied else ("kernel",)
    return with_layers_as_list(self._cast(params, factors), self.cfg)

  def layout_rules(self, tensor: int, decoding: bool = False) -> sharding.Rules:
    """Heads over `tensor`, everything over `fsdp` but in decoding."""
    if self.cfg.num_heads % tensor:
      raise UserError(
        f"{self.cfg.num_heads} attention heads are not divisible by mesh axis 'tensor' "
        f"of size {tensor}"
      )
    return DECODE_RULES if decoding else RULES

  def costs(self, S: int, N: int, T: int, tensor: int = 1) -> Costs:  # noqa: N803
    """Of a prompt of S tokens with N responses of T; see `protocol.Costs`."""
    cfg = self.cfg
    D, F, V, H = cfg.d_model, cfg.d_ff, cfg.vocab_rows, cfg.num_heads * cfg.d_kv
    tokens, width = N * T, jnp.dtype(cfg.dtype).itemsize
    mlp = 2 * (3 if cfg.gated else 2) * D * F
    encoder = S * cfg.encoder_layers * (8 * D * H + mlp + 4 * S * H)
    decoder = tokens * (12 * D * H + mlp + 4 * T * H + 4 * S * H) + S * 4 * D * H
    each = D if cfg.remat == "full" else 6 * D + 3 * F / tensor
    saved = (cfg.encoder_layers * S + cfg.decoder_layers * tokens) * each * width
    if cfg.remat == "none":
      saved += cfg.encoder_layers * cfg.num_heads / tensor * S * S * (4 + width)
    return Costs(
      flops=encoder + cfg.decoder_layers * decoder + tokens * 2 * D * V,
      saved=saved,
      scores=cfg.num_heads / tensor * S * S,
      layer=S * (4 * D + 3 * F / tensor) * width,
      logits=tokens * V / tensor,
      cache=cfg.decoder_layers * (S + tokens) * H / tensor * 2 * width,
      kernels=(8 * D * H + mlp // 2) / tensor * width,
    )

  def _cast(self, params: Params, endings: tuple[str, ...]) -> Params:
    def cast(path, p: Array) -> Array:
      return (
        p.astype(self.cfg.dtype) if sharding.path_name(path).endswith(endings) else p
      )

    return jax.tree_util.tree_map_with_path(cast, params)

  def _cross(self, params: Params, encoded_BxSxD: Array) -> Any:
    """Cross-attention keys and values of every decoder layer, in the layers' form."""
    layer = DecoderLayer(self.cfg)

    def body(carry, layer_params):
      out = layer.apply(
        {"params": layer_params}, encoded_BxSxD, method=DecoderLayer.cross_keys_values
      )
      return carry, out

    return self._run(body, 0, params["decoder"]["layers"])[1]

  def _run(self, body: Callable, carry: Any, layer_params: Any, *extra: Any):
    """Folds `body(carry, params or (params, extra...))` over the layers."""
    body = rematerialised(body, self.cfg.remat)
    if not isinstance(layer_params, list):
      return jax.lax.scan(
        body, carry, (layer_params, *extra) if extra else layer_params
      )
    outputs = []
    for i, params in enumerate(layer_params):
      inputs = (
        (params, *(None if e is None else e[i] for e in extra)) if extra else params
      )
      carry, output = body(carry, inputs)
      outputs.append(output)
    return carry, outputs

  def _embed(self, params: Params, tokens: Array) -> Array:
    return params["embedding"][tokens].astype(self.cfg.dtype)

  def _norm(self, stack: Params, x: Array) -> Array:
    norm = lib.RMSNorm(self.cfg.norm_epsilon, jnp.dtype(self.cfg.dtype))
    return norm.apply({"params": stack["norm"]}, x)

  def _position_bias(self, stack, query_Q, key_S, bidirectional: bool) -> Array:
    return lib.position_bias(
      stack["position"],
      query_Q,
      key_S,
      bidirectional=bidirectional,
      max_distance=self.cfg.max_distance,
    )

  def _head(self, params: Params, x: Array) -> Array:
    """Float32 logits. Dead ids get the same -1e9 in every use of the model."""
    cfg = self.cfg
    if cfg.tied:
      x = x * cfg.d_model**-0.5 if cfg.scale_logits else x
      logits = lib.project_onto(x, params["embedding"])
    else:
      logits = lib.project(x, params["head"]["kernel"])
    pad = (PAD,) if cfg.live_ids else ()
    return lib.silence(logits, cfg.live_ids, pad + cfg.dead_ids)


def _mask_bias(mask_BxS: Array) -> Array:
  return jnp.where(mask_BxS, 0.0, lib.NEGATIVE)[:, None, None, :]


def with_layers_as_list(params: Params, cfg: T5Config) -> Params:
  """The same parameters with every layer a tree of its own."""
  counts = {"encoder": cfg.encoder_layers, "decoder": cfg.decoder_layers}
  out = dict(params)
  for stack, count in counts.items():
    if not isinstance(params[stack]["layers"], list):
      layers = unstack_layers(params[stack]["layers"], count)
      out[stack] = {**params[stack], "layers": layers}
  return out


def with_layers_stacked(params: Params) -> Params:
  """The same parameters with the layers stacked on a leading axis."""
  out = dict(params)
  for stack in ("encoder", "decoder"):
    if isinstance(params[stack]["layers"], list):
      layers = stack_layers(params[stack]["layers"])
      out[stack] = {**params[stack], "layers": layers}
  return out
