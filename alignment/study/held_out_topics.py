"""Artefacts of a judge's benchmark: trained on some topics, asked about the others.

The pairs of one preference file, whose prompts are the topics. Topics that share their
beginning (the two sides of one debate) are held out together, and whole. They are dealt
into parts; fold k holds out part k. A fold is a world of its own to `Setting`: its
seeds, and so its judge's head and the order of its pairs, are its own.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any, ClassVar

from ml_collections import ConfigDict
import numpy as np

from alignment.analysis.topics import HeldOut
from alignment.core import audits, evaluation
from alignment.core.judges import PreferenceModel
from alignment.data import order, pairs, tokenizer
from alignment.data.examples import Example, Reading
from alignment.runtime.files import read_npz, write_npz
from alignment.study import recipe_checks, recipes, schema, schema_checks
from alignment.study.artefacts import Read
from alignment.study.recipes import PreferenceRecipe
from alignment.study.setting import Setting
from alignment.study.stages.data import PairData
from alignment.study.stages.judging import margins_of, spread
from alignment.study.stages.trained_judges import TrainedJudge
from alignment.types import UserError

MARGINS = "margins.npz"
SEEN = 200  # pairs of the topics that it learned from, to compare with


@dataclasses.dataclass(frozen=True)
class Division:
  """How topics are dealt into parts, and how many pairs of each are asked about.

  Attributes:
    parts: how many; with 4, a fold holds out a quarter of what is held out together.
    pattern: a regular expression: topics go together where what it matches at their
      beginning is the same.
    pairs_per_topic: chosen by `seed`; 0 is all.
    seed: of both choices.
  """

  parts: int = 4
  pattern: str = "[^?]*"
  pairs_per_topic: int = 100
  seed: int = 0

  def __post_init__(self):
    """Raises UserError for what is no pattern, and for numbers below 0."""
    for key in ("pairs_per_topic", "seed"):
      if getattr(self, key) < 0:
        raise UserError(f"--{key} is {getattr(self, key)}; give 0 or more")
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise UserError(f"--pattern is no regular expression: {error}") from None

  def held_out(self, topics: Sequence[str], fold: int) -> set[str]:
    """The topics that a fold holds out, of the topics of all pairs.

    Raises:
      UserError: if there are fewer groups of topics than parts.
    """
    groups = sorted({self._group(topic) for topic in topics})
    if len(groups) < self.parts:
      raise UserError(
        f"{len(groups)} groups of topics cannot be dealt into {self.parts} parts: "
        "give fewer --parts, or a --pattern that tells more of them apart"
      )
    dealt = order.index_for(0, len(groups), len(groups), self.seed)
    chosen = {groups[i] for i in np.array_split(dealt, self.parts)[fold]}
    return {topic for topic in set(topics) if self._group(topic) in chosen}

  def asked(self, topics: Sequence[str]) -> np.ndarray:
    """Positions of the pairs that are asked about, of held-out pairs' topics."""
    topics_P = np.array(topics)
    rows = []
    for topic in np.unique(topics_P):
      of_topic = np.flatnonzero(topics_P == topic)
      shuffled = order.index_for(0, len(of_topic), len(of_topic), self.seed)
      rows.append(of_topic[shuffled[: self.pairs_per_topic or None]])
    return np.sort(np.concatenate(rows))

  def _group(self, topic: str) -> str:
    match = re.match(self.pattern, topic)
    return match[0] if match else topic


@dataclasses.dataclass(frozen=True, eq=False)
class TopicPairs(PairData):
  """The pairs of a file, `validation/` being those that its fold holds out.

  Columns of every pair: its `topic`, as text, and the `characters` of both responses.
  A topic is read as what a user says, and so is written by the chat template.
  """

  kind: ClassVar[str] = "topic_pairs"
  division: Division

  def settings(self) -> dict[str, Any]:
    return super().settings() | {"division": dataclasses.asdict(self.division)}

  def _tokenized(self, reading: Reading) -> dict[str, tokenizer.Tokenized]:
    examples = list(self.examples(reading))
    for example in examples:
      if not isinstance(example.prompt, str):
        raise UserError(
          f"{example.source}: field 'prompt' is a list of messages: a topic is a text"
        )
    division = self.division
    held_out = division.held_out([_topic(e) for e in examples], self.setting.world)
    train = [e for e in examples if _topic(e) not in held_out]
    validation = [e for e in examples if _topic(e) in held_out]
    rows = division.asked([_topic(e) for e in validation])
    return {
      "train": self._of(train, reading),
      "validation": self._of([validation[i] for i in rows], reading),
    }

  def _of(self, examples: Sequence[Example], reading: Reading) -> tokenizer.Tokenized:
    """These pairs, but for those that cannot be told apart by what is read of them."""
    collected, kept = self.new_tokenizer(reading), []
    for example in examples:
      dropped = reading.dropped.total()
      said = ({"role": "user", "content": _topic(example)},)
      collected.add(example._replace(prompt=said))
      if reading.dropped.total() == dropped:
        kept.append(example)
    dataset, statistics = collected.split(0.0)["train"]
    sizes = [(len(e.chosen), len(e.rejected)) for e in kept]
    topics = np.array([_topic(e) for e in kept])
    characters_Px2 = np.array(sizes, np.int32)
    columns = {"topic": topics, "characters": characters_Px2}
    return tokenizer.Tokenized(dataset.with_columns(**columns), statistics)


def _topic(example: Example) -> str:
  assert isinstance(example.prompt, str)
  return example.prompt


@dataclasses.dataclass(frozen=True, eq=False)
class TopicJudge(TrainedJudge):
  """A judge as its last step left it, and its margins of all held-out pairs.

  No step is chosen, so that nothing of a held-out topic was looked at.
  """

  kind: ClassVar[str] = "topic_judge"
  data: TopicPairs

  def _report(self, read: Read, steps: Sequence[int]) -> dict[str, Any]:
    setting, judge, data = self.setting, self.own_judge(), read(self.data)
    validation = pairs.PairDataset.load(data / "validation")
    train_set = pairs.PairDataset.load(data / "train")
    step = steps[-1]
    params = self.load_fixed(read, step)
    margins = functools.partial(margins_of, setting, judge, params)
    held_out = margins(validation)
    write_npz(read(self) / MARGINS, margins=held_out)
    seen = margins(train_set, spread(SEEN, len(train_set)))
    report = {
      "step": step,
      "validation_accuracy": float(evaluation.outcome(held_out).mean()),
      "train_accuracy": float(evaluation.outcome(seen).mean()),
    }
    if isinstance(judge, PreferenceModel):
      orders = setting.map_pairs(
        lambda batch: evaluation.both_orders(judge, params, batch), validation
      )
      report["orders_agree"] = audits.orders_agree(*orders)
    return report

  def held_out(self, read: Read) -> HeldOut:
    """Of a finished judge."""
    validation = pairs.PairDataset.load(read(self.data) / "validation")
    lengths = [responses.lengths for responses in validation.responses]
    return HeldOut(
      folds_P=np.full(len(validation), self.setting.world),
      topics_P=np.asarray(validation.columns["topic"]),
      margins_P=read_npz(read(self) / MARGINS, "margins")["margins"].astype(float),
      characters_Px2=np.asarray(validation.columns["characters"]),
      tokens_Px2=np.stack(lengths, axis=1),
    )


def get_config(
  model: str,
  data: str,
  kind: str,
  lengths: tuple[int, int],
  dtype: str = "bfloat16",
  **training: Any,
) -> ConfigDict:
  """The configuration of a benchmark; `training` are keys of a judge's role.

  Args:
    model: a Hugging Face directory.
    data: a preference file.
    kind: pairwise or pointwise.
    lengths: tokens of a prompt, and those that are read of a response.
    dtype: of products.
    training: see `schema.role`.
  """
  c = schema.get_config()
  c.task = "judge_benchmark"
  c.data.update({"path": data, "on_bad_pair": "skip"})
  c.vocab.update({"kind": "huggingface", "path": model})
  c.prompt_length, c.response_length = lengths
  c.sft.init = model
  # A step takes half as long on a CPU as with layers that are stacked.
  c.model.update({"dtype": dtype, "remat": "none", "scan_layers": False})
  c.evaluation.batch_size = 16
  c.log_every, c.save_every = 5, 50
  optimizer = schema.optimizer(name="adamw", b2=0.999)
  c.golden_pm.update({"size": "own", "init": model, "kind": kind, "evaluations": 1})
  c.golden_pm.update({"optimizer": optimizer} | training)
  schema_checks.check(c)
  schema.expand_paths(c)
  return c


def judges(config: ConfigDict, division: Division, folds: int) -> Iterator[TopicJudge]:
  """The judges of the first folds.

  Raises:
    UserError: for a model that cannot be read, training that cannot be, or more folds
      than parts.
  """
  recipe = PreferenceRecipe.of(config.golden_pm, "golden_pm")
  recipe_checks.check_recipe("judge", recipe)
  recipe_checks.check_judge("judge", recipe)
  if not 1 <= folds <= division.parts:
    raise UserError(f"--folds is {folds}, but there are {division.parts} --parts")
  setting = Setting.of(config, 0)
  if config.golden_pm.kind == "pairwise":  # whole prompts, whatever the marks take
    m = setting.vocabulary.judge_markers
    marks = len(m.before_first) + len(m.before_second) + len(m.end)
    config.judge_context_length = (
      config.prompt_length + 2 * config.response_length + marks
    )
    setting = Setting.of(config, 0, setting.vocabulary)
  chosen: Mapping[str, Any] = recipes.plain(config.data)
  for fold in range(folds):
    of_fold = dataclasses.replace(setting, world=fold)
    data = TopicPairs(f"topics_{fold}", of_fold, chosen, division)
    yield TopicJudge(f"{recipe.kind}_{fold}", of_fold, recipe, data, None)
