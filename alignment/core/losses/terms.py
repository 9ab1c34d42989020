"""What several losses are made of."""

import jax.numpy as jnp

from alignment.types import Array


def rho(logps_Bx2: Array, ref_logps_Bx2: Array) -> Array:
  """The log-ratio margin rho(x, y_w, y_l) in nats, float32[B]; > 0 prefers y_w.

  Swapping the responses changes its sign exactly.
  """
  if logps_Bx2.shape != ref_logps_Bx2.shape:
    raise ValueError(
      f"policy {logps_Bx2.shape} and reference {ref_logps_Bx2.shape} differ in shape"
    )
  log_ratios_Bx2 = responses(logps_Bx2, 2) - responses(ref_logps_Bx2, 2)
  return log_ratios_Bx2[:, 0] - log_ratios_Bx2[:, 1]


def per_token(logps_BxN: Array, lengths_BxN: Array | None) -> Array:
  """Mean log-probability of each response's tokens, float32[B, N]; 0 if it has none."""
  if lengths_BxN is None:
    raise ValueError("a mean over tokens needs lengths_BxN: give the loss the lengths")
  if lengths_BxN.shape != logps_BxN.shape:
    raise ValueError(f"logps {logps_BxN.shape} and lengths {lengths_BxN.shape} differ")
  tokens_BxN = jnp.maximum(lengths_BxN, 1).astype(jnp.float32)
  return logps_BxN.astype(jnp.float32) / tokens_BxN


def responses(logps_BxN: Array, n: int) -> Array:
  """As float32, after checking the shape: broadcasting would hide a mistake."""
  if logps_BxN.ndim != 2 or logps_BxN.shape[1] != n:
    raise ValueError(f"log-probabilities must be [B, {n}], not {logps_BxN.shape}")
  return logps_BxN.astype(jnp.float32)
