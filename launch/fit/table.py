"""The smallest slices for online DPO of decoders, as a Markdown table.

  python -m launch.fit.table            # by estimate, half a minute a row
  python -m launch.fit.table --compile  # with libtpu: a quiet machine needs hours

Compiled is the program that needs most by estimate, on the slice that should do and on
the next smaller one; if that fits too, on smaller ones yet.
"""

from collections.abc import Iterator
import sys
from typing import Any

from absl import app, flags
import jax

from alignment.flags import parse_flags
from alignment.runtime import output, sharding
from alignment.study.estimate import estimate
from alignment.study.programs import Program
from alignment.types import UserError
from launch.fit import online_dpo, propose
from launch.fit.compiled import TooLargeError, compile_program
from launch.fit.placed import placed
from launch.fit.topology import Topology

SIZES = ("qwen3_0_6b", "gemma3_1b", "qwen3_1_7b", "qwen3_8b", "llama_3_1_8b")
SHOWN = ("v5e", "v5p", "v6e")
ROLES = ("sft", "golden_pm", "proxy_pm", "policy", "golden_policy")
TRAINED: dict[str, dict[str, Any]] = {  # what is trained -> dotted keys
  "full": {},
  "LoRA 16": {f"{role}.lora.rank": 16 for role in ROLES}
  | {f"{role}.lora.alpha": 32.0 for role in ROLES},
}
_COMPILE = flags.DEFINE_bool("compile", False, "Ask the compiler, not the estimate.")
_SIZES = flags.DEFINE_list("sizes", list(SIZES), "Names of sizes.")
_GENERATIONS = flags.DEFINE_list("generations", list(SHOWN), "Generations of TPUs.")


def rows() -> Iterator[str]:
  """The table's lines."""
  yield "| policy and judge | trained | " + " | ".join(_GENERATIONS.value) + " |"
  yield "|---" * (2 + len(_GENERATIONS.value)) + "|"
  for size in _SIZES.value:
    for trained, overrides in TRAINED.items():
      config = online_dpo.get_config(size)
      config.update_from_flattened_dict(overrides)
      cells = (cell(config, generation) for generation in _GENERATIONS.value)
      yield f"| {size} | {trained} | {' | '.join(cells)} |"


def cell(config: Any, generation: str) -> str:
  """The smallest slice and what it needs, and what the next smaller one does."""
  fitting, where = "none", _first(config, generation)
  while where is not None:
    memory, limit = needs(config, where), where.limit / 2**30
    margin = 1.0 if _COMPILE.value else where.margin  # by which an estimate may be off
    if memory is None or margin * memory > limit:
      needed = "" if memory is None else f": {memory:.1f}"
      return f"{fitting}; {where.accelerator} refused{needed}"
    fitting = f"{where.accelerator}: {memory:.1f} of {limit:.2f}"
    where = where.neighbour(-1)
  return f"{fitting}; there is none smaller"


def _first(config: Any, generation: str) -> Topology | None:
  proposal = propose.propose(config, generation)
  return None if proposal is None else proposal.topology


def needs(config: Any, where: Topology) -> float | None:
  """GiB per chip of the program that needs most; None if the compiler refuses it."""
  program = largest(config, where)
  if not _COMPILE.value:
    return estimate(program).total / 2**30
  try:
    return compile_program(program).memory.total / 2**30
  except TooLargeError:
    return None


def largest(config: Any, where: Topology) -> Program:
  """By estimate, on the mesh that is proposed for so many chips."""
  sizes = propose.mesh_for(config, where.chips)
  mesh: Any = propose.abstract_mesh(sizes)
  if _COMPILE.value:
    mesh = sharding.make_mesh(**sizes, devices=where.devices())
  return max(placed(config, mesh).programs(), key=lambda p: estimate(p).total)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise UserError(f"unexpected argument '{argv[1]}': options start with --")
  for line in rows():
    print(line, flush=True)


if __name__ == "__main__":
  output.any_text()
  jax.config.update("jax_platforms", "cpu")  # where it runs; it compiles for a slice
  try:
    app.run(main, flags_parser=parse_flags)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
