"""The layers of T5 in Flax Linen, shared by its encoder and decoder.

Numerics: products take `dtype` inputs and accumulate in float32 (float32 means that on
every platform, see `_precision`); softmax, norms, the gated GELU and everything after
the last product are float32 inside; activations between them, and cotangents before a
product, are rounded to `dtype`; gradients of parameters are float32. Projection kernels
are 2-D, so that Adafactor factors their second moments.
"""

import functools
import math

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from alignment.types import Array

NEGATIVE = -1e9  # a logit that is never chosen and whose probability is exactly 0


class AdaptedKernel(struct.PyTreeNode):
  """A kernel [I, O] that is fixed, and a change of low rank; layers may be stacked."""

  kernel: Array  # first: Linen compares the first leaf with the shape it expects
  a: Array  # [I, r]
  b: Array  # [r, O]
  scale: float = struct.field(pytree_node=False)


def project(x: Array, kernel: Array | AdaptedKernel) -> Array:
  """[..., I] @ [I, O] -> float32 [..., O], multiplied in `x`'s dtype."""
  if isinstance(kernel, AdaptedKernel):
    low = _project(x, kernel.a).astype(x.dtype)
    return _project(x, kernel.kernel) + kernel.scale * _project(low, kernel.b)
  return _project(x, kernel)


@jax.custom_vjp
def _project(x: Array, kernel: Array) -> Array:
  """As `project`.

  JAX's own transpose of a bfloat16 product with a float32 result mixes dtypes, which
  falls off every fast path (TPU and CPU); here the cotangent is rounded to the compute
  dtype first, as in every mixed-precision recipe, and the kernel's gradient leaves in
  float32, the dtype of its master copy.
  """
  return _dot(x, kernel.astype(x.dtype), ((x.ndim - 1,), (0,)))


def _dot(a: Array, b: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]):
  return jax.lax.dot_general(
    a,
    b,
    (contract, ((), ())),
    precision=_precision(a),
    preferred_element_type=jnp.float32,
  )


def _precision(x: Array) -> jax.lax.Precision:
  """Unasked, TPUs would multiply float32 as bfloat16, and GPUs as TF32."""
  exact = x.dtype == jnp.float32
  return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


def _project_fwd(x, kernel):
  return _project(x, kernel), (x, kernel)


def _project_bwd(residuals, g):
  x, kernel = residuals
  g = g.astype(x.dtype)
  rows = tuple(range(x.ndim - 1))
  dx = _dot(g, kernel.astype(x.dtype), ((g.ndim - 1,), (1,))).astype(x.dtype)
  return dx, _dot(x, g, (rows, rows)).astype(kernel.dtype)


_project.defvjp(_project_fwd, _project_bwd)


@jax.custom_vjp
def project_onto(x: Array, rows: Array) -> Array:
  """[..., I] with each of the rows [O, I] -> float32 [..., O]: a head that is a table.

  `project(x, rows.T)` has a gradient that XLA:CPU refuses in bfloat16.
  """
  return _dot(x, rows.astype(x.dtype), ((x.ndim - 1,), (1,)))


def _project_onto_fwd(x, rows):
  return project_onto(x, rows), (x, rows)


def _project_onto_bwd(residuals, g):
  x, rows = residuals
  g = g.astype(x.dtype)
  batch = tuple(range(x.ndim - 1))
  dx = _dot(g, rows.astype(x.dtype), ((g.ndim - 1,), (0,))).astype(x.dtype)
  return dx, _dot(g, x, (batch, batch)).astype(rows.dtype)


project_onto.defvjp(_project_onto_fwd, _project_onto_bwd)


def silence(logits: Array, live_ids: int, dead_ids: tuple[int, ...]) -> Array:
  """Logits [..., V] with `NEGATIVE` at `dead_ids`, and from `live_ids` on if not 0."""
  V = logits.shape[-1]
  if not dead_ids and live_ids in (0, V):
    return logits
  ids_V = jnp.arange(V)
  live_V = ids_V < (live_ids or V)
  for dead in dead_ids:
    live_V &= ids_V != dead
  return jnp.where(live_V.reshape((1,) * (logits.ndim - 1) + (-1,)), logits, NEGATIVE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, a: Array, b: Array) -> Array:
  """An einsum of two arrays of one dtype with a float32 result.

  As in `project`, the cotangent is rounded to the inputs' dtype before its products.
  """
  return jnp.einsum(
    subscripts, a, b, precision=_precision(a), preferred_element_type=jnp.float32
  )


def _product_fwd(subscripts, a, b):
  return product(subscripts, a, b), (a, b)


def _product_bwd(subscripts, residuals, g):
  a, b = residuals
  inputs, out = subscripts.split("->")
  first, second = inputs.split(",")
  g = g.astype(a.dtype)
  da = product(f"{out},{second}->{first}", g, b)
  db = product(f"{out},{first}->{second}", g, a)
  return da.astype(a.dtype), db.astype(b.dtype)


product.defvjp(_product_fwd, _product_bwd)


class Dense(nn.Module):
  """A projection without bias; `stddev` is T5's initialiser, not Linen's default."""

  features: int
  stddev: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.normal(self.stddev)
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    return project(x.astype(self.dtype), kernel).astype(self.dtype)


class RMSNorm(nn.Module):
  """T5's layer norm: no mean, no bias, float32 inside."""

  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
    return (x * scale_D.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


class Attention(nn.Module):
  """Multi-head attention without 1/sqrt(d): T5 folds it into initialisation."""

  d_model: int
  num_heads: int
  d_kv: int
  dtype: jnp.dtype

  def setup(self):
    inner, d = self.num_heads * self.d_kv, self.d_model
    self.query = Dense(inner, (d * self.d_kv) ** -0.5, self.dtype)
    self.key = Dense(inner, d**-0.5, self.dtype)
    self.value = Dense(inner, d**-0.5, self.dtype)
    self.out = Dense(d, inner**-0.5, self.dtype)

  def keys_values(self, x_BxSxD: Array) -> tuple[Array, Array]:
    """-> keys BxHxKxS and values BxHxSxK: the right factors of products as they are."""
    key_BxHxSxK = self._heads(self.key(x_BxSxD))
    return key_BxHxSxK.swapaxes(2, 3), self._heads(self.value(x_BxSxD))

  def __call__(self, x_BxQxD: Array, keys_values, bias) -> Array:
    """Attends from Q positions to S; `bias` (float32) broadcasts to BxHxQxS."""
    key_BxHxKxS, value_BxHxSxK = keys_values
    query_BxHxQxK = self._heads(self.query(x_BxQxD))
    scores_BxHxQxS = product("bhqk,bhks->bhqs", query_BxHxQxK, key_BxHxKxS)
    weights = jax.nn.softmax(scores_BxHxQxS + bias, axis=-1).astype(self.dtype)
    mixed = product("bhqs,bhsk->bhqk", weights, value_BxHxSxK).astype(self.dtype)
    return self.out(mixed.swapaxes(1, 2).reshape(*x_BxQxD.shape[:-1], -1))

  def _heads(self, x_BxSxI: Array) -> Array:
    """Splits the heads: BxHxSxK."""
    split = (*x_BxSxI.shape[:-1], self.num_heads, self.d_kv)
    return x_BxSxI.reshape(split).swapaxes(1, 2)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gated_gelu(gate: Array, up: Array) -> Array:
  """gelu(gate) * up: float32 inside, rounded once to the dtype that came in.

  The backward pass keeps the inputs as they came, not their float32 copies.
  """
  gelu = jax.nn.gelu(gate.astype(jnp.float32), approximate=True)
  return (gelu * up.astype(jnp.float32)).astype(gate.dtype)


class MLP(nn.Module):
  """Gated GELU (T5 1.1) or ReLU (the original T5)."""

  d_model: int
  d_ff: int
  gated: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(Dense, self.d_ff, self.d_model**-0.5, self.dtype)
    if self.gated:
      h = gated_gelu(dense(name="gate")(x), dense(name="up")(x))
    else:
      h = jax.nn.relu(dense(name="up")(x))
    return Dense(self.d_model, self.d_ff**-0.5, self.dtype, name="down")(h)


def relative_buckets(
  relative: Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Array:
  """T5's bucket of a relative position (key position minus query position).

  Half of the buckets are exact, the rest grow logarithmically up to `max_distance`;
  with `bidirectional`, each sign has half of them. Same shape as `relative`.
  """
  offset = jnp.zeros_like(relative)
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(relative > 0, num_buckets, 0)
    distance = jnp.abs(relative)
  else:
    distance = jnp.maximum(-relative, 0)
  exact = num_buckets // 2
  ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
  scale = (num_buckets - exact) / math.log(max_distance / exact)
  far = exact + (jnp.log(ratio) * scale).astype(jnp.int32)
  return offset + jnp.where(
    distance < exact, distance, jnp.minimum(far, num_buckets - 1)
  )


def position_bias(
  table_RxH: Array,
  query_Q: Array,
  key_S: Array,
  *,
  bidirectional: bool,
  max_distance: int,
) -> Array:
  """-> float32 HxQxS, from absolute positions; a decoder's also masks the future."""
  relative_QxS = key_S[None, :] - query_Q[:, None]
  buckets_QxS = relative_buckets(
    relative_QxS,
    bidirectional=bidirectional,
    num_buckets=table_RxH.shape[0],
    max_distance=max_distance,
  )
  bias_HxQxS = jnp.moveaxis(table_RxH.astype(jnp.float32)[buckets_QxS], -1, 0)
  if bidirectional:
    return bias_HxQxS
  return jnp.where((relative_QxS <= 0)[None], bias_HxQxS, NEGATIVE)
