"""The report: self-contained, escaped, valid, and with what it was given."""

from html.parser import HTMLParser

import pytest

from alignment.analysis.claims import Claim
from alignment.analysis.intervals import Estimate, undefined
from alignment.analysis.report import write_report
from alignment.types import UserError

HOSTILE = "<script>alert(1)</script><img src=x onerror='f()'>\"&\x00\x1b[0m\u202e\ud800"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
  """Checks that elements nest and close; collects them, their attributes and text."""

  def __init__(self, page):
    super().__init__()
    self.elements, self.attributes, self.text, self._open = [], [], [], []
    self.feed(page)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] != "style":
      self.text.append(data)


def make_claim(**fields):
  estimate = Estimate(0.1, 0.05, 0.15, "prompts, 1 world", 256)
  of_claim = {
    "figure": "1",
    "name": "peak win rate",
    "statement": "online's peak win rate is above offline's",
    "task": HOSTILE,
    "loss": "ipo",
    "methods": ("online", "offline"),
    "region": "> 0",
    "num_runs": {0: (1, 9)},
    "estimates": {"golden PM": estimate, "truth": undefined("no <common> range")},
    "of_all_runs": {"golden PM": Estimate(0.02, -0.1, 0.14, "prompts, 1 world", 256)},
    "per_world": {},
    "verdict": "undecided",
    "reason": "1 world: 6 are needed",
    "reading": "online ahead in this world",
  }
  return Claim(**(of_claim | fields))


def write(path, **fields):
  content = {
    "title": HOSTILE,
    "data_statistics": [HOSTILE],
    "models": [
      {"role": HOSTILE, "parameters": 123456, "init": "scratch", "steps": 10},
      {"role": "golden PM", "train_accuracy": 0.73123, "truth_accuracy": float("nan")},
    ],
    "curves": {HOSTILE: [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]},
    "samples": [{"prompt": HOSTILE, "responses": {HOSTILE: HOSTILE, "online": "yes"}}],
    "figures": [],
    "claims": [make_claim()],
    "notes": [HOSTILE],
  }
  write_report(path, **(content | fields))
  return path.read_bytes().decode()


def test_hostile_strings_show_as_text_and_nothing_is_loaded(tmp_path):
  page = Page(write(tmp_path / "report.html"))
  assert "script" not in page.elements and "link" not in page.elements
  assert page.elements.count("img") == 1  # the curves
  shown = "".join(page.text)
  assert shown.count("<script>alert(1)</script><img src=x onerror='f()'>\"&") >= 7
  assert "\x00" not in shown and "\u2400\u241b[0m[U+202E]\\ud800" in shown
  for name, value in page.attributes:
    assert not name.startswith("on")
    if name in ("src", "href"):
      assert value.startswith(("data:image/png;base64,", "#"))
  assert ("lang", "en") in page.attributes and ("name", "viewport") in page.attributes


def test_claims_show_estimates_intervals_verdict_and_counts(tmp_path):
  shown = " ".join(Page(write(tmp_path / "report.html")).text)
  for words in (
    "online's peak win rate is above offline's",
    "+0.100 [+0.050, +0.150]",
    "over prompts, 1 world",
    "all runs:",
    "+0.020 [-0.100, +0.140]",
    "n/a: no <common> range",
    "1 vs 9",
    "undecided",
    "1 world: 6 are needed",
    "online ahead in this world",
  ):
    assert words in shown


def test_models_have_a_dash_for_what_is_not_known(tmp_path):
  models = [{"role": "golden PM", "parameters": 123456, "train_accuracy": 0.73123}]
  text = Page(write(tmp_path / "report.html", models=models)).text
  at = text.index("123,456")
  cells = [data for data in text[at - 1 :] if data.strip()][:8]
  assert cells == ["golden PM", "123,456", "–", "–", "0.731", "–", "–", "–"]


def test_figures_are_copied_into_the_page(tmp_path):
  image = tmp_path / "figure_01.png"
  image.write_bytes(b"\x89PNG")
  page = Page(write(tmp_path / "report.html", figures=[(image, 'the "caption"')]))
  assert ("src", "data:image/png;base64,iVBORw==") in page.attributes
  assert ("alt", 'the "caption"') in page.attributes


def test_a_missing_figure_is_named_and_nothing_is_written(tmp_path):
  with pytest.raises(UserError, match="absent.png: No such file"):
    write(tmp_path / "report.html", figures=[(tmp_path / "absent.png", "")])
  assert not list(tmp_path.iterdir())


def test_empty_sections_are_left_out_and_bytes_repeat(tmp_path):
  empty = {key: [] for key in ("data_statistics", "models", "samples", "claims")}
  page = write(tmp_path / "a.html", **empty, curves={}, notes=["only this"])
  assert [element for element in Page(page).elements if element == "h2"] == ["h2"]
  assert write(tmp_path / "b.html") == write(tmp_path / "c.html")
