"""Cloud TPU slices by name: `v5p:2x2x2`, their memory, and devices to compile for.

Nothing here needs a TPU. The devices come from libtpu, which compiles on a CPU host for
slices that are not there.
"""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from alignment.types import UserError

_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Generation:
  """A kind of chip.

  Attributes:
    platform: what libtpu calls it.
    limit: bytes of memory per chip that a program may use, as the compiler enforces.
    slices: the usual shapes, smallest first.
    cores: by which the cloud counts a slice, per chip.
    margin: how far above the estimate (study/estimate.py) a train step may come out:
      what compiling the study of an XXL golden preference model showed, rounded.
  """

  platform: str
  limit: int
  slices: tuple[str, ...]
  cores: int
  margin: float = 1.1
  options: tuple[tuple[str, Any], ...] = ()


def _gib(amount: float) -> int:
  return int(amount * 2**30)


GENERATIONS = {
  # A v4 chip's two cores are one device with all of its memory ("megacore").
  "v4": Generation(
    "v4", _gib(30.75), _3D, 2, options=(("chip_config_name", "megacore"),)
  ),
  "v5e": Generation("v5e", _gib(15.75), _2D, 1, margin=1.29),
  "v5p": Generation("v5", _gib(95.74), _3D, 2),
  "v6e": Generation("v6e", _gib(31.25), _2D, 1),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice: so many chips of a generation in a grid."""

  generation: str
  shape: str

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.shape.split("x")))

  @property
  def limit(self) -> int:
    """Bytes per device."""
    return GENERATIONS[self.generation].limit

  @property
  def margin(self) -> float:
    return GENERATIONS[self.generation].margin

  @property
  def accelerator(self) -> str:
    """What `launch.tpu --tpu` calls a slice of this size, such as v5p-16."""
    return f"{self.generation}-{self.chips * GENERATIONS[self.generation].cores}"

  def __str__(self) -> str:
    return f"{self.generation}:{self.shape}"

  def neighbour(self, offset: int) -> "Topology | None":
    """The next larger (1) or smaller (-1) usual slice, if there is one."""
    usual = GENERATIONS[self.generation].slices
    sizes = [Topology(self.generation, shape) for shape in usual]
    if offset > 0:
      return next((t for t in sizes if t.chips > self.chips), None)
    return next((t for t in reversed(sizes) if t.chips < self.chips), None)

  def devices(self) -> tuple[Any, ...]:
    """Devices that programs can be compiled for, though not run on.

    Raises:
      UserError: if libtpu is missing, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
      raise UserError(
        "libtpu is not installed: pip install -e '.[tpu]' (700 MB; into an environment "
        "of its own, since JAX then looks for a TPU)"
      )
    # libtpu asks a TPU host's environment about itself, and there is none.
    for key, value in {
      "TPU_SKIP_MDS_QUERY": "1",
      "TPU_ACCELERATOR_TYPE": self.accelerator,
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_WORKER_ID": "0",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is locked: no chip is used
    }.items():
      os.environ.setdefault(key, value)
    import jax
    from jax.experimental import topologies

    generation = GENERATIONS[self.generation]
    options = dict(generation.options)
    if self.shape == "1x1":
      options["chips_per_host_bounds"] = [1, 1, 1]
    name = f"{generation.platform}:{self.shape}"
    try:
      description = topologies.get_topology_desc(name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
      raise UserError(f"topology {self}: {str(error).splitlines()[0]}") from None
    return tuple(description.devices)


def parse(text: str) -> Topology:
  """`v5p:2x2x2` as a topology.

  Raises:
    UserError: for an unknown generation or a grid of the wrong form.
  """
  generation, _, shape = text.partition(":")
  if generation not in GENERATIONS:
    names = ", ".join(GENERATIONS)
    raise UserError(
      f"topology '{text}': no TPU generation '{generation}'; there are {names}, "
      "as in v5p:2x2x2"
    )
  usual = GENERATIONS[generation].slices
  sides = shape.split("x")
  wanted = len(usual[0].split("x"))
  if len(sides) != wanted or not all(s.isdigit() and int(s) > 0 for s in sides):
    raise UserError(
      f"topology '{text}': a {generation} slice has {wanted} sides, such as "
      f"{generation}:{usual[2]}"
    )
  return Topology(generation, "x".join(str(int(s)) for s in sides))
