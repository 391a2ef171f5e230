"""Classifiers whose labels are vectors (C,) float32; a subclass has the loss of each target and what is reported."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models import MobileNetV2ForImageClassification
from flax_mnv2.tasks.base import Batch, HostBatch
from flax_mnv2.tasks.classification.config import IMAGE_RULES
from flax_mnv2.tasks.classification.task import ClassificationTask, make_processor, normalize
from flax_mnv2.tasks.rules import Rule
from flax_mnv2.weights.pretrained import from_pretrained, make_model
from flax_mnv2.weights.source import Source

if TYPE_CHECKING:  # what only training and evaluation import
    import ml_collections

    from flax_mnv2.data.datasets.records import Dataset, ExampleSource, VectorDataset

_MADE_UP = "LABEL_"  # how a label is called in a config that names none


class VectorTask(ClassificationTask, abc.ABC):
    """Model, images and augmentation of a classifier; labels, loss and metrics of its own.

    The loss is that of the model for its ``problem_type``: the mean over examples and targets.
    """

    model: MobileNetV2ForImageClassification
    rules: Mapping[str, Rule] = IMAGE_RULES
    problem_type: ClassVar[str]
    dataset_kind: ClassVar[str]  # class of its data sets in ``data.datasets.records``

    @abc.abstractmethod
    def losses(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of every target, (N, C) float32."""

    def outputs(self, logits: jax.Array) -> jax.Array:
        """Returns what is compared with the labels, (N, C) float32; the logits unless a job says otherwise."""
        return logits.astype(jnp.float32)

    @classmethod
    def load_dataset(cls, data: Mapping[str, Any]) -> VectorDataset:
        """Opens the data set that ``config.data`` names, preparing it if need be."""
        from flax_mnv2.data.datasets import records
        from flax_mnv2.data.datasets.registry import load

        return load(data, getattr(records, cls.dataset_kind))

    @classmethod
    def filled_in(cls, config: ml_collections.ConfigDict, dataset: VectorDataset) -> ml_collections.ConfigDict:
        """Returns the config as it is."""
        del dataset
        return config

    @classmethod
    def extra(cls, config: ml_collections.ConfigDict, num_targets: int) -> dict[str, Any]:
        """Returns what the model's config notes beside the architecture."""
        del config, num_targets
        return {}

    @classmethod
    def for_training(
        cls, config: ml_collections.ConfigDict, labels: Sequence[str], *, axis_name: str | None = None
    ) -> VectorTask:
        """Returns the task of a training run."""
        model_config = MobileNetV2Config(
            **config.model.to_dict(),
            id2label=dict(enumerate(labels)),
            image_size=config.data.eval_crop,
            problem_type=cls.problem_type,
            extra=cls.extra(config, len(labels)),
        )
        return cls(config, model_config, processor=make_processor(config.data), axis_name=axis_name)

    @classmethod
    def make_model(cls, model_config: MobileNetV2Config, **attributes: Any) -> MobileNetV2ForImageClassification:
        """Returns a classifier."""
        return make_model(model_config, ClassificationTask.name, **attributes)

    @classmethod
    def load_pretrained(cls, source: Source, *, dtype: Any = jnp.float32) -> tuple[Any, dict[str, Any]]:
        """Returns a classifier with its weights; formats that do not say its ``problem_type`` get the job's."""
        theirs = source.config.problem_type
        if theirs not in (None, cls.problem_type):
            raise ConfigError(f"{source.where} has problem_type={theirs!r}, expected {cls.problem_type!r} or none.")
        source = source.unfolded()
        return from_pretrained(source, task=ClassificationTask.name, dtype=dtype, problem_type=cls.problem_type)

    @classmethod
    def for_evaluation(
        cls,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        dataset: Dataset,
        *,
        processor: MobileNetV2ImageProcessor | None = None,
    ) -> VectorTask:
        """Returns the task of an evaluation; a ConfigError where model and data name other targets."""
        named = [model_config.id2label[index] for index in range(model_config.num_labels)]
        made_up = all(label.startswith(_MADE_UP) for label in named)
        if len(named) != len(dataset.labels) or not (made_up or named == list(dataset.labels)):
            raise ConfigError(
                f"The model's targets are {_listed(named)}, those of {dataset.name} {_listed(dataset.labels)}; "
                "expected the same in the same order. Choose them with --config.data.labels=a,b."
            )
        return cls(config, model_config, processor=processor or make_processor(config.data))

    @classmethod
    def batch_shapes(cls, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global training batch; ``config.data.num_classes`` counts the targets."""
        shapes = super().batch_shapes(config)
        count = (config.batch_size, max(1, config.data.num_classes))
        return shapes | {"label": jax.ShapeDtypeStruct(count, jnp.float32)}

    # ---- on the device ---------------------------------------------------------------------------------

    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the loss, a mean over targets and a sum over examples, new statistics, and ``weight``."""
        images, targets = self.train_inputs(batch, key)
        dropout_key, _ = jax.random.split(key)
        logits, statistics = self.train_outputs(variables, images, dropout_key, axis_name=axis_name)
        loss = jnp.sum(jnp.mean(self.losses(logits, targets), axis=-1))
        return loss, (statistics, {"weight": jnp.float32(len(targets))})

    def train_targets(self, batch: Batch) -> jax.Array:
        """Returns the labels as they are."""
        return batch["label"]

    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[dict[str, jax.Array], Batch]:
        """Returns the number of examples, and of each ``label`` and ``output``, (N, C) float32."""
        logits = self.eval_model.apply(variables, normalize(batch["image"], self.processor)).logits
        count = jnp.sum(batch["mask"], dtype=jnp.int32)
        return {"examples": count}, {"label": batch["label"], "output": self.outputs(logits)}

    # ---- on the host -----------------------------------------------------------------------------------

    def train_row(self, source: ExampleSource) -> Callable[[int, np.random.Generator], HostBatch]:
        """Returns what reads and augments an example."""
        from flax_mnv2.data.augment.transform import make_train_transform
        from flax_mnv2.tasks.vectors.rows import TrainRow

        return TrainRow(source, make_train_transform(self.config.data))

    def eval_row(self, source: ExampleSource, dataset: VectorDataset, split: str) -> Callable[[int], HostBatch]:
        """Returns what reads an example, prepared as the weights want it."""
        from flax_mnv2.tasks.vectors.rows import EvalRow

        return EvalRow(source, self._eval_transform(), self._size, len(self.labels))


def _listed(labels: Any) -> str:
    labels = list(labels)
    return f"{', '.join(map(repr, labels[:6]))}{' …' if len(labels) > 6 else ''} ({len(labels)})"
