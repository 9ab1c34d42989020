"""What the stages of one world share: its vocabulary, mesh, models and truth."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from alignment.core import rules, sampling
from alignment.core.host_judges import RuleJudge
from alignment.core.rows import map_rows
from alignment.data import pairs, toy, vocabularies
from alignment.models.protocol import Model
from alignment.runtime import sharding
from alignment.runtime.tracking import Tracking
from alignment.study import schema_checks
from alignment.study.models import Models, TrainableJudge
from alignment.study.parameters import Parameters
from alignment.study.programs import Shapes
from alignment.study.recipes import PreferenceRecipe, Start
from alignment.types import UserError

Utility = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens_PxT, lengths_P)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """What all stages of one world share; `Setting.of` makes it from a configuration."""

  config: ConfigDict
  world: int
  vocabulary: vocabularies.Vocabulary
  mesh: Mesh
  models: Models
  language: toy.Language | None  # None where the data is real and the truth unknown

  @classmethod
  def of(
    cls,
    config: ConfigDict,
    world: int,
    vocabulary: vocabularies.Vocabulary | None = None,
  ) -> "Setting":
    """The setting of a study that is to run on the devices of this process.

    The vocabulary is read, unless it is given.

    Raises:
      UserError: for a vocabulary, mesh or language that cannot be.
    """
    vocabulary = vocabulary or vocabularies.from_config(config.vocab)
    return cls(
      config=config,
      world=world,
      vocabulary=vocabulary,
      mesh=sharding.make_mesh(**config.mesh),
      models=Models.of(config, vocabulary),
      language=language_of(config, world),
    )

  def with_vocabulary(self, name: str, own: Mapping[str, Any]) -> "Setting":
    """The same for a judge of that name which reads a vocabulary of its own.

    Args:
      name: for messages.
      own: keys of `config.vocab`, and lengths in its tokens.

    Raises:
      UserError: for an unknown key, and for a vocabulary that cannot be.
    """
    config = self.config.copy_and_resolve_references().unlock()
    lengths = {
      "prompt_length": "prompt_length",
      "response_length": "response_length",
      "context_length": "judge_context_length",
    }
    for key, value in own.items():
      if key not in lengths and key not in config.vocab:
        choice = ", ".join([*config.vocab, *lengths])
        raise UserError(f"{name}.vocab has no '{key}'; there are {choice}")
      section, at = (config, lengths[key]) if key in lengths else (config.vocab, key)
      if not schema_checks.fits(value, section[at]):
        like = schema_checks.kind(section[at])
        raise UserError(f"{name}.vocab.{key} is {value!r}; give {like}")
      section[at] = value
    for length in lengths.values():
      if config[length] < 2:
        raise UserError(f"{name}.vocab: {length} is {config[length]}; give at least 2")
    try:
      vocabulary = vocabularies.from_config(config.vocab)
    except UserError as error:
      raise UserError(f"{name}: {error}") from None
    models = Models.of(config, vocabulary, self.models.at_hand)
    return dataclasses.replace(
      self, config=config, vocabulary=vocabulary, models=models
    )

  # --- layout ---

  @functools.cached_property
  def parameters(self) -> Parameters:
    """Shapes and layout of models' parameters, and their checkpoints."""
    return Parameters(self.models, self.mesh, sharding.rules(self.config.layout))

  def sampler(
    self, start: Start, temperature: float = 1.0, top_p: float = 1.0
  ) -> sampling.Sampler:
    """How a model samples, its parameters laid out for decoding meanwhile."""
    model, tensor = self.model(start), self.mesh.shape["tensor"]
    rules = sharding.rules(self.config.decode_layout)
    rules += model.layout_rules(tensor, decoding=True)
    return sampling.Sampler(
      model,
      self.vocabulary.ending_ids,
      temperature,
      top_p,
      sharding.Layout(self.mesh, rules),
    )

  def tracking(self, key: str) -> Tracking:
    """Who is told of the metrics of a run that is known by `key`."""
    return Tracking(tuple(self.config.tracking), self.config.task, key)

  @functools.cached_property
  def shapes(self) -> Shapes:
    return Shapes(self.mesh, **self.lengths)

  # --- sizes and models ---

  @property
  def lengths(self) -> dict[str, int]:
    c = self.config
    return {"prompt_length": c.prompt_length, "response_length": c.response_length}

  def model(self, start: Start) -> Model:
    return self.models.model(start)

  def judge(self, recipe: PreferenceRecipe) -> TrainableJudge:
    return self.models.judge(recipe)

  def map_pairs(
    self,
    function: Callable[[Any], Any],
    dataset: pairs.PairDataset,
    indices: np.ndarray | None = None,
    doing: str = "evaluating",
  ) -> Any:
    """`function(batch)` over a data set's rows, by default all, as host arrays."""
    indices = np.arange(len(dataset)) if indices is None else indices
    return map_rows(
      function,
      lambda rows: (dataset.batch(rows, **self.lengths),),
      indices,
      self.config.evaluation.batch_size,
      self.mesh,
      doing,
    )

  # --- what determines numbers, as artefacts say it ---

  @property
  def sizes(self) -> dict[str, Any]:
    """Of everything that holds tokens."""
    fingerprint = self.vocabulary.fingerprint
    return {"world": self.world, "vocabulary": fingerprint, **self.lengths}

  @property
  def numerics(self) -> dict[str, Any]:
    """Of everything that a model computes."""
    return self.sizes | {"model": {"dtype": self.config.model.dtype}}

  @property
  def judging(self) -> dict[str, Any]:
    """Of everything that a judge reads."""
    c = self.config
    return self.numerics | {
      "judge_context_length": c.judge_context_length,
      "truncate_prompt": c.data.truncate_prompt,
    }

  def seed(self, purpose: str, *parts: Any) -> int:
    """A 31-bit seed of this world, for one purpose."""
    return seed_of(purpose, self.world, *parts)

  def key(self, purpose: str, *parts: Any) -> Any:
    """A random key, likewise."""
    return jax.random.key(self.seed(purpose, *parts))

  # --- worlds whose truth is known ---

  @functools.cached_property
  def truth(self) -> rules.Rule | None:
    """The utility by which `config.rater` labels D_initial; None if it does not.

    Raises:
      UserError: for a rule, or an option of it, that does not exist.
    """
    if self.config.sampled.data != "initial":
      return None
    c = self.config.rater
    try:
      return rules.Rule.of(c.kind, dict(c.options))
    except UserError as error:
      raise UserError(f"rater: {error}") from None

  def utility(self, dataset: pairs.PairDataset, rows: np.ndarray) -> Utility | None:
    """True utilities of responses to the prompts of `rows`; None where unknown."""
    if self.truth is not None:
      return self._ruled(self.truth, dataset, rows)
    language, decode = self.language, self.vocabulary.decode
    if language is None:
      return None
    prompts = [decode(dataset.prompts[int(row)]).split() for row in rows]

    def utility(tokens_PxT: np.ndarray, lengths_P: np.ndarray) -> np.ndarray:
      responses = [
        decode(t[:n]).split() for t, n in zip(tokens_PxT, lengths_P, strict=True)
      ]
      return language.utilities(prompts, responses)

    return utility

  def _ruled(
    self, truth: rules.Rule, dataset: pairs.PairDataset, rows: np.ndarray
  ) -> Utility:
    batch = dataset.batch(rows, **self.lengths)
    judge = RuleJudge(truth, self.vocabulary)

    def utility(tokens_PxT: np.ndarray, lengths_P: np.ndarray) -> np.ndarray:
      shown = batch.replace(
        responses_BxNxT=tokens_PxT[:, None], lengths_BxN=lengths_P[:, None]
      )
      return judge.scores((), shown)[:, 0]

    return utility

  def true_gap(self, dataset: pairs.PairDataset, rows: np.ndarray) -> np.ndarray | None:
    """True utility of response 0 less response 1, of chosen rows of a data set."""
    utility = self.utility(dataset, rows)
    if utility is None:
      return None
    batch = dataset.batch(rows, **self.lengths)
    first, second = (
      utility(batch.responses_BxNxT[:, i], batch.lengths_BxN[:, i]) for i in (0, 1)
    )
    return first - second


def language_of(config: ConfigDict, world: int) -> toy.Language | None:
  """A world's language, if its data are generated.

  Raises:
    UserError: for a key of `data.language` that it does not have.
  """
  c = config.data
  if c.format != "toy":
    return None
  known = {field.name: field.default for field in dataclasses.fields(toy.Language)[1:]}
  for key, value in c.language.items():
    if key not in known:
      raise UserError(f"data.language has no '{key}'; there are {', '.join(known)}")
    like = known[key]
    pair = isinstance(like, tuple)
    if not schema_checks.fits(value, like) or (
      pair and [schema_checks.fits(end, 0.0) for end in value] != [True, True]
    ):
      words = "two numbers" if pair else schema_checks.kind(like)
      raise UserError(f"data.language.{key} is {value!r}; give {words}")
  return toy.Language(world, **c.language)


def seed_of(*parts: Any) -> int:
  """A 31-bit seed that is a function of its parts alone."""
  digest = hashlib.sha256(json.dumps(parts).encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1
