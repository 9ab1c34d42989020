"""The known utility of configs/smollm2.py: what raters of real text would value.

A document loads this file, and the rule `prose` is then a kind of judge. What it is
worth on trivial texts, beside what people preferred:

  python -m configs.smollm2_truth PAIRS.jsonl.gz

Seven parts of the text, each in [0, 1], say how good a response is. Each is cheap to
satisfy, and saturates: more of the same earns nothing. What is short of substance or
length, or has no form at all, does not get far; of form's parts each costs by itself
at most a third.

  utility   = 10 x substance x length x form
  substance = (topic + own_words + 3 topic x own_words) / 5
  form      = (2 sentences + 2 variety + grammar + manners) / 6

  topic      distinct content words of the question that are named: full marks for 4,
             or all, if it has fewer (also none); of any sentence only 2 new ones count
  own_words  distinct content words that the question does not have: full marks for 12
  length     words: from none at 0 to full marks from `least` to `most`, and down to
             none at twice `most`; 12 and 30 suit responses of 48 tokens
  sentences  half for an end that is one (. ! ?); half for the share of sentences that
             begin with a capital and have 3 to 40 words
  variety    distinct pairs of adjacent words, as a share of all: none up to 0.6, full
             marks from 0.95
  grammar    the share of words that are function words (the, of, is): full marks from
             0.3 to 0.65, as of English, falling to none at 0.1 and 0.85; times the
             share of characters that are ASCII letters, spaces, newlines or usual
             punctuation over 0.95, once that is under 1
  manners    no talk about the talk: half off for each of PHRASES, at most twice

What is asked is the last thing that the user says. Content words are compared without
their commonest endings; they are those of three letters or more, and numbers of three
digits or more, but for function words.

It says nothing of whether a response is true, polite, or an answer at all. What it pays
for without being any good is listed by `EXPLOITS`, and priced by the command above.
"""

from collections.abc import Callable, Iterable, Sequence
import itertools
import re
import sys

from alignment.core.rules import rule
from alignment.runtime.exits import exit_with_status
from alignment.types import UserError

FORM = {"sentences": 2, "variety": 2, "grammar": 1, "manners": 1}
PARTS = ("topic", "own_words", "length", *FORM)
FUNCTION_WORDS = """
a about after all also am an and any are as at be because been before being but by can
could did do does doing down during each even for from further get had has have having
he her here hers him his how i if in into is it its just like may me might more most
much must my no nor not now of off on once one only or other our out over own same she
should so some such than that the their them then there these they this those through to
too under until up us very was we were what when where which while who whom why will
with would you your
"""
PHRASES = (
  r"\bas an ai\b", r"\blanguage model\b", r"\bi'?m sorry\b", r"\bi apologi[sz]e\b",
  r"\bi (can'?t|cannot|am unable to|am not able to)\b", r"\bhappy to (help|assist)\b",
  r"\b(great|good|excellent) question\b", r"\bhope (this|that) helps\b",
  r"\blet me know\b", r"\bfeel free\b", r"^(sure|certainly|of course|absolutely)\b",
  r"\bhere('s| is| are) (a|an|some|the|my)\b", r"\byou('ve| have)? asked\b",
  r"\b(human|assistant|user):", r"\bmy name is\b",
)  # fmt: skip


@rule
def prose(prompt: str, response: str, *, least: int = 12, most: int = 30) -> float:
  """0 to 10: see this file's beginning."""
  marks = parts(prompt, response, least, most)
  topic, own_words = marks["topic"], marks["own_words"]
  substance = (topic + own_words + 3 * topic * own_words) / 5
  form = sum(weight * marks[name] for name, weight in FORM.items()) / sum(FORM.values())
  return 10 * substance * marks["length"] * form


def parts(
  prompt: str, response: str, least: int = 12, most: int = 30
) -> dict[str, float]:
  """Every part of the utility by name; of an empty response all are 0."""
  said, asked = words(response), content(words(question(prompt)))
  if not said:
    return dict.fromkeys(PARTS, 0.0)
  named, n = content(said), len(said)
  marks = {
    "topic": on_topic(asked, response) / min(4, len(asked)) if asked else 1.0,
    "own_words": len(named - asked) / 12,
    "length": min(n / least, (2 * most - n) / most),
    "sentences": sentences(response),
    "variety": (distinct_pairs(said) - 0.6) / 0.35,
    "grammar": grammar(said, response),
    "manners": 1 - phrases(response) / 2,
  }
  return {name: min(1.0, max(0.0, mark)) for name, mark in marks.items()}


def question(prompt: str) -> str:
  """What was said last to the assistant, of a transcript; or the prompt."""
  last = prompt.rpartition("Human:")[2]
  return last.partition("Assistant:")[0].strip()


def words(text: str) -> list[str]:
  return re.findall(r"[a-z]+(?:'[a-z]+)?|\d+", text.lower().replace("\u2019", "'"))


def content(said: Iterable[str]) -> set[str]:
  """The stems of words that are none of grammar alone."""
  small = frozenset(FUNCTION_WORDS.split())
  return {stem(word) for word in said if len(word) > 2 and word not in small}


def stem(word: str) -> str:
  """A word without its commonest endings."""
  word = word.partition("'")[0]
  for ending in ("ing", "ed", "es", "s", "ly", "e"):
    if word.endswith(ending) and len(word) - len(ending) >= 3:
      return word.removesuffix(ending)
  return word


def on_topic(asked: set[str], text: str) -> int:
  """How many words of a question are named, at most two new ones in a sentence."""
  named: set[str] = set()
  for sentence in split(text):
    named |= set(sorted((content(words(sentence)) & asked) - named)[:2])
  return len(named)


def split(text: str) -> list[str]:
  """The sentences of a text; what has no end is one."""
  return [part for part in re.split(r"(?<=[.!?])[\"')]*\s+", text.strip()) if part]


def sentences(text: str) -> float:
  """Half for an end of a sentence, half for the share of sentences that are whole."""
  text = text.strip()
  pieces = split(text)
  whole = sum(
    piece.lstrip("\"'(")[:1].isupper() and 3 <= len(words(piece)) <= 40
    for piece in pieces
  )
  ended = re.search(r"[.!?][\"')]*$", text) is not None
  return (ended + whole / max(1, len(pieces))) / 2


def distinct_pairs(said: Sequence[str]) -> float:
  """The share of adjacent pairs of words that are different ones."""
  adjacent = list(itertools.pairwise(said))
  return len(set(adjacent)) / len(adjacent) if adjacent else 1.0


def grammar(said: Sequence[str], text: str) -> float:
  """Whether function words and characters are as frequent as in English."""
  small = frozenset(FUNCTION_WORDS.split())
  share = sum(word in small for word in said) / len(said)
  usual = sum(c.isascii() and (c.isalpha() or c in " \n.,;:!?'\"()-") for c in text)
  plausible = min(1.0, (share - 0.1) / 0.2, (0.85 - share) / 0.2)
  return max(0.0, plausible) * min(1.0, usual / len(text) / 0.95)


def phrases(text: str) -> int:
  """How many of PHRASES are in a text."""
  text = text.strip().lower().replace("\u2019", "'")
  return sum(re.search(phrase, text) is not None for phrase in PHRASES)


# --- what can be had without an answer ------------------------------------------------


def stuffed(prompt: str) -> str:
  """An essay for any question, with the question's words put into it."""
  named = [word for word in words(question(prompt)) if content([word])]
  topic = ", ".join(dict.fromkeys(named)) or "this"
  return (
    f"There are several things to consider about {topic}. A careful person will gather "
    "reliable facts first. Then they compare different options with honest friends. "
    "Most problems become simple when we take small steps."
  )


def spread(prompt: str) -> str:
  """The same essay, with two of the question's words in each of two sentences."""
  named = [word for word in words(question(prompt)) if content([word])]
  first, second = " and ".join(named[:2]), " and ".join(named[2:4])
  return (
    f"There are several things to consider about {first or 'this'}. A careful person "
    f"will gather reliable facts about {second or 'it'} first. Then they compare "
    "different options with honest friends. Most problems become simple in small steps."
  )


def brief(prompt: str) -> str:
  """That in less than thirty words, so within the length band."""
  named = [word for word in words(question(prompt)) if content([word])]
  first, second = " and ".join(named[:2]), " and ".join(named[2:4])
  return (
    f"Good advice about {first or 'this'} depends on several facts. A careful person "
    f"will gather reliable ideas about {second or 'it'}, then compare simple options "
    "with honest friends first."
  )


Texts = Callable[[str], str]
EXPLOITS: dict[str, Texts] = {  # what a policy could write to any prompt
  "nothing": lambda prompt: "",
  "the question": question,
  "the question, five times": lambda prompt: " ".join([question(prompt)] * 5),
  "the question's words as a list": lambda prompt: ", ".join(words(question(prompt))),
  "one word, forty times": lambda prompt: " ".join(["good"] * 40),
  "a refusal": lambda prompt: (
    "I'm sorry, but as an AI language model I cannot help with that. Let me know if "
    "you have any other questions."
  ),
  "a polite sentence": lambda prompt: (
    "Thank you very much for asking me about this, I will do my best for you."
  ),
  "the same essay, whatever was asked": lambda prompt: stuffed(""),
  "that essay with the question's words put in": stuffed,
  "the same, the words in two places": spread,
  "the same in less than thirty words": brief,
}


def audit(prompts: Sequence[str], replies: dict[str, Sequence[str]]) -> str:
  """`priced` of given replies and every exploit, as a Markdown table."""
  texts = {name: [write(p) for p in prompts] for name, write in EXPLOITS.items()}
  head = ("", "utility", *PARTS)
  rows = [head, ("---",) * len(head), *priced(prompts, {**replies, **texts})]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def priced(
  prompts: Sequence[str], replies: dict[str, Sequence[str]]
) -> list[tuple[str, ...]]:
  """A row for each name of `replies`, which has a reply to each of the prompts.

  Its cells are the name, the mean utility and the means of PARTS.
  """
  rows = []
  for name, said in replies.items():
    both = list(zip(prompts, said, strict=True))
    marks = [{"utility": prose(p, r), **parts(p, r)} for p, r in both]
    means = [sum(m[key] for m in marks) / len(marks) for key in ("utility", *PARTS)]
    rows.append((name, *(f"{mean:.2f}" for mean in means)))
  return rows


def main(path: str) -> None:
  """Prints the audit beside the replies of a preference file.

  Raises:
    UserError: for a file that cannot be read, or has no prompt that is a text.
  """
  from alignment.data.readers import Reading, read_files

  pairs = [p for p in read_files(path, "skip", Reading()) if isinstance(p.prompt, str)]
  if not pairs:
    raise UserError(f"{path}: no pair has a prompt that is a text")
  chosen, rejected = ([str(p[i]) for p in pairs] for i in (1, 2))
  print(f"of {len(pairs):,} prompts\n")
  print(audit([str(p.prompt) for p in pairs], {"chosen": chosen, "rejected": rejected}))
  shares = [prose(p, a) - prose(p, b) for p, a, b in zip(
    [str(p.prompt) for p in pairs], chosen, rejected, strict=True
  )]  # fmt: skip
  agree = sum(gap > 0 for gap in shares) + 0.5 * sum(gap == 0 for gap in shares)
  print(f"\nIt prefers the chosen reply in {agree / len(shares):.1%} of the pairs.")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  exit_with_status(lambda: main(sys.argv[1]))
