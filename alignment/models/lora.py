"""LoRA (Hu et al., arXiv 2106.09685): a model of any family of which little is trained.

A fixed base, and for some of its kernels a change of low rank: W + alpha / rank * A B.
Parameters are {"base": those of the family, "lora": adapters}, and only the latter are
trained. The adapters' tree is the base's, with {"a": [I, rank], "b": [rank, O]} where
that has {"kernel": [I, O]}; where files keep several kernels as one tensor (GPT-NeoX's
queries, keys and values), these share one A, as in PEFT.

Training, scoring and judging keep both apart, so that a change that is smaller than the
base's rounding is not lost. Decoding adds them up once for all tokens, in float32,
rounded once to the dtype of the kernel.
"""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from alignment.models.huggingface import peft
from alignment.models.layers import AdaptedKernel
from alignment.models.protocol import BASE, Costs, Model
from alignment.models.stacks import unstack_layers
from alignment.runtime.sharding import Rules
from alignment.types import Array, Params, UserError

LORA = "lora"  # what is trained

Path = tuple[str, ...]  # of a kernel's parent, without the number of its layer


@dataclasses.dataclass(frozen=True)
class LoraSettings:
  """What a configuration says of a role's adapters."""

  rank: int = 0  # 0: none, all parameters are trained
  alpha: float = 0.0  # changes are scaled by alpha / rank; 0: by 1
  targets: tuple[str, ...] = (peft.ALL,)  # names of modules, as PEFT's target_modules

  def __post_init__(self):
    targets = self.targets
    if type(self.rank) is not int or self.rank < 0:
      raise UserError(f"lora.rank is {self.rank!r}; give a whole number, 0 for none")
    if not 0 <= self.alpha < float("inf"):
      raise UserError(
        f"lora.alpha is {self.alpha}; give a number above 0, or 0 for rank"
      )
    if self.alpha and not self.rank:
      raise UserError(
        f"lora.alpha is {self.alpha}, but lora.rank is 0: set a rank, or no alpha"
      )
    if not targets or not all(isinstance(name, str) and name for name in targets):
      raise UserError(f"lora.targets is {targets!r}; give a tuple of names of modules")

  @property
  def scale(self) -> float:
    return (self.alpha or self.rank) / self.rank


def wrap(model: Model, settings: LoraSettings) -> Model:
  """The model, with adapters if there are to be any.

  Raises:
    UserError: for targets that the model does not have.
  """
  if not settings.rank:
    return model
  kernels, first = [], []
  for tensor in peft.targeted(model.cfg, settings.targets):
    paths = [tuple(k for k in p[:-1] if isinstance(k, str)) for p in tensor.paths]
    if paths[0] not in kernels:  # else one of another layer
      kernels += paths
      first += [(path[-1], paths[0][-1]) for path in paths[1:]]
  return LoraModel(model, settings, tuple(kernels), tuple(sorted(set(first))))


@dataclasses.dataclass(frozen=True)
class LoraModel:
  """A `protocol.Model` around another; hashable, so jit can key on it.

  Attributes:
    model: the base's.
    settings: rank, alpha and targets.
    kernels: which kernels have adapters.
    sharing: (name, other): a kernel of this name has the A of its sibling.
  """

  model: Model
  settings: LoraSettings
  kernels: tuple[Path, ...]
  sharing: tuple[tuple[str, str], ...] = ()

  @property
  def cfg(self) -> Any:
    return self.model.cfg

  def init(self, key: Array) -> Params:
    """-> float32 parameters: those of the family, and adapters that change nothing."""
    base_key, key = jax.random.split(key)
    base = self.model.init(base_key)
    return {BASE: base, LORA: self._adapters(base, (), key)}

  def prepare(
    self,
    params: Params,
    prompts_BxS: Array,
    lengths_B: Array,
    for_decoding: bool = False,
  ) -> Any:
    params = self._adapted(params)
    return self.model.prepare(params, prompts_BxS, lengths_B, for_decoding)

  def hidden(self, params: Params, context: Any, responses_BxNxT: Array) -> Array:
    return self.model.hidden(self._adapted(params), context, responses_BxNxT)

  def logits(self, params: Params, hidden: Array) -> Array:
    return self.model.logits(self._adapted(params), hidden)

  def init_cache(
    self, params: Params, context: Any, num_samples: int, max_length: int
  ) -> Any:
    return self.model.init_cache(params, context, num_samples, max_length)

  def decode_step(
    self, params: Params, context: Any, cache: Any, tokens_BxN: Array, position: Array
  ) -> tuple[Array, Any]:
    return self.model.decode_step(params, context, cache, tokens_BxN, position)

  def cast_for_reading(self, params: Params) -> Params:
    """The base as its family's; adapters stay float32, and are cast where they act."""
    return {**params, BASE: self.model.cast_for_reading(params[BASE])}

  def for_decoding(self, params: Params) -> Params:
    """The family's own parameters for decoding, with the changes added."""
    base = self.model.for_decoding(params[BASE])
    return self._changed(base, params[LORA], self._sum)

  def merged(self, params: Params) -> Params:
    """The family's own parameters, in the base's form and dtypes.

    What no base holds is as it is.
    """
    others = {name: params[name] for name in params if name not in (BASE, LORA)}
    return self._changed(params[BASE], params[LORA], self._sum) | others

  def layout_rules(self, tensor: int, decoding: bool = False) -> Rules:
    """As the family's; A lies like its kernel's rows, B like its columns."""
    rules = self.model.layout_rules(tensor, decoding)
    derived = []
    for path in self.kernels:
      name = "/".join((*path, "kernel"))
      axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
      rows, columns = ((None, None) + axes)[-2:]
      below = "/".join(path[path.index("layers") + 1 :] if "layers" in path else path)
      derived += [
        (rf"(^|/){below}/a$", (rows, None)), (rf"(^|/){below}/b$", (None, columns))
      ]  # fmt: skip
    return (*dict.fromkeys(derived), *rules)

  def costs(self, S: int, N: int, T: int, tensor: int = 1) -> Costs:  # noqa: N803
    """The family's: adapters add little."""
    return self.model.costs(S, N, T, tensor)

  def _adapters(self, base: Params, path: Path, key: Array) -> Params:
    """The adapters of a part of the base, of which only shapes are read."""
    if isinstance(base, list):
      keys = [jax.random.fold_in(key, layer) for layer in range(len(base))]
      return [self._adapters(b, path, k) for b, k in zip(base, keys, strict=True)]
    adapters = {}
    for name in sorted(base):
      below = (*path, name)
      if below in self.kernels:
        adapters[name] = self._adapter(below, base[name]["kernel"].shape, key)
      elif any(kernel[: len(below)] == below for kernel in self.kernels):
        adapters[name] = self._adapters(base[name], below, key)
    return adapters

  def _adapter(self, path: Path, shape: tuple[int, ...], key: Array) -> Params:
    """A uniform in +-1/sqrt(I), as PEFT's (Kaiming, a = sqrt(5)); B zero."""
    *stacked, I, O = shape  # noqa: E741
    rank, bound = self.settings.rank, I**-0.5
    b = jnp.zeros((*stacked, rank, O))
    if path[-1] in dict(self.sharing):
      return {"b": b}

    def draw(key: Array) -> Array:
      key = jax.random.fold_in(key, self.kernels.index(path))
      return jax.random.uniform(key, (I, rank), minval=-bound, maxval=bound)

    if not stacked:
      return {"a": draw(key), "b": b}
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(stacked[0]))
    return {"a": jax.vmap(draw)(keys), "b": b}

  def _adapted(self, params: Params) -> Params:
    """The family's parameters with kernels that are `AdaptedKernel`s.

    Those of `for_decoding` are the family's already.
    """
    if BASE not in params:
      return params
    scale = self.settings.scale
    adapt = functools.partial(AdaptedKernel, scale=scale)
    return self._changed(params[BASE], params[LORA], adapt)

  def _sum(self, kernel: Array, a: Array, b: Array) -> Array:
    change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    change = self.settings.scale * change
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

  def _changed(self, base: Params, adapters: Params, change: Callable) -> Params:
    """A part of the base with `change(kernel, a, b)` for the kernels with adapters."""
    if isinstance(base, list):
      if not isinstance(adapters, list):
        adapters = unstack_layers(adapters, len(base))
      pairs = zip(base, adapters, strict=True)
      return [self._changed(one, its, change) for one, its in pairs]
    changed = dict(base)
    for name, below in adapters.items():
      if "b" in below:
        a = adapters[dict(self.sharing).get(name, name)]["a"]
        kernel = change(base[name]["kernel"], a, below["b"])
        changed[name] = {**base[name], "kernel": kernel}
      else:
        changed[name] = self._changed(base[name], below, change)
    return changed
