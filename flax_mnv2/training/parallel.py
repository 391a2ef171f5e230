"""The only file that says jit, pmap, shard_map or mesh: two ways to run the same pure steps.

In both the state is one replicated pytree, so a checkpoint of one restores in the other, on any number of
devices. Under jit the optimizer's part of it may be split over the devices instead, each of which then updates its
share (ZeRO's first stage); in a checkpoint that makes no difference either.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_mnv2.errors import ConfigError
from flax_mnv2.training.state import TrainState

AXIS = "data"


class JitParallel:
    """``jax.jit`` over a one-dimensional mesh; arrays are global, sums over the batch too.

    With ``per_device`` a step sees its part of the batch alone (``jax.shard_map``) and sums over ``axis_name`` itself.
    """

    def __init__(
        self, devices: Sequence[jax.Device] | None = None, *, per_device: bool = False, shard_optimizer: bool = False
    ):
        """Uses ``devices``, by default all of all processes."""
        self.devices = list(devices or jax.devices())
        self.axis_name = AXIS if per_device else None
        self._shard_optimizer = shard_optimizer
        self._mesh = _mesh(self.devices)
        self.replicated = NamedSharding(self._mesh, P())
        self.split = NamedSharding(self._mesh, P(AXIS))

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles ``(state, batch) -> (state, metrics)``; the state's memory is reused."""
        if self._shard_optimizer:
            return self._compile_sharded_train_step(step)
        return jax.jit(
            self._per_device(step, out_specs=(P(), P())),
            in_shardings=(self.replicated, self.split),
            out_shardings=(self.replicated, self.replicated),
            donate_argnums=0,
        )

    def _compile_sharded_train_step(self, step: Callable) -> Callable:
        def placed(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            state, metrics = step(state, batch)
            return jax.lax.with_sharding_constraint(state, self.state_sharding(state)), metrics

        # Where the state lies follows from the state that is passed, so its leaves need no shapes here.
        return jax.jit(placed, in_shardings=(None, self.split), out_shardings=(None, self.replicated), donate_argnums=0)

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

    def state_sharding(self, state: Any) -> Any:
        """Returns where each leaf of a pytree of arrays or shapes belongs.

        All is replicated, but the optimizer's part of a :class:`TrainState` where it is to be split: each leaf along
        its longest axis that the number of devices divides, if it has one.
        """
        sharding = jax.tree.map(lambda _: self.replicated, state)
        if self._shard_optimizer and isinstance(state, TrainState):
            sharding = sharding.replace(opt_state=jax.tree.map(self._split_leaf, state.opt_state))
        return sharding

    def _split_leaf(self, leaf: Any) -> NamedSharding:
        count = len(self.devices)
        axes = [axis for axis, length in enumerate(leaf.shape) if length % count == 0]
        if not axes:
            return self.replicated
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self._mesh, P(*[AXIS if axis == longest else None for axis in range(longest + 1)]))

    def replicate(self, tree: Any) -> Any:
        """Keeps gradients and updates, inside a step, whole on every device beside a split optimizer state.

        Without this XLA splits the gradients as it does the state, and with them, backwards, the network: on a TPU
        v5e a paper step took four times the memory traffic and a thousand permutations.
        """
        return jax.lax.with_sharding_constraint(tree, self.replicated) if self._shard_optimizer else tree

    def put_state(self, state: Any) -> Any:
        """Puts a host or device pytree where ``state_sharding`` says."""
        return jax.device_put(state, self.state_sharding(state))

    def global_view(self, state: Any) -> Any:
        """Returns the state as arrays over all devices of all processes, as checkpoints take them: as it is."""
        return state

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits this process's part of a batch over its devices."""
        return {name: jax.make_array_from_process_local_data(self.split, value) for name, value in batch.items()}

    def fetch(self, examples: Any) -> Any:
        """Returns this process's part of what an evaluation step keeps of each example, as NumPy arrays."""
        return jax.tree.map(_local_rows, examples)


class PmapParallel:
    """``jax.pmap``: one program per device, explicit sums over the named axis."""

    axis_name = AXIS

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Uses ``devices``, by default all of all processes."""
        self.devices = list(devices or jax.devices())
        self._local = [device for device in self.devices if device.process_index == jax.process_index()]
        self._everywhere, mesh = NamedSharding(_mesh(self.devices), P()), _mesh(self._local)
        self.replicated = NamedSharding(mesh, P())
        self._split = NamedSharding(mesh, P(AXIS))

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles ``(state, batch) -> (state, metrics)``; the state's memory is reused."""
        return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, None), devices=self.devices, donate_argnums=0)

    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles ``(variables, batch) -> (sums, examples)``."""
        return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=self.devices)

    def replicate(self, tree: Any) -> Any:
        """Does nothing: each device has its own."""
        return tree

    def put_state(self, state: Any) -> Any:
        """Replicates a pytree of the host, of a device or of ``global_view`` over this process's devices."""

        def put(leaf):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return _same_data(leaf, self.replicated)
            return jax.device_put(leaf, self.replicated)

        return jax.tree.map(put, state)

    def global_view(self, state: Any) -> Any:
        """Returns the state as arrays over all devices of all processes, as checkpoints take them, without copying."""
        return jax.tree.map(lambda leaf: _same_data(leaf, self._everywhere), state)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits this process's part of a batch over its devices: a leading axis of devices."""
        shaped = {name: value.reshape(len(self._local), -1, *value.shape[1:]) for name, value in batch.items()}
        return jax.device_put(shaped, self._split)

    def fetch(self, examples: Any) -> Any:
        """Returns this process's part of what an evaluation step keeps of each example, as NumPy arrays."""
        return jax.tree.map(lambda value: np.concatenate(_local_rows(value)), examples)


Parallel = JitParallel | PmapParallel


def make_parallel(
    mode: str, devices: Sequence[jax.Device] | None = None, *, per_device: bool = False, shard_optimizer: bool = False
) -> Parallel:
    """Returns ``"jit"`` or ``"pmap"`` over ``devices``, by default all of all processes.

    With ``per_device`` a step under jit sees one device's part of the batch, as it always does under pmap; batch norm
    without synchronisation needs that. ``shard_optimizer`` splits the optimizer's state over the devices, which only
    jit with ``per_device`` off can: elsewhere it is a ConfigError.
    """
    if shard_optimizer and (mode == "pmap" or per_device):
        raise ConfigError("shard_optimizer needs jit, and per_device off: elsewhere a step sees one device alone.")
    if mode == "pmap":
        return PmapParallel(devices)
    return JitParallel(devices, per_device=per_device, shard_optimizer=shard_optimizer)


def restore_target(parallel: Parallel, shapes: Any) -> Any:
    """Returns zeros of ``jax.ShapeDtypeStruct``s, placed as checkpoints are restored: over all devices."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return parallel.global_view(parallel.put_state(zeros))


def check_divisible(parallel: Parallel, batch_size: int, name: str) -> None:
    """Raises a ConfigError unless the batch splits evenly over the devices, and over the processes."""
    for count, what in ((len(parallel.devices), "devices"), (jax.process_count(), "processes")):
        if batch_size % count:
            raise ConfigError(
                f"config.{name} must be divisible by the number of {what}, {count}; found {batch_size}. "
                f"Use {nearest_multiples(batch_size, count)}."
            )


def nearest_multiples(number: int, unit: int) -> str:
    """Returns the positive multiples of ``unit`` around ``number``, for a message."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def prefetch(batches: Iterable, put: Callable, depth: int = 2) -> Iterator:
    """Puts batches on the devices ahead of their use, so that transfers overlap with computation."""
    queue = collections.deque()
    for batch in batches:
        queue.append(put(batch))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _same_data(value: jax.Array, sharding: NamedSharding) -> jax.Array:
    """A replicated array under another name of its devices: the copies that this process has stay where they are."""
    copies = [shard.data for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(value.shape, sharding, copies)


def _local_rows(value: jax.Array) -> np.ndarray:
    """Returns the rows of a split array that this process holds, in order."""
    shards = sorted(value.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
