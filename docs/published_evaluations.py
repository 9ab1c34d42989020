"""Tables of what a study's numbers depend on, made of its evaluations."""

from collections.abc import Iterator, Sequence
import itertools
import math
import statistics
from typing import Any

import numpy as np
from published_cells import Rows, estimate_of, head, mean_within, share, signed
from published_data import JUDGES, Data, data_of

from alignment.analysis import gaps as gaps_lib
from alignment.analysis.intervals import NORMAL_QUANTILE
from alignment.analysis.runs import Run


def ends(data: Data) -> Rows:
  """Where runs of the policy's own settings end, by everybody's judgement."""
  yield from head(
    "world", "policy", "KL", "proxy score", "golden score", *JUDGES, "true utility",
    "golden PM right on its samples", "proxy PM on golden labels",
  )  # fmt: skip
  models = {model["name"]: model for model in data.study["models"]}
  for world in data.study["worlds"]:
    proxy = models[f"world{world}_proxy_pm"]
    for run in data.runs:
      main = run.default and run.loss == data.main_loss
      if run.world == world and main and run.series in ("online", "offline"):
        last = run.records[-1]
        scores = ("proxy_score", "golden_score")
        yield (
          str(world),
          run.series,
          f"{last['kl']:.1f}",
          *(signed(last[key], 1) for key in scores),
          *(f"{last[key]:.2f}" for key in ("win_rate", "true_win_rate")),
          signed(last["true_utility"], 1),
          share(last["judge_accuracy_on_policy"], digits=2),
          share(proxy["validation_accuracy"]),
        )


def by_kl(data: Data) -> Rows:
  """What figures 7, 8 and E.1 show over steps, by the KL: means over worlds."""
  keys = {
    "accuracy on D_golden": "classification_accuracy",
    "log-ratio of its preferred responses": "chosen_log_ratio",
    "accuracy on their own samples": "self_classification_accuracy",
    "entropy, nats": "entropy",
    "golden PM right on their samples": "judge_accuracy_on_policy",
  }
  yield from head("KL, nats", "policies", "worlds", *keys)
  main = data.study["config"]["policy"]["size"]
  of_main = [
    r for r in data.records if (r["loss"], r["size"]) == (data.main_loss, main)
  ]
  for series in ("online", "shuffled", "offline"):
    of_series = [r for r in of_main if r["series"] == series]
    for name, within in _ranges(of_series):
      if len({r["world"] for r in within}) < min(_FEWEST, len(data.study["worlds"])):
        continue
      means = [_over_worlds(within, key) for key in keys.values()]
      yield name, series, str(len({r["world"] for r in within})), *means


_KLS = (0, 1, 3, 6, 12, math.inf)  # nats


def _ranges(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list]]:
  """The records whose KL is in a range, and the range in words."""
  for low, high in itertools.pairwise(_KLS):
    if within := [r for r in records if low <= r["kl"] < high]:
      yield f"{low} to {high}" if high < math.inf else f"above {low}", within


_FEWEST = 3  # worlds that a mean is taken over


def _over_worlds(records: Sequence[dict[str, Any]], key: str) -> str:
  """The mean of the worlds' means, with Student's interval."""
  per_world: dict[int, list[float]] = {}
  for record in records:
    if record[key] is not None:
      per_world.setdefault(record["world"], []).append(record[key])
  return mean_within([float(np.mean(v)) for v in per_world.values()], 2)


def learned_from(data: Data) -> Rows:
  """What a method's pairs do at the policy's own settings, and what they teach."""
  yield from head(
    "learns from", "learning rate", "steps",
    "log-ratio of the preferred in its own pairs, at the end",
    *(f"peak above SFT, {judge}" for judge in JUDGES),
  )  # fmt: skip
  policy = data.study["config"]["policy"]
  for (series, rate, steps), runs in data.by_settings(
    ("online", "shuffled", *data.study["config"]["datasets"], *_OFFLINE),
    lambda run: (
      (run.loss, run.size, run.beta) == (data.main_loss, policy["size"], policy["beta"])
    ),
  ):
    ratios = [run.metrics[-1]["chosen_log_ratio"] for run in runs]
    yield (
      _SOURCES.get(series, series.replace("_", "-")),
      f"{rate:g}",
      str(steps),
      mean_within(ratios, 1),
      *(
        estimate_of(data.over_worlds(gaps_lib.peak_above_level, judge, runs, data.sft))
        for judge in JUDGES
      ),
    )


_OFFLINE = ("offline", "offline_longer")
_SOURCES = {
  "online": "its own samples",
  "shuffled": "the online stream, shuffled",
  "offline": "D_golden",
  "offline_longer": "D_golden",
}


def without_contrast(data: Data) -> Rows:
  """Figure 9 by learning rate: differences of peaks."""
  yield from head(
    "learning rate",
    *(f"{pair}, {judge}" for pair in map(" minus ".join, _PAIRS) for judge in JUDGES),
  )
  by_rate: dict[float, dict[str, list[Run]]] = {}
  settings = data.by_settings(
    ("online", "offline", "shuffled"), lambda run: run.loss == "best_of_2"
  )
  for (series, rate, _), runs in settings:
    by_rate.setdefault(rate, {})[series] = runs
  for rate, runs_of in sorted(by_rate.items()):
    yield (
      f"{rate:g}",
      *(
        estimate_of(data.over_worlds(gaps_lib.peak_gap, judge, runs_of[a], runs_of[b]))
        for a, b in _PAIRS
        for judge in JUDGES
      ),
    )


_PAIRS = (("online", "offline"), ("shuffled", "online"))


def sizes(data: Data) -> Rows:
  """The SFT models of the first world: what training says of pairs not seen before."""
  yield from head("size", "parameters", "learning rate", "nats per token")
  sft = data.study["config"]["sft"]
  first = f"world{data.study['worlds'][0]}_"
  models = {model["name"]: model for model in data.study["models"]}
  curves = [name for name in data.study["training"] if name.startswith("sft_")]
  for name in sorted(curves, key=lambda name: models[first + name]["parameters"]):
    model, size = models[first + name], name.removeprefix("sft_")
    recipe = sft | sft["by_size"].get(size, {})
    yield (
      size.removeprefix("llama_"),
      f"{model['parameters']:,}",
      f"{recipe['learning_rate']:g}",
      f"{data.lines(f'training/{name}.jsonl')[-1]['loss']:.3f}",
    )


def larger(data: Data) -> Rows:
  """Peaks of the largest policies minus those of the main size, by learning rate.

  In the worlds in which the dial `rate` was turned.
  """
  yield from head(
    "world", "learns from", "learning rate", "steps",
    *(f"{name}'s KL at the end" for name in ("largest", "main size")),
    *(f"largest minus main size, {judge}" for judge in JUDGES),
  )  # fmt: skip
  turned = data_of("rate")
  for world in turned.study["worlds"]:
    for series in ("online", "shuffled", "offline"):
      yield from (_larger(each, world, series) for each in (data, turned))


def _larger(data: Data, world: int, series: str) -> tuple[str, ...]:
  policy = data.study["config"]["policy"]
  largest = max(data.runs, key=lambda run: run.parameters).size
  groups = []
  for size in (largest, policy["size"]):
    settings = (world, series, data.main_loss, size, policy["beta"])
    groups.append(
      [r for r in data.runs if (r.world, r.series, r.loss, r.size, r.beta) == settings]
    )
  return (
    str(world),
    _SOURCES[series],
    f"{policy['learning_rate']:g}",
    str(policy["steps"]),
    *(f"{run.kl_E[-1]:.1f}" for [run] in groups),
    *(estimate_of(gaps_lib.peak_gap(*groups, judge)) for judge in JUDGES),
  )


def proxies(data: Data) -> Rows:
  """Where an online run ends that learns from another proxy: smaller ones first."""
  yield from head(
    "proxy PM", "pairs it sees", "right on golden labels", "right on the truth", "KL",
    "proxy score", "golden score", *JUDGES, "best on the way, truth",
  )  # fmt: skip
  rows = [_of_proxy(Data(directory)) for directory in data.directory.glob("*/")]
  yield from (row for _, row in sorted(rows))


def _of_proxy(data: Data) -> tuple[tuple[int, int], tuple[str, ...]]:
  """(parameters, pairs seen) of a study's only proxy, and its row."""
  [proxy] = [m for m in data.study["models"] if m["name"].endswith("proxy_pm")]
  recipe = data.study["config"]["proxy_pm"]
  seen = recipe["steps"] * recipe["batch_size"]
  online = [r for r in data.records if r["series"] == "online"]
  last = online[-1]
  return (proxy["parameters"], seen), (
    recipe["size"].removeprefix("llama_"),
    f"{seen:,}",
    share(proxy["validation_accuracy"], proxy["validation_within"]),
    share(proxy["truth_accuracy"], proxy["truth_within"]),
    f"{last['kl']:.1f}",
    *(
      f"{signed(last[key], 2)} ± {NORMAL_QUANTILE * last[f'{key}_stderr']:.2f}"
      for key in ("proxy_score", "golden_score")
    ),
    *(f"{last[key]:.2f}" for key in ("win_rate", "true_win_rate")),
    f"{max(r['true_win_rate'] for r in online):.2f}",
  )


def estimators(data: Data) -> Rows:
  """Standard errors of the KL's estimates on the same samples, by the KL."""
  yield from head("KL, nats", "checkpoints", "exact per token", "k1", "k3")
  records = [r for r in data.records if r.get("kl_k1_stderr") and r["step"]]
  for name, within in _ranges(records):
    yield (
      name,
      str(len(within)),
      *(
        f"{statistics.median(r[key] for r in within):.2g}, "
        f"at most {max(r[key] for r in within):.2g}"
        for key in ("kl_stderr", "kl_k1_stderr", "kl_k3_stderr")
      ),
    )


TABLES = (
  by_kl,
  ends,
  estimators,
  larger,
  learned_from,
  proxies,
  sizes,
  without_contrast,
)
