"""What all tests share: four CPU devices, strict promotion rules, a compilation cache, the shared data."""

import gc
import os
import pathlib

import quick_xla

# Before JAX and TFDS are imported: no downloads, nothing left in the home folder. Scripts that are started inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("XLA_FLAGS", quick_xla.FLAGS)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads wait in loops for each other; each core has a worker
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
import pytest
import torchvision_ops  # noqa: F401 - torchvision can then be imported beside the CPU build of torch

import flax_mnv2.layer_plan

pytest_plugins = ("tiny_runs", "longest_first")

ROOT = pathlib.Path(__file__).resolve().parents[1]

gc.set_threshold(50_000, 50, 50)  # JAX makes many small objects and few cycles: a tenth of the time went into looking
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: half a million objects in which no collection need look for cycles


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data and weights, or a skip with the reason."""
    folder = pathlib.Path(os.environ.get("MNV2_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data: set MNV2_SHARED to its folder (looked for {folder})")
    return folder


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Three blocks instead of sixteen, narrow: compiles in a second or two."""
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 2), (16, 2, 2)))


@pytest.fixture(scope="session")
def assert_same():
    """Two trees or dicts of arrays, equal to the bit, types included."""

    def check(one, other):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, strict=True)

    return check
