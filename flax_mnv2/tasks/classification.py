"""Image classification. This version evaluates; training is not here yet."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.classification_pipeline import classification_eval_batches
from flax_mnv2.data.load import ClassificationDataset
from flax_mnv2.data.pipeline import BatchIterator
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processor import MobileNetV2ImageProcessor
from flax_mnv2.metrics import ClassificationMetrics, confusion_matrix, top_k_counts
from flax_mnv2.pretrained import make_model
from flax_mnv2.tasks.classification_report import Predictions, format_table, write_files

Batch = dict[str, jax.Array]

TOP = 5
MAX_CONFUSION_CLASSES = 100  # a picture of more cannot be read
_BACKGROUND_NAMES = ("background", "LABEL_0")


class ClassificationTask:
    """Model, metrics and batches of the evaluation of a classifier.

    Everything reported counts classes as the model does: the label of an example is the data set's plus
    ``label_offset``.

    Attributes:
      best_metric: name of the figure by which checkpoints are ranked, more is better.
      figures: names of the main figures, with those that a person reads.
      batch_fields: what of a batch the model and the metrics need.
      eval_model: the linen model.
      labels: the model's class names by index.
    """

    best_metric = "top1"
    figures = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}  # noqa: RUF012 (never written to)
    batch_fields = ("image", "label")

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        *,
        processor: MobileNetV2ImageProcessor,
        label_offset: int = 0,
    ):
        """Builds the model; ``processor`` is the preprocessing that belongs to its weights."""
        self.config = config
        self.eval_model = make_model(model_config, "classification", dtype=jnp.dtype(config.dtype))
        self.labels = tuple(label for _, label in sorted(model_config.id2label.items()))
        self._processor = processor
        self._size = output_size(processor)
        self._label_offset = label_offset

    # ---- on the device ---------------------------------------------------------------------------------

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[dict[str, jax.Array], Batch]:
        """Counts over the batch, and of each example ``label`` (N,), ``top`` and ``probability`` (N, 5).

        The counts are those of ``top_k_counts`` and, for few classes, ``confusion`` (C, C). Of equal logits the
        lower index goes first, as with ``argmax``.
        """
        logits = self.eval_model.apply(variables, self._normalize(batch["image"])).logits
        labels, mask, num_classes = batch["label"] + self._label_offset, batch["mask"], len(self.labels)
        _, top = jax.lax.top_k(logits, min(TOP, num_classes))
        probability = jnp.take_along_axis(jax.nn.softmax(logits), top, axis=-1)
        counts = top_k_counts(labels, top, mask, num_classes=num_classes)
        if num_classes <= MAX_CONFUSION_CLASSES:
            counted = jnp.where(mask, labels, -1)
            counts["confusion"] = confusion_matrix(counted, top[:, 0], num_classes=num_classes, ignore_label=-1)
        return counts, {"label": labels, "top": top, "probability": probability}

    def _normalize(self, images: jax.Array) -> jax.Array:
        """uint8 pixels → float32, by the processor's own numbers."""
        processor, images = self._processor, images.astype(jnp.float32)
        if processor.do_rescale:
            images = images * processor.rescale_factor
        if processor.do_normalize:
            mean, std = (jnp.asarray(value, jnp.float32) for value in (processor.image_mean, processor.image_std))
            images = (images - mean[None, None, None]) / std[None, None, None]
        return images

    # ---- on the host -----------------------------------------------------------------------------------

    def eval_batches(self, dataset: ClassificationDataset, *, split: str) -> BatchIterator:
        """This process's share of a split, every example once, resized and cropped as the weights want it."""
        config, data = self.config, self.config.data
        return classification_eval_batches(
            dataset.source(split),
            transform=ResizeAndCrop(self._processor),
            size=self._size,
            batch_size=config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=data.num_threads,
            num_workers=data.num_workers,
        )

    def summarize(self, sums: dict[str, np.ndarray]) -> ClassificationMetrics:
        """Figures of a whole evaluation from the summed counts."""
        return ClassificationMetrics.from_counts(sums)

    def keeper(self) -> Predictions:
        """Keeps what the report says of single examples."""
        return Predictions(self.labels)

    def settings(self) -> dict[str, Any]:
        """How the evaluation was made, for the report."""
        return {"image_processor": self._processor.to_dict()}

    def format_table(self, metrics: ClassificationMetrics, *, per_class: bool) -> str:
        """The figures for a terminal."""
        return format_table(metrics, self.labels, per_class=per_class)

    def to_dict(self, metrics: ClassificationMetrics, *, per_class: bool) -> dict[str, Any]:
        """The figures for JSON."""
        return metrics.to_dict(self.labels, per_class=per_class)

    def write_files(
        self, folder: pathlib.Path, sums: dict[str, np.ndarray], rows: list[dict[str, Any]]
    ) -> dict[str, pathlib.Path]:
        """Writes what the report has beside the figures; returns what and where."""
        return write_files(folder, sums.get("confusion"), rows, self.labels)


@dataclasses.dataclass(frozen=True)
class ResizeAndCrop:
    """The part of the processor that runs on the host: RGB image → uint8 (H, W, 3). It can be pickled."""

    processor: MobileNetV2ImageProcessor

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops one image."""
        return self.processor.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"][0]


def output_size(processor: MobileNetV2ImageProcessor) -> tuple[int, int]:
    """Height and width of every image that leaves the processor.

    Raises:
      ConfigError: it leaves images of different sizes, which make no batch.
    """
    if processor.do_center_crop:
        size = processor.crop_size
    elif processor.do_resize and "height" in processor.size:
        size = processor.size
    else:
        raise ConfigError(
            "The weights' preprocessor_config.json neither crops nor resizes to a fixed height and width, so its "
            'images cannot be batched. Set "do_center_crop": true there, or "size": {"height": …, "width": …}.'
        )
    return size["height"], size["width"]


def label_offset(model_config: MobileNetV2Config, dataset: ClassificationDataset) -> int:
    """What to add to a label of the data for the model's: 1 where the model has a background class first, else 0.

    TF-slim's ImageNet classifiers, and the reference's, have 1001 classes with background at 0.

    Raises:
      ConfigError: the numbers of classes do not match.
    """
    num_classes = len(dataset.labels)
    if model_config.num_labels == num_classes:
        return 0
    if model_config.num_labels == num_classes + 1 and model_config.id2label[0] in _BACKGROUND_NAMES:
        return 1
    raise ConfigError(
        f"The model has {model_config.num_labels} classes and the data set {dataset.name} has {num_classes}; expected "
        f"as many, or one more with {_BACKGROUND_NAMES[0]!r} at 0 (found {model_config.id2label[0]!r} there). "
        "Evaluate it on data with its own classes (--config.data.…)."
    )
