"""The pure steps of training and evaluation, written once for ``jit`` and ``pmap``.

Under ``jit`` over a mesh the arrays are global and ``axis_name`` is None; under ``pmap`` each device sees its
part and sums over ``axis_name``. Losses are sums divided once by the global count, so both give the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from flax_mnv2.tasks.base import Batch, Task
from flax_mnv2.training.parallel import Parallel
from flax_mnv2.training.state import TrainState, update_ema

if TYPE_CHECKING:
    import ml_collections


def configured_train_step(
    config: ml_collections.ConfigDict,
    task: Task,
    schedule: optax.Schedule,
    optimizer: optax.GradientTransformation,
    parallel: Parallel,
) -> Callable:
    """Returns the pure step of a run, to be compiled by ``parallel``."""
    return make_train_step(
        task,
        optimizer,
        schedule,
        seed=config.seed,
        axis_name=parallel.axis_name,
        replicate=parallel.replicate,
        accumulate=config.gradient_accumulation_steps,
        ema=config.ema,
    )


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    axis_name: str | None = None,
    accumulate: int = 1,
    ema: Any = None,
    replicate: Callable[[Any], Any] = lambda tree: tree,
):
    """Returns ``step(state, batch) -> (state, metrics)``; metrics are float32 scalars, the loss among them.

    A step whose loss or gradient norm, or whose new weights or running statistics, hold NaN or infinity is skipped:
    ``skipped`` among the metrics is 1, else 0. All devices decide alike, because they decide on sums over all. A
    skipped step leaves weights, statistics, the moving average, and the optimizer's moments and their counts as they
    were, to the bit. Only ``step`` goes on, so that another batch and other random numbers come next, and with it the
    count that a schedule reads, so that the learning rate used is the one that belongs to the step and is logged.

    ``accumulate`` is the number of parts in which a batch is worked through before the one update (batch norm takes the
    statistics of a part), ``ema`` is ``config.ema`` of the run, and ``replicate`` keeps gradients and updates whole on
    every device where the optimizer's state is not.
    """
    sums_of_batch = _make_sums(task, accumulate, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        collections, totals = sums_of_batch(state, batch, key)
        sums, gradients = totals if axis_name is None else jax.lax.psum(totals, axis_name)
        weight = _at_least_something(sums.pop("weight"))
        count = _at_least_something(sums.pop("count", weight))
        gradients = replicate(jax.tree.map(lambda value: value / weight, gradients))
        metrics = {
            "loss": sums.pop("loss") / weight,
            **{name: value / count for name, value in sums.items()},
            "gradient_norm": _norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }

        def updated(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, replicate(updates))
            state = state.replace(step=state.step + 1, params=params, collections=collections, opt_state=opt_state)
            if state.ema is None:
                return state
            return state.replace(ema=update_ema(state.ema, state.variables, state.step, ema))

        finite = _all_finite((metrics["loss"], metrics["gradient_norm"], collections))
        state, skipped = _update_or_skip(state, updated, finite)
        return state, {**metrics, "skipped": skipped}

    return train_step


def _make_sums(task: Task, accumulate: int, axis_name: str | None) -> Callable:
    """Returns ``(state, batch, key) -> (new collections, (sums with the loss, summed gradients))`` of one device."""

    def sums_of_part(params, collections, batch: Batch, key: jax.Array):
        def objective(params):
            variables = {"params": params, **collections}
            return task.loss_sums(variables, batch, key, axis_name=axis_name)

        (loss, (collections_after, sums)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return collections_after, ({"loss": loss, **sums}, gradients)

    def sums_of_batch(state: TrainState, batch: Batch, key: jax.Array):
        if accumulate == 1:
            return sums_of_part(state.params, state.collections, batch, key)

        def add_part(carry, numbered):
            collections, total = carry
            index, part = numbered
            collections, sums = sums_of_part(state.params, collections, part, jax.random.fold_in(key, index))
            return (collections, jax.tree.map(jnp.add, total, sums)), None

        parts = jax.tree.map(lambda value: _parts(value, accumulate), batch)
        first = jax.tree.map(lambda value: value[0], parts)
        shapes = jax.eval_shape(sums_of_part, state.params, state.collections, first, key)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        carry, _ = jax.lax.scan(add_part, (state.collections, zeros), (jnp.arange(accumulate), parts))
        return carry

    return sums_of_batch


def _update_or_skip(
    state: TrainState, updated: Callable[[TrainState], TrainState], finite: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Returns the updated state and 0; or, unless all is finite, the old one with its step counted, and 1.

    Branches, not a choice between two results: XLA would compute the gradients once for each use of them.
    """

    def learn(state: TrainState) -> tuple[TrainState, jax.Array]:
        # Under x64 an update may widen types; a state keeps those that it began with.
        learned = jax.tree.map(lambda new, old: new.astype(old.dtype), updated(state), state)
        # A learning rate out of all measure makes infinite weights of finite gradients.
        return jax.lax.cond(_all_finite(learned.params), lambda: (learned, jnp.float32(0)), lambda: _skip(state))

    return jax.lax.cond(finite, learn, _skip, state)


def _at_least_something(total: jax.Array) -> jax.Array:
    """Returns a divisor of sums: where nothing counts they are 0, and shall stay it."""
    return jnp.where(total > 0, total, 1.0)


def _all_finite(tree: Any) -> jax.Array:
    """Scalar bool."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in _joined_vectors(tree)]))


def _norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all numbers of a tree, scalar."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(array)) for array in _joined_vectors(tree)))


def _joined_vectors(tree: Any) -> list[jax.Array]:
    """Returns the arrays of a tree, those without or with one axis as one: XLA compiles a program for each array."""
    leaves = jax.tree.leaves(tree)
    vectors = [leaf.reshape(-1) for leaf in leaves if leaf.ndim <= 1]
    return [leaf for leaf in leaves if leaf.ndim > 1] + ([jnp.concatenate(vectors)] if vectors else [])


def _skip(state: TrainState) -> tuple[TrainState, jax.Array]:
    """Returns the state, but for its step and the count that a schedule reads; and 1."""

    def count(node: Any) -> Any:
        return node._replace(count=optax.safe_increment(node.count)) if _is_schedule(node) else node

    opt_state = jax.tree.map(count, state.opt_state, is_leaf=_is_schedule)
    return state.replace(step=state.step + 1, opt_state=opt_state), jnp.float32(1)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _parts(value: jax.Array, count: int) -> jax.Array:
    """(N, …) → (count, N / count, …); part j has the rows j, j + count, …, so that every device has its part."""
    return jnp.swapaxes(value.reshape(-1, count, *value.shape[1:]), 0, 1)


def make_eval_step(task: Task, *, axis_name: str | None = None):
    """Returns ``step(variables, batch) -> (sums over the global batch, what is kept of each example)``."""

    def eval_step(variables: dict[str, Any], batch: Batch):
        sums, examples = task.evaluate_batch(variables, batch)
        return (sums if axis_name is None else jax.lax.psum(sums, axis_name)), examples

    return eval_step
