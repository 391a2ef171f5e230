"""The only file that says jit, pmap, shard_map or mesh: two ways to run the same pure steps.

In both the state is one replicated pytree, so a checkpoint of one restores in the other, on any number of
devices.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_mnv2.errors import ConfigError

AXIS = "data"


class JitParallel:
    """``jax.jit`` over a one-dimensional mesh; arrays are global, sums over the batch too.

    Attributes:
      axis_name: None; with ``per_device`` the axis over which a step sums by itself, because it sees its share of the
        batch alone (``jax.shard_map``).
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None, *, per_device: bool = False):
        """Uses ``devices``, by default all of all processes."""
        self.devices = list(devices or jax.devices())
        self.axis_name = AXIS if per_device else None
        self._mesh = Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(self._mesh, P())
        self.split = NamedSharding(self._mesh, P(AXIS))

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles ``(state, batch) -> (state, metrics)``; the state's memory is reused."""
        return jax.jit(
            self._per_device(step, out_specs=(P(), P())),
            in_shardings=(self.replicated, self.split),
            out_shardings=(self.replicated, self.replicated),
            donate_argnums=0,
        )

    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles ``(variables, batch) -> (sums, examples)``."""
        return jax.jit(
            self._per_device(step, out_specs=(P(), P(AXIS))),
            in_shardings=(self.replicated, self.split),
            out_shardings=(self.replicated, self.split),
        )

    def _per_device(self, step: Callable, *, out_specs: tuple[P, P]) -> Callable:
        if self.axis_name is None:
            return step
        # What a step returns as replicated it has summed itself, which the checker cannot see through custom_vjp.
        return jax.shard_map(step, mesh=self._mesh, in_specs=(P(), P(AXIS)), out_specs=out_specs, check_vma=False)

    def put_state(self, state: Any) -> Any:
        """Replicates a host or device pytree."""
        return jax.device_put(state, self.replicated)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits this process's share of a batch over its devices."""
        return {name: jax.make_array_from_process_local_data(self.split, value) for name, value in batch.items()}

    def fetch(self, examples: Any) -> Any:
        """This process's share of what an evaluation step keeps of each example, as NumPy arrays."""
        return jax.tree.map(_local_rows, examples)


class PmapParallel:
    """``jax.pmap``: one program per device, explicit sums over the named axis."""

    axis_name = AXIS

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Uses ``devices``, by default all of all processes."""
        self.devices = list(devices or jax.devices())
        self._local = [device for device in self.devices if device.process_index == jax.process_index()]
        mesh = Mesh(np.array(self._local), (AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, P())
        self._split = NamedSharding(mesh, P(AXIS))

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles ``(state, batch) -> (state, metrics)``; the state's memory is reused."""
        return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, None), devices=self.devices, donate_argnums=0)

    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles ``(variables, batch) -> (sums, examples)``."""
        return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=self.devices)

    def put_state(self, state: Any) -> Any:
        """Replicates a host or device pytree over this process's devices."""
        return jax.device_put(state, self.replicated)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits this process's share of a batch over its devices: a leading axis of devices."""
        count = len(self._local)
        return {
            name: jax.device_put(value.reshape(count, -1, *value.shape[1:]), self._split)
            for name, value in batch.items()
        }

    def fetch(self, examples: Any) -> Any:
        """This process's share of what an evaluation step keeps of each example, as NumPy arrays."""

        def rows(value):
            value = _local_rows(value)
            return value.reshape(-1, *value.shape[2:])

        return jax.tree.map(rows, examples)


Parallel = JitParallel | PmapParallel


def make_parallel(mode: str, devices: Sequence[jax.Device] | None = None, *, per_device: bool = False) -> Parallel:
    """``"jit"`` or ``"pmap"`` over ``devices``, by default all.

    With ``per_device`` a step under jit sees one device's share of the batch, as it always does under pmap; batch norm
    without synchronisation needs that.
    """
    return PmapParallel(devices) if mode == "pmap" else JitParallel(devices, per_device=per_device)


def check_divisible(parallel: Parallel, batch_size: int, name: str) -> None:
    """Raises a ConfigError unless the batch splits evenly over the devices."""
    count = len(parallel.devices)
    if batch_size % count:
        below = batch_size // count * count
        raise ConfigError(
            f"config.{name} must be divisible by the number of devices, {count}; found {batch_size}. "
            f"Use {below or count} or {below + count}."
        )


def prefetch(batches: Iterable, put: Callable, depth: int = 2) -> Iterator:
    """Puts batches on the devices ahead of their use, so that transfers overlap with computation."""
    queue = collections.deque()
    for batch in batches:
        queue.append(put(batch))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


def _local_rows(value: jax.Array) -> np.ndarray:
    """The rows of a split array that this process holds, in order."""
    shards = sorted(value.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
