"""The report in a real browser, where one is installed: Chromium and chromedriver."""

import pytest

from alignment.analysis import figures
from alignment.analysis.claims import claims
from alignment.analysis.figures import win_rate
from alignment.analysis.report import write_report
from tests import synthetic
from tests.analysis import browser
from tests.analysis.browser import DESKTOP, PHONE
from tests.analysis.report_test import STUDY

TIP = """
const tip = document.getElementById("tip"), at = tip.getBoundingClientRect();
return [tip.hidden ? null : tip.textContent, at.left >= 0 && at.right <= innerWidth];
"""


@pytest.fixture(name="chromium", scope="module")
def _chromium(tmp_path_factory):
  if browser.programs() is None:
    pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
  with browser.opened(tmp_path_factory.mktemp("profile")) as session:
    yield session


@pytest.fixture(name="report", scope="module")
def _report(study, tmp_path_factory):
  """Two figures, long words, hostile strings; how many points they have."""
  runs = synthetic.chosen(study, "online") + synthetic.chosen(study, "offline")
  drawings, num_points = {}, 0
  for name, draw in (("figure_01", win_rate.figure_01),):
    drawing, rows = draw(runs)
    drawings[name] = figures.to_svg(drawing, name)
    num_points += sum(row["kind"] == "point" for row in rows)
  path = tmp_path_factory.mktemp("report") / "report.html"
  write_report(
    path,
    STUDY,
    loss="ipo",
    curves={"sft" * 40: [{"step": i, "loss": 1 / (i + 1)} for i in range(5)]},
    drawings=drawings,
    claims=claims(runs, resamples=3),
  )
  return path, num_points


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_and_the_console_is_silent(chromium, report, width, dark):
  chromium.complaints()  # of other pages
  chromium.open(report[0], width, dark=dark)
  chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
  assert chromium.run("return document.documentElement.scrollWidth") <= width
  assert chromium.complaints() == []
  background = chromium.run("return getComputedStyle(document.body).backgroundColor")
  assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_every_point_has_a_name_and_nothing_is_loaded(chromium, report):
  path, num_points = report
  chromium.open(path, DESKTOP)
  named = "return document.querySelectorAll('.points circle[aria-label]').length"
  assert chromium.run(named) == num_points > 20
  loaded = "return performance.getEntriesByType('resource').map(e => e.name)"
  assert chromium.run(loaded) == []


def test_a_mouse_shows_the_name_of_a_point_and_leaves_it(chromium, report):
  chromium.open(report[0], DESKTOP)
  assert chromium.run(TIP)[0] is None
  x, y, name = chromium.run(browser.POINT)
  chromium.move_to(x + 1, y + 1)
  assert chromium.run(TIP) == [name, True]
  assert ", step " in name and ": KL " in name and ", win rate " in name
  chromium.move_to(2, 2)
  assert chromium.run(TIP)[0] is None


def test_a_finger_shows_the_name_of_a_point(chromium, report):
  chromium.open(report[0], PHONE)
  x, y, name = chromium.run(browser.POINT)
  chromium.touch(x + 3, y - 3)
  assert chromium.run(TIP) == [name, True]


def test_what_injects_a_script_is_refused(chromium, report):
  """The policy: scripts of the page's own text alone."""
  chromium.open(report[0], DESKTOP)
  chromium.complaints()
  chromium.run("""
    const script = document.createElement("script");
    script.textContent = "document.title = 'injected'";
    document.body.append(script);
  """)
  assert chromium.run("return document.title") != "injected"
  assert any("Content Security Policy" in line for line in chromium.complaints())
