"""`report.html`: one self-contained page about a study.

Inline CSS, images as data, no scripts and nothing from elsewhere. Whatever models or
data wrote is untrusted: every string is escaped, control characters are made visible,
and a policy in the page forbids scripts and connections besides.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import html
import math
from pathlib import Path
from typing import Any

from alignment.analysis.claims import NO_JUDGE, Claim
from alignment.analysis.figures import png, training_curves
from alignment.analysis.intervals import NORMAL_QUANTILE, Estimate
from alignment.analysis.published import Model, Published, Sample
from alignment.runtime.files import write_atomically
from alignment.types import UserError

MODEL_COLUMNS = (
  "role",
  "parameters",
  "started from",
  "step chosen",
  "train accuracy",
  "held-out accuracy, 95\N{NO-BREAK SPACE}%",
  "agrees with golden PM, 95\N{NO-BREAK SPACE}%",
  "agrees with truth, 95\N{NO-BREAK SPACE}%",
)

_STYLE = """
:root { color-scheme: light; --ink: #1c2026; --soft: #5b6470; --line: #dfe3e8;
  --tint: #f6f7f9; --blue: #0072b2; --green: #00785a; --red: #b34700; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem;
  color: var(--ink); background: #fff; line-height: 1.5;
  font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { max-width: 46rem; } .soft { color: var(--soft); }
nav a { margin-right: 1rem; color: var(--blue); }
ul { padding-left: 1.2rem; }
figure { margin: 1rem 0 2rem; } figcaption { color: var(--soft); max-width: 46rem; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; background: var(--tint); }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: .85rem; }
.samples { table-layout: fixed; } .samples .prompt { background: var(--tint); }
.claims tbody th { padding-top: 1.4rem; }
.samples + .samples { margin-top: 1.25rem; }
.verdict { font-weight: 700; } .agrees { color: var(--green); }
.disagrees { color: var(--red); } .undecided { color: var(--soft); }
@media (min-width: 46.1rem) {
  .claims td:first-child { width: 33%; } .claims td:last-child { width: 21%; }
}
@media (max-width: 46rem) {
  thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; }
  table, tbody, tr, td { display: block; width: 100%; }
  tr { padding: .5rem 0; border-bottom: 2px solid var(--line); }
  td { border: 0; padding: .25rem 0; }
  td[data-label]::before { content: attr(data-label); display: block;
    color: var(--soft); font-size: .78rem; font-weight: 600; }
  figure { overflow-x: auto; } img { max-width: none; width: 44rem; }
}
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
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
  path: Path,
  study: Published,
  *,
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
  figures: Sequence[tuple[Path, str]],
  claims: Sequence[Claim],
) -> None:
  """Writes the report, atomically. An empty section is left out.

  Args:
    path: of the HTML file.
    study: whose data, models, samples and notes are shown.
    curves: model -> its logged metrics, a dict with `step` per row.
    figures: (PNG, caption) each; the images are copied into the page.
    claims: from `alignment.analysis.claims.claims`.

  Raises:
    UserError: an image is missing.
  """
  notes = filter(None, [*study.notes, study.samples_note])
  sections = {
    "Claims": _claims(claims),
    "Figures": "".join(_figure(_read(png_path), text) for png_path, text in figures),
    "Samples": "".join(map(_sample, study.samples)),
    "Models": _models(study.models),
    "Training curves": "".join(
      f"<h3>{_text(model)}</h3>{_figure(png(training_curves(rows)), '', model)}"
      for model, rows in curves.items()
    ),
    "Data": _list(study.data),
    "Notes": "".join(f"<p>{_text(note)}</p>" for note in notes),
  }
  first, last = study.worlds[0], study.worlds[-1]
  worlds = f"world {first}" if first == last else f"worlds {first} to {last}"
  title = f"Online and offline alignment: {study.task}, {worlds}"
  write_atomically(path, _page(title, sections).encode("utf-8", "backslashreplace"))


def _page(title: str, sections: Mapping[str, str]) -> str:
  sections = {name: body for name, body in sections.items() if body}
  anchors = {name: name.lower().replace(" ", "-") for name in sections}
  links = "".join(f'<a href="#{anchors[name]}">{name}</a>' for name in sections)
  bodies = "".join(
    f'<section id="{anchors[name]}"><h2>{name}</h2>\n{body}</section>\n'
    for name, body in sections.items()
  )
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    f"<h1>{_text(title)}</h1>\n<nav>{links}</nav>\n{bodies}</body>\n</html>\n"
  )


def _text(value: Any) -> str:
  """`value` as HTML text or attribute; control characters as visible symbols."""
  return html.escape(str(value).translate(_VISIBLE))


def _number(value: Any) -> str:
  """A count with thousands separated, a fraction to 3 digits, a dash for nothing."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return "–"
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return _text(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _cell(content: str, label: str, kind: str = "", span: int = 1) -> str:
  """A table cell; the label stands in for the column's head on a narrow screen."""
  css = f' class="{kind}"' if kind else ""
  wide = f' colspan="{span}"' if span > 1 else ""
  return f'<td{css}{wide} data-label="{_text(label)}">{content}</td>'


def _table(head: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
  heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
  css = f' class="{kind}"' if kind else ""
  body = "\n".join(f"<tr>{row}</tr>" for row in rows)
  return (
    f"<table{css}>\n<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>\n"
  )


def _list(lines: Sequence[str]) -> str:
  items = "".join(f"<li>{_text(line)}</li>" for line in lines)
  return f"<ul>{items}</ul>" if items else ""


def _read(png_path: Path) -> bytes:
  try:
    return Path(png_path).read_bytes()
  except OSError as error:
    raise UserError(f"{png_path}: {error.strerror}; draw the figure again") from error


def _figure(image: bytes, caption: str, alternative: str = "") -> str:
  data = base64.b64encode(image).decode()
  below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
  return (
    f'<figure><img alt="{_text(caption or alternative)}" '
    f'src="data:image/png;base64,{data}">{below}</figure>\n'
  )


def _models(models: Sequence[Model]) -> str:
  return _table(MODEL_COLUMNS, map(_model, models)) if models else ""


def _model(model: Model) -> str:
  validation = _accuracy(model.validation_accuracy, model.validation_stderr)
  values = (
    _text(model.name),
    _number(model.parameters),
    _number(model.init),
    _number(model.steps),
    _number(model.train_accuracy),
    validation,
    validation if model.labelled_by_golden_pm else _number(None),
    _accuracy(model.truth_accuracy, model.truth_stderr),
  )
  return "".join(
    _cell(content, column, "" if column in ("role", "started from") else "number")
    for column, content in zip(MODEL_COLUMNS, values, strict=True)
  )


def _accuracy(value: float | None, stderr: float | None) -> str:
  """With its 95 % margin, if there is one."""
  if value is None or stderr is None or math.isnan(value):
    return _number(value)
  return f"{value:.3f} ± {NORMAL_QUANTILE * stderr:.3f}"


def _sample(sample: Sample) -> str:
  responses = sample.responses
  cells = "".join(
    _cell(_text(response), policy, "text") for policy, response in responses.items()
  )
  prompt = (
    f'<td class="text prompt" colspan="{max(1, len(responses))}" data-label="prompt">'
    f"{_text(sample.prompt)}</td>"
  )
  return _table(responses, [prompt, cells], "samples")


def _estimate(estimate: Estimate) -> str:
  if not estimate.over:
    return _text(f"{estimate}: {estimate.reason}")
  left_out = f"; {estimate.reason}" if estimate.reason else ""
  number = f'<span class="number">{_text(estimate)}</span>'
  over = _text(f"over {estimate.over}{left_out}")
  return f'{number}<br><span class="soft">{over}</span>'


def _claims(claims: Sequence[Claim]) -> str:
  """A table grouped by figure, one row per claim, a column per judge.

  A number that needs no judge stands below all of them.
  """
  if not claims:
    return ""
  every = dict.fromkeys(judge for claim in claims for judge in claim.estimates)
  judges = [judge for judge in every if judge != NO_JUDGE] or [NO_JUDGE]
  head = ("the paper's statement", "task, loss", *judges, "runs", "verdict")
  rows = []
  for figure in dict.fromkeys(claim.figure for claim in claims):
    title = figure if figure.startswith("App") else f"Figure {figure}"
    rows.append(f'<th scope="rowgroup" colspan="{len(head)}">{_text(title)}</th>')
    rows += [_claim_row(claim, judges) for claim in claims if claim.figure == figure]
  explanation = (
    "Numbers with 95 % intervals, which say what they are over; win rates are against "
    "the golden policy. A verdict needs six worlds and one answer from both judges: "
    "“agrees” where the interval lies within the region in which the statement holds, "
    "“disagrees” where it lies outside. Checkpoints are selected on one half of the "
    "prompts and reported on the other. Of two methods with different numbers of "
    "runs both are given the smaller number (the mean over all subsets), and ablations "
    "are compared at the settings that both have; “all runs” compares everything."
  )
  return f'{_table(head, rows, "claims")}<p class="soft">{_text(explanation)}</p>'


def _claim_row(claim: Claim, judges: Sequence[str]) -> str:
  number = f"{claim.name}: {claim.compared}; holds if {claim.region}"
  cells = [
    _cell(
      f'“{_text(claim.statement)}”<br><span class="soft">{_text(number)}</span>',
      "the paper's statement",
    ),
    _cell("<br>".join(_text(x) for x in (claim.task, claim.loss) if x), "task, loss"),
  ]
  if NO_JUDGE in claim.estimates:
    content = _estimate(claim.estimates[NO_JUDGE])
    cells.append(_cell(content, "measured", span=len(judges)))
    judges = ()
  for judge in judges:
    parts = []
    if judge in claim.estimates:
      parts.append(_estimate(claim.estimates[judge]))
    if judge in claim.of_all_runs:
      of_all = _text(claim.of_all_runs[judge])
      parts.append(
        f'<span class="soft">all runs:</span> <span class="soft number">{of_all}</span>'
      )
    cells.append(_cell("<br>".join(parts) or "–", judge))
  cells.append(_cell(_text(claim.runs_compared), "runs", "number"))
  verdict = f'<span class="verdict {claim.verdict}">{_text(claim.verdict)}</span>'
  why = "".join(
    f"<br>{_text(words)}" for words in (claim.reason, claim.reading) if words
  )
  cells.append(_cell(verdict + why, "verdict"))
  return "".join(cells)
