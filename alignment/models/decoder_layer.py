"""One layer of a decoder, for prompts, responses and single tokens alike.

Numerics are those of `layers.py`. Keys are held as BxHxNxKxT, values as BxHxNxTxK (H
heads of keys and values, each read by G heads of queries), so that products are of
matrices as they lie: with N and T, or G and T, as one dimension.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from alignment.models import flash
from alignment.models import layers as lib
from alignment.models.decoder_config import DecoderConfig
from alignment.models.rope import rotate
from alignment.runtime import sharding
from alignment.types import Array, Params

NOWHERE = 2**30  # the position of a key that no query may see; also no window at all

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Positions:
  """Where queries and keys stand, and what follows from it in each kind of layer.

  Args:
    cfg: the model.
    query_BxT: positions of the queries, and of keys and values that come with them.
    blocks: positions of each block of keys that they attend to, BxS; B may be 1.
  """

  def __init__(self, cfg: DecoderConfig, query_BxT: Array, blocks: tuple[Array, ...]):
    self._windows = (NOWHERE, cfg.window)
    self._query_BxT = query_BxT
    self._blocks = blocks
    # Here, once for all layers: in a loop over them they would be computed in each.
    ropes = (cfg.rope, cfg.local_rope) if cfg.local_rope else (cfg.rope,)
    width = cfg.rotary_dim or cfg.head_dim
    self._tables = [
      tuple(x[:, None, :, None, :] for x in rope.angles(query_BxT, width))
      for rope in ropes
    ]

  @property
  def first_B(self) -> Array:  # noqa: N802
    """Positions of the first queries: as many keys of their prompts are seen."""
    return self._query_BxT[:, 0]

  def rotation(self, kind: Any) -> tuple[Array, Array]:
    """Cosines and sines in a layer of this kind, Bx1xTx1xK/2."""
    if len(self._tables) == 1:
      return self._tables[0]
    if isinstance(kind, int):
      return self._tables[kind]
    both = zip(*self._tables, strict=True)
    cos, sin = (jnp.where(kind == 1, local, plain) for plain, local in both)
    return cos, sin

  def biases(self, kind: Any) -> list[Array]:
    """Of each block, float32 Bx1x1x1xTxS: a query sees no later key, none too far.

    To be called in each layer: kept from one to the next, they would take memory.
    """
    whole, local = self._windows
    window = jnp.where(kind == 1, local, whole)  # a constant, if `kind` is an int
    biases = []
    for keys_BxS in self._blocks:
      distance_BxTxS = self._query_BxT[:, :, None] - keys_BxS[:, None, :]
      seen_BxTxS = (distance_BxTxS >= 0) & (distance_BxTxS < window)
      biases.append(jnp.where(seen_BxTxS, 0.0, lib.NEGATIVE)[:, None, None, None])
    return biases


def forward(
  cfg: DecoderConfig,
  params: Params,
  x_BxNxTxD: Array,
  positions: Positions,
  kind: Any,
  prompt: Any = None,
  write: Callable | None = None,
) -> tuple[Array, Any]:
  """One layer over T new positions of N responses: -> (x, own keys and values).

  Args:
    cfg: the model.
    params: of this layer.
    x_BxNxTxD: activations.
    positions: of the new tokens and of all keys.
    kind: 1 in a local layer, else 0.
    prompt: the keys BxHxKxS and values BxHxSxK that a prompt left in this layer.
    write: in decoding, puts the new keys and values into the cache and returns it.
  """
  x = sharding.by_rows(x_BxNxTxD)

  def after(name: str, y: Array) -> Array:
    return norm(cfg, params[name], y) if cfg.post_norms else y

  y = norm(cfg, params["attention_norm"], x)
  query, keys, values = _heads(cfg, params["attention"], y, positions.rotation(kind))
  own = (keys, values) if write is None else write(keys, values)
  blocks = [own] if prompt is None else [prompt, own]
  if write is None and flash.is_used(cfg, *_lengths(blocks)):
    mixed = flash.attend(cfg, query, own, prompt, positions.first_B, kind)
  else:
    mixed = _attend(cfg, query, blocks, positions.biases(kind))
  y = _dense(cfg, params["attention"]["out"], mixed)
  attended = x + after("attention_post_norm", y)
  y = norm(cfg, params["mlp_norm"], x if cfg.parallel else attended)
  return attended + after("mlp_post_norm", _mlp(cfg, params["mlp"], y)), own


def _lengths(blocks) -> tuple[int, int]:
  """Positions of the new tokens, and of all that their queries may see."""
  *prompt, new = (math.prod(values.shape[2:-1]) for _, values in blocks)
  return new, new + sum(prompt)


def _heads(cfg: DecoderConfig, params, x_BxNxTxD, rotation):
  """-> queries BxHxNxGxTxK, keys BxHxNxKxT, values BxHxNxTxK."""
  B, N, T, _ = x_BxNxTxD.shape

  def split(name: str, heads: int) -> Array:
    y = _dense(cfg, params[name], x_BxNxTxD)
    return y.reshape(B, N, T, heads, cfg.head_dim)

  def turned(name: str, heads: int, scale: float = 1.0) -> Array:
    y = split(name, heads)
    if cfg.qk_norm:
      y = norm(cfg, params[f"{name}_norm"], y)
    return rotate(y.astype(jnp.float32) * scale, *rotation).astype(cfg.dtype)

  scale = (cfg.query_scalar or cfg.head_dim) ** -0.5
  query = turned("query", cfg.num_heads, scale)
  query = query.reshape(B, N, T, cfg.num_kv_heads, -1, cfg.head_dim)
  keys, values = turned("key", cfg.num_kv_heads), split("value", cfg.num_kv_heads)
  return (
    query.transpose(0, 3, 1, 4, 2, 5),
    keys.transpose(0, 3, 1, 4, 2),
    values.transpose(0, 3, 1, 2, 4),
  )


def _attend(cfg: DecoderConfig, query_BxHxNxGxTxK: Array, blocks, biases) -> Array:
  """One softmax over several blocks of keys -> BxNxTx(H G K).

  A block without the dimension N is shared by all responses.
  """
  B, H, N, G, T, K = query_BxHxNxGxTxK.shape
  scores = []
  for (keys, _), bias in zip(blocks, biases, strict=True):
    if keys.ndim == 4:
      rows = query_BxHxNxGxTxK.reshape(B, H, N * G * T, K)
      score = lib.product("bhqk,bhks->bhqs", rows, keys)
    else:
      rows = query_BxHxNxGxTxK.reshape(B, H, N, G * T, K)
      score = lib.product("bhnqk,bhnks->bhnqs", rows, keys)
    score = cap(score.reshape(B, H, N, G, T, -1), cfg.score_cap)
    scores.append(score + bias)
  tops = [score.max(axis=-1, keepdims=True) for score in scores]
  top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
  mixed: Array = 0.0
  total: Array = 0.0
  for (_, values), score in zip(blocks, scores, strict=True):
    weights = jnp.exp(score - top)
    total = total + weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(cfg.dtype)
    if values.ndim == 4:
      rows = weights.reshape(B, H, N * G * T, -1)
      part = lib.product("bhqs,bhsk->bhqk", rows, values)
    else:
      rows = weights.reshape(B, H, N, G * T, -1)
      part = lib.product("bhnqs,bhnsk->bhnqk", rows, values)
    mixed = mixed + part.reshape(B, H, N, G, T, K)
  mixed = (mixed / total).astype(cfg.dtype)
  return mixed.transpose(0, 2, 4, 1, 3, 5).reshape(B, N, T, H * G * K)


def _dense(cfg: DecoderConfig, params: Params, x: Array) -> Array:
  y = lib.project(x, params["kernel"])
  if "bias" in params:
    y = y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
  return y.astype(cfg.dtype)


def _mlp(cfg: DecoderConfig, params: Params, x: Array) -> Array:
  up = _dense(cfg, params["up"], x)
  if not cfg.gated:
    return _dense(cfg, params["down"], _activated(cfg.activation, up))
  gate = _dense(cfg, params["gate"], x)
  return _dense(cfg, params["down"], _activated(cfg.activation, gate, up))


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _activated(name: str, x: Array, factor: Array | None = None) -> Array:
  """Float32 inside, rounded once; the backward pass keeps what came in, as it came."""
  y = _ACTIVATIONS[name](x.astype(jnp.float32))
  return (y if factor is None else y * factor.astype(jnp.float32)).astype(x.dtype)


def norm(cfg: DecoderConfig, params: Params, x: Array) -> Array:
  """Over the last dimension; float32 inside."""
  wide = (1,) * (x.ndim - 1) + (-1,)
  x = x.astype(jnp.float32)
  if cfg.norm == "layer":
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + cfg.norm_epsilon)
  offset = 1.0 if cfg.norm == "rms_plus_one" else 0.0
  x = x * (offset + params["scale"].astype(jnp.float32)).reshape(wide)
  return (x + params["bias"].reshape(wide) if "bias" in params else x).astype(cfg.dtype)


def cap(x: Array, limit: float) -> Array:
  return limit * jnp.tanh(x / limit) if limit else x


def init_norm(cfg: DecoderConfig, width: int) -> Params:
  ones, zeros = jnp.ones((width,)), jnp.zeros((width,))
  if cfg.norm == "layer":
    return {"scale": ones, "bias": zeros}
  return {"scale": zeros if cfg.norm == "rms_plus_one" else ones}


def init_layer(cfg: DecoderConfig, key: Array) -> Params:
  D, F, K = cfg.d_model, cfg.d_ff, cfg.head_dim
  heads, shared = cfg.num_heads * K, cfg.num_kv_heads * K
  keys = iter(jax.random.split(key, 7))

  def dense(rows: int, columns: int, bias: bool, gain: float = 1.0) -> Params:
    kernel = jax.random.normal(next(keys), (rows, columns)) * gain * rows**-0.5
    return {"kernel": kernel} | ({"bias": jnp.zeros((columns,))} if bias else {})

  last = (2 * cfg.num_layers) ** -0.5  # so that the sum of all layers has unit size
  attention = {
    "query": dense(D, heads, cfg.qkv_bias),
    "key": dense(D, shared, cfg.qkv_bias),
    "value": dense(D, shared, cfg.qkv_bias),
    "out": dense(heads, D, cfg.out_bias, last),
  }
  if cfg.qk_norm:
    attention |= {name: init_norm(cfg, K) for name in ("query_norm", "key_norm")}
  mlp = {"up": dense(D, F, cfg.mlp_bias), "down": dense(F, D, cfg.mlp_bias, last)}
  if cfg.gated:
    mlp["gate"] = dense(D, F, cfg.mlp_bias)
  norms = ["attention_norm", "mlp_norm"]
  norms += ["attention_post_norm", "mlp_post_norm"] if cfg.post_norms else []
  return {"attention": attention, "mlp": mlp} | {n: init_norm(cfg, D) for n in norms}
