"""The TF Object Detection API's ``ssdlite_mobilenet_v2`` ↔ tensors by Flax path, by the names of its variables.

They come out of checkpoints and frozen graphs, or state dicts in memory and in files of ours. The source of the names:
tensorflow/models, ``research/object_detection``, ``models/feature_map_generators.py`` and
``predictors/convolutional_box_predictor.py``. Those of the extra maps have widths in them, such as
``layer_19_2_Conv2d_2_3x3_s2_512``. Kernels of depthwise convolutions are (3, 3, channels, 1) there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.models.heads.ssdlite import extra_width
from flax_mnv2.weights.formats.detection.base import HEAD, DetectionFormat
from flax_mnv2.weights.formats.tensorflow import by_width, slim
from flax_mnv2.weights.tensor_files import FILE_SUFFIXES
from flax_mnv2.weights.tensors import COUNTERS, Naming, Path, StateDict

_PARENT = "FeatureExtractor/"
_ROOT = _PARENT + slim.ROOT
_PREDICTORS = {"box": "BoxEncodingPredictor", "class": "ClassPredictor"}
_FIELDS = by_width.SHARED_FIELDS | {"batch_norm_momentum": 0.9997}


class TensorFlowDetectionFormat(DetectionFormat):
    """Variables of ``ssdlite_mobilenet_v2`` by name, without those of the optimizer; written as a file of tensors."""

    name = "tf_detection"
    example = f"{_ROOT}Conv/weights"
    suffixes = (*FILE_SUFFIXES, *slim.TfSlimFormat.suffixes)
    file_endings = FILE_SUFFIXES
    library = "the TF Object Detection API"
    preset = "tensorflow"
    side = 300
    complete = False
    mean_and_std = ([0.5] * 3, [0.5] * 3)

    def knows(self, names: Iterable[str]) -> bool:
        """By those of the backbone, which begin the name."""
        return any(name.startswith(_ROOT) for name in names)

    def bases(self) -> Sequence[MobileNetV2Config]:
        """Returns those whose last convolution shrinks with the multiplier, as here, and as slim's own does not.

        The API's least width of a layer, which matters at small multipliers, comes third.
        """
        rules = ({"finegrained_output": False}, {}, {"finegrained_output": False, "min_depth": 16})
        return [MobileNetV2Config(**rule, **_FIELDS) for rule in rules]

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Names have widths in them."""

        def scope_of(modules: Path) -> str | None:
            if modules[0] == HEAD:
                return _head_scope(modules[1], config)
            place = slim.backbone_scope(modules) if modules[0] == "mobilenet_v2" else None
            return place and f"{_ROOT}{place}"

        return slim.scope_naming(scope_of, backbone=_PARENT + slim.BACKBONE)

    def from_library(self, state: StateDict) -> StateDict:
        """Depthwise kernels (3, 3, C, 1) → (3, 3, 1, C); without ranges of fake quantisation."""
        return slim.to_flax(state)

    to_library = from_library

    def ranges(self, state: StateDict) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """Returns those of fake quantisation."""
        return slim.ranges(state)

    def has(self, path: Path) -> bool:
        """Returns whether it is none of PyTorch's counters."""
        return path[0] != COUNTERS


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
