"""The report: self-contained, escaped, valid, and with what it was given."""

import dataclasses
from html.parser import HTMLParser

import pytest

from alignment.analysis.claims import Claim
from alignment.analysis.intervals import Estimate, undefined
from alignment.analysis.published import Model, Published, Sample
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
    "groups": ("online", "offline"),
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


MODEL = Model(
  name=HOSTILE,
  parameters=123456,
  init="scratch",
  steps=10,
  train_accuracy=None,
  validation_accuracy=None,
  validation_stderr=None,
  truth_accuracy=None,
  truth_stderr=None,
)
STUDY = Published(
  task=HOSTILE,
  worlds=[0],
  figures=[],
  notes=[HOSTILE],
  runs=[],
  classified_worlds=[],
  data=[HOSTILE],
  models=[MODEL],
  training=[],
  samples=[Sample(HOSTILE, {HOSTILE: HOSTILE, "online": "yes"})],
  samples_note="",
)


def write(path, figures=(), claims=None, curves=None, **fields):
  study = dataclasses.replace(STUDY, **fields)
  rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]
  curves = {HOSTILE: rows} if curves is None else curves
  claims = [make_claim()] if claims is None else claims
  write_report(path, study, curves=curves, figures=figures, claims=claims)
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


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"name": "sft", "train_accuracy": 0.73123}, ["0.731", "–", "–", "–"]),
    (
      {"name": "golden_pm", "validation_accuracy": 0.9264, "validation_stderr": 0.006},
      ["–", "0.926 ± 0.012", "–", "–"],
    ),
    (
      {"name": "world1_proxy_pm", "validation_accuracy": 0.9, "validation_stderr": 0.01}
      | {"truth_accuracy": 0.8, "truth_stderr": 0.02},
      ["–", "0.900 ± 0.020", "0.900 ± 0.020", "0.800 ± 0.039"],
    ),
    ({"name": "x", "truth_accuracy": float("nan")}, ["–", "–", "–", "–"]),
  ],
)
def test_models_have_margins_and_a_dash_for_what_is_not_known(
  tmp_path, fields, expected
):
  models = [dataclasses.replace(MODEL, **fields)]
  text = Page(write(tmp_path / "report.html", models=models)).text
  at = text.index("123,456")
  cells = [data for data in text[at - 1 :] if data.strip()][:8]
  assert cells == [fields["name"], "123,456", "scratch", "10", *expected]


@pytest.mark.parametrize(
  ("worlds", "words"), [([3], "tldr, world 3"), ([0, 1, 2], "tldr, worlds 0 to 2")]
)
def test_the_title_says_what_was_studied(tmp_path, worlds, words):
  page = write(tmp_path / "report.html", task="tldr", worlds=worlds)
  assert f"<h1>Online and offline alignment: {words}</h1>" in page


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
  empty = {key: [] for key in ("data", "models", "samples", "claims")}
  page = write(tmp_path / "a.html", **empty, curves={}, notes=["only this"])
  assert [element for element in Page(page).elements if element == "h2"] == ["h2"]
  assert write(tmp_path / "b.html") == write(tmp_path / "c.html")
