"""What the fault tests share; harness.py, by its name, and small runs inside this process."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # tests are not a package

import harness
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> harness.Data:
    """Drawn shapes and photos, prepared once."""
    return harness.Data(tmp_path_factory.mktemp("faults_data"))


@pytest.fixture
def tiny(data, monkeypatch):
    """(task, **fields) → the config of a tiny run inside this process."""
    monkeypatch.setattr("flax_mnv2.config.BLOCK_TABLE", harness.BLOCKS)
    return data.config
