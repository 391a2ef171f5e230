"""``QuantizationSpec``: how a network is quantised in training, so that it can be deployed in integers of 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax_mnv2.config.spec import Rule, Spec, is_count

SCHEMES = ("int8", "uint8")
_MAX_STEP = 2**31 - 1
_STEP = f"an integer from 0 to {_MAX_STEP}"


def _is_step(value: Any) -> bool:
    return is_count(value, 0, _MAX_STEP)


_RULES: Mapping[str, Rule] = {
    "scheme": (lambda value: value in SCHEMES, " or ".join(map(repr, SCHEMES))),
    "start_step": (_is_step, _STEP),
    "freeze_range_step": (lambda value: value is None or _is_step(value), f"None, or {_STEP}"),
    "range_decay": (lambda value: isinstance(value, int | float) and 0 <= value < 1, "from 0 to below 1"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class QuantizationSpec(Spec):
    """Quantisation-aware training (arXiv 1712.05877, 1806.08342). Immutable, hashable, checked.

    Attributes:
      scheme: ``"int8"``, that of today's runtimes and of TensorFlow's Model Optimization: a symmetric range for each
        channel of a kernel, an asymmetric one for each map of activations. ``"uint8"``, that of TF contrib and of
        TensorFlow's published ``_quant`` files: an asymmetric range for each kernel and map.
      start_step: training steps before anything is rounded; ranges are taken from the first on.
      freeze_range_step: training steps after which the ranges of activations stay as they are; None for never.
      range_decay: fraction of the old range that the moving average keeps per step.

    Steps are batches that the network was trained on; parts of a batch count where gradients are accumulated.

    Raises:
      ConfigError: a field has the wrong form or is out of range.
    """

    section: ClassVar[str] = "quantization"
    rules: ClassVar[Mapping[str, Rule]] = _RULES

    scheme: str = "int8"
    start_step: int = 0
    freeze_range_step: int | None = None
    range_decay: float = 0.999


def as_quantization(value: Any) -> QuantizationSpec | None:
    """Returns the spec that a scheme's name or a mapping stands for; None for None, ``""`` and a mapping with those."""
    if isinstance(value, str) and value:
        return QuantizationSpec(scheme=value)
    if not value or isinstance(value, QuantizationSpec):
        return value or None
    if isinstance(value, Mapping) and not value.get("scheme", True):
        return None
    return QuantizationSpec.from_dict(value)
