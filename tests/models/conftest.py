"""What the tests of the operations share."""

import jax
import pytest

from flax_mnv2.models.ops import slices


@pytest.fixture
def slice_bytes(monkeypatch):
    """Sets how large a slice of a batch may be; what was traced with another size is forgotten."""

    def set_bytes(size):
        monkeypatch.setattr(slices, "_SLICE_BYTES", size)
        jax.clear_caches()

    yield set_bytes
    jax.clear_caches()
