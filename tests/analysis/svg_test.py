"""Figures for a page: their points have names and lie where they are drawn."""

import re

import pytest

from alignment.analysis.figures import style, win_rate
from alignment.analysis.figures.svg import DARK, to_svg
from tests import synthetic

CIRCLE = re.compile(
  r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5"><title>([^<]*)</title></circle>'
)


@pytest.fixture(name="drawn", scope="module")
def _drawn(study):
  """Figure 1 of two runs, and its rows."""
  runs = synthetic.chosen(study, "online", default=True)
  return win_rate.figure_01(runs + synthetic.chosen(study, "offline", default=True))


def test_each_point_is_named_and_lies_under_its_circle(drawn):
  figure, rows = drawn
  text = to_svg(figure, "a")
  points = [row for row in rows if row["kind"] == "point"]
  circles = CIRCLE.findall(text)
  assert len(circles) == len(points)
  assert {name for *_, name in circles} == {
    f"{row['run']}, step {row['step']}: KL {row['kl']:.3g}, "
    f"win rate {row['win_rate']:.3g}"
    for row in points
  }
  marks = re.findall(r'<use xlink:href="\S+" x="([\d.]+)" y="([\d.]+)"', text)
  assert {(x, y) for x, y, _ in circles} <= set(marks)


def test_the_same_figure_gives_the_same_text_and_another_salt_other_ids(drawn):
  one, again, other = (
    to_svg(drawn[0], "a"),
    to_svg(drawn[0], "a"),
    to_svg(drawn[0], "b"),
  )
  assert one == again
  ids, others = (set(re.findall(r'id="([^"]*)"', text)) for text in (one, other))
  assert ids and not ids & others
  used = {*re.findall(r'href="#([^"]*)"', one), *re.findall(r"url\(#([^)]*)\)", one)}
  assert used <= ids


def test_all_colours_can_be_replaced_and_nothing_refers_elsewhere(drawn):
  text = to_svg(drawn[0], "a")
  assert "http" not in text and "<style" not in text and "<!" not in text
  assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", text)
  assert f"var(--c-{style.COLOURS['online'].lower()[1:]}, #0072b2)" in text


def test_dark_replaces_colours_that_figures_have():
  have = {colour.lower() for colour in style.COLOURS.values()} | {
    value for value in style.STYLE.values() if str(value).startswith("#")
  }
  assert set(DARK) <= have | {"#ffffff", "#333333", "#666666"}


def test_text_of_runs_cannot_leave_the_drawing():
  hostile = '</title><script>&"'
  figure, (axes,) = style.panels(1)
  axes.set_title(hostile)
  style.name_points(axes, [0.0, float("nan")], [1.0, 1.0], [hostile, "not drawn"])
  text = to_svg(figure, "a")
  assert "<script" not in text and "not drawn" not in text
  assert text.count("&lt;/title&gt;&lt;script&gt;&amp;") == 2


def test_an_image_is_the_same_with_and_without_names():
  images = []
  for named in (False, True):
    figure, (axes,) = style.panels(1)
    axes.scatter([0, 1], [0, 1], label="points")
    axes.legend()
    if named:
      style.name_points(axes, [0, 1], [0, 1], ["a", "b"])
    images.append(style.png(figure))
  assert images[0] == images[1]
