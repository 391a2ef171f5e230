"""MobileNetV2 with its heads for classification, segmentation and detection, in JAX and Flax linen."""

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.config.quantization import QuantizationSpec
from flax_mnv2.errors import CheckpointError, ConfigError, DataError, UserError
from flax_mnv2.image_processing.processor import MobileNetV2FeatureExtractor, MobileNetV2ImageProcessor
from flax_mnv2.models import MobileNetV2Backbone, fold_batch_norm
from flax_mnv2.models.inference import make_inference_fn
from flax_mnv2.models.quantization.calibrate import calibrate
from flax_mnv2.models.variants import VARIANTS, list_models, variant_config
from flax_mnv2.version import __version__
from flax_mnv2.weights.in_memory import from_keras, from_state_dict, to_state_dict
from flax_mnv2.weights.models import (
    MobileNetV2ForImageClassification,
    MobileNetV2ForObjectDetection,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    MobileNetV2PreTrainedModel,
)
from flax_mnv2.weights.pretrained import (
    from_pretrained,
    load_backbone,
    load_variables,
    save_pretrained,
)
from flax_mnv2.weights.processors import load_processor

__all__ = [
    "VARIANTS",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DetectionSpec",
    "MobileNetV2Backbone",
    "MobileNetV2Config",
    "MobileNetV2FeatureExtractor",
    "MobileNetV2ForImageClassification",
    "MobileNetV2ForObjectDetection",
    "MobileNetV2ForSemanticSegmentation",
    "MobileNetV2ImageProcessor",
    "MobileNetV2Model",
    "MobileNetV2PreTrainedModel",
    "QuantizationSpec",
    "UserError",
    "__version__",
    "calibrate",
    "fold_batch_norm",
    "from_keras",
    "from_pretrained",
    "from_state_dict",
    "list_models",
    "load_backbone",
    "load_processor",
    "load_variables",
    "make_inference_fn",
    "save_pretrained",
    "to_state_dict",
    "variant_config",
]
