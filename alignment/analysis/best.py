"""The best checkpoint of every series as a text table: what a run ends with."""

from collections.abc import Sequence
import math

import numpy as np

from alignment.analysis.length_control import of_checkpoint
from alignment.analysis.runs import Run

HEADER = (
  "best of", "run", "step", "KL", "tokens", "golden PM", "truth", "at equal length"
)  # fmt: skip


def best_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
  """One row per series, over all its runs and worlds: the most wins by the golden PM.

  Its columns are `HEADER`'s: tokens are the mean length of responses, and win rates
  have 95 % intervals over prompts. The winner of many is flattered: the claims are what
  says whether series differ. The last column is the golden PM's word at equal length
  (length_control.py), where lengths are recorded.
  """
  series = dict.fromkeys(run.series for run in runs if run.series != "golden_policy")
  rows = [_row([run for run in runs if run.series == name]) for name in series]
  return sorted(rows, key=lambda row: row[0] == "sft")  # the start, last


def best_checkpoints(runs: Sequence[Run]) -> str:
  """The same as an aligned text table; "" without runs."""
  rows = best_rows(runs)
  if not rows:
    return ""
  table = [HEADER, *rows]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
    for row in table
  ]
  return "\n".join(lines) + "\n"


def _row(runs: Sequence[Run]) -> tuple[str, ...]:
  run, at = max(
    ((run, at) for run in runs for at in range(len(run.steps_E))),
    key=lambda one: one[0].win_rates_E("golden PM")[one[1]],  # the first of equals
  )
  return (
    run.series.replace("_", "-"),
    run.name,
    str(run.steps_E[at]),
    f"{run.kl_E[at]:.2f}",
    f"{run.measured_E('response_length')[at]:.1f}",
    _with_interval(run.wins["golden PM"][at]),
    _with_interval(run.wins["truth"][at]) if "truth" in run.wins else "unknown",
    _at_equal_length(run, at),
  )


def _at_equal_length(run: Run, at: int) -> str:
  e = of_checkpoint(run, at, "golden PM")
  return "" if math.isnan(e.value) else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def _with_interval(wins_P: np.ndarray) -> str:
  half = 1.96 * wins_P.std(ddof=1) / math.sqrt(len(wins_P))
  return f"{wins_P.mean():.3f} \N{PLUS-MINUS SIGN} {half:.3f}"
