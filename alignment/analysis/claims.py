"""The paper's claims, measured: estimate, interval under each judge, and verdict.

A claim "agrees" or "disagrees" only on at least `WORLDS_NEEDED` worlds, and only if
every judge says the same: the 95 % interval over worlds lies within the region in which
the statement holds (agrees), or has no point in common with it (disagrees). Anything
else is "undecided", with the reason. So is what has more runs to choose from on one
side than on the other. With equal numbers, one run a side is enough: intervals at equal
KL and of peaks cover what they should (tests/analysis/coverage_test.py).

A world whose golden preference model is a poor judge of the truth, where that is known,
counts for no claim (`Published.refused`).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from alignment.analysis.envelopes import RESAMPLES
from alignment.analysis.hypotheses import Hypothesis, Number
from alignment.analysis.intervals import Estimate, over_worlds, undefined
from alignment.analysis.runs import Classification, Run
from alignment.analysis.selection import Pool, larger_size, main_loss, sizes, trained
from alignment.analysis.statements import HYPOTHESES

VERDICTS = ("agrees", "disagrees", "mixed", "undecided")  # of a statement
WORLDS_NEEDED = 6  # fewer independent worlds decide nothing
NO_JUDGE = "-"  # of numbers that need none


@dataclasses.dataclass(frozen=True)
class Claim:
  """A hypothesis on one task and loss, as measured."""

  figure: str
  name: str
  statement: str
  task: str
  loss: str  # "" where none is involved
  groups: tuple[str, ...]  # what was compared; of two, the first minus the second
  region: str  # of the number, where the statement holds
  num_runs: dict[int, tuple[int, ...]]  # world -> runs of each of `groups`
  estimates: dict[str, Estimate]  # judge -> with equal numbers of runs
  of_all_runs: dict[str, Estimate]  # judge -> with all runs of both; {} if as many
  per_world: dict[int, dict[str, Estimate]]  # world -> judge -> with equal numbers
  verdict: str  # agrees, disagrees or undecided
  reason: str  # why undecided
  reading: str  # what these worlds show, where they are too few to decide

  @property
  def of_the_paper(self) -> bool:
    """Whether it is about one of its figures."""
    return self.figure.startswith("App.") or self.figure[0].isdigit()

  @property
  def compared(self) -> str:
    """For tables: "online minus offline"."""
    return ", ".join([" minus ".join(self.groups[:2]), *self.groups[2:]])

  @property
  def runs_compared(self) -> str:
    """For tables: "1 vs 9", or "1 vs 8-9" where worlds differ."""
    spans = []
    for numbers in zip(*self.num_runs.values(), strict=True):
      low, high = min(numbers), max(numbers)
      spans.append(str(low) if low == high else f"{low}-{high}")
    return " vs ".join(spans)


def claims(
  runs: Sequence[Run],
  hypotheses: Sequence[Hypothesis] = HYPOTHESES,
  resamples: int = RESAMPLES,
  classification: Sequence[Classification] = (),
  refused: Mapping[int, str] | None = None,
) -> list[Claim]:
  """Measures every hypothesis on every task and loss, in the order of the paper.

  A statement that no world has the runs for is left out; worlds that lack some of them
  are named in the reason. `classification` is what figure 6 is drawn from. `refused`
  worlds count for nothing: world -> why.
  """
  main = main_loss(runs)
  measured = [
    _claim(hypothesis, task, loss, pool, resamples, refused or {})
    for hypothesis in hypotheses
    for (task, loss), pool in _pools(runs, classification).items()
    if hypothesis.is_about(task, loss, main)
  ]
  return [claim for claim in measured if claim]


def _pools(
  runs: Sequence[Run], classification: Sequence[Classification]
) -> dict[tuple[str, str], Pool]:
  """(task, loss) -> what there is of them; the loss of classifications is ""."""
  pools: dict[tuple[str, str], Pool] = {}
  size, larger = next(iter(sizes(runs)), ""), larger_size(runs)
  for task in dict.fromkeys([run.task for run in runs]):
    of_task = [run for run in runs if run.task == task]
    policies = {id(run) for run in trained(of_task)}
    for loss in dict.fromkeys(run.loss for run in of_task if id(run) in policies):
      chosen = [r for r in of_task if r.loss == loss or id(r) not in policies]
      pools[task, loss] = Pool(chosen, (), size, larger, of_task)
  for task in dict.fromkeys(row.task for row in classification):
    rows = [row for row in classification if row.task == task]
    pools[task, ""] = Pool((), rows, size, larger)
  return pools


def _claim(
  hypothesis: Hypothesis,
  task: str,
  loss: str,
  pool: Pool,
  resamples: int,
  refused: Mapping[int, str],
) -> Claim | None:
  """None where there is no judge, or no world that has runs of all groups."""
  worlds = {run.world for run in pool.runs} | {c.world for c in pool.classification}
  judges = [NO_JUDGE]
  if hypothesis.number.judged:
    judges = list(pool.runs[0].wins) if pool.runs else []
  measured = {
    world: _measured(
      hypothesis, pool.of_world(world), judges, resamples, refused.get(world, "")
    )
    for world in sorted(worlds)
  }
  if not judges or all(0 in world.num_runs for world in measured.values()):
    return None
  per_world = {world: m.estimates for world, m in measured.items()}
  all_runs = {world: m.of_all_runs or m.estimates for world, m in measured.items()}
  unequal = any(world.of_all_runs for world in measured.values())
  estimates = _over_worlds(hypothesis, per_world)
  verdict, reason = _verdict(hypothesis, estimates, per_world)
  differ = not _equal_numbers(hypothesis, measured.values())
  if verdict != "undecided" and differ:
    verdict, reason = "undecided", "numbers of runs differ, of which the best count"
  return Claim(
    figure=hypothesis.figure,
    name=hypothesis.number.name,
    statement=hypothesis.statement,
    task=task,
    loss=loss,
    groups=tuple(map(str, hypothesis.groups)),
    region=hypothesis.region,
    num_runs={world: m.num_runs for world, m in measured.items()},
    estimates=estimates,
    of_all_runs=_over_worlds(hypothesis, all_runs) if unequal else {},
    per_world=per_world,
    verdict=verdict,
    reason=reason,
    reading=_reading(hypothesis, per_world, differ) if verdict == "undecided" else "",
  )


@dataclasses.dataclass(frozen=True)
class _Measured:
  """A hypothesis' number in one world."""

  num_runs: tuple[int, ...]  # of each group, those that are compared
  estimates: dict[str, Estimate]  # judge -> with equal numbers of runs
  of_all_runs: dict[str, Estimate]  # judge -> with all runs; {} if that is the same


def _measured(
  hypothesis: Hypothesis,
  in_world: Pool,
  judges: Sequence[str],
  resamples: int,
  refused: str,
) -> _Measured:
  every = [group.members(in_world) for group in hypothesis.groups]
  matching = hypothesis.match(every)
  num_runs = tuple(map(_num_runs, matching))
  lacking = [g for g, runs in zip(hypothesis.groups, every, strict=True) if not runs]
  if lacking or refused:
    reason = refused or f"no {' and no '.join(map(str, lacking))} run"
    return _Measured(num_runs, dict.fromkeys(judges, undefined(reason)), {})
  number = hypothesis.number
  estimates = {j: _measure(number, matching, j, resamples) for j in judges}
  of_all_runs = {}
  if number.selects and len({*num_runs, *map(len, every)}) > 1:
    of_all_runs = {
      judge: _measure(number, every, judge, resamples, equal_numbers=False)
      for judge in judges
    }
  return _Measured(num_runs, estimates, of_all_runs)


def _equal_numbers(hypothesis: Hypothesis, worlds: Iterable[_Measured]) -> bool:
  """Whether both sides chose among as many runs, where a number is of the best ones.

  The mean over all settings of a sweep is then not compared with one chosen setting.
  """
  return not hypothesis.number.selects or all(
    len(set(world.num_runs)) <= 1 for world in worlds if 0 not in world.num_runs
  )


def _over_worlds(
  hypothesis: Hypothesis, per_world: Mapping[int, Mapping[str, Estimate]]
) -> dict[str, Estimate]:
  """judge -> estimate over worlds, of world -> judge -> estimate."""
  judges = next(iter(per_world.values()))
  scale = hypothesis.number.scale
  return {
    judge: over_worlds({world: e[judge] for world, e in per_world.items()}, scale)
    for judge in judges
  }


def _num_runs(group: Sequence[Any]) -> int:
  """Its runs; the steps at which one policy classifies a stream are one."""
  return len({i.classifier if isinstance(i, Classification) else id(i) for i in group})


def _measure(
  number: Number,
  groups: Sequence[Sequence[Any]],
  judge: str,
  resamples: int,
  **options: bool,
) -> Estimate:
  if not number.judged:
    return number.measure(*groups)
  return number.measure(*groups, judge, resamples=resamples, **options)


def _side(hypothesis: Hypothesis, estimate: Estimate) -> int:
  """1 where the interval says that the statement holds, -1 that it does not, else 0."""
  low, high = hypothesis.holds
  ends = (estimate.low, estimate.high)
  if math.isnan(estimate.low):  # of a world whose number has no interval of its own
    ends = (estimate.value, estimate.value)
  if low < ends[0] and ends[1] < high:
    return 1
  return -1 if ends[1] <= low or ends[0] >= high else 0


def _verdict(
  hypothesis: Hypothesis,
  estimates: Mapping[str, Estimate],
  per_world: Mapping[int, Mapping[str, Estimate]],
) -> tuple[str, str]:
  """(agrees, disagrees or undecided, why undecided)."""
  worlds = min(
    sum(not math.isnan(of_judge[judge].value) for of_judge in per_world.values())
    for judge in estimates
  )
  left_out = next((e.reason for e in estimates.values() if e.reason), "")
  if worlds < WORLDS_NEEDED:
    number = f"{worlds} world{'' if worlds == 1 else 's'}: {WORLDS_NEEDED} are needed"
    return "undecided", "; ".join(filter(None, (number, left_out)))
  sides = {judge: _side(hypothesis, e) for judge, e in estimates.items()}
  if {1, -1} <= set(sides.values()):
    return "undecided", "judges disagree"
  across = [judge for judge, side in sides.items() if side == 0]
  if across:
    edges = [f"{edge:.3g}" for edge in hypothesis.holds if math.isfinite(edge)]
    by = "" if across == [NO_JUDGE] else f" ({', '.join(across)})"
    return "undecided", f"interval contains {' or '.join(edges)}{by}"
  return ("agrees" if min(sides.values()) > 0 else "disagrees"), ""


def _reading(
  hypothesis: Hypothesis,
  per_world: Mapping[int, Mapping[str, Estimate]],
  differ: bool,
) -> str:
  """What one world's interval says, or in how many worlds the number is as stated.

  Of one world's number that has no interval, what the number itself says. Sides whose
  numbers of runs `differ` are said to: there a sweep's mean meets one chosen setting.
  """
  defined = [
    of_judge
    for of_judge in per_world.values()
    if not any(math.isnan(estimate.value) for estimate in of_judge.values())
  ]
  if not defined:
    return ""
  low, high = hypothesis.holds
  judges = list(defined[0])
  remark = " (numbers of runs differ)" if differ else ""

  def by(judge: str) -> str:
    return "" if judge == NO_JUDGE else f" ({judge})"

  if len(defined) > 1:
    counts = {
      judge: sum(low < of_judge[judge].value < high for of_judge in defined)
      for judge in judges
    }
    words = ", ".join(f"{count}{by(judge)}" for judge, count in counts.items())
    return f"holds in {words} of {len(defined)} worlds{remark}"
  sides = {judge: _side(hypothesis, defined[0][judge]) for judge in judges}
  words_of = {1: "holds", -1: "does not hold", 0: "not separated"}
  if len(set(sides.values())) == 1:
    words = words_of[sides[judges[0]]]
  else:
    words = ", ".join(f"{words_of[side]}{by(judge)}" for judge, side in sides.items())
  if all(math.isnan(estimate.low) for estimate in defined[0].values()):
    words += " (no interval)"
  return f"{words}{remark} in this world"


def tally(claims: Sequence[Claim]) -> dict[str, int]:
  """`count_verdicts` of the paper's statements."""
  return count_verdicts(
    ((claim.figure, claim.statement, claim.task), claim.verdict)
    for claim in claims
    if claim.of_the_paper
  )


def count_verdicts(decided: Iterable[tuple[Hashable, str]]) -> dict[str, int]:
  """verdict -> statements, of (statement, verdict); of one that is made of several
  losses, all must say it.

  One that agrees for some losses and disagrees for others is "mixed".
  """
  verdicts: dict[Hashable, set[str]] = {}
  for statement, verdict in decided:
    verdicts.setdefault(statement, set()).add(verdict)
  counts = dict.fromkeys(VERDICTS, 0)
  for of_losses in verdicts.values():
    if {"agrees", "disagrees"} <= of_losses:
      counts["mixed"] += 1
    else:
      counts["undecided" if "undecided" in of_losses else of_losses.pop()] += 1
  return counts


def table(claims: Sequence[Claim]) -> list[dict[str, Any]]:
  """The claims as rows for a CSV: per judge one over all worlds, and one per world."""
  rows = []
  for claim in claims:
    about = {
      "figure": claim.figure,
      "number": claim.name,
      "statement": claim.statement,
      "task": claim.task,
      "loss": claim.loss,
      "compared": claim.compared,
      "holds_if": claim.region,
    }
    decided = {"verdict": claim.verdict, "reason": claim.reason}
    decided |= {"reading": claim.reading}
    for judge, estimate in claim.estimates.items():
      rows.append(about | _cells("all", judge, estimate) | decided)
    for world, estimates in claim.per_world.items():
      rows += [about | _cells(world, judge, e) for judge, e in estimates.items()]
  return rows


def _cells(world: int | str, judge: str, estimate: Estimate) -> dict[str, Any]:
  numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
  return {"world": world, "judge": judge, **numbers, "over": estimate.over}


_HEADER = (
  "figure",
  "task",
  "loss",
  "number",
  "judge",
  "measured [95 %]",
  "over",
  "runs",
)


def format_claims(claims: Sequence[Claim]) -> str:
  """The claims as an aligned text table for a terminal, two or more lines each."""
  rows_of = [_text_rows(claim) for claim in claims]
  rows = [_HEADER, *(row for claim_rows in rows_of for row in claim_rows)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

  def line(row: Sequence[str]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()

  lines = [line(_HEADER)]
  for claim, claim_rows in zip(claims, rows_of, strict=True):
    lines += map(line, claim_rows)
    lines += [f"  {note}".rstrip() for note in _text_notes(claim)]
  return "\n".join(lines).rstrip() + "\n"


def _text_rows(claim: Claim) -> list[tuple[str, ...]]:
  rows: list[tuple[str, ...]] = []
  first = (claim.figure, claim.task, claim.loss, claim.name)
  for judge, estimate in claim.estimates.items():
    rows.append((*first, judge, str(estimate), estimate.over, claim.runs_compared))
    first = ("", "", "", "")
  for judge, estimate in claim.of_all_runs.items():
    rows.append(("", "", "", "  all runs", judge, str(estimate), estimate.over, ""))
  return rows


def _text_notes(claim: Claim) -> list[str]:
  """Lines below a claim's rows; the last is empty."""
  because = f" ({claim.reason})" if claim.reason else ""
  who = "paper" if claim.of_the_paper else "beyond the paper"
  notes = [
    f'{who}: "{claim.statement}": {claim.verdict}{because}',
    f"number: {claim.compared}; holds if {claim.region}",
  ]
  if claim.reading:
    notes.append(f"here: {claim.reading}")
  return [*notes, ""]
