"""Figures: each a function from evaluated runs to a drawing and the CSV of its numbers.

`FIGURES` has them all by the name of their files. A figure draws in the common style
(`style.py`) and returns every number drawn, as rows told apart by their `kind`. Numbers
come from evaluations alone, and the same evaluations give the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from alignment.analysis.captions import FIGURES
from alignment.analysis.figures import classification, laws, scaling, training, win_rate
from alignment.analysis.figures.style import Drawing, csv_bytes, png
from alignment.analysis.figures.svg import DARK, to_svg
from alignment.analysis.figures.training import training_curves
from alignment.analysis.runs import Classification, Run
from alignment.runtime.files import write_atomically
from alignment.types import UserError

__all__ = ("DARK", "FIGURES", "csv_bytes", "draw", "to_svg", "training_curves")

_OF_RUNS: dict[str, Callable[[Sequence[Run]], Drawing]] = {
  "figure_01": win_rate.figure_01,
  "figure_04": win_rate.figure_04,
  "figure_05": win_rate.figure_05,
  "figure_07": classification.figure_07,
  "figure_08": classification.figure_08,
  "figure_09": win_rate.figure_09,
  "figure_10": win_rate.figure_10,
  "figure_11": scaling.figure_11,
  "figure_12": win_rate.figure_12,
  "figure_13": win_rate.figure_13,
  "figure_14": scaling.figure_14,
  "appendix_e1": classification.appendix_e1,
  "appendix_f": training.appendix_f,
  "losses": win_rate.every_loss,
  "staleness": scaling.staleness,
  "hybrid": scaling.hybrid,
  "laws": laws.laws,
}


class Drawn(NamedTuple):
  """A figure that is drawn: its files, and what a page shows of it."""

  png: Path
  csv: Path
  svg: str

  def _repr_html_(self) -> str:
    """For notebooks."""
    return self.svg


def draw(
  name: str,
  runs: Sequence[Run],
  out_dir: Path,
  classified: Sequence[Classification] = (),
) -> Drawn:
  """Draws one figure into `out_dir`, as PNG and CSV.

  Args:
    name: one of `FIGURES`.
    runs: all evaluated runs; a figure takes those it is about.
    out_dir: directory of the files.
    classified: rows of figure 6.

  Raises:
    UserError: for an unknown name, or if the figure's runs are missing (naming them).
  """
  if name not in FIGURES:
    raise UserError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
  if name == "figure_06":
    figure, rows = classification.figure_06(classified)
  else:
    figure, rows = _OF_RUNS[name](runs)
  image = png(figure)  # before the SVG, which lays the figure out anew
  drawn = Drawn(out_dir / f"{name}.png", out_dir / f"{name}.csv", to_svg(figure, name))
  write_atomically(drawn.png, image)
  write_atomically(drawn.csv, csv_bytes(rows))
  return drawn
