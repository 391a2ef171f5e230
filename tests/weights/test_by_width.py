"""Networks of TF-slim's, TF DeepLab's and Keras' rules, told by the widths of their layers."""

import numpy as np
import pytest

from flax_mnv2 import MobileNetV2Config
from flax_mnv2.weights.formats.pytorch import norm_widths
from flax_mnv2.weights.formats.tensorflow import by_width
from flax_mnv2.weights.tensors import FLAX_NAMING

_HEADS = {
    "classification": "classifier/kernel",
    "segmentation": "segmentation_head/classifier/convolution/kernel",
    "detection": "detection_head/class_0_predictor/convolution/kernel",
}


def _state(config, head, logits=21):
    """Kernels that have the widths, and nothing behind them."""
    widths = {path: np.empty((1, 1, 0, width), np.float32) for path, width in norm_widths(config.layer_plan).items()}
    if head == "segmentation":
        del widths["mobilenet_v2", "conv_1x1"]
    state = {"/".join(("params", *path, "convolution", "kernel")): kernel for path, kernel in widths.items()}
    stem = np.empty((3, 3, 3, config.layer_plan.stem.channels), np.float32)
    state["params/mobilenet_v2/conv_stem/first_conv/convolution/kernel"] = stem
    return state | ({f"params/{_HEADS[head]}": np.empty((0, logits), np.float32)} if head else {})


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
@pytest.mark.parametrize(
    ("rule", "head"),
    [
        ({}, "classification"),
        ({"finegrained_output": False}, "classification"),
        ({"depth_divisible_by": 1, "min_depth": 1}, "segmentation"),
        ({"finegrained_output": False, "min_depth": 16}, "detection"),
        ({}, "segmentation"),
        ({}, ""),
    ],
)
def test_every_published_width_by_every_rule(alpha, rule, head):
    config = MobileNetV2Config(depth_multiplier=alpha, stem_residual=True, **rule)
    found, task = by_width.config_of(_state(config, head), lambda config: FLAX_NAMING)
    theirs, ours = config.layer_plan, found.layer_plan
    assert (ours.stem, ours.blocks, task) == (theirs.stem, theirs.blocks, head or "backbone")
    assert head == "segmentation" or ours.last_channels == theirs.last_channels
    assert found.depth_multiplier == alpha
    assert found.num_labels == {"": 2, "detection": 6}.get(head, 21)  # of 3 anchors, beside the background
    assert found.num_channels == 3


def test_a_head_of_1001_classes_has_imagenets_and_the_background():
    state = _state(MobileNetV2Config(), "classification", logits=1001)
    names = by_width.config_of(state, lambda config: FLAX_NAMING)[0].id2label
    assert (len(names), names[0], names[282]) == (1001, "background", "tabby, tabby cat")


def test_widths_of_no_multiplier_give_the_nearest_for_the_message():
    state = _state(MobileNetV2Config(depth_multiplier=0.5), "classification")
    state["params/mobilenet_v2/layer_05/reduce_1x1/convolution/kernel"] = np.empty((1, 1, 0, 999), np.float32)
    assert by_width.config_of(state, lambda config: FLAX_NAMING)[0].depth_multiplier == 0.5
