"""What the tests of exported files share: tiny models of every task, and a file beside its model."""

import functools

import jax
import numpy as np
import predicting

import flax_mnv2 as fm
from flax_mnv2.config import deeplab, detection
from flax_mnv2.export import ExportedModel, export

TOLERANCE = 1e-4  # of the largest value: the issue's
PROCESSOR = fm.MobileNetV2ImageProcessor(size=72, crop_size=64)
CLASSES = {
    "classification": fm.MobileNetV2ForImageClassification,
    "segmentation": fm.MobileNetV2ForSemanticSegmentation,
    "detection": fm.MobileNetV2ForObjectDetection,
    "backbone": fm.MobileNetV2Model,
}
_PLACES = {"layer_01/depthwise": "layer_00/depthwise", "layer_01": "layer_00", None: None}


def head(name):
    """A DeepLab head of a library, on three blocks and eight channels wide."""
    spec = deeplab.PRESETS[name]
    low = {"low_level": _PLACES[spec.low_level], "low_level_channels": 4}
    return spec.replace(channels=8, **low)


def detector(name):
    """A detector of a library with three maps, on three blocks."""
    spec = detection.PRESETS[name]
    first = "layer_02/expansion" if name == "tensorflow" else "layer_01"
    maps = {"feature_layers": (first, "conv_1x1"), "extra_channels": (16,), "anchors": spec.anchors[:3]}
    return spec.replace(**maps, strides=spec.strides and (8, 16, 32))


def make(task, **fields):
    """A model of the table of blocks that there is, and random variables."""
    config = fm.MobileNetV2Config(**{"image_size": 64, "num_labels": 5, "depth_multiplier": 0.35, **fields})
    model = CLASSES[task](config)
    return model, predicting.variables(model)


def exported(path, model, variables, **options):
    """Exports, and returns the differences that ``export`` found, all of them small.

    TFLite's files are for two images, on which those for any number are tried: one program is compared with both.
    """
    if path.suffix == ".tflite":
        options.setdefault("batch", 2)
    compared = export(model, variables, path, processor=PROCESSOR, **options)
    for name, value in compared.differences.items():
        assert value <= TOLERANCE, f"{name}: {value}"
    return compared.differences


def images(*shape, seed=0):
    """Pixels of noise, normalised."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _applied(model):
    return jax.jit(model.apply)


def check(path, model, variables, pixels, names=("logits",)):
    """Asserts that a file gives for these images what the model as users call it does."""
    outputs, expected = ExportedModel(path)(pixels), _applied(model)(variables, pixels)
    for name in names:
        value = np.asarray(expected[name])
        assert outputs[name].shape == value.shape
        assert np.abs(value).max() > 0.1, "all but zero: nothing would show"
        np.testing.assert_allclose(outputs[name], value, rtol=0, atol=TOLERANCE * np.abs(value).max())
