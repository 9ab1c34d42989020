"""What a study answers, in one sentence: how much more often online wins."""

from collections.abc import Mapping, Sequence
import math

from alignment.analysis.claims import WORLDS_NEEDED, Claim
from alignment.analysis.hypotheses import GAP_AT_EQUAL_KL, PEAK_GAP
from alignment.analysis.intervals import Estimate

_COMPARED = ("online", "offline")
_WHERE = {GAP_AT_EQUAL_KL.name: "at equal KL", PEAK_GAP.name: "at the peaks"}


def answer(claims: Sequence[Claim], task: str, loss: str) -> str:
  """Figure 1's gaps of one task and loss under every judge; "" if not measured."""
  of_number: dict[str, Claim] = {}  # of two statements on one number the first
  for claim in claims:
    about = (claim.figure, claim.task, claim.loss, claim.groups)
    if about == ("1", task, loss, _COMPARED):
      of_number.setdefault(claim.name, claim)
  gaps = {
    where: of_number[name].estimates
    for name, where in _WHERE.items()
    if name in of_number
  }
  if not gaps:
    return ""
  estimates = [e for of_judge in gaps.values() for e in of_judge.values()]
  unclear = [e.low <= 0 <= e.high for e in estimates if not math.isnan(e.value)]
  remark = "; may be chance" if not all(unclear) else ""
  sentence = "; ".join(
    f"{where} {_gaps(of_judge, remark)}" for where, of_judge in gaps.items()
  )
  sentence = f"{sentence[0].upper()}{sentence[1:]}."
  if unclear and all(unclear):
    sentence += " Every interval contains 0: all of it may be chance."
  return sentence


def _gaps(estimates: Mapping[str, Estimate], remark: str) -> str:
  """Percentage points of whoever wins more often; a remark if the interval has 0."""
  words, last = [], ""
  for judge, estimate in estimates.items():
    if math.isnan(estimate.value):
      words.append(f"there is no comparison ({judge}: {estimate.reason})")
      continue
    ahead, behind = _COMPARED if estimate.value >= 0 else reversed(_COMPARED)
    sign = 100 if estimate.value >= 0 else -100
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    points = f"{sign * estimate.value:.1f}"
    if ahead != last:  # or it goes without saying
      points = f"{ahead} wins {points} points more often than {behind}"
    interval = f"[{low:.1f}, {high:.1f}]".replace("-", "\N{MINUS SIGN}")
    over = f"; over {estimate.over}" if estimate.reason else ""  # some are left out
    words.append(f"{points} {interval} ({judge}{over}{remark if low <= 0 else ''})")
    last = ahead
  return ", ".join(words)


def worlds_in_words(worlds: int) -> str:
  """How many worlds count, and what follows for a study's intervals."""
  if not worlds:
    return "No world counts for a claim."
  if worlds == 1:
    return (
      "One world: the 95 % intervals are over its prompts and say nothing of other "
      f"worlds; a verdict needs {WORLDS_NEEDED}."
    )
  needed = f"; a verdict needs {WORLDS_NEEDED}" if worlds < WORLDS_NEEDED else ""
  return f"{worlds} worlds: the 95 % intervals are over them{needed}."
