"""What the fields of a config must be: each check gives the value to keep, or a ConfigError that names the field."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.core import FrozenDict

from flax_mnv2.config.common import DTYPE_KEYS, is_default
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import shown

OUTPUT_STRIDES = (2, 4, 8, 16, 32)
DILATION_RULES = ("tf", "smp", "mmseg")
ACTIVATIONS = (
    *("relu6", "relu", "relu2", "leaky_relu", "silu", "swish", "mish", "hardswish", "elu", "sigmoid", "tanh", "linear"),
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "quick_gelu", "laplace", "sqrtsoftplus"),
)
LEARNED_ACTIVATIONS = ("prelu", "xielu")  # transformers' others
MAX_LABELS = 200_000  # ten times the largest label set of ImageNet
MAX_WIDTH_FACTOR = 64.0
MAX_DEPTH_FACTOR = 6.0  # 91 blocks; beyond 100 their names would no longer sort by depth
GLOBAL_POOLS = ("avg", "max", "avgmax", "catavgmax")  # timm's names
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
Check = Callable[[str, Any], Any]
_Labels = tuple[int, Mapping[int, str], Mapping[str, int]]


def fail(name: str, value: Any, expected: str) -> None:
    """Raises the ConfigError for a field."""
    raise ConfigError(f"{name} must be {expected}; found {shown(value)}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        if not _is_integer(value) or not low <= value <= high:
            fail(name, value, f"an integer from {low} to {high}")
        return value

    return check


def _number(low: float, high: float, *, above: bool = False) -> Check:
    def check(name: str, value: Any) -> float:
        number = _is_integer(value) or isinstance(value, float)
        if not number or not low <= value <= high or (above and value == low):
            fail(name, value, f"a number {f'above {low:g} and up' if above else f'from {low:g}'} to {high:g}")
        return float(value)

    return check


def _choice(*choices: Any) -> Check:
    def check(name: str, value: Any) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            fail(name, value, "one of " + ", ".join(map(repr, choices)))
        return value

    return check


def _switch(name: str, value: Any) -> bool:
    return _choice(True, False)(name, False if value is None else value)  # null is off, as in transformers


def _check_image_size(name: str, value: Any) -> int | tuple[int, int]:
    value = tuple(value) if isinstance(value, list) else value
    sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    if not all(_is_integer(side) and 1 <= side <= 65536 for side in sides):
        fail(name, value, "an integer from 1 to 65536, or a pair of them (height, width)")
    return value


def _check_activation(name: str, value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        return value
    if value in LEARNED_ACTIVATIONS:
        raise ConfigError(
            f"{name} {value!r} has parameters of its own, which this library's layers do not hold. Use one of "
            f"{', '.join(ACTIVATIONS)}, or a function of arrays."
        )
    return _choice(*ACTIVATIONS)(name, value)


def _check_output_stride(name: str, value: Any) -> int:
    value = _integer(1, 65536)(name, value)
    if value not in OUTPUT_STRIDES:
        reachable = ", ".join(map(str, OUTPUT_STRIDES))
        warnings.warn(
            f"{name} {value} is none that the network reaches ({reachable}); it runs at 32, as in transformers.",
            stacklevel=5,  # where the config is made
        )
    return value


# One whose default is None may also be None.
CHECKS: Mapping[str, Check] = {
    "num_channels": _integer(1, 4096),
    "image_size": _check_image_size,
    "depth_multiplier": _number(0.0, MAX_WIDTH_FACTOR, above=True),
    "depth_divisible_by": _integer(1, 1024),
    "min_depth": _integer(1, 65536),
    "expand_ratio": _number(0.0, MAX_WIDTH_FACTOR, above=True),
    "output_stride": _check_output_stride,
    "first_layer_is_expansion": _choice(True, False),
    "finegrained_output": _choice(True, False),
    "hidden_act": _check_activation,
    "tf_padding": _choice(True, False),
    "classifier_dropout_prob": _number(0.0, 1.0),
    "initializer_range": _number(0.0, 10.0),
    "layer_norm_eps": _number(0.0, 1.0),
    "semantic_loss_ignore_index": _integer(-(2**31), 2**31 - 1),
    "output_hidden_states": _switch,
    "return_dict": _switch,
    "num_labels": _integer(0, MAX_LABELS),
    "batch_norm_momentum": _number(0.0, 1.0),
    "head_batch_norm_momentum": _number(0.0, 1.0),
    "classifier_initializer_range": _number(0.0, 10.0),
    "problem_type": _choice(*PROBLEM_TYPES),
    "pool_window": _integer(1, 65536),
    "global_pool": _choice(*GLOBAL_POOLS),
    "layer_depth_multiplier": _number(0.0, MAX_DEPTH_FACTOR, above=True),
    "fixed_stem_and_head": _choice(True, False),
    "stem_residual": _choice(True, False),
    "round_widths": _choice(True, False),
    "dilation_rule": _choice(*DILATION_RULES),
    "pad_block_input": _choice(True, False),
}


def resolve_labels(num_labels: int | None, id2label: Any, label2id: Any) -> _Labels:
    """Returns the three so that they agree, deriving what was not given.

    Indices may be strings of digits on either side, as JSON has those of ``id2label`` and as transformers' own guides
    write those of ``label2id``.
    """
    label2id = None if label2id is None else _indices(label2id)
    if id2label is None:
        count = 2 if num_labels is None else num_labels
        id2label, label2id = {index: f"LABEL_{index}" for index in range(count)}, None
    elif not isinstance(id2label, Mapping):
        fail("id2label", id2label, "a mapping from class index to name")
    try:
        named = [(int(index), str(label)) for index, label in id2label.items()]
    except (TypeError, ValueError, OverflowError, RecursionError):
        fail("id2label", id2label, "a mapping from class index to name")
    if sorted(index for index, _ in named) != list(range(len(named))):
        raise ConfigError(
            f"id2label must name every class from 0 to {len(named) - 1} once; found the indices "
            f"{shown(sorted(index for index, _ in named)[:8])}{'…' if len(named) > 8 else ''}."
        )
    if num_labels is not None and num_labels != len(named):
        raise ConfigError(f"num_labels is {num_labels} but id2label names {len(named)} classes; give one of the two.")
    if label2id is None:
        label2id = {label: index for index, label in named}
    return len(named), FrozenDict(named), FrozenDict(label2id)


def _indices(label2id: Any) -> dict[str, int]:
    def index(value: Any) -> int | None:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(MAX_LABELS)):
            return int(value)
        return value if _is_integer(value) and abs(value) <= MAX_LABELS else None

    found = {name: index(value) for name, value in label2id.items()} if isinstance(label2id, Mapping) else {"": None}
    if None in found.values():
        fail("label2id", label2id, "a mapping from name to class index")
    return found


def check_problem_type(problem_type: str | None, num_labels: int) -> None:
    """Raises a ConfigError for cross-entropy over a single class, whose loss would always be 0."""
    if problem_type == "single_label_classification" and num_labels == 1:
        raise ConfigError(
            "problem_type 'single_label_classification' needs at least two classes; found num_labels=1. Use "
            "num_labels=2, or 'regression' for one number."
        )


def check_padding(*, pad_block_input: bool, tf_padding: bool) -> None:
    """Raises a ConfigError for TensorFlow's padding, which depends on strides, where a block's input is padded."""
    if pad_block_input and tf_padding:
        raise ConfigError("pad_block_input pads both sides alike and needs tf_padding=False; found True.")


def check_extra(extra: Any) -> Mapping[str, Any]:
    """Returns what else belongs into ``config.json``, frozen, if it can be written there; defaults are left out."""
    if not isinstance(extra, Mapping):
        fail("extra", extra, "a mapping of what else belongs into config.json")
    kept = {}
    for name, value in extra.items():
        if name in DTYPE_KEYS:
            value = _dtype_name(value)
        try:
            entry = thaw({name: value})
            plain = json.loads(json.dumps(entry, allow_nan=False)) == entry
        except (TypeError, ValueError, RecursionError):
            plain = False
        if not plain:
            raise ConfigError(f"{shown(name)} must be what JSON can hold; found {shown(value)}. Leave it out.")
        if not is_default(name, value):
            kept[name] = value
    return FrozenDict(kept)


def _dtype_name(value: Any) -> Any:
    """Returns the name of a dtype, such as that of ``jnp.bfloat16``; anything else as it is."""
    return np.dtype(value).name if isinstance(value, (type, np.dtype)) else value


def thaw(value: Any) -> Any:
    """Returns plain dicts and lists for what a config holds frozen."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value
