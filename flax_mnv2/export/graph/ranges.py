"""The grids of a quantised model's file, from the ranges that training or calibration has left."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.export.graph.operations import Grid
from flax_mnv2.models.ops.fake_quant import Grid as FakeGrid
from flax_mnv2.models.ops.fake_quant import nudged_grid
from flax_mnv2.models.quantization.rounding import COLLECTION, kernel_range

_ACTIVATIONS = ("relu", "relu6", "linear", None)
_POOLS = ("avg", "max")
_MAX_BIAS = 2.0**30  # steps; a bias is an integer of 32 bits


_map_grid = jax.jit(nudged_grid)  # compiled: a third of the time that a network's graph takes


@functools.partial(jax.jit, static_argnames="scheme")
def _kernel_grid(kernel: jax.Array, scheme: str) -> FakeGrid:
    return nudged_grid(*kernel_range(kernel, scheme), narrow_range=True)


def why_not_integers(config: MobileNetV2Config) -> str | None:
    """Returns why a quantised network has no file of integers: numbers in between that no range is taken of."""
    if config.hidden_act not in _ACTIVATIONS:
        return f"Files of integers have the activations relu and relu6; found hidden_act={config.hidden_act!r}"
    if config.global_pool not in _POOLS:
        return f"Files of integers pool by {' or '.join(_POOLS)}; found global_pool={config.global_pool!r}"
    return None


class Ranges:
    """Makes the grids of maps and kernels as ``models.quantization.rounding`` rounds them."""

    def __init__(self, config: MobileNetV2Config, variables: Mapping[str, Any]):
        """Takes a quantised model's config and its variables.

        Raises:
          ConfigError: the variables have no ranges, or ``why_not_integers`` has a reason.
        """
        self._scheme = config.quantization.scheme
        if (reason := why_not_integers(config)) is not None:
            raise ConfigError(f"{reason}. Export it in floating point (--quantize none).")
        if COLLECTION not in variables:
            raise ConfigError(
                "A quantised model is exported with the ranges of its maps, and its variables have none; train it, or "
                "flax_mnv2.calibrate(model, variables, batches) it (--calibrate FOLDER)."
            )
        self._ends = traverse_util.flatten_dict(dict(variables[COLLECTION]), sep="/")

    def map_grid(self, path: str) -> Grid:
        """Returns the grid of the range at a path of the collection; a ConfigError where nothing was seen."""
        low, high = (np.float32(self._ends.get(f"{path}/{end}", 0.0)) for end in ("min", "max"))
        if not low < high:
            raise ConfigError(
                f"The range of {path} is empty: the network has seen nothing there. Train it, or "
                "flax_mnv2.calibrate(model, variables, batches) it (--calibrate FOLDER)."
            )
        with jax.ensure_compile_time_eval():  # graphs are also made while a program is traced
            grid = _map_grid(jnp.asarray(low), jnp.asarray(high))
        return self._grid(np.float32(grid.scale), int(grid.below_zero))

    def kernel_grid(self, kernel: np.ndarray, bias: np.ndarray, input_scale: np.ndarray) -> Grid:
        """Returns the grid of a kernel (…, C) that is deployed with a bias (C,).

        Where a kernel is all but 0 beside its bias, the scale is larger than that of its range, so that the bias, in
        steps of this scale times that of the input, is an integer of 32 bits.
        """
        with jax.ensure_compile_time_eval():
            grid = _kernel_grid(jnp.asarray(kernel), self._scheme)
        scale, least = np.asarray(grid.scale), np.abs(bias) / (np.float64(input_scale) * _MAX_BIAS)
        least = np.float32(least if scale.ndim else least.max())
        scale = np.maximum(np.where(scale > 0, scale, np.float32(1.0)), least)
        return self._grid(scale, 127 if scale.ndim else int(grid.below_zero), lowest=1)

    def _grid(self, scale: np.ndarray, below_zero: int, lowest: int = 0) -> Grid:
        shift = 128 if self._scheme == "int8" else 0
        return Grid(np.asarray(scale, np.float32), below_zero + lowest - shift, self._scheme)
