"""What a study answers, in one sentence: how much more often online wins."""

from collections.abc import Sequence
import math

from alignment.analysis.claims import WORLDS_NEEDED, Claim
from alignment.analysis.hypotheses import GAP_AT_EQUAL_KL, PEAK_GAP
from alignment.analysis.intervals import Estimate

_COMPARED = ("online", "offline")
_AT = {GAP_AT_EQUAL_KL.name: "at equal KL", PEAK_GAP.name: "at the peaks"}


def answer(claims: Sequence[Claim], task: str, loss: str) -> str:
  """Figure 1's gaps of one task and loss under every judge; "" if not measured."""
  of_number: dict[str, Claim] = {}
  for claim in claims:
    if (claim.figure, claim.task, claim.loss) == ("1", task, loss):
      if claim.groups == _COMPARED:
        of_number.setdefault(claim.name, claim)
  parts = [
    f"{at} {_gaps(of_number[name])}" for name, at in _AT.items() if name in of_number
  ]
  sentence = "; ".join(parts)
  return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _gaps(claim: Claim) -> str:
  gaps = {judge: _gap(e) for judge, e in claim.estimates.items()}
  if len(set(gaps.values())) == 1:  # not measured, for the same reason
    return next(iter(gaps.values()))
  return ", ".join(f"{words} ({judge})" for judge, words in gaps.items())


def _gap(estimate: Estimate) -> str:
  """Percentage points, of whichever wins more often."""
  if math.isnan(estimate.value):
    return f"online and offline are not compared ({estimate.reason})"
  ahead, behind = _COMPARED if estimate.value >= 0 else reversed(_COMPARED)
  points = sorted(
    100 * math.copysign(1, estimate.value) * x for x in (estimate.low, estimate.high)
  )
  unclear = ": may be chance" if points[0] <= 0 else ""
  return (
    f"{ahead} wins {100 * abs(estimate.value):.1f} points more often than {behind} "
    f"[{points[0]:.1f}, {points[1]:.1f}{unclear}]"
  )


def worlds_in_words(worlds: int) -> str:
  """Over how many worlds a study is, and what follows for its intervals."""
  if worlds == 1:
    return (
      "One world: intervals are 95 % over its prompts and say nothing of other worlds; "
      f"a verdict needs {WORLDS_NEEDED}."
    )
  needed = f"; a verdict needs {WORLDS_NEEDED}" if worlds < WORLDS_NEEDED else ""
  return f"{worlds} worlds: intervals are 95 % over them, each trained anew{needed}."
