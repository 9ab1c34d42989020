"""What the stages of one world share: vocabulary, mesh, models, checkpoints, truth."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from alignment.core import judges
from alignment.core.rows import map_rows
from alignment.data import pairs, toy, vocabularies
from alignment.models import huggingface, t5
from alignment.runtime import checkpoint as checkpoint_lib
from alignment.runtime import sharding
from alignment.runtime.files import read_json
from alignment.types import Params, UserError

Inputs = Mapping[str, Path]
Utility = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens_PxT, lengths_P)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """What all stages of one world share, made from its config once per process."""

  config: ConfigDict
  world: int

  @functools.cached_property
  def vocabulary(self) -> vocabularies.Vocabulary:
    return vocabularies.from_config(self.config.vocab)

  @functools.cached_property
  def mesh(self) -> Mesh:
    return sharding.make_mesh(**self.config.mesh)

  @functools.cached_property
  def rules(self) -> sharding.Rules:
    return sharding.rules(self.config.layout) + sharding.T5_RULES

  @functools.cached_property
  def decoding(self) -> sharding.Layout:
    """Where parameters lie while they sample."""
    own = sharding.rules(self.config.decode_layout)
    return sharding.Layout(self.mesh, own + sharding.T5_DECODE_RULES)

  @property
  def lengths(self) -> dict[str, int]:
    c = self.config
    return {"prompt_length": c.prompt_length, "response_length": c.response_length}

  def model(self, role: Any) -> t5.T5:
    """A role's model: of a named size, or as the checkpoint it starts from."""
    live_ids = self.vocabulary.size
    numerics = {**self.config.model, "live_ids": live_ids}
    origin = self.origin(role)
    if origin is not None:
      vocabularies.check_checkpoint(origin, self.vocabulary)
      return t5.T5(huggingface.read_config(origin, **numerics))
    rows = -(-live_ids // 128) * 128  # T5 rounds 32,100 ids up to 32,128 rows
    return t5.T5(t5.config(role["size"], vocab_rows=rows, **numerics))

  def origin(self, role: Any) -> Path | None:
    """The Hugging Face checkpoint a role goes back to, through the SFT or not."""
    init = self.config.sft.init if role["init"] == "sft" else role["init"]
    if init in ("", "sft"):
      raise UserError(
        f"sft.init is '{init}': give a checkpoint's directory, or 'scratch'"
      )
    if init == "scratch":
      return None
    origin = Path(init.replace("{size}", role["size"]))
    if (other := self._size_of.setdefault(origin, role["size"])) != role["size"]:
      raise UserError(
        f"{origin}: cannot be both {other} and {role['size']}; put {{size}} in its path"
      )
    return origin

  @functools.cached_property
  def _size_of(self) -> dict[Path, str]:
    """Sizes by the Hugging Face checkpoint that models of them start from."""
    return {}

  def preference_model(self, role: Any) -> judges.PreferenceModel:
    c = self.config
    preference_model = judges.PreferenceModel(
      self.model(role),
      self.vocabulary.judge_markers,
      c.judge_context_length,
      c.data.truncate_prompt,
    )
    preference_model.check(c.prompt_length, c.response_length)
    return preference_model

  def abstract_params(self, model: t5.T5) -> Params:
    """Shapes, dtypes and layout of a model's parameters."""
    return _abstract_params(model, self.mesh, self.rules)

  def abstract_frozen(self, model: t5.T5) -> Params:
    """`abstract_params` of a model that is only read (`frozen`)."""
    return _abstract_frozen(model, self.mesh, self.rules)

  def parameter_count(self, model: t5.T5) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params(model)))

  def load(self, directory: Path, model: t5.T5, step: int | None = None) -> Params:
    """Parameters of a finished model artefact: those it settled on, or of `step`."""
    return self._restore(directory, self.abstract_params(model), step)

  def load_frozen(
    self, directory: Path, model: t5.T5, step: int | None = None
  ) -> Params:
    """The same for a model that is only read (`abstract_frozen`)."""
    return self._restore(directory, self.abstract_frozen(model), step)

  def _restore(self, directory: Path, abstract: Params, step: int | None) -> Params:
    if step is None:
      step = read_json(directory / "model.json")["step"]
    return checkpoint_lib.restore_params(directory, step, abstract)

  def initial_params(self, role: Any, inputs: Inputs, seed: int) -> Params:
    """Where a role starts: its input's checkpoint, a Hugging Face one, or scratch."""
    model = self.model(role)
    if "init" in inputs:
      return self.load(inputs["init"], model)
    if role["init"] == "scratch":
      return sharding.init_sharded(
        model.init, jax.random.key(seed), mesh=self.mesh, rules=self.rules
      )
    origin = self.origin(role)
    assert origin is not None
    params = huggingface.read_params(origin, model.cfg)
    return jax.tree.map(
      lambda p, a: jax.make_array_from_callback(p.shape, a.sharding, p.__getitem__),
      params,
      self.abstract_params(model),
    )

  def map_pairs(self, function, dataset: pairs.PairDataset, indices=None) -> Any:
    """`function(batch)` over a data set's rows, by default all, as host arrays."""
    indices = np.arange(len(dataset)) if indices is None else indices
    return map_rows(
      function,
      lambda rows: (dataset.batch(rows, **self.lengths),),
      indices,
      self.config.evaluation.batch_size,
      self.mesh,
    )

  # --- worlds whose truth is known ---

  @functools.cached_property
  def language(self) -> toy.Language | None:
    """The generated language, or None where the data is real and the truth unknown."""
    c = self.config.data
    if c.format != "toy":
      return None
    known = [field.name for field in dataclasses.fields(toy.Language)][1:]
    for key in c.language:
      if key not in known:
        raise UserError(f"data.language has no '{key}'; there are {', '.join(known)}")
    return toy.Language(self.world, **c.language)

  def utility(self, dataset: pairs.PairDataset, rows: np.ndarray) -> Utility | None:
    """True utilities of responses to the prompts of `rows`; None where unknown."""
    language, decode = self.language, self.vocabulary.decode
    if language is None:
      return None
    prompts = [decode(dataset.prompts[int(row)]).split() for row in rows]

    def utility(tokens_PxT: np.ndarray, lengths_P: np.ndarray) -> np.ndarray:
      responses = (
        decode(t[:n]).split() for t, n in zip(tokens_PxT, lengths_P, strict=True)
      )
      both = zip(prompts, responses, strict=True)
      return np.array([language.utility(p, r) for p, r in both])

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


@functools.cache  # tracing `init` takes longer than many a step of a small model
def _abstract_params(model: t5.T5, mesh: Mesh, rules: sharding.Rules) -> Params:
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sharding.with_layout(shapes, sharding.shardings(shapes, mesh, rules))


@functools.cache
def _abstract_frozen(model: t5.T5, mesh: Mesh, rules: sharding.Rules) -> Params:
  params = _abstract_params(model, mesh, rules)
  shapes = jax.eval_shape(model.frozen, params)
  return sharding.with_layout(shapes, jax.tree.map(lambda p: p.sharding, params))


def seed_of(*parts: Any) -> int:
  """A 31-bit seed that is a function of its parts alone."""
  digest = hashlib.sha256(json.dumps(parts).encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1
