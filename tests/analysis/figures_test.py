"""All figures: drawn of one study, the same bytes each time, missing runs named."""

import pytest

from alignment.analysis import figures
from alignment.analysis.figures import style
from alignment.types import UserError
from tests import synthetic


def test_the_same_runs_give_the_same_bytes_and_nothing_is_left_over(tmp_path, study):
  runs = synthetic.chosen(study, "online") + synthetic.chosen(study, "offline")
  for folder in ("a", "b"):
    figures.draw("figure_01", runs, tmp_path / folder)
  for name in ("figure_01.csv", "figure_01.png"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
  assert len(list((tmp_path / "a").iterdir())) == 2


def test_what_cannot_be_drawn_is_named(tmp_path, study):
  with pytest.raises(UserError, match="no figure 'figure_99'; there are figure_01"):
    figures.draw("figure_99", study, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_with_labelled_axes(name, study, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or b"png")
  png, table, svg = figures.draw(name, study, tmp_path, synthetic.classification())
  assert (png.name, table.name) == (f"{name}.png", f"{name}.csv")
  assert len(table.read_text().splitlines()) > 6
  assert svg.startswith("<svg ") and (name == "appendix_f") == ("<title>" not in svg)
  for axes in drawn[0].axes:
    assert axes.get_xlabel() and axes.get_ylabel()
  titles = [axes.get_title("left") for axes in drawn[0].axes]
  assert titles[0].startswith("tldr")
  if name not in ("figure_06", "figure_08", "appendix_e1", "appendix_f", "laws"):
    assert sum("true utility" in t for t in titles) == len(titles) / 2
  assert style.png(drawn[0]).startswith(b"\x89PNG")


def test_a_legend_has_as_many_columns_as_fit():
  columns = []
  for label in ("a", "shuffled, t5_1_1_xl (12 runs)", "a label of its own " * 9):
    figure, axes_list = style.panels(2)
    for i in range(7):
      axes_list[i % 2].plot([0, 1], [0, 1], label=f"{label} {i}")
    style.shared_legend(figure, axes_list)
    style.png(figure)
    (legend,) = figure.legends
    columns.append(legend._ncols)
    if columns[-1] > 1:
      assert legend.get_window_extent().x0 >= 0
      assert legend.get_window_extent().x1 <= figure.bbox.width
  assert columns == [4, 3, 1]


@pytest.mark.parametrize(
  ("name", "without", "message"),
  [
    ("figure_01", ("online", "offline"), "no evaluated run of online and offline"),
    ("figure_04", ("shuffled",), "figure_04: no evaluated run of shuffled; add them"),
    ("figure_05", ("final_vs_final",), "no evaluated run of final_vs_final"),
    (
      "figure_07",
      ("shuffled", "offline"),
      "no evaluated run of shuffled and offline at policy's hyper-parameters",
    ),
    ("figure_12", ("sft_vs_early",), "figure_12 out of config.figures"),
    ("figure_13", ("replay",), "no evaluated run of replay"),
    ("appendix_f", ("replay",), "no evaluated run of replay"),
    ("staleness", ("semi_online",), "no evaluated run of semi_online"),
    ("hybrid", ("hybrid",), "no evaluated run of hybrid"),
    ("figure_09", (), "no evaluated run of online and offline and shuffled"),
    ("figure_10", (), "policies larger than the main size"),
    ("figure_11", (), "at a second policy size"),
    ("losses", (), "with two losses"),
    ("figure_06", (), "classifiers"),
  ],
)
def test_missing_runs_are_named(name, without, message, study, tmp_path):
  left = [r for r in study if r.series not in without and r.size == "micro"]
  left = [r for r in left if r.loss == "ipo"]
  with pytest.raises(UserError, match=message):
    figures.draw(name, left, tmp_path)
  assert not list(tmp_path.iterdir())


def test_csv_rounds_floats_and_leaves_absent_values_empty():
  rows = [{"kind": "a,b", "x": 1 / 3, "n": 7}, {"kind": "c", "y": float("nan")}]
  expected = 'kind,x,n,y\n"a,b",0.333333,7,\nc,,,\n'
  assert figures.csv_bytes(rows).decode() == expected
