"""What the fault tests share; harness.py, by its name, and small runs inside this process."""

import harness
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> harness.Data:
    """Drawn shapes and photos, prepared once."""
    return harness.Data(tmp_path_factory.mktemp("faults_data"))


@pytest.fixture(scope="session")
def uncut(data, tmp_path_factory):
    """(task, **fields, mode and devices) → the folder of a tiny run that nothing happened to."""

    def train(task, *, mode="jit", devices=1, **fields):
        workdir = tmp_path_factory.mktemp("uncut")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", harness.BLOCKS)
            assert harness.train_here(data.config(task, **fields), workdir, mode=mode, devices=devices) == 0
        return workdir

    return train


@pytest.fixture
def tiny(data, drawn_once, no_curve, monkeypatch):
    """(task, **fields) → the config of a tiny run inside this process."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", harness.BLOCKS)
    return data.config
