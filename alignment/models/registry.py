"""Which family a model is of: by the name of a size, or by a checkpoint's model_type.

The only place outside the families' own files that knows them all. A new family is an
entry here, and one in `huggingface.FORMATS` if it has checkpoints.
"""

from typing import Any

from alignment.models import flash, sizes, t5
from alignment.models.decoder import Decoder
from alignment.models.decoder_config import FAMILIES, DecoderConfig
from alignment.models.protocol import Config, Model
from alignment.types import UserError

MODEL_TYPES = ("t5", *FAMILIES)
SIZES = (*sizes.T5, *sizes.DECODERS)


def config(size: str, **overrides: Any) -> Config:
  """A named size, with other values for some of its configuration's fields.

  Raises:
    UserError: for an unknown size.
  """
  if size in sizes.T5:
    return t5.config(size, **overrides)
  if size in sizes.DECODERS:
    named = sizes.DECODERS[size]
    return DecoderConfig(**FAMILIES[named["model_type"]] | named | overrides)
  raise UserError(f"model.size '{size}' is unknown; choose from {', '.join(SIZES)}")


def check_attention(cfg: Config, platform: str) -> None:
  """Raises UserError if a kernel is asked for that the platform does not have.

  T5's configuration itself refuses one.
  """
  if isinstance(cfg, DecoderConfig):
    flash.check(cfg, platform)


def model(cfg: Config) -> Model:
  """The model of a configuration.

  Raises:
    TypeError: for a configuration of no family.
  """
  if isinstance(cfg, t5.T5Config):
    return t5.T5(cfg)
  if isinstance(cfg, DecoderConfig):
    return Decoder(cfg)
  raise TypeError(f"{type(cfg).__name__} is the configuration of no family")
