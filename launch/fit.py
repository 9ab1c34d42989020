"""Which slice a study needs, by arithmetic: what compilation is then asked to confirm.

Arguments and what is alive besides are exact. Temporaries are a model of what the
compiler keeps: gradients and casts of the parameters, activations that
rematerialisation saves, and the working set of the largest layer. A generation's
`margin` (launch/topology.py) is how far that may be off.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from alignment.models import t5
from alignment.runtime import sharding
from alignment.study import recipes
from alignment.types import UserError
from launch.placed import Passes, Program, Work, device_bytes
from launch.programs import programs
from launch.topology import GENERATIONS, Topology

SCORES = 1.5  # copies of a layer's attention scores alive at once, forward
SCORES_BACKWARD = 10.0  # and with its backward pass


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device while a program runs."""

  arguments: int
  temporaries: int
  held: int  # alive, but not this program's

  @property
  def total(self) -> int:
    return self.arguments + self.temporaries + self.held


def estimate(program: Program) -> Memory:
  """What a program is likely to need on each device of its mesh."""
  shape, work = program.mesh.shape, program.work
  rows, tensor = shape["data"] * shape["fsdp"], shape["tensor"]
  saved, working = 0.0, 0.0
  for cfg, B, S, N, T in work.encoded:
    b, width = B / rows, _width(cfg)
    if work.kind == "train":
      tokens = cfg.encoder_layers * S + cfg.decoder_layers * N * T
      full = cfg.remat == "full"
      # Kept per layer: its input; without rematerialisation all that it computes.
      each = cfg.d_model if full else 6 * cfg.d_model + 3 * cfg.d_ff / tensor
      saved += b * tokens * each * width
      if cfg.remat == "none":
        saved += cfg.encoder_layers * b * cfg.num_heads / tensor * S * S * (4 + width)
    copies = SCORES_BACKWARD if work.kind == "train" else SCORES
    scores = copies * b * cfg.num_heads / tensor * S * S * 4
    mlp = b * S * (4 * cfg.d_model + 3 * cfg.d_ff / tensor) * width
    logits = (
      (3 if work.kind == "train" else 2) * b * N * T * cfg.vocab_rows / tensor * 4
    )
    cache = 0.0
    if work.kind == "rollout" and T > 1:
      inner = cfg.num_heads * cfg.d_kv / tensor
      cache = cfg.decoder_layers * b * (S + N * T) * inner * 2 * width
    layers = 2 * _layer_kernels(cfg) / tensor * width  # gathered, and the next one
    working = max(working, scores + mlp + logits + cache + layers)
  return Memory(
    program.argument_bytes,
    int(saved + working + _copies(program)),
    program.held_bytes,
  )


def _copies(program: Program) -> float:
  """Gradients and casts of parameters."""
  state_or_params = program.arguments[0]
  cfg = program.work.encoded[0][0]
  half = _width(cfg) / 4
  if program.work.kind == "train":
    masters = device_bytes(state_or_params.params)
    # Casts of stacked kernels leave the loop over layers, all at once.
    cast = half * masters if half < 1 else 0.0
    # 4: as one compiled program has it (the 11B golden PM, 2 microbatches, v5e:4x4).
    return masters * (4.0 if program.work.microbatches > 1 else 1.0) + cast
  if program.work.kind == "rollout":
    policy = next(a for a in program.arguments if not isinstance(a, t5.T5))
    # Decoding has a copy of its own, of single layers, in the compute dtype.
    is_cast = _a_kernel(policy).dtype != program.work.encoded[0][0].dtype
    return device_bytes(policy) * (half if is_cast else 1.0)
  return 0.0


def _a_kernel(params: Any) -> Any:
  layers = params["decoder"]["layers"]
  layer = layers[0] if isinstance(layers, list) else layers
  return layer["mlp"]["down"]["kernel"]


def _width(cfg: t5.T5Config) -> int:
  return 2 if cfg.dtype == "bfloat16" else 4


def _layer_kernels(cfg: t5.T5Config) -> int:
  """Parameters of a decoder layer."""
  inner = cfg.num_heads * cfg.d_kv
  return 8 * cfg.d_model * inner + (3 if cfg.gated else 2) * cfg.d_model * cfg.d_ff


def batch_sizes(config: ConfigDict) -> Iterator[int]:
  """Rows that every program of a study works on at once."""
  sft = config.sft.to_dict()
  roles = [
    config[name].to_dict() for name in ("golden_pm", "proxy_pm", "golden_policy")
  ]
  roles += [recipe for _, recipe in recipes.runs(config).values()]
  sizes = {role["size"] for role in roles if role["init"] == "sft"}
  roles += [sft | sft["by_size"].get(size, {}) for size in sizes]
  for role in roles:
    yield role["batch_size"] // role["microbatches"]
  yield config.evaluation.batch_size


def mesh_for(config: ConfigDict, chips: int) -> dict[str, int]:
  """A layout for so many chips: rows as far as batches divide, then tensors."""
  rows = math.gcd(chips, *batch_sizes(config))
  return {"data": 1, "fsdp": rows, "tensor": chips // rows}


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
  return AbstractMesh(tuple(sizes[axis] for axis in sharding.AXES), sharding.AXES)


@dataclasses.dataclass(frozen=True)
class Proposal:
  """The smallest slice of a generation on which a study should fit."""

  topology: Topology
  mesh: dict[str, int]
  largest: str  # the program that needs most
  memory: Memory


def propose(config: ConfigDict, generation: str) -> Proposal | None:
  """By estimate; None if no usual slice is large enough.

  Raises:
    UserError: if the configuration is at odds with itself.
  """
  for shape in GENERATIONS[generation].slices:
    topology = Topology(generation, shape)
    sizes = mesh_for(config, topology.chips)
    try:
      listed = programs(config, abstract_mesh(sizes))
    except UserError as error:
      if "divisible by mesh axis" in str(error):
        continue  # too many chips for its heads
      raise
    needed = {program.name: estimate(program) for program in listed}
    name = max(needed, key=lambda n: needed[n].total)
    if topology.margin * needed[name].total <= topology.limit:
      return Proposal(topology, sizes, name, needed[name])
  return None


def suggest(program: Program, config: ConfigDict, topology: Topology) -> list[str]:
  """What to change where a program does not fit: only what should do, by estimate."""
  found = []
  work = program.work
  shards = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
  rows = work.encoded[0][1]

  def fits(remat: str | None = None, k: int = 1, accumulate: int = 1) -> bool:
    """With another rematerialisation, or 1/k of the rows at a time."""
    encoded: Passes = tuple(
      (dataclasses.replace(cfg, remat=remat or cfg.remat), rows // k, S, N, T)
      for cfg, rows, S, N, T in work.encoded
    )
    changed = Work(work.kind, encoded, work.microbatches * accumulate)
    needed = estimate(dataclasses.replace(program, work=changed)).total
    return topology.margin * needed <= topology.limit

  parts = [k for k in _powers_of_2(rows // shards) if rows % (k * shards) == 0]
  if work.kind == "train":
    if config.model.remat != "full" and fits(remat="full"):
      found.append("--config.model.remat=full")
    k = next((k for k in parts if fits(k=k, accumulate=k)), None)
    if k is not None:
      stage = program.stages[0]
      role = "sft" if stage.startswith("sft_") else stage
      role = role if role in config else "policy"
      found.append(f"--config.{role}.microbatches={k * work.microbatches}")
  elif work.kind == "forward" or program.stages[-1].startswith("evaluate"):
    k = next((k for k in parts if fits(k=k)), None)
    if k is not None:
      found.append(f"--config.evaluation.batch_size={rows // k}")
  larger = topology.neighbour(1)
  if larger is not None:
    sizes = mesh_for(config, larger.chips)
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in sizes.items())
    found.append(f"more chips: --topology={larger} {mesh}")
  return found


def _powers_of_2(limit: int) -> list[int]:
  """2, 4, ... up to a limit."""
  return [2**i for i in range(1, limit.bit_length()) if 2**i <= limit]


def flops(program: Program) -> float:
  """Operations of its matrix products over all devices, recomputation not counted.

  A product of [m, k] and [k, n] counts 2mkn; a backward pass as two forward passes.
  """
  forward = sum(
    rows * forward_flops(cfg, S, N * T, T)
    for cfg, rows, S, N, T in program.work.encoded
  )
  times = 3 if program.work.kind == "train" else 1
  return times * program.work.microbatches * forward


def forward_flops(cfg: t5.T5Config, S: int, tokens: int, T: int) -> int:  # noqa: N803
  """One prompt of S tokens, with responses of T tokens each and `tokens` together."""
  D, V, H = cfg.d_model, cfg.vocab_rows, cfg.num_heads * cfg.d_kv
  mlp = 2 * (3 if cfg.gated else 2) * D * cfg.d_ff
  encoder = S * cfg.encoder_layers * (8 * D * H + mlp + 4 * S * H)
  decoder = tokens * (12 * D * H + mlp + 4 * T * H + 4 * S * H) + S * 4 * D * H
  return encoder + cfg.decoder_layers * decoder + tokens * 2 * D * V
