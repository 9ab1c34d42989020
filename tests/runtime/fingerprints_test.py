"""Fingerprints see any change of an array, and nothing of its layout."""

import jax.numpy as jnp
import numpy as np
import pytest

from alignment.runtime import fingerprints


def test_fingerprints_see_every_bit_and_no_layout():
  x = np.random.default_rng(0).normal(size=(6, 4, 10)).astype(np.float32)
  trees = {"whole": x, "half": x.astype(jnp.bfloat16), "count": np.int32(3)}
  before = fingerprints.fingerprints(trees)
  assert before.keys() == {
    "whole:float32", "whole:bfloat16", "half:bfloat16", "count:int32"
  }  # fmt: skip
  bits = x.view(np.uint32).ravel().astype(np.uint64)
  expected = int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1)).sum())
  assert before["whole:float32"] == expected % 2**32
  assert before["whole:bfloat16"] == before["half:bfloat16"]
  for bit in range(32):
    flipped = x.copy()
    flipped.view(np.uint32)[3, 2, 1] ^= np.uint32(1 << bit)
    after = fingerprints.fingerprints({"whole": flipped})
    assert after["whole:float32"] != before["whole:float32"]
  turned = fingerprints.fingerprints({"whole": x[::-1].copy()})
  assert turned["whole:float32"] != before["whole:float32"]


def test_the_array_that_is_not_as_it_was_written_is_named():
  tree = {"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)}
  saved = fingerprints.fingerprints(tree)
  fingerprints.check_fingerprints(tree, saved)
  tree["b"][1] = 2
  with pytest.raises(ValueError, match="array 'b' is not as it was written"):
    fingerprints.check_fingerprints(tree, saved)
