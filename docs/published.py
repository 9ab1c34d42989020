"""Published numbers: a finished study into docs/data, and from there into the pages.

  python docs/published.py pack WORKDIR NAME   # a finished study into docs/data/NAME
  python docs/published.py                     # all its tables and figures anew

docs/data/NAME/ has what alignment/study/publish.py publishes: study.json, with commit,
configuration and the lock file's hash; claims.csv, which is made of the rest; and in
files.tar.xz evaluations, outcomes and training statistics. Figures go to docs/NAME/. In
a page a table lies between two comments, which stay:

  <!-- data: quickstart gaps -->
  <!-- end -->
"""

import json
from pathlib import Path
import re
import shutil
import sys
import tarfile
import tempfile

from published_data import DOCS, FILES, Data, data_of
from published_tables import TABLES

from alignment.analysis.results import redraw

PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
PUBLISHED = ("runs", "classification", "training")
ELSEWHERE = {"quickstart/figure_01.png": "quickstart.png"}  # figures, in docs/
REGION = re.compile(
  r"(<!-- data: (?P<name>\w+) (?P<table>\w+) -->)\n.*?(<!-- end -->)", re.DOTALL
)


def pack(workdir: Path, name: str) -> None:
  """A finished study into docs/data/NAME: the same files give the same bytes."""
  directory = DOCS / "data" / name
  directory.mkdir(parents=True, exist_ok=True)
  study = json.loads((workdir / "study.json").read_text())
  of_study = {*study["runs"], *(f"world{w}.jsonl" for w in study["classified_worlds"])}
  of_study |= {f"{model}.jsonl" for model in study["training"]}
  with tarfile.open(directory / FILES, "w:xz", format=tarfile.USTAR_FORMAT) as archive:
    for path in sorted(p for part in PUBLISHED for p in workdir.glob(f"{part}/**/*")):
      inside = path.relative_to(workdir)
      if path.is_file() and inside.parts[1] in of_study:
        member = tarfile.TarInfo(inside.as_posix())  # no dates, no owners
        member.size = path.stat().st_size
        with path.open("rb") as file:
          archive.addfile(member, file)
  shutil.copy(workdir / "study.json", directory)
  made(Data(directory))


def made(data: Data) -> None:
  """Makes `claims.csv` and the figures of what is packed."""
  name = data.directory.name
  with tempfile.TemporaryDirectory() as temporary:
    workdir = Path(temporary)
    data.unpack(workdir)
    redraw(workdir)
    shutil.copy(workdir / "claims.csv", data.directory)
    for figure in sorted(workdir.glob("figures/*.png")):
      drawn = f"{name}/{figure.name}"
      target = DOCS / ELSEWHERE.get(drawn, drawn)
      target.parent.mkdir(exist_ok=True)
      shutil.copy(figure, target)


def filled(page: str) -> str:
  """A page with its tables as docs/data has them."""

  def table(match: re.Match[str]) -> str:
    rows = TABLES[match["table"]](data_of(match["name"]))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{match[1]}\n\n{lines}\n\n{match[4]}"

  return REGION.sub(table, page)


def main(arguments: list[str]) -> None:
  match arguments:
    case ["pack", workdir, name]:
      pack(Path(workdir), name)
    case []:
      for study in sorted((DOCS / "data").glob("*/study.json")):
        made(Data(study.parent))
    case _:
      sys.exit(__doc__)
  for page in PAGES:
    page.write_text(filled(page.read_text()))


if __name__ == "__main__":
  main(sys.argv[1:])
