"""The config of a model, in the fields and spelling of Hugging Face's ``config.json``."""

from flax_mnv2.config.mobilenet_v2 import MobileNetV2Config

__all__ = ["MobileNetV2Config"]
