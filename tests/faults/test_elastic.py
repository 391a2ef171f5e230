"""A run on other devices, processes and input workers: the same global batches, the same state to rounding."""

import harness
import jax
import numpy as np
import pytest
import remains

from flax_mnv2.training.config import checks


def _assert_same(one, other):
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize(("task", "pixels"), [("segmentation", (8, 48, 48, 3)), ("classification", (8, 32, 32, 3))])
def test_global_batches_do_not_depend_on_processes_workers_and_resumption(tiny, task, pixels):
    config = tiny(task)
    whole = harness.global_batches(config, processes=1, workers=0)
    assert whole[0]["image"].shape == pixels
    assert len({batch["image"].tobytes() for batch in whole}) == harness.BATCHES
    for processes in (2, 4):
        _assert_same(harness.global_batches(config, processes=processes, workers=0), whole)
    _assert_same(harness.global_batches(config, processes=2, workers=0, start_step=1)[:-1], whole[1:])
    if task == "segmentation":  # soak.py has both, with 1, 2 and 3
        _assert_same(harness.global_batches(config, processes=1, workers=1), whole)


def test_a_run_moves_from_one_device_to_four(tiny, tmp_path, monkeypatch):
    """In float64, so that only float32 weights and statistics round: else what grows depends on the CPU.

    test_multihost.py has what goes on under pmap.
    """
    monkeypatch.setitem(checks._RULES, "dtype", (lambda value: value == "float64", "float64"))
    config = tiny(
        "plain", dtype="float64", num_steps=6, eval_every_steps=6, checkpoint__every_steps=6, log_every_steps=1
    )
    with jax.enable_x64(True):
        assert harness.train_here(config, tmp_path / "whole") == 0
        fault = {"signal": "SIGTERM", "during": "training", "at": 2}
        assert harness.train_here(config, tmp_path / "moved", fault=fault) == 143
        assert harness.train_here(config, tmp_path / "moved", devices=4) == 0
    one, other = (remains.arrays(tmp_path / name, 6) for name in ("whole", "moved"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for first, second in zip(remains.metrics(tmp_path / "whole"), remains.metrics(tmp_path / "moved"), strict=True):
        assert first.pop("split") == second.pop("split")
        assert first == pytest.approx(second, rel=1e-4, abs=1e-4)
