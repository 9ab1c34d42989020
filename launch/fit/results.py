"""What the compiler laid out for programs: a CSV file, a row a program.

So a table is printed without a compiler, and compiling goes on where it was cut off.
"""

import csv
import dataclasses
from pathlib import Path

from alignment.study.estimate import Memory

GIB = 2**30
FIELDS = (
  *("size", "trained", "slice", "mesh", "program", "limit", "estimated"),
  *("arguments", "temporaries", "held", "total", "verdict"),
)
Key = tuple[str, str, str]  # a size, what is trained, and a slice such as v5e-8


@dataclasses.dataclass(frozen=True)
class Need:
  """What the program that needs most takes on a chip, of what there is; in GiB.

  Attributes:
    total: of the program, and what is alive besides.
    limit: what a chip has for programs.
    margin: how far above `total` it may come out: 1 where it was compiled.
    compiled: the compiler says so; else it is an estimate.
  """

  total: float
  limit: float
  margin: float = 1.0
  compiled: bool = False

  @property
  def fits(self) -> bool:
    return self.margin * self.total <= self.limit

  def __str__(self) -> str:
    """The compiler's numbers are bold."""
    return f"**{self.total:.1f}**" if self.compiled else f"{self.total:.1f}"


def read(path: Path) -> dict[Key, Need]:
  """Of each cell the compiled program that needs most; empty if there is no file."""
  if not path.exists():
    return {}
  needs: dict[Key, Need] = {}
  with path.open(encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file):
      key = row["size"], row["trained"], row["slice"]
      need = Need(float(row["total"]), float(row["limit"]), compiled=True)
      needs[key] = max(need, needs.get(key, need), key=lambda one: one.total)
  return needs


def append(path: Path, key: Key, memory: Memory, **others: object) -> None:
  """One more row; the file is made with the first.

  Args:
    path: of the file.
    key: what was compiled.
    memory: what it needs.
    **others: the fields that neither key nor memory have; limit is in GiB.
  """
  size, trained, slice_ = key
  row = {"size": size, "trained": trained, "slice": slice_} | others
  for name, amount in (vars(memory) | {"total": memory.total}).items():
    row[name] = f"{amount / GIB:.2f}"
  is_new = not path.exists()
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    if is_new:
      writer.writeheader()
    writer.writerow(row)
