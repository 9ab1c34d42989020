"""The paper's claims: what is measured of them, and what verdict follows."""

import dataclasses
import math

import numpy as np
import pytest

from alignment.analysis import claims as claims_lib
from alignment.analysis import hypotheses
from alignment.analysis.intervals import FISHER, Estimate, over_worlds, undefined
from tests import synthetic

JUDGE = "golden PM"


def certain_run(name, series, rates, kls, world=0, truth=None, **fields):
  """Each checkpoint wins the same share of every prompt: no evaluation noise."""
  truth_ExP = None if truth is None else synthetic.certain(truth)
  return synthetic.make_run(
    name, series, synthetic.certain(rates), kls, world=world, truth=truth_ExP, **fields
  )


def worlds_of_runs(gaps, truth_gaps=None, num_offline=1):
  truth_gaps = gaps if truth_gaps is None else truth_gaps
  runs = []
  for world, (gap, truth_gap) in enumerate(zip(gaps, truth_gaps, strict=True)):
    a, t = [0.4 + gap, 0.5 + gap], [0.4 + truth_gap, 0.5 + truth_gap]
    runs.append(certain_run("on", "online", a, [1, 10], world, t))
    for i in range(num_offline):
      b = [0.4, 0.5]
      runs.append(certain_run(f"off{i}", "offline", b, [1, 10], world, b))
  return runs


FIGURE_1 = [
  h
  for h in claims_lib.HYPOTHESES
  if h.figure == "1" and h.number in (hypotheses.GAP_AT_EQUAL_KL, hypotheses.PEAK_GAP)
]
AHEAD = (0.1, 0.12, 0.08, 0.11, 0.09, 0.1)


def claims_of_figure_1(runs):
  return claims_lib.claims(runs, FIGURE_1, resamples=10)


@pytest.mark.parametrize(
  ("gaps", "truth_gaps", "verdict", "reason", "reading"),
  [
    (AHEAD, AHEAD, "agrees", "", ""),
    ([-gap for gap in AHEAD], None, "disagrees", "", ""),
    (AHEAD, [-gap for gap in AHEAD], "undecided", "judges disagree", "6 (golden PM)"),
    (AHEAD, (1, -1, 1, -1, 1, -1), "undecided", "interval contains 0.02 (truth)", "3"),
    (AHEAD[:1], None, "undecided", "1 world: 6 are needed", "holds in this world"),
    ((-0.1,), None, "undecided", "1 world: 6 are needed", "does not hold in this"),
    ((0.1,), (-0.1,), "undecided", "1 world: 6 are needed", "does not hold (truth)"),
    (AHEAD[:5], None, "undecided", "5 worlds: 6 are needed", "5 (truth) of 5 worlds"),
  ],
)
def test_verdicts(gaps, truth_gaps, verdict, reason, reading):
  measured = claims_of_figure_1(worlds_of_runs(gaps, truth_gaps))
  assert [claim.name for claim in measured] == ["win rate at equal KL", "peak win rate"]
  for claim in measured:
    assert (claim.verdict, claim.reason) == (verdict, reason)
    assert reading in claim.reading and bool(reading) == bool(claim.reading)
    assert claim.estimates[JUDGE].value == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize(
  ("value", "half_width", "holds", "side"),
  [
    (0.0, 0.01, (-0.02, 0.02), 1),  # within the margin of equivalence
    (0.01, 0.02, (-0.02, 0.02), 0),  # across its edge
    (0.0, 0.03, (-0.02, 0.02), 0),  # wider than it
    (0.04, 0.01, (-0.02, 0.02), -1),
    (-0.04, 0.01, (-0.02, 0.02), -1),
    (0.2, 0.05, (-math.inf, 0.3), 1),
    (0.4, 0.05, (-math.inf, 0.3), -1),
    (0.0, 0.0, (0, math.inf), -1),  # exactly nothing is not above 0
    (0.1, math.nan, (0, math.inf), 1),  # one world, without an interval of its own
  ],
)
def test_a_statement_holds_in_a_region(value, half_width, holds, side):
  hypothesis = dataclasses.replace(FIGURE_1[0], holds=holds)
  estimate = Estimate(value, value - half_width, value + half_width, "6 worlds", 6)
  assert claims_lib._side(hypothesis, estimate) == side


def test_a_world_counts_where_every_judge_has_its_number():
  one = Estimate(0.1, 0.05, 0.15, "prompts, 1 world", 64)
  per_world = {
    w: {JUDGE: one, "truth": undefined("flat") if w == 3 else one} for w in range(6)
  }
  estimates = {j: over_worlds({w: of[j] for w, of in per_world.items()})
               for j in per_world[0]}  # fmt: skip
  verdict = claims_lib._verdict(FIGURE_1[0], estimates, per_world)
  assert verdict == ("undecided", "5 worlds: 6 are needed; world 3: flat")


def test_a_refused_world_counts_for_no_claim():
  runs = worlds_of_runs((-5.0, *AHEAD))
  measured = claims_lib.claims(
    runs, FIGURE_1, resamples=10, refused={0: "a poor judge"}
  )
  for claim in measured:
    assert claim.estimates[JUDGE].value == pytest.approx(np.mean(AHEAD))
    assert claim.estimates[JUDGE].reason == "world 0: a poor judge"
    assert claim.verdict == "agrees" and math.isnan(claim.per_world[0][JUDGE].value)


def test_few_worlds_are_read_by_the_statements_region():
  equal = dataclasses.replace(FIGURE_1[0], holds=(-0.02, 0.02))
  (claim,) = claims_lib.claims(worlds_of_runs((0.0, 0.1, 0.2)), [equal], resamples=10)
  assert claim.reading == "holds in 1 (golden PM), 1 (truth) of 3 worlds"


@pytest.mark.parametrize(("num_offline", "verdict"), [(1, "agrees"), (3, "undecided")])
def test_a_difference_of_gaps_of_peaks_decides_with_equal_numbers_of_runs(
  num_offline, verdict
):
  """One chosen online run against a sweep is no comparison, of two gaps either."""
  runs = []
  for world in range(6):
    for loss, online, offline in (("ipo", 0.7, 0.5), ("best_of_2", 0.55, 0.5)):
      for series, rate, count in (
        ("online", online, 1),
        ("offline", offline, num_offline),
      ):
        rates = [0.4, rate + 0.001 * world]
        runs += [
          certain_run(f"{series}_{loss}_{i}", series, rates, [1, 10], world, loss=loss)
          for i in range(count)
        ]
  number = hypotheses.DIFFERENCE_OF_PEAK_GAPS
  statements = [h for h in claims_lib.HYPOTHESES if h.number is number]
  (claim,) = claims_lib.claims(runs, statements, resamples=10)
  assert claim.estimates[JUDGE].value == pytest.approx(0.15)
  assert claim.verdict == verdict
  assert bool(claim.of_all_runs) == (num_offline > 1)


def test_few_worlds_say_that_numbers_of_runs_differ():
  """They decide nothing in six worlds, and show no more in one."""
  for gaps, reading in (
    ((0.1,), "holds (numbers of runs differ) in this world"),
    (
      (0.1, 0.1),
      "holds in 2 (golden PM), 2 (truth) of 2 worlds (numbers of runs differ)",
    ),
  ):
    for claim in claims_of_figure_1(worlds_of_runs(gaps, num_offline=3)):
      assert claim.reading == reading


@pytest.mark.parametrize(
  ("number", "reading"),
  [(0.5, "holds (no interval)"), (0.56, "does not hold (no interval)")],
)
def test_one_worlds_number_without_an_interval_is_read_as_such(number, reading):
  """An accuracy on a few pairs may well be chance: its noise is not known here."""
  statement = next(h for h in claims_lib.HYPOTHESES if h.holds == hypotheses.CHANCE)
  (run,) = worlds_of_runs((0.1,), num_offline=0)
  records = [r | {"classification_accuracy": number} for r in run.records]
  runs = [dataclasses.replace(run, default=True, records=records)]
  (claim,) = claims_lib.claims(runs, [statement], resamples=10)
  assert claim.reading == f"{reading} in this world"


def test_claims_count_runs_and_leave_out_what_has_none():
  runs = worlds_of_runs((0.1,), num_offline=3)
  claim = claims_of_figure_1(runs)[0]
  assert claim.runs_compared == "1 vs 3" and set(claim.of_all_runs) == {JUDGE, "truth"}
  assert claims_of_figure_1(worlds_of_runs((0.1,)))[0].of_all_runs == {}
  assert claims_of_figure_1([run for run in runs if run.series == "online"]) == []
  assert claims_of_figure_1([]) == []
  lacking = [r for r in worlds_of_runs(AHEAD) if (r.world, r.series) != (3, "offline")]
  claim = claims_of_figure_1(lacking)[0]
  assert claim.reason == "5 worlds: 6 are needed; world 3: no offline run"


@pytest.mark.parametrize(
  ("of_offline", "verdict", "reason"),
  [
    ((0.4,), "agrees", ""),
    ((0.6,), "disagrees", ""),
    ((0.49,), "disagrees", ""),  # ahead, but not by more than what is equal
    ((0.4, 0.4, 0.4), "undecided", "numbers of runs differ, of which the best count"),
  ],
)
def test_sides_that_choose_among_different_numbers_of_runs_decide_nothing(
  of_offline, verdict, reason
):
  """Against one online run at 0.5: a sweep would count by the mean of its settings."""
  runs = []
  for world in range(6):
    named = [("on", "online", 0.5), *(("off", "offline", rate) for rate in of_offline)]
    runs += [
      certain_run(f"{name}{i}", series, [rate, rate], [1, 10], world, [rate, rate])
      for i, (name, series, rate) in enumerate(named)
    ]
  for claim in claims_of_figure_1(runs):
    assert claim.verdict == verdict and claim.reason.startswith(reason)
    assert claim.runs_compared == f"1 vs {len(of_offline)}"
    assert bool(reason) == bool(claim.reason)


def test_tasks_and_losses_make_separate_claims():
  runs = worlds_of_runs((0.1,))
  other = [dataclasses.replace(run, task="chat_arena", loss="dpo") for run in runs]
  measured = claims_of_figure_1(runs + other)
  assert [(c.task, c.loss) for c in measured[:2]] == [
    ("tldr", "ipo"),
    ("chat_arena", "dpo"),
  ]
  small = [c for c in measured if "small" in c.statement]
  assert [(c.task, c.region) for c in small] == [("chat_arena", "-0.05 to 0.05")]


def test_ablations_are_compared_at_the_settings_that_both_have():
  """A sweep of online runs, whose best is far ahead, and shuffled at one setting."""
  online = [
    certain_run(f"on{beta}", "online", [rate, rate], [1, 10], beta=beta)
    for beta, rate in ((0.05, 0.9), (0.1, 0.5), (0.3, 0.1))
  ]
  shuffled = certain_run("shuffled", "shuffled", [0.4, 0.4], [1, 10], beta=0.1)
  hypotheses = [h for h in claims_lib.HYPOTHESES if h.figure == "4"]
  measured = claims_lib.claims([*online, shuffled], hypotheses, resamples=10)
  assert len(measured) == 2
  for claim in measured:
    assert claim.runs_compared == "1 vs 1"
    assert claim.estimates[JUDGE].value == pytest.approx(0.5 - 0.4)
    assert claim.of_all_runs[JUDGE].value == pytest.approx(0.9 - 0.4)


def test_runs_are_counted_as_they_are_compared():
  """Sizes at the settings that all have; the steps of a classifier are one run."""
  runs = [
    certain_run(
      f"{series}{size}{beta}", series, [rate] * 2, [1, 10], size=size, beta=beta
    )
    for series, rate in (("online", 0.6), ("shuffled", 0.5), ("offline", 0.4))
    for size, betas in (("nano", (0.1, 0.3)), ("micro", (0.1,)), ("milli", (0.1,)))
    for beta in betas
    if (series, size) != ("shuffled", "milli")
  ]
  counts = {
    claim.name[:6] + str(len(claim.groups)): claim.runs_compared
    for claim in claims_lib.claims(
      runs, resamples=2, classification=synthetic.classification()
    )
    if claim.figure in ("6", "11, 14")
  }
  assert counts == {
    "accura2": "1 vs 1",
    "change1": "1",
    "gap of2": "2 vs 2",
    "gap of3": "2 vs 2 vs 2",
  }


def test_a_statement_counts_once_and_all_its_losses_must_say_it():
  decided = {
    "both": ["agrees", "agrees"],
    "neither": ["disagrees"],
    "one way": ["agrees", "undecided"],
    "the other": ["undecided", "disagrees"],
    "against each other": ["agrees", "disagrees", "undecided"],
  }
  pairs = [(name, verdict) for name, of in decided.items() for verdict in of]
  counts = claims_lib.count_verdicts(pairs)
  assert counts == {"agrees": 1, "disagrees": 1, "mixed": 1, "undecided": 2}


def test_a_statement_about_several_losses_is_counted_once():
  runs = [
    dataclasses.replace(run, loss=loss)
    for loss in ("ipo", "dpo")
    for run in worlds_of_runs(AHEAD)
  ]
  counts = claims_lib.tally(claims_of_figure_1(runs))
  assert counts == {"agrees": 2, "disagrees": 0, "mixed": 0, "undecided": 0}
  behind = [
    dataclasses.replace(run, loss="dpo")
    for run in worlds_of_runs([-gap for gap in AHEAD])
  ]
  counts = claims_lib.tally(claims_of_figure_1(runs[:12] + behind))
  assert counts == {"agrees": 0, "disagrees": 0, "mixed": 2, "undecided": 0}


def test_intervals_of_correlations_stay_below_one():
  per_world = {
    world: Estimate(value, value, value, "prompts, 1 world", 9)
    for world, value in enumerate((0.2, 0.999, 0.99, 0.5))
  }
  estimate = over_worlds(per_world, FISHER)
  assert -1 < estimate.low < estimate.value < estimate.high < 1
  assert over_worlds(per_world).high > 1


def test_claims_as_text():
  measured = claims_of_figure_1(worlds_of_runs((0.1,), num_offline=2))
  text = claims_lib.format_claims(measured)
  assert "+0.100 [+0.100, +0.100]  prompts, 1 world  1 vs 2" in text
  assert "undecided (1 world: 6 are needed)" in text
  assert "number: online minus offline; holds if > 0.02" in text
  assert text.count("all runs") == 4
  assert max(map(len, text.splitlines())) < 120
  assert text.isascii()


def test_claims_as_a_table():
  measured = claims_of_figure_1(worlds_of_runs((0.1, 0.2), num_offline=2))
  rows = [
    row
    for row in claims_lib.table(measured)
    if row["statement"] == measured[0].statement and row["judge"] == JUDGE
  ]
  assert [row["world"] for row in rows] == ["all", 0, 1]
  assert [row["value"] for row in rows] == pytest.approx([0.15, 0.1, 0.2])
  assert rows[0]["low"] < rows[0]["value"] < rows[0]["high"]
  assert [row.get("verdict") for row in rows] == ["undecided", None, None]


# --- A whole study --------------------------------------------------------------------


@pytest.fixture(name="study_claims", scope="module")
def _study_claims():
  tasks = ("tldr", "chat_arena")
  return claims_lib.claims(
    synthetic.study(6, tasks, prompts=64, truth=False),
    resamples=10,
    classification=synthetic.classification(6, tasks),
  )


def test_every_statement_of_the_paper_is_measured(study_claims):
  figures = {claim.figure for claim in study_claims}
  assert figures == {
    *("1", "4", "5", "6", "7", "8 top", "8 bottom", "9", "10", "11, 14", "12", "13"),
    *("App. E.1", "App. F", "offline for longer", "staleness"),
    *("GRPO", "contrast", "over-optimisation"),
  }
  measured = {(claim.figure, claim.statement) for claim in study_claims}
  on_other_tasks = {
    h.statement
    for h in claims_lib.HYPOTHESES
    if {"harml", "toy_short"} & set(h.only_tasks)
  }
  assert measured == {
    (h.figure, h.statement)
    for h in claims_lib.HYPOTHESES
    if h.statement not in on_other_tasks
  }
  for claim in study_claims:
    assert claim.verdict in ("agrees", "disagrees", "undecided")
    for estimate in claim.estimates.values():
      assert estimate.n == 6 and estimate.low <= estimate.value <= estimate.high
  for name in ("win rate at equal KL", "peak above SFT"):  # SFT is of no loss
    of_figure_1 = {c.loss for c in study_claims if (c.figure, c.name) == ("1", name)}
    assert of_figure_1 == {"ipo", "dpo", "slic"}
  assert {c.loss for c in study_claims if c.figure == "9"} == {"best_of_2"}
  assert {c.loss for c in study_claims if c.figure == "6"} == {""}
  assert {c.loss for c in study_claims if c.figure == "12"} == {"ipo"}


def test_what_holds_in_the_made_up_study_is_found(study_claims):
  verdicts = {
    (claim.figure, claim.statement): claim.verdict
    for claim in study_claims
    if (claim.task == "tldr" or "on this task" in claim.statement)
    and claim.loss in ("ipo", "", "best_of_2")
  }
  for figure, words, verdict in (
    ("1", "at equal KL", "agrees"),
    ("1", "online's win rate rises", "agrees"),
    ("1", "online's win rate falls again as KL grows", "agrees"),
    ("4", "coverage is not", "agrees"),
    ("5", "barely rises", "agrees"),
    ("6", "better than the online", "agrees"),
    ("6", "decays", "agrees"),
    ("7", "accuracy on D_golden: online", "disagrees"),  # it rises with the win rate
    ("8 top", "60-70 %", "agrees"),
    ("8 bottom", "falls: offline", "agrees"),
    ("8 bottom", "more for offline than for online", "agrees"),
    ("8 bottom", "more for offline than for shuffled", "disagrees"),
    ("9", "gap persists", "agrees"),
    ("9", "slightly ahead", "disagrees"),
    ("10", "offline peaks higher", "agrees"),
    ("10", "gap stays", "undecided"),  # 0.02, which is equal, is in the interval
    ("12", "teach more", "agrees"),
    ("13", "a lot of shuffling", "undecided"),
    ("App. E.1", "chance: offline", "agrees"),
    ("App. F", "0.1 %", "agrees"),
    ("offline for longer", "peak", "agrees"),
    ("GRPO", "as good as online DPO", "disagrees"),  # better
    ("contrast", "offline, a loss", "undecided"),  # the same
    ("contrast", "gains more", "undecided"),
    ("over-optimisation", "smallest beta", "agrees"),
    ("over-optimisation", "chi-PO", "undecided"),
    ("staleness", "(10 steps) is as good", "disagrees"),
    ("staleness", "teach less", "agrees"),
  ):
    seen = [v for (f, text), v in verdicts.items() if f == figure and words in text]
    assert seen == [verdict], (figure, words, seen)
  # Trends with size stay undecided: only what is compared, and where it holds.
  trends = {(c.groups, c.region) for c in study_claims if c.figure == "11, 14"}
  online, offline, shuffled = (
    f"{series} of all sizes" for series in ("online", "offline", "shuffled")
  )
  assert trends == {
    ((online, shuffled), "< -0.005"),
    ((online, offline, shuffled), "> 0.005"),
  }
