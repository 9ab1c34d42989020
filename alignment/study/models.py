"""Which model a recipe means: of a named size, or as the checkpoint it goes back to."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignment.core.judges import PreferenceModel
from alignment.core.pointwise import PointwiseJudge
from alignment.data import vocabularies
from alignment.models import huggingface, lora, registry
from alignment.models.protocol import Model
from alignment.models.reward import RewardModel
from alignment.study.recipes import PreferenceRecipe, Recipe, Start
from alignment.types import UserError

TrainableJudge = PreferenceModel | PointwiseJudge  # judges that are models


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
  """The models of one study."""

  vocabulary: vocabularies.Vocabulary
  numerics: dict[str, Any]  # config.model
  sft_inits: Mapping[str, str]  # where SFT starts, by size; "" has all other sizes'
  judging: dict[str, Any]  # a judge's context length, and where it cuts prompts
  lengths: tuple[int, int]  # of prompts and responses
  at_hand: bool = True  # False: a checkpoint that is elsewhere is of the named size
  stand_in: bool = False  # the vocabulary is elsewhere, this one is in its place
  _models: dict[tuple[str, str, lora.LoraSettings], Model] = dataclasses.field(
    default_factory=dict
  )
  _reward_models: dict[tuple[str, str, bool, lora.LoraSettings], RewardModel] = (
    dataclasses.field(default_factory=dict)
  )

  @classmethod
  def of(
    cls,
    config: ConfigDict,
    vocabulary: vocabularies.Vocabulary,
    at_hand: bool = True,
    stand_in: bool = False,
  ) -> "Models":
    return cls(
      vocabulary=vocabulary,
      numerics=dict(config.model),
      sft_inits={"": config.sft.init}
      | {size: c["init"] for size, c in config.sft.by_size.items() if "init" in c},
      judging={
        "context_length": config.judge_context_length,
        "truncate_prompt": config.data.truncate_prompt,
      },
      lengths=(config.prompt_length, config.response_length),
      at_hand=at_hand,
      stand_in=stand_in,
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
      origin = self.origin(start)
      if origin is not None and huggingface.is_reward_model(origin):
        raise UserError(
          f"{origin}: a reward model, which predicts no tokens: give a language model, "
          "or, if it is a judge's start, set kind='pointwise' and lora.rank=0"
        )
      self._models[key] = lora.wrap(self._read(start), adapters)
    return self._models[key]

  def reward_model(self, recipe: PreferenceRecipe) -> RewardModel:
    """The same with a scalar head.

    Raises:
      UserError: as `model`; for a reward model's checkpoint with another head, and for
        one that is none, where it is to judge without any training.
    """
    key = recipe.size, recipe.init, recipe.imported, recipe.lora
    if key not in self._reward_models:
      if self.at_hand:
        self._check_reward_model(recipe)
      body = lora.wrap(self._read(recipe), recipe.lora)
      self._reward_models[key] = RewardModel(body)
    return self._reward_models[key]

  def _check_reward_model(self, recipe: PreferenceRecipe) -> None:
    origin = self.origin(recipe)
    if origin is not None and huggingface.is_reward_model(origin):
      huggingface.check_reward_model(origin)
    elif recipe.imported:
      raise UserError(
        f"{origin}: no reward model, as its architectures do not end in "
        "ForSequenceClassification: a judge that starts here needs steps above 0"
      )

  def _read(self, start: Start) -> Model:
    if self.stand_in:
      return self._model_of_any_vocabulary(start)
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

  def _model_of_any_vocabulary(self, start: Start) -> Model:
    """With the rows of the checkpoint, or of the published ones of its size."""
    origin = self.origin(start)
    if origin is not None:
      cfg = huggingface.read_config(origin, **self.numerics)
    else:
      cfg = registry.config(start.size, **self.numerics)
    # As usual, the last rows have no token.
    return registry.model(dataclasses.replace(cfg, live_ids=cfg.vocab_rows - 1))

  def origin(self, start: Start) -> Path | None:
    """The Hugging Face checkpoint a model goes back to, through the SFT or not.

    Raises:
      UserError: if none is named.
    """
    init = start.init
    if init == "sft":
      init = self.sft_inits.get(start.size, self.sft_inits[""])
    named = init not in ("", "sft", "scratch")
    directory = Path(init.replace("{size}", start.size))
    if not self.at_hand:
      return directory if named and (directory / "config.json").exists() else None
    if init in ("", "sft"):
      raise UserError(
        f"sft.init is '{init}': give a checkpoint's directory, or 'scratch'"
      )
    return directory if named else None

  def judge(self, recipe: PreferenceRecipe) -> TrainableJudge:
    """A judge that can read the study's prompts and responses.

    Raises:
      UserError: as `model`; of a preference model, also if its context is too short.
    """
    judge: TrainableJudge
    if recipe.kind == "pointwise":
      judge = PointwiseJudge(self.reward_model(recipe))
    else:
      markers = self.vocabulary.judge_markers
      judge = PreferenceModel(self.model(recipe), markers, **self.judging)
    judge.check(*self.lengths)
    return judge
