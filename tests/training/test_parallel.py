"""jit and pmap, on one device and on four, run the same steps."""

import jax
import numpy as np
import optax
import pytest

from flax_mnv2 import ConfigError
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.data.datasets.registry import load_segmentation
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.evaluate import evaluate
from flax_mnv2.training.optimizer import make_optimizer, make_schedule
from flax_mnv2.training.parallel import check_divisible, make_parallel, prefetch
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import make_eval_step, make_train_step

STEPS = 2
BLOCKS = ((8, 1, 1),)  # programs in float64 compile slowly


def _run(config, dataset, mode, num_devices, *, evaluated=True):
    """Losses of a few steps, the final state, and the evaluation of that state, if asked for."""
    parallel = make_parallel(mode, jax.devices()[:num_devices], per_device=not config.batch_norm.sync)
    task = SegmentationTask.for_training(config, dataset.labels, axis_name=parallel.axis_name)
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
    if not evaluated:
        return losses, jax.tree.map(np.asarray, state)
    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    evaluation = evaluate(task, parallel, eval_step, state.variables, dataset, split="val", report=True)
    return losses, jax.tree.map(np.asarray, state), evaluation


@pytest.fixture
def dataset(tiny_config):
    return load_segmentation(tiny_config.data)


@pytest.mark.slow
def test_every_way_agrees_to_rounding(tiny_config, dataset, monkeypatch):
    """In float64, so that only the parameters' own float32 rounds; dropout is on, batch norm is global."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", BLOCKS)
    tiny_config.dtype, tiny_config.eval.num_pictures, tiny_config.data.crop_size = "float64", 3, (32, 32)
    with jax.enable_x64(True):
        losses, state, evaluation = _run(tiny_config, dataset, "jit", 1)
        others = {("pmap", 2): _run(tiny_config, dataset, "pmap", 2)}  # test_distributed.py has jit on several
    assert len(set(losses)) == STEPS
    for name, (other_losses, other_state, other_evaluation) in others.items():
        np.testing.assert_allclose(other_losses, losses, rtol=1e-6, err_msg=str(name))
        for (path, one), other in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(other_state), strict=True):
            assert np.abs(one - other).max() <= 1e-5 * (np.abs(one).max() + 1e-3), f"{name}: {path}"
        assert other_evaluation.num_examples == evaluation.num_examples == 16
        matrices = [one.evaluator.confusion for one in (evaluation, other_evaluation)]
        moved = np.abs(matrices[1] - matrices[0]).sum() / matrices[0].sum()
        assert moved < 1e-4, f"{name}: {moved:.5f} of the pixels are counted elsewhere"
        assert len(evaluation.evaluator.pictures) == 3
        for one, other in zip(evaluation.evaluator.pictures, other_evaluation.evaluator.pictures, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            assert one.prediction.shape == other.prediction.shape == one.label.shape


@pytest.mark.slow
def test_without_synchronised_batch_norm_jit_and_pmap_agree(tiny_config, dataset, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", BLOCKS)
    tiny_config.batch_norm.sync = False
    tiny_config.dtype, tiny_config.data.crop_size = "float64", (32, 32)
    with jax.enable_x64(True):
        (losses, state), (other_losses, other_state) = (
            _run(tiny_config, dataset, mode, 2, evaluated=False) for mode in ("jit", "pmap")
        )
    np.testing.assert_allclose(losses, other_losses, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * (np.abs(one).max() + 1e-3))


def _small_step(optimizer):
    """A training step of the shape that the real one has, for a model of one matrix."""

    def step(state, batch):
        def objective(params):
            return ((batch["x"] @ params["kernel"] + params["bias"][None] - batch["y"]) ** 2).mean()

        loss, gradients = jax.value_and_grad(objective)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

    return step


def _small_state(optimizer):
    kernel = jax.random.normal(jax.random.key(0), (6, 256))
    return TrainState.create({"params": {"kernel": kernel, "bias": np.zeros(256)}, "batch_stats": {}}, optimizer)


def _small_batch(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(8, 6)).astype(np.float32)
    return {"x": x, "y": np.repeat(x[:, :1], 256, axis=1)}


def _optimizer_bytes(state):
    """Of the optimizer's state, on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.opt_state))


def test_a_split_optimizer_state_gives_the_same_steps_in_less_memory():
    optimizer = optax.adam(0.1)
    states, compiled = {}, {}
    for split in (False, True):
        parallel = make_parallel("jit", jax.devices()[:4], shard_optimizer=split)
        state = parallel.put_state(_small_state(optimizer))
        step = parallel.compile_train_step(_small_step(optimizer))
        compiled[split] = step.lower(state, parallel.put_batch(_small_batch(0))).compile().memory_analysis()
        whole = _optimizer_bytes(state)
        for at in range(3):
            before = state
            state, _ = step(state, parallel.put_batch(_small_batch(at)))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # its memory is reused
        assert _optimizer_bytes(state) == whole
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        states[split] = state
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7), states[False], states[True]
    )
    moments, count = 2 * (6 * 256 + 256) * 4, 4
    assert _optimizer_bytes(states[False]) == moments + count
    assert _optimizer_bytes(states[True]) == moments // 4 + count
    saved = compiled[False].argument_size_in_bytes - compiled[True].argument_size_in_bytes
    assert saved >= moments * 3 // 4
    step_and_params = 4 + moments // 2
    assert compiled[True].alias_size_in_bytes == step_and_params + _optimizer_bytes(states[True])  # nothing is copied


def test_a_checkpoint_of_a_split_optimizer_state_goes_on_whole_and_back(tmp_path):
    optimizer = optax.adam(0.1)
    state = None
    for at, (split, num_devices) in enumerate(((True, 4), (False, 1), (True, 2), (False, 4))):
        parallel = make_parallel("jit", jax.devices()[:num_devices], shard_optimizer=split)
        step = parallel.compile_train_step(_small_step(optimizer))
        with Checkpoints(tmp_path / "checkpoints", keep_last=1) as checkpoints:
            placed = parallel.put_state(_small_state(optimizer))
            if state is not None:
                placed = TrainState.from_items(checkpoints.restore(at, placed.to_items()))
                jax.tree.map(np.testing.assert_array_equal, placed, state)
            else:
                assert not placed.opt_state[0].mu["kernel"].sharding.is_fully_replicated
            state, _ = step(placed, parallel.put_batch(_small_batch(at)))
            checkpoints.save(at + 1, state.to_items(), {"config": {}, "model": {}})
        state = jax.tree.map(np.asarray, state)
    assert int(state.step) == 4


def test_batch_that_does_not_divide_is_explained():
    parallel = make_parallel("jit", jax.devices()[:4])
    with pytest.raises(ConfigError, match=r"config\.batch_size must be divisible .* 4; found 6. Use 4 or 8"):
        check_divisible(parallel, 6, "batch_size")


def test_prefetch_keeps_order_and_loses_nothing():
    assert list(prefetch(range(10), lambda value: -value, depth=3)) == [-value for value in range(10)]
    assert list(prefetch([], lambda value: value)) == []
