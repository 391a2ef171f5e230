"""Semantic segmentation with DeepLab on MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.losses import segmentation_cross_entropy_sums
from flax_mnv2.metrics import confusion_matrix
from flax_mnv2.tasks import class_weights
from flax_mnv2.tasks.base import Batch, HostBatch, Task, check_same_count
from flax_mnv2.tasks.segmentation import config as own_config
from flax_mnv2.tasks.segmentation import head
from flax_mnv2.tasks.segmentation.decide import View, most_likely
from flax_mnv2.tasks.segmentation.evaluator import SegmentationEvaluator
from flax_mnv2.tasks.segmentation.predictor import SegmentationPredictor
from flax_mnv2.visualize.legend import percent
from flax_mnv2.visualize.masks import class_color, overlay_mask
from flax_mnv2.visualize.sheets import Panel

if TYPE_CHECKING:  # what only training and evaluation import
    import ml_collections

    from flax_mnv2.data.datasets.records import ExampleSource, SegmentationDataset


MAX_PIXELS_AT_ONCE = 2**23  # of an evaluation, on a device: 31 images of 513×513, or 4 of 1024×2048


class SegmentationTask(Task):
    """Model, loss, metrics and batches of a segmentation run."""

    name = "segmentation"
    best_metric = "mean_iou"
    titles: Mapping[str, str] = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}
    model_defaults: Mapping[str, Any] = {
        "output_stride": 16,
        "classifier_dropout_prob": 0.1,
        "classifier_initializer_range": 0.01,
        "head_batch_norm_momentum": 0.9997,
    }
    model_ignores = ("pool_window", "global_pool")
    uses_processor = False  # images keep their size
    rules = own_config.RULES
    add_defaults = staticmethod(own_config.add_defaults)
    check_config = staticmethod(own_config.check_config)
    filled_in = staticmethod(class_weights.filled_in)
    describe_augmentation = staticmethod(own_config.describe_augmentation)
    predictor = SegmentationPredictor

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        *,
        processor: MobileNetV2ImageProcessor | None = None,
        weights: np.ndarray | None = None,
        axis_name: str | None = None,
    ):
        """Builds the models; images keep their size, and are normalised as ``processor`` says or ``config.data``.

        ``weights`` (C,) are of the classes in the loss, None for 1.
        """
        prepared = processor or config.data
        processor = MobileNetV2ImageProcessor(
            do_resize=False,
            do_center_crop=False,
            image_mean=tuple(prepared.image_mean),
            image_std=tuple(prepared.image_std),
        )
        output_stride = config.eval.output_stride
        super().__init__(
            config, model_config, processor=processor, eval_output_stride=output_stride, axis_name=axis_name
        )
        self.ignore_label, self._class_weights = model_config.semantic_loss_ignore_index, weights
        self._align_corners = (model_config.deeplab or HUGGING_FACE).align_corners

    @classmethod
    def load_dataset(cls, data: Mapping[str, Any]) -> SegmentationDataset:
        """Opens the data set that ``config.data`` names, preparing it if need be."""
        from flax_mnv2.data.datasets.registry import load_segmentation

        return load_segmentation(data)

    @classmethod
    def for_training(
        cls, config: ml_collections.ConfigDict, labels: Sequence[str], *, axis_name: str | None = None
    ) -> SegmentationTask:
        """Returns the task of a training run."""
        model_config = MobileNetV2Config(
            **config.model.to_dict() | {"deeplab": head.spec_of(config)},
            id2label=dict(enumerate(labels)),
            image_size=tuple(config.data.crop_size),
            semantic_loss_ignore_index=config.data.ignore_label,
        )
        return cls(config, model_config, weights=class_weights.parse(config, labels), axis_name=axis_name)

    @classmethod
    def for_evaluation(
        cls,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        dataset: SegmentationDataset,
        *,
        processor: MobileNetV2ImageProcessor | None = None,
    ) -> SegmentationTask:
        """Returns the task of an evaluation; images keep their size, whatever the weights' processor says of it."""
        check_same_count(model_config, dataset)
        return cls(config, model_config, processor=processor)

    @classmethod
    def batch_shapes(cls, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global training batch."""
        shape = (config.batch_size, *config.data.crop_size)
        return {"image": jax.ShapeDtypeStruct((*shape, 3), jnp.uint8), "label": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    # ---- on the device ---------------------------------------------------------------------------------

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the summed cross-entropy over the valid pixels, new statistics and the sums behind the metrics."""
        images = self._normalize(batch["image"])
        logits, statistics = self.train_outputs(variables, images, key, axis_name=axis_name)
        loss, weight = segmentation_cross_entropy_sums(
            logits,
            batch["label"],
            ignore_label=self.ignore_label,
            align_corners=self._align_corners,
            class_weights=self._class_weights,
            focal_gamma=self.config.focal_gamma,
        )
        return loss, (statistics, {"weight": weight})

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the confusion matrix of the batch (C, C) int32, and predictions (N, H, W) uint8."""
        views = self.views(variables, self._normalize(batch["image"]))
        predictions = most_likely(views, batch["label"].shape[1:], align_corners=self._align_corners)
        labels = jnp.where(batch["mask"][:, None, None], batch["label"], self.ignore_label)
        matrix = confusion_matrix(labels, predictions, num_classes=len(self.labels), ignore_label=self.ignore_label)
        return matrix, predictions

    def views(self, variables: dict[str, Any], images: jax.Array) -> list[View]:
        """Returns the logits of the images in every scale, and mirrored, that ``config.eval`` asks for.

        Their scores are averaged, as in the DeepLab papers.
        """
        evaluation, size = self.config.eval, images.shape[1:3]
        views = []
        for scale in evaluation.scales:
            scaled = tuple(round(side * scale) for side in size)
            view = images
            if scaled != size:
                view = jax.image.resize(images, (len(images), *scaled, images.shape[-1]), "bilinear", antialias=False)
            for mirrored in (False, True) if evaluation.flip else (False,):
                seen = view[:, :, ::-1] if mirrored else view
                views.append(View(self.eval_model.apply(variables, seen).logits, mirrored))
        return views

    def _normalize(self, images: jax.Array) -> jax.Array:
        """uint8 pixels → float32, by the processor's mean and standard deviation."""
        mean, std = (np.asarray(value, np.float64) for value in (self.processor.image_mean, self.processor.image_std))
        scale, offset = (value.astype(np.float32)[None, None, None] for value in (255.0 * std, mean / std))
        return images.astype(jnp.float32) / scale - offset

    # ---- on the host -----------------------------------------------------------------------------------

    def train_row(self, source: ExampleSource) -> Callable[[int, np.random.Generator], HostBatch]:
        """Returns what reads and augments an example."""
        from flax_mnv2.tasks.segmentation.rows import TrainRow

        data = self.config.data
        names = ("min_scale", "max_scale", "scale_step", "flip", "ignore_label")
        settings = {"crop_size": tuple(data.crop_size), **{name: data[name] for name in names}}
        return TrainRow(source=source, num_classes=len(self.labels), **settings)

    def eval_row(self, source: ExampleSource, dataset: SegmentationDataset, split: str) -> Callable[[int], HostBatch]:
        """Returns what reads an example at full size."""
        from flax_mnv2.tasks.segmentation.rows import EvalRow

        size, void = self._eval_size(dataset, split), self.config.data.ignore_label
        return EvalRow(source=source, size=size, ignore_label=void, num_classes=len(self.labels))

    def eval_batch_size(self, dataset: SegmentationDataset, split: str, *, num_devices: int) -> int:
        """Returns how many images to evaluate together: of large photos fewer than ``config.eval.batch_size``.

        What a device sees has at most ``MAX_PIXELS_AT_ONCE``, or is one image.
        """
        height, width = self._eval_size(dataset, split)
        fitting = max(1, MAX_PIXELS_AT_ONCE // (height * width))
        return min(super().eval_batch_size(dataset, split, num_devices=num_devices), fitting * num_devices)

    def _eval_size(self, dataset: SegmentationDataset, split: str) -> tuple[int, int]:
        """Height and width that images are padded to."""
        given, largest = self.config.data.eval_size, dataset.max_size[split]
        return given[0] or largest[0], given[1] or largest[1]

    def evaluator(self, *, report: bool) -> SegmentationEvaluator:
        """Returns what adds up confusion matrices; for a report it keeps ``config.eval.num_pictures`` examples."""
        num_pictures = self.config.eval.num_pictures if report else 0
        return SegmentationEvaluator(self.labels, ignore_label=self.ignore_label, num_pictures=num_pictures)

    def settings(self) -> dict[str, Any]:
        """Returns how evaluations are made, for the report."""
        evaluation = self.config.eval
        return {
            "output_stride": self.eval_model.config.output_stride,
            "scales": list(evaluation.scales),
            "flip": evaluation.flip,
        }

    def contact_sheet(self, source: ExampleSource, seen: Sequence[Any]) -> dict[str, Any]:
        """Returns originals with names, inputs, inputs under their masks; the legend has the classes that occur."""
        from flax_mnv2.data.decode import decode_image

        tiles, void = [], self.ignore_label
        for example in seen:
            stored, mask = source[example.index], example.target
            original = Panel(decode_image(stored["image"]), (stored["image_id"],))
            painted = overlay_mask(example.image, mask, self.labels, ignore_label=void)
            caption = f"void {percent(float(np.mean(mask == void)))}"
            tiles.append((original, Panel(example.image), Panel(painted, (caption,))))
        counts = np.bincount(np.concatenate([example.target.ravel() for example in seen]), minlength=256)
        names = {**dict(enumerate(self.labels)), void: "void"}
        legend = [
            (class_color(index, ignore_label=void), names[index], counts[index] / counts.sum())
            for index in map(int, np.flatnonzero(counts))
        ]
        return {"tiles": tiles, "rows": ("original", "network input", "with its mask"), "legend": legend}
