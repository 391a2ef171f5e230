"""Saves one state after another, as fast as it can: python saver.py FOLDER STEPS

A state of step k holds what follows from k, so that whoever reads it knows whether it is right. It says which step
it begins with, and which it saves.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.training.state import TrainState

SIZE = 40_000


def state_at(step):
    """The state of a step; other numbers for every one."""

    def some(name):
        return np.random.default_rng([step, name]).normal(size=SIZE).astype(np.float32)

    return TrainState(
        step=jnp.int32(step),
        params={"a": {"kernel": some(0)}, "b": some(1)},
        collections={"batch_stats": {"mean": some(2)}},
        opt_state={"trace": some(3)},
        ema={"params": {"b": some(4)}, "batch_stats": {"mean": some(5)}},
    )


def main():
    folder, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    with Checkpoints(folder, keep_last=2, keep_best=1) as checkpoints:
        first = (checkpoints.newest_whole_step() or 0) + 1
        if first > 1:
            like = jax.tree.map(jnp.asarray, state_at(first - 1)).to_items()
            found = TrainState.from_items(checkpoints.restore(first - 1, like))
            for name, (one, other) in enumerate(zip(*map(jax.tree.leaves, (found, state_at(first - 1))), strict=True)):
                assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), f"wrong array {name} in {first - 1}"
        print(f"from {first}", flush=True)
        for step in range(first, last + 1):
            print(f"saving {step}", flush=True)
            items = jax.tree.map(jnp.asarray, state_at(step)).to_items()
            checkpoints.save(step, items, {"model": {}, "config": {}})
            if step % 3 == 0:
                checkpoints.add_score(step, {"score": -abs(step - 7)})
        checkpoints.wait()
    print("end", flush=True)


if __name__ == "__main__":
    main()
