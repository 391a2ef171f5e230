"""Pillow, which the tests here skip without."""

import pytest


@pytest.fixture(scope="session")
def pillow():
    """The module that makes images of arrays."""
    return pytest.importorskip("PIL.Image")
