"""What a file says about itself: labels, preprocessing, names and meaning of inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError
from flax_mnv2.export.settings import ExportSettings, Normalization
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.version import __version__
from flax_mnv2.weights.models import task_of_class

KEY = "flax_mnv2"  # of the whole in the file's own metadata
_VERSION = 1
_MEANINGS = {
    "logits": "class scores before softmax or sigmoid; of a regression the values",
    "pred_boxes": "centre x, centre y, width, height of each anchor's box, as fractions of the image",
    "probabilities": "of the labels",
    "label_map": "index of the label of every pixel of the image",
    "boxes": "y_min, x_min, y_max, x_max as fractions of the image, the most probable first",
    "scores": "probabilities of the boxes; 0 in rows that fill up",
    "labels": "indices of the boxes' labels",
    "num_detections": "rows that are boxes",
    "last_hidden_state": "features of the last convolution",
    "pooler_output": "these, pooled",
}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known of a file.

    Attributes:
      task: ``"classification"``, ``"segmentation"``, ``"detection"`` or ``"backbone"``.
      config: of the model; ``image_size`` is the file's, where that is fixed.
      processor: what prepares images; None where that is not known.
      settings: of the export.
      outputs: names, in the order of the file.
      channels_first: whether images and maps are (N, C, H, W); bytes never are.
    """

    task: str
    config: MobileNetV2Config
    processor: MobileNetV2ImageProcessor | None
    settings: ExportSettings
    outputs: tuple[str, ...]
    channels_first: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        processor: MobileNetV2ImageProcessor | None,
        settings: ExportSettings,
        outputs: tuple[str, ...],
        *,
        channels_first: bool = False,
    ) -> Metadata:
        """Returns what there is to say of a model's file."""
        task = task_of_class(type(model)) or "backbone"
        config = model.config if settings.size is None else model.config.replace(image_size=settings.size)
        return cls(task, config, processor, settings, outputs, channels_first)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as values for JSON."""
        settings, bytes_in = self.settings, self.settings.normalization is not None
        layout = "NCHW" if self.channels_first and not bytes_in else "NHWC"
        sides = ["height", "width"] if settings.size is None else list(settings.size)
        image = {
            "name": settings.input_name,
            "dtype": "uint8" if bytes_in else "float32",
            "layout": layout,
            "batch": settings.batch or "batch",
            "size": sides,
            "meaning": "RGB bytes" if bytes_in else "pixels, normalised as `processor` says",
        }
        if bytes_in:
            rule = settings.normalization
            image |= {"scale": rule.scale.tolist(), "offset": rule.offset.tolist()}
        maps = "NCHW" if self.channels_first else "NHWC"
        return {
            "version": _VERSION,
            "producer": f"flax_mnv2 {__version__}",
            "task": self.task,
            "labels": [] if self.task == "backbone" else list(self.config.id2label.values()),
            "input": image,
            "outputs": {name: _MEANINGS.get(name, "features") for name in self.outputs},
            "layout_of_maps": maps,
            "with_postprocessing": settings.postprocessing,
            "processor": None if self.processor is None else self.processor.to_dict(),
            "config": self.config.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: Any) -> Metadata:
        """Returns what ``to_dict`` gave; a CheckpointError, with the file's name, where that cannot be."""
        try:
            image, processor = values["input"], values["processor"]
            size, batch, rule = tuple(image["size"]), image["batch"], None
            if image["dtype"] == "uint8":
                rule = Normalization(*(np.asarray(image[name], np.float32) for name in ("scale", "offset")))
            settings = ExportSettings(
                None if isinstance(size[0], str) else size,
                None if isinstance(batch, str) else batch,
                rule,
                bool(values["with_postprocessing"]),
            )
            return cls(
                values["task"],
                MobileNetV2Config.from_dict(values["config"]),
                None if processor is None else MobileNetV2ImageProcessor.from_dict(processor),
                settings,
                tuple(values["outputs"]),
                values["layout_of_maps"] == "NCHW",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{where} does not say what it takes and gives ({error}); expected a file that "
                "python -m flax_mnv2.export wrote."
            ) from None
