"""Is an exported file the model? It is run, and its outputs are compared with the model's."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.export.metadata import Metadata
from flax_mnv2.export.running import RUNTIMES, ExportedModel, has_runtime

TOLERANCE = 1e-3  # largest difference as a share of the largest output; usual is 1e-5
AGREEMENT = 0.98  # of integers, such as the pixels of a label map, of which few are ties
# Of a quantised model the same two. A number that lies between two steps may be rounded to either by two programs, and
# moves what comes after it; so the root of the mean square is taken, and of boxes, whose order moves too, no measure.
QUANTIZED_TOLERANCE = 0.1  # usual is 0 to 0.03
QUANTIZED_AGREEMENT = 0.8
_ANY_SIZE = (160, 192)  # what a file for any size is tried on
_ANY_BATCH = 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a file's outputs are from the model's.

    Attributes:
      runtime: what ran the file.
      differences: by output: of floats the largest, as a share of the largest value; of integers, and of boxes, of
        which near ties come in another order, the share that is not equal.
      quantized: whether both are rounded; then of floats the root of the mean square.
    """

    runtime: str
    differences: dict[str, float]
    quantized: bool = False

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        measure = "root mean square of the" if self.quantized else "largest"
        return f"{measure} difference in {self.runtime}, as a share of the largest value: {values}"


def compare(
    path: pathlib.Path,
    to: str,
    serve: Callable[[Any], dict[str, Any]],
    metadata: Metadata,
    *,
    image: np.ndarray | None = None,
) -> Comparison | None:
    """Runs a file of a format and the function that it was made of on the same images.

    ``image`` (H, W, 3) is uint8; without one the images are noise. Returns None where the runtime is not installed;
    raises a CheckpointError where they differ by more than rounding.
    """
    if not has_runtime(to):
        return None
    images = _images(metadata, image)
    found = ExportedModel(path, to)(images)
    expected = {name: np.asarray(value) for name, value in serve(images).items()}
    quantized = metadata.config.quantization is not None
    differences = {name: difference(name, found[name], expected, quantized=quantized) for name in metadata.outputs}
    limits = {name: _limit(name, expected[name], quantized=quantized) for name in differences}
    wrong = {name: value for name, value in differences.items() if not value <= limits[name]}
    if wrong:
        raise CheckpointError(
            f"The {to} file does not compute what the model does: {Comparison(RUNTIMES[to], wrong, quantized)}. It was "
            "not kept; please report this with the model's config."
        )
    return Comparison(RUNTIMES[to], differences, quantized)


def difference(name: str, found: np.ndarray, expected: dict[str, np.ndarray], *, quantized: bool = False) -> float:
    """Returns the difference of an output as ``Comparison`` has it; infinity for another shape or no numbers."""
    value = expected[name]
    if found.shape != value.shape:
        return float("inf")
    if _is_counted(name, value):
        return _share_of_others(found, value, expected.get("scores"))
    scale = float(np.abs(value).max(initial=0)) or 1.0
    gaps = np.abs(found.astype(np.float64) - value)
    gap = float(np.sqrt(np.mean(gaps**2)) if quantized else gaps.max(initial=0)) / scale
    return gap if np.isfinite(gap) else float("inf")


def _is_counted(name: str, value: np.ndarray) -> bool:
    return value.dtype.kind in "iu" or name == "boxes"


def _limit(name: str, value: np.ndarray, *, quantized: bool) -> float:
    if not quantized:
        return 1 - AGREEMENT if _is_counted(name, value) else TOLERANCE
    if name in ("boxes", "labels", "num_detections"):
        return float("inf")
    return 1 - QUANTIZED_AGREEMENT if _is_counted(name, value) else QUANTIZED_TOLERANCE


def _share_of_others(found: np.ndarray, value: np.ndarray, scores: np.ndarray | None) -> float:
    """Rows that fill up a detector's outputs do not count."""
    same = np.isclose(found, value, rtol=0, atol=1e-3)
    if scores is not None and value.ndim > 1:
        same = same.reshape(*scores.shape, -1).all(-1)[scores > 0]
    return float(1 - same.mean()) if same.size else 0.0


def _images(metadata: Metadata, image: np.ndarray | None) -> np.ndarray:
    settings = metadata.settings
    size, batch = settings.size or _ANY_SIZE, settings.batch or _ANY_BATCH
    if image is not None:
        levels = np.broadcast_to(image, (batch, *image.shape))
    else:
        noise = np.random.default_rng(0)
        levels = noise.integers(0, 256, (batch, *size, metadata.config.num_channels)).astype(np.uint8)
    return levels if settings.normalization is not None else np.float32(levels) / np.float32(127.5) - 1
