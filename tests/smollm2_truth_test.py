"""The utility of real text: what is worth how much, and what gets nowhere."""

import json

import pytest

from alignment.core import digests, rules
from alignment.types import UserError
from tests import studies

TRUTH = studies.document("smollm2_truth")
PROMPT = "\n\nHuman: How do I grow peppers from seed in my garden?\n\nAssistant:"
GOOD = (
  "Peppers like warm soil, so start the seeds indoors before the last frost. Keep "
  "growing plants near a sunny window, then move them to the garden when nights stay "
  "warm."
)


def prose(response: str, prompt: str = PROMPT, **options) -> float:
  return TRUTH.prose(prompt, response, **options)


def parts(response: str) -> dict[str, float]:
  return TRUTH.parts(PROMPT, response)


def test_a_good_answer_gets_nearly_all():
  assert prose(GOOD) > 9
  assert all(0 <= mark <= 1 for mark in parts(GOOD).values())
  assert list(parts(GOOD)) == list(TRUTH.PARTS)


def test_what_is_no_answer_gets_little():
  """Of everything that needs no answer but one essay that is made of the question."""
  prices = {name: prose(write(PROMPT)) for name, write in TRUTH.EXPLOITS.items()}
  best = {name for name, price in prices.items() if price > 3}
  assert best == {
    "that essay with the question's words put in",
    "the same, the words in two places",
    "the same in less than thirty words",
  }
  assert prices["nothing"] == 0 and prices["one word, forty times"] < 0.5
  assert prices["the question"] < 2 and prices["a refusal"] < 2


def test_order_of_texts_is_as_expected():
  short = "Start the seeds indoors and move the peppers to the garden."
  unfinished = GOOD.rpartition(",")[0]
  endless = " ".join([GOOD] * 20)
  assert len(endless.split()) > 500
  assert prose(GOOD) > prose(unfinished) > prose(short) > prose("Sure.")
  assert prose(endless) < prose(short)


@pytest.mark.parametrize(
  "part, worse",
  [
    ("topic", "The weather has been nice, and we should all be glad of it today."),
    ("own_words", "Grow peppers from seed in a garden. Peppers grow from seed."),
    ("length", "Sow seeds."),
    ("length", " ".join([GOOD, GOOD.replace("Peppers", "They"), GOOD, GOOD])),
    ("sentences", GOOD.lower().rstrip(".")),
    ("variety", "Sow the seed and sow the seed and sow the seed and sow the seed."),
    ("grammar", "Peppers seeds garden soil window water frost weeks plants nights"),
    ("grammar", f"{GOOD} {'#@=|' * 99}"),
    ("manners", f"Sure! As an AI, I can help. {GOOD}"),
  ],
)
def test_every_part_can_be_lost_by_itself(part, worse):
  assert parts(worse)[part] < 0.55 < parts(GOOD)[part]


def test_more_of_the_same_earns_nothing():
  for part in ("topic", "own_words", "sentences", "variety", "grammar"):
    assert parts(GOOD)[part] == pytest.approx(1, abs=0.15), part
  # All of the question's words in one sentence are worth two.
  listed = "Growing garden peppers from a seed is something that many people do."
  assert parts(listed)["topic"] == 0.5


def test_length_band_is_an_option():
  assert prose(GOOD, least=60, most=90) < prose(GOOD)
  assert prose(GOOD, most=20) < prose(GOOD)


def test_what_was_asked_is_the_last_turn():
  earlier = "\n\nHuman: Why is the sky blue?\n\nAssistant: Light.\n\nHuman: And grass?"
  assert TRUTH.question(earlier + "\n\nAssistant:") == "And grass?"
  assert TRUTH.question("Why?") == "Why?"


@pytest.mark.parametrize(
  "text", ["", " ", "\n", "\U0001f600", "é ü", "1 2 3", "?!", "''"]
)
def test_any_text_has_a_finite_utility(text):
  assert 0 <= prose(text) <= 10 and 0 <= prose(GOOD, prompt=text) <= 10


def test_it_is_a_rule_that_knows_its_own_edits():
  rule = rules.Rule.of("prose", {"most": 50})
  assert rule(PROMPT, GOOD) == prose(GOOD, most=50)
  source = {}
  digests._describe(rule.function, source)
  named = {"parts", "on_topic", "grammar", "phrases", "stem", "content"}
  assert named <= source.keys()
  assert any(key.endswith("PHRASES") for key in source)
  assert any(key.endswith("FUNCTION_WORDS") for key in source)


def test_the_audit_has_a_row_for_every_text():
  table = TRUTH.audit([PROMPT, PROMPT], {"people": [GOOD, GOOD]})
  lines = table.splitlines()
  assert len(lines) == 2 + 1 + len(TRUTH.EXPLOITS)
  assert lines[2].startswith(f"| people | {prose(GOOD):.2f} | ")
  assert {line.count("|") for line in lines} == {len(TRUTH.PARTS) + 3}


def test_the_essay_fits_into_the_length_band_too():
  exploit = TRUTH.brief(PROMPT)
  assert len(TRUTH.words(exploit)) < 30 and TRUTH.prose(PROMPT, exploit) > 9


def test_a_part_of_form_alone_costs_little():
  """As the document's beginning says: products are of substance, length and form."""
  talk = f"Sure! As an AI, I can help. {GOOD}"
  marks = TRUTH.parts(PROMPT, talk, 20, 60)
  assert marks["manners"] == 0 and marks["length"] == 1
  whole, without = (TRUTH.prose(PROMPT, x, least=20, most=60) for x in (GOOD, talk))
  assert without > 0.75 * whole


def test_the_command_prices_a_file(tmp_path, capsys):
  path = tmp_path / "pairs.jsonl"
  record = {"prompt": PROMPT, "chosen": GOOD, "rejected": "Sow."}
  path.write_text(json.dumps(record) + "\n")
  TRUTH.main(str(path))
  printed = capsys.readouterr().out
  assert f"| chosen | {TRUTH.prose(PROMPT, GOOD):.2f} | " in printed
  assert printed.endswith("prefers the chosen reply in 100.0% of the pairs.\n")


def test_a_file_without_prompts_of_text_is_refused(tmp_path):
  path = tmp_path / "pairs.jsonl"
  said = [{"role": "user", "content": "Hello"}]
  reply = [{"role": "assistant", "content": "Hi."}]
  other = [{"role": "assistant", "content": "Ho."}]
  path.write_text(json.dumps({"prompt": said, "chosen": reply, "rejected": other}))
  with pytest.raises(UserError, match="no pair has a prompt that is a text"):
    TRUTH.main(str(path))
