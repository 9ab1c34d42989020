"""The report: self-contained, escaped, valid, and with what it was given."""

import dataclasses
from html.parser import HTMLParser

import pytest

from alignment.analysis.claims import Claim
from alignment.analysis.intervals import Estimate, undefined
from alignment.analysis.published import Audit, Model, Published, Sample
from alignment.analysis.report import write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror='f()'>\"&\x00\x1b[0m\u202e\ud800"
VOID = {"meta", "br"}


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
    if self._open and self._open[-1] not in ("style", "script"):
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
  validation_within=None,
  truth_accuracy=None,
  truth_within=None,
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


DRAWING = {"figure_01": "<svg></svg>", "figure_04": "<svg>\x00</svg>"}


def write(path, drawings=DRAWING, claims=None, curves=None, **fields):
  study = dataclasses.replace(STUDY, **fields)
  rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]
  curves = {HOSTILE: rows} if curves is None else curves
  claims = [make_claim()] if claims is None else claims
  write_report(path, study, loss="ipo", curves=curves, drawings=drawings, claims=claims)
  return path.read_bytes().decode()


def test_hostile_strings_show_as_text_and_nothing_is_loaded(tmp_path):
  metric = "<script>&\u202e"
  rows = [{"step": 0, metric: 1.0}, {"step": 1, metric: 0.5}]
  page = Page(write(tmp_path / "report.html", curves={HOSTILE: rows}))
  assert page.elements.count("script") == 1  # the page's own
  assert not {"link", "img", "iframe"} & set(page.elements)
  shown = "".join(page.text)
  assert shown.count("<script>alert(1)</script><img src=x onerror='f()'>\"&") >= 7
  assert "\x00" not in shown and "\u2400\u241b[0m[U+202E]\\ud800" in shown
  assert "<script>&[U+202E]" in page.text  # in a drawing
  for name, value in page.attributes:
    assert not name.startswith("on") and name != "src"
    if "href" in name:
      assert value.startswith("#")
  assert ("lang", "en") in page.attributes and ("name", "viewport") in page.attributes


def test_claims_show_estimates_intervals_verdict_and_counts(tmp_path):
  shown = " ".join(Page(write(tmp_path / "report.html")).text)
  for words in (
    "online's peak win rate is above offline's",
    "+0.100 [+0.050, +0.150]",
    "all runs:",
    "+0.020 [-0.100, +0.140]",
    "n/a: no <common> range",
    "1 vs 9",
  ):
    assert words in shown


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"name": "sft", "train_accuracy": 0.73123}, ["0.731", "–", "–", "–"]),
    (
      {"name": "golden_pm", "validation_accuracy": 0.9264, "validation_within": 0.012},
      ["–", "0.926 ± 0.012", "–", "–"],
    ),
    (
      {"name": "world1_proxy_pm", "validation_accuracy": 0.9, "validation_within": 0.02}
      | {"truth_accuracy": 0.8, "truth_within": 0.039},
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
  ("worlds", "words"),
  [
    ([3], "tldr, world 3"),
    ([0, 1, 2], "tldr, worlds 0 to 2"),
    ([21, 23, 24, 27], "tldr, worlds 21, 23 to 24, 27"),
  ],
)
def test_the_title_says_what_was_studied(tmp_path, worlds, words):
  page = write(tmp_path / "report.html", task="tldr", worlds=worlds)
  assert f"<h1>Online and offline alignment: {words}</h1>" in page


def test_the_answer_comes_first_and_claims_last(tmp_path):
  gap = Estimate(0.031, 0.02, 0.042, "prompts, 1 world", 256)
  claim = make_claim(task="tldr", estimates={"golden PM": gap})
  page = write(tmp_path / "report.html", task="tldr", claims=[claim])
  in_order = (
    "At the peaks online wins 3.1 points more often than offline [2.0, 4.2] (golden",
    "Figure 1: ",
    ">Samples</h2>",
    ">Models</h2>",
    "Figure 4: ",
    ">Claims</h2>",
  )
  places = [page.index(words) for words in in_order]
  assert places == sorted(places)


def test_one_world_is_said_once_and_not_on_every_row(tmp_path):
  claims = [make_claim(reading="holds in this world")] * 3
  page = write(tmp_path / "report.html", claims=claims, worlds=[4])
  table = page[page.index("Claims</h2>") :]
  assert table.count("One world: ") == 1
  assert table.count('data-label="verdict">holds</td>') == 3
  for words in ("1 world", "undecided", "in this world"):
    assert words not in table


def test_of_six_worlds_what_is_over_fewer_says_so(tmp_path):
  estimates = {
    "golden PM": Estimate(0.1, 0.05, 0.15, "6 worlds", 6),
    "truth": Estimate(0.2, 0.1, 0.3, "5 worlds", 5, "world 3: no common range of KL"),
  }
  claim = make_claim(estimates=estimates, reason="5 worlds: 6 are needed")
  page = write(tmp_path / "report.html", claims=[claim], worlds=list(range(6)))
  assert "over 5 worlds; world 3: no common range" in page
  assert "over 6 worlds" not in page
  assert '<span class="verdict undecided">undecided</span><br>5 worlds: 6 are' in page


def test_judges_are_audited_in_a_table_of_their_own(tmp_path):
  audit = Audit(0.875, 0.6123, None, [0.5, 0.75, 0.8, 1.0])
  judge = dataclasses.replace(MODEL, name="golden_pm", audit=audit)
  text = Page(write(tmp_path / "report.html", models=[judge, MODEL])).text
  at = text.index("labels prefer the longer")
  cells = [data for data in text[at + 1 :] if data.strip()]
  assert cells[1:6] == [
    "golden_pm",
    "0.875",
    "0.612",
    "–",
    "0.500, 0.750, 0.800, 1.000",
  ]
  assert "labels prefer the longer" not in write(tmp_path / "none.html")


def test_models_whose_accuracy_is_unknown_are_folded_away(tmp_path):
  judge = dataclasses.replace(MODEL, name="golden_pm", validation_accuracy=0.9)
  page = write(tmp_path / "report.html", models=[MODEL, judge, MODEL])
  assert page.index(">golden_pm<") < page.index("<summary>2 more</summary>")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"version": "0.1.0", "commit": "abc123"}, "version 0.1.0, commit abc123"),
    ({"version": "0.1.0"}, "version 0.1.0"),
    ({"commit": "<b>"}, "commit &lt;b&gt;"),
  ],
)
def test_the_code_of_a_study_is_named_at_the_end(tmp_path, fields, words):
  page = write(tmp_path / "report.html", **fields)
  assert f"<footer>{words}</footer>" in page


def test_empty_sections_are_left_out_and_bytes_repeat(tmp_path):
  empty = {key: [] for key in ("data", "models", "samples", "claims")}
  page = write(
    tmp_path / "a.html", **empty, drawings={}, curves={}, notes=["only this"]
  )
  assert "<footer>" not in page
  assert [element for element in Page(page).elements if element == "h2"] == ["h2"]
  assert write(tmp_path / "b.html") == write(tmp_path / "c.html")


def test_samples_are_in_the_order_of_a_study(tmp_path):
  responses = {"golden policy": "d", "extra": "e", "online": "b", "SFT": "a"}
  samples = [Sample("p", responses)]
  text = Page(write(tmp_path / "report.html", samples=samples)).text
  cells = [data for data in text[text.index("SFT") :] if data.strip()]
  assert cells[:4] == ["SFT", "online", "golden policy", "extra"]
  assert cells[4:9] == ["p", "a", "b", "d", "e"]
