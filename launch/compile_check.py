"""Will a study fit a TPU slice? Compiled ahead of time, on a host without a TPU.

  python -m launch.compile_check --config=configs/tldr.py                # by estimate
  python -m launch.compile_check --config=configs/tldr.py --topology=v5p:2x2x2

The first line prints the smallest slice of each generation that should do, in seconds
and without libtpu. The second compiles every distinct program of the study, a minute or
two each, as training would run it on that slice, and says what it needs; the exit
status is 1 if one does not fit. The mesh is the config's: --config.mesh.tensor=4.

No data, vocabulary or checkpoint is needed: without them models have the shape and the
rows that are published for the sizes that the config names, such as qwen3_8b.
"""

import re
import sys
from typing import Any

from absl import app, flags
import jax
from ml_collections import ConfigDict

from alignment.flags import configuration, parse_flags
from alignment.runtime import output, sharding
from alignment.study import checks, estimate
from alignment.study.programs import Program
from alignment.types import UserError
from launch.fit import propose, topology
from launch.fit.compiled import TooLargeError, compile_program
from launch.fit.placed import placed, vocabulary_is_elsewhere

flags.declare_key_flag("config")  # for --help
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "A slice, such as v5p:2x2x2 or v5e:4x4."
)
_ONLY = flags.DEFINE_string("only", "", "Programs whose name this is found in (regex).")
_ESTIMATE = flags.DEFINE_bool("estimate", False, "Estimate, without compiling.")


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise UserError(f"unexpected argument '{argv[1]}': options start with --")
  try:
    re.compile(_ONLY.value)
  except re.error as error:
    raise UserError(f"--only is no regular expression: {error}") from None
  config = configuration()
  checks.check_config(config)
  if config.vocab.path and vocabulary_is_elsewhere(config):
    print(
      f"there is no vocabulary at {config.vocab.path}: models have the rows that their "
      "sizes are published with"
    )
  if not _TOPOLOGY.value:
    for generation in topology.GENERATIONS:
      print(proposal(config, generation), flush=True)
    return 0
  return check(config, topology.parse(_TOPOLOGY.value))


def proposal(config: ConfigDict, generation: str) -> str:
  """A line: the smallest slice of a generation, by estimate."""
  proposed = propose.propose(config, generation)
  if proposed is None:
    return f"{generation}: no slice of up to 256 chips"
  sizes = " ".join(f"--config.mesh.{axis}={n}" for axis, n in proposed.mesh.items())
  slice_, memory = proposed.topology, proposed.memory
  return (
    f"{slice_.accelerator}: --topology={slice_} {sizes}; most memory: "
    f"{proposed.largest}, about {gib(memory.total)} of {gib(slice_.limit)} GiB per chip"
  )


def check(config: ConfigDict, where: topology.Topology) -> int:
  """Prints what each program needs; the exit status."""
  if _ESTIMATE.value:
    shape = sharding.mesh_shape(**config.mesh, devices=where.chips)
    mesh: Any = propose.abstract_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  else:
    devices = where.devices()
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
  try:
    study = placed(config, mesh)
    checks.check_batches(study)
    programs = study.programs()
  except UserError as error:
    sizes = propose.mesh_for(config, where.chips)
    better = " ".join(f"--config.mesh.{axis}={n}" for axis, n in sizes.items())
    raise UserError(f"{error}; on {where} batches allow {better}") from None
  checks.check_attention(study)
  programs = [p for p in programs if re.search(_ONLY.value, p.name)]
  if not programs:
    raise UserError(f"--only='{_ONLY.value}' is found in no program's name")
  axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(f"{where} ({where.accelerator}), mesh {axes}; {gib(where.limit)} GiB per chip")
  unfit = []
  for program in programs:
    print(f"\n{program.name}  ({stages(program)})", flush=True)
    if not show(program, where.limit):
      unfit.append(program)
  for program in unfit:
    ideas = "; or ".join(propose.suggest(program, config, where))
    print(
      f"\n{program.name} does not fit {where}: {ideas or 'no usual slice is larger'}"
    )
  if not unfit:
    print(f"\nall {len(programs)} programs fit {where}")
  return 1 if unfit else 0


def show(program: Program, limit: int) -> bool:
  """Prints what a program needs; whether it fits."""
  guess = estimate.estimate(program)
  print(f"  {estimate.flops(program):.2e} floating-point operations in matrix products")
  print(f"  estimate: {memory_line(guess, limit)}")
  if _ESTIMATE.value:
    return guess.total <= limit
  try:
    compiled = compile_program(program)
  except TooLargeError as error:
    print(f"  does not compile: {error}")
    return False
  print(
    f"  compiled: {memory_line(compiled.memory, limit)}; in {compiled.seconds:.0f} s"
  )
  for kind, traffic in compiled.traffic.items():
    print(f"  {kind}: {traffic.count} of together {gib(traffic.bytes)} GiB")
  return compiled.memory.total <= limit


def memory_line(memory: estimate.Memory, limit: int) -> str:
  return (
    f"{gib(memory.total)} of {gib(limit)} GiB per chip: arguments "
    f"{gib(memory.arguments)}, temporaries {gib(memory.temporaries)}, alive besides "
    f"{gib(memory.held)}"
  )


def stages(program: Program) -> str:
  first, rest = program.stages[:3], len(program.stages) - 3
  return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


def cli() -> None:
  output.any_text()
  jax.config.update("jax_platforms", "cpu")  # where it runs; it compiles for a slice
  try:
    app.run(main, flags_parser=parse_flags)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  cli()
