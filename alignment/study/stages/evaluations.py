"""Artefacts that say how good policies are: responses and evaluations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from alignment.core import evaluation
from alignment.core.digests import source_digest
from alignment.data import pairs
from alignment.runtime import hosts
from alignment.runtime.activity import Meter, progress
from alignment.runtime.files import read_npz, write_atomically, write_npz
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Program, Work
from alignment.study.recipes import PolicyRecipe
from alignment.study.setting import Setting
from alignment.study.stages.data import ScoredPairs
from alignment.study.stages.judging import Judge
from alignment.study.stages.models import Model
from alignment.types import Params, UserError

Evaluated = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Responses(Artefact):
  """A policy's responses to the fixed prompts: `responses.npz`."""

  kind: ClassVar[str] = "samples"
  policy: Model
  pairs: ScoredPairs

  def settings(self) -> dict[str, Any]:
    return self.setting.numerics | {"prompts": self.setting.config.evaluation.prompts}

  def make(self, directory: Path, read: Read) -> None:
    setting, sampler = self.setting, self.setting.sampler(self.policy.start)
    params = self.policy.load_fixed(read)
    dataset = pairs.PairDataset.load(read(self.pairs))
    rows, key = prompt_rows(setting, dataset), setting.key("opponent")
    T = setting.config.response_length
    samples = setting.map_pairs(
      lambda batch: evaluation.sample(sampler, params, batch, key, 1, T),
      dataset,
      rows,
      "sampling",
    )
    write_npz(
      directory / "responses.npz",
      rows=rows,
      tokens=samples.tokens_BxNxT[:, 0],
      lengths=samples.lengths_BxN[:, 0],
    )

  def programs(self) -> Iterator[Program]:
    yield self.policy.sample_program(1, (self.name,), {})


def prompt_rows(setting: Setting, dataset: pairs.PairDataset) -> np.ndarray:
  """Rows of the fixed prompts: different prompts of the train split."""
  count = setting.config.evaluation.prompts
  return pairs.distinct_prompts(dataset, count, setting.seed("prompts"))


@dataclasses.dataclass(frozen=True, eq=False)
class Contested(Artefact):
  """Compares responses to the fixed prompts: what all evaluations read.

  Attributes:
    labels: run, series, loss, ...: part of every record.
    reference: what the KL is measured from.
    pairs: of D_golden, scored under the reference.
    golden_pm: who judges.
    proxy_pm: whose scores are recorded beside.
    golden_samples: the opponent's responses.
    sft_samples: those of SFT, the zero of the golden score.
  """

  labels: Mapping[str, Any]
  reference: Model
  pairs: ScoredPairs
  golden_pm: Judge
  proxy_pm: Judge
  golden_samples: Responses
  sft_samples: Responses

  def common(self, *counts: str) -> dict[str, Any]:
    """What determines every evaluation's numbers, with counts of `evaluation`."""
    c = self.setting.config
    numbers: dict[str, Any] = {k: c.evaluation[k] for k in ("prompts", *counts)}
    if evaluation.COLUMNS:  # of one's own: one more, and all is evaluated again
      numbers["columns"] = {
        name: source_digest(function) for name, function in evaluation.COLUMNS.items()
      }
    return (
      self.setting.judging
      | numbers
      | {
        "task": c.task,
        "labels": dict(self.labels),
      }
    )

  def contest(self, read: Read) -> evaluation.Contest:
    """The fixed prompts, the golden policy's and SFT's responses, and the judge."""
    setting = self.setting
    dataset = pairs.PairDataset.load(read(self.pairs))
    rows = prompt_rows(setting, dataset)
    opponent, start = (
      read_npz(read(samples) / "responses.npz")
      for samples in (self.golden_samples, self.sft_samples)
    )
    return evaluation.Contest(
      judge=self.golden_pm.judge(),
      judge_params=self.golden_pm.load_fixed(read),
      proxy=self.proxy_pm.judge(),
      proxy_params=self.proxy_pm.load_fixed(read),
      prompts=dataset.batch(rows, **setting.lengths),
      opponent=(opponent["tokens"], opponent["lengths"]),
      start=(start["tokens"], start["lengths"]),
      utility=setting.utility(dataset, rows),
      batch_size=setting.config.evaluation.batch_size,
      mesh=setting.mesh,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation(Contested):
  """Every kept checkpoint of a policy: `evaluations.jsonl` and `outcomes.npz`.

  Each checkpoint's result is written as it comes; a restart goes on after it.
  """

  kind: ClassVar[str] = "evaluation"
  policy: Model
  steps: tuple[int, ...]

  def settings(self) -> dict[str, Any]:
    return self.common("kl_prompts", "pairs") | {"steps": list(self.steps)}

  def make(self, directory: Path, read: Read) -> None:
    setting, c = self.setting, self.setting.config.evaluation
    dataset = pairs.PairDataset.load(read(self.pairs))
    classified = pairs.distinct_prompts(dataset, c.pairs, setting.seed("pairs"))
    evaluator = evaluation.PolicyEvaluation(
      contest=self.contest(read),
      sampler=setting.sampler(self.policy.start),
      reference=self.reference.model(),
      reference_params=self.reference.load_fixed(read),
      pairs=dataset.batch(classified, **setting.lengths),
      kl_prompts=c.kl_prompts,
      key=setting.key("evaluation"),
    )

    def checkpoint(step: int) -> Evaluated:
      return evaluator(self.policy.load_fixed(read, step))

    count = setting.parameters.count(self.policy.model())
    labels = {**self.labels, "parameters": count}
    write_evaluations(setting, labels, self.steps, checkpoint, directory)

  def programs(self) -> Iterator[Program]:
    """One checkpoint; reference and golden judge are there all the time."""
    setting, shapes = self.setting, self.setting.shapes
    model, params = self.policy.model(), self.policy.abstract_fixed()
    reference, judge = self.reference.model(), self.golden_pm.abstract_fixed()
    proxy = self.proxy_pm.abstract_fixed()
    reference_params = None if self.policy.base else self.reference.abstract_fixed()
    S, T = shapes.prompt_length, shapes.response_length
    rows, N = setting.config.evaluation.batch_size, evaluation.SAMPLES
    scored, other = (model, rows, S, N, T), (reference, rows, S, N, T)
    judges = {"judge": judge, "proxy": proxy}
    held = {"reference": reference_params, **judges}
    yield self.policy.sample_program(N, (self.name,), held)
    yield Program(
      f"divergence, {self.policy.start.size}",
      lambda: evaluation.divergence,
      (model, params, reference, reference_params, shapes.batch(rows), shapes.rows(
        (rows, N, T), jnp.float32)),
      judges,
      Work("forward", (scored, other)),
      setting.mesh,
      (self.name,),
    )  # fmt: skip
    yield self.policy.log_ratios_program((self.name,), held)
    fixed = {"policy": params, "reference": reference_params}
    of_golden, of_proxy = fixed | {"proxy": proxy}, fixed | {"judge": judge}
    yield from self.golden_pm.margins_programs((self.name,), of_golden)
    yield from self.proxy_pm.margins_programs((self.name,), of_proxy)


@dataclasses.dataclass(frozen=True, eq=False)
class BestOfN(Contested):
  """The best of n SFT samples by the proxy's judgement, as the reference curve.

  The `step` of a record is n, its `kl` the bound log n - (n - 1)/n; the rest is
  measured.
  """

  kind: ClassVar[str] = "best_of_n"
  numbers: tuple[int, ...]

  def settings(self) -> dict[str, Any]:
    return self.common() | {"numbers": list(self.numbers)}

  def make(self, directory: Path, read: Read) -> None:
    setting, contest = self.setting, self.contest(read)
    bests = self._bests(read, contest)

    def result(n: int) -> Evaluated:
      tokens, lengths, ended = bests[n]
      record, outcomes = contest.record((tokens, lengths), ended)
      unmeasured = [*UNMEASURED_OF_BEST]
      if contest.utility:
        unmeasured.append("judge_accuracy_on_policy")
      bound = {"kl": float(np.log(n) - (n - 1) / n)}
      return {**dict.fromkeys(unmeasured), **record, **bound}, outcomes

    count = setting.parameters.count(self.reference.model())
    labels = {**self.labels, "parameters": count}
    write_evaluations(setting, labels, self.numbers, result, directory)

  def _bests(
    self, read: Read, contest: evaluation.Contest
  ) -> dict[int, tuple[np.ndarray, ...]]:
    """n -> tokens_PxT, lengths_P and ended_P of the best of the first n samples.

    Samples meet one after the other, the winner stays; ties keep the earlier.
    """
    setting, sampler = self.setting, self.setting.sampler(self.reference.start)
    params = self.reference.load_fixed(read)
    key, T = setting.key("best_of_n"), setting.config.response_length
    best: tuple[np.ndarray, ...] = ()
    bests = {}
    for n in range(1, max(self.numbers) + 1):
      turn, index = divmod(n - 1, SAMPLED_TOGETHER)
      if index == 0:
        turn_key = jax.random.fold_in(key, turn)
        samples = contest.map(
          lambda batch, k=turn_key: evaluation.sample(
            sampler, params, batch, k, SAMPLED_TOGETHER, T
          ),
          contest.prompts,
          doing="sampling",
        )
      drawn = tuple(
        x[:, index]
        for x in (samples.tokens_BxNxT, samples.lengths_BxN, samples.ended_BxN)
      )
      if n == 1:
        best = drawn
      else:
        meets = (drawn[0], drawn[1]), (best[0], best[1])
        margins_P = contest.judged(contest.proxy, contest.proxy_params, *meets)
        best = tuple(
          np.where((margins_P > 0).reshape((-1,) + (1,) * (x.ndim - 1)), x, y)
          for x, y in zip(drawn, best, strict=True)
        )
      if n in self.numbers:
        bests[n] = best
    return bests

  def programs(self) -> Iterator[Program]:
    held = {
      "reference": self.reference.abstract_fixed(),
      "proxy": self.proxy_pm.abstract_fixed(),
      "judge": self.golden_pm.abstract_fixed(),
    }

    def but(name: str) -> dict[str, Params]:
      return {other: params for other, params in held.items() if other != name}

    stages = (self.name,)
    yield self.reference.sample_program(SAMPLED_TOGETHER, stages, but("reference"))
    yield from self.proxy_pm.margins_programs(stages, but("proxy"))
    yield from self.golden_pm.margins_programs(stages, but("judge"))


SAMPLED_TOGETHER = 8  # samples of best-of-n drawn at a time
UNMEASURED_OF_BEST = (
  "kl_stderr",
  "kl_k1_stderr",
  "kl_k3_stderr",
  "entropy",
  "self_classification_accuracy",
  "decode_vs_score_max_abs_diff",
  "classification_accuracy",
  "chosen_log_ratio",
  "rejected_log_ratio",
)


def write_evaluations(
  setting: Setting,
  labels: Mapping[str, Any],
  steps: Sequence[int],
  evaluate: Callable[[int], Evaluated],
  directory: Path,
) -> None:
  """Writes what `evaluate` says of every step, each as soon as it is there."""
  labels = {**labels, "task": setting.config.task, "world": setting.world}
  records, outcomes = [], []
  meter = Meter("evaluating", len(steps), "checkpoints")
  for i, step in enumerate(steps):
    path = directory / f"step-{step}.npz"
    if not hosts.on_first(path.exists):
      with meter:
        measured, arrays = evaluate(step)
      record = _checked(labels["run"], step, measured)
      text = json.dumps({**labels, "step": step, **record}, allow_nan=False)
      write_npz(path, record=np.frombuffer(text.encode(), np.uint8), **arrays)
      hosts.wait_for_first()
      meter.reach(i + 1)
    arrays = read_npz(path, "record")
    records.append(json.loads(arrays.pop("record").tobytes()))
    outcomes.append(arrays)
    r = records[-1]
    progress(
      f"{labels['run']}: step {step}  KL {r['kl']:.3g}  win rate {r['win_rate']:.3f}"
      + (f"  true {r['true_win_rate']:.3f}" if "true_win_rate" in r else "")
    )
  text = "".join(json.dumps(record) + "\n" for record in records)
  write_atomically(directory / "evaluations.jsonl", text.encode())
  write_npz(
    directory / "outcomes.npz",
    steps_E=np.array(steps),
    **{
      f"{name}_ExP": np.stack([o[name] for o in outcomes]).astype(np.float32)
      for name in ("golden", "truth", "length_gaps")
      if all(name in o for o in outcomes)
    },
  )


def _checked(run: str, step: int, record: Mapping[str, Any]) -> dict[str, Any]:
  """A record whose NaNs (means over nothing, as where all is ties) are null.

  Raises:
    UserError: if anything is infinite, or the KL or win rate is not a number.
  """
  for key, value in record.items():
    undefined = value is None or math.isnan(value)
    if undefined and key in ("kl", "win_rate") or not undefined and math.isinf(value):
      raise UserError(
        f"{run} at step {step}: {key} is {value}: this policy has diverged; lower its "
        "learning rate, raise its beta, or take it out of `runs`"
      )
  return {k: None if v is None or math.isnan(v) else v for k, v in record.items()}


def labels_of(run: str, series: str, recipe: PolicyRecipe) -> dict[str, Any]:
  """What every record of an evaluation says of its run (analysis/runs.py)."""
  trained = series not in ("sft", "best_of_n")
  online, replays = recipe.online, trained and recipe.replays
  fraction = recipe.on_policy_fraction if online else 0.0
  return {
    "run": run,
    "series": series,
    "method": recipe.method if trained else None,
    "loss": recipe.loss,
    "beta": recipe.beta if trained else None,
    "learning_rate": recipe.learning_rate if trained else None,
    "seed": recipe.seed,
    "size": recipe.size,
    "dataset": recipe.dataset if trained and not online else None,
    "replay_window": recipe.replay_window if replays else None,
    "refresh_every": recipe.refresh_every if trained and online else None,
    "on_policy_fraction": fraction if trained else None,
  }
