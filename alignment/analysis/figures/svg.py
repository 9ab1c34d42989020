"""A figure as SVG for an HTML page: points say what they are, colours follow the page.

Drawn by matplotlib from the same arrays as the image, then made to fit into a page:

- Every colour is `var(--c-rrggbb, #rrggbb)`: a page that defines such a variable
  replaces the colour, as for a dark background (`DARK`).
- Every named point (`style.name_points`) is a transparent circle with a `<title>`.
- Text is text, in the page's font; identifiers are the figure's own.
"""

from collections.abc import Iterator
import html
import io
import re

import matplotlib
from matplotlib.figure import Figure
import numpy as np

from alignment.analysis.figures.style import STYLE, NamedPoints

UNITS_PER_INCH = 72  # of matplotlib's SVG
# What is drawn in these colours (of `style.py`) is too dark, or too bright, on black.
DARK = {
  "#ffffff": "#14181d",
  "#000000": "#eef1f4",
  "#333333": "#ccd2d9",
  "#444444": "#aab2bc",
  "#666666": "#99a2ad",
  "#e6e6e6": "#2b323a",
  "#0072b2": "#4aaeea",
  "#d55e00": "#f5833d",
  "#009e73": "#2cc79b",
  "#8a6d00": "#c9a52e",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def to_svg(figure: Figure, salt: str) -> str:
  """The figure as an `<svg>` element; the same figure and salt give the same text.

  Args:
    figure: to be drawn; an image of it, if wanted, is to be drawn before.
    salt: what its identifiers are made of: another for each figure of a page.
  """
  buffer = io.StringIO()
  options = {"svg.fonttype": "none", "svg.hashsalt": ascii(salt)}
  with matplotlib.rc_context(STYLE | options):
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
  drawing = _for_a_page(buffer.getvalue())
  circles = "".join(_circles(figure))
  return drawing.removesuffix("</svg>") + f'<g class="points">{circles}</g></svg>'


def _for_a_page(document: str) -> str:
  """The `<svg>` element of a document by matplotlib, without what a page has itself."""
  drawing = document[document.index("<svg") :].strip()
  drawing = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawing, flags=re.S)
  drawing = re.sub(r">\s+<", "><", drawing)
  drawing = re.sub(r"<[^>]*>", lambda tag: _short(tag[0]), drawing)
  return re.sub(r"^<svg [^>]*>", lambda tag: _head(tag[0]), drawing)


def _short(tag: str) -> str:
  """A tag with tenths of a unit, and without what would be the same anywhere."""
  tag = re.sub(r"\s+", " ", tag)
  tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
  tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
  tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
  tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.1f}", tag)
  return re.sub(r"#([0-9a-f]{6})\b", r"var(--c-\1, #\1)", tag)


def _head(tag: str) -> str:
  """The tag of the whole: its size is left to the page, which knows its width."""
  box = re.search(r'viewBox="0 0 (\S+) \S+"', tag)
  assert box, tag
  return f'<svg {box[0]} style="--width: {box[1]}">'


def _circles(figure: Figure) -> Iterator[str]:
  """A circle for each named point, where the figure was last drawn."""
  height = figure.get_figheight() * UNITS_PER_INCH
  for axes in figure.axes:
    for artist in axes.findobj(NamedPoints):
      for *at, name in artist.points:
        x, y = axes.transData.transform(at) * UNITS_PER_INCH / figure.dpi
        if np.isfinite([x, y]).all():
          title = html.escape(name)
          circle = f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="5">'
          yield f"{circle}<title>{title}</title></circle>"
