"""Adapters in the format of PEFT, Hugging Face's library of them.

A directory with `adapter_config.json` and `adapter_model.safetensors`, which belong to
a checkpoint that is elsewhere. Modules have the names of that checkpoint's tensors.
"""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from alignment.models import huggingface
from alignment.models.huggingface import tensors
from alignment.models.huggingface.directory import appearing_whole
from alignment.models.huggingface.settings import write_json
from alignment.models.huggingface.tensors import DTYPES, Tensor
from alignment.types import Params, UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ALL = "all-linear"  # every kernel but the head's


def targeted(cfg: Any, targets: Sequence[str]) -> list[Tensor]:
  """The kernels' tensors whose modules the targets name, in all layers.

  A target names a module by the end of its name, from a dot on, as in PEFT.

  Raises:
    UserError: for a target that names none, or only those of some layers.
  """
  kernels: dict[tuple, list[Tensor]] = {}  # by path, of all layers
  for tensor in huggingface.tensors_of(cfg):
    if tensor.paths[0][-1] == "kernel":
      kernels.setdefault(tensors.stacked(tensor.paths[0]), []).append(tensor)
  chosen: set[tuple] = set()
  for target in targets:
    matching = {path for path, each in kernels.items() if _names(target, path, each)}
    if not matching:
      names = dict.fromkeys(
        module(t).rpartition(".")[2] for t in sum(kernels.values(), [])
      )
      raise UserError(
        f"lora.targets: '{target}' names no kernels of all layers of this model; there "
        f"are {', '.join(names)}, and '{ALL}'"
      )
    chosen |= matching
  return [tensor for path, each in kernels.items() if path in chosen for tensor in each]


def _names(target: str, path: tuple, of_layers: list[Tensor]) -> bool:
  if target == ALL:
    return path[0] != "head"
  return all(f".{module(tensor)}".endswith(f".{target}") for tensor in of_layers)


def module(tensor: Tensor) -> str:
  """The module that a tensor is the weight of."""
  return tensor.name.removesuffix(".weight")


def write(
  directory: str | os.PathLike,
  cfg: Any,
  settings: Any,
  adapters: Params,
  dtype: str = "float32",
  base: str = "",
) -> None:
  """Writes adapters that PEFT's `from_pretrained` reads.

  Args:
    directory: a directory that does not exist yet, or is empty.
    cfg: the base's.
    settings: `lora.LoraSettings`.
    adapters: as `lora.LoraModel` has them; numpy.
    dtype: float32, bfloat16 or float16.
    base: the base's directory, or its name on a hub; "" leaves it open.

  Raises:
    UserError: for an unknown dtype; if the directory is in use or cannot be written.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype '{dtype}' is unknown; choose from {', '.join(DTYPES)}")
  chosen = targeted(cfg, settings.targets)
  arrays: dict[str, np.ndarray] = {}
  for tensor in chosen:
    a = tensors.get(adapters, (*tensor.paths[0][:-1], "a"))
    b = tensor.join([tensors.get(adapters, (*p[:-1], "b")) for p in tensor.paths])
    name = f"base_model.model.{module(tensor)}"
    arrays[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T, DTYPES[dtype])
    arrays[f"{name}.lora_B.weight"] = np.ascontiguousarray(b, DTYPES[dtype])
  with appearing_whole(directory, like=CONFIG) as partial:
    write_json(partial / CONFIG, _described(cfg, settings, chosen, base))
    save_file(arrays, partial / WEIGHTS, metadata={"format": "pt"})


def _described(
  cfg: Any, settings: Any, chosen: list[Tensor], base: str
) -> dict[str, Any]:
  targets = settings.targets
  if ALL in targets:  # by name: what PEFT takes for all might differ
    targets = dict.fromkeys(module(tensor).rpartition(".")[2] for tensor in chosen)
  has_encoder = huggingface.format_of(cfg).describe(cfg).get("is_encoder_decoder")
  return {
    "base_model_name_or_path": base or None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": settings.alpha or settings.rank,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": settings.rank,
    "target_modules": list(targets),
    "task_type": "SEQ_2_SEQ_LM" if has_encoder else "CAUSAL_LM",
    "use_rslora": False,
  }
