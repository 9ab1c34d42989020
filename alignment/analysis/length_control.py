"""Win rates at equal length: what is left of an advantage without its length.

The regression of AlpacaEval's length-controlled win rates (Dubois et al. 2024, arXiv
2404.04475), for one policy against one opponent on the same prompts:

  logit P(win) = a + b tanh(d / s),   length-controlled win rate = 1 / (1 + exp(-a))

d is how many tokens the policy's response is longer than the opponent's, s the standard
deviation of d over the prompts. At d = 0 the length term is 0, so the rate is what the
regression says of responses of equal length. AlpacaEval's estimator differs in that

  - d is in characters, and a win is the judge's probability, not 1, 1/2 (a tie) or 0;
  - each prompt's logit has a term for how hard it is, fitted over many models, and the
    rate is the mean over prompts; here all runs answer the same prompts;
  - numbers are kept finite by an L1 penalty, chosen by cross-validation, and by the
    outcomes of two baselines that were told to be long or short, at a weight of 0.1
    each; here by one half win and one half loss at equal length, and b^2 / 4, added to
    the negative log-likelihood.

Intervals are over prompts, of the sandwich covariance, taken on logits: right where the
logistic is not. None where nearly all responses are on one side of the opponent's
length: the rate at equal length would be a guess.

`as_judge` makes a judge of it, so that every figure and claim is seen at equal length,
too: a statement that length alone explains holds for one judge, and not for the other.

Shape letters: E checkpoints of a run, P prompts.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from alignment.analysis.intervals import NORMAL_QUANTILE, Estimate, undefined
from alignment.analysis.runs import Run
from alignment.types import UserError

JUDGE = "golden PM"
AT_EQUAL_LENGTH = f"{JUDGE} at equal length"
LEAST = 5  # prompts that must be on either side of equal length
_ITERATIONS = 100


def length_controlled(wins_P: np.ndarray, gaps_P: np.ndarray) -> Estimate:
  """The win rate at equal length; see above.

  Args:
    wins_P: 1 won, 0.5 tied, 0 lost.
    gaps_P: tokens of the policy's response less those of the opponent's.
  """
  if reason := _one_sided(gaps_P):
    return undefined(reason)
  x_Px2 = _design(gaps_P)
  at_2, hessian_2x2 = _fit(x_Px2, wins_P)
  residuals_P = wins_P - _logistic(x_Px2 @ at_2)
  scores_Px2 = residuals_P[:, None] * x_Px2
  bread_2x2 = np.linalg.inv(hessian_2x2)
  covariance_2x2 = bread_2x2 @ (scores_Px2.T @ scores_Px2) @ bread_2x2
  margin = NORMAL_QUANTILE * math.sqrt(covariance_2x2[0, 0])
  value, low, high = _logistic(at_2[0] + np.array([0.0, -margin, margin])).tolist()
  return Estimate(value, low, high, "prompts, 1 world", len(wins_P))


def _one_sided(gaps_P: np.ndarray) -> str:
  """Why there is no rate at equal length; "" if there is one."""
  for side, count in (("short", (gaps_P <= 0).sum()), ("long", (gaps_P >= 0).sum())):
    if count < LEAST:
      return f"{count} of {len(gaps_P)} responses are as {side} as the opponent's"
  return ""


def _design(gaps_P: np.ndarray) -> np.ndarray:
  scale = float(gaps_P.std()) or 1.0
  return np.stack([np.ones(len(gaps_P)), np.tanh(gaps_P / scale)], axis=1)


def adjusted_P(wins_P: np.ndarray, gaps_P: np.ndarray) -> np.ndarray:
  """The win rate at equal length as one outcome per prompt, which may leave [0, 1].

  Their mean is the rate, and each differs from it by that prompt's influence on it:
  residual x derivative of the rate. So their spread is the noise of `length_controlled`
  (the slope's part included), and the mean of half of the prompts what is, to first
  order, the fit to that half: halves stay independent, as cross-fitting needs.

  Where nearly all responses are on one side of the opponent's length the rate is a
  guess: the prior shares an advantage out between length and all else, and the noise
  is not its error. `guesses` says where.
  """
  x_Px2 = _design(gaps_P)
  at_2, hessian_2x2 = _fit(x_Px2, wins_P)
  rate = _logistic(at_2[0])
  residuals_P = wins_P - _logistic(x_Px2 @ at_2)
  of_intercept_P = residuals_P * (x_Px2 @ np.linalg.inv(hessian_2x2)[0])
  influence_P = len(wins_P) * rate * (1 - rate) * of_intercept_P
  return rate + influence_P - influence_P.mean()


def wins_if_longer(wins_P: np.ndarray, gaps_P: np.ndarray) -> float:
  """How often a response of equal quality wins by being one s longer; see above.

  The judge's own taste for length, as far as this policy's responses show it: 0.5 where
  it has none. NaN where the rate at equal length is undefined.
  """
  if _one_sided(gaps_P):
    return math.nan
  at_2, _ = _fit(_design(gaps_P), wins_P)
  return float(_logistic(at_2[1] * math.tanh(1)))


def as_judge(runs: Sequence[Run]) -> list[Run]:
  """The runs, with `AT_EQUAL_LENGTH` as one more judge.

  Raises:
    UserError: for a run whose lengths are not recorded.
  """
  return [_with_judge(run) for run in runs]


def _with_judge(run: Run) -> Run:
  if run.length_gaps_ExP is None:
    raise UserError(f"runs/{run.name}/outcomes.npz: no lengths; evaluate it again")
  outcomes = zip(run.wins[JUDGE], run.length_gaps_ExP, strict=True)
  adjusted_ExP = np.stack([adjusted_P(*of_checkpoint) for of_checkpoint in outcomes])
  return dataclasses.replace(run, wins=run.wins | {AT_EQUAL_LENGTH: adjusted_ExP})


def guesses(runs: Sequence[Run]) -> str:
  """Which checkpoints of runs that judge has no estimate of, in a sentence, or ""."""
  steps_of = {
    run.name: [
      str(step)
      for step, gaps_P in zip(run.steps_E, run.length_gaps_ExP, strict=True)
      if _one_sided(gaps_P)
    ]
    for run in runs
    if run.length_gaps_ExP is not None
  }
  named = "; ".join(
    f"{n} at {', '.join(steps)}" for n, steps in steps_of.items() if steps
  )
  if not named:
    return ""
  return (
    "At equal length these checkpoints have guesses for win rates, in figures and "
    "claims too, because nearly all of their responses are longer, or nearly all "
    f"shorter, than the golden policy's: {named}."
  )


def of_checkpoint(run: Run, at: int, judge: str) -> Estimate:
  """The same of one checkpoint of a run; undefined where lengths are not recorded."""
  if run.length_gaps_ExP is None:
    return undefined("lengths are not recorded")
  return length_controlled(run.wins[judge][at], run.length_gaps_ExP[at])


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """A row for every checkpoint and judge, of the runs whose lengths are recorded."""
  return [
    _row(run, at, judge)
    for run in runs
    if run.length_gaps_ExP is not None
    for at in range(len(run.steps_E))
    for judge in run.wins
  ]


def _row(run: Run, at: int, judge: str) -> dict[str, Any]:
  assert run.length_gaps_ExP is not None
  estimate = of_checkpoint(run, at, judge)
  return {
    "run": run.name,
    "series": run.series,
    "world": run.world,
    "step": int(run.steps_E[at]),
    "kl": float(run.kl_E[at]),
    "judge": judge,
    "win_rate": float(run.wins[judge][at].mean()),
    "length_controlled": estimate.value,
    "low": estimate.low,
    "high": estimate.high,
    "longer_by_tokens": float(run.length_gaps_ExP[at].mean()),
    "wins_if_longer": wins_if_longer(run.wins[judge][at], run.length_gaps_ExP[at]),
    "note": estimate.reason,
  }


def _fit(x_Px2: np.ndarray, wins_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The penalised maximum, by Newton's method, and the Hessian there."""
  at_2 = np.zeros(2)
  loss = _loss(x_Px2, wins_P, at_2)
  for _ in range(_ITERATIONS):
    gradient_2, hessian_2x2 = _derivatives(x_Px2, wins_P, at_2)
    step_2 = np.linalg.solve(hessian_2x2, gradient_2)
    while (reached := _loss(x_Px2, wins_P, at_2 - step_2)) > loss + 1e-12:
      step_2 = step_2 / 2
    at_2, loss = at_2 - step_2, reached
    if np.abs(step_2).max() < 1e-10:
      break
  return at_2, _derivatives(x_Px2, wins_P, at_2)[1]


def _loss(x_Px2: np.ndarray, wins_P: np.ndarray, at_2: np.ndarray) -> float:
  logits_P = x_Px2 @ at_2
  likelihood = np.logaddexp(0, logits_P) - wins_P * logits_P
  added = np.logaddexp(0, at_2[0]) - at_2[0] / 2 + at_2[1] ** 2 / 4
  return float(likelihood.sum() + added)


def _derivatives(
  x_Px2: np.ndarray, wins_P: np.ndarray, at_2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Of the loss: gradient and Hessian."""
  rates_P, rate = _logistic(x_Px2 @ at_2), _logistic(at_2[0])
  gradient_2 = x_Px2.T @ (rates_P - wins_P) + np.array([rate - 0.5, at_2[1] / 2])
  hessian_2x2 = (x_Px2 * (rates_P * (1 - rates_P))[:, None]).T @ x_Px2
  return gradient_2, hessian_2x2 + np.diag([rate * (1 - rate), 0.5])


def _logistic(x: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0, -x))
