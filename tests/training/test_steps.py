"""Gradient accumulation, the moving average, and skipped steps, on tasks small enough to check by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.state import TrainState, update_ema
from flax_mnv2.training.step import make_train_step


class _Line:
    """Least squares on a line; the statistics count the examples, the key shifts nothing."""

    def loss_sums(self, variables, batch, key, *, axis_name):
        del key
        error = batch["x"] * variables["params"]["w"] - batch["y"]
        weight = jnp.sum(batch["valid"])
        seen = weight if axis_name is None else jax.lax.psum(weight, axis_name)
        statistics = {"batch_stats": {"seen": variables["batch_stats"]["seen"] + seen}}
        sums = {"weight": weight, "count": jnp.float32(len(error)), "error": jnp.sum(error)}
        return jnp.sum(batch["valid"] * error**2), (statistics, sums)


def _batch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16)).astype(np.float32)
    return {"x": x, "y": y, "valid": (rng.random(16) < 0.7).astype(np.float32)}


def _step(accumulate, mode="jit", devices=1, ema=None):
    parallel = make_parallel(mode, jax.devices()[:devices])
    optimizer = optax.sgd(0.1)
    step = parallel.compile_train_step(
        make_train_step(
            _Line(),
            optimizer,
            optax.constant_schedule(0.1),
            seed=0,
            axis_name=parallel.axis_name,
            accumulate=accumulate,
            ema=ema,
        )
    )
    variables = {"params": {"w": np.float32(0.5)}, "batch_stats": {"seen": np.float32(0)}}
    state = parallel.put_state(TrainState.create(variables, optimizer, ema=ema is not None))
    return step, state, parallel.put_batch(_batch())


def test_one_step_is_gradient_descent_on_the_mean_over_what_counts():
    step, state, batch = _step(1)
    state, metrics = step(state, batch)
    host = _batch()
    error = host["x"] * 0.5 - host["y"]
    gradient = (host["valid"] * 2 * error * host["x"]).sum() / host["valid"].sum()
    assert float(state.params["w"]) == pytest.approx(0.5 - 0.1 * gradient, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx((host["valid"] * error**2).sum() / host["valid"].sum(), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(abs(gradient), rel=1e-5)


@pytest.mark.parametrize(("accumulate", "mode", "devices"), [(4, "jit", 1), (2, "jit", 4), (2, "pmap", 4)])
def test_parts_of_a_batch_make_the_same_update(accumulate, mode, devices):
    whole, parts = _step(1), _step(accumulate, mode, devices)
    (one, one_metrics), (other, other_metrics) = (step(state, batch) for step, state, batch in (whole, parts))
    np.testing.assert_allclose(other.params["w"], one.params["w"], rtol=1e-5)
    np.testing.assert_allclose(other.collections["batch_stats"]["seen"], one.collections["batch_stats"]["seen"])
    for name in one_metrics:
        np.testing.assert_allclose(other_metrics[name], one_metrics[name], rtol=1e-5, err_msg=name)


def test_the_state_carries_a_moving_average_of_weights_and_statistics():
    ema = default_config().ema
    ema.decay = 0.75
    step, state, batch = _step(1, ema=ema)
    expected, seen = 0.5, 0.0
    for _ in range(3):
        state, _ = step(state, batch)
        expected = 0.75 * expected + 0.25 * float(state.params["w"])
        seen = 0.75 * seen + 0.25 * float(state.collections["batch_stats"]["seen"])
    assert float(state.ema["params"]["w"]) == pytest.approx(expected, rel=1e-5)
    assert float(state.ema["batch_stats"]["seen"]) == pytest.approx(seen, rel=1e-5)
    assert float(state.ema["params"]["w"]) != pytest.approx(float(state.params["w"]))


def _averages(values, **fields):
    config = types.SimpleNamespace(**{"decay": 0.9, "ramp": False, "every_steps": 1, "start_steps": 0, **fields})
    average, seen = jnp.float32(0), []
    for step, value in enumerate(values, start=1):
        average = update_ema(average, jnp.float32(value), jnp.int32(step), config)
        seen.append(float(average))
    return seen


def test_rules_of_the_average():
    assert _averages([1, 1]) == pytest.approx([0.1, 0.19])
    assert _averages([1, 2, 3], start_steps=2) == pytest.approx([1, 2, 2.1])
    assert _averages([1, 1, 1, 1], every_steps=2) == pytest.approx([0, 0.1, 0.1, 0.19])
    # TensorFlow's num_updates: decays of 2/11, 3/12, 4/13 at first.
    assert _averages([1, 2, 3], ramp=True) == pytest.approx([0.8181818, 1.7045455, 2.6013986], rel=1e-5)


class _Plane:
    """Least squares in four dimensions; the statistics add up what the batch says."""

    def loss_sums(self, variables, batch, key, *, axis_name):
        del key
        error = batch["x"] @ variables["params"]["w"] - batch["y"]
        added = jnp.sum(batch["added"])
        added = added if axis_name is None else jax.lax.psum(added, axis_name)
        statistics = {"batch_stats": {"sum": variables["batch_stats"]["sum"] + added}}
        return jnp.sum(error**2), (statistics, {"weight": jnp.float32(len(error))})


def _plane_batch(seed, **spoilt):
    """Random; of each field in ``spoilt`` the last row is the value given."""
    rng = np.random.default_rng(seed)
    batch = {"x": rng.normal(size=(16, 4)), "y": rng.normal(size=16), "added": rng.normal(size=16)}
    batch = {name: values.astype(np.float32) for name, values in batch.items()}
    for name, value in spoilt.items():
        batch[name][-1] = value
    return batch


def _rate(step):
    return 0.1 / (1.0 + step)


WHERE = {"accumulate": 1, "mode": "jit", "devices": 1}


def _plane_run(rule, **where):
    """The compiled step, its first state and its placement; ``where`` is an entry of ``EVERYWHERE``."""
    accumulate, mode, devices = (where.pop(name, value) for name, value in WHERE.items())
    ema = default_config().ema
    ema.decay = 0.75
    parallel = make_parallel(mode, jax.devices()[:devices], **where)
    step = make_train_step(
        _Plane(),
        rule,
        _rate,
        seed=0,
        axis_name=parallel.axis_name,
        accumulate=accumulate,
        ema=ema,
        replicate=parallel.replicate,
    )
    variables = {"params": {"w": np.zeros(4, np.float32)}, "batch_stats": {"sum": np.float32(0)}}
    state = parallel.put_state(TrainState.create(variables, rule, ema=True))
    return parallel.compile_train_step(step), state, parallel


EVERYWHERE = {
    "jit": {},
    "jit on 4, in parts": {"devices": 4, "accumulate": 2},
    "shard_map": {"devices": 4, "per_device": True},
    "split optimizer": {"devices": 4, "shard_optimizer": True},
    "pmap in parts": {"mode": "pmap", "devices": 4, "accumulate": 2},
}


@pytest.mark.parametrize("where", EVERYWHERE.values(), ids=EVERYWHERE.keys())
def test_a_step_that_is_not_finite_changes_nothing_but_the_step_and_the_schedules_count(where):
    step, state, parallel = _plane_run(optax.adam(_rate), **where)
    state, metrics = step(state, parallel.put_batch(_plane_batch(0)))
    assert float(metrics["skipped"]) == 0
    before = jax.device_get(state)

    state, metrics = step(state, parallel.put_batch(_plane_batch(1, y=np.nan)))
    assert float(metrics["skipped"]) == 1
    assert np.isnan(metrics["loss"])
    moments, schedule = before.opt_state
    assert int(moments.count) == int(schedule.count) == 1
    expected = before.replace(step=np.int32(2), opt_state=(moments, schedule._replace(count=np.int32(2))))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    for leaf, wanted in zip(
        jax.tree.leaves(state), jax.tree.leaves(parallel.put_state(jax.device_get(state))), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)

    # The run goes on as one that never saw that batch.
    state, metrics = step(state, parallel.put_batch(_plane_batch(2)))
    unseen, _ = step(parallel.put_state(expected), parallel.put_batch(_plane_batch(2)))
    assert float(metrics["skipped"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(unseen))
    assert not np.array_equal(state.params["w"], before.params["w"])


def test_the_rate_after_a_skipped_step_is_the_one_of_its_number():
    step, state, parallel = _plane_run(optax.sgd(_rate))
    state, _ = step(state, parallel.put_batch(_plane_batch(0, y=np.inf)))
    state, metrics = step(state, parallel.put_batch(_plane_batch(1)))
    host = _plane_batch(1)
    gradient = -2 * (host["y"] @ host["x"]) / 16
    assert float(metrics["learning_rate"]) == pytest.approx(0.05)
    np.testing.assert_allclose(state.params["w"], -0.05 * gradient, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoilt", "rate", "finite"),
    [
        ({"x": np.nan}, 0.1, ()),
        ({"x": 1e30, "y": 1e15}, 0.1, ("loss",)),  # the product of both overflows, the square of one does not
        ({"y": 1e3}, 3e38, ("loss", "gradient_norm")),
        ({"added": np.inf}, 0.1, ("loss", "gradient_norm")),
    ],
    ids=["loss", "gradient", "weights", "statistics"],
)
def test_whatever_is_not_finite_is_kept_out(spoilt, rate, finite):
    step, state, parallel = _plane_run(optax.chain(optax.scale(-1.0), optax.scale(rate)))
    before = jax.device_get(state)
    state, metrics = step(state, parallel.put_batch(_plane_batch(0, **spoilt)))
    assert float(metrics["skipped"]) == 1
    assert {name for name in ("loss", "gradient_norm") if np.isfinite(metrics[name])} == set(finite)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before.replace(step=np.int32(1)))
