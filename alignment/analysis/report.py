"""`report.html`: what a study answers, then what that rests on, on one page."""

from collections.abc import Iterable, Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from alignment.analysis.answer import answer, worlds_in_words
from alignment.analysis.claims import NO_JUDGE, WORLDS_NEEDED, Claim, tally
from alignment.analysis.figures import FIGURES, to_svg, training_curves
from alignment.analysis.intervals import Estimate
from alignment.analysis.page import (
  cell,
  figure,
  folded,
  items,
  number,
  page,
  paragraph,
  table,
  text,
)
from alignment.analysis.published import Audit, Model, Published, Sample
from alignment.runtime.files import write_atomically

FIRST_FIGURE = "figure_01"  # beside the answer
WRITERS = ("SFT", "online", "offline", "golden policy")
SAMPLES_SHOWN = 3  # others are folded away
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

AUDIT_COLUMNS = (  # of held-out pairs
  "judge",
  "prefers the same in both orders",
  "prefers the longer response",
  "labels prefer the longer",
  "accuracy by margin, least certain quarter first",
)


def write_report(
  path: Path,
  study: Published,
  *,
  loss: str,
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
  drawings: Mapping[str, str],
  claims: Sequence[Claim],
) -> None:
  """Writes the report, atomically. An empty section is left out.

  Args:
    path: of the HTML file.
    study: whose data, models, samples and notes are shown.
    loss: the main one, of the answer.
    curves: model -> its logged metrics, a dict with `step` per row.
    drawings: name of a figure -> its SVG.
    claims: from `alignment.analysis.claims.claims`.
  """
  others = {name: each for name, each in drawings.items() if name != FIRST_FIGURE}
  sections = {
    "Answer": _answer(study, claims, loss) + _figures(drawings, [FIRST_FIGURE]),
    "Samples": _samples(study.samples) + paragraph(study.samples_note, "soft"),
    "Models": _models(study.models) + "".join(map(paragraph, study.notes)),
    "Figures": _figures(drawings, others),
    "Training curves": "".join(map(_curves, curves, curves.values())),
    "Data": items(study.data),
    "Claims": _refused(study) + _claims(claims, _counted(study)),
  }
  title = f"Online and offline alignment: {study.task}, {_listed(study.worlds)}"
  content = page(title, sections, footer=_code(study))
  write_atomically(path, content.encode("utf-8", "backslashreplace"))


def _listed(worlds: Sequence[int]) -> str:
  """Worlds in words: 21, 23, 24, 25 are "worlds 21, 23 to 25"."""
  starts = [w for w in worlds if w - 1 not in worlds]
  ends = [w for w in worlds if w + 1 not in worlds]
  spans = [
    f"{start}" if start == end else f"{start} to {end}"
    for start, end in zip(starts, ends, strict=True)
  ]
  return f"world{'s' if len(worlds) > 1 else ''} {', '.join(spans)}"


def _counted(study: Published) -> int:
  """How many worlds claims are made of."""
  return len(set(study.worlds) - set(study.refused))


def _answer(study: Published, claims: Sequence[Claim], loss: str) -> str:
  sentence = answer(claims, study.task, loss)
  if not sentence:
    return ""
  worlds = worlds_in_words(_counted(study))
  about = f"{worlds} Win rates are against the golden policy, with the loss {loss}."
  return paragraph(sentence, "answer") + paragraph(about, "soft")


def _figures(drawings: Mapping[str, str], names: Iterable[str]) -> str:
  return "".join(
    figure(drawings[name], FIGURES[name]) for name in names if name in drawings
  )


def _curves(model: str, rows: Sequence[Mapping[str, Any]]) -> str:
  return folded(model, figure(to_svg(training_curves(rows), f"training of {model}")))


def _code(study: Published) -> str:
  """Which code made the study, as far as that is known."""
  parts = (
    f"version {study.version}" if study.version else "",
    f"commit {study.commit}" if study.commit else "",
  )
  return ", ".join(filter(None, parts))


def _models(models: Sequence[Model]) -> str:
  """Those whose accuracy is known, for all else rests on them; the others folded."""
  audited = [model for model in models if model.validation_accuracy is not None]
  tables = [
    table(MODEL_COLUMNS, map(_model, some)) if some else ""
    for some in (audited, [model for model in models if model not in audited])
  ]
  if all(tables):
    tables[1] = folded(f"{len(models) - len(audited)} more", tables[1])
  return tables[0] + _audits(models) + tables[1]


def _audits(models: Sequence[Model]) -> str:
  """What judges go by, and when they err."""
  rows = [
    _audit(model.name, model.audit) for model in models if model.audit is not None
  ]
  return table(AUDIT_COLUMNS, rows) if rows else ""


def _audit(name: str, audit: Audit) -> str:
  values = (
    text(name),
    _share(audit.orders_agree),
    _share(audit.prefers_longer),
    _share(audit.labels_prefer_longer),
    ", ".join(map(_share, audit.accuracy_by_margin)),
  )
  return "".join(
    cell(content, column, "" if column == "judge" else "number")
    for column, content in zip(AUDIT_COLUMNS, values, strict=True)
  )


def _model(model: Model) -> str:
  validation = _share(model.validation_accuracy, model.validation_within)
  values = (
    text(model.name),
    number(model.parameters),
    number(model.init),
    number(model.steps),
    _share(model.train_accuracy),
    validation,
    validation if model.labelled_by_golden_pm else number(None),
    _share(model.truth_accuracy, model.truth_within),
  )
  return "".join(
    cell(content, column, "" if column in ("role", "started from") else "number")
    for column, content in zip(MODEL_COLUMNS, values, strict=True)
  )


def _share(value: float | None, within: float | None = None) -> str:
  """With half of its 95 % interval, if there is one."""
  if value is None or math.isnan(value):
    return number(None)
  return f"{value:.3f}" if within is None else f"{value:.3f} ± {within:.3f}"


def _samples(samples: Sequence[Sample]) -> str:
  tables = [_sample(sample) for sample in samples]
  shown, others = tables[:SAMPLES_SHOWN], tables[SAMPLES_SHOWN:]
  more = folded(f"{len(others)} more", "".join(others)) if others else ""
  return "".join(shown) + more


_EMPTY = '<span class="soft">(empty)</span>'


def _sample(sample: Sample) -> str:
  responses = {  # in the order of a study, then whatever else there is
    name: sample.responses[name]
    for name in dict.fromkeys((*WRITERS, *sample.responses))
    if name in sample.responses
  }
  cells = "".join(
    cell(text(response) or _EMPTY, policy, "text")
    for policy, response in responses.items()
  )
  prompt = (
    f'<td class="text prompt" colspan="{max(1, len(responses))}" data-label="prompt">'
    f"{text(sample.prompt)}</td>"
  )
  return table(responses, [prompt, cells], "samples stacked")


def _estimate(estimate: Estimate, worlds: int) -> str:
  """An estimate; what it is over only where that is not all worlds of the study."""
  if not estimate.over:
    return text(f"{estimate}: {estimate.reason}")
  lines = [f'<span class="number">{text(estimate)}</span>']
  notes = [
    ""
    if worlds == 1 or estimate.over == f"{worlds} worlds"
    else f"over {estimate.over}",
    estimate.reason,
  ]
  if any(notes):
    words = "; ".join(filter(None, notes))
    lines.append(f'<span class="soft">{text(words)}</span>')
  return "<br>".join(lines)


def _refused(study: Published) -> str:
  return "".join(
    paragraph(f"World {world} counts for no claim: {reason}.")
    for world, reason in study.refused.items()
  )


def _claims(claims: Sequence[Claim], worlds: int) -> str:
  """A table grouped by figure, one row per claim, a column per judge.

  A number that needs no judge stands below all of them. What follows from the number
  of worlds is said once, above.
  """
  if not claims:
    return ""
  every = dict.fromkeys(judge for claim in claims for judge in claim.estimates)
  judges = [judge for judge in every if judge != NO_JUDGE] or [NO_JUDGE]
  decided = "verdict" if worlds >= WORLDS_NEEDED else "in these worlds"
  head = ("the statement", "task, loss", *judges, "runs", decided)
  rows = []
  for name in dict.fromkeys(claim.figure for claim in claims):
    title = f"Figure {name}" if name[0].isdigit() else name
    rows.append(f'<th scope="rowgroup" colspan="{len(head)}">{text(title)}</th>')
    rows += [
      _claim_row(claim, judges, worlds) for claim in claims if claim.figure == name
    ]
  explanation = (
    "Win rates are against the golden policy. A verdict needs six worlds and one "
    "answer from every judge: “agrees” where the interval lies within the region in "
    "which the statement holds, “disagrees” where it lies outside. Checkpoints are "
    "selected on one half of the prompts and reported on the other. Of two series with "
    "different numbers of runs both are given the smaller number (the mean over all "
    "subsets), which decides nothing; ablations are compared at the settings that both "
    "have; “all runs” compares everything."
  )
  return (
    paragraph(worlds_in_words(worlds))
    + (paragraph(_tally(claims)) if worlds >= WORLDS_NEEDED else "")
    + table(head, rows, "claims stacked")
    + paragraph(explanation, "soft")
  )


def _tally(claims: Sequence[Claim]) -> str:
  counts = tally(claims)
  words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
  return (
    f"{sum(counts.values())} statements of the paper, each counted once for all "
    f"losses: {words}."
  )


def _claim_row(claim: Claim, judges: Sequence[str], worlds: int) -> str:
  condition = f"{claim.name}: {claim.compared}; holds if {claim.region}"
  cells = [
    cell(
      f'“{text(claim.statement)}”<br><span class="soft">{text(condition)}</span>',
      "the statement",
    ),
    cell("<br>".join(text(x) for x in (claim.task, claim.loss) if x), "task, loss"),
  ]
  if NO_JUDGE in claim.estimates:
    content = _estimate(claim.estimates[NO_JUDGE], worlds)
    cells.append(cell(content, "measured", span=len(judges)))
  else:
    cells += [cell(_judged(claim, judge, worlds), judge) for judge in judges]
  cells.append(cell(text(claim.runs_compared), "runs", "number"))
  cells.append(cell(_verdict(claim, worlds), "verdict"))
  return "".join(cells)


def _judged(claim: Claim, judge: str, worlds: int) -> str:
  parts = []
  if judge in claim.estimates:
    parts.append(_estimate(claim.estimates[judge], worlds))
  if judge in claim.of_all_runs:
    of_all = text(claim.of_all_runs[judge])
    parts.append(
      f'<span class="soft">all runs:</span> <span class="soft number">{of_all}</span>'
    )
  return "<br>".join(parts) or number(None)


def _verdict(claim: Claim, worlds: int) -> str:
  """The verdict and why; of too few worlds, which decide nothing, what they show."""
  if worlds < WORLDS_NEEDED:
    return text(claim.reading.removesuffix(" in this world")) or number(None)
  words = [f'<span class="verdict {claim.verdict}">{text(claim.verdict)}</span>']
  words += [text(each) for each in (claim.reason, claim.reading) if each]
  return "<br>".join(words)
