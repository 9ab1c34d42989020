"""Hostile chats give a result or one clear line."""

import pytest

from tests.endurance import fuzz_chats


@pytest.mark.parametrize("target", fuzz_chats.TARGETS)
def test_mutated_chats_give_a_result_or_one_clear_line(target):
  inputs = {"templates": 15, "conversations": 60, "tokenizers": 15}[target]
  outcomes = fuzz_chats.run(target, inputs)
  assert outcomes["result"] and outcomes["error"]
