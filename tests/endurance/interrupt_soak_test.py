"""Ctrl-C ends a study at once, with one line and status 130."""

import random

import pytest

from tests.endurance import interrupts, soak


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """The nano study, but endless; each try continues what the one before has left."""
  scratch = tmp_path_factory.mktemp("interrupts")
  endless = "--config.golden_pm.steps=1000000"
  return soak.Study(soak.ROOT / "tests" / "studies.py", scratch, (endless,))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_study_ends_with_one_line(study, workers):
  """5 of `make soak`'s 100: at the start, and at random moments."""
  moments = [0.0, random.uniform(0, 2), random.uniform(2, 7)][workers - 1 :]
  print(f"interrupted after {moments} s")  # shown if this fails
  for seconds in moments:
    assert interrupts.interrupt(study, study.scratch / "work", workers, seconds)
