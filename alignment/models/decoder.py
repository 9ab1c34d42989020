"""Decoder-only transformers: Llama, Qwen 2 and 3, Gemma 2 and 3, GPT-NeoX.

A prompt goes through the layers once, as one response without a prompt would, and
leaves its keys and values; a response's queries attend to those and to its own keys,
with one softmax over both. The prompt's last token is the first of every response.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from alignment.models import decoder_layer, flash, stacks
from alignment.models import layers as lib
from alignment.models.decoder_config import DecoderConfig
from alignment.models.protocol import Costs
from alignment.runtime import sharding
from alignment.types import Array, Params, UserError


class Context(struct.PyTreeNode):
  """What a prompt contributes to every response: computed once."""

  keys_values: Any  # of each layer: BxHxKxS and BxHxSxK, a list or stacked
  lengths_B: Array
  start_B: Array  # the prompt's last token


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The model as pure functions of its parameters; hashable, so jit can key on it."""

  cfg: DecoderConfig

  def init(self, key: Array) -> Params:
    """-> float32 parameters of unit gain; same values scanned or not."""
    cfg = self.cfg
    keys = jax.random.split(key, 3)
    normal, V, D = jax.random.normal, cfg.vocab_rows, cfg.d_model
    layers = [
      decoder_layer.init_layer(cfg, k)
      for k in jax.random.split(keys[1], cfg.num_layers)
    ]
    # A head that is the embedding needs rows of unit length for logits of unit size.
    embedding = normal(keys[0], (V, D)) * (D**-0.5 if cfg.tied else 1.0)
    params = {
      "embedding": embedding,
      "layers": stacks.stack_layers(layers) if cfg.scan_layers else layers,
      "norm": decoder_layer.init_norm(cfg, D),
    }
    if not cfg.tied:
      params["head"] = {"kernel": normal(keys[2], (D, V)) * D**-0.5}
    return params

  def prepare(
    self,
    params: Params,
    prompts_BxS: Array,
    lengths_B: Array,
    for_decoding: bool = False,
  ) -> Context:
    """Keys and values of right-padded prompts of at least one token."""
    del for_decoding  # needs the same
    # Padding comes after the prompt, where its own tokens do not look.
    positions_1xS = jnp.arange(prompts_BxS.shape[1])[None]
    positions = decoder_layer.Positions(self.cfg, positions_1xS, (positions_1xS,))

    def body(kind, x, layer, extra):
      del extra
      x, keys_values = decoder_layer.forward(self.cfg, layer, x, positions, kind)
      return x, tuple(each[:, :, 0] for each in keys_values)

    _, keys_values = self._fold(body, params, prompts_BxS[:, None])
    last_Bx1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    start_B = jnp.take_along_axis(prompts_BxS, last_Bx1, axis=1)[:, 0]
    return Context(keys_values, lengths_B, start_B)

  def hidden(self, params: Params, context: Context, responses_BxNxT: Array) -> Array:
    """Teacher forcing: BxNxTxD, normalised; position t predicts token t."""
    B, N, T = responses_BxNxT.shape
    start_BxNx1 = jnp.broadcast_to(context.start_B[:, None, None], (B, N, 1))
    inputs = jnp.concatenate([start_BxNx1, responses_BxNxT[:, :, :-1]], axis=2)
    positions = self._after(context, jnp.arange(T), jnp.arange(T))

    def body(kind, x, layer, prompt):
      return decoder_layer.forward(self.cfg, layer, x, positions, kind, prompt)[0], None

    x, _ = self._fold(body, params, inputs, context.keys_values)
    return decoder_layer.norm(self.cfg, params["norm"], sharding.by_rows(x))

  def logits(self, params: Params, hidden: Array) -> Array:
    """[..., D] -> float32 [..., V]. Dead ids get the same -1e9 in every use."""
    cfg = self.cfg
    if cfg.tied:
      logits = lib.project_onto(hidden, params["embedding"])
    else:
      logits = lib.project(hidden, params["head"]["kernel"])
    logits = decoder_layer.cap(logits, cfg.logit_cap)
    return lib.silence(logits, cfg.live_ids, cfg.dead_ids)

  def init_cache(
    self, params: Params, context: Context, num_samples: int, max_length: int
  ) -> Any:
    """Empty keys and values of `num_samples` responses to each prompt."""
    del params
    cfg = self.cfg
    B, N, T = context.lengths_B.shape[0], num_samples, max_length
    zeros = jnp.zeros((B, cfg.num_kv_heads, N, T, cfg.head_dim), jnp.dtype(cfg.dtype))
    return [(zeros.swapaxes(3, 4), zeros) for _ in range(cfg.num_layers)]

  def decode_step(
    self,
    params: Params,
    context: Context,
    cache: Any,
    tokens_BxN: Array,
    position: Array,
  ) -> tuple[Array, Any]:
    """One token for every response: (float32 logits BxNxV, updated cache)."""
    max_length = cache[0][1].shape[3]
    # What is not yet written lies after the query: it is not seen.
    positions = self._after(context, position[None], jnp.arange(max_length))

    def body(kind, x, layer, inputs):
      prompt, old = inputs

      def write(keys, values):
        put = jax.lax.dynamic_update_slice_in_dim
        return put(old[0], keys, position, 4), put(old[1], values, position, 3)

      return decoder_layer.forward(self.cfg, layer, x, positions, kind, prompt, write)

    extra = list(zip(context.keys_values, cache, strict=True))
    x, cache = self._fold(body, params, tokens_BxN[:, :, None], extra)
    hidden_BxNx1xD = decoder_layer.norm(self.cfg, params["norm"], x)
    return self.logits(params, hidden_BxNx1xD)[:, :, 0], cache

  def cast_for_reading(self, params: Params) -> Params:
    """Parameters of a model that is only read: kernels and embedding in its dtype."""
    return self._cast(params, ("kernel", "embedding"))

  def for_decoding(self, params: Params) -> Params:
    """Kernels in the compute dtype, layers as a list: once per rollout."""
    factors = ("kernel", "embedding") if self.cfg.tied else ("kernel",)
    return with_layers_as_list(self._cast(params, factors), self.cfg)

  def layout_rules(self, tensor: int, decoding: bool = False) -> sharding.Rules:
    """Heads over `tensor`; those of keys and values too, unless there are too few."""
    cfg = self.cfg
    if cfg.num_heads % tensor:
      raise UserError(
        f"{cfg.num_heads} attention heads are not divisible by mesh axis 'tensor' of "
        f"size {tensor}"
      )
    fsdp = None if decoding else "fsdp"
    shared = "tensor" if cfg.num_kv_heads % tensor == 0 else None
    return (
      (r"embedding$", ("tensor", fsdp)),
      (r"head/kernel$", (fsdp, "tensor")),
      (r"(key|value)/kernel$", (fsdp, shared)),
      (r"(key|value)/bias$", (shared,)),
      (r"(query|gate|up)/kernel$", (fsdp, "tensor")),
      (r"(query|gate|up)/bias$", ("tensor",)),
      (r"(out|down)/kernel$", ("tensor", fsdp)),
      (r"(scale|bias)$", (None,)),
    )

  def costs(self, S: int, N: int, T: int, tensor: int = 1) -> Costs:  # noqa: N803
    """Of a prompt of S tokens with N responses of T; see `protocol.Costs`."""
    cfg = self.cfg
    D, F, L, NT = cfg.d_model, cfg.d_ff, cfg.num_layers, N * T
    width = jnp.dtype(cfg.dtype).itemsize
    heads, shared = (n * cfg.head_dim for n in (cfg.num_heads, cfg.num_kv_heads))
    kernels = 2 * D * (heads + shared) + (3 if cfg.gated else 2) * D * F
    scores = [S * S, NT * (S + T)]
    if flash.is_used(cfg, S, S):  # which holds a row of tiles
      scores[0] = S * flash.TILE
    if flash.is_used(cfg, NT, S + NT):
      scores[1] = NT * flash.TILE
    attention = 4 * heads * (S * S + NT * (S + T))
    kept = S * shared * 2  # the prompt's keys and values, whatever is recomputed
    full = cfg.remat == "full"
    each = D if full else 6 * D + 3 * F / tensor
    saved = width * ((S + NT) * each + kept / tensor)
    if cfg.remat == "none":
      saved += cfg.num_heads / tensor * sum(scores) * (4 + width)
    return Costs(
      flops=L * (2 * kernels * (S + NT) + attention) + 2 * NT * D * cfg.vocab_rows,
      saved=L * saved,
      scores=cfg.num_heads * max(scores) / tensor,
      layer=max(S, NT) * (4 * D + 3 * F / tensor) * width,
      logits=NT * cfg.vocab_rows / tensor,
      cache=L * (S + NT) * shared / tensor * 2 * width,
      kernels=kernels / tensor * width,
    )

  def _fold(self, body: Callable, params: Params, tokens, extra: Any = None):
    """The layers over embedded tokens BxNxT."""
    cfg = self.cfg
    x = params["embedding"][tokens].astype(cfg.dtype)
    if cfg.scale_embedding:
      x = x * jnp.asarray(cfg.d_model**0.5, cfg.dtype)
    return stacks.fold(body, x, params["layers"], extra, cfg.kinds, cfg.remat)

  def _after(
    self, context: Context, query_T: Array, key_T: Array
  ) -> decoder_layer.Positions:
    """Positions in responses, counted from the prompt's last token, behind prompts."""
    last_Bx1 = context.lengths_B[:, None] - 1
    S = jax.tree.leaves(context.keys_values)[0].shape[-1]
    prompt_1xS = jnp.arange(S)[None]
    prompt_BxS = jnp.where(prompt_1xS < last_Bx1, prompt_1xS, decoder_layer.NOWHERE)
    own_BxT = last_Bx1 + key_T[None]
    return decoder_layer.Positions(
      self.cfg, last_Bx1 + query_T[None], (prompt_BxS, own_BxT)
    )

  def _cast(self, params: Params, endings: tuple[str, ...]) -> Params:
    def cast(path, p: Array) -> Array:
      is_factor = sharding.path_name(path).endswith(endings)
      return p.astype(self.cfg.dtype) if is_factor else p

    return jax.tree_util.tree_map_with_path(cast, params)


def with_layers_as_list(params: Params, cfg: DecoderConfig) -> Params:
  """The same parameters with every layer a tree of its own."""
  if isinstance(params["layers"], list):
    return params
  return params | {"layers": stacks.unstack_layers(params["layers"], cfg.num_layers)}
