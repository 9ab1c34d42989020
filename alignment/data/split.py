"""Which pairs are for validation: what models see of a prompt is on one side only.

Two pairs belong together if their prompts are the same tokens, as they are read, or if
their first user turns are. Each pair also has a draw of its own, from the hash of its
first user turn's text. A group of pairs that belong together takes one of its draws, so
that what else a data set holds changes nothing, unless it ties pairs together.
"""

from array import array
import hashlib

import numpy as np


class Splitter:
  """Takes pairs one by one, then says which of them are for validation."""

  def __init__(self):
    self._openings, self._prompts = array("q"), array("q")  # hashes of tokens
    self._draws, self._ranks = array("Q"), array("Q")

  def add(self, opening: str, opening_ids: list[int], prompt_ids: list[int]) -> None:
    """Takes a pair.

    Args:
      opening: its prompt's first user turn, as text.
      opening_ids: the same as tokens.
      prompt_ids: the prompt as models read it.
    """
    digest = hashlib.sha256(opening.encode()).digest()
    self._draws.append(int.from_bytes(digest[:8], "big"))
    self._ranks.append(int.from_bytes(digest[8:16], "big"))
    self._openings.append(hash(tuple(opening_ids)))
    self._prompts.append(hash(tuple(prompt_ids)))

  @property
  def prompts_P(self) -> np.ndarray:
    """A hash of each pair's prompt as models read it: int64."""
    return np.array(self._prompts, np.int64)

  def is_validation(self, fraction: float) -> np.ndarray:
    """Which pairs are for validation, about `fraction` of all groups: bool [P]."""
    groups_P = _groups(np.array(self._openings, np.int64), self.prompts_P)
    # Of the draws of a group, the one of the lowest rank: no order of pairs matters,
    # and large groups are no more likely to be on one side than small ones.
    order_P = np.lexsort((np.array(self._ranks, np.uint64), groups_P))
    groups, firsts = np.unique(groups_P[order_P], return_index=True)
    draws = np.array(self._draws, np.uint64)[order_P[firsts]]
    return (draws / 2.0**64 < fraction)[np.searchsorted(groups, groups_P)]


def _groups(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
  """Numbers of the smallest groups in which pairs with equal keys are together."""
  from scipy.sparse import coo_array
  from scipy.sparse.csgraph import connected_components

  first, rows_P = np.unique(first_P, return_inverse=True)
  second, columns_P = np.unique(second_P, return_inverse=True)
  size = len(first) + len(second)
  links = np.ones(len(first_P), bool)
  graph = coo_array((links, (rows_P, len(first) + columns_P)), shape=(size, size))
  _, groups = connected_components(graph, directed=False)
  return groups[rows_P]
