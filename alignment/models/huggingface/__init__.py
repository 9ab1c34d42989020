"""Reads and writes checkpoints in Hugging Face's format, without torch.

A checkpoint is a directory with `config.json` and `model.safetensors`, or several such
files and `model.safetensors.index.json`. Which tensors a model has follows from its
`init`; only their names are written down here, one small table per family. Whatever
does not fit the model is a UserError that names the file and the key or tensor.

  cfg = huggingface.read_config(directory, dtype="bfloat16", scan_layers=True)
  params = huggingface.read_params(directory, cfg)

A sequence classifier with one label is a reward model (`read_reward_params`).
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
from pathlib import Path
import re
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from alignment.models import registry, reward
from alignment.models.huggingface import classifiers, decoder, gpt_neox, t5, tensors
from alignment.models.huggingface.classifiers import check_reward_model, is_reward_model
from alignment.models.huggingface.directory import appearing_whole
from alignment.models.huggingface.formats import Format
from alignment.models.huggingface.settings import (
  MAX_JSON_BYTES,
  Settings,
  read_json,
  write_json,
)
from alignment.models.huggingface.tensors import DTYPES, INDEX, WEIGHTS, File, Tensor
from alignment.models.protocol import Network
from alignment.types import Params, UserError

__all__ = [
  "DTYPES", "INDEX", "MAX_JSON_BYTES", "WEIGHTS", "check_reward_model",
  "is_reward_model",
]  # fmt: skip

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "added_tokens.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt",
  "chat_template.jinja", "chat_template.json",
)  # fmt: skip
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# Fields of a configuration that are not part of a checkpoint.
CHOSEN = ("live_ids", "dead_ids", "dtype", "scan_layers", "remat", "attention")

FORMATS: dict[str, Format] = {
  "t5": t5.FORMAT,
  "gpt_neox": gpt_neox.FORMAT,
  **dict.fromkeys(decoder.MODEL_TYPES, decoder.FORMAT),
}


def read_config(directory: str | os.PathLike, **chosen: Any) -> Any:
  """The configuration of a checkpoint, with `chosen` values for any of `CHOSEN`.

  Raises:
    UserError: for a config.json that is missing, damaged, or not of a model that is
      implemented; for more `live_ids` than it has rows.
  """
  path = Path(directory) / CONFIG
  entries = read_json(path)
  if quantised := entries.get("quantization_config"):
    line = tensors.conversion(Path(directory), then=".dequantize()")
    raise UserError(f"{path}: its weights are quantised ({quantised}); {line}")
  settings = Settings(path, entries)
  if (model_type := settings.only("model_type", *FORMATS)) is None:
    raise settings.complaint("model_type", f"expected one of {', '.join(FORMATS)}")
  cfg = FORMATS[model_type].parse(path, entries)
  if (wanted := chosen.get("live_ids", 0)) > cfg.vocab_rows:
    raise UserError(f"{path}: vocab_size is {cfg.vocab_rows}, but {wanted} are in use")
  return dataclasses.replace(cfg, **chosen)


def read_params(directory: str | os.PathLike, cfg: Any) -> Params:
  """A checkpoint's parameters: numpy, float32, stacked if `cfg.scan_layers`.

  Args:
    directory: the checkpoint.
    cfg: the model to read it as, usually `read_config(directory, ...)`.

  Raises:
    UserError: for a checkpoint of another model than `cfg`; a file that is missing or
      damaged; a tensor that is missing, unexpected, or of a wrong shape or kind.
  """
  return _read(Path(directory), cfg, registry.model)


def read_reward_params(directory: str | os.PathLike, cfg: Any) -> Params:
  """The same of a sequence classifier with one label: those of a `RewardModel`."""
  return _read(Path(directory), cfg, classifiers.network)


def _read(directory: Path, cfg: Any, network: Callable[[Any], Network]) -> Params:
  ours, theirs = _described(cfg), _described(read_config(directory))
  for key, value in theirs.items():
    if key not in ours or ours[key] != value:
      raise UserError(
        f"{key} {value} in {directory / CONFIG}, {ours.get(key)} in the config: it is "
        "a checkpoint of another model"
      )
  with contextlib.ExitStack() as stack:
    files = tensors.open_all(directory, stack)
    chosen = _find(directory, files, cfg, network)  # before memory is asked for
    leaves = {
      path: np.empty(shape, np.float32)
      for path, shape in tensors.parameters(network(cfg))
    }
    for name, tensor in chosen:
      parts = tensor.split(files[name].handle.get_tensor(name))
      for path, part in zip(tensor.paths, parts, strict=True):
        if path in leaves:
          leaves[path][...] = part
        else:
          leaves[tensors.stacked(path)][tensors.layer_of(path)] = part
  structure = jax.tree.structure(tensors.shapes(network(cfg)))
  return jax.tree.unflatten(structure, list(leaves.values()))


def write(
  directory: str | os.PathLike,
  cfg: Any,
  params: Params,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
  about: Mapping[str, Any] | None = None,
  tokenizer: Mapping[str, bytes] | str | os.PathLike | None = None,
) -> None:
  """Writes a checkpoint that `read_params` and transformers' `from_pretrained` read.

  It appears under its name only when it is complete. One shard is in memory at a time.

  Args:
    directory: a directory that does not exist yet, or is empty.
    cfg: the model; its `CHOSEN` fields are not written.
    params: its parameters, or those of a reward model that has it as its body; stacked
      or not, numpy or jax.
    dtype: float32, bfloat16 or float16.
    max_shard_bytes: where to begin another file.
    about: further entries of its config.json: special ids (`SPECIAL`), and whatever
      says where the model is from.
    tokenizer: files to write beside it, by name; or a directory whose
      `TOKENIZER_FILES` are copied.

  Raises:
    UserError: for an unknown dtype; if the directory is in use or cannot be written;
      for a reward model of a family of which transformers has none.
    ValueError: if `params` are not those of `cfg`.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype '{dtype}' is unknown; choose from {', '.join(DTYPES)}")
  scores = reward.SCORE in params
  network = classifiers.network if scores else registry.model
  forms = [
    network(dataclasses.replace(cfg, scan_layers=scan)) for scan in (False, True)
  ]
  if not any(_same_shapes(params, tensors.shapes(form)) for form in forms):
    raise ValueError(f"the parameters are not those of this {type(cfg).__name__}")
  described = classifiers.described(_described(cfg)) if scores else _described(cfg)
  described = described | {"dtype": dtype} | dict(about or {})
  with appearing_whole(directory, like=CONFIG) as partial:
    all_tensors = tensors_of(cfg, network)
    _write_weights(partial, all_tensors, params, dtype, max_shard_bytes)
    write_json(partial / CONFIG, described)
    dead = [] if scores else format_of(cfg).dead(cfg)
    if dead:  # probability 0 here, but logits there
      special = {
        key: described[key] for key in SPECIAL if described.get(key) is not None
      }
      write_json(partial / GENERATION, special | {"suppress_tokens": dead})
    _write_tokenizer(partial, tokenizer or {})


def _write_weights(
  directory: Path,
  all_tensors: Sequence[Tensor],
  params: Params,
  dtype: str,
  max_shard_bytes: int,
) -> None:
  itemsize = np.dtype(DTYPES[dtype]).itemsize
  shards = tensors.shards(all_tensors, itemsize, max_shard_bytes)
  weight_map: dict[str, str] = {}
  for i, shard in enumerate(shards, start=1):
    file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
    file = file if len(shards) > 1 else WEIGHTS
    arrays = {}
    for tensor in shard:
      leaves = [np.asarray(tensors.get(params, path)) for path in tensor.paths]
      arrays[tensor.name] = np.ascontiguousarray(tensor.join(leaves), DTYPES[dtype])
    save_file(arrays, directory / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(arrays, file)
  if len(shards) > 1:
    size = itemsize * sum(math.prod(tensor.shape) for tensor in all_tensors)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(directory / INDEX, index)


def _write_tokenizer(directory: Path, tokenizer: Any) -> None:
  if not isinstance(tokenizer, Mapping):
    source = Path(tokenizer)
    files = (source / name for name in TOKENIZER_FILES)
    tokenizer = {file.name: file.read_bytes() for file in files if file.exists()}
  for name, content in tokenizer.items():
    (directory / name).write_bytes(content)


def format_of(cfg: Any) -> Format:
  return FORMATS[getattr(cfg, "model_type", "t5")]


def _described(cfg: Any) -> dict[str, Any]:
  return format_of(cfg).describe(cfg)


def tensors_of(
  cfg: Any, network: Callable[[Any], Network] = registry.model
) -> list[Tensor]:
  """The tensors of a model's files, in their order."""
  listed = dataclasses.replace(cfg, scan_layers=False)
  every = dict(tensors.parameters(network(listed)))
  heads = [every.pop(path) for path in list(every) if classifiers.is_head(path)]
  return format_of(cfg).tensors(listed, every.items()) + list(
    map(classifiers.head, heads)
  )


def _same_shapes(params: Params, shapes: Params) -> bool:
  return jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


def _find(
  directory: Path, files: dict[str, File], cfg: Any, network: Callable[[Any], Network]
) -> list[tuple[str, Tensor]]:
  """Every tensor with its name in the files, after checking all of them."""
  family = format_of(cfg)
  first, *others = family.embedding(cfg)
  names = [name for name in (first, *others) if name in files] or [first]
  chosen = []
  for tensor in tensors_of(cfg, network):
    for name in names if tensor.name == first else [tensor.name]:
      if name not in files:
        raise UserError(
          f"{directory}: tensor '{name}' is missing; {CONFIG} asks for shape "
          f"{tensor.shape}"
        )
      files[name].check(name, tensor.shape)
    chosen.append((names[0] if tensor.name == first else tensor.name, tensor))
  for name in names[1:]:
    one, other = (files[n].handle.get_tensor(n) for n in (names[0], name))
    if not np.array_equal(one, other):
      raise UserError(
        f"{files[name].path}: tensor '{name}' differs from '{names[0]}', but {CONFIG} "
        "makes them one"
      )
  for name in sorted(set(files) - {name for name, _ in chosen} - {first, *others}):
    if not re.search(family.unused, name):
      raise UserError(f"{files[name].path}: tensor '{name}' is not in {CONFIG}'s model")
  return chosen
