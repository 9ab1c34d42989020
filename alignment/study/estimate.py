"""What a program will need of memory and arithmetic, by formula.

Arguments and what is alive besides are exact. Temporaries are a model of what the
compiler keeps: gradients and casts of the parameters, activations that
rematerialisation saves, and the working set of the largest layer. What a pass over a
model costs, the model says (`costs`).
"""

import dataclasses

import jax.numpy as jnp

from alignment.core import scoring
from alignment.runtime import sharding
from alignment.study.programs import Pass, Program, device_bytes

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
  with sharding.on(program.mesh):  # attention may have a kernel there
    return _estimate(program)


def _estimate(program: Program) -> Memory:
  passes = program.work.passes
  saved = sum(_saved(program, one) for one in passes)
  working = max(_working_set(program, one) for one in passes + program.work.fixed)
  return Memory(
    program.argument_bytes,
    int(saved + working + _copies(program)),
    program.held_bytes,
  )


def _saved(program: Program, one: Pass) -> float:
  """Bytes that a pass keeps for its backward pass."""
  if program.work.kind != "train":
    return 0.0
  model, B, S, N, T = one
  shape = program.mesh.shape
  costs = model.costs(S, N, T, shape["tensor"])
  return B / (shape["data"] * shape["fsdp"]) * costs.saved


def _working_set(program: Program, one: Pass) -> float:
  """Bytes of the layer, and the logits, that are being computed."""
  model, B, S, N, T = one
  shape, kind = program.mesh.shape, program.work.kind
  rows, tensor, train = shape["data"] * shape["fsdp"], shape["tensor"], kind == "train"
  costs, b = model.costs(S, N, T, tensor), B / rows
  scores = (SCORES_BACKWARD if train else SCORES) * b * costs.scores * 4
  logits = b * costs.logits
  if (V := model.cfg.vocab_rows) > scoring.WHOLE:  # made a few positions at a time
    logits = min(logits, max(scoring.CHUNK, b * N * V / tensor))
  sampling = kind in ("rollout", "sample") and T > 1
  return (
    scores
    + b * costs.layer
    + (3 if train else 2) * logits * 4
    + (b * costs.cache if sampling else 0.0)
    + 2 * costs.kernels  # gathered, and the next layer's
  )


def _copies(program: Program) -> float:
  """Gradients and casts of parameters."""
  if program.work.kind == "train":
    model = program.work.passes[0][0]
    half = jnp.dtype(model.cfg.dtype).itemsize / 4
    masters = device_bytes(program.arguments[0].params)
    # Casts of stacked kernels leave the loop over layers, all at once.
    cast = half * masters if half < 1 else 0.0
    # 4: as one compiled program has it (the 11B golden PM, 2 microbatches, v5e:4x4).
    return masters * (4.0 if program.work.microbatches > 1 else 1.0) + cast
  return program.work.copy_bytes


def flops(program: Program) -> float:
  """Operations of its matrix products over all devices, recomputation not counted.

  A product of [m, k] and [k, n] counts 2mkn; a backward pass as two forward passes, or
  one where a base is fixed.
  """
  work = program.work

  def forward(passes: tuple[Pass, ...]) -> float:
    return sum(B * model.costs(S, N, T).flops for model, B, S, N, T in passes)

  times = 1 + work.backward if work.kind == "train" else 1
  return work.microbatches * (times * forward(work.passes) + forward(work.fixed))
