"""Nothing is waited for in silence: lines, rates, time left, and a file of them."""

import math
import time

import numpy as np
import pytest

from alignment.core import rows
from alignment.runtime import activity, sharding
from alignment.runtime.activity import Meter


@pytest.fixture
def clock(monkeypatch):
  """Time that passes when it is told to."""
  clock = type("Clock", (), {"now": 100.0})()
  monkeypatch.setattr(activity.time, "monotonic", lambda: clock.now)
  return clock


def test_rates_count_from_the_first_report_which_holds_compilation(clock):
  meter = Meter("judging", 100, "pairs")
  clock.now += 30
  assert meter.line() == "judging, compiling or loading, 30s so far"
  assert meter.line(innermost=False) == "judging 0/100 pairs"
  meter.reach(20)
  assert meter.line() == "judging 20/100 pairs" and math.isnan(meter.left())
  clock.now += 10
  meter.reach(40)
  assert meter.line() == "judging 40/100 pairs  2.0 pairs/s, 30s left"


def test_what_is_slow_or_endless(clock):
  meter = Meter("reading", 0, "pairs", done=7)
  meter.reach(8)
  clock.now += 5
  meter.reach(9)
  assert meter.line() == "reading 9 pairs  5s each"


def test_ten_seconds_of_silence_are_broken(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(activity, "SILENCE", 0.3)
  said = tmp_path / "said.json"
  with activity.telling("golden_data", said):
    with Meter("judging", 10, "pairs") as meter:
      meter.reach(4)
      time.sleep(1.2)
      assert activity.read(said)["line"] == "judging 4/10 pairs"
    activity.progress("golden_data: something else")
  out = capsys.readouterr().out
  assert "golden_data: judging 4/10 pairs\n" in out
  assert not said.exists() and activity.read(said) is None


def test_a_stage_that_speaks_is_not_interrupted(tmp_path, capsys):
  with activity.telling("sft", tmp_path / "said.json"):
    time.sleep(0.7)
  assert capsys.readouterr().out == ""


def test_meters_are_told_from_the_outside_in_and_forgotten():
  with Meter("evaluating", 3, "checkpoints"), Meter("sampling", 8, "rows") as inner:
    inner.reach(4)
    assert activity._line() == "evaluating 0/3 checkpoints; sampling 4/8 rows"
  with pytest.raises(ValueError), Meter("sampling", 8, "rows"):
    raise ValueError
  assert activity._line() == ""


def test_rows_report_what_they_do():
  lines = []

  def double(x):
    lines.append(activity._line())
    return 2 * x

  mesh = sharding.make_mesh()
  rows.map_rows(double, lambda i: (i,), np.arange(5), 2, mesh, "judging")
  assert lines[0].startswith("judging, compiling")
  assert lines[1:] == ["judging 2/5 rows", lines[2]]
  assert lines[2].startswith("judging 4/5 rows")


@pytest.mark.parametrize("content", ["", "3", "{}", '{"line": "x"'])
def test_a_file_that_is_not_whole_says_nothing(tmp_path, content):
  (tmp_path / "said.json").write_text(content)
  assert activity.read(tmp_path / "said.json") is None
