"""Photos → boxes in their own pixels."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.detection.suppression import detect_all
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models.object_detection import MobileNetV2ForObjectDetection
from flax_mnv2.tasks.prediction import Example, Predictor, check_sides, outputs_of
from flax_mnv2.visualize.boxes import save_boxes

_LOWEST = 0.01  # boxes below are never asked for


@dataclasses.dataclass(frozen=True)
class Box:
    """One thing that was found: (x_min, y_min, x_max, y_max) in pixels of the photo."""

    index: int
    label: str
    probability: float
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Detected:
    """A prediction: photo (H, W, 3) uint8 and its boxes, the most probable first."""

    photo: np.ndarray
    boxes: tuple[Box, ...]


class DetectionPredictor(Predictor):
    """Resizes a photo as the processor says, finds boxes and draws those from the probability ``threshold`` on."""

    task = "detection"
    endings: Mapping[str, str] = {"overlay": "_detection.png"}

    def __init__(
        self,
        model: MobileNetV2ForObjectDetection,
        variables: Mapping[str, Any],
        processor: MobileNetV2ImageProcessor,
        *,
        top: int | None = None,
        threshold: float = 0.5,
    ):
        del top  # all boxes from the threshold on are listed
        check_sides(processor.size.values(), "size in preprocessor_config.json")
        self._processor, self._labels, self._threshold = processor, model.config.id2label, threshold
        self._outputs, spec = outputs_of(model, variables), model.spec

        @jax.jit
        def found(logits: jax.Array, boxes: jax.Array) -> jax.Array:
            left = detect_all(logits, boxes, spec, threshold=_LOWEST)
            columns = (left.scores[..., None], left.labels[..., None].astype(jnp.float32), left.boxes)
            return jnp.concatenate(columns, axis=-1)

        self._found = found

    def prepare(self, photo: np.ndarray) -> Example:
        """Returns what the processor makes of (H, W, 3) uint8."""
        pixels = self._processor.preprocess(photo, input_data_format="channels_last").pixel_values[0]
        return Example(pixels, photo)

    def compute(self, pixels: np.ndarray) -> np.ndarray:
        """Returns (N, D, 6) float32 for (N, h, w, 3): score, label, and corners y, x, y, x as fractions."""
        output = self._outputs(pixels)
        return np.asarray(self._found(output.logits, output.pred_boxes))

    def finish(self, example: Example, answer: np.ndarray) -> Detected:
        """Returns the boxes of one photo in its pixels."""
        height, width = example.context.shape[:2]
        boxes = []
        for score, label, *corners in answer.tolist():
            if score < self._threshold or score <= 0:
                continue
            y_min, x_min, y_max, x_max = corners
            pixels = (x_min * width, y_min * height, x_max * width, y_max * height)
            boxes.append(Box(int(label), self._labels[int(label)], score, pixels))
        return Detected(example.context, tuple(boxes))

    def record(self, prediction: Detected, files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Draws the boxes; returns ``boxes`` (``index``, ``label``, ``probability``, ``box`` each) and the path."""
        rows = [(np.array(one.box), f"{one.label} {one.probability:.2f}", one.index) for one in prediction.boxes]
        save_boxes(files["overlay"], prediction.photo, rows)
        boxes = [{**dataclasses.asdict(one), "box": [round(side, 1) for side in one.box]} for one in prediction.boxes]
        return {"boxes": boxes, **{name: str(path) for name, path in files.items()}}

    def format_record(self, record: Mapping[str, Any]) -> list[str]:
        """Returns a line per box, then the path."""
        lines = [
            f"{one['probability']:6.3f}  {one['label']}  " + " ".join(f"{side:.0f}" for side in one["box"])
            for one in record["boxes"]
        ]
        return [*(lines or ["nothing found"]), f"overlay: {record['overlay']}"]
