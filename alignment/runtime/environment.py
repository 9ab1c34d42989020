"""Software, devices and flags: what 'the same bits' depends on."""

from collections.abc import Iterator, Mapping
import importlib.metadata
import os
import platform
from typing import Any

import jax
from jax.sharding import NamedSharding

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # that compute


def environment(state: Any) -> dict[str, Any]:
  """What 'the same bits' depends on, besides the configuration's recipe."""
  device = jax.devices()[0]
  shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state)]
  meshes = [s.mesh.shape for s in shardings if isinstance(s, NamedSharding)]
  return {
    **{package: importlib.metadata.version(package) for package in _PACKAGES},
    "mesh": dict(meshes[0]) if meshes else None,
    "device": device.device_kind if device.platform != "cpu" else platform.machine(),
    "devices": jax.device_count(),
    "processes": jax.process_count(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }


def changes(saved: Mapping[str, Any], state: Any) -> Iterator[str]:
  """What has changed since `environment` was saved: "cores 8, was 4"."""
  present = environment(state)
  for key, value in saved.items():
    if present.get(key) != value:
      yield f"{key} {present.get(key)}, was {value}"
