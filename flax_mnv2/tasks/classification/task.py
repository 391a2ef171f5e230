"""Image classification."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.losses import smooth_targets, soft_cross_entropy_sum
from flax_mnv2.metrics import confusion_matrix, top_k_counts
from flax_mnv2.mixing import mix
from flax_mnv2.tasks import class_weights
from flax_mnv2.tasks.base import Batch, HostBatch, Task
from flax_mnv2.tasks.classification import config as own_config
from flax_mnv2.tasks.classification.evaluator import ERROR_WORDS, ClassificationEvaluator, judged
from flax_mnv2.tasks.classification.predictor import ClassificationPredictor
from flax_mnv2.visualize.legend import percent
from flax_mnv2.visualize.sheets import Panel

if TYPE_CHECKING:  # what only training and evaluation import
    import ml_collections

    from flax_mnv2.data.datasets.records import ClassificationDataset, ExampleSource

TOP = 5
MAX_CONFUSION_CLASSES = 100  # a picture of more cannot be read
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BACKGROUND_NAMES = ("background", "LABEL_0")


class ClassificationTask(Task):
    """Model, loss, metrics and batches of a classifier.

    Everything reported counts classes as the model does: the label of an example is the data set's plus
    ``label_offset``.
    """

    name = "classification"
    best_metric = "top1"
    titles: Mapping[str, str] = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
    model_defaults: Mapping[str, Any] = {
        "output_stride": 32,
        "classifier_dropout_prob": 0.2,  # TF-slim keeps 0.8
        "classifier_initializer_range": 0.01,
    }
    model_ignores = ("head_batch_norm_momentum",)
    rules = own_config.RULES
    add_defaults = staticmethod(own_config.add_defaults)
    check_config = staticmethod(own_config.check_config)
    filled_in = staticmethod(class_weights.filled_in)
    describe_augmentation = staticmethod(own_config.describe_augmentation)
    predictor = ClassificationPredictor
    judged, error_words = staticmethod(judged), ERROR_WORDS

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        *,
        processor: MobileNetV2ImageProcessor,
        label_offset: int = 0,
        weights: np.ndarray | None = None,
        axis_name: str | None = None,
    ):
        """Builds the models; ``processor`` belongs to the weights, ``label_offset`` is added to labels of the data.

        ``weights`` (C,) are those of the classes in the loss, None for 1 each.
        """
        super().__init__(config, model_config, processor=processor, axis_name=axis_name)
        self._size = output_size(processor)
        self._label_offset, self._num_data_classes = label_offset, len(self.labels) - label_offset
        self._mixes, self._class_weights = self.mixes_pairs(config), weights

    @classmethod
    def load_dataset(cls, data: Mapping[str, Any]) -> ClassificationDataset:
        """Opens the data set that ``config.data`` names, preparing it if need be."""
        from flax_mnv2.data.datasets.registry import load_classification

        return load_classification(data)

    @classmethod
    def for_training(
        cls, config: ml_collections.ConfigDict, labels: Sequence[str], *, axis_name: str | None = None
    ) -> ClassificationTask:
        """Returns the task of a training run."""
        model_config = MobileNetV2Config(
            **config.model.to_dict(), id2label=dict(enumerate(labels)), image_size=config.data.eval_crop
        )
        weights = class_weights.parse(config, labels)
        return cls(config, model_config, processor=make_processor(config.data), weights=weights, axis_name=axis_name)

    @classmethod
    def for_evaluation(
        cls,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        dataset: ClassificationDataset,
        *,
        processor: MobileNetV2ImageProcessor | None = None,
    ) -> ClassificationTask:
        """Returns the task of an evaluation."""
        processor = processor or make_processor(config.data)
        return cls(config, model_config, processor=processor, label_offset=label_offset(model_config, dataset))

    @classmethod
    def augment_repeats(cls, config: ml_collections.ConfigDict) -> int:
        """Returns how often a training batch holds each of its images."""
        return config.data.augment_repeats

    @classmethod
    def mixes_pairs(cls, config: ml_collections.ConfigDict) -> bool:
        """Returns whether MixUp or CutMix is on."""
        return bool(config.data.mixup_alpha or config.data.cutmix_alpha)

    @classmethod
    def batch_shapes(cls, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global training batch."""
        count, side = config.batch_size, config.data.train_size
        return {
            "image": jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        }

    # ---- on the device ---------------------------------------------------------------------------------

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the summed cross-entropy with smoothed, mixed labels, new statistics and the sums behind the metrics.

        Without MixUp and CutMix the sums have ``accuracy``, the examples whose most probable class is right.
        """
        images, targets = self.train_inputs(batch, key)
        dropout_key, _ = jax.random.split(key)
        logits, statistics = self.train_outputs(variables, images, dropout_key, axis_name=axis_name)
        labels, weights = batch["label"] + self._label_offset, self._class_weights
        sums = {"weight": jnp.float32(len(labels))}
        if weights is not None:  # mixing exchanges rows' labels, and leaves the sum of their weights as it is
            sums |= {"weight": jnp.sum(jnp.asarray(weights)[labels]), "count": sums["weight"]}
        if not self._mixes:
            sums["accuracy"] = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
        loss = soft_cross_entropy_sum(logits, targets, class_weights=weights, focal_gamma=self.config.focal_gamma)
        return loss, (statistics, sums)

    def train_inputs(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns images float32 (N, H, W, 3), normalised, and targets (N, C), smoothed; both mixed if asked for.

        The first rows of a batch, an even number of them, give what they give in the whole batch.
        """
        data, images = self.config.data, normalize(batch["image"], self.processor)
        targets = self.train_targets(batch)
        if not self._mixes:
            return images, targets
        _, mixing_key = jax.random.split(key)
        return mix(mixing_key, images, targets, mixup_alpha=data.mixup_alpha, cutmix_alpha=data.cutmix_alpha)

    def train_targets(self, batch: Batch) -> jax.Array:
        """Returns what the loss compares with before any mixing, (N, C) float32: smoothed labels."""
        return smooth_targets(batch["label"] + self._label_offset, len(self.labels), self.config.label_smoothing)

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[dict[str, jax.Array], Batch]:
        """Returns counts over the batch, and of each example ``label`` (N,), ``top`` and ``probability`` (N, 5).

        The counts are those of ``top_k_counts`` and, for few classes, ``confusion`` (C, C). Of equal logits the
        lower index goes first, as with ``argmax``.
        """
        logits = self.eval_model.apply(variables, normalize(batch["image"], self.processor)).logits
        labels, mask, num_classes = batch["label"] + self._label_offset, batch["mask"], len(self.labels)
        _, top = jax.lax.top_k(logits, min(TOP, num_classes))
        probability = jnp.take_along_axis(jax.nn.softmax(logits), top, axis=-1)
        counts = top_k_counts(labels, top, mask, num_classes=num_classes)
        if num_classes <= MAX_CONFUSION_CLASSES:
            counted = jnp.where(mask, labels, -1)
            counts["confusion"] = confusion_matrix(counted, top[:, 0], num_classes=num_classes, ignore_label=-1)
        return counts, {"label": labels, "top": top, "probability": probability}

    # ---- on the host -----------------------------------------------------------------------------------

    def train_row(self, source: ExampleSource) -> Callable[[int, np.random.Generator], HostBatch]:
        """Returns what reads and augments an example."""
        from flax_mnv2.data.augment.transform import make_train_transform
        from flax_mnv2.tasks.classification.rows import TrainRow

        transform = make_train_transform(self.config.data, as_stored=source.as_stored)
        return TrainRow(source, transform, self._num_data_classes)

    def eval_row(self, source: ExampleSource, dataset: ClassificationDataset, split: str) -> Callable[[int], HostBatch]:
        """Returns what reads an example, resized and cropped as the weights want it."""
        from flax_mnv2.tasks.classification.rows import EvalRow

        return EvalRow(source, self._eval_transform(), self._size, self._num_data_classes, source.as_stored)

    def _eval_transform(self) -> Callable[[Image.Image], np.ndarray]:
        """Returns the part of the preparation that runs on the host."""
        if self.config.data.eval_preparation != "slim":
            return ResizeAndCrop(self.processor)
        height, width = self._size
        if height != width:
            raise ConfigError(
                f"config.data.eval_preparation='slim' makes square images; the weights take {height}x{width}."
            )
        from flax_mnv2.data.augment.central_crop import CentralCrop

        return CentralCrop(height)

    def evaluator(self, *, report: bool) -> ClassificationEvaluator:
        """Returns what counts an evaluation; for a report it keeps the top classes of every image."""
        return ClassificationEvaluator(self.labels, report=report)

    def settings(self) -> dict[str, Any]:
        """Returns how evaluations are made, for the report."""
        return {"image_preparation": self.config.data.eval_preparation, "image_processor": self.processor.to_dict()}

    def seen_inputs(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns pixels (N, h, w, 3) uint8 and targets (N, C) float32 as the loss sees them."""
        images, targets = self.train_inputs(batch, key)
        mean, std = (jnp.asarray(value, jnp.float32) for value in (self.processor.image_mean, self.processor.image_std))
        pixels = jnp.round((images * std[None, None, None] + mean[None, None, None]) / self.processor.rescale_factor)
        return jnp.clip(pixels, 0, 255).astype(jnp.uint8), targets

    def contact_sheet(self, source: ExampleSource, seen: Sequence[Any]) -> dict[str, Any]:
        """Returns originals with file names above, inputs with labels below; percentages where there are several."""
        from flax_mnv2.data.decode import decode_image

        tiles = []
        for example in seen:
            stored = source[example.index]
            pixels = decode_image(stored["image"], as_stored=source.as_stored)
            original = Panel(pixels, (pathlib.PurePath(stored["file_name"]).name,))
            tiles.append((original, Panel(example.image, self.caption(stored["label"], example.target))))
        return {"tiles": tiles, "rows": ("original", "network input")}

    def caption(self, truth: Any, target: np.ndarray) -> tuple[str, ...]:
        """Returns lines about an example of a contact sheet from its stored label and its target (C,)."""
        present = sorted(np.flatnonzero(target), key=lambda index: index != truth)  # its own label first
        lines = tuple(f"{percent(target[index])} {self.labels[index]}" for index in present)
        return lines if len(present) > 1 else (self.labels[truth],)


def make_processor(data: ml_collections.ConfigDict) -> MobileNetV2ImageProcessor:
    """Returns how a run evaluates its images: the settings of ``config.data``."""
    whole = data.eval_preparation == "whole"
    square = {"height": data.eval_crop, "width": data.eval_crop}
    return MobileNetV2ImageProcessor(
        size=square if whole else {"shortest_edge": data.eval_resize},
        do_center_crop=not whole,
        resample=_FILTERS[data.eval_interpolation],
        crop_size=data.eval_crop,
        image_mean=tuple(data.image_mean),
        image_std=tuple(data.image_std),
    )


def normalize(images: jax.Array, processor: MobileNetV2ImageProcessor) -> jax.Array:
    """uint8 pixels → float32, by the processor's own numbers."""
    images = images.astype(jnp.float32)
    if processor.do_rescale:
        images = images * processor.rescale_factor
    if processor.do_normalize:
        mean, std = (jnp.asarray(value, jnp.float32) for value in (processor.image_mean, processor.image_std))
        images = (images - mean[None, None, None]) / std[None, None, None]
    return images


@dataclasses.dataclass(frozen=True)
class ResizeAndCrop:
    """Does the processor's work on the host: RGB image → uint8 (H, W, 3). It can be pickled."""

    processor: MobileNetV2ImageProcessor

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops one image."""
        return self.processor.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"][0]


def output_size(processor: MobileNetV2ImageProcessor) -> tuple[int, int]:
    """Returns height and width of every image that leaves the processor, which must be the same for all."""
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
    """Returns what to add to a label of the data for the model's: 1 where it has a background class first, else 0.

    TF-slim's ImageNet classifiers, and Hugging Face's, have 1001 classes with background at 0.
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
