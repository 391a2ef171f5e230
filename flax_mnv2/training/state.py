"""What a run carries from step to step, and the moving average in it."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flax_mnv2.checkpoint.folder import EMA, TRAINING, VARIABLES


@flax.struct.dataclass
class TrainState:
    """One pytree, the same on every device and in every mode."""

    step: jax.Array  # int32 scalar, updates made so far; randomness derives from the run's seed and this alone
    params: Any  # learned by the optimizer, float32
    collections: dict[
        str, Any
    ]  # what training changes otherwise: running statistics, and ranges of a quantised network
    opt_state: Any
    ema: Any = None  # moving average of ``variables``, the same tree; None where the run keeps none

    @classmethod
    def create(
        cls, variables: dict[str, Any], optimizer: optax.GradientTransformation, *, ema: bool = False
    ) -> "TrainState":
        """Returns a state at step 0; with ``ema`` the moving average starts at ``variables``."""
        variables = jax.tree.map(jnp.asarray, variables)
        return cls(
            step=jnp.zeros((), jnp.int32),
            **_divided(variables),
            opt_state=optimizer.init(variables["params"]),
            ema=jax.tree.map(jnp.copy, variables) if ema else None,  # a copy: states are donated
        )

    @property
    def variables(self) -> dict[str, Any]:
        """Returns ``params`` and the other collections, for ``model.apply``."""
        return {"params": self.params, **self.collections}

    def to_items(self) -> dict[str, Any]:
        """Returns what a checkpoint holds, pytrees by item."""
        items = {VARIABLES: self.variables, TRAINING: {"step": self.step, "opt_state": self.opt_state}}
        return items if self.ema is None else {**items, EMA: self.ema}

    @classmethod
    def from_items(cls, items: Mapping[str, Any]) -> "TrainState":
        """Returns the state of which ``to_items`` gave ``items``."""
        return cls(**_divided(items[VARIABLES]), **items[TRAINING], ema=items.get(EMA))


def _divided(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a state has of variables: those that are learned by gradients, and the others."""
    others = {name: collection for name, collection in variables.items() if name != "params"}
    return {"params": variables["params"], "collections": others}


def update_ema(average: Any, variables: Any, step: jax.Array, config: Any) -> Any:
    """Returns the average after one more step, the ``step``-th: ``decay * average + (1 - decay) * variables``.

    By ``config.ema`` with durations in steps: with ``ramp`` the decay is at most ``(1 + step) / (10 + step)``, as in
    TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``. Other than every ``every_steps`` the average stays;
    up to ``start_steps`` it is a copy, and integers are copied always.
    """
    decay = jnp.float32(config.decay)
    if config.ramp:
        made = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1.0 + made) / (10.0 + made))
    keep = jnp.where(step <= config.start_steps, 0.0, jnp.where(step % config.every_steps == 0, decay, 1.0))

    def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + (1.0 - keep) * (new - old) if jnp.issubdtype(new.dtype, jnp.floating) else new

    return jax.tree.map(averaged, average, variables)
