"""Artefacts of pairs that policies' start writes itself, to the prompts of a file.

They are D_initial, which a rule with raters' noise labels, or D_golden, which the
golden judge labels as it does any pairs: `config.sampled` says which.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alignment.core import evaluation, rules, sampling
from alignment.core.host_judges import RuleJudge
from alignment.data import pairs, prompts, records, transcripts
from alignment.data.chats import Conversation
from alignment.data.examples import Reading
from alignment.data.split import Splitter
from alignment.runtime import hosts
from alignment.runtime.activity import Meter, progress
from alignment.runtime.files import checksum, read_npz, write_json, write_npz
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Program
from alignment.study.stages.data import MIN_VALIDATION_PROMPTS, SPLITS
from alignment.study.stages.judging import label
from alignment.study.stages.models import Model
from alignment.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class SampledData(Artefact):
  """Unlabelled pairs of one model, `train/` and `validation/`, and their statistics.

  Every prompt that is not too long gets `pairs` pairs at each of `temperatures`, both
  responses of a pair at one of them (the column `temperature`). Pairs of identical
  responses are left out. A batch's samples are written as they come: a restart goes on
  after them.

  Attributes:
    model: who writes.
    chosen: `config.sampled`, with the `path`, `columns`, `prompt_format` and
      `truncate_prompt` that hold for its prompts.
  """

  kind: ClassVar[str] = "sample_data"
  model: Model
  chosen: Mapping[str, Any]

  def settings(self) -> dict[str, Any]:
    """What is in its file stands for its path."""
    c = dict(self.chosen)
    sha256 = [checksum(file) for file in records.files(c.pop("path"))]
    return self.setting.numerics | {"sampled": c | {"sha256": sha256}}

  def make(self, directory: Path, read: Read) -> None:
    by_split, lines = self._prompts()
    report = {"reading": lines}
    for line in lines:
      progress(f"{self.name}: {line}")
    params = self.model.load_fixed(read)
    for split in SPLITS:
      dataset, report[split] = self._sampled(by_split[split], params, directory, split)
      (directory / split).mkdir(exist_ok=True)
      dataset.save(directory / split)
      for line in report[split]:
        progress(f"{self.name} ({split}): {line}")
    hosts.on_first(functools.partial(self._finish, directory, report))

  def programs(self) -> Iterator[Program]:
    yield self.model.sample_program(2 * self.chosen["pairs"], (self.name,), {})

  # --- prompts ------------------------------------------------------------------------

  def _prompts(self) -> tuple[dict[str, pairs.Ragged], list[str]]:
    """The different prompts of both splits, and what was left out, in words."""
    c, vocabulary = self.chosen, self.setting.vocabulary
    S, most = self.setting.lengths["prompt_length"], c["num_prompts"]
    splitter, seen, long = Splitter(), dict[tuple[int, ...], None](), 0
    reading = Reading()
    for example in prompts.read(c["path"], c["columns"], reading):
      example = prompts.formatted(c["prompt_format"], example)
      prompt = example.prompt
      said = prompt if isinstance(prompt, str) else Conversation(prompt)
      try:
        fitted = vocabulary.fit_prompt(said, S, c["truncate_prompt"])
      except UserError as error:
        raise UserError(f"{example.source}: {error}") from None
      if len(fitted.whole) > S:
        long += 1
      elif fitted.ids and (ids := tuple(fitted.ids)) not in seen:
        seen[ids] = None
        opening = transcripts.opening(example.asked or prompt)
        splitter.add(opening, vocabulary.encode(opening), fitted.ids)
      if len(seen) == (most or -1):
        break
    is_validation_P = _split(splitter, c["validation_fraction"], len(seen), c["path"])
    writers = {split: pairs.RaggedWriter() for split in SPLITS}
    for ids, held_out in zip(seen, is_validation_P, strict=True):
      writers[SPLITS[int(held_out)]].append(list(ids))
    lines = reading.lines()
    if long:
      lines.append(f"{long:,} prompts are over {S} tokens, and left out")
    return {split: writer.finish() for split, writer in writers.items()}, lines

  # --- samples ------------------------------------------------------------------------

  def _sampled(
    self, prompts_P: pairs.Ragged, params: Any, directory: Path, split: str
  ) -> tuple[pairs.PairDataset, list[str]]:
    """The pairs of a split, and their statistics in words."""
    blank = pairs.Ragged(np.zeros(0, np.int32), np.zeros(len(prompts_P) + 1, np.int64))
    asked = pairs.PairDataset(prompts_P, (blank, blank))
    rows_at_once = self.setting.config.evaluation.batch_size
    turns = [
      (i, start)
      for i in range(len(self.chosen["temperatures"]))
      for start in range(0, len(asked), rows_at_once)
    ]
    parts = []
    with Meter(f"sampling ({split})", len(turns), "batches") as meter:
      for done, (i, start) in enumerate(turns, 1):
        stop = min(start + rows_at_once, len(asked))
        rows = np.arange(start, stop)
        # By both ends: a restart may take another number of rows at once.
        path = directory / f"part-{split}-{i}-{start}-{stop}.npz"
        if not hosts.on_first(path.exists):
          samples = self._batch(asked, rows, params, split, i)
          hosts.on_first(functools.partial(_write, path, samples))
        parts.append(_pairs(rows, read_npz(path), self.chosen["temperatures"][i]))
        meter.reach(done)
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return self._assembled(asked.prompts, whole, split)

  def _batch(
    self,
    asked: pairs.PairDataset,
    rows: np.ndarray,
    params: Any,
    split: str,
    which: int,
  ) -> sampling.Samples:
    """Samples to the prompts of `rows`, at the temperature of that number."""
    setting, count = self.setting, 2 * self.chosen["pairs"]
    temperature = self.chosen["temperatures"][which]
    sampler = setting.sampler(self.model.start, temperature)
    key = setting.key("sampled", split, which)
    T = setting.config.response_length
    return setting.map_pairs(
      lambda batch: evaluation.sample(sampler, params, batch, key, count, T),
      asked,
      rows,
      "sampling",
    )

  def _assembled(
    self, prompts_P: pairs.Ragged, whole: Mapping[str, np.ndarray], split: str
  ) -> tuple[pairs.PairDataset, list[str]]:
    """Pairs whose responses differ, with statistics in words."""
    tokens_Qx2xT, lengths_Qx2 = whole["tokens"], whole["lengths"]
    same_Q = (tokens_Qx2xT[:, 0] == tokens_Qx2xT[:, 1]).all(axis=1)
    same_Q &= lengths_Qx2[:, 0] == lengths_Qx2[:, 1]
    kept = np.flatnonzero(~same_Q)
    if not len(kept):
      raise UserError(
        f"{self.name}: both responses of every pair are the same: raise "
        "sampled.temperatures"
      )
    left = len(np.unique(whole["rows"][kept]))
    if split == "validation" and left < MIN_VALIDATION_PROMPTS:
      raise UserError(
        f"{self.name}: {left} validation prompts have two different responses, but "
        f"{MIN_VALIDATION_PROMPTS} are needed: raise sampled.temperatures, "
        "sampled.pairs or sampled.validation_fraction"
      )
    S = self.setting.lengths["prompt_length"]
    responses = [
      pairs.Ragged.from_padded(tokens_Qx2xT[kept, n], lengths_Qx2[kept, n])
      for n in (0, 1)
    ]
    dataset = pairs.PairDataset(
      pairs.Ragged.from_padded(*prompts_P.padded(whole["rows"][kept], S)),
      (responses[0], responses[1]),
      {"temperature": whole["temperature"][kept]},
    )
    median, long = np.quantile(lengths_Qx2[kept], [0.5, 0.9], method="higher")
    return dataset, [
      f"{len(kept):,} pairs to {len(prompts_P):,} prompts; {same_Q.sum():,} of "
      "identical responses are left out",
      f"response tokens: median {median}, 90 % {long}; "
      f"{whole['ended'][kept].mean():.1%} of responses end by themselves",
    ]

  def _finish(self, directory: Path, report: Mapping[str, Any]) -> None:
    write_json(directory / "statistics.json", report)
    for part in directory.glob("part-*.npz"):
      part.unlink()


def _split(splitter: Splitter, fraction: float, count: int, path: str) -> np.ndarray:
  """Which prompts are for validation; both splits have enough."""
  is_validation_P = splitter.is_validation(fraction) if count else np.zeros(0, bool)
  held_out = int(is_validation_P.sum())
  if held_out < MIN_VALIDATION_PROMPTS or held_out == count:
    raise UserError(
      f"{path}: {held_out} of {count} prompts that fit are for validation, but judges "
      f"need at least {MIN_VALIDATION_PROMPTS}, and some to train on: give more "
      "prompts, raise prompt_length, or change sampled.validation_fraction "
      f"(it is {fraction})"
    )
  return is_validation_P


def _write(path: Path, samples: sampling.Samples) -> None:
  write_npz(
    path,
    tokens=samples.tokens_BxNxT,
    lengths=samples.lengths_BxN,
    ended=samples.ended_BxN,
  )


def _pairs(
  rows: np.ndarray, samples: Mapping[str, np.ndarray], temperature: float
) -> dict[str, np.ndarray]:
  """Samples 0 and 1 of a prompt are a pair, and so on: arrays with a row for each."""
  shaped = {
    key: x.reshape(-1, 2, *x.shape[2:])  # BxNx... -> Qx2x...
    for key, x in samples.items()
  }
  count = len(shaped["lengths"])
  return shaped | {
    "rows": np.repeat(rows, count // len(rows)),
    "temperature": np.full(count, temperature, np.float32),
  }


@dataclasses.dataclass(frozen=True, eq=False)
class RatedData(Artefact):
  """Both splits of sampled pairs in the order of a utility with raters' noise."""

  kind: ClassVar[str] = "rate"
  sampled: SampledData
  rule: rules.Noisy

  def settings(self) -> dict[str, Any]:
    return self.setting.sizes | {
      "rule": {"name": self.rule.name, **self.rule.described()}
    }

  def make(self, directory: Path, read: Read) -> None:
    judge = RuleJudge(self.rule, self.setting.vocabulary)
    report = {}
    for split in SPLITS:
      dataset = pairs.PairDataset.load(read(self.sampled) / split)
      (directory / split).mkdir(exist_ok=True)
      label(self.setting, judge, (), dataset, directory / split)
      hosts.wait_for_first()
      report[split] = self._lines(pairs.PairDataset.load(directory / split))
      for line in report[split]:
        progress(f"{self.name} ({split}): {line}")
    hosts.on_first(lambda: write_json(directory / "statistics.json", report))

  def _lines(self, dataset: pairs.PairDataset) -> list[str]:
    gap_P = self.setting.true_gap(dataset, np.arange(len(dataset)))
    assert gap_P is not None
    agree = evaluation.classified(np.ones(len(dataset)), gap_P)
    first, second = (part.lengths for part in dataset.responses)
    longer = (first > second)[first != second]
    share = longer.mean() if len(longer) else 0.0
    return [
      f"{len(dataset):,} pairs; where the utility has an order labels keep it in "
      f"{agree.mean():.1%}",
      f"the longer response is preferred in {share:.1%} of pairs that differ in length",
    ]
