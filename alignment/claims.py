"""The paper's claims, measured: estimate, interval under each judge, and verdict."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math

from alignment.runs import Run
from alignment.statistics import (
  RESAMPLES,
  Estimate,
  by_world,
  gap_at_equal_kl,
  over_worlds,
  peak_gap,
  undefined,
)

WORLDS_NEEDED = 6  # fewer independent worlds decide nothing


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """A statement of the paper about two methods, and how it is measured.

  `gap` is positive where the statement holds.
  """

  name: str
  statement: str  # the paper's
  method_a: str
  method_b: str
  gap: Callable[..., Estimate]


HYPOTHESES = (
  Hypothesis(
    "peak win rate",
    "online's peak win rate is above offline's",
    "online",
    "offline",
    peak_gap,
  ),
  Hypothesis(
    "win rate at equal KL",
    "at equal KL online wins more often than offline",
    "online",
    "offline",
    gap_at_equal_kl,
  ),
)
# Section 4 of the paper: on these tasks the peaks are close together.
_SMALL_PEAK_GAP = ("chat_arena", "harmlessness")


@dataclasses.dataclass(frozen=True)
class Claim:
  """A hypothesis on one task and loss, as measured."""

  name: str
  statement: str
  task: str
  loss: str
  methods: tuple[str, str]  # (a, b); estimates are of a - b
  num_runs: dict[int, tuple[int, int]]  # world -> runs of a and b
  estimates: dict[str, Estimate]  # judge -> with equal numbers of runs
  of_all_runs: dict[str, Estimate]  # judge -> with all runs of both; {} if as many
  per_world: dict[int, dict[str, Estimate]]  # world -> judge -> with equal numbers
  verdict: str  # agrees, disagrees or undecided
  reason: str  # why undecided
  reading: str  # what these worlds show, where they are too few to decide

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
) -> list[Claim]:
  """Measures every hypothesis on every task and loss that has runs of its methods.

  A claim "agrees" or "disagrees" with the paper only on at least `WORLDS_NEEDED` worlds
  and when, under every judge there is, the 95 % interval over worlds lies on the same
  side of 0. Anything else is "undecided", with the reason.
  """
  groups: dict[tuple[str, str], None] = {}
  for run in runs:
    if any(run.method in (h.method_a, h.method_b) for h in hypotheses):
      groups[run.task, run.loss] = None
  return [
    _claim(
      hypothesis,
      [run for run in runs if (run.task, run.loss) == (task, loss)],
      resamples,
    )
    for task, loss in groups
    for hypothesis in hypotheses
  ]


def _claim(
  hypothesis: Hypothesis, runs_of_both: Sequence[Run], resamples: int
) -> Claim:
  judges = list(runs_of_both[0].wins)
  num_runs: dict[int, tuple[int, int]] = {}
  per_world: dict[int, dict[str, Estimate]] = {}
  all_runs: dict[int, dict[str, Estimate]] = {}
  for world, runs in by_world(runs_of_both).items():
    runs_a = [run for run in runs if run.method == hypothesis.method_a]
    runs_b = [run for run in runs if run.method == hypothesis.method_b]
    num_runs[world] = len(runs_a), len(runs_b)
    for equal, of_worlds in ((True, per_world), (False, all_runs)):
      if runs_a and runs_b:
        of_worlds[world] = {
          judge: hypothesis.gap(
            runs_a, runs_b, judge, equal_numbers=equal, resamples=resamples
          )
          for judge in judges
        }
      else:
        lacking = hypothesis.method_b if runs_a else hypothesis.method_a
        of_worlds[world] = dict.fromkeys(judges, undefined(f"no {lacking} run"))

  def combined(worlds: Mapping[int, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {j: over_worlds({w: e[j] for w, e in worlds.items()}) for j in judges}

  estimates = combined(per_world)
  verdict, reason = _verdict(estimates, per_world)
  statement = hypothesis.statement
  if hypothesis.gap is peak_gap and runs_of_both[0].task in _SMALL_PEAK_GAP:
    statement += " (by little on this task)"
  return Claim(
    name=hypothesis.name,
    statement=statement,
    task=runs_of_both[0].task,
    loss=runs_of_both[0].loss,
    methods=(hypothesis.method_a, hypothesis.method_b),
    num_runs=num_runs,
    estimates=estimates,
    of_all_runs=combined(all_runs) if any(a != b for a, b in num_runs.values()) else {},
    per_world=per_world,
    verdict=verdict,
    reason=reason,
    reading=_reading(hypothesis, per_world) if verdict == "undecided" else "",
  )


def _verdict(
  estimates: Mapping[str, Estimate], per_world: Mapping[int, Mapping[str, Estimate]]
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
  sides = {judge: estimate.side for judge, estimate in estimates.items()}
  if {1, -1} <= set(sides.values()):
    return "undecided", "judges disagree"
  within = [judge for judge, side in sides.items() if side == 0]
  if within:
    return "undecided", f"interval contains 0 ({', '.join(within)})"
  return ("agrees" if min(sides.values()) > 0 else "disagrees"), ""


def _reading(
  hypothesis: Hypothesis, per_world: Mapping[int, Mapping[str, Estimate]]
) -> str:
  """What one world's intervals over prompts say, or in how many worlds a is ahead."""
  a, b = hypothesis.method_a, hypothesis.method_b
  defined = [
    of_judge
    for of_judge in per_world.values()
    if not any(math.isnan(estimate.value) for estimate in of_judge.values())
  ]
  if not defined:
    return ""
  if len(defined) > 1:
    counts = (
      f"{sum(of_judge[judge].value > 0 for of_judge in defined)} ({judge})"
      for judge in defined[0]
    )
    return f"{a} ahead in {', '.join(counts)} of {len(defined)} worlds"
  sides = {judge: estimate.side for judge, estimate in defined[0].items()}
  if set(sides.values()) == {1}:
    return f"{a} ahead in this world (interval over prompts)"
  if set(sides.values()) == {-1}:
    return f"{b} ahead in this world (interval over prompts)"
  if {1, -1} <= set(sides.values()):
    return "judges disagree in this world (intervals over prompts)"
  words = {1: f"{a} ahead", -1: f"{b} ahead", 0: "not separated"}
  read = (f"{words[side]} by {judge}" for judge, side in sides.items())
  return f"{', '.join(read)}, in this world (intervals over prompts)"


def format_claims(claims: Sequence[Claim]) -> str:
  """The claims as an aligned text table for a terminal, two or more lines each."""
  header = ("task", "loss", "claim", "judge", "difference [95 %]", "over", "runs")
  rows = [header]
  notes: dict[int, list[str]] = {}  # row -> lines below it
  for claim in claims:
    first = (claim.task, claim.loss, claim.name)
    for judge, estimate in claim.estimates.items():
      rows.append((*first, judge, str(estimate), estimate.over, claim.runs_compared))
      first = ("", "", "")
    for judge, estimate in claim.of_all_runs.items():
      rows.append(("", "", "  all runs", judge, str(estimate), estimate.over, ""))
    because = f" ({claim.reason})" if claim.reason else ""
    notes[len(rows)] = [f'paper: "{claim.statement}": {claim.verdict}{because}']
    if claim.reading:
      notes[len(rows)].append(f"here: {claim.reading}")
    notes[len(rows)].append("")
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for number, row in enumerate(rows, start=1):
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    lines.append("  ".join(cells).rstrip())
    lines += [f"  {note}".rstrip() for note in notes.get(number, [])]
  return "\n".join(lines).rstrip() + "\n"
