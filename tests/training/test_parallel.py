"""jit and pmap, on one device and on four, run the same steps."""

import jax
import numpy as np
import pytest

from flax_mnv2 import ConfigError
from flax_mnv2.data.load import load_segmentation
from flax_mnv2.tasks.segmentation import SegmentationTask, make_model_config
from flax_mnv2.tasks.segmentation_report import Pictures
from flax_mnv2.training.evaluation import evaluate
from flax_mnv2.training.optimizer import make_optimizer, make_schedule
from flax_mnv2.training.parallel import check_divisible, make_parallel, prefetch
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.steps import make_eval_step, make_train_step

STEPS = 2


def _run(config, dataset, mode, num_devices):
    """Losses of a few steps, the final state, and the evaluation of that state."""
    parallel = make_parallel(mode, jax.devices()[:num_devices], per_device=not config.batch_norm.sync)
    task = SegmentationTask(config, make_model_config(config, dataset.labels), axis_name=parallel.axis_name)
    schedule = make_schedule(config.optimizer, config.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = parallel.compile_train_step(make_train_step(task, optimizer, schedule, seed=0, axis_name=parallel.axis_name))
    state = parallel.put_state(TrainState.create(task.init_variables(0), optimizer))
    losses = []
    with task.train_batches(dataset, start_step=0) as batches:
        for _ in range(STEPS):
            batch = next(batches)
            state, metrics = step(state, parallel.put_batch({k: batch[k] for k in ("image", "label")}))
            losses.append(float(metrics["loss"]))
    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    evaluation = evaluate(task, parallel, eval_step, state.variables, dataset, split="val", keeper=Pictures(3))
    return losses, jax.tree.map(np.asarray, state), evaluation


@pytest.fixture
def dataset(tiny_config):
    return load_segmentation(tiny_config.data)


@pytest.mark.slow
def test_every_way_agrees_to_rounding(tiny_config, dataset):
    """In float64, so that only the parameters' own float32 rounds; dropout is on, batch norm is global."""
    tiny_config.dtype = "float64"
    with jax.enable_x64(True):
        losses, state, evaluation = _run(tiny_config, dataset, "jit", 1)
        others = {(mode, n): _run(tiny_config, dataset, mode, n) for mode, n in (("pmap", 1), ("jit", 2), ("pmap", 2))}
    assert len(set(losses)) == STEPS
    for name, (other_losses, other_state, other_evaluation) in others.items():
        np.testing.assert_allclose(other_losses, losses, rtol=1e-6, err_msg=str(name))
        for (path, one), other in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(other_state), strict=True):
            assert np.abs(one - other).max() <= 1e-5 * (np.abs(one).max() + 1e-3), f"{name}: {path}"
        assert other_evaluation.num_examples == evaluation.num_examples == 80
        moved = np.abs(other_evaluation.sums - evaluation.sums).sum() / evaluation.sums.sum()
        assert moved < 1e-4, f"{name}: {moved:.5f} of the pixels are counted elsewhere"
        assert len(evaluation.kept) == 3
        for one, other in zip(evaluation.kept, other_evaluation.kept, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            assert one.prediction.shape == other.prediction.shape == one.label.shape


@pytest.mark.slow
def test_without_synchronised_batch_norm_jit_and_pmap_agree(tiny_config, dataset):
    tiny_config.batch_norm.sync = False
    tiny_config.dtype = "float64"
    with jax.enable_x64(True):
        (losses, state, _), (other_losses, other_state, _) = (
            _run(tiny_config, dataset, mode, 2) for mode in ("jit", "pmap")
        )
    np.testing.assert_allclose(losses, other_losses, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * (np.abs(one).max() + 1e-3))


def test_batch_that_does_not_divide_is_explained():
    parallel = make_parallel("jit", jax.devices()[:4])
    with pytest.raises(ConfigError, match=r"config\.batch_size must be divisible .* 4; found 6. Use 4 or 8"):
        check_divisible(parallel, 6, "batch_size")


def test_prefetch_keeps_order_and_loses_nothing():
    assert list(prefetch(range(10), lambda value: -value, depth=3)) == [-value for value in range(10)]
    assert list(prefetch([], lambda value: value)) == []
