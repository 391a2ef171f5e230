"""What rounds the numbers of a network: kernels by their own range, maps by the range that training has seen.

The collection ``"quantization"`` has two scalars for each quantised map, ``min`` and ``max``, and ``step``, the number
of training steps so far. Ranges are taken wherever that collection is mutable, as batch statistics are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.config.quantization import QuantizationSpec
from flax_mnv2.errors import ConfigError
from flax_mnv2.models.ops.fake_quant import fake_quant

COLLECTION = "quantization"
_INPUT_MARGIN = 1 / 254


@dataclasses.dataclass(frozen=True, eq=False)
class Quantizer:
    """How one call of a network rounds; made by ``quantizer_of``."""

    spec: QuantizationSpec
    axis_name: str | None = None  # mapped axis over which the batch is split
    step: jax.Array | None = None  # training steps before this one, int32; None where no ranges are taken

    @property
    def rounds(self) -> jax.Array | bool:
        """Whether anything is rounded yet: from ``start_step`` on, and wherever no ranges are taken."""
        return True if self.step is None or self.spec.start_step == 0 else self.step >= self.spec.start_step

    def kernel(self, kernel: jax.Array, multiplier: jax.Array | None = None) -> jax.Array:
        """Returns a kernel (…, C) as it is deployed, times ``multiplier`` (C,), which is divided out again.

        The range is that of the kernel times the multiplier: by ``"int8"`` of each channel, by ``"uint8"`` of all.
        """
        scaled, safe = kernel, None
        if multiplier is not None:
            safe = lax.stop_gradient(jnp.where(multiplier == 0.0, 1.0, multiplier))
            safe = safe.reshape(*(1,) * (kernel.ndim - 1), -1)
            scaled = kernel * safe
        low, high = lax.stop_gradient(kernel_range(scaled, self.spec.scheme))
        rounded = fake_quant(scaled, low, high, narrow_range=True)
        rounded = rounded if safe is None else rounded / safe
        return _chosen(self.rounds, rounded, kernel)


def kernel_range(kernel: jax.Array, scheme: str) -> tuple[jax.Array, jax.Array]:
    """Returns the ends of a kernel's range, (C,) each by ``"int8"``, scalars by ``"uint8"``."""
    if scheme == "int8":
        high = jnp.max(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
        return -high, high
    return jnp.minimum(jnp.min(kernel), 0.0), jnp.maximum(jnp.max(kernel), 0.0)


def _chosen(condition: jax.Array | bool, one: jax.Array, other: jax.Array) -> jax.Array:
    return one if condition is True else jnp.where(condition, one, other)


def quantizer_of(module: nn.Module, spec: QuantizationSpec | None, axis_name: str | None) -> Quantizer | None:
    """Returns how this call of a model rounds, None where it does not; counts the step where ranges are taken.

    Raises:
      ConfigError: the variables have no ranges.
    """
    if spec is None:
        return None
    takes_ranges = module.is_mutable_collection(COLLECTION)
    if not takes_ranges and not module.has_variable(COLLECTION, "step"):
        raise ConfigError(
            f"This model is quantised ({spec!r}) and its variables have no collection {COLLECTION!r}, where the ranges "
            "are. flax_mnv2.calibrate(model, variables, batches) adds it, and so does from_pretrained."
        )
    step = module.variable(COLLECTION, "step", jnp.zeros, (), jnp.int32)
    if not takes_ranges or module.is_initializing():
        return Quantizer(spec, axis_name)
    before, step.value = step.value, step.value + 1
    return Quantizer(spec, axis_name, before)


class FakeQuantize(nn.Module):
    """Rounds maps to one grid, and where ranges are taken moves its range towards theirs.

    Ranges, scalars: ``min`` and ``max``, moving averages that begin with the first batch's; both 0 as long as nothing
    was seen, and then nothing is rounded. ``margin`` is what a range gets at either end, as a fraction of its half.
    """

    quantizer: Quantizer
    margin: float = 0.0

    def setup(self):
        """Makes the range."""
        self.low = self.variable(COLLECTION, "min", jnp.zeros, (), jnp.float32)
        self.high = self.variable(COLLECTION, "max", jnp.zeros, (), jnp.float32)

    def __call__(self, *maps: jax.Array) -> tuple[jax.Array, ...]:
        """Maps of any shapes → the same, rounded in their common range."""
        if self.quantizer.step is not None:
            self._take_range(maps)
        low, high = lax.stop_gradient((self.low.value, self.high.value))
        rounds = self.quantizer.rounds
        if self.quantizer.step is None:
            rounds = low < high  # else nothing was seen
        return tuple(_chosen(rounds, fake_quant(x, low, high), x) for x in maps)

    def _take_range(self, maps: tuple[jax.Array, ...]) -> None:
        quantizer, spec = self.quantizer, self.quantizer.spec
        maps = [lax.stop_gradient(x).astype(jnp.float32) for x in maps]
        low = jnp.minimum(jnp.stack([jnp.min(x) for x in maps]).min(), 0.0)
        high = jnp.maximum(jnp.stack([jnp.max(x) for x in maps]).max(), 0.0)
        if quantizer.axis_name is not None:
            low, high = lax.pmin(low, quantizer.axis_name), lax.pmax(high, quantizer.axis_name)
        keep = jnp.where(self.low.value < self.high.value, jnp.float32(spec.range_decay), 0.0)
        if spec.freeze_range_step is not None:
            keep = jnp.where(quantizer.step >= spec.freeze_range_step, 1.0, keep)
        margin = self.margin * 0.5 * (high - low)
        for variable, seen in ((self.low, low - margin), (self.high, high + margin)):
            variable.value = keep * variable.value + (1.0 - keep) * seen


def fake_quantize(quantizer: Quantizer | None, name: str) -> Callable[..., Sequence[jax.Array]]:
    """Returns what rounds several maps to one grid, called ``name``; without a quantizer what leaves them as they are.

    Inputs of a concatenation share their scale so.
    """
    return _unchanged if quantizer is None else FakeQuantize(quantizer, name=name)


def _unchanged(*maps: jax.Array) -> Sequence[jax.Array]:
    return maps


def quantized_input(x: jax.Array, quantizer: Quantizer | None) -> jax.Array:
    """Returns the images of a network rounded to a grid of their own, called ``input``.

    Its range is a little wider than what was seen: bytes normalised to -1…1 lie just between the 256 steps from -1 to
    1, where every program would round them as its own last bit falls.
    """
    return x if quantizer is None else FakeQuantize(quantizer, _INPUT_MARGIN, name="input")(x)[0]


def quantized(x: jax.Array, quantizer: Quantizer | None, name: str) -> jax.Array:
    """Returns a map rounded to a grid of its own, called ``name``; as it is without a quantizer."""
    return fake_quantize(quantizer, name)(x)[0]
