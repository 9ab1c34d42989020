"""Reward models in files: transformers' sequence classifiers that have one label.

Beside the tensors of the body such a checkpoint has `score.weight`, [1, D], instead of
what predicts tokens. Its `architectures` say that it is one.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from alignment.models import registry, reward
from alignment.models.huggingface import tensors
from alignment.models.huggingface.settings import read_json
from alignment.types import UserError

_SUFFIX = "ForSequenceClassification"
_NAME = "score.weight"
_PATH = (reward.SCORE, "weight")
_LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def is_reward_model(directory: str | os.PathLike) -> bool:
  """Whether a checkpoint is a sequence classifier, by its config.json."""
  names = read_json(Path(directory) / "config.json").get("architectures")
  return isinstance(names, list) and any(str(name).endswith(_SUFFIX) for name in names)


def check_reward_model(directory: str | os.PathLike) -> None:
  """Whether such a checkpoint gives one number; of its tensors only names are read.

  Raises:
    UserError: if it has another head, or no readable tensors.
  """
  directory = Path(directory)
  with contextlib.ExitStack() as stack:
    files = tensors.open_all(directory, stack)
    if _NAME not in files:
      raise UserError(
        f"{directory}: tensor '{_NAME}' is missing: no reward model's head"
      )
    labels = files[_NAME].handle.get_slice(_NAME).get_shape()[0]
  if labels != 1:
    raise UserError(
      f"{directory}: its head gives {labels} numbers (num_labels), but a reward model "
      "gives one: name a checkpoint that was trained with num_labels=1"
    )


def network(cfg: Any) -> reward.RewardModel:
  """The reward model whose body has this configuration."""
  return reward.RewardModel(registry.model(cfg))


def is_head(path: tuple) -> bool:
  return path == _PATH


def head(shape: tuple[int, ...]) -> tensors.Tensor:
  """The head's tensor, whatever the family."""
  return tensors.Tensor(
    _NAME, (1, *shape), (_PATH,), lambda x: [x[0]], lambda xs: xs[0][None]
  )


def described(entries: dict[str, Any]) -> dict[str, Any]:
  """config.json of the classifier that has this language model's body.

  Raises:
    UserError: if transformers has none of this kind.
  """
  (name,) = entries["architectures"]
  if not name.endswith("ForCausalLM"):
    raise UserError(
      f"a reward model of the family '{entries['model_type']}' has no layout that "
      "transformers reads: export one of a decoder-only model"
    )
  # The whole Gemma 3 sees images, too.
  name = name.replace("Gemma3For", "Gemma3TextFor").replace("ForCausalLM", _SUFFIX)
  return entries | _LABELS | {"architectures": [name]}
