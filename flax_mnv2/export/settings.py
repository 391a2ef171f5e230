"""What a user decides about a file, and what follows from it for images."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models.mobilenet_v2 import MIN_SIZE_PX

FORMATS = {".onnx": "onnx", ".tflite": "tflite", ".stablehlo": "stablehlo"}  # by the ending of the file
SCORE_THRESHOLD = 0.01  # detections below are never asked for; ``predict`` has the same


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Bytes of an image become x · scale + offset; both (C,) float32."""

    scale: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, processor: MobileNetV2ImageProcessor, num_channels: int) -> Normalization:
        """Returns the rule of a processor, its resizing and cropping left aside.

        Raises:
          ConfigError: it has means for another number of channels.
        """
        scale, offset = np.float64(processor.rescale_factor if processor.do_rescale else 1.0), np.float64(0.0)
        if processor.do_normalize:
            mean, std = (np.asarray(values, np.float64) for values in (processor.image_mean, processor.image_std))
            scale, offset = scale / std, -mean / std
        if np.size(scale) not in (1, num_channels):
            raise ConfigError(
                f"The image processor has means for {np.size(scale)} channels, the network takes {num_channels}; "
                "export without preprocessing."
            )
        scale, offset = (np.broadcast_to(np.float32(value), num_channels).copy() for value in (scale, offset))
        return cls(scale, offset)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """(…, C) uint8 → normalised, float32."""
        return np.float32(images) * self.scale + self.offset

    def undo(self, pixel_values: np.ndarray) -> np.ndarray:
        """Normalised pixels (…, C) → the nearest bytes."""
        return np.clip(np.rint((pixel_values - self.offset) / self.scale), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What a file takes and gives.

    Attributes:
      size: (height, width) of the images; None for any, as far as the format can.
      batch: number of images; None for any.
      normalization: of bytes, where the file takes uint8 RGB; None where it takes normalised pixels.
      postprocessing: whether the file gives probabilities, label maps or detections in place of what the model does.
    """

    size: tuple[int, int] | None
    batch: int | None
    normalization: Normalization | None = None
    postprocessing: bool = False

    def __post_init__(self):
        if self.size is not None and (len(self.size) != 2 or min(self.size) < MIN_SIZE_PX):
            raise ConfigError(
                f"size must be (height, width) from {MIN_SIZE_PX} pixels on, or None for any; found {self.size}."
            )
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be at least 1, or None for any; found {self.batch}.")

    @property
    def input_name(self) -> str:
        """Name of the file's input: Hugging Face's for normalised pixels."""
        return "pixel_values" if self.normalization is None else "images"


def format_of(path: pathlib.Path, to: str | None) -> str:
    """Returns the format that the user names, or that the ending says; a ConfigError where neither does."""
    found = to or FORMATS.get(path.suffix.lower())
    if found not in FORMATS.values():
        raise ConfigError(
            f"The format of {path} is not known; expected {' or '.join(FORMATS.values())}. Say which (to=, --to), or "
            f"name the file with {' or '.join(FORMATS)}."
        )
    return found
