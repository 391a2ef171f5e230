"""What a run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """One pytree, the same on every device and in every mode.

    Attributes:
      step: int32 scalar, updates made so far. Randomness derives from the run's seed and this number alone.
      params: learned by the optimizer, float32.
      batch_stats: running statistics of batch normalisation, float32.
      opt_state: the optimizer's.
      ema: moving average of ``variables``, the same tree; None where the run keeps none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None

    @classmethod
    def create(
        cls, variables: dict[str, Any], optimizer: optax.GradientTransformation, *, ema: bool = False
    ) -> TrainState:
        """A state at step 0; with ``ema`` the moving average starts at ``variables``."""
        variables = jax.tree.map(jnp.asarray, variables)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
            ema=jax.tree.map(jnp.copy, variables) if ema else None,  # a copy: states are donated
        )

    @property
    def variables(self) -> dict[str, Any]:
        """``{"params", "batch_stats"}`` for ``model.apply``."""
        return {"params": self.params, "batch_stats": self.batch_stats}
