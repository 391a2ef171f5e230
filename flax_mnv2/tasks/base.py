"""What differs between jobs, as abstract classes; ``registry.TASKS`` lists the jobs that there are."""

from __future__ import annotations

import abc
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.tasks.judgement import Judgement
from flax_mnv2.tasks.prediction import Predictor
from flax_mnv2.tasks.rules import Rule
from flax_mnv2.weights.pretrained import from_pretrained, make_model
from flax_mnv2.weights.source import Source

if TYPE_CHECKING:  # a prediction imports no data set and no loader
    import ml_collections

    from flax_mnv2.data.datasets.records import Dataset, ExampleSource
    from flax_mnv2.data.loader.batches import BatchIterator

Batch = dict[str, jax.Array]
HostBatch = dict[str, np.ndarray]

INITIALIZERS = {
    "normal": None,  # the model's own
    "fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),  # He's, torchvision's and timm's
}
_FOR_CALLERS = {"return_dict": True, "output_hidden_states": False}  # whatever the config of the weights says
_LLVM_LEVEL = "xla_backend_optimization_level"


class Evaluator(abc.ABC):
    """Accumulates one evaluation on the host, in whatever form its metrics need, and reports it."""

    @abc.abstractmethod
    def needs_examples(self, batch: HostBatch) -> bool:
        """Returns whether to fetch what the step gives of the single examples of this batch."""

    @abc.abstractmethod
    def add(self, batch: HostBatch, sums: Any, examples: Any) -> None:
        """Takes this process's part of a global batch, and what ``Task.evaluate_batch`` gave, as NumPy arrays.

        ``sums`` are over the global batch, ``examples`` are those of ``batch``, or None where nothing is needed.
        """

    @abc.abstractmethod
    def metrics(self) -> dict[str, float]:
        """Returns the main metrics by the names in ``Task.titles``; called on every process after the last batch."""

    @abc.abstractmethod
    def to_dict(self, *, per_class: bool) -> dict[str, Any]:
        """Returns all metrics, for JSON."""

    @abc.abstractmethod
    def format_table(self, *, per_class: bool) -> str:
        """Returns the metrics for a terminal."""

    def remarks(self) -> list[str]:
        """Returns what the main metrics do not show and a reader of them has to know, as lines."""
        return []

    @abc.abstractmethod
    def write_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Writes what the report has beside the metrics; returns what and where. All processes call it, one writes."""


def check_same_count(model_config: MobileNetV2Config, dataset: Dataset) -> None:
    """Raises a ConfigError where a model has not as many classes as the data that it is evaluated on."""
    if model_config.num_labels != len(dataset.labels):
        raise ConfigError(
            f"The model has {model_config.num_labels} classes and the data set {dataset.name} has "
            f"{len(dataset.labels)}. Evaluate it on data with its own classes (--config.data.…)."
        )


class Task(abc.ABC):
    """One job: its part of the config, its data, model, loss, evaluation, report and predictor.

    Class attributes:
      name: as ``config.task`` has it.
      best_metric: the metric by which checkpoints are ranked, more is better.
      titles: the main metrics, with the words that a person reads.
      batch_fields: what of a batch the model, the loss and the evaluation need on the device.
      model_defaults: fields of ``config.model`` that start at another value than in ``MobileNetV2Config``.
      model_ignores: fields of ``MobileNetV2Config`` that have no meaning for the job.
      uses_processor: whether evaluations prepare images as the processor of pretrained weights says.
      rules: what values of the fields of ``add_defaults`` must satisfy.
      error_words: what the error of ``judged`` is, in words.
      predictor: ``(model, variables, processor, *, top, threshold)`` → what predicts for photos; ``top`` is how many
        classes of each a list has, and from the probability ``threshold`` on a class of several is there.

    Attributes:
      config: of the run.
      processor: what prepares images for the model.
      model: the linen model that is trained.
      eval_model: the same for evaluation; it takes the same variables.
      labels: the model's class names by index.
    """

    name: ClassVar[str]
    best_metric: ClassVar[str]
    titles: ClassVar[Mapping[str, str]]
    batch_fields: ClassVar[Sequence[str]] = ("image", "label")
    model_defaults: ClassVar[Mapping[str, Any]] = {}
    model_ignores: ClassVar[Sequence[str]] = ()
    uses_processor: ClassVar[bool] = True
    rules: ClassVar[Mapping[str, Rule]] = {}
    error_words: ClassVar[str] = ""
    predictor: ClassVar[Callable[..., Predictor]]

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        *,
        processor: MobileNetV2ImageProcessor,
        eval_output_stride: int = 0,
        axis_name: str | None = None,
    ):
        """Builds the models; ``eval_output_stride`` 0 is the architecture's, ``axis_name`` that of ``pmap``."""
        self.config, self.processor = config, processor
        dtype = jnp.dtype(config.dtype)
        model_config = model_config.replace(**_FOR_CALLERS)
        eval_config = model_config.replace(output_stride=eval_output_stride or model_config.output_stride)
        self.eval_model = self.make_model(eval_config, dtype=dtype)
        self.model = self.make_model(
            model_config,
            dtype=dtype,
            axis_name=axis_name,
            sync_batch_norm=config.batch_norm.sync,
            freeze_batch_norm=config.freeze_batch_norm,
            freeze_until=config.freeze_until,
            drop_path_rate=config.drop_path_rate,
            kernel_init=INITIALIZERS[config.initializer],
        )
        self.labels = tuple(label for _, label in sorted(model_config.id2label.items()))

    # ---- config ------------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def add_defaults(cls, config: ml_collections.ConfigDict) -> None:
        """Adds the fields that only this job has, with their defaults and meanings."""

    @classmethod
    @abc.abstractmethod
    def check_config(cls, config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
        """Raises a ConfigError where fields contradict each other; ``fields`` is the config by dotted name."""

    @classmethod
    def augment_repeats(cls, config: ml_collections.ConfigDict) -> int:
        """Returns how often a training batch holds each of its examples."""
        return 1

    @classmethod
    def mixes_pairs(cls, config: ml_collections.ConfigDict) -> bool:
        """Returns whether the loss mixes neighbouring rows of a batch, which must then lie on one device."""
        return False

    # ---- data --------------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def load_dataset(cls, data: Mapping[str, Any]) -> Dataset:
        """Opens the data set that ``config.data`` names, preparing it if need be."""

    @classmethod
    @abc.abstractmethod
    def batch_shapes(cls, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global training batch, of ``batch_fields``."""

    @classmethod
    def filled_in(cls, config: ml_collections.ConfigDict, dataset: Dataset) -> ml_collections.ConfigDict:
        """Returns the config with what only the data of a run tells in its place; as it is where there is nothing."""
        del dataset
        return config

    @abc.abstractmethod
    def train_row(self, source: ExampleSource) -> Callable[[int, np.random.Generator], HostBatch]:
        """Returns what makes a row of a batch from a position in the training split and a generator.

        It can be pickled. A row has ``batch_fields``, and ``index``, the position, int64.
        """

    @abc.abstractmethod
    def eval_row(self, source: ExampleSource, dataset: Dataset, split: str) -> Callable[[int], HostBatch]:
        """Returns what makes a row of an evaluation's batch from a position in ``source``, a split; it can be pickled.

        A row also has ``mask``, False for positions after the split, whose rows fill up a batch.
        """

    def train_batches(self, dataset: Dataset, *, start_step: int) -> BatchIterator:
        """Returns this process's part of every global batch from ``start_step`` on."""
        from flax_mnv2.data.loader.batches import train_batches
        from flax_mnv2.data.loader.options import LoaderOptions

        source, options = dataset.source(self.config.data.train_split), LoaderOptions.for_training(self.config)
        repeats = self.augment_repeats(self.config)
        return train_batches(self.train_row(source), source, options, start_step=start_step, repeats=repeats)

    def eval_batch_size(self, dataset: Dataset, split: str, *, num_devices: int) -> int:
        """Returns how many examples of a split to evaluate together, on all of ``num_devices``, a multiple of them."""
        del dataset, split, num_devices
        return self.config.eval.batch_size

    def eval_batches(self, dataset: Dataset, *, split: str, batch_size: int = 0) -> BatchIterator:
        """Returns this process's part of a split, every example once; rows that fill up have ``mask`` False.

        ``batch_size`` 0 is that of ``config.eval``.
        """
        from flax_mnv2.data.loader.batches import eval_batches
        from flax_mnv2.data.loader.options import LoaderOptions

        source = dataset.source(split)
        make_row = self.eval_row(source, dataset, split)
        example_bytes = sum(np.asarray(value).nbytes for value in make_row(len(source)).values())  # of a filler
        options = LoaderOptions.for_evaluation(self.config, batch_size, example_bytes)
        return eval_batches(make_row, source, options)

    # ---- model -------------------------------------------------------------------------------------------

    @classmethod
    def make_model(cls, model_config: MobileNetV2Config, **attributes: Any) -> nn.Module:
        """Returns the linen model of this job, with attributes such as ``dtype``."""
        return make_model(model_config, cls.name, **attributes)

    @classmethod
    def load_pretrained(cls, source: Source, *, dtype: Any = jnp.float32) -> tuple[nn.Module, dict[str, Any]]:
        """Returns the job's model with its weights, from what ``open_weights`` gave, all tensors of which must fit."""
        return from_pretrained(source.unfolded(), task=cls.name, dtype=dtype, **_FOR_CALLERS)

    @classmethod
    @abc.abstractmethod
    def for_training(
        cls, config: ml_collections.ConfigDict, labels: Sequence[str], *, axis_name: str | None = None
    ) -> Task:
        """Returns the task of a training run on data with these labels; ``axis_name`` is that of ``pmap``."""

    @classmethod
    @abc.abstractmethod
    def for_evaluation(
        cls,
        config: ml_collections.ConfigDict,
        model_config: MobileNetV2Config,
        dataset: Dataset,
        *,
        processor: MobileNetV2ImageProcessor | None = None,
    ) -> Task:
        """Returns the task of an evaluation of weights with ``model_config``.

        ``processor`` prepares images for them; None where they come from a training run, which ``config`` describes.

        Raises:
          ConfigError: the classes of model and data do not match.
        """

    def init_variables(self, seed: int) -> dict[str, Any]:
        """Returns random variables of the model.

        The program draws numbers and has no network in it. It runs once, and on CPU compiling it costs half as much
        with LLVM's first level, which gives the same numbers. A level that XLA_FLAGS names stays.
        """
        image = jax.ShapeDtypeStruct((1, 64, 64, self.model.config.num_channels), jnp.float32)
        key = jax.random.key(seed)
        runs_on_cpu = jax.default_backend() == "cpu" and not isinstance(key, jax.core.Tracer)  # else for shapes alone
        chosen = _LLVM_LEVEL in os.environ.get("XLA_FLAGS", "")
        options = {_LLVM_LEVEL: 1} if runs_on_cpu and not chosen else None
        return jax.jit(lambda key: self.model.lazy_init(key, image), compiler_options=options)(key)

    # ---- on the device -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def loss_sums(
        self, variables: dict[str, Any], batch: Batch, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the summed loss, with (the collections but ``params`` after the step, further sums).

        Of these ``weight`` is what the loss and its gradient are divided by, and ``count``, the same if it is not
        there, what all others are.
        """

    @abc.abstractmethod
    def evaluate_batch(self, variables: dict[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Returns sums over the batch, and what an evaluator may need of each example."""

    def train_outputs(
        self, variables: dict[str, Any], images: jax.Array, key: jax.Array, *, axis_name: str | None
    ) -> tuple[jax.Array, Any]:
        """Runs the model in training mode on normalised images, with the ``key`` of dropout.

        Returns logits, and all collections but ``params`` as the step leaves them; batch statistics that were not
        synchronised are averaged over the devices.
        """
        output, statistics = self.train_output(variables, images, key, axis_name=axis_name)
        return output.logits, statistics

    def train_output(
        self, variables: dict[str, Any], images: jax.Array, key: jax.Array, *, axis_name: str | None
    ) -> tuple[Any, Any]:
        """Does the same as ``train_outputs``, and returns all that the model gives in place of the logits."""
        names = [name for name in variables if name != "params"]
        output, updated = self.model.apply(variables, images, train=True, mutable=names, rngs={"dropout": key})
        collections = {name: updated.get(name, variables[name]) for name in names}
        if axis_name is not None and not self.model.sync_batch_norm:
            collections["batch_stats"] = jax.lax.pmean(collections["batch_stats"], axis_name)
        return output, collections

    # ---- evaluation and report ---------------------------------------------------------------------------

    @abc.abstractmethod
    def evaluator(self, *, report: bool) -> Evaluator:
        """Returns what accumulates an evaluation; without ``report`` only ``metrics`` will be asked of it."""

    def settings(self) -> dict[str, Any]:
        """Returns how evaluations are made, for the report."""
        return {}

    @staticmethod
    def judged(rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
        """Returns how right each row of ``predictions.jsonl`` is; none where an evaluation writes no such file."""
        del rows
        return []

    # ---- a look at training images -----------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def describe_augmentation(cls, config: ml_collections.ConfigDict) -> str:
        """Returns the settings that change training images, in words."""

    def seen_inputs(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns pixels (N, h, w, 3) uint8 and targets (N, …) as the loss sees them; ``key`` as of ``loss_sums``."""
        del key
        return batch["image"], batch["label"]

    @abc.abstractmethod
    def contact_sheet(self, source: ExampleSource, seen: Sequence[Any]) -> dict[str, Any]:
        """Returns tiles, their rows and a legend for ``visualize.sheets.save_contact_sheet``.

        ``source`` is the training split; examples ``seen`` have ``index``, ``image`` (h, w, 3) uint8 and ``target``, as
        ``seen_inputs`` gave them.
        """
