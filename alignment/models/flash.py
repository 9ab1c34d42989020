"""Attention by a kernel that never holds its scores: where, and how it is called.

A pass over whole sequences is one call of the kernel. Its queries are the N responses'
tokens in a row, its keys the prompt's followed by theirs, so that a prompt's keys and
values are there once for all responses. A query sees its prompt, and of the responses
only its own: most of the mask is known beforehand, and tiles of it that nobody sees are
skipped. A prompt's pass is the same, of one response without a prompt. Decoding, one
token at a time, has few scores and keeps the plain way.

On a TPU the kernel is JAX's splash attention (`jax.experimental.pallas.ops.tpu`), on a
GPU cuDNN's by `jax.nn.dot_product_attention`. T5's position biases fit neither.
"""

import functools
import math
from typing import Any, Literal

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
import jax.numpy as jnp
import numpy as np

from alignment.models.decoder_config import DecoderConfig
from alignment.runtime import sharding
from alignment.types import Array, UserError

TILE = 128  # lengths are padded to multiples of it
# "auto": as many queries and keys at least. Chosen so that padding to tiles costs
# little and scores take much; no TPU has measured it.
QUERIES, KEYS = 128, 512


def refusal(cfg: DecoderConfig, platform: str) -> str:
  """Why no kernel computes a model's attention on a platform; empty if one does."""
  if cfg.dtype != "bfloat16":
    return f"its kernels multiply bfloat16, and model.dtype is {cfg.dtype}"
  if platform == "tpu":
    return ""
  if platform != "gpu":
    return f"there is no kernel for a {platform}"
  if cfg.score_cap:
    return f"cuDNN's kernel cannot cap scores, as {cfg.model_type} does"
  if cfg.head_dim % 8 or cfg.head_dim > 128:
    return f"cuDNN's kernel cannot have heads of {cfg.head_dim} channels"
  return ""


def check(cfg: DecoderConfig, platform: str) -> None:
  """Raises UserError if a kernel is asked for that there is not."""
  if cfg.attention == "flash" and (why := refusal(cfg, platform)):
    raise UserError(f"model.attention is 'flash', but {why}; use auto or plain")


def is_used(cfg: DecoderConfig, queries: int, keys: int) -> bool:
  """Whether a pass over whole sequences has a kernel, where it is being traced.

  Args:
    cfg: the model; its attention may be auto, plain or flash.
    queries: positions of the new tokens, of all responses to a prompt.
    keys: those and the prompt's.

  Raises:
    UserError: as `check`.
  """
  platform = sharding.platform()
  check(cfg, platform)
  if cfg.attention != "auto":
    return cfg.attention == "flash"
  large = queries >= QUERIES and keys >= KEYS
  return large and platform == "tpu" and not refusal(cfg, platform)


def attend(
  cfg: DecoderConfig, query: Array, own: Any, prompt: Any, seen_B: Array, kind: Any
) -> Array:
  """One softmax over a prompt and the new tokens -> BxNxTx(H G K).

  Args:
    cfg: the model.
    query: BxHxNxGxTxK, scaled.
    own: keys BxHxNxKxT and values BxHxNxTxK of the same tokens.
    prompt: keys BxHxKxS and values BxHxSxK; None in a prompt's own pass.
    seen_B: how many keys of each prompt are seen; not read without a prompt.
    kind: 1 in a local layer, else 0; may be traced.
  """
  B, H, N, G, T, K = query.shape
  query_BxAxQxK = query.transpose(0, 1, 3, 2, 4, 5).reshape(B, H * G, N * T, K)
  keys, values = own[0].swapaxes(3, 4), own[1]
  keys, values = (x.reshape(B, H, N * T, K) for x in (keys, values))
  keys_values = [keys, values]
  if prompt is not None:
    keys_values += [prompt[0].swapaxes(2, 3), prompt[1]]
  seen_B = jnp.broadcast_to(seen_B, (B,))

  def layer(window: int) -> Array:
    function = functools.partial(_one_layer, cfg, (N, T), window)
    return _on_each_device(function, query_BxAxQxK, keys_values, seen_B)

  windows = (0, cfg.window)
  if isinstance(kind, int):
    mixed = layer(windows[kind])
  else:
    mixed = jax.lax.cond(kind == 1, lambda: layer(windows[1]), lambda: layer(0))
  mixed = mixed.reshape(B, H, G, N, T, K)
  return mixed.transpose(0, 3, 4, 1, 2, 5).reshape(B, N, T, H * G * K)


def _on_each_device(function: Any, query: Array, keys_values: Any, seen_B: Array):
  """Rows and heads where they are: the compiler cannot divide a kernel itself."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(query, seen_B, *keys_values)
  shards, heads = mesh.shape["tensor"], keys_values[0].shape[1]
  # Too few heads of keys for the axis: each as often as devices share it.
  times = shards // math.gcd(shards, heads)
  keys_values = [jnp.repeat(x, times, axis=1) for x in keys_values]
  rows = ("data", "fsdp")
  whole = jax.P(rows, "tensor")
  return jax.shard_map(
    function,
    in_specs=(whole, jax.P(rows), *[whole] * len(keys_values)),
    out_specs=whole,
    check_vma=False,
  )(query, seen_B, *keys_values)


def _one_layer(
  cfg: DecoderConfig, shape: tuple[int, int], window: int,
  query_BxAxQxK: Array, seen_B: Array, keys, values, *prompt: Array,
) -> Array:  # fmt: skip
  """Attention of A heads of queries to as many of keys or fewer -> BxAxQxK.

  A window needs the distance of a prompt's last key to be one for all rows: prompts are
  then moved to the end of their block.
  """
  pad = functools.partial(_padded, axis=2)
  Q, S = query_BxAxQxK.shape[2], 0
  query, keys, values = pad(query_BxAxQxK), pad(keys), pad(values)
  seen_BxS = None
  if prompt:
    prompt = tuple(pad(x) for x in prompt)
    S = prompt[0].shape[2]
    first_B = jnp.zeros_like(seen_B)
    if window:
      first_B = S - seen_B
      roll = jax.vmap(functools.partial(jnp.roll, axis=1))
      prompt = tuple(roll(x, first_B) for x in prompt)
    index_1xS = jnp.arange(S)[None]
    first_Bx1, seen_Bx1 = first_B[:, None], seen_B[:, None]
    seen_BxS = (index_1xS >= first_Bx1) & (index_1xS < first_Bx1 + seen_Bx1)
    keys, values = (
      jnp.concatenate(both, axis=2) for both in zip(prompt, (keys, values), strict=True)
    )
  kernel = _cudnn if sharding.platform() == "gpu" else _splash
  mask = _Mask(*shape, S, query.shape[2], window)
  return kernel(cfg, mask, query, keys, values, seen_BxS)[:, :, :Q]


def _padded(x: Array, axis: int) -> Array:
  """With zeros up to a multiple of `TILE`."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % TILE)
  return jnp.pad(x, widths)


class _Mask(tuple):
  """(N, T, S, Q, window): what Q queries see of S + Q keys, whatever the lengths are.

  Queries past N T are padding; they see something, as a softmax must.
  """

  def __new__(cls, N: int, T: int, S: int, Q: int, window: int):  # noqa: N803
    return super().__new__(cls, (N, T, S, Q, window))

  def array(self) -> np.ndarray:
    """bool [Q, S + Q]."""
    _, T, S, Q, window = self
    response_Q, position_Q = np.divmod(np.arange(Q), T)
    distance = np.concatenate(
      [
        S + position_Q[:, None] - np.arange(S)[None],
        position_Q[:, None] - position_Q[None],
      ],
      axis=1,
    )
    seen = (distance >= 0) & (distance < (window or distance.max() + 1))
    seen[:, S:] &= response_Q[:, None] == response_Q[None]
    return seen


def _splash(cfg: DecoderConfig, mask: _Mask, query, keys, values, seen_BxS) -> Array:
  """A CPU, where only tests come, interprets the kernel."""
  interpret = sharding.platform() == "cpu"
  kernel = _splash_kernel(mask, query.shape[1], cfg.score_cap, interpret)
  if seen_BxS is None:
    return jax.vmap(kernel)(query, keys, values)
  zeros_BxQ = jnp.zeros((query.shape[0], query.shape[2]), jnp.int32)
  other_BxS = jnp.where(seen_BxS, 0, 1)
  segments = splash.SegmentIds(zeros_BxQ, jnp.append(other_BxS, zeros_BxQ, axis=1))
  return jax.vmap(kernel)(query, keys, values, segments)


@functools.lru_cache(maxsize=32)
def _splash_kernel(mask: _Mask, heads: int, cap: float, interpret: bool) -> Any:
  """The kernel, its tables as numpy arrays: constants of any program."""
  array = mask.array()
  block_q, block_kv = (
    next(size for size in (512, 256, 128) if length % size == 0)
    for length in array.shape
  )
  sizes = splash.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_q_dq=block_q,
    block_kv_dq=block_kv,
  )
  with jax.ensure_compile_time_eval():
    kernel = splash.make_splash_mha_single_device(
      masks.MultiHeadMask([masks.NumpyMask(array)] * heads),
      block_sizes=sizes,
      attn_logits_soft_cap=cap or None,
      interpret=interpret,
    )
    return jax.tree.map(np.asarray, kernel)


def _cudnn(
  cfg: DecoderConfig,
  mask: _Mask,
  query,
  keys,
  values,
  seen_BxS,
  how: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
  """`how` is what `jax.nn.dot_product_attention` calls an implementation."""
  del cfg
  whole = jnp.asarray(mask.array())[None, None]
  if seen_BxS is not None:
    own = jnp.ones((seen_BxS.shape[0], query.shape[2]), bool)
    whole = whole & jnp.append(seen_BxS, own, axis=1)[:, None, None]
  mixed = jax.nn.dot_product_attention(
    query.swapaxes(1, 2),
    keys.swapaxes(1, 2),
    values.swapaxes(1, 2),
    mask=whole,
    scale=1.0,
    implementation=how,
  )
  return mixed.swapaxes(1, 2)
