"""What the stages that sample and evaluate finished policies do."""

from collections.abc import Callable, Mapping
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignment.core import evaluation as policy_eval
from alignment.core.rows import map_rows
from alignment.data import pairs, stream
from alignment.runtime import hosts
from alignment.runtime.files import read_json, read_npz, write_atomically, write_npz
from alignment.runtime.metrics import progress
from alignment.study.setting import Inputs, Setting, seed_of
from alignment.types import UserError


def sample_policy(
  setting: Setting, role: dict, directory: Path, inputs: Inputs
) -> None:
  """A policy's responses to the fixed prompts: `responses.npz`."""
  model = setting.model(role)
  params = setting.load_frozen(inputs["policy"], model)
  dataset = pairs.PairDataset.load(inputs["pairs"])
  rows = evaluation_rows(setting, dataset)
  key = jax.random.key(seed_of("opponent", setting.world))
  T = setting.config.response_length
  samples = setting.map_pairs(
    lambda batch: policy_eval.sample(
      model, params, batch, key, 1, T, decoding=setting.decoding
    ),
    dataset,
    rows,
  )
  write_npz(
    directory / "responses.npz",
    rows=rows,
    tokens=samples.tokens_BxNxT[:, 0],
    lengths=samples.lengths_BxN[:, 0],
  )


def evaluation_rows(setting: Setting, dataset: pairs.PairDataset) -> np.ndarray:
  """Rows of the fixed prompts: different prompts of the train split."""
  count = setting.config.evaluation.prompts
  return pairs.distinct_prompts(dataset, count, seed_of("prompts", setting.world))


def evaluate_policy(
  setting: Setting, described: dict, role: dict, judge_role: dict, steps: list[int],
  directory: Path, inputs: Inputs,
) -> None:  # fmt: skip
  """Every kept checkpoint of a run: `evaluations.jsonl` and `outcomes.npz`.

  Each checkpoint's result is written as it comes; a restart goes on after it.
  `described` (run, method, loss, ...) is part of every record.
  """
  c = setting.config.evaluation
  model = setting.model(role)
  dataset = pairs.PairDataset.load(inputs["pairs"])
  classified = pairs.distinct_prompts(dataset, c.pairs, seed_of("pairs", setting.world))
  evaluation = policy_eval.PolicyEvaluation(
    contest=_contest(setting, judge_role, inputs),
    model=model,
    reference_params=setting.load_frozen(inputs["sft"], model),
    pairs=dataset.batch(classified, **setting.lengths),
    kl_prompts=c.kl_prompts,
    key=jax.random.key(seed_of("evaluation", setting.world)),
    decoding=setting.decoding,
  )

  def checkpoint(step: int) -> Evaluated:
    return evaluation(setting.load_frozen(inputs["policy"], model, step))

  described = described | {"parameters": setting.parameter_count(model)}
  _evaluate(setting, described, steps, checkpoint, directory)


def evaluate_best_of_n(
  setting: Setting, described: dict, role: dict, proxy_role: dict, judge_role: dict,
  directory: Path, inputs: Inputs,
) -> None:  # fmt: skip
  """The best of n SFT samples by the proxy's judgement, as the reference curve.

  n samples meet one after the other, the winner stays; ties keep the earlier. The
  `step` of a record is n, its `kl` the bound log n - (n - 1)/n; the rest is measured.
  """
  numbers = list(setting.config.evaluation.best_of)
  model, proxy = setting.model(role), setting.preference_model(proxy_role)
  params = setting.load_frozen(inputs["sft"], model)
  proxy_params = setting.load_frozen(inputs["proxy_pm"], proxy.model)
  contest = _contest(setting, judge_role, inputs)
  key = jax.random.key(seed_of("best_of_n", setting.world))
  T, together = setting.config.response_length, 8  # samples drawn at a time

  best: tuple[np.ndarray, ...] = ()  # tokens_PxT, lengths_P, ended_P
  bests = {}
  for n in range(1, max(numbers) + 1):
    turn, index = divmod(n - 1, together)
    if index == 0:
      keyed = jax.random.fold_in(key, turn)
      samples = contest.map(
        lambda batch, k=keyed: policy_eval.sample(
          model, params, batch, k, together, T, decoding=setting.decoding
        ),
        contest.prompts,
      )
    drawn = tuple(
      x[:, index]
      for x in (samples.tokens_BxNxT, samples.lengths_BxN, samples.ended_BxN)
    )
    if n == 1:
      best = drawn
    else:
      meets = (drawn[0], drawn[1]), (best[0], best[1])
      margins_P = contest.judged(proxy, proxy_params, *meets)
      best = tuple(
        np.where((margins_P > 0).reshape((-1,) + (1,) * (x.ndim - 1)), x, y)
        for x, y in zip(drawn, best, strict=True)
      )
    if n in numbers:
      bests[n] = best

  def result(n: int) -> Evaluated:
    tokens, lengths, ended = bests[n]
    record, outcomes = contest.record((tokens, lengths), ended)
    unmeasured = [*UNMEASURED_OF_BEST]
    if contest.utility:
      unmeasured.append("judge_accuracy_on_policy")
    bound = {"kl": float(np.log(n) - (n - 1) / n)}
    return {**dict.fromkeys(unmeasured), **record, **bound}, outcomes

  described = described | {"parameters": setting.parameter_count(model)}
  _evaluate(setting, described, numbers, result, directory)


UNMEASURED_OF_BEST = (
  "kl_stderr",
  "entropy",
  "self_classification_accuracy",
  "decode_vs_score_max_abs_diff",
  "classification_accuracy",
  "chosen_log_ratio",
  "rejected_log_ratio",
)


def classify_stream(
  setting: Setting, policies: dict, judge_role: dict, proxy_role: dict,
  directory: Path, inputs: Inputs,
) -> None:  # fmt: skip
  """Figure 6: who classifies the pairs of the online stream as the golden PM does.

  At evenly spaced steps of the recorded run, pairs of that step and those after it (of
  a run that has fewer, all) are labelled by the golden preference model, and by each
  classifier: the proxy PM by its margin, a finished policy by rho > 0. Writes
  `classification.jsonl`; steps at which fewer than two pairs have a label are left out.
  """
  c = setting.config.evaluation
  steps = read_json(inputs["online"] / "model.json")["step"]
  recorded = stream.Stream.load(inputs["online"] / "stream", steps)
  count = min(c.stream_pairs, len(recorded))
  last = steps - -(-count // recorded.batch_size)
  starts = np.unique(np.linspace(0, last, c.stream_steps).round().astype(int))
  rows = starts[:, None] * recorded.batch_size + np.arange(count)[None, :]

  def over_rows(function) -> np.ndarray:
    return map_rows(
      function, lambda i: (recorded.batch(i),), rows.ravel(), c.batch_size, setting.mesh
    )

  def judged(pm_role: dict, directory: Path) -> np.ndarray:
    preference_model = setting.preference_model(pm_role)
    params = setting.load_frozen(directory, preference_model.model)
    return over_rows(lambda b: policy_eval.margins(preference_model, params, b))

  golden = judged(judge_role, inputs["golden_pm"])
  margins = {"proxy_pm": judged(proxy_role, inputs["proxy_pm"])}
  for name, role in policies.items():
    model = setting.model(role)
    params = setting.load_frozen(inputs[name], model)
    ratios = over_rows(lambda b, m=model, p=params: policy_eval.log_ratios(m, p, b))
    margins[name] = ratios[:, 0] - ratios[:, 1]
  lines = []
  for classifier, values in margins.items():
    for i, step in enumerate(starts):
      here = slice(i * count, (i + 1) * count)
      right = policy_eval.classified(values[here], golden[here])
      if len(right) < 2:  # a collapsed policy's pairs: nothing to classify
        continue
      lines.append(
        {
          "task": setting.config.task,
          "world": setting.world,
          "classifier": classifier,
          "step": int(step),
          "accuracy": float(right.mean()),
          "stderr": float(right.std(ddof=1) / np.sqrt(len(right))),
          "pairs": len(right),
        }
      )
  text = "".join(json.dumps(line) + "\n" for line in lines)
  write_atomically(directory / "classification.jsonl", text.encode())


Evaluated = tuple[dict[str, Any], dict[str, np.ndarray]]


def _contest(setting: Setting, judge_role: dict, inputs: Inputs) -> policy_eval.Contest:
  """The fixed prompts, the golden policy's and SFT's responses, and the judge."""
  judge = setting.preference_model(judge_role)
  dataset = pairs.PairDataset.load(inputs["pairs"])
  rows = evaluation_rows(setting, dataset)
  opponent, start = (
    read_npz(inputs[name] / "responses.npz")
    for name in ("golden_samples", "sft_samples")
  )
  return policy_eval.Contest(
    judge=judge,
    judge_params=setting.load_frozen(inputs["golden_pm"], judge.model),
    prompts=dataset.batch(rows, **setting.lengths),
    opponent=(opponent["tokens"], opponent["lengths"]),
    start=(start["tokens"], start["lengths"]),
    utility=setting.utility(dataset, rows),
    batch_size=setting.config.evaluation.batch_size,
    mesh=setting.mesh,
  )


def _evaluate(
  setting: Setting,
  described: dict,
  steps: list[int],
  evaluate: Callable[[int], Evaluated],
  directory: Path,
) -> None:
  """Writes what `evaluate` finds at every step, each as soon as it is found."""
  described = described | {"task": setting.config.task, "world": setting.world}
  records, outcomes = [], []
  for step in steps:
    path = directory / f"step-{step}.npz"
    if not hosts.on_first(path.exists):
      found, arrays = evaluate(step)
      record = _checked(described["run"], step, found)
      text = json.dumps({**described, "step": step, **record}, allow_nan=False)
      write_npz(path, record=np.frombuffer(text.encode(), np.uint8), **arrays)
      hosts.wait_for_first()
    arrays = read_npz(path, "record")
    records.append(json.loads(arrays.pop("record").tobytes()))
    outcomes.append(arrays)
    r = records[-1]
    progress(
      f"{described['run']}: step {step}  KL {r['kl']:.3g}  win rate {r['win_rate']:.3f}"
      + (f"  true {r['true_win_rate']:.3f}" if "true_win_rate" in r else "")
    )
  text = "".join(json.dumps(record) + "\n" for record in records)
  write_atomically(directory / "evaluations.jsonl", text.encode())
  write_npz(
    directory / "outcomes.npz",
    steps_E=np.array(steps),
    **{
      f"{judge_name}_ExP": np.stack([o[judge_name] for o in outcomes]).astype(
        np.float32
      )
      for judge_name in ("golden", "truth")
      if judge_name in outcomes[0]
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


def publish(workdir: Path, name: str, evaluation: Path, policy: Path | None) -> None:
  """Puts a finished evaluation where people and figures look: `runs/<run>/`.

  With the training metrics of its policy, if it has any.
  """
  target = workdir / "runs" / name
  target.mkdir(parents=True, exist_ok=True)
  files = [evaluation / file for file in ("evaluations.jsonl", "outcomes.npz")]
  if policy is not None:
    files.append(policy / "metrics.jsonl")
  for file in files:
    write_atomically(target / file.name, file.read_bytes())
