"""What a compiled program sends between chips, read from its HLO text."""

from collections import defaultdict
from collections.abc import Iterator
import dataclasses
import math
import re

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|called_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind over one execution of a program.

  `bytes` are those of the results on one device. Loops count as often as they run, one
  that may stop earlier (sampling) as if it never did.
  """

  count: int = 0
  bytes: int = 0

  def plus(self, other: "Traffic", times: int) -> "Traffic":
    return Traffic(self.count + times * other.count, self.bytes + times * other.bytes)


def collectives(text: str) -> dict[str, Traffic]:
  """Traffic of the whole program by kind, kinds that do not occur left out."""
  bodies: dict[str, list[str]] = {}
  entry, lines = "", list[str]()
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = bodies[match[1]] = []
      entry = match[1] if line.startswith("ENTRY") else entry
    else:
      lines.append(line)
  totals: dict[str, dict[str, Traffic]] = {}

  def total(name: str) -> dict[str, Traffic]:
    if name not in totals:
      traffic_of: dict[str, Traffic] = defaultdict(Traffic)
      for kind, size in _own(bodies[name]):
        # TPU compilers write a reduce-scatter as a fusion of that name, of an
        # all-reduce and a slice.
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
          kind = "reduce-scatter"
        traffic_of[kind] = traffic_of[kind].plus(Traffic(1, size), 1)
      for called, times in _calls(bodies[name], bodies):
        for kind, traffic in total(called).items():
          traffic_of[kind] = traffic_of[kind].plus(traffic, times)
      totals[name] = dict(traffic_of)
    return totals[name]

  return {kind: total(entry)[kind] for kind in KINDS if kind in total(entry)}


def _own(lines: list[str]) -> Iterator[tuple[str, int]]:
  """(kind, bytes) of a computation's own collectives."""
  for line in lines:
    match = _INSTRUCTION.match(line)
    if match is None:
      continue
    result, name, _ = match.groups()
    kind = name.removesuffix("-start")
    if kind in KINDS:
      arrays = _ARRAY.findall(result)
      if name.endswith("-start") and result.startswith("("):
        # Operands, results, and bookkeeping scalars: the results are the second half.
        arrays = [a for a in arrays if a[1]]
        arrays = arrays[len(arrays) // 2 :]
      yield kind, sum(_size(*array) for array in arrays)


def _calls(lines: list[str], bodies: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
  """(computation, how often it runs) of those that a computation calls."""
  for line in lines:
    match = _INSTRUCTION.match(line)
    if match is None or match[2] in KINDS:
      continue
    names = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
      names += [name.strip().lstrip("%") for name in branches.split(",")]
    times = 1
    if match[2] == "while":
      condition = re.search(r"condition=%?([\w.-]+)", line)
      times = _trips(bodies[condition[1]]) if condition else 1
    yield from ((name, times) for name in names if name in bodies)


def _trips(condition: list[str]) -> int:
  """How often a loop runs: what its counter is compared with."""
  return max((int(n) for n in _CONSTANT.findall("\n".join(condition))), default=1)


def _size(dtype: str, dims: str) -> int:
  if dtype in _BYTES:
    width = _BYTES[dtype]
  else:
    bits = re.search(r"\d+", dtype)  # s32, f32, u8, f8e4m3fn, ...
    width = max(1, int(bits[0]) // 8) if bits else 4
  return width * math.prod(int(d) for d in dims.split(",") if d)
