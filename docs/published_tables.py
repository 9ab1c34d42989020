"""The tables of the pages, by name: of claims, worlds, judges and samples."""

from collections.abc import Mapping
import re

from published_cells import MINUS, Rows, head, share, signed
from published_data import DOCS, JUDGES, Data, data_of
import published_evaluations

from alignment.analysis.best import HEADER, best_rows
from alignment.analysis.claims import (
  NO_JUDGE,
  VERDICTS,
  WORLDS_NEEDED,
  count_verdicts,
)
from alignment.analysis.report import WRITERS
from alignment.data import toy, toy_audit
from alignment.study import documents

SAMPLES_SHOWN = 4


def gaps(data: Data) -> Rows:
  """Figure 1's two gaps, per world, with the golden preference model's accuracy."""
  truth = {m["name"]: m["truth_accuracy"] for m in data.study["models"]}
  worlds = data.study["worlds"]
  yield from head("world", "golden PM agrees with the truth", *_GAPS)
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
  yield from head(*_GAPS)
  yield _gaps(data, "all")


def answers(data: Data) -> Rows:
  """The same in both languages, and where dials of the rich one are turned."""
  yield from head("language", *_GAPS)
  for name, words in _LANGUAGES.items():
    yield words, *_gaps(data_of(name), "all")


_LANGUAGES = {
  "quickstart": "easy",
  "study": "rich",
  "truth": "rich, no learned golden model",
  "short": "the same, one or two words",
}


def dials(data: Data) -> Rows:
  """Figure 1's two gaps by the truth, per world, where dials are turned."""
  yield from head(
    "world", *(f"{short}, {words}" for short in _NUMBERS for words in _DIALS.values())
  )
  for world in [*map(str, data.study["worlds"]), "all"]:
    gaps_of = [_gaps(data_of(name), world)[1::2] for name in _DIALS]  # by the truth
    cells = [cell for of_number in zip(*gaps_of, strict=True) for cell in of_number]
    yield world, *cells


_DIALS = {
  "study": "learned golden model",
  "truth": "no learned one",
  "short": "no learned one, one or two words",
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
  yield from head("the checkpoint that wins most often", "true utility", *JUDGES)
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
    yield name, signed(means[0], 2), *(f"{mean:.2f}" for mean in means[1:])


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
  yield from head(
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
  yield from head("statements", *VERDICTS)
  yield "of the paper", *map(str, count_verdicts(decided[True]).values())
  others = "of later papers, and on longer offline training"
  yield others, *map(str, count_verdicts(decided[False]).values())


def best(data: Data) -> Rows:
  """The best checkpoint of every series."""
  yield from head(*HEADER)
  yield from best_rows(data.runs)


def checkpoints(data: Data) -> Rows:
  """Every evaluation of a world whose truth is known: where judges and truth part."""
  yield from head(
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
      *(signed(record[key], 2) for key in ("golden_score", "proxy_score")),
      "" if accuracy is None else f"{accuracy:.2f}",
    )


def judges(data: Data) -> Rows:
  """Of held-out pairs: how good judges are, and what they go by."""
  yield from head(
    "judge", "agrees with its labels", "agrees with the truth", "prefers the longer",
    "its labels do", "accuracy by margin, least certain quarter first",
  )  # fmt: skip
  worlds = data.study["worlds"]
  of_one_world = f"world{worlds[0]} " if len(worlds) == 1 else ""
  for model in data.study["models"]:
    if audit := model["audit"]:
      yield (
        model["name"].replace("_", " ").removeprefix(of_one_world),
        share(model["validation_accuracy"], model["validation_within"]),
        share(model["truth_accuracy"], model["truth_within"]),
        share(audit["prefers_longer"]),
        share(audit["labels_prefer_longer"]),
        ", ".join(map(share, audit["accuracy_by_margin"])),
      )


def languages(data: Data) -> Rows:
  """What each world of a generated language can be won with, and who judges there."""
  yield from head(
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
      *(signed(utility, 2) for utility in utilities),
      f"{signed(audit.trivial[trivial], 2)} ({trivial})",
      *map(share, (audit.blind, audit.linear, audit.raters)),
      share(golden["validation_accuracy"], golden["validation_within"]),
      *map(share, (golden["truth_accuracy"], proxy["truth_accuracy"])),
    )


def _language(data: Data, world: int) -> toy.Language:
  fields = data.study["config"]["data"]["language"]
  plain = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  return toy.Language(world, **plain)


def samples(data: Data) -> Rows:
  """The first prompts, with everybody's response."""
  yield from head("prompt", *WRITERS)
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
  yield from head("the best of", "utility", *truth.PARTS)
  yield from truth.priced([row["prompt"] for row in rows], replies)


def _estimate(row: Mapping[str, str]) -> str:
  if not row["value"]:
    return "n/a"
  value, *ends = (signed(float(row[k])) for k in ("value", "low", "high") if row[k])
  return f"{value} [{', '.join(ends)}]" if ends else value


TABLES = {
  table.__name__: table
  for table in (
    gaps,
    answer,
    answers,
    utilities,
    claims,
    dials,
    best,
    checkpoints,
    judges,
    languages,
    samples,
    tally,
    parts,
    *published_evaluations.TABLES,
  )
}
