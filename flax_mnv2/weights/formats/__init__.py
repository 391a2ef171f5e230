"""The formats of weights, one module each; ``FORMATS`` is the table of them."""

from flax_mnv2.weights.formats.base import Format
from flax_mnv2.weights.formats.flax import FlaxFormat
from flax_mnv2.weights.formats.hugging_face import HuggingFaceFormat
from flax_mnv2.weights.formats.timm import TimmFormat
from flax_mnv2.weights.formats.torchvision import TorchvisionFormat

FORMATS: dict[str, Format] = {
    form.name: form for form in (HuggingFaceFormat(), TorchvisionFormat(), TimmFormat(), FlaxFormat())
}
