"""Reads and writes T5 checkpoints in Hugging Face's format, without torch.

A checkpoint is a directory with `config.json` and `model.safetensors`, or several such
files and `model.safetensors.index.json`. Which tensors a model has follows from
`T5.init`; only their names are written down here. Whatever does not fit the model is
a UserError that names the file and the key or tensor.

  cfg = huggingface.read_config(directory, dtype="bfloat16", scan_layers=True)
  params = huggingface.read_params(directory, cfg)
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from alignment.models import t5
from alignment.types import Params, UserError

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
MAX_JSON_BYTES = 4_000_000  # parsed, JSON takes up to 25 times as much memory
MAX_LAYERS = 100  # of each stack; T5's largest have 24
CHOSEN = ("live_ids", "dtype", "scan_layers", "remat")  # not part of a checkpoint

_SIZES = {  # T5Config's name -> config.json's
  "d_model": "d_model",
  "d_ff": "d_ff",
  "d_kv": "d_kv",
  "num_heads": "num_heads",
  "encoder_layers": "num_layers",
  "decoder_layers": "num_decoder_layers",
  "vocab_rows": "vocab_size",
  "buckets": "relative_attention_num_buckets",
  "max_distance": "relative_attention_max_distance",
}
_DEFAULTS = {  # transformers' own, for keys that its early versions did not write
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "layer_norm_epsilon": 1e-6,
  "feed_forward_proj": "relu",
  "tie_word_embeddings": True,
}
_PARTS = {
  "encoder": {
    "attention_norm": "layer.0.layer_norm",
    "attention": "layer.0.SelfAttention",
    "mlp_norm": "layer.1.layer_norm",
    "mlp": "layer.1.DenseReluDense",
  },
  "decoder": {
    "self_norm": "layer.0.layer_norm",
    "self_attention": "layer.0.SelfAttention",
    "cross_norm": "layer.1.layer_norm",
    "cross_attention": "layer.1.EncDecAttention",
    "mlp_norm": "layer.2.layer_norm",
    "mlp": "layer.2.DenseReluDense",
  },
}
_KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_KERNELS |= {"gate": "wi_0", "up": "wi_1", "down": "wo"}  # without a gate, `up` is wi
_SHARED = "shared.weight"
_HEAD = "lm_head.weight"
# The shared embedding's other names: present or not, depending on who wrote the file.
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first T5 checkpoints hold this table; no T5 uses it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def read_config(directory: str | os.PathLike, **chosen: Any) -> t5.T5Config:
  """The T5Config of a checkpoint, with `chosen` values for any of `CHOSEN`.

  Raises:
    UserError: for a config.json that is missing, damaged, or not of a T5 that
      `alignment.models.t5` implements; for more `live_ids` than it has ids.
  """
  path = Path(directory) / CONFIG
  found = _read_json(path).items()
  raw: dict[str, Any] = {**_DEFAULTS, **{k: v for k, v in found if v is not None}}
  # transformers 5 writes `tie_word_embeddings: true` for every T5 and marks T5 1.1 (a
  # head of its own, logits not scaled) by the other key; earlier versions by this one.
  raw.setdefault("scale_decoder_outputs", raw["tie_word_embeddings"])
  raw.setdefault("num_decoder_layers", raw.get("num_layers"))

  def only(key: str, *implemented: Any) -> None:
    if key in raw and raw[key] not in implemented:
      choices = " or ".join(map(repr, implemented)) or "none"
      raise UserError(f"{path}: {key} is {raw[key]!r}, only {choices} is implemented")

  only("model_type", "t5")
  only("is_encoder_decoder", True)
  only("pad_token_id", t5.PAD)
  only("decoder_start_token_id", t5.PAD)
  only("eos_token_id", 1)
  only("feed_forward_proj", "gated-gelu", "relu")
  gated = raw["feed_forward_proj"] == "gated-gelu"
  only("is_gated_act", gated)
  only("dense_act_fn", "gelu_new" if gated else "relu")
  only("scale_decoder_outputs", True, False)
  only("quantization_config")
  for key in _SIZES.values():
    limit = MAX_LAYERS if key.endswith("layers") else 2**31 - 1
    if type(raw.get(key)) is not int or not 1 <= raw[key] <= limit:
      found_there = f"{key} is {raw.get(key)!r}"
      raise UserError(f"{path}: {found_there}, expected an integer from 1 to {limit}")
  cfg = t5.T5Config(
    **{field: raw[key] for field, key in _SIZES.items()},
    gated=gated,
    tied=bool(raw["scale_decoder_outputs"]),
    norm_epsilon=raw["layer_norm_epsilon"],
  )
  if not 4 <= cfg.buckets < 2 * cfg.max_distance:
    raise UserError(
      f"{path}: relative_attention_num_buckets is {cfg.buckets}, expected 4 or more "
      f"and less than twice relative_attention_max_distance ({cfg.max_distance})"
    )
  if not isinstance(cfg.norm_epsilon, float) or not 0 < cfg.norm_epsilon < 1:
    raise UserError(
      f"{path}: layer_norm_epsilon is {cfg.norm_epsilon!r}, expected a number in (0, 1)"
    )
  if (wanted := chosen.get("live_ids", 0)) > cfg.vocab_rows:
    raise UserError(f"{path}: vocab_size is {cfg.vocab_rows}, but {wanted} are in use")
  return dataclasses.replace(cfg, **chosen)


def read_params(directory: str | os.PathLike, cfg: t5.T5Config) -> Params:
  """A checkpoint's parameters: numpy, float32, stacked if `cfg.scan_layers`.

  Args:
    directory: the checkpoint.
    cfg: the model to read it as, usually `read_config(directory, ...)`.

  Raises:
    UserError: for a checkpoint of another model than `cfg`; a file that is missing or
      damaged; a tensor that is missing, unexpected, or of a wrong shape or kind.
  """
  directory = Path(directory)
  ours, theirs = _config_json(cfg), _config_json(read_config(directory))
  for key, value in theirs.items():
    if ours[key] != value:
      raise UserError(
        f"{key} {value} in {directory / CONFIG}, {ours[key]} in the config: it is a "
        "checkpoint of another model"
      )
  with contextlib.ExitStack() as stack:
    files = _open(directory, stack)
    leaves = []
    for name, transposed in _find(directory, files, cfg):
      tensor = files[name].handle.get_tensor(name)
      tensor = tensor.T if transposed else tensor
      leaves.append(np.ascontiguousarray(tensor, np.float32))
  params = jax.tree.unflatten(jax.tree.structure(_shapes(cfg)), leaves)
  if cfg.scan_layers:
    for part in _PARTS:
      layers = params[part]["layers"]
      params[part]["layers"] = jax.tree.map(lambda *leaf: np.stack(leaf), *layers)
  return params


def write(
  directory: str | os.PathLike,
  cfg: t5.T5Config,
  params: Params,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Writes a checkpoint that `read_params` and transformers' `from_pretrained` read.

  It appears under its name only when it is complete. One shard is in memory at a time.

  Args:
    directory: a directory that does not exist yet, or is empty.
    cfg: the model; its `CHOSEN` fields are not written.
    params: its parameters, stacked or not, numpy or jax.
    dtype: float32, bfloat16 or float16.
    max_shard_bytes: where to begin another file.
    about: further entries of its config.json, which say where the model is from.

  Raises:
    UserError: for an unknown dtype; if the directory is in use or cannot be written.
    ValueError: if `params` are not those of `cfg`.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype '{dtype}' is unknown; choose from {', '.join(DTYPES)}")
  directory = Path(os.path.abspath(directory))
  if directory.is_file() or directory.is_dir() and any(directory.iterdir()):
    raise UserError(f"{directory}: exists already; delete it or name another directory")
  stacked = not isinstance(params["encoder"]["layers"], list)
  if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, _shapes(cfg, stacked)):
    raise ValueError("the parameters are not those of this T5Config")
  itemsize = np.dtype(DTYPES[dtype]).itemsize
  shards = _shards(cfg, itemsize, max_shard_bytes)
  partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
  weight_map: dict[str, str] = {}
  try:
    partial.mkdir(parents=True)
    for i, shard in enumerate(shards, start=1):
      file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
      file = file if len(shards) > 1 else WEIGHTS
      tensors = {}
      for tensor in shard:
        leaf = np.asarray(_get(params, tensor.path))
        leaf = leaf.T if tensor.transposed else leaf
        tensors[tensor.name] = np.ascontiguousarray(leaf, DTYPES[dtype])
      save_file(tensors, partial / file, metadata={"format": "pt"})
      weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
      size = itemsize * sum(math.prod(tensor.shape) for tensor in _tensors(cfg))
      index = {"metadata": {"total_size": size}, "weight_map": weight_map}
      _write_json(partial / INDEX, index)
    described = _config_json(cfg) | {"dtype": dtype} | dict(about or {})
    _write_json(partial / CONFIG, described)
    if cfg.live_ids:  # the others have probability 0 here, but logits there
      dead = [t5.PAD, *range(cfg.live_ids, cfg.vocab_rows)]
      special = {"decoder_start_token_id": t5.PAD, "pad_token_id": t5.PAD}
      generation = {**special, "eos_token_id": 1, "suppress_tokens": dead}
      _write_json(partial / GENERATION, generation)
    os.replace(partial, directory)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{directory}: cannot be written ({error})") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _config_json(cfg: t5.T5Config) -> dict[str, Any]:
  return {key: getattr(cfg, field) for field, key in _SIZES.items()} | {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": t5.PAD,
    "dense_act_fn": "gelu_new" if cfg.gated else "relu",
    "dropout_rate": 0.0,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu" if cfg.gated else "relu",
    "is_encoder_decoder": True,
    "is_gated_act": cfg.gated,
    "layer_norm_epsilon": cfg.norm_epsilon,
    "model_type": "t5",
    "pad_token_id": t5.PAD,
    "scale_decoder_outputs": cfg.tied,
    "tie_word_embeddings": cfg.tied,
    "use_cache": True,
  }


class _Tensor(NamedTuple):
  """A parameter's place in the files and in the tree."""

  name: str
  shape: tuple[int, ...]  # in the file
  path: tuple  # in the tree, with layers as a list
  transposed: bool  # kernels are [in, out] here and [out, in] in files


def _tensors(cfg: t5.T5Config) -> Iterator[_Tensor]:
  for keys, leaf in jax.tree_util.tree_leaves_with_path(_shapes(cfg)):
    path = tuple(getattr(key, "key", getattr(key, "idx", None)) for key in keys)
    transposed = path[-1] == "kernel"
    shape = leaf.shape[::-1] if transposed else leaf.shape
    yield _Tensor(_name(path, cfg.gated), shape, path, transposed)


def _shapes(cfg: t5.T5Config, stacked: bool = False) -> Params:
  """The parameters' shapes; with layers as a list, as files hold them, or stacked."""
  model = t5.T5(dataclasses.replace(cfg, scan_layers=stacked))
  return jax.eval_shape(model.init, jax.random.key(0))


def _name(path: tuple, gated: bool) -> str:
  match path:
    case ("embedding",):
      return _SHARED
    case ("head", "kernel"):
      return _HEAD
    case (stack, "position"):
      return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    case (stack, "norm", "scale"):
      return f"{stack}.final_layer_norm.weight"
    case (stack, "layers", layer, norm, "scale"):
      return f"{stack}.block.{layer}.{_PARTS[stack][norm]}.weight"
    case (stack, "layers", layer, part, name, "kernel"):
      kernel = "wi" if name == "up" and not gated else _KERNELS[name]
      return f"{stack}.block.{layer}.{_PARTS[stack][part]}.{kernel}.weight"
  raise ValueError(f"parameter {path} has no name in Hugging Face's T5")


def _get(params: Params, path: tuple) -> Any:
  """The leaf at a path through layers as a list, also where they are stacked."""
  row: Any = ()  # all of it
  for key in path:
    if isinstance(key, int) and not isinstance(params, list):
      row = key
    else:
      params = params[key]
  return params[row]


def _shards(cfg: t5.T5Config, itemsize: int, max_bytes: int) -> list[list[_Tensor]]:
  """The tensors in order, cut where the next would take a file past `max_bytes`."""
  shards: list[list[_Tensor]] = [[]]
  size = 0
  for tensor in _tensors(cfg):
    num_bytes = math.prod(tensor.shape) * itemsize
    if shards[-1] and size + num_bytes > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += num_bytes
  return shards


class _File(NamedTuple):
  path: Path
  handle: Any  # safetensors.safe_open


def _open(directory: Path, stack: contextlib.ExitStack) -> dict[str, _File]:
  """Every tensor's name -> the file that holds it, open until `stack` closes."""

  def open_file(name: str) -> _File:
    path = directory / name
    try:
      handle = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return _File(path, handle)

  if (directory / WEIGHTS).exists():
    file = open_file(WEIGHTS)
    return dict.fromkeys(file.handle.keys(), file)
  index = directory / INDEX
  if not index.exists():
    raise UserError(f"{directory}: has neither {WEIGHTS} nor {INDEX}; convert it first")
  weight_map = _read_json(index).get("weight_map")
  if not isinstance(weight_map, dict):
    raise UserError(f"{index}: weight_map is {weight_map!r}, expected an object")
  files = {}
  for name, shard in weight_map.items():
    where = f"{index}: tensor '{name}' is in {shard!r}, which is"
    if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
      raise UserError(f"{where} not the name of a file in this directory")
    if not (directory / shard).exists():
      raise UserError(f"{where} missing")
    if shard not in files:
      files[shard] = open_file(shard)
    if name not in files[shard].handle.keys():
      raise UserError(f"{directory / shard}: tensor '{name}' is missing; see {INDEX}")
  return {name: files[shard] for name, shard in weight_map.items()}


def _find(
  directory: Path, files: dict[str, _File], cfg: t5.T5Config
) -> list[tuple[str, bool]]:
  """(name in the files, transposed) of every parameter, after checking all tensors."""
  shared = [_SHARED, *_ALIASES, *([_HEAD] if cfg.tied else [])]
  shared = [name for name in shared if name in files] or [_SHARED]
  found = []
  for tensor in _tensors(cfg):
    names = shared if tensor.name == _SHARED else [tensor.name]
    for name in names:
      _check(directory, files, name, tensor.shape)
    found.append((names[0], tensor.transposed))
  first, *others = shared
  for name in others:
    one, other = (files[n].handle.get_tensor(n) for n in (first, name))
    if not np.array_equal(one, other):
      raise UserError(
        f"{files[name].path}: tensor '{name}' differs from '{first}', but {CONFIG} "
        "makes them one"
      )
  for name in sorted(set(files) - {name for name, _ in found} - {*shared, _UNUSED}):
    raise UserError(f"{files[name].path}: tensor '{name}' is not in {CONFIG}'s model")
  return found


def _check(
  directory: Path, files: dict[str, _File], name: str, shape: tuple[int, ...]
) -> None:
  asks = f"{CONFIG} asks for shape {shape}"
  if name not in files:
    raise UserError(f"{directory}: tensor '{name}' is missing; {asks}")
  path, handle = files[name]
  tensor = handle.get_slice(name)
  if (found := tuple(tensor.get_shape())) != shape:
    raise UserError(f"{path}: tensor '{name}' has shape {found}; {asks}")
  if (kind := tensor.get_dtype()) not in ("F32", "BF16", "F16"):
    raise UserError(f"{path}: tensor '{name}' is {kind}, expected F32, BF16 or F16")


def _read_json(path: Path) -> dict[str, Any]:
  try:
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
      raise UserError(f"{path}: {size:,} bytes, expected at most {MAX_JSON_BYTES:,}")
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path}: cannot be read ({error})") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: not a JSON object")
  return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
