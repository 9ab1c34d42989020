"""The smallest slices for online DPO of decoders, as a Markdown table.

  python -m launch.fit.table            # half a minute a row
  python -m launch.fit.table --compile  # with libtpu: as long for each program

Bold is what a compiler said, kept in `--results`; all else is estimated. `--compile`
asks it what that file does not say: of the smallest slice that should do and the next
smaller one and, where it disagrees, of the next ones. It is shown the program that
needs most by estimate, and stopped when it has laid out its memory (layout.py).
"""

from collections.abc import Iterator
import dataclasses
import functools
import json
import math
from pathlib import Path
import sys
from typing import Any

from absl import app, flags
import jax
from ml_collections import ConfigDict

from alignment.flags import parse_flags
from alignment.runtime import output, sharding
from alignment.study.estimate import Memory, estimate
from alignment.types import UserError
from launch.fit import layout, online_dpo, propose, results, topology
from launch.fit.placed import placed
from launch.fit.results import GIB, Need
from launch.fit.topology import Topology

SIZES = {  # by name -> what people call it
  "qwen3_0_6b": "Qwen3 0.6B",
  "gemma3_1b": "Gemma 3 1B",
  "qwen3_1_7b": "Qwen3 1.7B",
  "qwen3_8b": "Qwen3 8B",
  "llama_3_1_8b": "Llama 3.1 8B",
}
SHOWN = ("v5e", "v5p", "v6e")
ROLES = ("sft", "golden_pm", "proxy_pm", "policy", "golden_policy")
TRAINED: dict[str, dict[str, Any]] = {  # what is trained -> dotted keys
  "full": {},
  "LoRA 16": {f"{role}.lora.rank": 16 for role in ROLES}
  | {f"{role}.lora.alpha": 32.0 for role in ROLES},
}
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/data/fit/compiled.csv"
_COMPILE = flags.DEFINE_bool("compile", False, "Compile what --results does not say.")
_RESULTS = flags.DEFINE_string(
  "results", str(RESULTS), "What was compiled: a CSV file."
)
_SIZES = flags.DEFINE_list("sizes", list(SIZES), "Names of sizes.")
_TRAINED = flags.DEFINE_list("trained", list(TRAINED), "What is trained.")
_GENERATIONS = flags.DEFINE_list("generations", list(SHOWN), "Generations of TPUs.")
_LAY_OUT = flags.DEFINE_string(
  "lay_out", "", "A slice: compile the largest program for it, and nothing else."
)


@dataclasses.dataclass(frozen=True)
class Row:
  """A model and how it is trained: what the table has a line of."""

  size: str
  trained: str

  @functools.cached_property
  def config(self) -> ConfigDict:
    config = online_dpo.get_config(self.size)
    config.update_from_flattened_dict(TRAINED[self.trained])
    return config

  def key(self, where: Topology) -> results.Key:
    return self.size, self.trained, where.accelerator


def rows() -> Iterator[str]:
  """The table's lines."""
  yield "| policy and judge | trained | " + " | ".join(_GENERATIONS.value) + " |"
  yield "|---" * (2 + len(_GENERATIONS.value)) + "|"
  for size in _SIZES.value:
    for trained in _TRAINED.value:
      row = Row(size, trained)
      cells = (cell(row, generation) for generation in _GENERATIONS.value)
      yield f"| {SIZES.get(size, size)} | {trained} | {' | '.join(cells)} |"


def cell(row: Row, generation: str) -> str:
  """The smallest slice and what it needs, and what the next smaller one does."""
  proposal = propose.propose(row.config, generation)
  where = None if proposal is None else proposal.topology
  while where is not None and not need(row, where).fits:
    where = where.neighbour(1)
  if where is None:
    return "none"
  while (smaller := where.neighbour(-1)) is not None and need(row, smaller).fits:
    where = smaller
  fitting = need(row, where)
  text = f"{where.accelerator}: {fitting} of {fitting.limit:.2f}"
  if smaller is None:
    return text
  return f"{text}; {smaller.accelerator} refused: {need(row, smaller)}"


def need(row: Row, where: Topology) -> Need:
  """As the compiler said, or says now (`--compile`); else by estimate."""
  compiled = results.read(Path(_RESULTS.value))
  if row.key(where) in compiled:
    return compiled[row.key(where)]
  if _COMPILE.value:
    return compile_largest(row, where, Path(_RESULTS.value))
  best = propose.placed_best(row.config, where)
  total = math.inf if best is None else best.memory.total / GIB
  return Need(total, where.limit / GIB, where.margin)


def compile_largest(row: Row, where: Topology, path: Path) -> Need:
  """What comes of it is appended to the file of results."""
  module = ("-m", "launch.fit.table", f"--lay_out={where}")
  chosen = (f"--sizes={row.size}", f"--trained={row.trained}")
  printed, total = layout.laid_out((sys.executable, *module, *chosen), ROOT)
  facts = json.loads(printed.splitlines()[-1])
  arguments, held = facts.pop("arguments"), facts.pop("held")
  memory = Memory(arguments, total - arguments, held)
  needed = Need(memory.total / GIB, where.limit / GIB, compiled=True)
  verdict = "fits" if needed.fits else "refused"
  limit = f"{needed.limit:.2f}"
  results.append(path, row.key(where), memory, limit=limit, verdict=verdict, **facts)
  return needed


def lay_out(row: Row, where: Topology) -> None:
  """Prints what is known of the program that needs most by estimate; compiles it.

  Raises:
    UserError: if the slice has too many chips.
  """
  best = propose.placed_best(row.config, where)
  if best is None:
    raise UserError(f"{row.size} cannot be shared out over {where}")
  mesh = sharding.make_mesh(**best.mesh, devices=where.devices())
  programs = placed(row.config, mesh).programs()
  program = max(programs, key=lambda one: estimate(one).total)
  facts = {
    "program": program.name,
    "mesh": "x".join(map(str, best.mesh.values())),
    "estimated": f"{estimate(program).total / GIB:.2f}",
    "arguments": program.argument_bytes,
    "held": program.held_bytes,
  }
  print(json.dumps(facts), flush=True)
  program.lower().compile()


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise UserError(f"unexpected argument '{argv[1]}': options start with --")
  if _LAY_OUT.value:
    lay_out(Row(_SIZES.value[0], _TRAINED.value[0]), topology.parse(_LAY_OUT.value))
    return
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
