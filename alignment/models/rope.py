"""Rotary position embeddings: the plain ones, linearly scaled ones, and Llama 3's."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from alignment.types import Array, UserError

KINDS = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class Rope:
  """How fast each pair of a head's channels turns with the position.

  Raises:
    UserError: for a kind that is not implemented.
  """

  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0  # linear and llama3: how much slower
  low_freq_factor: float = (
    1.0  # llama3: turns in `original_length` below which all of it
  )
  high_freq_factor: float = 4.0  # and from which on none of it
  original_length: int = 8192

  def __post_init__(self):
    if self.kind not in KINDS:
      choices = ", ".join(KINDS)
      raise UserError(f"RoPE type '{self.kind}' is not implemented; only {choices} are")

  def frequencies(self, width: int) -> np.ndarray:
    """Radians per position of each of `width` / 2 pairs of channels, float32."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = 1 / np.float32(self.theta) ** exponents
    if self.kind == "default":
      return plain
    if self.kind == "linear":
      return plain / np.float32(self.factor)
    turns = self.original_length * plain / np.float32(2 * math.pi)
    kept = (turns - self.low_freq_factor) / (
      self.high_freq_factor - self.low_freq_factor
    )
    kept = np.clip(kept, 0, 1)
    return ((1 - kept) * plain / self.factor + kept * plain).astype(np.float32)

  def angles(self, positions: Array, width: int) -> tuple[Array, Array]:
    """Cosines and sines at integer positions [...]: float32 [..., width / 2] each."""
    turned = positions[..., None].astype(jnp.float32)
    frequencies = self.frequencies(width).reshape((1,) * positions.ndim + (-1,))
    return jnp.cos(turned * frequencies), jnp.sin(turned * frequencies)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Turns the first channels of x [..., K], float32, by angles that broadcast to it.

  Channel i is paired with channel i + width / 2, as Hugging Face's weights want it;
  channels past the width stay as they are.
  """
  half = cos.shape[-1]
  first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate((*turned, rest), axis=-1)
