import pytest


@pytest.fixture(autouse=True)
def always_fast(fast):
    """The tests of the fast paths turn them on."""
