"""A made-up study that the tests of figures share."""

import pytest

from tests import synthetic


@pytest.fixture(name="study", scope="session")
def _study():
  return synthetic.study()
