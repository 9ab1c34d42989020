"""Intervals over worlds."""

import dataclasses
import math

import pytest

from alignment.analysis import intervals


def test_worlds_are_combined_by_a_paired_t_interval():
  one = intervals.Estimate(0.1, 0.05, 0.15, "prompts, 1 world", 256)
  three = intervals.over_worlds(
    {w: dataclasses.replace(one, value=v) for w, v in enumerate((0.1, 0.2, 0.3))}
  )
  margin = 4.3027 * 0.1 / math.sqrt(3)
  assert three.over == "3 worlds" and three.n == 3
  assert (three.value, three.low, three.high) == pytest.approx(
    (0.2, 0.2 - margin, 0.2 + margin), abs=1e-5
  )
  with_one_undefined = intervals.over_worlds({0: one, 7: intervals.undefined("why")})
  assert with_one_undefined == dataclasses.replace(one, reason="world 7: why")
