"""Log-probabilities and losses against a live TRL, on fresh random inputs."""

from make_loss_fixtures import random_case, random_group_case
import pytest

from tests.core.losses_test import (
  assert_agrees_with_trl,
  assert_group_gradients_agree_with_trl,
)


@pytest.mark.parametrize("repeat", range(5))
def test_agrees_with_trl(repeat):
  assert_agrees_with_trl(random_case())


@pytest.mark.parametrize("repeat", range(5))
def test_group_gradients_agree_with_trl(repeat):
  assert_group_gradients_agree_with_trl(random_group_case())
