"""Object detection with SSDLite on MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.detection.losses import detection_loss_sums
from flax_mnv2.detection.suppression import detect_all
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.tasks.base import Batch, HostBatch, Task, check_same_count
from flax_mnv2.tasks.classification.task import ResizeAndCrop, normalize
from flax_mnv2.tasks.detection import config as own_config
from flax_mnv2.tasks.detection.evaluator import DetectionEvaluator
from flax_mnv2.tasks.detection.predictor import DetectionPredictor
from flax_mnv2.visualize.boxes import draw_boxes
from flax_mnv2.visualize.sheets import Panel

if TYPE_CHECKING:  # what only training and evaluation import
    import ml_collections

    from flax_mnv2.data.datasets.records import DetectionDataset, ExampleSource


class DetectionTask(Task):
    """Model, loss, metrics and batches of a detection run."""

    name = "detection"
    best_metric = "ap"
    titles: Mapping[str, str] = {"ap": "AP", "ap50": "AP50"}
    batch_fields = ("image", "boxes", "class_labels", "ignored")
    model_defaults: Mapping[str, Any] = {
        "output_stride": 32,
        "finegrained_output": False,  # the last convolution shrinks with α, as in the original
        "batch_norm_momentum": 0.9997,
    }
    model_ignores = ("pool_window", "classifier_dropout_prob", "classifier_initializer_range")
    rules = own_config.RULES
    add_defaults = staticmethod(own_config.add_defaults)
    check_config = staticmethod(own_config.check_config)
    describe_augmentation = staticmethod(own_config.describe_augmentation)
    predictor = DetectionPredictor

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        *,
        processor: MobileNetV2ImageProcessor,
        category_ids: Sequence[int] = (),
        integer_ids: bool = False,
        axis_name: str | None = None,
    ):
        """Builds the models; ``category_ids`` and ``integer_ids`` are as for ``DetectionEvaluator``."""
        super().__init__(config, model_config, processor=processor, axis_name=axis_name)
        if {"height", "width"} - processor.size.keys():
            raise ConfigError(
                'A detector takes images of one size; its preprocessor_config.json must have "size": {"height": …, '
                f'"width": …}}, and found {processor.size}.'
            )
        self._size = (processor.size["height"], processor.size["width"])
        self._category_ids = tuple(category_ids or range(1, len(self.labels) + 1))
        self._integer_ids = integer_ids

    @classmethod
    def load_dataset(cls, data: Mapping[str, Any]) -> DetectionDataset:
        """Opens the data set that ``config.data`` names, preparing it if need be."""
        from flax_mnv2.data.datasets.registry import load_detection

        return load_detection(data)

    @classmethod
    def for_training(
        cls, config: ml_collections.ConfigDict, labels: Sequence[str], *, axis_name: str | None = None
    ) -> DetectionTask:
        """Returns the task of a training run."""
        model_config = MobileNetV2Config(
            **config.model.to_dict(),
            id2label=dict(enumerate(labels)),
            image_size=tuple(config.data.image_size),
            detection=own_config.spec_of(config),
        )
        return cls(config, model_config, processor=make_processor(config.data), axis_name=axis_name)

    @classmethod
    def for_evaluation(
        cls,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        dataset: DetectionDataset,
        *,
        processor: MobileNetV2ImageProcessor | None = None,
    ) -> DetectionTask:
        """Returns the task of an evaluation."""
        check_same_count(model_config, dataset)
        processor = processor or make_processor(config.data)
        ids = {"category_ids": dataset.category_ids, "integer_ids": dataset.integer_ids}
        return cls(config, model_config, processor=processor, **ids)

    @classmethod
    def batch_shapes(cls, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global training batch."""
        count, rows = config.batch_size, config.data.max_boxes
        return {
            "image": jax.ShapeDtypeStruct((count, *config.data.image_size, 3), jnp.uint8),
            "boxes": jax.ShapeDtypeStruct((count, rows, 4), jnp.float32),
            "class_labels": jax.ShapeDtypeStruct((count, rows), jnp.int32),
            "ignored": jax.ShapeDtypeStruct((count, rows), jnp.bool_),
        }

    # ---- on the device ---------------------------------------------------------------------------------

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the summed loss of classes and boxes, new statistics, both sums, and the positives as weight."""
        output, statistics = self.train_output(
            variables, normalize(batch["image"], self.processor), key, axis_name=axis_name
        )
        labels = {name: batch[name] for name in ("boxes", "class_labels", "ignored")}
        anchors = self.model.anchors(batch["image"].shape[1:3])
        sums = detection_loss_sums(output.logits, output.box_codes, labels, anchors, self.model.spec)
        loss = sums["class_loss"] + sums["box_loss"]
        return loss, (statistics, {"weight": sums.pop("positives"), **sums})

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[jax.Array, Batch]:
        """Returns the number of examples, and of each ``scores`` (N, D), ``labels`` (N, D) and ``found`` (N, D, 4)."""
        output = self.eval_model.apply(variables, normalize(batch["image"], self.processor), return_dict=True)
        threshold = self.config.eval.score_threshold
        left = detect_all(output.logits, output.pred_boxes, self.eval_model.spec, threshold=threshold)
        return jnp.sum(batch["mask"]), {"scores": left.scores, "labels": left.labels, "found": left.boxes}

    # ---- on the host -----------------------------------------------------------------------------------

    def train_row(self, source: ExampleSource) -> Callable[[int, np.random.Generator], HostBatch]:
        """Returns what reads and augments an example."""
        from flax_mnv2.tasks.detection.rows import TrainRow

        data = self.config.data
        return TrainRow(
            source=source,
            augment=own_config.augmentation(data),
            max_boxes=data.max_boxes,
            take_largest=data.too_many_boxes == "largest",
            num_classes=len(self.labels),
        )

    def eval_row(self, source: ExampleSource, dataset: DetectionDataset, split: str) -> Callable[[int], HostBatch]:
        """Returns what reads an example, resized as the weights want it."""
        from flax_mnv2.tasks.detection.rows import EvalRow

        return EvalRow(
            source=source,
            prepare=ResizeAndCrop(self.processor),
            size=self._size,
            max_boxes=max(dataset.max_boxes[split], 1),
            num_classes=len(self.labels),
        )

    def evaluator(self, *, report: bool) -> DetectionEvaluator:
        """Returns what keeps all boxes; for a report also ``config.eval.num_pictures`` images."""
        num_pictures = self.config.eval.num_pictures if report else 0
        ids = {"category_ids": self._category_ids, "integer_ids": self._integer_ids}
        return DetectionEvaluator(self.labels, **ids, num_pictures=num_pictures)

    def settings(self) -> dict[str, Any]:
        """Returns how evaluations are made, for the report."""
        return {"score_threshold": self.config.eval.score_threshold, "image_processor": self.processor.to_dict()}

    def seen_inputs(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns pixels (N, h, w, 3) uint8 and targets (N, B, 5): corners y, x, y, x, and the class, -1 for none."""
        del key
        return batch["image"], jnp.concatenate(
            [batch["boxes"], batch["class_labels"][..., None].astype(jnp.float32)], -1
        )

    def contact_sheet(self, source: ExampleSource, seen: Sequence[Any]) -> dict[str, Any]:
        """Returns originals with their boxes and names, and inputs with theirs."""
        from flax_mnv2.data.decode import decode_image

        tiles = []
        for example in seen:
            stored = source[example.index]
            boxes, labels = np.asarray(stored["objects"]["bbox"]), np.asarray(stored["objects"]["label"])
            original = self._drawn(decode_image(stored["image"]), boxes, labels)
            rows = example.target[example.target[:, 4] >= 0]
            caption = f"{len(rows)} of {len(boxes)} boxes"
            left = self._drawn(example.image, rows[:, :4], rows[:, 4].astype(int))
            tiles.append((Panel(original, (stored["image_id"],)), Panel(left, (caption,))))
        return {"tiles": tiles, "rows": ("original", "network input")}

    def _drawn(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        pixels = boxes[:, [1, 0, 3, 2]] * [width, height, width, height] if len(boxes) else boxes
        rows = [(box, self.labels[label], int(label)) for box, label in zip(pixels, labels, strict=True)]
        return np.asarray(draw_boxes(image, rows))


def make_processor(data: ml_collections.ConfigDict) -> MobileNetV2ImageProcessor:
    """Returns how a run evaluates its images: resized without keeping their aspect."""
    height, width = data.image_size
    return MobileNetV2ImageProcessor(
        size={"height": height, "width": width},
        do_center_crop=False,
        image_mean=tuple(data.image_mean),
        image_std=tuple(data.image_std),
    )
