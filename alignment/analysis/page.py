"""An HTML page that stands alone: style, one script, escaped building blocks.

Nothing is loaded from elsewhere. Whatever models or data wrote is untrusted: every
string is escaped, control characters are made visible, and a policy in the page forbids
connections and all scripts but the page's own, which shows the names of points. Without
scripts, browsers show them by themselves, though not to a finger.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import hashlib
import html
import math
from typing import Any

from alignment.analysis.figures import DARK

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2026; --soft: #5b6470;
  --line: #dfe3e8; --tint: #f6f7f9; --blue: #0072b2; --green: #00785a; --red: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e6eaee; --soft: #9ca6b2; --line: #2f3741;
    --tint: #1c2229; --blue: #5db8f0; --green: #35cfa0; --red: #f5934f; DARK }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem;
  color: var(--ink); background: var(--paper); line-height: 1.5;
  overflow-wrap: break-word;
  font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.4rem, 4vw, 1.9rem); line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
section:first-of-type h2 { margin-top: 1.5rem; }
p { max-width: 46rem; } .soft { color: var(--soft); }
.answer { font-size: clamp(1.1rem, 2.6vw, 1.35rem); line-height: 1.45;
  max-width: 56rem; }
nav a { display: inline-block; margin-right: 1rem; color: var(--blue); }
ul { padding-left: 1.2rem; }
summary { cursor: pointer; color: var(--blue); margin: 1rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
figure { margin: 1rem 0 2rem; } figcaption { color: var(--soft); max-width: 46rem; }
.drawing { overflow-x: auto; }
svg { display: block; max-width: 100%; height: auto; fill: var(--c-000000, #000);
  width: calc(var(--width) * 1.333px); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.points circle { fill: transparent; stroke-width: 1.5; }
.points .shown { stroke: var(--ink); }
#tip { position: fixed; z-index: 1; pointer-events: none; max-width: min(34rem, 90vw);
  padding: .35rem .6rem; border-radius: .3rem; font-size: .85rem;
  color: var(--paper); background: var(--ink); }
#tip[hidden] { display: none; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; background: var(--tint); }
.wide { overflow-x: auto; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.text, .claims td, summary { overflow-wrap: anywhere; }
.text { white-space: pre-wrap; unicode-bidi: isolate;
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: .85rem; }
.samples { table-layout: fixed; } .samples .prompt { background: var(--tint); }
.claims tbody th { padding-top: 1.4rem; }
.wide + .wide { margin-top: 1.25rem; }
.verdict { font-weight: 700; } .agrees { color: var(--green); }
.disagrees { color: var(--red); } .undecided { color: var(--soft); }
@media (min-width: 46.1rem) {
  .claims td:first-child { width: 33%; } .claims td:last-child { width: 21%; }
}
@media (max-width: 46rem) {
  .stacked thead { position: absolute; clip-path: inset(50%); height: 1px;
    overflow: hidden; }
  .stacked, .stacked :is(tbody, tr, td, th) { display: block; width: 100%; }
  .stacked tr { padding: .5rem 0; border-bottom: 2px solid var(--line); }
  .stacked td { border: 0; padding: .25rem 0; }
  .stacked tbody th { border: 0; padding: .9rem 0 0; }
  .stacked .prompt { padding: .4rem; }
  .stacked td::before { content: attr(data-label); display: block;
    color: var(--soft); font-size: .78rem; font-weight: 600; }
  svg { max-width: none; width: calc(var(--width) * 1.06px); }
}
""".replace("DARK", " ".join(f"--c-{c[1:]}: {dark};" for c, dark in DARK.items()))
# The names move from titles, which browsers show late and not to fingers, to the tip:
# that of the point nearest to the pointer.
_SCRIPT = """
const reach = 24, tip = document.getElementById("tip");
for (const title of document.querySelectorAll(".points title")) {
  title.parentNode.setAttribute("aria-label", title.textContent);
  title.remove();
}
let shown = null;
function nearest(svg, event) {
  const matrix = svg.getScreenCTM();
  const x = (event.clientX - matrix.e) / matrix.a;
  const y = (event.clientY - matrix.f) / matrix.d;
  let best = null, least = reach / matrix.a;
  for (const point of svg.querySelectorAll(".points circle")) {
    const far = Math.hypot(point.cx.baseVal.value - x, point.cy.baseVal.value - y);
    if (far < least) [best, least] = [point, far];
  }
  return best;
}
function show(event) {
  const svg = event.target.closest && event.target.closest("svg");
  const point = svg ? nearest(svg, event) : null;
  if (shown) shown.classList.remove("shown");
  shown = point;
  tip.hidden = !point;
  if (!point) return;
  point.classList.add("shown");
  tip.textContent = point.getAttribute("aria-label");
  const at = point.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (above < 0 ? at.bottom + 8 : above) + "px";
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", show, true);
"""
# Control characters could hide or reorder what is beside them: ASCII's have pictures,
# those of C1 and of bidirectional text are shown by their numbers.
_VISIBLE: dict[int, int | str] = {
  **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
  **{
    code: f"[U+{code:04X}]"
    for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
  },
}
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
  f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}'"
)


def page(title: str, sections: Mapping[str, str], footer: str = "") -> str:
  """The whole page; `sections`, heading -> HTML, without those that are empty."""
  sections = {name: body for name, body in sections.items() if body}
  anchors = {name: name.lower().replace(" ", "-") for name in sections}
  links = "".join(f'<a href="#{anchors[name]}">{name}</a>' for name in sections)
  bodies = "".join(
    f'<section id="{anchors[name]}"><h2>{name}</h2>\n{body}</section>\n'
    for name, body in sections.items()
  )
  below = f"<footer>{text(footer)}</footer>\n" if footer else ""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    f"<h1>{text(title)}</h1>\n<nav>{links}</nav>\n{bodies}{below}"
    f'<div id="tip" role="status" hidden></div>\n<script>{_SCRIPT}</script>\n'
    "</body>\n</html>\n"
  )


def text(value: Any) -> str:
  """`value` as HTML text or attribute; control characters as visible symbols."""
  return html.escape(visible(str(value)))


def visible(words: str) -> str:
  """With control characters as visible symbols."""
  return words.translate(_VISIBLE)


def number(value: Any) -> str:
  """A count with thousands separated, a fraction to 3 digits, a dash for nothing."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return "–"
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return text(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def paragraph(words: str, kind: str = "") -> str:
  css = f' class="{kind}"' if kind else ""
  return f"<p{css}>{text(words)}</p>\n" if words else ""


def items(lines: Sequence[str]) -> str:
  """A list; nothing of none."""
  each = "".join(f"<li>{text(line)}</li>" for line in lines)
  return f"<ul>{each}</ul>" if each else ""


def cell(content: str, label: str, kind: str = "", span: int = 1) -> str:
  """A table cell; its label stands in for the column's head where it is stacked."""
  css = f' class="{kind}"' if kind else ""
  wide = f' colspan="{span}"' if span > 1 else ""
  return f'<td{css}{wide} data-label="{text(label)}">{content}</td>'


def table(head: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
  """A table of rows of cells, which scrolls within itself where it is too wide.

  Of the kind "stacked", it has its cells below each other on a narrow screen instead.
  """
  heads = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
  css = f' class="{kind}"' if kind else ""
  body = "\n".join(f"<tr>{row}</tr>" for row in rows)
  return (
    f'<div class="wide"><table{css}>\n<thead><tr>{heads}</tr></thead>\n'
    f"<tbody>{body}</tbody></table></div>\n"
  )


def folded(words: str, content: str) -> str:
  """Content that shows when its words are clicked at."""
  return f"<details><summary>{text(words)}</summary>{content}</details>\n"


def figure(svg: str, caption: str = "") -> str:
  """A drawing of `figures.svg`, which scrolls within itself where it is too wide."""
  below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
  return f'<figure><div class="drawing">{visible(svg)}</div>{below}</figure>\n'
