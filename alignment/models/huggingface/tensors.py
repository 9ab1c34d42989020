"""Files of tensors: which are there, where each lies, and which parameters it holds."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import safetensors

from alignment.models.huggingface.settings import read_json
from alignment.models.protocol import Network
from alignment.types import Params, UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_FOREIGN = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.gguf")


class Tensor(NamedTuple):
  """A tensor's place in the files and in the tree of parameters."""

  name: str
  shape: tuple[int, ...]  # in the file
  paths: tuple[tuple, ...]  # of the parameters that it holds, with layers as a list
  split: Callable[[Any], Sequence[Any]]  # a tensor -> the parameters
  join: Callable[[Sequence[Any]], Any]  # and back


def plain(name: str, path: tuple, shape: tuple[int, ...]) -> Tensor:
  """A tensor that is one parameter; kernels are [in, out] here, [out, in] in files."""
  if path[-1] == "kernel":
    return Tensor(name, shape[::-1], (path,), lambda x: [x.T], lambda xs: xs[0].T)
  return Tensor(name, shape, (path,), lambda x: [x], lambda xs: xs[0])


def parameters(network: Network) -> Iterator[tuple[tuple, tuple[int, ...]]]:
  """Path and shape of every parameter, in the tree's own form."""
  for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes(network)):
    yield (
      tuple(getattr(key, "key", getattr(key, "idx", None)) for key in keys),
      leaf.shape,
    )


def shapes(network: Network) -> Params:
  return jax.eval_shape(network.init, jax.random.key(0))


def layer_of(path: tuple) -> int | None:
  """Which layer of a list a parameter belongs to, if any."""
  return next((key for key in path if isinstance(key, int)), None)


def stacked(path: tuple) -> tuple:
  """The path of the same parameter where layers are stacked."""
  return tuple(key for key in path if not isinstance(key, int))


def get(params: Params, path: tuple) -> Any:
  """The leaf at a path through layers as a list, also where they are stacked."""
  row: Any = ()  # all of it
  for key in path:
    if isinstance(key, int) and not isinstance(params, list):
      row = key
    else:
      params = params[key]
  return params[row]


def shards(
  tensors: Sequence[Tensor], itemsize: int, max_bytes: int
) -> list[list[Tensor]]:
  """The tensors in order, cut where the next would take a file past `max_bytes`."""
  files: list[list[Tensor]] = [[]]
  size = 0
  for tensor in tensors:
    num_bytes = math.prod(tensor.shape) * itemsize
    if files[-1] and size + num_bytes > max_bytes:
      files.append([])
      size = 0
    files[-1].append(tensor)
    size += num_bytes
  return files


class File(NamedTuple):
  path: Path
  handle: Any  # safetensors.safe_open

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the tensor has this shape and is of floats."""
    tensor = self.handle.get_slice(name)
    if (given := tuple(tensor.get_shape())) != shape:
      raise UserError(
        f"{self.path}: tensor '{name}' has shape {given}; config.json asks for shape "
        f"{shape}"
      )
    if (kind := tensor.get_dtype()) not in ("F32", "BF16", "F16"):
      raise UserError(
        f"{self.path}: tensor '{name}' is {kind}, expected F32, BF16 or F16"
      )


def tensor_names(directory: Path) -> set[str]:
  """Of a checkpoint; empty if its weights are not there."""
  if not (directory / WEIGHTS).exists() and not (directory / INDEX).exists():
    return set()
  with contextlib.ExitStack() as stack:
    return set(open_all(directory, stack))


def open_all(directory: Path, stack: contextlib.ExitStack) -> dict[str, File]:
  """Every tensor's name -> the file that holds it, open until `stack` closes.

  Raises:
    UserError: for files that are missing, damaged or of another format.
  """

  def open_file(name: str) -> File:
    path = directory / name
    try:
      handle = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return File(path, handle)

  if (directory / WEIGHTS).exists():
    file = open_file(WEIGHTS)
    return dict.fromkeys(file.handle.keys(), file)
  index = directory / INDEX
  if not index.exists():
    raise UserError(_no_weights(directory))
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict):
    raise UserError(f"{index}: weight_map is {weight_map!r}, expected an object")
  files: dict[str, File] = {}
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


def _no_weights(directory: Path) -> str:
  """What to say of a checkpoint without safetensors."""
  foreign = next((file for p in _FOREIGN for file in sorted(directory.glob(p))), None)
  if foreign is None:
    return f"{directory}: has neither {WEIGHTS} nor {INDEX}"
  options = f", gguf_file='{foreign.name}'" if foreign.suffix == ".gguf" else ""
  return (
    f"{directory}: has {foreign.name}, but only safetensors are read; "
    f"{conversion(directory, options)}"
  )


def conversion(directory: Path, options: str = "", then: str = "") -> str:
  """The line with which transformers makes safetensors of a checkpoint."""
  kind = "AutoModelForCausalLM"
  with contextlib.suppress(UserError):
    entries = read_json(directory / "config.json")
    if entries.get("is_encoder_decoder"):
      kind = "AutoModelForSeq2SeqLM"
    elif "ForSequenceClassification" in str(entries.get("architectures")):
      kind = "AutoModelForSequenceClassification"  # else its head would be lost
  return (
    f'convert it: python -c "from transformers import {kind} as M; '
    f"M.from_pretrained('{directory}'{options}){then}"
    f".save_pretrained('{directory}-safetensors')\" and copy its tokenizer files"
  )
