"""Evaluated runs made up for tests: every record complete, every number from a seed."""

from collections.abc import Sequence
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from alignment.analysis.runs import JUDGES, Classification, Run

PARAMETERS = {"nano": 10_000, "micro": 40_000, "milli": 160_000, "tiny": 640_000}
MEASURED = {  # at every checkpoint, unless told otherwise
  "kl_stderr": 0.1,
  "golden_score_stderr": 0.05,
  "chosen_log_ratio": -1.0,
  "rejected_log_ratio": -2.0,
  "classification_accuracy": 0.6,
  "self_classification_accuracy": 0.5,
  "truncation_rate": 0.0,
  "response_length": 8.0,
  "entropy": 5.0,
  "decode_vs_score_max_abs_diff": 1e-6,
}
OF_SERIES: dict[str, dict[str, Any]] = {
  **dict.fromkeys(("online", "grpo"), {"refresh_every": 1, "on_policy_fraction": 1.0}),
  "offline": {"dataset": "golden", "on_policy_fraction": 0.0},
  "offline_longer": {"dataset": "golden", "on_policy_fraction": 0.0},
  "chi_po": {"dataset": "golden", "on_policy_fraction": 0.0},
  "shuffled": {"dataset": "stream", "replay_window": -1, "on_policy_fraction": 0.0},
  "replay": {"dataset": "stream", "replay_window": 0, "on_policy_fraction": 0.0},
  "semi_online": {"refresh_every": 16, "on_policy_fraction": 1.0},
  "hybrid": {"refresh_every": 1, "on_policy_fraction": 0.5},
  **{
    name: {"dataset": name, "on_policy_fraction": 0.0}
    for name in ("final_vs_final", "sft_vs_early", "early_vs_final")
  },
  "best_of_n": {"beta": None, "learning_rate": None},
  "sft": {"beta": None, "learning_rate": None},
  "golden_policy": {"refresh_every": 1, "on_policy_fraction": 1.0},
}


def method_of(series: str) -> str | None:
  if series in ("sft", "best_of_n"):
    return None
  return "offline" if "dataset" in OF_SERIES[series] else "online"


def make_run(
  name: str,
  series: str,
  wins: Sequence | np.ndarray,
  kls: Sequence[float],
  *,
  truth: Sequence | np.ndarray | None = None,
  world: int = 0,
  steps: Sequence[int] | None = None,
  metrics: Sequence[dict[str, Any]] = (),
  measured: dict[str, Sequence[float | None]] | None = None,
  default: bool = False,
  **fields: Any,
) -> Run:
  """A run with `wins` [E, P] (also as `truth`, if there is one) at KLs `kls` [E]."""
  wins_ExP = {"golden PM": np.asarray(wins, float)}
  if truth is not None:
    wins_ExP["truth"] = np.asarray(truth, float)
  steps = [100 * i for i in range(len(kls))] if steps is None else steps
  of_run = {
    "series": series,
    "method": method_of(series),
    "default": default,
    "task": "tldr",
    "loss": "ipo",
    "beta": 0.1,
    "learning_rate": 1e-3,
    "world": world,
    "seed": 0,
    "size": "micro",
    "dataset": None,
    "replay_window": None,
    "refresh_every": None,
    "on_policy_fraction": None,
    **OF_SERIES[series],
    **fields,
  }
  of_run.setdefault("parameters", PARAMETERS[of_run["size"]])
  records = []
  for i, (step, kl) in enumerate(zip(steps, kls, strict=True)):
    record = {"run": name, **of_run, "step": step, "kl": float(kl), **MEASURED}
    for key, judge in (("win_rate", "golden PM"), ("true_win_rate", "truth")):
      if judge in wins_ExP:
        record[key] = float(wins_ExP[judge][i].mean())
    record["win_rate_stderr"] = float(wins_ExP["golden PM"][i].std() / 7)
    record["golden_score"] = math.sqrt(kl) * (2 - math.log(kl) / 2) if kl else 0.0
    if "truth" in wins_ExP:
      record |= {"true_utility": 1.0, "judge_accuracy_on_policy": 0.8}
    record |= {key: values[i] for key, values in (measured or {}).items()}
    records.append(record)
  return Run(
    name=name,
    **of_run,
    steps_E=np.array(steps),
    kl_E=np.array(kls, float),
    wins=wins_ExP,
    records=records,
    metrics=list(metrics),
  )


def certain(rates: Sequence[float], prompts: int = 10) -> np.ndarray:
  """Outcomes [E, P] without noise: every prompt is won to the same share."""
  return np.repeat(np.array(rates, float)[:, None], prompts, axis=1)


def drawn(rates: Sequence[float], seed: int, prompts: int = 40) -> np.ndarray:
  """Outcomes [E, P], each won with its checkpoint's probability."""
  random_ExP = np.random.default_rng(seed).random((len(rates), prompts))
  return (random_ExP < np.array(rates)[:, None]).astype(float)


def chosen(runs: Sequence[Run], series: str, **fields: Any) -> list[Run]:
  """Those of one series with these fields; of the main loss and size by default."""
  fields = {"loss": "ipo", "size": "micro"} | fields
  return [
    run
    for run in runs
    if run.series == series and all(getattr(run, k) == v for k, v in fields.items())
  ]


def write(workdir: Path, run: Run) -> Path:
  """The files of one run, as an evaluation writes them; returns their directory."""
  directory = workdir / "runs" / run.name
  directory.mkdir(parents=True)
  arrays = {JUDGES[judge]: wins.astype(np.float32) for judge, wins in run.wins.items()}
  if run.length_gaps_ExP is not None:
    arrays["length_gaps_ExP"] = run.length_gaps_ExP
  np.savez(directory / "outcomes.npz", steps_E=run.steps_E, **arrays)
  for name, rows in (("evaluations", run.records), ("metrics", run.metrics)):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if rows:
      (directory / f"{name}.jsonl").write_text(text)
  return directory


# --- A study that has runs for every figure and claim ---------------------------------

EFFECT = {  # of the series on win rate, as the paper reports it
  "offline": -0.15,
  "offline_longer": -0.13,
  "shuffled": -0.12,
  "final_vs_final": -0.35,
  "sft_vs_early": -0.1,
  "early_vs_final": -0.25,
  "semi_online": -0.05,
  "hybrid": -0.06,
  "golden_policy": 0.05,
}
KLS = (0.1, 0.4, 1.2, 3.0, 7.0, 15.0)


def study(
  worlds: int = 1,
  tasks: Sequence[str] = ("tldr",),
  *,
  prompts: int = 64,
  truth: bool = True,
) -> list[Run]:
  """Runs of `worlds` x `tasks` in which the paper's findings hold, with noise."""
  rng = np.random.default_rng(0)
  runs = []

  def add(entry: str, series: str, offset: float = 0.0, **fields: Any) -> None:
    step_axis = np.arange(1, len(KLS) + 1)
    kl_E = np.array(KLS) * rng.uniform(0.9, 1.1)
    log_kl_E = np.log(kl_E)
    rate_E = 0.5 + EFFECT.get(series, 0.0) + offset - 0.05 * (log_kl_E - 1) ** 2
    rate_E = np.clip(rate_E + rng.normal(0, 0.01), 0.02, 0.98)
    trained = series in ("online", "replay", "golden_policy")
    climbing_E = 0.5 + (0.01 if trained else 0.025) * step_axis
    settled_E = -step_axis * (1.0 if trained else 2.0)
    runs.append(
      make_run(
        f"world{world}_{task}_{entry}",
        series,
        drawn(rate_E, int(rng.integers(1 << 30)), prompts),
        kl_E,
        truth=drawn(rate_E, int(rng.integers(1 << 30)), prompts) if truth else None,
        world=world,
        steps=(100 * step_axis).tolist(),
        task=task,
        metrics=_metrics(world) if series in ("online", "replay") else (),
        measured={
          "classification_accuracy": climbing_E.tolist(),
          "chosen_log_ratio": settled_E.tolist(),
          "rejected_log_ratio": (2 * settled_E).tolist(),
        },
        **fields,
      )
    )

  for world in range(worlds):
    for task in tasks:
      for series in ("online", "offline", "shuffled"):
        for beta in (0.05, 0.1):
          add(f"{series}_beta{beta}", series, beta=beta, default=beta == 0.1)
        for loss in ("dpo", "slic", "best_of_2"):
          offset = 0.12 if (series, loss) == ("shuffled", "best_of_2") else 0.0
          add(f"{series}_{loss}", series, offset, loss=loss)
        # The larger, the better, and the less does the series matter.
        add(f"{series}_large", series, 0.05 - EFFECT.get(series, 0) / 2, size="milli")
      for series in ("final_vs_final", "sft_vs_early", "early_vs_final"):
        add(series, series)
      for window, offset in ((0, 0.0), (4, 0.0), (64, -0.05)):
        add(f"replay_{window}", "replay", offset, replay_window=window, default=True)
      for every in (4, 16, 0):
        add(f"semi_{every}", "semi_online", -0.01 * every, refresh_every=every)
      for fraction in (0.25, 0.5):
        add(f"hybrid_{fraction}", "hybrid", on_policy_fraction=fraction)
      add("golden_policy", "golden_policy")
      add_levels(runs, world, task, prompts, truth)
  for world in range(worlds):  # noqa: B007 - `add` reads both
    for task in tasks:  # noqa: B007
      for every, offset in ((10, -0.1), (100, -0.2)):
        add(f"semi_{every}", "semi_online", offset, refresh_every=every)
      for beta in (0.05, 0.1):
        add(f"longer_beta{beta}", "offline_longer", beta=beta)
      add("grpo", "grpo", 0.25, loss="grpo")
      add("chi_po", "chi_po", loss="chi_po")
  return runs


def add_levels(
  runs: list[Run], world: int, task: str, prompts: int, truth: bool
) -> None:
  ns = np.array([1, 2, 4, 16, 64])
  rates = {"sft": [0.2], "best_of_n": 0.2 + 0.06 * np.log(ns)}
  kls = {"sft": [0.0], "best_of_n": np.log(ns) - (ns - 1) / ns}
  for series, rate_E in rates.items():
    wins = [drawn(rate_E, 10 * world + judge, prompts) for judge in (1, 2)]
    d_E = np.sqrt(kls[series])
    unknown = dict.fromkeys(
      ("kl_stderr", "classification_accuracy", "self_classification_accuracy",
       "chosen_log_ratio", "rejected_log_ratio", "decode_vs_score_max_abs_diff"),
      [None] * len(rate_E),
    )  # fmt: skip
    runs.append(
      make_run(
        f"world{world}_{task}_{series}",
        series,
        wins[0],
        kls[series],
        truth=wins[1] if truth else None,
        world=world,
        task=task,
        steps=ns.tolist() if series == "best_of_n" else [2000],
        measured={"golden_score": (d_E * (1.5 - 0.3 * d_E)).tolist(), **unknown},
      )
    )


def _metrics(world: int) -> list[dict[str, Any]]:
  return [
    {"step": step, "loss": 1 / step, "grad_norm": 2.0 + world, "accuracy": 0.5}
    for step in range(100, 700, 100)
  ]


def classification(
  worlds: int = 1, tasks: Sequence[str] = ("tldr",)
) -> list[Classification]:
  """The proxy clearly best, and decaying."""
  rng = np.random.default_rng(1)
  rows = []
  for task in tasks:
    for world in range(worlds):
      for classifier, base in (("proxy_pm", 0.8), ("online", 0.5), ("offline", 0.6)):
        for step in range(100, 1100, 100):
          decay = 0.1 * step / 1000 if classifier == "proxy_pm" else 0
          accuracy = float(base - decay + rng.normal(0, 0.01))
          stderr = math.sqrt(accuracy * (1 - accuracy) / 64)
          rows.append(
            Classification(task, world, classifier, step, accuracy, stderr, 64)
          )
  return rows
