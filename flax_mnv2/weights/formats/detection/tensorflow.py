"""The TF Object Detection API's ``ssdlite_mobilenet_v2`` ↔ tensors by Flax path, by the names of its variables.

The source of the names: tensorflow/models, ``research/object_detection``, ``models/feature_map_generators.py`` and
``predictors/convolutional_box_predictor.py``. Kernels of depthwise convolutions are (3, 3, channels, 1) there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.models.heads.ssdlite import extra_width
from flax_mnv2.weights.formats.detection.base import HEAD, DetectionFormat
from flax_mnv2.weights.tensors import COUNTERS, Naming, Path, StateDict

_ROOT = "FeatureExtractor/MobilenetV2/"
_STEM = {"first_conv": "Conv", "conv_3x3": "expanded_conv/depthwise", "reduce_1x1": "expanded_conv/project"}
_BLOCK = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
_PREDICTORS = {"box": "BoxEncodingPredictor", "class": "ClassPredictor"}
_FIELDS = {"tf_padding": True, "layer_norm_eps": 1e-3, "batch_norm_momentum": 0.9997, "stem_residual": True}
_DEPTHWISE = "depthwise_weights"
_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


class TensorFlowDetectionFormat(DetectionFormat):
    """Variables of ``ssdlite_mobilenet_v2`` by name, without those of the optimizer."""

    name = "tf_detection"
    example = "FeatureExtractor/MobilenetV2/Conv/weights"
    library = "the TF Object Detection API"
    preset = "tensorflow"
    side = 300
    complete = False
    mean_and_std = ([0.5] * 3, [0.5] * 3)

    def knows(self, names: Iterable[str]) -> bool:
        """By those of the backbone, which begin the name."""
        return any(name.startswith(_ROOT) for name in names)

    def bases(self) -> Sequence[MobileNetV2Config]:
        """Returns those whose last convolution shrinks with the multiplier, as here, and as slim's own does not."""
        return [MobileNetV2Config(finegrained_output=finegrained, **_FIELDS) for finegrained in (False, True)]

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names have widths in them."""

        def key_of(path: Path) -> str:
            scope = _scope_of(path[1:-1], config)
            return f"{scope}/{_variable(path)}" if scope else "/".join(path)

        return Naming(key_of, rf"{_ROOT}(Conv|expanded_conv)", torch_layout=False)

    def from_library(self, state: StateDict) -> StateDict:
        """Depthwise kernels (3, 3, C, 1) → (3, 3, 1, C)."""
        return {name: _turned(name, value) for name, value in state.items()}

    to_library = from_library

    def has(self, path: Path) -> bool:
        """Returns whether it is none of PyTorch's counters."""
        return path[0] != COUNTERS


def _turned(name: str, value: np.ndarray) -> np.ndarray:
    turned = name.endswith(_DEPTHWISE) and value.ndim == 4
    return np.ascontiguousarray(np.swapaxes(value, 2, 3)) if turned else value


def _variable(path: Path) -> str:
    *_, layer, kind, leaf = path
    if kind == "normalization":
        return f"BatchNorm/{_NORM[leaf]}"
    if leaf == "bias":
        return "biases"
    return _DEPTHWISE if layer.endswith("conv_3x3") else "weights"


def _scope_of(modules: Path, config: MobileNetV2Config) -> str | None:
    """Returns the scope of a layer's variables; ``modules`` end with "convolution" or "normalization"."""
    top, *rest, _ = modules
    if top == HEAD:
        return _head_scope(*rest, config)
    if rest == ["conv_1x1"]:
        return f"{_ROOT}Conv_1"
    block, layer = rest
    if block == "conv_stem":
        return f"{_ROOT}{_STEM[layer]}" if layer in _STEM else None
    return f"{_ROOT}expanded_conv_{int(block.removeprefix('layer_')) + 1}/{_BLOCK[layer]}"


def _head_scope(layer: str, config: MobileNetV2Config) -> str:
    what, number, part = layer.split("_", 2)
    if what in _PREDICTORS:
        return f"BoxPredictor_{number}/{_PREDICTORS[what]}{'_depthwise' if part == 'conv_3x3' else ''}"
    spec = config.detection or DetectionSpec()
    depth, place = spec.extra_channels[int(number)], int(number) + len(spec.feature_layers)
    if part == "squeeze":
        return f"{_ROOT}layer_19_1_Conv2d_{place}_1x1_{extra_width(config, depth // 2)}"
    scope = f"{_ROOT}layer_19_2_Conv2d_{place}_3x3_s2_{extra_width(config, depth)}"
    return f"{scope}_depthwise" if part == "conv_3x3" else scope
