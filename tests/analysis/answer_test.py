"""The answer: percentage points of who is ahead, judge by judge, and doubts."""

import dataclasses

import pytest

from alignment.analysis.answer import answer, worlds_in_words
from alignment.analysis.claims import claims
from alignment.analysis.intervals import Estimate, undefined
from tests import synthetic


def gap(value, low, high):
  return Estimate(value, low, high, "6 worlds", 6)


@pytest.fixture(name="claim", scope="module")
def _claim(study):
  """Figure 1's two gaps as measured, of which tests replace the numbers."""
  runs = synthetic.chosen(study, "online") + synthetic.chosen(study, "offline")
  of_number = {claim.name: claim for claim in claims(runs, resamples=3)}

  def make(name, **estimates):
    estimates = {judge.replace("_", " "): e for judge, e in estimates.items()}
    return dataclasses.replace(of_number[name], estimates=estimates)

  return make


def test_the_gaps_of_figure_1_are_one_sentence(claim):
  measured = [
    claim("peak win rate", golden_PM=gap(0.05, 0.04, 0.06)),
    claim(
      "win rate at equal KL",
      golden_PM=gap(0.0316, 0.028, 0.036),
      truth=gap(0.0249, 0.02, 0.03),
    ),
  ]
  assert answer(measured, "tldr", "ipo") == (
    "At equal KL online wins 3.2 points more often than offline [2.8, 3.6] (golden PM),"
    " 2.5 [2.0, 3.0] (truth); at the peaks online wins 5.0 points more often than "
    "offline [4.0, 6.0] (golden PM)."
  )


def test_who_is_ahead_is_named_and_what_may_be_chance_is_said(claim):
  measured = [
    claim(
      "win rate at equal KL",
      golden_PM=gap(0.03, -0.01, 0.07),
      truth=gap(-0.02, -0.03, -0.01),
    )
  ]
  assert answer(measured, "tldr", "ipo") == (
    "At equal KL online wins 3.0 points more often than offline [−1.0, 7.0] "
    "(golden PM; may be chance), offline wins 2.0 points more often than online "
    "[1.0, 3.0] (truth)."
  )


def test_if_all_may_be_chance_that_is_said_once(claim):
  measured = [
    claim("win rate at equal KL", golden_PM=gap(-0.03, -0.07, 0.01)),
    claim("peak win rate", golden_PM=gap(0.0, 0.0, 0.0)),
  ]
  assert answer(measured, "tldr", "ipo") == (
    "At equal KL offline wins 3.0 points more often than online [−1.0, 7.0] "
    "(golden PM); at the peaks online wins 0.0 points more often than offline "
    "[0.0, 0.0] (golden PM). Every interval contains 0: all of it may be chance."
  )


def test_what_cannot_be_compared_has_a_reason(claim):
  measured = [claim("win rate at equal KL", golden_PM=undefined("no common range"))]
  assert answer(measured, "tldr", "ipo") == (
    "At equal KL there is no comparison (golden PM: no common range)."
  )


def test_other_losses_and_tasks_have_no_part_in_it(claim):
  measured = [claim("win rate at equal KL", golden_PM=gap(0.03, 0.02, 0.04))]
  assert answer(measured, "tldr", "dpo") == answer(measured, "toy", "ipo") == ""


def test_few_worlds_are_too_few():
  assert worlds_in_words(1).startswith("One world: ")
  assert "a verdict needs 6" in worlds_in_words(5)
  assert "verdict" not in worlds_in_words(6)
  assert "No world" in worlds_in_words(0)


def test_worlds_that_are_left_out_are_not_counted(claim):
  some = dataclasses.replace(
    gap(0.03, 0.02, 0.04), over="5 worlds", reason="world 3: -"
  )
  assert "[2.0, 4.0] (golden PM; over 5 worlds)" in answer(
    [claim("win rate at equal KL", golden_PM=some)], "tldr", "ipo"
  )
