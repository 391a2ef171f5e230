"""A checkpoint in memory, whatever it came from: config, task, and every tensor by its Flax path."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.layer_plan import LayerPlan
from flax_mnv2.models import (
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)
from flax_mnv2.models.endpoints import LAST_CONV
from flax_mnv2.weights.tensors import COUNTERS, Path, Shapes, Tensors, counter_shapes

MODEL_CLASSES: dict[str, type[nn.Module]] = {
    "backbone": MobileNetV2Model,
    "classification": MobileNetV2ForImageClassification,
    "segmentation": MobileNetV2ForSemanticSegmentation,
}
_LAST_CONV = ("mobilenet_v2", LAST_CONV)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything a folder or file says, so that it can be written back as it was.

    Attributes:
      config: the architecture.
      task: one of ``MODEL_CLASSES``.
      tensors: by path, in Flax's layout: the variables of the model in float32, counters, and for segmentation the
        last 1×1 convolution that transformers declares and nobody reads.
      config_text: the ``config.json`` that was read, where it still holds.
      processor_text: the ``preprocessor_config.json``, if there is one.
    """

    config: MobileNetV2Config
    task: str
    tensors: Tensors
    config_text: str | None = None
    processor_text: str | None = None

    @property
    def model_paths(self) -> set[Path]:
        """Paths of the tensors that the model has; the others are kept for the way back."""
        unused = _LAST_CONV if self.task == "segmentation" else None
        return {path for path in self.tensors if path[0] != COUNTERS and path[1:3] != unused}

    def count(self, collection: str) -> int:
        """How many numbers the model has in ``params`` or ``batch_stats``."""
        return sum(self.tensors[path].size for path in self.model_paths if path[0] == collection)

    def to_config_text(self) -> str:
        """The ``config.json`` to write."""
        if self.config_text is not None:
            return self.config_text
        architectures = [MODEL_CLASSES[self.task].__name__]
        config = self.config.replace(extra={**self.config.extra, "architectures": architectures})
        return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def make_model(config: MobileNetV2Config, task: str, **attributes: Any) -> nn.Module:
    """The model class of a task, with attributes such as ``dtype``."""
    if task not in MODEL_CLASSES:
        raise ConfigError(f"task must be one of {', '.join(MODEL_CLASSES)}; found {task!r}.")
    return MODEL_CLASSES[task](config, **attributes)


def stated_task(config: MobileNetV2Config) -> str | None:
    """The task that a config's ``architectures`` names; None if it names none."""
    stated = config.extra.get("architectures") or ()
    names = stated if isinstance(stated, (list, tuple)) else (stated,)
    tasks = {cls.__name__: task for task, cls in MODEL_CLASSES.items()}
    return next((tasks[name] for name in names if isinstance(name, str) and name in tasks), None)


def task_of(config: MobileNetV2Config) -> str:
    """The task that a config's ``architectures`` names, or a ConfigError."""
    task = stated_task(config)
    if task is None:
        raise ConfigError(
            f"The config's architectures are {config.extra.get('architectures') or []}; expected one of "
            f"{', '.join(cls.__name__ for cls in MODEL_CLASSES.values())}. Say which model you want: "
            f"task={' or '.join(map(repr, MODEL_CLASSES))}."
        )
    return task


def variable_shapes(model: nn.Module) -> Shapes:
    """Shape of every variable by its path, without computing anything."""
    return dict(_variable_shapes(model, model.config.layer_plan))


@functools.lru_cache(maxsize=64)  # tracing takes a second
def _variable_shapes(model: nn.Module, plan: LayerPlan) -> Shapes:
    del plan  # part of the key: it decides the shapes
    tree = jax.eval_shape(model.init, jax.random.key(0), example_image(model.config))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(tree)).items()}


def example_image(config: MobileNetV2Config) -> jax.ShapeDtypeStruct:
    """Shape and type of an image that any model takes."""
    return jax.ShapeDtypeStruct((1, 64, 64, config.num_channels), jnp.float32)


def last_conv_shapes(config: MobileNetV2Config) -> Shapes:
    """Shapes of the last 1×1 convolution, which a segmentation model does not have."""
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
    """The variables of a model of ours, and what a PyTorch checkpoint holds beside them.

    Counters start at 0. For segmentation a fresh last 1×1 convolution is added, drawn from seed 0: transformers
    declares one and never reads it.
    """
    extras: Tensors = {}
    if task == "segmentation":
        rng = np.random.default_rng(0)
        for path, shape in last_conv_shapes(config).items():
            if path[-1] == "kernel":
                extras[path] = rng.normal(0.0, config.initializer_range, shape).astype(np.float32)
            else:
                extras[path] = np.full(shape, path[-1] in ("scale", "var"), np.float32)
    tensors = extras | dict(variables)
    shapes = {path: np.shape(value) for path, value in tensors.items()}
    return {path: np.zeros((), np.int64) for path in counter_shapes(shapes)} | tensors
