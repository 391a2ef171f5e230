"""Image classification."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.augment.central_crop import CentralCrop
from flax_mnv2.data.augment.transform import make_train_transform
from flax_mnv2.data.datasets.load import ClassificationDataset
from flax_mnv2.data.loader.batches import BatchIterator, eval_batches, train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.losses import smooth_targets, soft_cross_entropy_sum
from flax_mnv2.metrics import ClassificationMetrics, confusion_matrix, top_k_counts
from flax_mnv2.mixing import mix
from flax_mnv2.tasks.classification.report import Predictions, format_table, write_files
from flax_mnv2.tasks.classification.rows import EvalRow, TrainRow
from flax_mnv2.tasks.initializers import INITIALIZERS
from flax_mnv2.weights.pretrained import make_model

Batch = dict[str, jax.Array]

TOP = 5
MAX_CONFUSION_CLASSES = 100  # a picture of more cannot be read
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BACKGROUND_NAMES = ("background", "LABEL_0")


def make_model_config(config: ml_collections.ConfigDict, labels: tuple[str, ...]) -> MobileNetV2Config:
    """The architecture of a run: ``config.model`` with the data set's labels."""
    return MobileNetV2Config(
        **config.model.to_dict(), id2label=dict(enumerate(labels)), image_size=config.data.eval_crop
    )


def make_processor(data: ml_collections.ConfigDict) -> MobileNetV2ImageProcessor:
    """How a run evaluates its images: the settings of ``config.data``."""
    return MobileNetV2ImageProcessor(
        size={"shortest_edge": data.eval_resize},
        resample=_FILTERS[data.eval_interpolation],
        crop_size=data.eval_crop,
        image_mean=tuple(data.image_mean),
        image_std=tuple(data.image_std),
    )


class ClassificationTask:
    """Model, loss, metrics and batches of a classifier.

    Everything reported counts classes as the model does: the label of an example is the data set's plus
    ``label_offset``.

    Attributes:
      best_metric: name of the figure by which checkpoints are ranked, more is better.
      figures: names of the main figures, with those that a person reads.
      batch_fields: what of a batch the model, the loss and the metrics need.
      model: the linen model that is trained.
      eval_model: the same for evaluation; it takes the same variables.
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
        axis_name: str | None = None,
    ):
        """Builds the models.

        Args:
          config: of the run.
          model_config: the architecture.
          processor: the preprocessing that belongs to the weights.
          label_offset: what to add to a label of the data set.
          axis_name: the mapped axis under ``pmap``.
        """
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.eval_model = make_model(model_config, "classification", dtype=dtype)
        self.model = make_model(
            model_config,
            "classification",
            dtype=dtype,
            axis_name=axis_name,
            sync_batch_norm=config.batch_norm.sync,
            freeze_batch_norm=config.freeze_batch_norm,
            freeze_until=config.freeze_until,
            drop_path_rate=config.drop_path_rate,
            kernel_init=INITIALIZERS[config.initializer],
        )
        self.labels = tuple(label for _, label in sorted(model_config.id2label.items()))
        self._processor = processor
        self._size = output_size(processor)
        self._label_offset = label_offset

    def init_variables(self, seed: int) -> dict[str, Any]:
        """Random variables of the model."""
        image = jnp.zeros((1, 64, 64, self.model.config.num_channels), jnp.float32)
        return jax.jit(self.model.init)(jax.random.key(seed), image)

    # ---- on the device ---------------------------------------------------------------------------------

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Summed cross-entropy with smoothed, mixed labels, with new statistics and the sums behind the metrics.

        Without MixUp and CutMix the sums have ``accuracy``, the examples whose likeliest class is right.
        """
        images, targets = self.train_inputs(batch, key)
        dropout_key, _ = jax.random.split(key)
        output, updated = self.model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        statistics = updated.get("batch_stats", variables["batch_stats"])
        if axis_name is not None and not self.model.sync_batch_norm:
            statistics = jax.lax.pmean(statistics, axis_name)
        labels = batch["label"] + self._label_offset
        sums = {"weight": jnp.float32(len(labels))}
        if not self._mixes:
            sums["accuracy"] = jnp.sum(jnp.argmax(output.logits, axis=-1) == labels, dtype=jnp.float32)
        return soft_cross_entropy_sum(output.logits, targets), (statistics, sums)

    def train_inputs(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the network is trained on: images normalised, labels smoothed, both mixed where the config says so.

        Args:
          batch: of ``train_batches``, or an even number of its first rows: they do not depend on the others.
          key: as of ``loss_sums``.

        Returns:
          Images float32 (N, H, W, 3) and targets float32 (N, C), probabilities.
        """
        data, labels = self.config.data, batch["label"] + self._label_offset
        images = self._normalize(batch["image"])
        targets = smooth_targets(labels, len(self.labels), self.config.label_smoothing)
        if not self._mixes:
            return images, targets
        _, mixing_key = jax.random.split(key)
        return mix(mixing_key, images, targets, mixup_alpha=data.mixup_alpha, cutmix_alpha=data.cutmix_alpha)

    @property
    def _mixes(self) -> bool:
        return bool(self.config.data.mixup_alpha or self.config.data.cutmix_alpha)

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

    def train_batches(self, dataset: ClassificationDataset, *, start_step: int) -> BatchIterator:
        """This process's part of every global batch from ``start_step`` on."""
        data = self.config.data
        source = dataset.source(data.train_split)
        row = TrainRow(source=source, transform=make_train_transform(data), num_classes=self._num_data_classes)
        options = LoaderOptions.for_training(self.config)
        return train_batches(row, source, options, start_step=start_step, repeats=data.augment_repeats)

    def eval_batches(self, dataset: ClassificationDataset, *, split: str) -> BatchIterator:
        """This process's part of a split, every example once, resized and cropped as the weights want it."""
        source, transform = dataset.source(split), self._eval_transform()
        row = EvalRow(source=source, transform=transform, size=self._size, num_classes=self._num_data_classes)
        return eval_batches(row, source, LoaderOptions.for_evaluation(self.config))

    @property
    def _num_data_classes(self) -> int:
        return len(self.labels) - self._label_offset

    def summarize(self, sums: dict[str, np.ndarray]) -> ClassificationMetrics:
        """Figures of a whole evaluation from the summed counts."""
        return ClassificationMetrics.from_counts(sums)

    def keeper(self) -> Predictions:
        """Keeps what the report says of single examples."""
        return Predictions(self.labels)

    def _eval_transform(self) -> Callable[[Image.Image], np.ndarray]:
        """The part of the preparation that runs on the host.

        Raises:
          ConfigError: slim's makes squares, and the processor's images are none.
        """
        if self.config.data.eval_preparation == "processor":
            return ResizeAndCrop(self._processor)
        height, width = self._size
        if height != width:
            raise ConfigError(
                f"config.data.eval_preparation='slim' makes square images; the weights take {height}x{width}."
            )
        return CentralCrop(height)

    @property
    def processor(self) -> MobileNetV2ImageProcessor:
        """What prepares images for the model."""
        return self._processor

    def settings(self) -> dict[str, Any]:
        """How the evaluation was made, for the report."""
        return {
            "image_preparation": self.config.data.eval_preparation,
            "image_processor": self._processor.to_dict(),
        }

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
