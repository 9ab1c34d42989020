"""The best win rate of runs, within each KL budget and overall, without bias.

Two things would bias a comparison of maxima, and each has its remedy here.

*Noise of the evaluation*: the largest of many noisy win rates is too large, the more
so the more there are. So checkpoints are selected on one half of the prompts and
reported on the other, both ways, averaged over several splits (cross-fitting): what is
reported of a selected checkpoint is unbiased however many it was selected from.

*Number of configurations tried*: a series with more runs has more chances of a good
one. With different numbers of runs, both series are given the smaller number: the
expectation over all subsets of that many runs, computed exactly from ranks.

Shape letters: E checkpoints of a run, P prompts, R resamples (row 0 is the data
itself), K runs of a series, G KL budgets, 2 the halves of the prompts.
"""

from collections.abc import Sequence
import functools
import math

import numpy as np

from alignment.analysis.intervals import by_world, interval
from alignment.analysis.runs import Run

KL_FLOOR = 0.01  # nats; at less, a policy is SFT still, and log KL is mostly noise
RESAMPLES = 200  # 5 % on the width of an interval
SPLITS = 8  # of the prompts into halves: which half is which should not matter


def upper_envelope(
  kl: np.ndarray, win_rate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The best win rate within each KL budget: what figure 1 of the paper suggests.

  Returns the KLs in increasing order and the cumulative maximum of the win rates. As
  a maximum over noisy points it is biased upwards, more so with more points: `envelope`
  is the version for comparisons.
  """
  order = np.lexsort((-win_rate, kl))  # of equal KLs the best first
  return kl[order], np.maximum.accumulate(win_rate[order])


@functools.lru_cache(maxsize=2)
def _prompt_weights_RxP(num_prompts: int, resamples: int) -> np.ndarray:
  """Prompt weights: row 0 the data, rows 1.. resamples; not normalised.

  Rubin's Bayesian bootstrap: exponential weights. A fixed seed: all runs, judges and
  series see the same draws, so that differences are paired.
  """
  weights_RxP = np.random.default_rng(0).exponential(size=(1 + resamples, num_prompts))
  weights_RxP[0] = 1
  weights_RxP.flags.writeable = False  # it is shared through the cache
  return weights_RxP


@functools.lru_cache(maxsize=SPLITS)
def _prompt_weights_2xRxP(num_prompts: int, resamples: int, split: int) -> np.ndarray:
  """Normalised prompt weights of the two halves of one split.

  A prompt keeps its weight in all splits, and is never in both halves, which would
  carry the noise that it was selected by into the report.
  """
  weights_RxP = _prompt_weights_RxP(num_prompts, resamples)
  shuffled = np.random.default_rng(1 + split).permutation(num_prompts)
  weights_2xRxP = np.zeros((2, *weights_RxP.shape))
  for half_RxP, members in zip(weights_2xRxP, np.array_split(shuffled, 2), strict=True):
    half_RxP[:, members] = weights_RxP[:, members]
  weights_2xRxP /= weights_2xRxP.sum(axis=-1, keepdims=True)
  weights_2xRxP.flags.writeable = False
  return weights_2xRxP


@functools.lru_cache(maxsize=4096)  # of some 20 kB; most claims look at the same runs
def _win_rates_2xRxE(run: Run, judge: str, resamples: int, split: int) -> np.ndarray:
  wins_ExP = run.wins[judge]
  weights_2xRxP = _prompt_weights_2xRxP(wins_ExP.shape[1], resamples, split)
  # Not a matrix product: that is slower here, and its bits depend on BLAS's threads.
  return np.einsum("hrp,ep->hre", weights_2xRxP, wins_ExP)


def win_rates_RxE(run: Run, judge: str, resamples: int) -> np.ndarray:
  """Win rates over all prompts, per resample: for numbers that select nothing."""
  wins_ExP = run.wins[judge]
  weights_RxP = _prompt_weights_RxP(wins_ExP.shape[1], resamples)
  return np.einsum("rp,ep->re", weights_RxP, wins_ExP) / weights_RxP.sum(1)[:, None]


def _expected_best(
  selected_xK: np.ndarray, reported_xK: np.ndarray, size: int
) -> np.ndarray:
  """The reported value of the run that selection picks, over all `size` of K runs.

  The run of rank j (from 0) is the best of C(K-1-j, size-1) of the C(K, size) subsets.
  Runs with nothing to select (-inf) are never picked; subsets of only such are left
  out. With size = K it is simply the report of the best run.
  """
  num_runs = selected_xK.shape[-1]
  weights_K = np.array(
    [math.comb(num_runs - 1 - rank, size - 1) for rank in range(num_runs)], float
  )
  weights_K /= math.comb(num_runs, size)
  order = np.argsort(-selected_xK, axis=-1, kind="stable")
  some = np.take_along_axis(selected_xK, order, axis=-1) > -np.inf
  weights_xK = np.where(some, weights_K, 0)
  ranked_xK = np.take_along_axis(reported_xK, order, axis=-1)
  return (weights_xK * ranked_xK).sum(axis=-1) / weights_xK.sum(axis=-1)


def peak_R(runs: Sequence[Run], judge: str, size: int, resamples: int) -> np.ndarray:
  """Cross-fitted peak win rate of the best of `size` runs, per resample."""
  splits = (
    _peak_of_split_R(runs, judge, size, resamples, split) for split in range(SPLITS)
  )
  return np.mean(list(splits), axis=0)


def _peak_of_split_R(
  runs: Sequence[Run], judge: str, size: int, resamples: int, split: int
) -> np.ndarray:
  selected, reported = [], []
  for run in runs:
    rates_2xRxE = _win_rates_2xRxE(run, judge, resamples, split)
    best = rates_2xRxE.argmax(axis=-1)[..., None]
    selected.append(np.take_along_axis(rates_2xRxE, best, axis=-1)[..., 0])
    reported.append(np.take_along_axis(rates_2xRxE[::-1], best, axis=-1)[..., 0])
  best_2xR = _expected_best(np.stack(selected, -1), np.stack(reported, -1), size)
  return best_2xR.mean(axis=0)


def envelope_RxG(
  runs: Sequence[Run], judge: str, budgets_G: np.ndarray, size: int, resamples: int
) -> np.ndarray:
  """Cross-fitted best win rate within each KL budget, per resample.

  Of each run, interpolated in log KL between its checkpoints, which lie where its
  learning rate put them; beyond its last one it stays.
  """
  splits = (
    _envelope_of_split_RxG(runs, judge, budgets_G, size, resamples, split)
    for split in range(SPLITS)
  )
  return np.mean(list(splits), axis=0)


def _envelope_of_split_RxG(
  runs: Sequence[Run],
  judge: str,
  budgets_G: np.ndarray,
  size: int,
  resamples: int,
  split: int,
) -> np.ndarray:
  selected, reported = [], []
  for run in runs:
    order = np.argsort(run.kl_E, kind="stable")
    order = order[run.kl_E[order] >= KL_FLOOR]
    rates_2xRxE = _win_rates_2xRxE(run, judge, resamples, split)[..., order]
    if not len(order):  # it never leaves SFT
      nothing_2xRxG = np.zeros((*rates_2xRxE.shape[:-1], len(budgets_G)))
      selected.append(nothing_2xRxG - np.inf)
      reported.append(nothing_2xRxG)
      continue
    # Index of the best checkpoint so far: the last at which the maximum rose.
    rates_before = np.maximum.accumulate(rates_2xRxE, axis=-1)[..., :-1]
    rises = np.ones(rates_2xRxE.shape, bool)
    rises[..., 1:] = rates_2xRxE[..., 1:] > rates_before
    best_2xRxE = np.maximum.accumulate(np.where(rises, np.arange(len(order)), 0), -1)
    before_G, after_G, share_G = _between(run.kl_E[order], budgets_G)
    chosen, report = (
      (1 - share_G) * np.take_along_axis(rates, best_2xRxE[..., before_G], axis=-1)
      + share_G * np.take_along_axis(rates, best_2xRxE[..., after_G], axis=-1)
      for rates in (rates_2xRxE, rates_2xRxE[::-1])
    )
    selected.append(np.where(budgets_G >= run.kl_E[order[0]], chosen, -np.inf))
    reported.append(report)
  best_2xRxG = _expected_best(np.stack(selected, -1), np.stack(reported, -1), size)
  return best_2xRxG.mean(axis=0)


def _between(
  kl_E: np.ndarray, budgets_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Checkpoints below and above each budget, and how far it is between, in log KL.

  Beyond the last checkpoint, and before the first, it is that one.
  """
  last = len(kl_E) - 1
  before_G = np.clip(np.searchsorted(kl_E, budgets_G, side="right") - 1, 0, last)
  after_G = np.minimum(before_G + 1, last)
  span_G = np.log(kl_E[after_G] / kl_E[before_G])
  passed_G = np.log(np.maximum(budgets_G / kl_E[before_G], 1))
  return (
    before_G,
    after_G,
    np.divide(passed_G, span_G, out=np.zeros(len(budgets_G)), where=span_G > 0),
  )


def kls_above_floor(runs: Sequence[Run]) -> np.ndarray:
  """The KLs that count, all runs together, increasing and distinct."""
  kls = np.concatenate([run.kl_E for run in runs]) if runs else np.array([])
  return np.unique(kls[kls >= KL_FLOOR])


def envelope(
  runs: Sequence[Run], judge: str, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Cross-fitted upper envelope of one series, over all its runs, with a 95 % band.

  With several worlds, the mean of the worlds' envelopes from the KL that all of them
  reach. It need not rise everywhere: checkpoints are selected on the other half of
  the prompts.

  Returns:
    (kl_G, win_rate_G, low_G, high_G); the band is over prompts, within the worlds. All
    empty where no checkpoint is above the floor.
  """
  worlds = [runs for runs in by_world(runs).values() if len(kls_above_floor(runs))]
  if not worlds:
    return (np.array([]),) * 4
  budgets_G = kls_above_floor([run for runs in worlds for run in runs])
  budgets_G = budgets_G[budgets_G >= max(kls_above_floor(runs)[0] for runs in worlds)]
  mean_RxG = np.mean(
    [envelope_RxG(runs, judge, budgets_G, len(runs), resamples) for runs in worlds],
    axis=0,
  )
  return budgets_G, mean_RxG[0], *interval(mean_RxG)
