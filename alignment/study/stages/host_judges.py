"""Artefacts of judges that work on the host: rules, and pairs in another vocabulary."""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alignment.core import host_judges, rules
from alignment.data import pairs
from alignment.data.translation import Translation, read_prompt
from alignment.runtime import hosts
from alignment.runtime.activity import progress
from alignment.runtime.files import write_json
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Program
from alignment.study.setting import Setting
from alignment.study.stages.judging import REPORT, Judge, accuracies, margins_of
from alignment.types import Params, UserError

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionJudge(Judge):
  """A rule: nothing is trained, and its report says how it does on pairs."""

  kind: ClassVar[str] = "function_judge"
  rule: rules.Rule | rules.Truth
  data: Artefact  # labelled pairs, on which it is compared with their labels

  def settings(self) -> dict[str, Any]:
    rule = {"name": self.rule.name, **self.rule.described()}
    return self.setting.sizes | {"rule": rule}

  def make(self, directory: Path, read: Read) -> None:
    setting, judge = self.setting, self.judge()
    train_set, validation = (
      pairs.PairDataset.load(read(self.data) / split) for split in SPLITS
    )
    margins = functools.partial(margins_of, setting, judge, ())
    rows = np.arange(len(validation))
    report = accuracies(setting, margins, train_set, validation, rows)
    write_json(directory / REPORT, report)
    progress(
      f"{self.name}: '{self.rule.name}' agrees with "
      f"{report['validation_accuracy']:.1%} of held-out labels"
    )

  def judge(self) -> host_judges.RuleJudge:
    return host_judges.RuleJudge(self.rule, self.setting.vocabulary)

  def load_fixed(self, read: Read, step: int | None = None) -> Params:
    del read, step
    return ()

  def abstract_fixed(self) -> Params:
    return ()

  def margins_programs(
    self, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Iterator[Program]:
    return iter(())

  def scores_programs(
    self, rows: int, count: int, stages: tuple[str, ...], held: Mapping[str, Params]
  ) -> Iterator[Program]:
    return iter(())


def rule_of(
  setting: Setting, name: str, kind: str, options: Mapping[str, Any]
) -> rules.Rule | rules.Truth:
  """The rule that a judge of that name is.

  Raises:
    UserError: for an unknown kind, and options that it does not have.
  """
  if kind != rules.TRUTH and kind not in rules.RULES:
    kinds = ", ".join([*rules.TRAINED, rules.TRUTH, *sorted(rules.RULES)])
    raise UserError(
      f"{name}.kind '{kind}' is unknown: there are {kinds}; a rule of your own is "
      "registered in the document of --config, or what it imports"
    )
  try:
    if kind == rules.TRUTH:
      return rules.Truth.of(setting.language, options, setting.seed("noise", name))
    return rules.Rule.of(kind, options)
  except UserError as error:
    raise UserError(f"{name}: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class TranslatedPairs(Artefact):
  """Labelled pairs in the vocabulary of a judge, which is its `setting`'s.

  Beside the splits, `translation.json` says what did not fit: fractions of prompts, of
  responses, and of pairs whose responses became the same.
  """

  kind: ClassVar[str] = "translate"
  data: Artefact
  translation: Translation

  def settings(self) -> dict[str, Any]:
    return self.setting.sizes | {"truncate_prompt": self.translation.truncate_prompt}

  def make(self, directory: Path, read: Read) -> None:
    hosts.on_first(lambda: self._make(directory, read(self.data)))

  def _make(self, directory: Path, data: Path) -> None:
    report = {}
    for split in SPLITS:
      dataset = pairs.PairDataset.load(data / split)
      translated, report[split] = self._translated(dataset)
      (directory / split).mkdir(exist_ok=True)
      translated.save(directory / split)
      shares = ", ".join(
        f"{value:.1%} {key.replace('_', ' ')}" for key, value in report[split].items()
      )
      progress(f"{self.name} ({split}): {len(dataset):,} pairs; {shares}")
    write_json(directory / "translation.json", report)

  def _translated(
    self, dataset: pairs.PairDataset
  ) -> tuple[pairs.PairDataset, dict[str, float]]:
    """The pairs, in their order, and shares of what was lost."""
    translation, limit = self.translation, self.translation.response_length
    prompts, writers = (
      pairs.RaggedWriter(),
      (pairs.RaggedWriter(), pairs.RaggedWriter()),
    )
    cut_prompts = cut_responses = same = 0
    for i in range(len(dataset)):
      prompt = read_prompt(translation.source, dataset.prompts[i])
      try:
        fitted = translation.prompt(prompt)
      except UserError as error:
        raise UserError(f"{self.name}: pair {i}: {error}") from None
      both = [translation.response(prompt, part[i]) for part in dataset.responses]
      for writer, ids in zip(writers, both, strict=True):
        writer.append(ids[:limit])
      prompts.append(fitted.ids)
      cut_prompts += len(fitted.whole) > len(fitted.ids)
      cut_responses += sum(len(ids) > limit for ids in both)
      same += both[0][:limit] == both[1][:limit]
    responses = writers[0].finish(), writers[1].finish()
    return pairs.PairDataset(prompts.finish(), responses, dict(dataset.columns)), {
      "truncated_prompts": cut_prompts / len(dataset),
      "truncated_responses": cut_responses / (2 * len(dataset)),
      "identical_responses": same / len(dataset),
    }
