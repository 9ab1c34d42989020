"""Software, devices and flags: what 'the same bits' depends on."""

from collections.abc import Iterator, Mapping
import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path
import platform
import subprocess
from typing import Any

import jax
from jax.sharding import NamedSharding

_DISTRIBUTION = "online-offline-alignment"  # as setup.py names this package
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
    **code(),
  }


@functools.cache
def code() -> dict[str, str | None]:
  """The version of this package; of a checkout also commit and lock file's sha256.

  What is not known is None.
  """
  root = Path(__file__).parents[2]
  commit = None
  if (root / ".git").exists():
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
      done = subprocess.run(command, capture_output=True, text=True, check=False)
      commit = done.stdout.strip() or None
    except OSError:  # no git here
      pass
  try:
    version = importlib.metadata.version(_DISTRIBUTION)
  except importlib.metadata.PackageNotFoundError:  # run where it is not installed
    version = None
  lock = root / "requirements.lock"
  sha256 = hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None
  return {"version": version, "commit": commit, "lock": sha256}


def changes(saved: Mapping[str, Any], state: Any) -> Iterator[str]:
  """What has changed since `environment` was saved: "cores 8, was 4"."""
  present = environment(state)
  for key, value in saved.items():
    if present.get(key) != value:
      yield f"{key} {present.get(key)}, was {value}"
