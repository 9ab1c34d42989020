"""Which slice a study needs, by estimate: what compilation is then asked to confirm.

A generation's `margin` (topology.py) is how far the estimate may be off.
"""

from collections.abc import Iterator
import dataclasses
import math

from jax.sharding import AbstractDevice, AbstractMesh
from ml_collections import ConfigDict

from alignment.models import registry
from alignment.models.protocol import Network
from alignment.models.reward import RewardModel
from alignment.runtime import sharding
from alignment.study.artefacts import closure
from alignment.study.checks import check_batches
from alignment.study.estimate import Memory, estimate
from alignment.study.programs import Program
from alignment.study.stages.models import TrainedModel
from alignment.types import UserError
from launch.fit.placed import placed
from launch.fit.topology import GENERATIONS, Topology

TENSOR_TIMES = (1, 2, 4)  # how much more often than need be tensors are divided


def batch_sizes(config: ConfigDict) -> Iterator[int]:
  """Rows that every program of a study works on at once."""
  study = placed(config, abstract_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
  for artefact in closure(study.artefacts().values(), identity=id):
    if isinstance(artefact, TrainedModel):
      yield artefact.microbatch
  yield config.evaluation.batch_size


def mesh_for(config: ConfigDict, chips: int) -> dict[str, int]:
  """A layout for so many chips: rows as far as batches divide, then tensors."""
  rows = math.gcd(chips, *batch_sizes(config))
  return {"data": 1, "fsdp": rows, "tensor": chips // rows}


def meshes_for(config: ConfigDict, chips: int) -> Iterator[dict[str, int]]:
  """That layout first, then some that share tensors out more often, and rows less.

  A policy that samples is whole on each device but for what `tensor` divides.
  """
  sizes = mesh_for(config, chips)
  for times in TENSOR_TIMES:
    if sizes["fsdp"] % times == 0:
      yield sizes | {"fsdp": sizes["fsdp"] // times, "tensor": sizes["tensor"] * times}


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
  """Of TPUs: a model may have a kernel there."""
  shape = tuple(sizes[axis] for axis in sharding.AXES)
  tpu = AbstractDevice(device_kind="TPU", num_cores=None, platform="tpu")
  return AbstractMesh(shape, sharding.AXES, abstract_device=tpu)


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A slice for a study, and how it is laid out there."""

  topology: Topology
  mesh: dict[str, int]
  largest: str  # the program that needs most
  memory: Memory

  @property
  def should_do(self) -> bool:
    """Whether that fits even if the estimate is off by the generation's margin."""
    return self.topology.margin * self.memory.total <= self.topology.limit


def propose(config: ConfigDict, generation: str) -> Proposal | None:
  """The smallest slice on which it should fit; None if no usual one is large enough.

  Raises:
    UserError: if the configuration is at odds with itself.
  """
  for shape in GENERATIONS[generation].slices:
    topology = Topology(generation, shape)
    proposal = placed_best(config, topology)
    if proposal is not None and proposal.should_do:
      return proposal
  return None


def placed_best(config: ConfigDict, topology: Topology) -> Proposal | None:
  """The first of the layouts of a slice that should do; else what needs least there.

  None if a slice has too many chips for the study.

  Raises:
    UserError: if the configuration is at odds with itself.
  """
  tried = []
  for sizes in meshes_for(config, topology.chips):
    try:
      study = placed(config, abstract_mesh(sizes))
      check_batches(study)
      programs = study.programs()
    except UserError as error:
      if "divisible by mesh axis" in str(error):
        continue  # too many chips for its heads
      raise
    needed = [(program.name, estimate(program)) for program in programs]
    name, memory = max(needed, key=lambda one: one[1].total)
    tried.append(Proposal(topology, sizes, name, memory))
    if tried[-1].should_do:
      return tried[-1]
  return min(tried, key=lambda one: one.memory.total, default=None)


def suggest(program: Program, config: ConfigDict, topology: Topology) -> list[str]:
  """What to change where a program does not fit: only what should do, by estimate."""
  ideas = []
  work = program.work
  shards = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
  rows = work.passes[0][1]

  def fits(remat: str | None = None, k: int = 1, accumulate: int = 1) -> bool:
    """With another rematerialisation, or 1/k of the rows at a time."""
    passes = tuple(
      (with_remat(model, remat or model.cfg.remat), rows // k, S, N, T)
      for model, rows, S, N, T in work.passes
    )
    changed = dataclasses.replace(
      work, passes=passes, microbatches=work.microbatches * accumulate
    )
    needed = estimate(dataclasses.replace(program, work=changed)).total
    return topology.margin * needed <= topology.limit

  parts = [k for k in _powers_of_2(rows // shards) if rows % (k * shards) == 0]
  if work.kind == "train":
    if config.model.remat != "full" and fits(remat="full"):
      ideas.append("--config.model.remat=full")
    k = next((k for k in parts if fits(k=k, accumulate=k)), None)
    if k is not None:
      stage = program.stages[0]
      role = "sft" if stage.startswith("sft_") else stage
      role = role if role in config else "policy"
      ideas.append(f"--config.{role}.microbatches={k * work.microbatches}")
  elif work.kind in ("forward", "sample"):
    k = next((k for k in parts if fits(k=k)), None)
    if k is not None:
      ideas.append(f"--config.evaluation.batch_size={rows // k}")
  larger = topology.neighbour(1)
  if larger is not None:
    sizes = mesh_for(config, larger.chips)
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in sizes.items())
    ideas.append(f"more chips: --topology={larger} {mesh}")
  return ideas


def _powers_of_2(limit: int) -> list[int]:
  """2, 4, ... up to a limit."""
  return [2**i for i in range(1, limit.bit_length()) if 2**i <= limit]


def with_remat(model: Network, remat: str) -> Network:
  """The model with another rematerialisation."""
  if isinstance(model, RewardModel):
    body = registry.model(dataclasses.replace(model.cfg, remat=remat))
    return dataclasses.replace(model, body=body)
  return registry.model(dataclasses.replace(model.cfg, remat=remat))
