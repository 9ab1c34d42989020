"""What a study says of itself to those who have only its working directory.

`WORKDIR/study.json`, which the study writes beside the results it publishes:

  task: string
  worlds: integers, at least one
  figures: names of figures, to be drawn
  notes: strings, what a reader of the report should know
  runs: names of the study's runs, `runs/<name>/`; others there are not this study's
  classified_worlds: integers, those of `classification/world<w>.jsonl`
  data: strings, what there is to learn from, a line each
  models: an object for each trained model, with the keys of `Model`; that of a judge
    has an `audit`, an object with the keys of `Audit`
  training: names of `training/<name>.jsonl`, training statistics of a model each
  samples: {"note": string, "rows": [{"prompt": string, "responses": {column: string}}]}
  length_control: boolean, whether figures and claims have the golden preference model
    at equal length as one more judge (length_control.py); may be absent
  version, commit: of the code that made it, strings or null; may be absent
  config, lock: its configuration and the sha256 of requirements.lock, for people
"""

import dataclasses
import json
from pathlib import Path
import re
from typing import Any

from alignment.analysis.captions import FIGURES
from alignment.analysis.records import (
  BOOLEAN,
  FILE_NAME,
  FINITE,
  INTEGER,
  MEASURED,
  OBJECT,
  OBJECT_OF_STRINGS,
  STRING,
  Kind,
  Schema,
  check,
  list_of,
  one_of,
  or_null,
)
from alignment.types import UserError

FILE = "study.json"
# Of held-out pairs: with less agreement a golden preference model has been seen to turn
# the sign of what it judges.
TRUTH_NEEDED = 0.85
_REMEDY = "run the study's command again, which writes it"

_INTEGERS = list_of(INTEGER)
_WORLDS: Kind = (
  "a list of integers, at least one",
  lambda value: _INTEGERS[1](value) and len(value) > 0,
)
_STUDY: Schema = {
  "task": STRING,
  "worlds": _WORLDS,
  "figures": list_of(one_of(FIGURES)),
  "notes": list_of(STRING),
  "runs": list_of(FILE_NAME),
  "classified_worlds": _INTEGERS,
  "data": list_of(STRING),
  "models": list_of(OBJECT),
  "training": list_of(FILE_NAME),
  "samples": OBJECT,
}
_OPTIONAL: Schema = {"length_control": BOOLEAN}
_OF_CODE: Schema = {"version": or_null(STRING), "commit": or_null(STRING)}
_MODEL: Schema = {
  "name": STRING,
  "parameters": MEASURED,
  "init": or_null(STRING),
  "steps": MEASURED,
  "train_accuracy": MEASURED,
  "validation_accuracy": MEASURED,
  "validation_within": MEASURED,
  "truth_accuracy": MEASURED,
  "truth_within": MEASURED,
}
_AUDIT: Schema = {
  "orders_agree": MEASURED,
  "prefers_longer": MEASURED,
  "labels_prefer_longer": MEASURED,
  "accuracy_by_margin": list_of(FINITE),
}
_SAMPLES: Schema = {"note": STRING, "rows": list_of(OBJECT)}
_SAMPLE: Schema = {"prompt": STRING, "responses": OBJECT_OF_STRINGS}


@dataclasses.dataclass(frozen=True)
class Audit:
  """What a judge goes by, and when it errs: shares of held-out pairs."""

  orders_agree: float | None  # one response preferred, whichever is read first
  prefers_longer: float | None  # of pairs whose responses differ in length
  labels_prefer_longer: float | None  # of the same, by their labels
  accuracy_by_margin: list[float]  # of equally many pairs, the least certain first


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained model, for a table; None where a number makes no sense."""

  name: str
  parameters: float | None
  init: str | None  # what training started from
  steps: float | None  # of the checkpoint that was chosen
  train_accuracy: float | None
  validation_accuracy: float | None  # over prompts that no model has learned from
  validation_within: float | None  # half of the 95 % interval
  truth_accuracy: float | None  # where the truth is known
  truth_within: float | None
  audit: Audit | None = None

  @property
  def labelled_by_golden_pm(self) -> bool:
    """Whether what it learned from, and is validated on, has the golden PM's labels."""
    return re.fullmatch(r"(world\d+_)?proxy_pm", self.name) is not None


@dataclasses.dataclass(frozen=True)
class Sample:
  """A prompt and responses to it, to be shown side by side."""

  prompt: str
  responses: dict[str, str]  # whose -> text


@dataclasses.dataclass(frozen=True)
class Published:
  """A study as it is published: the keys of `study.json`."""

  task: str
  worlds: list[int]
  figures: list[str]
  notes: list[str]
  runs: list[str]
  classified_worlds: list[int]
  data: list[str]
  models: list[Model]
  training: list[str]
  samples: list[Sample]
  samples_note: str  # of what checkpoints they are
  length_control: bool = False
  version: str | None = None  # of the code that made it
  commit: str | None = None

  @property
  def refused(self) -> dict[int, str]:
    """world -> why it counts for no claim, of those that do not."""
    accuracies = {model.name: model.truth_accuracy for model in self.models}
    of_world = {w: accuracies.get(f"world{w}_golden_pm") for w in self.worlds}
    return {
      world: f"the golden PM agrees with the truth on {accuracy:.3f} of held-out "
      f"pairs, less than {TRUTH_NEEDED}"
      for world, accuracy in of_world.items()
      if accuracy is not None and accuracy < TRUTH_NEEDED
    }


def load(workdir: Path) -> Published:
  """Reads and checks `study.json`; keys that are not known here are let be.

  Raises:
    UserError: naming the file, and the key, if it is missing or damaged.
  """
  path = workdir / FILE
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{path}: missing; {_REMEDY}") from None
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from None
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: damaged ({error}); {_REMEDY}") from None
  check(record, _STUDY, str(path), _REMEDY)
  of_code = {key: record.get(key) for key in _OF_CODE}
  check(of_code, _OF_CODE, str(path), _REMEDY)
  optional = {key: record[key] for key in _OPTIONAL if key in record}
  check(optional, {key: _OPTIONAL[key] for key in optional}, str(path), _REMEDY)
  _check_each(record["models"], _MODEL, f"{path}: models")
  check(record["samples"], _SAMPLES, f"{path}: samples", _REMEDY)
  rows = record["samples"]["rows"]
  _check_each(rows, _SAMPLE, f"{path}: samples.rows")
  models = enumerate(record["models"])
  plain = {key: record[key] for key in _STUDY if key not in ("models", "samples")}
  return Published(
    **plain,
    **of_code,
    **optional,
    models=[_model(model, f"{path}: models[{i}].audit") for i, model in models],
    samples=[Sample(row["prompt"], row["responses"]) for row in rows],
    samples_note=record["samples"]["note"],
  )


def _model(record: dict[str, Any], where: str) -> Model:
  """A checked record; its audit, if it has one, is checked here."""
  audit = record.get("audit")
  if audit is not None:
    check(audit, _AUDIT, where, _REMEDY)
    audit = Audit(**{key: audit[key] for key in _AUDIT})
  return Model(**{key: record[key] for key in _MODEL}, audit=audit)


def _check_each(records: list[Any], schema: Schema, where: str) -> None:
  for i, record in enumerate(records):
    check(record, schema, f"{where}[{i}]", _REMEDY)
