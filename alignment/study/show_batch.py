"""The batch as models see it: every token of a few pairs, and where it came from."""

from collections.abc import Iterator
import dataclasses
import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from alignment.core.host_judges import TranslatedJudge
from alignment.core.judges import PreferenceModel
from alignment.data import origins, pairs
from alignment.data.examples import Example, Reading
from alignment.data.vocabularies import Vocabulary
from alignment.runtime import hosts
from alignment.study import artefacts
from alignment.study.graph import Study
from alignment.study.stages.data import PairData
from alignment.types import Array, Batch, UserError

PAIRS = 3  # that are shown
_MARKER = "marker"  # what a judge's input has around responses


@dataclasses.dataclass(frozen=True)
class _Part:
  """Ids, and the origin of each."""

  ids: list[int]
  origins: list[str]


def show_batch(study: Study, workdir: Path) -> None:
  """Prints what the models will see of a few pairs: tokens, their origins, padding."""
  data = study.data()
  if not isinstance(data, PairData):
    raise UserError(
      "show_batch shows pairs of a file, but D_initial is sampled here: "
      "--stages=sample shows responses"
    )
  artefacts.run([data], workdir)
  if not hosts.is_first():
    return
  dataset = pairs.PairDataset.load(data.verified(workdir) / "train")
  vocabulary, lengths = study.setting.vocabulary, study.setting.lengths
  S, T = lengths["prompt_length"], lengths["response_length"]
  judge = study.golden_pm().judge()
  for row, (example, prompt, replies) in enumerate(_examples(data, dataset)):
    print(f"--- pair {row}, {example.source}")
    _show(vocabulary, "prompt", prompt, S)
    for name, reply in zip(("preferred", "other"), replies, strict=True):
      _show(vocabulary, name, reply, T)
    if isinstance(judge, PreferenceModel):
      judged = _judged(judge, prompt, replies, T)
      _show(vocabulary, "judge reads", judged, judge.context_length)
    elif not isinstance(judge, TranslatedJudge):
      print("the judge reads prompt and response as they are")
    else:
      _show_translated(judge, dataset.batch(np.array([row]), **lengths))


def _examples(
  data: PairData, dataset: pairs.PairDataset
) -> Iterator[tuple[Example, _Part, list[_Part]]]:
  """The data set's first pairs, found among those that are read anew."""
  vocabulary = data.setting.vocabulary
  tokenizer = data.new_tokenizer(Reading())
  wanted = iter(range(min(PAIRS, len(dataset))))
  row = next(wanted, None)
  for example in data.examples(Reading()):
    if row is None:
      return
    fitted, replies = tokenizer.read(example) or (None, [])
    kept = [dataset.responses[n][row].tolist() for n in range(len(replies))]
    shortened = [r[: len(k)] for r, k in zip(replies, kept, strict=True)]
    if fitted and [fitted.ids, *shortened] == [dataset.prompts[row].tolist(), *kept]:
      yield (
        example,
        _Part(fitted.ids, origins.of_prompt(vocabulary, fitted)),
        [_Part(ids, origins.of_response(vocabulary, ids)) for ids in kept],
      )
      row = next(wanted, None)


def _judged(
  judge: PreferenceModel, prompt: _Part, replies: list[_Part], response_length: int
) -> _Part:
  """What a judge reads of a pair whose preferred response comes first.

  Origins go through the same assembly as ids, as numbers.
  """
  names = sorted({*prompt.origins, *itertools.chain(*(r.origins for r in replies))})
  names += [f"{which} {name}" for which in ("first", "second") for name in names]
  names.append(_MARKER)
  numbers = {name: i for i, name in enumerate(names)}
  whose = ("", "first ", "second ")

  def assembled(judge: PreferenceModel, rows: list[list[int]]) -> list[int]:
    parts = [
      _row(row, response_length if i else len(row)) for i, row in enumerate(rows)
    ]
    tokens_1xC, lengths_1 = judge.assemble(*parts)
    return np.asarray(tokens_1xC)[0, : int(lengths_1[0])].tolist()

  def marks(ids: tuple[int, ...]) -> tuple[int, ...]:
    return (numbers[_MARKER],) * len(ids)

  markers = dataclasses.replace(
    judge.markers,
    before_first=marks(judge.markers.before_first),
    before_second=marks(judge.markers.before_second),
    end=marks(judge.markers.end),
  )
  parts = [prompt, *replies]
  rows = [
    [numbers[prefix + name] for name in part.origins]
    for part, prefix in zip(parts, whose, strict=True)
  ]
  ids = assembled(judge, [part.ids for part in parts])
  marked = dataclasses.replace(judge, markers=markers)
  return _Part(ids, [names[i] for i in assembled(marked, rows)])


def _show_translated(judge: TranslatedJudge, pair: Batch) -> None:
  """What a judge with a vocabulary of its own reads of a batch of one pair."""
  vocabulary, pair = judge.translation.target, judge.translation.batch(pair)
  parts = {"prompt": (pair.prompts_BxS[0], pair.prompt_lengths_B[0])}
  for n, name in enumerate(("preferred", "other")):
    parts[name] = pair.responses_BxNxT[0, n], pair.lengths_BxN[0, n]
  for name, (tokens, length) in parts.items():
    ids = [int(i) for i in tokens[: int(length)]]
    _show(
      vocabulary,
      f"judge reads, {name}",
      _Part(ids, ["its own ids"] * len(ids)),
      len(tokens),
    )


def _row(row: list[int], width: int) -> tuple[Array, Array]:
  """A batch of one, padded, and its length."""
  tokens = np.pad(np.array(row, np.int32), (0, width - len(row)))
  return jnp.asarray(tokens)[None], jnp.array([len(row)])


def _show(vocabulary: Vocabulary, name: str, part: _Part, width: int) -> None:
  """A line for each run of tokens of one origin; then what is padding."""
  print(f"{name} ({len(part.ids)} of {width} positions)")
  for origin, ids in origins.runs(part.ids, part.origins):
    text = " ".join(_spelled(vocabulary, i) for i in ids)
    print(f"  {origin:<16} {text}")
    print(f"  {'':<16} {' '.join(map(str, ids))}")
  if padding := width - len(part.ids):
    print(f"  {'padding':<16} {padding} x")


def _spelled(vocabulary: Vocabulary, i: int) -> str:
  """A token on one line: its text, or if it has none its spelling."""
  text = vocabulary.decode([i]).replace("\n", "\\n").strip(" ")
  if text:
    return text
  names = (token for token, number in vocabulary.tokens().items() if number == i)
  return next(names, f"[{i}]")
