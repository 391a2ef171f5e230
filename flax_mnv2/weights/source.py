"""Weights that were read: a ``Source`` has them as they lie on disk, a ``Checkpoint`` every tensor by its Flax path."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from flax_mnv2.checkpoint.comparing import USUAL_ADVICE
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.common import DTYPE_KEYS
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.files import read_text
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.layer_plan import LayerPlan
from flax_mnv2.models.endpoints import LAST_CONV
from flax_mnv2.models.fold import unfold_batch_norm
from flax_mnv2.models.quantization.rounding import COLLECTION
from flax_mnv2.weights.models import MODEL_CLASSES
from flax_mnv2.weights.tensors import (
    Naming,
    Path,
    Shapes,
    StateDict,
    Tensors,
    counter_shapes,
    is_rounded,
    read_state,
    widened,
)

_log = logging.getLogger(__name__)
_LAST_CONV = ("mobilenet_v2", LAST_CONV)
FIRST_KERNEL = ("params", "mobilenet_v2", "conv_stem", "first_conv", "convolution", "kernel")
CLASSIFIERS = {  # by task, the layer that gives logits
    "segmentation": ("segmentation_head", "classifier", "convolution"),
    "classification": ("classifier",),
    "detection": ("detection_head", "class_0_predictor", "convolution"),
}
_COUNTER = re.compile(r"[./]num_batches_tracked$")
_SHAPELESS = {  # fields that decide no variable's shape, all at one value: networks that differ in them share a trace
    field.name: field.default
    for field in dataclasses.fields(MobileNetV2Config)
    if field.name
    in {
        *("image_size", "output_stride", "hidden_act", "tf_padding", "classifier_dropout_prob", "initializer_range"),
        *("layer_norm_eps", "semantic_loss_ignore_index", "output_hidden_states", "return_dict", "problem_type"),
        *("batch_norm_momentum", "head_batch_norm_momentum", "classifier_initializer_range"),
        *("dilation_rule", "pad_block_input"),
    }
}
# Of DeepLab heads; rates that do not follow the output stride fit any.
_SHAPELESS_OF_HEADS = {"rates_follow_stride": False, "align_corners": False, "dropout_after": "decoder"}


def class_of(task: str) -> type[nn.Module]:
    """Returns the class of a task's models; a ConfigError where there is no such task."""
    if task not in MODEL_CLASSES:
        raise ConfigError(
            f"task must be one of {', '.join(MODEL_CLASSES)}; found {task!r}. A backbone is taken from a checkpoint "
            "with any head."
        )
    return MODEL_CLASSES[task]


# On folded weights that are made into those of an ordinary model, in words for the user.
UNFOLDED_NOTE = (
    "batch norm was merged into the convolutions, and the one put beside them does nothing: right for inference; "
    "training that normalises by batches collapses, so keep it (freeze_batch_norm)"
)


# On a quantised network that is written in a format without a place for its ranges.
RANGES_NOTE = (
    "the network is written in floating point, without the ranges of its quantisation; the flax format has them"
)


def make_model(config: MobileNetV2Config, task: str, **attributes: Any) -> nn.Module:
    """Returns the model of a task, with attributes such as ``dtype``."""
    return class_of(task)(config, **attributes)


def stated_task(config: MobileNetV2Config) -> str | None:
    """Returns the task that a config's ``architectures`` names; None if it names none."""
    stated = config.architectures
    tasks = {cls.__name__: task for task, cls in MODEL_CLASSES.items()}
    names = [stated] if isinstance(stated, str) else stated if isinstance(stated, (list, tuple)) else []
    return next((tasks[name] for name in names if isinstance(name, str) and name in tasks), None)


def task_of(config: MobileNetV2Config) -> str:
    """Returns the task that a config's ``architectures`` names, or raises a ConfigError."""
    task = stated_task(config)
    if task is None:
        raise ConfigError(
            f"The config's architectures are {config.extra.get('architectures') or []}; expected one of "
            f"{', '.join(cls.__name__ for cls in MODEL_CLASSES.values())}. Say which model you want: "
            f"task={' or '.join(map(repr, MODEL_CLASSES))}."
        )
    return task


def variable_shapes(model: nn.Module) -> Shapes:
    """Returns the shape of every variable by its path, without computing anything."""
    if type(model) in MODEL_CLASSES.values():  # what others make of a field is theirs
        head = model.config.deeplab
        fields = {"deeplab": head and head.replace(**_SHAPELESS_OF_HEADS), **_SHAPELESS}
        config = model.config.replace(num_labels=model.config.num_labels, extra={}, **fields)
        model = model.clone(config=config, dtype=np.float32, kernel_init=nn.initializers.zeros)
    return dict(_variable_shapes(model, model.config.layer_plan))


@functools.lru_cache(maxsize=64)  # tracing takes a second
def _variable_shapes(model: nn.Module, plan: LayerPlan) -> Shapes:
    del plan  # part of the key: it decides the shapes
    image = jax.ShapeDtypeStruct((1, 64, 64, model.config.num_channels), np.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(tree)).items()}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that weights say, so that they can be written back as they were.

    ``tensors`` are in Flax's layout: the variables of the model in float32, PyTorch's counters, and for transformers'
    segmentation the last 1×1 convolution that it declares and nobody reads.
    """

    config: MobileNetV2Config
    task: str
    tensors: Tensors
    config_text: str | None = None  # the config.json that was read, where it still holds
    processor_text: str | None = None  # the preprocessor_config.json, if there is one

    @property
    def model_paths(self) -> set[Path]:
        """Paths of the tensors that the model has; the others are kept for the way back."""
        unused = _LAST_CONV if declares_unused_conv(self.config, self.task) else None
        of_model = ("params", "batch_stats", COLLECTION)
        return {path for path in self.tensors if path[0] in of_model and path[1:3] != unused}

    def without_ranges(self) -> Checkpoint:
        """Returns the network in floating point, without the ranges of a quantised one; others are as they are."""
        if self.config.quantization is None:
            return self
        tensors = {path: value for path, value in self.tensors.items() if path[0] != COLLECTION}
        config = self.config.replace(quantization=None)
        return dataclasses.replace(self, config=config, tensors=tensors, config_text=None)

    def to_config_text(self) -> str:
        """Returns the ``config.json`` to write."""
        if self.config_text is not None:
            return self.config_text
        return config_text(self.config, MODEL_CLASSES[self.task].__name__)


def config_text(config: MobileNetV2Config, architecture: str) -> str:
    """Returns the ``config.json`` of a model whose class has this name."""
    config = config.replace(architectures=[architecture])
    return config.to_json_string()


def declares_unused_conv(config: MobileNetV2Config, task: str) -> bool:
    """Returns whether transformers' class declares the last 1×1 convolution and the model does not have it."""
    return task == "segmentation" and config.deeplab is None


def last_conv_shapes(config: MobileNetV2Config) -> Shapes:
    """Returns shapes of the last 1×1 convolution, which a segmentation model does not have."""
    plan = config.layer_plan
    width = (plan.last_channels,)
    return {
        ("params", *_LAST_CONV, "convolution", "kernel"): (1, 1, plan.blocks[-1].out_channels, *width),
        ("params", *_LAST_CONV, "normalization", "scale"): width,
        ("params", *_LAST_CONV, "normalization", "bias"): width,
        ("batch_stats", *_LAST_CONV, "normalization", "mean"): width,
        ("batch_stats", *_LAST_CONV, "normalization", "var"): width,
    }


def with_pytorch_extras(config: MobileNetV2Config, task: str, variables: Mapping[Path, np.ndarray]) -> Tensors:
    """Returns the variables of a model of ours, and what a PyTorch checkpoint holds beside them.

    Counters start at 0. For transformers' segmentation a fresh last 1×1 convolution is drawn from seed 0.
    """
    extras: Tensors = {}
    if declares_unused_conv(config, task):
        rng = np.random.default_rng(0)
        for path, shape in last_conv_shapes(config).items():
            if path[-1] == "kernel":
                extras[path] = rng.normal(0.0, config.initializer_range, shape).astype(np.float32)
            else:
                extras[path] = np.full(shape, path[-1] in ("scale", "var"), np.float32)
    tensors = extras | dict(variables)
    shapes = {path: np.shape(value) for path, value in tensors.items()}
    return {path: np.zeros((), np.int64) for path in counter_shapes(shapes)} | tensors


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder, file or state dict, read but not yet converted."""

    format: str  # its name, a key of FORMATS
    where: pathlib.Path
    config: MobileNetV2Config
    task: str | None  # None where the config does not say
    state: StateDict  # every tensor by the name that it has there
    naming: Naming
    complete: bool = True  # whether state is all that its library would write; a run's has the variables alone
    config_text: str | None = None  # its config.json if that is a config of ours and transformers'
    processor_folder: pathlib.Path | None = None  # where a preprocessor_config.json lies, if there is one
    usual_processor: MobileNetV2ImageProcessor | None = None  # where that is absent
    processor_note: str = ""  # what is not known of the usual one, in words for the user
    advice: str = USUAL_ADVICE  # to the user, where tensors do not fit the model
    notes: tuple[str, ...] = ()  # what was done on the way, in words for the user
    folded: bool = False  # whether batch norm is merged into the convolutions, which have biases
    # (min, max) of what was quantised in training or is so in the file, arrays of one value or one a channel, by name;
    # those of activations are places of our models where the format knows them.
    ranges: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def processor_text(self) -> str | None:
        """Returns the ``preprocessor_config.json`` that lies there, or would; None where nothing is known."""
        if not self._has_processor_file:
            return None if self.usual_processor is None else self.usual_processor.to_json_string()
        path = self.processor_folder / PROCESSOR_NAME
        try:
            return read_text(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"Cannot read {path}: {error}.") from None

    def processor(self) -> MobileNetV2ImageProcessor:
        """Returns what prepares images for these weights, or raises a CheckpointError where nothing is known of it."""
        if self.usual_processor is not None and not self._has_processor_file:
            if self.processor_note:
                _log.warning("%s: %s", self.where, self.processor_note)
            return self.usual_processor
        if self.processor_folder is None:
            raise CheckpointError(
                f"Nothing is known of how images are prepared for {self.where}, of {self.config.num_channels} channels."
            )
        return MobileNetV2ImageProcessor.from_pretrained(self.processor_folder)

    @property
    def _has_processor_file(self) -> bool:
        return self.processor_folder is not None and (self.processor_folder / PROCESSOR_NAME).exists()

    def with_resize(self, shortest_edge: int) -> Source:
        """Returns the weights with a processor that resizes the shorter side to this; a UserError where it cannot."""
        processor = dataclasses.replace(self.processor(), size={"shortest_edge": shortest_edge})
        return dataclasses.replace(self, processor_folder=None, usual_processor=processor, processor_note="")

    def with_channels(self, num_channels: int) -> Source:
        """Returns the weights for images of another number of channels, as timm makes them of those that were trained.

        For 1 the first convolution's kernels are summed; for others they are repeated as often as needed and scaled
        by the old number / the new one.
        """
        config, key = self.config.replace(num_channels=num_channels), self.naming.key_of(FIRST_KERNEL)
        if config == self.config or key not in self.state:
            return self
        kernel = self.naming.to_flax(key, self.state[key])
        trained = self.config.num_channels
        if num_channels == 1:
            how, kernel = "summed", kernel.sum(axis=2, keepdims=True)
        else:
            how = f"repeated and scaled by {trained}/{num_channels}"
            kernel = kernel[:, :, np.arange(num_channels) % trained] * np.float32(trained / num_channels)
        note = f"the first convolution's {trained} input channels became {num_channels}: {how}, as timm does"
        state = {**self.state, key: self.naming.from_flax(kernel)}
        return dataclasses.replace(
            self, config=config, state=state, config_text=None, usual_processor=None, notes=(*self.notes, note)
        )

    def unfolded(self) -> Source:
        """Returns the same with a batch norm that does nothing where it is folded; itself where it is not."""
        if not self.folded:
            return self
        params = traverse_util.unflatten_dict({tuple(key.split("/"))[1:]: value for key, value in self.state.items()})
        flat = traverse_util.flatten_dict(unfold_batch_norm(params, self.config), sep="/")
        return dataclasses.replace(self, state=flat, folded=False)

    def select(self, shapes: Shapes, *, backbone_only: bool = False) -> Tensors:
        """Returns the variables that a model of these ``shapes`` has; heads are left out too if ``backbone_only``.

        Folded weights get a batch norm that does nothing where ``shapes`` have one. Ranges of a quantised model are 0
        where none are known, so that nothing is rounded there. A CheckpointError names every
        tensor that is missing, left over or of another shape or type.
        """
        if self.folded and any("normalization" in path for path in shapes):
            return self.unfolded().select(shapes, backbone_only=backbone_only)
        unused = set() if any("conv_1x1" in path for path in shapes) else self._keys(last_conv_shapes(self.config))
        state = {
            key: value
            for key, value in self.state.items()
            if not _COUNTER.search(key)
            and not key.startswith(f"{COLLECTION}/")
            and key not in unused
            and (not backbone_only or re.match(self.naming.backbone, key))
        }
        ranges = {path: self._range_at(path) for path in shapes if path[0] == COLLECTION}
        shapes = {path: shape for path, shape in shapes.items() if path not in ranges}
        return read_state(state, shapes, self.naming, source=str(self.where), advice=self.advice) | ranges

    def _range_at(self, path: Path) -> np.ndarray:
        """Returns a variable of the collection ``"quantization"``; ``step`` is an integer, the others float32."""
        *place, leaf = path
        if leaf == "step":
            return np.int32(self.state.get("/".join(path), 0))
        if "/".join(path) in self.state:
            return np.float32(self.state["/".join(path)])
        ends = self.ranges.get("/".join(place[1:]))
        return np.float32(0.0 if ends is None else np.ravel(ends[leaf == "max"])[0])

    def checkpoint(self) -> Checkpoint:
        """Returns every tensor; of folded weights as ``unfolded`` has them. Errors as for ``select``."""
        if self.folded:
            return self.unfolded().checkpoint()
        task = self.task or self.task_of_names()
        shapes = variable_shapes(make_model(self.config, task))
        may_have_conv = declares_unused_conv(self.config, task)
        if may_have_conv and self._keys(last_conv_shapes(self.config)) & self.state.keys():
            shapes |= last_conv_shapes(self.config)
        counters = counter_shapes(shapes)
        shapes |= {path: counters[path] for path in counters if self.naming.key_of(path) in self.state}
        ranges = {path: self._range_at(path) for path in shapes if path[0] == COLLECTION}
        shapes = {path: shape for path, shape in shapes.items() if path not in ranges}
        state = {key: value for key, value in self.state.items() if not key.startswith(f"{COLLECTION}/")}
        tensors = read_state(state, shapes, self.naming, source=str(self.where), advice=self.advice) | ranges
        if not self.complete or (may_have_conv and not last_conv_shapes(self.config).keys() <= tensors.keys()):
            tensors = with_pytorch_extras(self.config, task, tensors)
        config, config_text = self.config, self.config_text
        if widened(self.state) or is_rounded(self.state):
            stated = {name: "float32" for name in DTYPE_KEYS if name in config.extra}
            config, config_text = config.replace(**stated), None
        return Checkpoint(config, task, tensors, config_text, self.processor_text)

    @property
    def dtype(self) -> str:
        """Returns the name of the stored weights' type: as the config says it, else that of the first of them."""
        types = (array.dtype.name for array in self.state.values() if array.dtype.kind not in "biu")
        return self.config.dtype or next(types, "float32")

    def task_of_names(self) -> str:
        """Returns the task of the head that the tensors have; ``"backbone"`` where there is none."""
        stated = CLASSIFIERS.get(self.task or "", ())  # a library's naming need not know other heads than its own
        if stated and any(self.naming.key_of(("params", *stated, leaf)) in self.state for leaf in ("kernel", "bias")):
            return self.task
        for task, (head, *_) in CLASSIFIERS.items():
            if any(re.match(rf"(\w+/)?{head}[./]", key) for key in self.state):
                return task
        return "backbone"

    def _keys(self, shapes: Shapes) -> set[str]:
        return {self.naming.key_of(path) for path in shapes}
