"""The debate motions: enough of them, different ones, both sides of each."""

from collections import defaultdict
from pathlib import Path
import re

MOTIONS = Path(__file__).parents[1] / "configs" / "motions.txt"
FORM = re.compile(r"Debate: (.+)\? Write an argument for this side: (.+)\.")
# The debates of the arguments that the judge of configs/smollm2_arguments.py learns
# from, by a word or two that tell of each.
TAKEN = (
  "plastic water bottle", "christian", "atheis", "evolution", "firefox", "explorer",
  "gay", "spank", "spouse", "murder", "india", "fatherless", "lousy", "porn",
  "school uniform", "common good", "pro choice", "pro life", "abortion",
  "physical education", "tv is better", "farquhar", "singapore",
)  # fmt: skip


def test_there_are_enough_motions_with_two_sides_each():
  lines = MOTIONS.read_text(encoding="utf-8").splitlines()
  sides = defaultdict(list)
  for line in lines:
    match = FORM.fullmatch(line)
    assert match, line
    sides[match[1]].append(match[2])
  assert len(lines) == len({*lines}) >= 256 and len(sides) >= 128
  assert all(len({*both}) == len(both) == 2 for both in sides.values())


def test_motions_are_in_the_style_of_the_arguments_and_none_is_theirs():
  text = MOTIONS.read_text(encoding="utf-8")
  for line in text.splitlines():
    debate, side = FORM.fullmatch(line).groups()
    assert re.fullmatch("[a-z ]+", debate) and re.fullmatch("[a-z ]+", side)
  assert not [word for word in TAKEN if word in text]
