"""Artefacts that are pairs: D_initial, D_golden, resampled pairs, reference scores."""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
from pathlib import Path
from typing import Any, ClassVar

from ml_collections import ConfigDict
import numpy as np

from alignment.core import evaluation
from alignment.data import pairs, prompts, readers, records, tokenizer
from alignment.data.examples import BadPair, Example, Reading, drop
from alignment.data.toy_audit import audit_of
from alignment.runtime import hosts
from alignment.runtime.activity import Meter, progress
from alignment.runtime.files import checksum, write_json
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Program
from alignment.study.stages.judging import Judge, label
from alignment.study.stages.models import Model
from alignment.types import UserError

MIN_VALIDATION_PROMPTS = 4
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class PairData(Artefact):
  """Pairs of text, tokenised: `train/`, `validation/` and their statistics.

  Attributes:
    chosen: `config.data`, or (for what SFT pools) with keys of its own.
  """

  kind: ClassVar[str] = "data"
  chosen: Mapping[str, Any]

  def settings(self) -> dict[str, Any]:
    """What is in its files stands for their paths."""
    c = dict(self.chosen)
    path, _ = c.pop("path"), c.pop("data_dir")
    if not c["prompt_format"]:  # younger than results that are kept
      del c["prompt_format"]
    if c["format"] not in ("toy", "tfds"):  # of which no file is named
      c["sha256"] = [checksum(file) for file in records.files(path)]
    return self.setting.sizes | {"data": c}

  def make(self, directory: Path, read: Read) -> None:
    del read
    hosts.on_first(lambda: self._make(directory))

  def _make(self, directory: Path) -> None:
    reading = Reading()
    splits = self._tokenized(reading)
    self._check_validation(splits)
    report = {"reading": reading.lines()}
    if self.chosen["format"] == "toy":
      report["language"] = self._audit()
    for line in [*report["reading"], *report.get("language", ())]:
      progress(f"data: {line}")
    for split, (dataset, statistics) in splits.items():
      (directory / split).mkdir(exist_ok=True)
      dataset.save(directory / split)
      report[split] = statistics.lines()
      for line in report[split]:
        progress(f"data ({split}): {line}")
    write_json(directory / "statistics.json", report)

  def _audit(self) -> list[str]:
    """What the language can be won with; refused if that takes no learning."""
    assert self.setting.language is not None
    audit = audit_of(self.setting.language)
    audit.check()
    return audit.lines()

  def examples(self, reading: Reading) -> Iterator[Example]:
    """The pairs as text, in their order; `reading` receives what is dropped."""
    c = ConfigDict(self.chosen)
    if c.format == "toy":
      assert self.setting.language is not None
      examples = self.setting.language.examples(c.num_pairs)
    else:
      examples = self._formatted(readers.FORMATS[c.format](c, reading), reading)
    return itertools.islice(examples, c.num_pairs or None)

  def _formatted(
    self, examples: Iterator[Example], reading: Reading
  ) -> Iterator[Example]:
    """With prompts as `data.prompt_format` says."""
    for example in examples:
      try:
        yield prompts.formatted_pair(self.chosen["prompt_format"], example)
      except BadPair as bad:
        drop(bad, example.source, self.chosen["on_bad_pair"], reading)

  def new_tokenizer(self, reading: Reading) -> tokenizer.Tokenizer:
    """With what the configuration says of pairs."""
    return tokenizer.Tokenizer(
      self.setting.vocabulary,
      reading,
      **self.setting.lengths,
      truncate_prompt=self.chosen["truncate_prompt"],
      long_response=self.chosen["long_response"],
    )

  def _tokenized(self, reading: Reading) -> dict[str, tokenizer.Tokenized]:
    """The pairs of both splits; `reading` receives what was dropped and ignored."""
    collected = self.new_tokenizer(reading)
    with Meter("reading", self.chosen["num_pairs"], "pairs") as meter:
      for i, example in enumerate(self.examples(reading), 1):
        collected.add(example)
        meter.reach(i)
    return collected.split(self.chosen["validation_fraction"])

  def _check_validation(self, splits: Mapping[str, tokenizer.Tokenized]) -> None:
    train, validation = (splits[split].statistics for split in SPLITS)
    if validation.prompts < MIN_VALIDATION_PROMPTS:
      raise UserError(
        f"data: {validation.pairs} validation pairs beside {train.pairs}, but "
        f"preference models need {MIN_VALIDATION_PROMPTS} different prompts there, "
        "half to choose a step and half to report: use more pairs, or raise "
        f"data.validation_fraction (it is {self.chosen['validation_fraction']})"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class RelabelledPairs(Artefact):
  """D_golden: both splits of D_initial in the golden judge's order.

  `agreement.json` says how much of the order before is kept. Of pairs that are sampled
  for it there was none, and it is near a half.
  """

  kind: ClassVar[str] = "relabel"
  data: Artefact
  golden_pm: Judge

  def settings(self) -> dict[str, Any]:
    return self.setting.judging

  def make(self, directory: Path, read: Read) -> None:
    if self.setting.config.evaluation.require_good_judge:
      self.golden_pm.check_usable(read(self.golden_pm))
    agreement = {}
    judge, params = self.golden_pm.judge(), self.golden_pm.load_fixed(read)
    for split in SPLITS:
      dataset = pairs.PairDataset.load(read(self.data) / split)
      (directory / split).mkdir(exist_ok=True)
      swap = label(self.setting, judge, params, dataset, directory / split)
      agreement[split] = float(1 - swap.mean())
    write_json(directory / "agreement.json", agreement)
    if self.setting.config.sampled.data != "golden":
      progress(f"D_golden: keeps {agreement['train']:.1%} of D_initial's labels")

  def programs(self) -> Iterator[Program]:
    yield from self.golden_pm.margins_programs((self.name,), {})


@dataclasses.dataclass(frozen=True, eq=False)
class SampledPairs(Artefact):
  """D_a-vs-b: prompts of D_golden, a response of each of two models, golden labels.

  Attributes:
    steps: of their kept checkpoints; None for what a model settled on.
  """

  kind: ClassVar[str] = "sample_pairs"
  steps: tuple[int | None, int | None]
  first: Model
  second: Model
  golden_data: RelabelledPairs
  golden_pm: Judge

  def settings(self) -> dict[str, Any]:
    return self.setting.judging | {"steps": list(self.steps)}

  def make(self, directory: Path, read: Read) -> None:
    dataset = pairs.PairDataset.load(read(self.golden_data) / "train")
    sampled = [
      self._sample(which, model, read, step, dataset)
      for which, model, step in zip(
        ("first", "second"), (self.first, self.second), self.steps, strict=True
      )
    ]
    unlabelled = pairs.PairDataset(dataset.prompts, (sampled[0], sampled[1]))
    (directory / "train").mkdir(exist_ok=True)
    judge, params = self.golden_pm.judge(), self.golden_pm.load_fixed(read)
    label(self.setting, judge, params, unlabelled, directory / "train")

  def programs(self) -> Iterator[Program]:
    for model in (self.first, self.second):
      yield model.sample_program(1, (self.name,), {})
    yield from self.golden_pm.margins_programs((self.name,), {})

  def _sample(
    self,
    which: str,
    model: Model,
    read: Read,
    step: int | None,
    dataset: pairs.PairDataset,
  ) -> pairs.Ragged:
    setting = self.setting
    sampler, key = setting.sampler(model.start), setting.key("sample_pairs", which)
    params = model.load_fixed(read, step)
    T = setting.config.response_length
    samples = setting.map_pairs(
      lambda batch: evaluation.sample(sampler, params, batch, key, 1, T),
      dataset,
      doing="sampling",
    )
    return pairs.Ragged.from_padded(
      samples.tokens_BxNxT[:, 0], samples.lengths_BxN[:, 0]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredPairs(Artefact):
  """Pairs with log pi_ref of both responses: computed once, stored with them."""

  kind: ClassVar[str] = "score_reference"
  dataset: RelabelledPairs | SampledPairs
  reference: Model

  def settings(self) -> dict[str, Any]:
    return self.setting.numerics

  def make(self, directory: Path, read: Read) -> None:
    model, params = self.reference.model(), self.reference.load_fixed(read)
    dataset = pairs.PairDataset.load(read(self.dataset) / "train")
    zero = np.zeros((len(dataset), 2), np.float32)
    ref_logps = self.setting.map_pairs(
      lambda batch: evaluation.log_ratios(model, params, batch),
      dataset.with_columns(ref_logps=zero),
      doing="scoring",
    )
    dataset.with_columns(ref_logps=ref_logps).save(directory)

  def programs(self) -> Iterator[Program]:
    yield self.reference.log_ratios_program((self.name,), {})
