"""The formats of weights, one module each; ``FORMATS`` is the table of them."""

import pathlib

from flax_mnv2.weights.formats.base import Format
from flax_mnv2.weights.formats.deeplab.mmseg import MmsegFormat
from flax_mnv2.weights.formats.deeplab.smp import SmpFormat
from flax_mnv2.weights.formats.deeplab.vainf import VainFFormat
from flax_mnv2.weights.formats.detection.mmdet import MmdetFormat
from flax_mnv2.weights.formats.detection.tensorflow import TensorFlowDetectionFormat
from flax_mnv2.weights.formats.flax import FlaxFormat
from flax_mnv2.weights.formats.hugging_face import HuggingFaceFormat
from flax_mnv2.weights.formats.tensorflow.keras import KerasFormat
from flax_mnv2.weights.formats.tensorflow.slim import TfSlimFormat
from flax_mnv2.weights.formats.tensorflow.tflite import TfliteFormat
from flax_mnv2.weights.formats.timm import TimmFormat
from flax_mnv2.weights.formats.torchvision import TorchvisionFormat

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        *(HuggingFaceFormat(), TorchvisionFormat(), TimmFormat()),
        *(VainFFormat(), SmpFormat(), MmsegFormat()),
        *(TfSlimFormat(), TensorFlowDetectionFormat(), MmdetFormat()),
        *(KerasFormat(), TfliteFormat()),
        FlaxFormat(),
    )
}


def is_file_name(path: pathlib.Path) -> bool:
    """Returns whether a path ends as a file of weights does."""
    return any(path.suffix in form.suffixes for form in FORMATS.values())
