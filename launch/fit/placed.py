"""A study on a mesh of devices that are elsewhere, as are its data and checkpoints."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alignment.data import vocabularies
from alignment.study.graph import Study
from alignment.study.models import Models
from alignment.study.setting import Setting

_STAND_IN = vocabularies.WordVocabulary(("w",))


def placed(config: ConfigDict, mesh: Any) -> Study:
  """The first world's graph, of which only programs are asked.

  A vocabulary or checkpoint that is elsewhere is not needed: models then have the shape
  and rows that are published for the sizes that are named. The mesh may be abstract.
  """
  elsewhere = vocabulary_is_elsewhere(config)
  vocabulary = _STAND_IN if elsewhere else vocabularies.from_config(config.vocab)
  models = Models.of(config, vocabulary, at_hand=False, stand_in=elsewhere)
  world = config.first_world
  return Study(Setting(config, world, vocabulary, mesh, models, language=None))


def vocabulary_is_elsewhere(config: ConfigDict) -> bool:
  """Whether it is kept in files, and they are not on this machine."""
  kind, path = config.vocab.kind, config.vocab.path
  in_files = kind in ("sentencepiece", "huggingface")
  return in_files and not (path and Path(path).exists())
