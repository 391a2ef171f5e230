"""Photos → label maps of their own size.

The processor of a published DeepLab crops the centre of a photo; a prediction has to cover all of it. So, as in the
DeepLab authors' demo (tensorflow/models, ``deeplab_demo.ipynb``), a photo is resized until its longer side is the
network's size and laid into the top left corner of a square of that size, filled up with the mean. One compiled
program then serves all photos. Logits are read back at the photo's own pixels by one bilinear interpolation, with the
rule of the model's losses and evaluation: half-pixel centres as Hugging Face has, or the corners aligned where
``config.deeplab`` says so.

On the two shared photos with masks this reaches an IoU of 0.906 (bird) and 0.992 (dog). With the corners aligned, as
TF upsamples, it is 0.903 and 0.991; on a 1025 px square, with that much more filling under the head's image pooling,
0.865 and 0.993.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flax_mnv2.config.deeplab import HUGGING_FACE
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models import MobileNetV2ForSemanticSegmentation
from flax_mnv2.models.mobilenet_v2 import MIN_SIZE_PX
from flax_mnv2.tasks.prediction import Example, Predictor, check_sides, outputs_of
from flax_mnv2.visualize.legend import percent
from flax_mnv2.visualize.masks import save_mask, save_overlay

MAX_OWN_SIDE_PX = 1025
MAX_CLASSES = 2**16  # of a mask in a PNG file
_SIDE_STEP_PX = 128


@dataclasses.dataclass(frozen=True)
class ClassFraction:
    """A class that is present, and which fraction of the pixels it has."""

    index: int
    label: str
    fraction: float


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A prediction: photo (H, W, 3) uint8, mask (H, W) uint8 or uint16, and its classes, the largest fraction first."""

    photo: np.ndarray
    mask: np.ndarray
    classes: tuple[ClassFraction, ...]


class SegmentationPredictor(Predictor):
    """Segments whole photos.

    With a processor that does not resize, as for the models of this project's runs, photos keep their size up to a
    longer side of ``MAX_OWN_SIDE_PX``, in a square that holds them. The square is at least the network's size, and its
    side a multiple of 128 plus 1, so that photos of different sizes share a few compiled programs. A ConfigError names
    an ``image_size`` beyond ``prediction.MAX_SIDE_PX``, and more classes than a mask holds.
    """

    task = "segmentation"
    endings: Mapping[str, str] = {"overlay": "_segmentation.png", "mask": "_mask.png"}

    def __init__(
        self,
        model: MobileNetV2ForSemanticSegmentation,
        variables: Mapping[str, Any],
        processor: MobileNetV2ImageProcessor,
        *,
        top: int | None = None,
        threshold: float | None = None,
    ):
        del top, threshold  # all classes that are present are listed
        check_sides(np.atleast_1d(model.config.image_size).tolist(), "image_size in config.json")
        if model.config.num_labels > MAX_CLASSES:
            raise ConfigError(
                f"A mask holds at most {MAX_CLASSES:,} classes; the model has {model.config.num_labels:,}."
            )
        self._processor, self._labels = processor, model.config.id2label
        self._align_corners = (model.config.deeplab or HUGGING_FACE).align_corners
        self._side = max(int(np.max(model.config.image_size)), MIN_SIZE_PX)
        self._outputs = outputs_of(model, variables)

    def prepare(self, photo: np.ndarray) -> Example:
        """Returns (H, W, 3) uint8 normalised and framed."""
        height, width = photo.shape[:2]
        longer = max(height, width)
        side = target = self._side
        if not self._processor.do_resize:
            target = min(longer, MAX_OWN_SIDE_PX)
            side = -(-(max(target, side) - 1) // _SIDE_STEP_PX) * _SIDE_STEP_PX + 1
        region = max(1, round(height * target / longer)), max(1, round(width * target / longer))
        changes = {"do_resize": True, "size": region, "do_center_crop": False}
        pixels = self._processor.preprocess(photo, input_data_format="channels_last", **changes).pixel_values[0]
        canvas = np.zeros((side, side, 3), np.float32)  # 0 is the mean, once normalised
        canvas[: region[0], : region[1]] = pixels
        return Example(canvas, (photo, region))

    def compute(self, pixels: np.ndarray) -> np.ndarray:
        """Returns logits (N, h, w, C) float32 for (N, side, side, 3)."""
        return np.asarray(self._outputs(pixels).logits)

    def finish(self, example: Example, answer: np.ndarray) -> Segmentation:
        """Returns the label map of one photo from (h, w, C) logits."""
        photo, region = example.context  # the part of the canvas that the photo covers, (h, w)
        canvas, size = example.pixels.shape[:2], photo.shape[:2]
        mask = label_map(answer, canvas=canvas, region=region, size=size, align_corners=self._align_corners)
        return Segmentation(photo, mask, class_fractions(mask, self._labels))

    def record(self, prediction: Segmentation, files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Writes overlay and mask; returns ``classes`` (``index``, ``label``, ``fraction`` each) and the two paths."""
        classes = [dataclasses.asdict(item) for item in prediction.classes]
        rows = [(item.index, item.label, item.fraction) for item in prediction.classes]
        save_overlay(files["overlay"], prediction.photo, prediction.mask, rows)
        save_mask(files["mask"], prediction.mask)
        return {"classes": classes, **{name: str(path) for name, path in files.items()}}

    def format_record(self, record: Mapping[str, Any]) -> list[str]:
        """Returns a line per class, then the paths."""
        lines = [f"{percent(item['fraction']):>7}  {item['label']}" for item in record["classes"]]
        return [*lines, f"overlay: {record['overlay']}", f"mask:    {record['mask']}"]


def label_map(
    logits: np.ndarray,
    *,
    canvas: tuple[int, int],
    region: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool = False,
) -> np.ndarray:
    """Returns the class of the largest interpolated logit at every pixel of a photo; of equal ones the lowest.

    The photo of (height, width) ``size`` was resized to ``region``, the top left part of the ``canvas`` that gave the
    logits (h, w, C). Bilinear, in one step from logits to photo; ``align_corners`` as for ``losses.upsample_logits``.
    Done for the pixels between four grid points at a time, and for those classes alone that can be the largest there,
    most often one: the logits of all classes at the size of a photo would take gigabytes, and seconds. Indices are
    uint8, or uint16 where C is above 256.
    """
    rows = _Axis(size[0], region[0], canvas[0], logits.shape[0], align_corners=align_corners)
    columns = _Axis(size[1], region[1], canvas[1], logits.shape[1], align_corners=align_corners)
    planes = np.pad(np.moveaxis(logits, -1, 0), ((0, 0), (0, 1), (0, 1)), mode="edge")
    corners = np.stack([planes[:, :-1, :-1], planes[:, :-1, 1:], planes[:, 1:, :-1], planes[:, 1:, 1:]])
    # What a class is at least and at most between four points, it is at these points.
    eligible = corners.max(axis=0) >= corners.min(axis=0).max(axis=0)  # (C, h, w)
    labels = np.zeros(size, np.uint8 if len(planes) <= 256 else np.uint16)
    for row, height in rows.cells():
        for column, width in columns.cells():
            classes = np.flatnonzero(eligible[:, row, column])
            if len(classes) == 1:
                labels[height, width] = classes[0]
                continue
            above_left, above_right, below_left, below_right = corners[:, classes, row, column, None, None]
            down, right = rows.weight[height, None], columns.weight[None, width]
            values = (above_left * (1 - right) + above_right * right) * (1 - down)
            values += (below_left * (1 - right) + below_right * right) * down
            labels[height, width] = classes[values.argmax(axis=0)]
    return labels


def class_fractions(mask: np.ndarray, labels: Mapping[int, str]) -> tuple[ClassFraction, ...]:
    """Returns the classes in a mask with their fraction of its pixels, the largest first."""
    counts = sum(np.bincount(row, minlength=len(labels)) for row in mask)  # a row at a time stays in the cache
    present = np.flatnonzero(counts)
    ordered = present[np.argsort(-counts[present], kind="stable")].tolist()
    return tuple(ClassFraction(index, labels[index], int(counts[index]) / mask.size) for index in ordered)


class _Axis:
    """Where the pixels of a photo lie among the grid points of the logits, along one axis.

    ``weight`` (size,) float32 is that of the grid point after each pixel; the point before it has the rest.
    """

    def __init__(self, size: int, region: int, canvas: int, grid: int, *, align_corners: bool):
        in_canvas = (np.arange(size) + 0.5) * (region / size)
        if align_corners:
            position = (in_canvas - 0.5) * ((grid - 1) / (canvas - 1))
        else:
            position = in_canvas * (grid / canvas) - 0.5
        position = np.clip(position, 0, grid - 1)
        before = np.floor(position).astype(np.int64)
        self.weight = (position - before).astype(np.float32)
        self._bounds = np.searchsorted(before, np.arange(grid + 1))

    def cells(self) -> Iterator[tuple[int, slice]]:
        """Yields each grid point that has pixels after it, with these."""
        for index, (start, stop) in enumerate(itertools.pairwise(self._bounds.tolist())):
            if start < stop:
                yield index, slice(start, stop)
