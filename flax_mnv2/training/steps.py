"""The pure steps of training and evaluation, written once for ``jit`` and ``pmap``.

Under ``jit`` over a mesh the arrays are global and ``axis_name`` is None; under ``pmap`` each device sees its
share and sums over ``axis_name``. Losses are sums divided once by the global count, so both give the same.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from flax_mnv2.training.state import TrainState

Batch = dict[str, jax.Array]


class Task(Protocol):
    """What the steps ask of a job."""

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """The summed loss, with (new batch statistics, further sums, one of them ``weight``)."""

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Sums over the batch, and what is kept of each example."""


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    axis_name: str | None = None,
):
    """Returns ``step(state, batch) -> (state, metrics)``; metrics are float32 scalars, the loss among them."""

    def psum(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            loss_sum, (batch_stats, sums) = task.loss_sums(variables, batch, key, axis_name=axis_name)
            weight = jnp.maximum(psum(jax.lax.stop_gradient(sums["weight"])), 1.0)
            return loss_sum / weight, (batch_stats, sums)

        (loss, (batch_stats, sums)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        loss, sums, gradients = psum((loss, sums, gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        weight = jnp.maximum(sums.pop("weight"), 1.0)
        metrics = {
            "loss": loss,
            **{name: value / weight for name, value in sums.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_eval_step(task: Task, *, axis_name: str | None = None):
    """Returns ``step(variables, batch) -> (sums over the global batch, what is kept of each example)``."""

    def eval_step(variables: dict[str, Any], batch: Batch):
        sums, examples = task.evaluate_batch(variables, batch)
        return (sums if axis_name is None else jax.lax.psum(sums, axis_name)), examples

    return eval_step
