"""Recipes: what a configuration says of how one model is trained, as plain values.

A recipe is a role's section of the configuration (sft, golden_pm, proxy_pm, policy,
golden_policy), a run of `config.runs` being `policy` with some values of its own. All
here is a function of configurations and recipes alone; `graph.py` makes artefacts of
them, and `recipe_checks.py` says which cannot be.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import re
from typing import Any, NamedTuple, Self

from ml_collections import ConfigDict

from alignment.core import losses, rules
from alignment.core.optim import Optimizer
from alignment.models.lora import LoraSettings
from alignment.study import schema_checks
from alignment.types import UserError

DATASETS = ("golden", "stream")  # which every study has, besides config.datasets
RESERVED = ("sft", "golden_policy", "best_of_n")  # evaluated beside the runs

Options = tuple[tuple[str, Any], ...]  # a mapping that can be hashed


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a model starts: the keys of a role that say which model it is."""

  size: str
  init: str  # "scratch", "sft", or a directory in which {size} is replaced

  @property
  def without_lora(self) -> "Start":
    """The same model without adapters, or with merged ones."""
    return Start(self.size, self.init)


@dataclasses.dataclass(frozen=True)
class Recipe(Start):
  """How one model is trained; the fields are explained in `schema.role`."""

  optimizer: Optimizer
  learning_rate: float
  warmup_steps: int
  decay: bool
  batch_size: int
  microbatches: int
  steps: int
  on_non_finite: str
  lora: LoraSettings

  @classmethod
  def of(cls, section: Mapping[str, Any], name: str = "") -> Self:
    """The recipe of a role's section of the configuration; `name` is for messages.

    Raises:
      UserError: for an option of optimizer or lora that does not exist or is wrong.
    """
    values = {key: _hashable(value) for key, value in plain(section).items()}
    for key, kind in _NESTED.items():
      options = values[key]
      known = {field.name: field.default for field in dataclasses.fields(kind)}
      where = f"{name}: " if name else ""
      for option, value in options:
        if option not in known:
          raise UserError(
            f"{where}{key} has no '{option}'; it has {', '.join(sorted(known))}"
          )
        if not schema_checks.fits(value, known[option]):
          like = schema_checks.kind(known[option])
          raise UserError(f"{where}{key}.{option} is {value!r}; give {like}")
      values[key] = kind(**dict(options))
    return cls(**values)

  def described(self) -> dict[str, Any]:
    """What determines the numbers, as JSON; `init` apart, which names a directory."""
    described = plain(dataclasses.asdict(self))
    if not self.lora.rank:
      del described["lora"]
    return described


@dataclasses.dataclass(frozen=True)
class PreferenceRecipe(Recipe):
  """A judge's; the fields are explained in `schema.preference_model`."""

  kind: str
  options: Options
  vocab: Options
  evaluations: int

  @property
  def trained(self) -> bool:
    """Whether it is a model."""
    return self.kind in rules.TRAINED

  @property
  def imported(self) -> bool:
    """Whether it is a model that judges as it is in the directory where it starts."""
    return self.trained and self.steps == 0

  def described(self) -> dict[str, Any]:
    """As `Recipe`'s, of a model; its vocabulary is described by what it reads."""
    values = super().described()
    del values["options"], values["vocab"]
    if self.kind == "pairwise":
      del values["kind"]
    if self.imported:
      return {key: values[key] for key in ("kind", "size", "init", "steps")}
    return values


@dataclasses.dataclass(frozen=True)
class PolicyRecipe(Recipe):
  """A policy's; the fields are explained in `schema.policy`."""

  method: str
  refresh_every: int
  samples: int
  select: str
  on_policy_fraction: float
  record: bool
  dataset: str
  replay_window: int
  stream: Options
  loss: str
  loss_options: Options
  beta: float
  temperature: float
  top_p: float
  seed: int
  evaluate_at: tuple[float, ...]

  @property
  def online(self) -> bool:
    return self.method == "online"

  @property
  def replays(self) -> bool:
    """Whether it learns from a recorded online run."""
    return not self.online and self.dataset == "stream"

  @property
  def grouped(self) -> bool:
    """Whether its loss reads all samples of a prompt, with their scores."""
    return losses.get(self.loss).responses == losses.GROUP

  def described(self) -> dict[str, Any]:
    """As `Recipe`'s, without what has no meaning for its method."""
    meaningless = set(_OFFLINE if self.online else _ONLINE)
    meaningless.add("stream")  # it is described by the input that it leads to
    if self.dataset != "stream":
      meaningless.add("replay_window")
    values = super().described()
    for key, before in _ONCE.items():
      if values[key] == before:
        meaningless.add(key)
    described = {k: value for k, value in values.items() if k not in meaningless}
    if source := losses.own_source(self.loss):  # an edited loss is another
      described["loss_source"] = source
    return described

  def evaluated_steps(self) -> list[int]:
    """The steps at which its parameters are kept."""
    return sorted({max(1, round(f * self.steps)) for f in self.evaluate_at})


class Run(NamedTuple):
  """One policy run of a configuration."""

  series: str  # its entry in config.runs: what a figure draws as one line
  recipe: PolicyRecipe


_NESTED = {"optimizer": Optimizer, "lora": LoraSettings}  # sections of a role
_NOT_IN_NAMES = r"[^\w.+-]"  # they name directories, and Orbax reads [ as a pattern
_SHORT = {
  "learning_rate": "lr",
  "refresh_every": "every",
  "on_policy_fraction": "fraction",
  "replay_window": "window",
}
# Keys of a policy's recipe that have a meaning only for one method.
_ONLINE = (
  "temperature", "top_p", "refresh_every", "samples", "select", "on_policy_fraction",
  "record",
)  # fmt: skip
_OFFLINE = ("dataset", "replay_window", "stream")
# Keys that are younger than results that are kept, with what held for all of these.
_ONCE = {"samples": 2, "select": "two"}
# What a run has in common with the online run that it replays, batch by batch.
_SAME = (
  "size", "init", "lora", "loss", "loss_options", "seed", "batch_size", "microbatches"
)  # fmt: skip


# --- the worlds and runs of a configuration -------------------------------------------


def worlds(config: ConfigDict) -> list[int]:
  """The worlds of a configuration: `worlds` of them, but for `without_worlds`."""
  numbers = itertools.count(config.first_world)
  kept = (world for world in numbers if world not in config.without_worlds)
  return list(itertools.islice(kept, config.worlds))


def runs(config: ConfigDict) -> dict[str, Run]:
  """Policy runs by name: of every entry of `config.runs` the product of its axes.

  Raises:
    UserError: for an entry that is the study's or no name, an axis that is no key of
      `policy` or not a tuple of its values, and for two runs of one name.
  """
  named: dict[str, Run] = {}
  for series, products in config.runs.items():
    if series in RESERVED:
      raise UserError(
        f"runs.{series}: the study has a '{series}' of its own; rename it"
      )
    check_name(series, f"runs.{series}")
    for axes in products if isinstance(products, tuple | list) else (products,):
      _check_axes(config, series, axes)
      for name, run in _product(config, series, axes):
        if run in named.values():  # a value that is policy's own: one run
          continue
        if name in named:
          raise UserError(
            f"runs.{series}: two runs are called {name}; method, loss, dataset and "
            "stream are not part of a name: give each value an entry of its own"
          )
        named[name] = run
  return named


def check_name(text: str, where: str) -> None:
  """Raises UserError for a text that cannot be part of a directory's name."""
  if re.search(_NOT_IN_NAMES, text):
    raise UserError(f"{where}: a name has letters, digits and . _ + - only")


def _check_axes(config: ConfigDict, series: str, axes: Mapping[str, Any]) -> None:
  for key, values in axes.items():
    if key not in config.policy:
      keys = ", ".join(sorted(config.policy))
      raise UserError(f"runs.{series}.{key} is no key of policy; they are {keys}")
    if not isinstance(values, tuple | list) or not values:
      raise UserError(f"runs.{series}.{key} must be a tuple of values, not {values!r}")
    for value in values:
      if not schema_checks.fits(value, config.policy[key]):
        like = plain(config.policy[key])
        raise UserError(f"runs.{series}.{key} has {value!r}; policy's is {like!r}")


def _product(
  config: ConfigDict, series: str, axes: Mapping[str, Any]
) -> Iterator[tuple[str, Run]]:
  """(name, run) of every combination of the axes' values."""
  for values in itertools.product(*axes.values()):
    chosen = dict(zip(axes, map(plain, values), strict=True))
    section = _overridden(plain(config.policy), chosen)
    recipe = PolicyRecipe.of(section, f"runs.{series}")
    for key in axes:
      if not _has_meaning(key, recipe):
        raise UserError(
          f"runs.{series}.{key} has no meaning for its runs, whose method is "
          f"'{recipe.method}' and dataset '{recipe.dataset}'"
        )
    varied = "".join(
      f"_{_SHORT.get(key, key)}{value}"
      for key, value in chosen.items()
      if key not in ("method", "loss", "dataset", "stream")
    )
    name = f"{series}_{recipe.loss}{re.sub(_NOT_IN_NAMES, '', varied)}"
    yield name, Run(series, recipe)


def _has_meaning(key: str, recipe: PolicyRecipe) -> bool:
  if key in _ONLINE:
    return recipe.online
  if key in ("replay_window", "stream"):
    return recipe.replays
  return key != "dataset" or not recipe.online


# --- what a run leads to --------------------------------------------------------------


def stream_of(config: ConfigDict, recipe: PolicyRecipe) -> PolicyRecipe:
  """The recipe of the online run that a run replays: `policy`'s, with its `_SAME`.

  Raises:
    UserError: for a key of `stream` that is no key of `policy`.
  """
  recorded = {"method": "online", "record": True}
  overrides = {}
  for key, value in recipe.stream:
    if key not in config.policy or key in recorded:
      raise UserError(f"policy.stream has '{key}', which is no key of an online policy")
    like = config.policy[key]
    section = isinstance(like, ConfigDict) and isinstance(value, tuple)
    overrides[key] = dict(value) if section else value
    if not schema_checks.fits(overrides[key], like):
      kind = schema_checks.kind(like)
      raise UserError(f"policy.stream.{key} is {value!r}; give {kind}")
  same = {key: getattr(recipe, key) for key in _SAME if key not in overrides}
  stream = _overridden(plain(config.policy), plain(overrides)) | recorded
  return dataclasses.replace(PolicyRecipe.of(stream), **same)


def recorded(config: ConfigDict) -> list[dict[str, Any]]:
  """The online runs that keep their stream, as they are described.

  The default one, and what figure 6 classifies, are recorded in any case: figures share
  them, whether or not they need the stream. A hybrid run cannot be.
  """
  default = PolicyRecipe.of(config.policy)
  replays = [dataclasses.replace(default, stream=()), default]
  replays += [run.recipe for run in runs(config).values() if run.recipe.replays]
  streams = [stream_of(config, recipe) for recipe in replays]
  return [s.described() for s in streams if s.on_policy_fraction == 1]


def is_default(config: ConfigDict, recipe: PolicyRecipe) -> bool:
  """Whether a run's hyper-parameters are `policy`'s, however it gets its pairs."""
  sampling = {"temperature", "top_p", "samples"}
  free = {"method", "seed", *_ONLINE, *_OFFLINE} - sampling
  default = PolicyRecipe.of(config.policy)
  return all(
    getattr(recipe, field.name) == getattr(default, field.name)
    for field in dataclasses.fields(recipe)
    if field.name not in free
  )


class Source(NamedTuple):
  """A model that `config.datasets` samples from."""

  kind: str  # sft, golden_policy or online
  recipe: PolicyRecipe
  step: int | None  # of a kept checkpoint; None: what the model settled on


def source(config: ConfigDict, dataset: str, text: str) -> Source:
  """What "sft", "golden_policy" or "online@FRACTION" in `config.datasets` names.

  Raises:
    UserError: for anything else, and for a fraction that is not evaluated.
  """
  policy = PolicyRecipe.of(config.policy)
  if text == "sft":
    return Source("sft", policy, None)
  if text == "golden_policy":
    return Source("golden_policy", PolicyRecipe.of(config.golden_policy), None)
  where = f"datasets.{dataset}: '{text}'"
  kind, _, fraction = text.partition("@")
  if kind != "online" or not fraction:
    raise UserError(
      f"{where} is no model; there are 'sft', 'golden_policy' and 'online@FRACTION'"
    )
  recipe = dataclasses.replace(policy, method="online")
  try:
    step = max(1, round(float(fraction) * recipe.steps))
  except (ValueError, OverflowError):  # the latter of inf
    raise UserError(f"{where}: '{fraction}' is no fraction of a run") from None
  if step not in recipe.evaluated_steps():
    raise UserError(f"{where}: {fraction} is not among policy.evaluate_at")
  return Source("online", recipe, step)


def sft(config: ConfigDict, size: str) -> Recipe:
  """The recipe of the SFT model of a size: `sft` with its `by_size`.

  Raises:
    UserError: for a key of `by_size` that is no key of `sft`.
  """
  section = plain(config.sft) | {"size": size}
  del section["data"]  # its content is among the inputs
  own = section.pop("by_size").get(size, {})
  for key in own.keys() - section.keys():
    raise UserError(f"sft.by_size.{size} has '{key}', which is no key of sft")
  return Recipe.of(_overridden(section, own), "sft")


def _overridden(section: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
  """A role's section with some values of its own: what is not named stays."""
  nested = {key: section[key] | own[key] for key in _NESTED.keys() & own.keys()}
  return {**section, **own, **nested}


def plain(value: Any) -> Any:
  """ConfigDicts and tuples as dicts and lists, ready for JSON."""
  if isinstance(value, ConfigDict | Mapping):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, tuple | list):
    return [plain(v) for v in value]
  return value


def _hashable(value: Any) -> Any:
  """Mappings as sorted pairs, and lists as tuples."""
  if isinstance(value, Mapping):
    return tuple(sorted((key, _hashable(v)) for key, v in value.items()))
  return tuple(map(_hashable, value)) if isinstance(value, list) else value
