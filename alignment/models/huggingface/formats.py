"""What a family says about its files."""

from collections.abc import Callable, Iterable
import dataclasses
from pathlib import Path
from typing import Any

from alignment.models.huggingface.tensors import Tensor

Parameters = Iterable[tuple[tuple, tuple[int, ...]]]  # paths and shapes


@dataclasses.dataclass(frozen=True)
class Format:
  """Names and settings of a family's checkpoints."""

  parse: Callable[[Path, dict[str, Any]], Any]  # config.json and its path -> config
  describe: Callable[[Any], dict[str, Any]]  # config -> config.json
  tensors: Callable[[Any, Parameters], list[Tensor]]  # all, in the files' order
  embedding: Callable[[Any], tuple[str, ...]]  # its names: any of them, and equal
  dead: Callable[[Any], list[int]]  # ids that must not be generated
  unused: str = r"(?!)"  # a pattern: tensors that hold no parameter
