"""A study on a mesh of devices that are elsewhere, as are its data and checkpoints."""

import functools
from typing import Any

from ml_collections import ConfigDict

from alignment.data import vocabularies
from alignment.study.graph import Study
from alignment.study.models import Models
from alignment.study.setting import Setting, language_of

T5_LIVE_IDS = 32_100


def placed(config: ConfigDict, mesh: Any) -> Study:
  """The first world's graph, of which only programs are asked.

  Its vocabulary is one of the size of T5's where no file is named, its checkpoints are
  models of the sizes that are named. The mesh may be abstract.
  """
  if config.vocab.kind == "sentencepiece" and not config.vocab.path:
    vocabulary = _stand_in()
  else:
    vocabulary = vocabularies.from_config(config.vocab)
  models = Models.of(config, vocabulary, at_hand=False)
  world = config.first_world
  language = language_of(config, world)
  return Study(Setting(config, world, vocabulary, mesh, models, language))


@functools.cache
def _stand_in() -> vocabularies.Vocabulary:
  others = vocabularies.WordVocabulary(("w",)).size - 1
  words = tuple(f"w{i}" for i in range(T5_LIVE_IDS - others))
  return vocabularies.WordVocabulary(words)
