"""Cells of the published tables."""

from collections.abc import Iterator, Sequence
import math

import numpy as np

from alignment.analysis.intervals import Estimate, t_interval

Rows = Iterator[tuple[str, ...]]  # the first two are the head's
MINUS = "\N{MINUS SIGN}"


def head(*cells: str) -> Rows:
  yield cells
  yield ("---",) * len(cells)


def signed(value: float, digits: int = 3) -> str:
  return f"{value:+.{digits}f}".replace("-", MINUS)


def estimate_of(estimate: Estimate) -> str:
  return str(estimate).replace("-", MINUS)


def share(value: float | None, within: float | None = None, digits: int = 3) -> str:
  if value is None:
    return "unknown"
  text = f"{value:.{digits}f}"
  return text if within is None else f"{text} ± {within:.{digits}f}"


def mean_within(values: Sequence[float], digits: int) -> str:
  """A mean with half of Student's interval, which one value does not have."""
  mean, low, _ = t_interval(np.array(values))
  text = f"{mean:.{digits}f}".replace("-", MINUS)
  return text if math.isnan(low) else f"{text} ± {mean - low:.{digits}f}"
