"""Which model a recipe means: of a named size, or as the checkpoint it goes back to."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignment.core import judges
from alignment.data import vocabularies
from alignment.models import huggingface, lora, registry
from alignment.models.protocol import Model
from alignment.study.recipes import PreferenceRecipe, Recipe, Start
from alignment.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
  """The models of one study."""

  vocabulary: vocabularies.Vocabulary
  numerics: dict[str, Any]  # config.model
  sft_init: str
  judging: dict[str, Any]  # a judge's context length, and where it cuts prompts
  lengths: tuple[int, int]  # of prompts and responses
  at_hand: bool = True  # False: a checkpoint that is elsewhere is of the named size
  _models: dict[tuple[str, str, lora.LoraSettings], Model] = dataclasses.field(
    default_factory=dict
  )

  @classmethod
  def of(
    cls, config: ConfigDict, vocabulary: vocabularies.Vocabulary, at_hand: bool = True
  ) -> "Models":
    return cls(
      vocabulary=vocabulary,
      numerics=dict(config.model),
      sft_init=config.sft.init,
      judging={
        "context_length": config.judge_context_length,
        "truncate_prompt": config.data.truncate_prompt,
      },
      lengths=(config.prompt_length, config.response_length),
      at_hand=at_hand,
    )

  def model(self, start: Start) -> Model:
    """Of a named size, or as the checkpoint it starts from, which is read once.

    A recipe's has its adapters.

    Raises:
      UserError: for an unknown size, a checkpoint that cannot be read, one that was
        trained with another vocabulary, or adapters of what it does not have.
    """
    adapters = start.lora if isinstance(start, Recipe) else lora.LoraSettings()
    key = start.size, start.init, adapters
    if key not in self._models:
      self._models[key] = lora.wrap(self._model(start), adapters)
    return self._models[key]

  def _model(self, start: Start) -> Model:
    vocabulary = self.vocabulary
    chosen = self.numerics | {
      "live_ids": vocabulary.size, "dead_ids": vocabulary.dead_ids
    }  # fmt: skip
    origin = self.origin(start)
    if origin is not None:
      vocabularies.check_checkpoint(origin, vocabulary)
      return registry.model(huggingface.read_config(origin, **chosen))
    rows = -(-vocabulary.size // 128) * 128  # as T5 rounds 32,100 ids up to 32,128
    return registry.model(registry.config(start.size, vocab_rows=rows, **chosen))

  def origin(self, start: Start) -> Path | None:
    """The Hugging Face checkpoint a model goes back to, through the SFT or not.

    Raises:
      UserError: if none is named.
    """
    init = self.sft_init if start.init == "sft" else start.init
    named = init not in ("", "sft", "scratch")
    directory = Path(init.replace("{size}", start.size))
    if not self.at_hand:
      return directory if named and (directory / "config.json").exists() else None
    if init in ("", "sft"):
      raise UserError(
        f"sft.init is '{init}': give a checkpoint's directory, or 'scratch'"
      )
    return directory if named else None

  def judge(self, recipe: PreferenceRecipe) -> judges.PreferenceModel:
    """A preference model whose input holds two responses.

    Raises:
      UserError: as `model`, and if its context is too short.
    """
    markers = self.vocabulary.judge_markers
    judge = judges.PreferenceModel(self.model(recipe), markers, **self.judging)
    judge.check(*self.lengths)
    return judge
