"""Every test runs under `jax_numpy_rank_promotion="raise"`: `[B] - [B, 1]` is a bug."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
