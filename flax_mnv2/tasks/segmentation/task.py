"""Semantic segmentation with DeepLabV3 on MobileNetV2."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.datasets.load import SegmentationDataset
from flax_mnv2.data.loader.batches import BatchIterator, eval_batches, train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.losses import segmentation_cross_entropy_sums, upsample_logits
from flax_mnv2.metrics import SegmentationMetrics, confusion_matrix
from flax_mnv2.tasks.initializers import INITIALIZERS
from flax_mnv2.tasks.segmentation.report import Picture, Pictures, format_table, write_files
from flax_mnv2.tasks.segmentation.rows import EvalRow, TrainRow
from flax_mnv2.weights.pretrained import make_model

Batch = dict[str, jax.Array]


def make_model_config(config: ml_collections.ConfigDict, labels: tuple[str, ...]) -> MobileNetV2Config:
    """The architecture of a run: ``config.model`` with the data set's labels."""
    return MobileNetV2Config(
        **config.model.to_dict(),
        id2label=dict(enumerate(labels)),
        image_size=tuple(config.data.crop_size),
        semantic_loss_ignore_index=config.data.ignore_label,
    )


class SegmentationTask:
    """Model, loss, metrics and batches of a segmentation run.

    Attributes:
      best_metric: name of the figure by which checkpoints are ranked, more is better.
      figures: names of the main figures, with those that a person reads.
      batch_fields: what of a batch the model, the loss and the metrics need.
      model: the linen model that is trained.
      eval_model: the same with the output stride of the evaluation; it takes the same variables.
    """

    best_metric = "mean_iou"
    figures = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}  # noqa: RUF012 (never written to)
    batch_fields = ("image", "label")

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        *,
        axis_name: str | None = None,
    ):
        """Builds the models; ``axis_name`` is the mapped axis under ``pmap``."""
        self.config = config
        attributes = {"dtype": jnp.dtype(config.dtype), "freeze_batch_norm": config.freeze_batch_norm}
        self.model = make_model(
            model_config,
            "segmentation",
            axis_name=axis_name,
            sync_batch_norm=config.batch_norm.sync,
            freeze_until=config.freeze_until,
            drop_path_rate=config.drop_path_rate,
            kernel_init=INITIALIZERS[config.initializer],
            **attributes,
        )
        stride = config.eval.output_stride or model_config.output_stride
        self.eval_model = make_model(model_config.replace(output_stride=stride), "segmentation", **attributes)
        self.ignore_label = model_config.semantic_loss_ignore_index
        self.labels = tuple(label for _, label in sorted(model_config.id2label.items()))

    def init_variables(self, seed: int) -> dict[str, Any]:
        """Random variables of the model."""
        image = jnp.zeros((1, 64, 64, self.model.config.num_channels), jnp.float32)
        return jax.jit(self.model.init)(jax.random.key(seed), image)

    # ---- on the device ---------------------------------------------------------------------------------

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Summed cross-entropy over the valid pixels, with new statistics and the sums behind the metrics."""
        output, updated = self.model.apply(
            variables, normalize(batch["image"]), train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        loss, weight = segmentation_cross_entropy_sums(output.logits, batch["label"], ignore_label=self.ignore_label)
        statistics = updated.get("batch_stats", variables["batch_stats"])
        if axis_name is not None and not self.model.sync_batch_norm:
            statistics = jax.lax.pmean(statistics, axis_name)
        return loss, (statistics, {"weight": weight})

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The confusion matrix of the batch (C, C) int32, and predictions (N, H, W) uint8."""
        scores = self.scores(variables, normalize(batch["image"]))
        predictions = jnp.argmax(scores, axis=-1).astype(jnp.uint8)
        labels = jnp.where(batch["mask"][:, None, None], batch["label"], self.ignore_label)
        matrix = confusion_matrix(labels, predictions, num_classes=len(self.labels), ignore_label=self.ignore_label)
        return matrix, predictions

    def scores(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Class scores at the size of the images, (N, H, W, C).

        With several scales, or with the mirrored image, these are probabilities averaged over all views, as in
        the DeepLab papers; otherwise the logits themselves.
        """
        evaluation, size = self.config.eval, images.shape[1:3]
        views = [
            (scale, mirrored)
            for scale in evaluation.scales
            for mirrored in ((False, True) if evaluation.flip else (False,))
        ]
        if views == [(1.0, False)]:
            return upsample_logits(self.eval_model.apply(variables, images).logits, size)
        total = 0.0
        for scale, mirrored in views:
            scaled = tuple(round(side * scale) for side in size)
            view = jax.image.resize(images, (len(images), *scaled, images.shape[-1]), "bilinear", antialias=False)
            view = view[:, :, ::-1] if mirrored else view
            logits = upsample_logits(self.eval_model.apply(variables, view).logits, size)
            logits = logits[:, :, ::-1] if mirrored else logits
            total = total + jax.nn.softmax(logits)
        return total / len(views)

    # ---- on the host -----------------------------------------------------------------------------------

    def summarize(self, matrix: np.ndarray) -> SegmentationMetrics:
        """Figures of a whole evaluation from the summed confusion matrix."""
        return SegmentationMetrics.from_confusion(matrix)

    def keeper(self) -> Pictures:
        """Keeps what the report shows of single examples."""
        return Pictures(self.config.eval.num_pictures)

    @property
    def processor(self) -> MobileNetV2ImageProcessor:
        """What prepares images for the model: they keep their size."""
        return MobileNetV2ImageProcessor(do_resize=False, do_center_crop=False)

    def settings(self) -> dict[str, Any]:
        """How the evaluation was made, for the report."""
        evaluation = self.config.eval
        return {
            "output_stride": self.eval_model.config.output_stride,
            "scales": list(evaluation.scales),
            "flip": evaluation.flip,
        }

    def format_table(self, metrics: SegmentationMetrics, *, per_class: bool) -> str:
        """The figures for a terminal, always with every class."""
        del per_class
        return format_table(metrics, self.labels)

    def to_dict(self, metrics: SegmentationMetrics, *, per_class: bool) -> dict[str, Any]:
        """The figures for JSON, always with every class."""
        del per_class
        return metrics.to_dict(self.labels)

    def write_files(self, folder: pathlib.Path, matrix: np.ndarray, pictures: list[Picture]) -> dict[str, pathlib.Path]:
        """Writes what the report has beside the figures; returns what and where."""
        return write_files(folder, matrix, pictures, self.labels, ignore_label=self.ignore_label)

    def train_batches(self, dataset: SegmentationDataset, *, start_step: int) -> BatchIterator:
        """This process's part of every global batch from ``start_step`` on."""
        source = dataset.source(self.config.data.train_split)
        row = TrainRow.from_config(source, self.config.data, num_classes=len(self.labels))
        return train_batches(row, source, LoaderOptions.for_training(self.config), start_step=start_step)

    def eval_batches(self, dataset: SegmentationDataset, *, split: str) -> BatchIterator:
        """This process's part of a split, every example once, at full size."""
        data, source = self.config.data, dataset.source(split)
        size = tuple(given or largest for given, largest in zip(data.eval_size, dataset.max_size[split], strict=True))
        row = EvalRow(source=source, size=size, ignore_label=data.ignore_label, num_classes=len(self.labels))
        return eval_batches(row, source, LoaderOptions.for_evaluation(self.config))


def check_labels(model_config: MobileNetV2Config, dataset: SegmentationDataset) -> None:
    """Raises a ConfigError unless the model's classes are as many as the data set's."""
    if model_config.num_labels != len(dataset.labels):
        raise ConfigError(
            f"The model has {model_config.num_labels} classes and the data set {dataset.name} has "
            f"{len(dataset.labels)}. Evaluate it on data with its own classes (--config.data.…)."
        )


def normalize(images: jax.Array) -> jax.Array:
    """uint8 pixels → float32 in [-1, 1], TF-slim's preprocessing and the reference's."""
    return images.astype(jnp.float32) / 127.5 - 1.0
