"""Recipes: what a configuration says of one policy run, as plain values.

A recipe is `config.policy` with the values of one run. Everything here is a function of
configurations and recipes alone; `study.py` makes artefacts of them.
"""

from collections.abc import Collection, Mapping
import itertools
import math
import re
from typing import Any

from ml_collections import ConfigDict

from alignment.core import losses
from alignment.types import UserError


def runs(config: ConfigDict) -> dict[str, tuple[str, dict[str, Any]]]:
  """Policy runs by name, as (label, recipe): of every entry the product of its axes.

  Raises:
    UserError: for a label that is the study's or no name, an axis that is no key of
      `policy` or not a tuple of its values, and for two runs of one name.
  """
  found: dict[str, tuple[str, dict[str, Any]]] = {}
  for label, products in config.runs.items():
    if label in RESERVED:
      raise UserError(f"runs.{label}: the study has a '{label}' of its own; rename it")
    if re.search(_NOT_IN_NAMES, label):
      raise UserError(f"runs.{label}: a name has letters, digits and . _ + - only")
    for axes in products if isinstance(products, tuple | list) else (products,):
      for key, values in axes.items():
        if key not in config.policy:
          known = ", ".join(sorted(config.policy))
          raise UserError(f"runs.{label}.{key} is no key of policy; they are {known}")
        if not isinstance(values, tuple | list) or not values:
          raise UserError(
            f"runs.{label}.{key} must be a tuple of values, not {values!r}"
          )
        for value in values:
          if not _fits(value, config.policy[key]):
            like = plain(config.policy[key])
            raise UserError(f"runs.{label}.{key} has {value!r}; policy's is {like!r}")
      for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, map(plain, values), strict=True))
        recipe = plain(config.policy)
        if "optimizer" in chosen:  # what it does not name stays the policy's
          chosen["optimizer"] = recipe["optimizer"] | chosen["optimizer"]
        recipe |= chosen
        varied = "".join(
          f"_{_SHORT.get(key, key)}{value}"
          for key, value in chosen.items()
          if key not in ("method", "loss", "dataset", "stream")
        )
        for key in axes:
          if not _has_meaning(key, recipe):
            raise UserError(
              f"runs.{label}.{key} has no meaning for its runs, whose method is "
              f"'{recipe['method']}' and dataset '{recipe['dataset']}'"
            )
        name = f"{label}_{recipe['loss']}{re.sub(_NOT_IN_NAMES, '', varied)}"
        if (label, recipe) in found.values():  # a value that is policy's own: one run
          continue
        if name in found:
          raise UserError(
            f"runs.{label}: two runs are called {name}; method, loss, dataset and "
            "stream are not part of a name: give each value an entry of its own"
          )
        found[name] = label, recipe
  return found


def _has_meaning(key: str, recipe: Mapping[str, Any]) -> bool:
  replays = recipe["method"] == "offline" and recipe["dataset"] == "stream"
  return replays if key == "stream" else key == "method" or key in relevant(recipe)


def _fits(value: Any, like: Any) -> bool:
  """Whether a value is of the kind of a key's own; numbers are finite."""
  if isinstance(like, bool) or isinstance(value, bool):
    return isinstance(like, bool) and isinstance(value, bool)
  if isinstance(like, float):
    return isinstance(value, int | float) and math.isfinite(value)
  if isinstance(like, ConfigDict):  # keys of `stream` are checked where it is used
    return isinstance(value, Mapping)
  kinds = (tuple, list) if isinstance(like, tuple | list) else type(like)
  return isinstance(value, kinds)


_NOT_IN_NAMES = r"[^\w.+-]"  # they name directories, and Orbax reads [ as a pattern
DATASETS = ("golden", "stream")  # which every study has, besides config.datasets
RESERVED = ("sft", "golden_policy", "best_of_n")  # evaluated beside the runs
_SHORT = {
  "learning_rate": "lr",
  "refresh_every": "every",
  "on_policy_fraction": "fraction",
  "replay_window": "window",
}
# Keys of a policy's recipe that have a meaning only for one method.
_ONLINE = ("temperature", "top_p", "refresh_every", "on_policy_fraction", "record")
_OFFLINE = ("dataset", "replay_window", "stream")
# What a run has in common with the online run that it replays, batch by batch.
_SAME = ("size", "init", "loss", "loss_options", "seed", "batch_size", "microbatches")


def stream_of(config: ConfigDict, recipe: dict[str, Any]) -> dict[str, Any]:
  """The recipe of the online run that a run replays: `policy`'s, with its `_SAME`.

  Raises:
    UserError: for a key of `stream` that is no key of `policy`.
  """
  same = {key: recipe[key] for key in _SAME}
  recorded = {"method": "online", "record": True}
  for key in recipe["stream"]:
    if key not in config.policy or key in recorded:
      raise UserError(f"policy.stream has '{key}', which is no key of an online policy")
  return plain(config.policy) | same | recipe["stream"] | recorded


def is_default(config: ConfigDict, recipe: Mapping[str, Any]) -> bool:
  """Whether a run's hyper-parameters are `policy`'s, however it gets its pairs."""
  free = {"method", "seed", *_ONLINE, *_OFFLINE}
  policy = plain(config.policy)
  return all(value == policy[key] for key, value in recipe.items() if key not in free)


def relevant(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """A policy's recipe without what has no meaning for its method."""
  unused = set(_OFFLINE if recipe["method"] == "online" else _ONLINE)
  unused.add("stream")  # it is described by the input that it leads to
  if recipe["dataset"] != "stream":
    unused.add("replay_window")
  return {key: value for key, value in recipe.items() if key not in unused}


def check(name: str, recipe: Mapping[str, Any], datasets: Collection[str]) -> None:
  """Fails now, not after hours, for a recipe that could not be trained.

  Raises:
    UserError: for a loss, a method or a data set that does not exist, and for values
      out of range.
  """
  loss = losses.check(recipe["loss"], recipe["loss_options"])
  if loss.responses == losses.GROUP:
    raise UserError(
      f"{name}: loss '{loss.name}' needs N scored responses of a prompt, and a study "
      "makes pairs: choose a pairwise loss"
    )
  method, dataset = recipe["method"], recipe["dataset"]
  if method not in ("online", "offline"):
    raise UserError(f"{name}: method '{method}' is unknown: online or offline")
  if method == "offline" and dataset not in (*DATASETS, *datasets):
    known = ", ".join([*DATASETS, *datasets])
    raise UserError(f"{name}: dataset '{dataset}' is unknown; there are {known}")
  if not 0 < recipe["beta"] < math.inf:
    raise UserError(f"{name}: beta is {recipe['beta']}; give a number above 0")
  fraction = recipe["on_policy_fraction"]
  if method == "online" and not 0 < fraction <= 1:
    raise UserError(f"{name}: on_policy_fraction must be above 0 and at most 1")
  share = fraction * recipe["batch_size"]
  if method == "online" and (round(share) == 0 or abs(share - round(share)) > 1e-6):
    raise UserError(
      f"{name}: on_policy_fraction {fraction} of batch_size {recipe['batch_size']} is "
      "not a number of pairs"
    )
  if recipe["steps"] < 1 or not recipe["evaluate_at"]:
    raise UserError(f"{name}: steps must be at least 1, and evaluate_at not empty")
  # At temperature 0 both responses would be the same.
  if not 0 < recipe["temperature"] < math.inf or not 0 < recipe["top_p"] <= 1:
    raise UserError(f"{name}: temperature must be above 0, top_p in (0, 1]")
  if method == "online" and recipe["record"] and recipe["on_policy_fraction"] < 1:
    raise UserError(f"{name}: only a run of on_policy_fraction 1 can be recorded")
  if method == "online" and recipe["refresh_every"] < 0:
    raise UserError(f"{name}: refresh_every must be 0 (never) or a number of steps")
  if method == "offline" and recipe["replay_window"] < -1:
    raise UserError(f"{name}: replay_window must be -1 (all), 0 (none) or batches")


def checkpoint_at(where: str, recipe: Mapping[str, Any], fraction: str) -> int:
  """The step of a kept checkpoint, given as a fraction of the run."""
  try:
    step = max(1, round(float(fraction) * recipe["steps"]))
  except ValueError:
    raise UserError(f"{where}: '{fraction}' is no fraction of a run") from None
  if step not in evaluated_steps(recipe):
    raise UserError(f"{where}: {fraction} is not among policy.evaluate_at")
  return step


def labels(name: str, label: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
  """What every record of an evaluation says of its run."""
  keys = ("loss", "beta", "learning_rate", "seed", "size")
  online, trained = recipe["method"] == "online", label not in ("sft", "best_of_n")
  replayed = trained and not online and recipe["dataset"] == "stream"
  return {
    "run": name,
    "method": label,
    **{key: recipe[key] for key in keys},
    "dataset": recipe["dataset"] if trained and not online else None,
    "replay_window": recipe["replay_window"] if replayed else None,
    "refresh_every": recipe["refresh_every"] if trained and online else None,
    "on_policy_fraction": (recipe["on_policy_fraction"] if online else 0.0)
    if trained
    else None,
  }


def evaluated_steps(role: Mapping[str, Any]) -> list[int]:
  """The steps at which a policy's parameters are kept.

  Raises:
    UserError: for fractions that are none.
  """
  for f in role["evaluate_at"]:
    if not isinstance(f, int | float) or not 0 <= f <= 1:
      raise UserError(f"evaluate_at has {f!r}; give fractions of `steps`, 0 to 1")
  return sorted({max(1, round(f * role["steps"])) for f in role["evaluate_at"]})


def plain(value: Any) -> Any:
  """ConfigDicts and tuples as dicts and lists, ready for JSON."""
  if isinstance(value, ConfigDict | dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, tuple | list):
    return [plain(v) for v in value]
  return value
