"""A study in docs/data, read: what `published.py` packs."""

from collections.abc import Callable, Iterator, Sequence
import csv
import dataclasses
import functools
import json
from pathlib import Path
import shutil
import tarfile
import tempfile
from typing import Any

from alignment.analysis.envelopes import RESAMPLES
from alignment.analysis.intervals import Estimate, by_world, over_worlds
from alignment.analysis.runs import Run, load_runs

DOCS = Path(__file__).parent
FILES = "files.tar.xz"
JUDGES = ("golden PM", "truth")


@dataclasses.dataclass(frozen=True)
class Data:
  """One directory of docs/data."""

  directory: Path

  @functools.cached_property
  def study(self) -> dict[str, Any]:
    return json.loads((self.directory / "study.json").read_text())

  @functools.cached_property
  def claims(self) -> list[dict[str, str]]:
    with (self.directory / "claims.csv").open() as file:
      return list(csv.DictReader(file))

  @functools.cached_property
  def main_loss(self) -> str:
    """That of most statements."""
    losses = [row["loss"] for row in self.claims if row["loss"]]
    return max(losses, key=losses.count)

  @functools.cached_property
  def runs(self) -> list[Run]:
    with tempfile.TemporaryDirectory() as temporary:
      self.unpack(Path(temporary))
      return load_runs(temporary, self.study["runs"])

  @functools.cached_property
  def records(self) -> list[dict[str, Any]]:
    """The evaluations of this study's runs."""
    return [
      record
      for run in self.study["runs"]
      for record in self.lines(f"runs/{run}/evaluations.jsonl")
    ]

  @property
  def sft(self) -> list[Run]:
    return [run for run in self.runs if run.series == "sft"]

  def by_settings(
    self, series: Sequence[str], chosen: Callable[[Run], bool]
  ) -> Iterator[tuple[tuple[str, float, int], list[Run]]]:
    """(series, learning rate, steps) and its runs of all worlds."""
    for name in series:
      runs = [run for run in self.runs if run.series == name and chosen(run)]
      settings = sorted({(run.learning_rate, int(run.steps_E[-1])) for run in runs})
      for rate, steps in settings:
        yield (
          (name, rate, steps),
          [r for r in runs if (r.learning_rate, int(r.steps_E[-1])) == (rate, steps)],
        )

  def over_worlds(
    self, measure: Callable[..., Estimate], judge: str, *groups: Sequence[Run]
  ) -> Estimate:
    """A number of groups of runs, measured per world.

    Intervals over several worlds are made of the worlds' numbers alone.
    """
    by_worlds = [by_world(runs) for runs in groups]
    resamples = RESAMPLES if len(by_worlds[0]) == 1 else 1
    return over_worlds(
      {
        world: measure(*(of[world] for of in by_worlds), judge, resamples=resamples)
        for world in by_worlds[0]
      }
    )

  @functools.cached_property
  def texts(self) -> dict[str, str]:
    """The packed JSON lines by their paths, in one pass: xz has no random access."""
    with tarfile.open(self.directory / FILES) as archive:
      return {
        member.name: archive.extractfile(member).read().decode()
        for member in archive
        if member.name.endswith(".jsonl")
      }

  def lines(self, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in self.texts[path].splitlines()]

  def unpack(self, workdir: Path) -> None:
    """Into a working directory, of which `redraw` makes all else."""
    with tarfile.open(self.directory / FILES) as archive:
      archive.extractall(workdir, filter="data")
    shutil.copy(self.directory / "study.json", workdir)


@functools.cache
def data_of(name: str) -> Data:
  """Read once for all tables."""
  return Data(DOCS / "data" / name)
