"""Every way of learning from N samples is made, or refused in one line: docs' table."""

from pathlib import Path
import re
from typing import Any

import pytest

from alignment.study import checks
from alignment.types import UserError
from tests import studies

PAGE = Path(__file__).parents[2] / "docs" / "rollouts.md"
JUDGES: dict[str, dict[str, Any]] = {  # kind -> keys of the study
  "pairwise": {},
  **{
    kind: {"golden_pm.kind": kind, "proxy_pm.kind": kind}
    for kind in ("pointwise", "truth")
  },
}
SAMPLES = {"two": 2, "best_worst": 4, "all": 3}
LOSSES = {"pairs": "ipo", "groups": "rloo"}
METHODS = {
  "offline": {"method": "offline", "learning_rate": 3e-3},
  "online": {"method": "online"},
  "replay": {"method": "offline", "dataset": "stream", "replay_window": 0},
  "semi-online": {"refresh_every": 3},
}


def config(judge: str, select: str, losses: str, method: str):
  """A study in miniature whose only run is this combination."""
  c = studies.nano(**JUDGES[judge], **{"data.num_pairs": 400})
  chosen = {"select": select, "samples": SAMPLES[select], "loss": LOSSES[losses]}
  c.policy.update(chosen)
  c.runs = {"it": {key: (value,) for key, value in METHODS[method].items()}}
  return c


def tried(workdir: Path, *combination: str) -> str:
  """'runs', after its policy was trained; else the line that refuses it."""
  study_config = config(*combination)
  try:
    studies.graph(study_config)
  except UserError as error:
    assert "\n" not in str(error)
    return re.sub(r"^\S+: ", "", str(error))
  (study,) = checks.studies(study_config, workdir)
  (run,) = study.policies()
  studies.run(study_config, workdir, [run])
  return "runs"


def table(workdir: Path, judge: str) -> list[str]:
  """The page's table, and the lines that its numbers stand for."""
  reasons: list[str] = []

  def cell(*combination: str) -> str:
    outcome = tried(workdir, *combination)
    if outcome == "runs":
      return outcome
    if outcome not in reasons:
      reasons.append(outcome)
    return f"({reasons.index(outcome) + 1})"

  rows = [f"| `select` | a loss of | {' | '.join(METHODS)} |", "|---" * 6 + "|"]
  for select in SAMPLES:
    for losses in LOSSES:
      cells = [cell(judge, select, losses, method) for method in METHODS]
      rows.append(f"| `{select}` | {losses} | {' | '.join(cells)} |")
  return [*rows, "", *(f"{i}. `{reason}`" for i, reason in enumerate(reasons, 1))]


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize(
  "judge",
  [
    "pairwise",
    *(pytest.param(j, marks=pytest.mark.slow) for j in JUDGES if j != "pairwise"),
  ],
)
def test_every_combination_runs_or_is_refused_as_the_page_says(nano, judge):
  """Those that run are trained, in the nano study: most are there already."""
  lines = "\n".join(table(nano.workdir, judge))
  assert lines in PAGE.read_text(), f"{PAGE} should have\n{lines}"
