"""The tables of the pages: rows of cells, the first two of them the head's."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import math
import re
import statistics
from typing import Any

import numpy as np
from published_data import DOCS, Data

from alignment.analysis import gaps as gaps_lib
from alignment.analysis.best import HEADER, best_rows
from alignment.analysis.claims import (
  NO_JUDGE,
  VERDICTS,
  WORLDS_NEEDED,
  count_verdicts,
)
from alignment.analysis.intervals import NORMAL_QUANTILE, Estimate, t_interval
from alignment.analysis.report import WRITERS
from alignment.analysis.runs import Run
from alignment.data import toy, toy_audit
from alignment.study import documents

JUDGES = ("golden PM", "truth")
SAMPLES_SHOWN = 4
Rows = Iterator[tuple[str, ...]]


def gaps(data: Data) -> Rows:
  """Figure 1's two gaps, per world, with the golden preference model's accuracy."""
  truth = {m["name"]: m["truth_accuracy"] for m in data.study["models"]}
  worlds = data.study["worlds"]
  yield from _head("world", "golden PM agrees with the truth", *_GAPS)
  for world in worlds:
    yield (
      str(world),
      f"{truth[f'world{world}_golden_pm']:.3f}",
      *_gaps(data, str(world)),
    )
  of_all = (f"**{cell}**" for cell in _gaps(data, "all"))
  yield f"**{worlds[0]}–{worlds[-1]}**", "", *of_all


def answer(data: Data) -> Rows:
  """The same over all worlds."""
  yield from _head(*_GAPS)
  yield _gaps(data, "all")


def answers(data: Data) -> Rows:
  """The same in both languages, and where the rich one has no learned golden model."""
  yield from _head("language", *_GAPS)
  for name, words in _LANGUAGES.items():
    if (directory := data.directory.with_name(name)).exists():
      yield words, *_gaps(Data(directory), "all")


_LANGUAGES = {
  "quickstart": "easy",
  "study": "rich",
  "truth": "rich; raters' utility labels and judges",
}


_NUMBERS = {"peak": "peak win rate", "equal KL": "win rate at equal KL"}
_GAPS = tuple(f"{short}, {judge}" for short in _NUMBERS for judge in JUDGES)


def _gaps(data: Data, world: str) -> tuple[str, ...]:
  rows = {
    (row["number"], row["judge"]): row
    for row in data.claims
    if (row["figure"], row["loss"], row["world"]) == ("1", data.main_loss, world)
    and row["compared"] == "online minus offline"
  }
  return tuple(_estimate(rows[n, j]) for n in _NUMBERS.values() for j in JUDGES)


def utilities(data: Data) -> Rows:
  """What policies are worth by the truth: means over worlds of the best checkpoints."""
  yield from _head("the checkpoint that wins most often", "true utility", *JUDGES)
  keys = ("true_utility", "win_rate", "true_win_rate")
  for series in ("sft", "offline", "online", "golden_policy"):
    best = [
      max(
        (r for r in data.records if (r["world"], r["series"]) == (world, series)),
        key=lambda record: record["win_rate"],
      )
      for world in data.study["worlds"]
    ]
    means = [sum(record[key] for record in best) / len(best) for key in keys]
    name = {"sft": "SFT"}.get(series, series.replace("_", " "))
    yield name, _signed(means[0], 2), *(f"{mean:.2f}" for mean in means[1:])


def claims(data: Data) -> Rows:
  """Every statement over all worlds; of too few to decide anything, what they show."""
  rows: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
  for row in data.claims:
    if row["world"] == "all":
      key = row["figure"], row["statement"], row["loss"], row["holds_if"]
      rows.setdefault(key, {})[row["judge"]] = row
  first, *others = dict.fromkeys(j for of_judge in rows.values() for j in of_judge)
  others = [judge for judge in others if judge != NO_JUDGE]
  decided = len(data.study["worlds"]) >= WORLDS_NEEDED
  yield from _head(
    "fig.", "the statement", "holds if", f"{first} (or alone)", *others,
    "verdict" if decided else "in these worlds",
  )  # fmt: skip
  for (figure, statement, loss, region), of_judge in rows.items():
    alone = of_judge.get(NO_JUDGE) or of_judge[first]
    about = statement if loss in ("", data.main_loss) else f"{statement} ({loss})"
    yield (
      figure,
      about,
      region.replace("-", MINUS),
      _estimate(alone),
      *(_estimate(of_judge[j]) if j in of_judge else "" for j in others),
      _verdict(alone) if decided else alone["reading"].removesuffix(" in this world"),
    )


def _verdict(row: Mapping[str, str]) -> str:
  verdict = "**disagrees**" if row["verdict"] == "disagrees" else row["verdict"]
  why = "; ".join(filter(None, (row["reason"], row["reading"])))
  return f"{verdict}: {why}" if row["verdict"] == "undecided" else verdict


def tally(data: Data) -> Rows:
  """Verdicts per statement, of the paper and of others."""
  decided: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
  for row in data.claims:
    if row["world"] == "all":
      of_the_paper = bool(re.match(r"\d|App", row["figure"]))
      decided[of_the_paper].append((row["statement"], row["verdict"]))
  yield from _head("statements", *VERDICTS)
  yield "of the paper", *map(str, count_verdicts(decided[True]).values())
  others = "of later papers, and on longer offline training"
  yield others, *map(str, count_verdicts(decided[False]).values())


def best(data: Data) -> Rows:
  """The best checkpoint of every series."""
  yield from _head(*HEADER)
  yield from best_rows(data.runs)


def checkpoints(data: Data) -> Rows:
  """Every evaluation of a world whose truth is known: where judges and truth part."""
  yield from _head(
    "run", "step", "KL", "tokens", *JUDGES, "true utility", "golden score",
    "proxy score", "golden PM right on its samples",
  )  # fmt: skip
  for record in data.records:
    accuracy = record["judge_accuracy_on_policy"]
    yield (
      re.sub(r"world\d+_", "", record["run"]),
      str(record["step"]),
      f"{record['kl']:.1f}",
      f"{record['response_length']:.0f}",
      *(f"{record[key]:.2f}" for key in ("win_rate", "true_win_rate", "true_utility")),
      *(_signed(record[key], 2) for key in ("golden_score", "proxy_score")),
      "" if accuracy is None else f"{accuracy:.2f}",
    )


def judges(data: Data) -> Rows:
  """Of held-out pairs: how good judges are, and what they go by."""
  yield from _head(
    "judge", "agrees with its labels", "agrees with the truth", "prefers the longer",
    "its labels do", "accuracy by margin, least certain quarter first",
  )  # fmt: skip
  worlds = data.study["worlds"]
  of_one_world = f"world{worlds[0]} " if len(worlds) == 1 else ""
  for model in data.study["models"]:
    if audit := model["audit"]:
      yield (
        model["name"].replace("_", " ").removeprefix(of_one_world),
        _share(model["validation_accuracy"], model["validation_within"]),
        _share(model["truth_accuracy"], model["truth_within"]),
        _share(audit["prefers_longer"]),
        _share(audit["labels_prefer_longer"]),
        ", ".join(map(_share, audit["accuracy_by_margin"])),
      )


def languages(data: Data) -> Rows:
  """What each world of a generated language can be won with, and who judges there."""
  yield from _head(
    "world", "utility: optimum", "writers", "a copy", "best trivial policy",
    "accuracy: blind", "best sum over words", "raters on labels",
    "golden PM on labels", "golden PM on the truth", "proxy PM on the truth",
  )  # fmt: skip
  models = {model["name"]: model for model in data.study["models"]}
  for world in data.study["worlds"]:
    audit = toy_audit.audit_of(_language(data, world))
    golden, proxy = (models[f"world{world}_{m}"] for m in ("golden_pm", "proxy_pm"))
    trivial = audit.closest[0]
    utilities = audit.optimum, audit.writers, audit.trivial["copy"]
    yield (
      str(world),
      *(_signed(utility, 2) for utility in utilities),
      f"{_signed(audit.trivial[trivial], 2)} ({trivial})",
      *map(_share, (audit.blind, audit.linear, audit.raters)),
      _share(golden["validation_accuracy"], golden["validation_within"]),
      *map(_share, (golden["truth_accuracy"], proxy["truth_accuracy"])),
    )


def proxies(data: Data) -> Rows:
  """Where an online run ends that learns from another proxy: smaller ones first."""
  yield from _head(
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
    _share(proxy["validation_accuracy"], proxy["validation_within"]),
    _share(proxy["truth_accuracy"], proxy["truth_within"]),
    f"{last['kl']:.1f}",
    *(
      f"{_signed(last[key], 2)} ± {NORMAL_QUANTILE * last[f'{key}_stderr']:.2f}"
      for key in ("proxy_score", "golden_score")
    ),
    *(f"{last[key]:.2f}" for key in ("win_rate", "true_win_rate")),
    f"{max(r['true_win_rate'] for r in online):.2f}",
  )


def _language(data: Data, world: int) -> toy.Language:
  fields = data.study["config"]["data"]["language"]
  plain = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  return toy.Language(world, **plain)


def sizes(data: Data) -> Rows:
  """The SFT models of the first world: what training says of pairs not seen before."""
  yield from _head("size", "parameters", "learning rate", "nats per token")
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


_KLS = (0, 1, 3, 6, 12, math.inf)  # nats


def _ranges(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list]]:
  """The records whose KL is in a range, and the range in words."""
  for low, high in itertools.pairwise(_KLS):
    if within := [r for r in records if low <= r["kl"] < high]:
      yield f"{low} to {high}" if high < math.inf else f"above {low}", within


_FEWEST = 3  # worlds that a mean is taken over


def by_kl(data: Data) -> Rows:
  """What figures 7, 8 and E.1 show over steps, by the KL: means over worlds."""
  keys = {
    "accuracy on D_golden": "classification_accuracy",
    "log-ratio of its preferred responses": "chosen_log_ratio",
    "accuracy on their own samples": "self_classification_accuracy",
    "entropy, nats": "entropy",
    "golden PM right on their samples": "judge_accuracy_on_policy",
  }
  yield from _head("KL, nats", "policies", "worlds", *keys)
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


def ends(data: Data) -> Rows:
  """Where runs of the policy's own settings end, by everybody's judgement."""
  yield from _head(
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
          *(_signed(last[key], 1) for key in scores),
          *(f"{last[key]:.2f}" for key in ("win_rate", "true_win_rate")),
          _signed(last["true_utility"], 1),
          f"{last['judge_accuracy_on_policy']:.2f}",
          _share(proxy["validation_accuracy"]),
        )


def learned_from(data: Data) -> Rows:
  """What a method's pairs do at the policy's own settings, and what they teach."""
  yield from _head(
    "learns from", "learning rate", "steps", "log-ratio of the preferred at the end",
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
      _mean_within(ratios, 1),
      *(
        _of(data.over_worlds(gaps_lib.peak_above_level, judge, runs, data.sft))
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
  yield from _head(
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
        _of(data.over_worlds(gaps_lib.peak_gap, judge, runs_of[a], runs_of[b]))
        for a, b in _PAIRS
        for judge in JUDGES
      ),
    )


_PAIRS = (("online", "offline"), ("shuffled", "online"))


def _mean_within(values: Sequence[float], digits: int) -> str:
  """A mean with half of Student's interval, which one value does not have."""
  mean, low, _ = t_interval(np.array(values))
  text = f"{mean:.{digits}f}".replace("-", MINUS)
  return text if math.isnan(low) else f"{text} ± {mean - low:.{digits}f}"


def _over_worlds(records: Sequence[dict[str, Any]], key: str) -> str:
  """The mean of the worlds' means, with Student's interval."""
  per_world: dict[int, list[float]] = {}
  for record in records:
    if record[key] is not None:
      per_world.setdefault(record["world"], []).append(record[key])
  return _mean_within([float(np.mean(v)) for v in per_world.values()], 2)


def estimators(data: Data) -> Rows:
  """Standard errors of the KL's estimates on the same samples, by the KL."""
  yield from _head("KL, nats", "checkpoints", "exact per token", "k1", "k3")
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


def _share(value: float | None, within: float | None = None) -> str:
  if value is None:
    return "unknown"
  return f"{value:.3f}" if within is None else f"{value:.3f} ± {within:.3f}"


def samples(data: Data) -> Rows:
  """The first prompts, with everybody's response."""
  yield from _head("prompt", *WRITERS)
  for row in data.study["samples"]["rows"][:SAMPLES_SHOWN]:
    cells = (row["prompt"], *(row["responses"].get(name, "") for name in WRITERS))
    yield tuple(map(_in_a_cell, cells))


def _in_a_cell(text: str) -> str:
  plain = re.sub(r"([\\`*_<>|#\[\]~$])", r"\\\1", text.strip())
  return re.sub(r"\s*\n\s*", "<br>", plain)


def parts(data: Data) -> Rows:
  """What the known utility of configs/smollm2_truth.py pays everybody for."""
  rows = data.study["samples"]["rows"]
  replies = {name: [row["responses"][name] for row in rows] for name in WRITERS}
  truth = documents.load(DOCS.parent / "configs" / "smollm2_truth.py")
  yield from _head("the best of", "utility", *truth.PARTS)
  yield from truth.priced([row["prompt"] for row in rows], replies)


TABLES = {
  table.__name__: table
  for table in (
    gaps,
    answer,
    answers,
    utilities,
    claims,
    best,
    by_kl,
    ends,
    checkpoints,
    estimators,
    judges,
    languages,
    learned_from,
    proxies,
    samples,
    sizes,
    tally,
    without_contrast,
    parts,
  )
}
MINUS = "\N{MINUS SIGN}"


def _head(*cells: str) -> Rows:
  yield cells
  yield ("---",) * len(cells)


def _signed(value: float, digits: int = 3) -> str:
  return f"{value:+.{digits}f}".replace("-", MINUS)


def _of(estimate: Estimate) -> str:
  return str(estimate).replace("-", MINUS)


def _estimate(row: Mapping[str, str]) -> str:
  if not row["value"]:
    return "n/a"
  value, *ends = (_signed(float(row[k])) for k in ("value", "low", "high") if row[k])
  return f"{value} [{', '.join(ends)}]" if ends else value
