"""Judges on the host: rules, the truth, and models that have their own vocabulary."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from alignment.core import digests as digests_lib
from alignment.core import evaluation, host_judges, judges, rules
from alignment.data import toy, vocabularies
from alignment.data.translation import Translation
from alignment.models import t5
from alignment.runtime import sharding
from alignment.study import documents
from alignment.types import UserError
from tests import tiny
from tests.data.translation_test import batch as batch_of

LANGUAGE = toy.Language(world=3, num_words=6, prompt_words=3, response_words=3)
VOCABULARY = vocabularies.WordVocabulary(toy.words(6))
MESH = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
ROWS = (
  ("BA BE BI", "ba be", "~bi"),
  ("BO DA BA", "bo bo da", "da"),
  ("BE BI BO", "be", "be"),
  ("DA DE BA", "~da de ba", "ba de da"),
)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
  monkeypatch.setattr(rules, "RULES", {})


def batch():
  return batch_of(VOCABULARY, *ROWS)


def judge_of(function, **options):
  rules.rule(function)
  rule = rules.Rule.of(function.__name__, options)
  return host_judges.RuleJudge(rule, VOCABULARY)


# --- rules ----------------------------------------------------------------------------


def brevity(prompt: str, response: str, *, cost: float = 1.0) -> float:
  return -cost * len(response.split())


def test_a_rule_scores_the_text_of_every_response():
  judge = judge_of(brevity, cost=2.0)
  scores_BxN = judge.scores((), batch())
  assert scores_BxN.dtype == np.float32
  assert scores_BxN.tolist() == [[-4, -2], [-6, -2], [-2, -2], [-6, -6]]
  assert judge.preference((), batch()).tolist() == [-2, -4, 0, 0]
  assert judge == judge_of(brevity, cost=2.0)
  assert hash(judge) == hash(judge_of(brevity, cost=2.0))
  assert judge != judge_of(brevity)


def test_a_rule_is_given_prompts_and_responses_without_marks():
  seen = []

  def spy(prompt, response):
    seen.append((prompt, response))
    return 0

  judge_of(spy).scores((), batch())
  assert seen[:2] == [("BA BE BI", "ba be"), ("BA BE BI", "bi")]
  assert len(seen) == 7  # the same text once


def test_a_rule_that_is_not_deterministic_still_ties_what_is_identical():
  numbers = itertools.count()

  def fickle(prompt, response):
    return next(numbers)

  assert judge_of(fickle).preference((), batch())[2] == 0


@pytest.mark.parametrize(
  "says, message",
  [
    (lambda: "3", "it returned '3'; a rule returns a number"),
    (lambda: None, "it returned None; a rule returns a number"),
    (lambda: float("nan"), "it returned nan; scores are finite float32"),
    (lambda: 1e39, "it returned 1e+39; scores are finite float32"),
    (lambda: [][0], "IndexError: list index out of range"),
  ],
)
def test_what_is_no_score_is_one_line_that_names_rule_and_prompt(says, message):
  def odd(prompt, response):
    return says() if response == "da" else np.float32(1)

  with pytest.raises(UserError) as error:
    judge_of(odd).scores((), batch())
  assert re.fullmatch(
    rf"judge 'odd', prompt 1, response 'da': (/.*_test.py:\d+: )?{re.escape(message)}",
    str(error.value),
  )


def test_rules_that_cannot_be_are_refused_where_they_are_written():
  def one(response):
    return 0

  def truth(prompt, response):
    return 0

  for function, message in (
    (one, r"rule 'one' must be a function of \(prompt, response\)"),
    (print, "rule 'print' must be a function of"),
    (truth, "'truth' is a kind of judge already"),
  ):
    with pytest.raises(ValueError, match=message):
      rules.rule(function)
  rules.rule(brevity)
  with pytest.raises(UserError, match="'brevity' has no option 'price': .* are cost"):
    rules.Rule.of("brevity", {"price": 2.0})


SOURCE = """
import re

from alignment.core.rules import rule

WORDS = ("good", "bad")
LIMIT = 4
IGNORED = {"a", "the"}
MARKS = re.compile("[.!]")

def count(text):
  return sum(text.count(word) for word in WORDS)

@rule
def counts(prompt, response, *, limit=LIMIT):
  if len(MARKS.findall(response)) > limit or response in IGNORED:
    return 0
  return [count(text) for text in (prompt, response)][1]
"""


@pytest.mark.parametrize(
  "edit",
  [
    ("", ""), ('"bad"', '"mad"'), ("sum(", "2 * sum("), ("[1]", "[0]"),
    ("LIMIT = 4", "LIMIT = 5"), ('"the"', '"an"'), ("[.!]", "[.?]"),
  ],
)  # fmt: skip
def test_a_rule_is_another_where_its_source_or_what_it_names_is(tmp_path, edit):
  digests = []
  for source in (SOURCE, SOURCE.replace(*edit)):
    path = tmp_path / f"study{len(digests)}.py"
    path.write_text(source)
    rules.RULES.clear()
    documents.load(path)
    digests.append(digests_lib.source_digest(rules.RULES["counts"]))
  assert (digests[0] == digests[1]) == (edit == ("", ""))


def test_two_files_cannot_have_a_rule_of_one_name(tmp_path):
  for name, source in ("a.py", SOURCE), ("b.py", SOURCE.replace("[1]", "[0]")):
    (tmp_path / name).write_text(source)
  documents.load(tmp_path / "a.py")
  documents.load(tmp_path / "a.py")  # as a study that is read twice
  with pytest.raises(
    UserError, match="b.py:14: ValueError: two rules are called 'coun"
  ):
    documents.load(tmp_path / "b.py")


def test_a_rule_is_the_same_whatever_the_working_directory(tmp_path, monkeypatch):
  # With a function below the rule, which is not there yet when the rule is registered.
  below = "\n\ndef last(texts):\n  return texts[1]\n"
  (tmp_path / "a.py").write_text(SOURCE.replace("][1]", "] and last(prompt)") + below)
  monkeypatch.chdir(tmp_path)
  documents.load("a.py")
  monkeypatch.chdir(tmp_path.parent)
  documents.load(tmp_path / "a.py")


# --- the truth ------------------------------------------------------------------------


def truth(temperature=0.0, seed=0):
  return rules.Truth.of(LANGUAGE, {"temperature": temperature}, seed)


def test_the_truth_orders_responses_as_the_language_values_them():
  judge = host_judges.RuleJudge(truth(), VOCABULARY)
  scores_BxN = judge.scores((), batch())
  for (prompt, *responses), scores_N in zip(ROWS, scores_BxN, strict=True):
    words = [response.removeprefix("~").split() for response in responses]
    utilities = [LANGUAGE.utility(prompt.split(), w) for w in words]
    np.testing.assert_allclose(scores_N, utilities, rtol=1e-6)


def test_noise_is_that_of_the_raters_and_the_same_for_who_asks_again():
  prompt, a, b = "BA BE BI", "ba be", "bi"
  gap = truth()(prompt, a) - truth()(prompt, b)
  temperature = abs(gap)  # raters then prefer the better one with sigmoid(1)
  draws = [
    np.sign(judge(prompt, a) - judge(prompt, b)) == np.sign(gap)
    for judge in (truth(temperature, seed) for seed in range(2000))
  ]
  assert np.mean(draws) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)
  assert truth(1.0, 5)(prompt, a) == truth(1.0, 5)(prompt, a)
  assert truth(1.0, 5)(prompt, a) != truth(1.0, 6)(prompt, a)


def test_the_truth_is_described_by_the_language_and_its_noise():
  assert truth().described() == truth(seed=1).described()
  assert truth(0.5).described() != truth(0.5, seed=1).described()
  assert truth().described()["language"]["world"] == 3
  for value in (-1.0, float("nan"), "hot", True):
    with pytest.raises(UserError, match="option 'temperature' of 'truth' is"):
      truth(value)
  with pytest.raises(UserError, match="set data.format to 'toy'"):
    rules.Truth.of(None, {}, 0)


# --- a vocabulary of its own ----------------------------------------------------------


def preference_model(vocabulary, context_length):
  rows = -(-vocabulary.size // 8) * 8
  cfg = dataclasses.replace(tiny.CFG, vocab_rows=rows, live_ids=0)
  markers = vocabulary.judge_markers
  return judges.PreferenceModel(t5.T5(cfg), markers, context_length, "left")


def translated(vocabulary, length, context_length):
  model = preference_model(vocabulary, context_length)
  translation = Translation(VOCABULARY, vocabulary, length, length, "left")
  params = tiny.params(cfg=model.model.cfg)
  return model, host_judges.TranslatedJudge(model, translation, MESH), params


@pytest.mark.usefixtures("compile_quickly")
def test_a_judge_of_the_same_vocabulary_says_the_same():
  again = vocabularies.WordVocabulary(toy.words(6))
  model, host, params = translated(again, 6, 24)
  direct_B, host_B = (
    evaluation.margins(judge, params, batch()) for judge in (model, host)
  )
  assert isinstance(host_B, np.ndarray) and np.ptp(host_B) > 0
  np.testing.assert_array_equal(np.asarray(direct_B), host_B)
  scores_BxN = host.scores(params, batch())
  np.testing.assert_array_equal(scores_BxN[:, 0] - scores_BxN[:, 1], host_B)


@pytest.mark.usefixtures("compile_quickly")
def test_a_judge_of_bytes_reads_the_text():
  model, host, params = translated(vocabularies.ByteVocabulary(), 12, 48)
  host_B = host.preference(params, batch())
  text = batch_of(
    vocabularies.ByteVocabulary(), *ROWS, prompt_length=12, response_length=12
  )
  direct_B = evaluation.margins(model, params, text)
  np.testing.assert_array_equal(np.asarray(direct_B), host_B)
  assert host_B[2] == 0 and np.ptp(host_B) > 0


def test_a_host_judge_of_a_batch_on_devices_answers_there():
  judge, placed = judge_of(brevity), sharding.put_batch(batch(), MESH)
  margins = evaluation.margins(judge, (), placed)
  assert margins.sharding == placed.ids_B.sharding
  assert np.asarray(margins).tolist() == [-1, -2, 0, 0]


def test_a_judge_checks_that_its_own_lengths_fit():
  _, host, _ = translated(vocabularies.ByteVocabulary(), 12, 20)
  with pytest.raises(UserError, match="judge_context_length 20 cannot hold two resp"):
    host.check(3, 3)
