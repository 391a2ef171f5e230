"""A folder or hub id in Hugging Face's layout ↔ a model and its variables."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.convert import files, hugging_face
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.models import (
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)

Variables = dict[str, Any]
CONFIG_NAME = "config.json"
MODEL_CLASSES: dict[str, type[nn.Module]] = {
    "backbone": MobileNetV2Model,
    "classification": MobileNetV2ForImageClassification,
    "segmentation": MobileNetV2ForSemanticSegmentation,
}
_TASK_OF_ARCHITECTURE = {cls.__name__: task for task, cls in MODEL_CLASSES.items()}
_HUB_FILES = (CONFIG_NAME, "preprocessor_config.json", files.SAFETENSORS_NAME, files.PICKLE_NAME)


def from_pretrained(
    id_or_folder: str | pathlib.Path,
    *,
    task: str | None = None,
    dtype: Any = jnp.float32,
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
    **config_overrides: Any,
) -> tuple[nn.Module, Variables]:
    """Loads a MobileNetV2 checkpoint of Hugging Face's layout.

    Args:
      id_or_folder: a folder with ``config.json`` and weights, or a hub id such as
        ``google/mobilenet_v2_1.0_224``, which huggingface_hub downloads and caches.
      task: ``"segmentation"``, ``"classification"`` or ``"backbone"``; None reads it from the config.
      dtype: type of the computation; the variables are float32.
      revision: branch, tag or commit of a hub id.
      cache_dir: where downloads are kept; None is huggingface_hub's default.
      **config_overrides: fields of ``MobileNetV2Config`` to change, such as ``output_stride=8``.

    Returns:
      The linen model and its variables ``{"params": …, "batch_stats": …}``, NumPy arrays.

    Raises:
      CheckpointError: nothing readable there, or the tensors do not fit the config, each named.
      ConfigError: the config is not a MobileNetV2's, or an override is unknown or out of range.
    """
    folder = resolve_folder(id_or_folder, revision=revision, cache_dir=cache_dir)
    config = MobileNetV2Config.from_json_file(folder / CONFIG_NAME).replace(**config_overrides)
    model = make_model(config, task or task_of(config), dtype=dtype)
    shapes = variable_shapes(model)
    state = files.read_weights(folder)
    try:
        flat = hugging_face.from_state_dict(state, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return model, traverse_util.unflatten_dict(flat)


def save_pretrained(folder: str | pathlib.Path, model: nn.Module, variables: Mapping[str, Any]) -> None:
    """Writes ``config.json`` and ``model.safetensors`` that transformers loads, nothing missing or unexpected.

    A segmentation model has no last 1×1 convolution, which the reference's class declares without reading
    it; it is written as a freshly initialised one.

    Args:
      folder: made if it is not there.
      model: one of this library's models.
      variables: its ``params`` and ``batch_stats``.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(dict(variables)).items()}
    if isinstance(model, MobileNetV2ForSemanticSegmentation):
        flat |= _unused_last_conv(model.config)
    state = hugging_face.to_state_dict(flat)
    if isinstance(model, MobileNetV2Model):  # a bare backbone has no prefix in the reference
        state = {key.removeprefix("mobilenet_v2."): value for key, value in state.items()}
    config = model.config.replace(extra={**model.config.extra, "architectures": [type(model).__name__]})
    config.to_json_file(folder / CONFIG_NAME)
    files.write_safetensors(folder / files.SAFETENSORS_NAME, state)


def load_backbone(id_or_folder: str | pathlib.Path, variables: Mapping[str, Any]) -> Variables:
    """Replaces the backbone of ``variables`` by that of a checkpoint; the head stays as it is.

    For training with other labels, or a segmentation head on an ImageNet backbone. The head of the checkpoint
    is not looked at; its backbone must fit exactly.

    Args:
      id_or_folder: as for ``from_pretrained``.
      variables: ``params`` and ``batch_stats`` of the model that gets the backbone.

    Returns:
      New variables, NumPy arrays where they come from the checkpoint.

    Raises:
      CheckpointError: the backbone's tensors are missing, left over or of another shape, each named.
    """
    folder = resolve_folder(id_or_folder)
    MobileNetV2Config.from_json_file(folder / CONFIG_NAME)  # refuses the folder of another architecture
    state = hugging_face.with_prefix(files.read_weights(folder))
    backbone = {key: value for key, value in state.items() if key.startswith("mobilenet_v2.")}
    flat = traverse_util.flatten_dict(dict(variables))
    wanted = {path: value.shape for path, value in flat.items() if path[1] == "mobilenet_v2"}
    try:
        flat |= hugging_face.from_state_dict(backbone, wanted)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return traverse_util.unflatten_dict(flat)


def make_model(config: MobileNetV2Config, task: str, **attributes: Any) -> nn.Module:
    """The model class of a task, with attributes such as ``dtype``."""
    if task not in MODEL_CLASSES:
        raise ConfigError(f"task must be one of {', '.join(MODEL_CLASSES)}; found {task!r}.")
    return MODEL_CLASSES[task](config, **attributes)


def task_of(config: MobileNetV2Config) -> str:
    """The task that a config's ``architectures`` names."""
    names = config.extra.get("architectures") or ()
    for name in names:
        if name in _TASK_OF_ARCHITECTURE:
            return _TASK_OF_ARCHITECTURE[name]
    raise ConfigError(
        f"The config's architectures are {list(names)}; expected one of {', '.join(_TASK_OF_ARCHITECTURE)}. "
        f"Say which model you want: task={' or '.join(map(repr, MODEL_CLASSES))}."
    )


def variable_shapes(model: nn.Module) -> dict[hugging_face.Path, tuple[int, ...]]:
    """Shape of every variable by its path, without computing anything."""
    image = jax.ShapeDtypeStruct((1, 64, 64, model.config.num_channels), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(tree)).items()}


def resolve_folder(
    id_or_folder: str | pathlib.Path,
    *,
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """The local folder of a checkpoint, downloading it if a hub id is given.

    Raises:
      CheckpointError: no such folder, and not a hub id that can be had.
    """
    folder = pathlib.Path(id_or_folder).expanduser()
    if folder.is_dir():
        return folder
    name = str(id_or_folder)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or folder.exists():
        raise CheckpointError(f"No folder {name}; expected one with {CONFIG_NAME} and {files.SAFETENSORS_NAME}.")
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, cache_dir=cache_dir, allow_patterns=list(_HUB_FILES)
            )
        )
    except Exception as error:  # many types, from the network to the cache; the message must be one
        raise CheckpointError(
            f"{name!r} is no local folder and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}). Check the spelling and the network, or give a local folder with "
            f"{CONFIG_NAME} and {files.SAFETENSORS_NAME}."
        ) from None


def _unused_last_conv(config: MobileNetV2Config) -> dict[hugging_face.Path, np.ndarray]:
    plan = config.layer_plan
    width, module = plan.last_channels, ("mobilenet_v2", "conv_1x1")
    kernel_shape = (1, 1, plan.blocks[-1].out_channels, width)
    kernel = np.random.default_rng(0).normal(0.0, config.initializer_range, kernel_shape)
    return {
        ("params", *module, "convolution", "kernel"): kernel.astype(np.float32),
        ("params", *module, "normalization", "scale"): np.ones(width, np.float32),
        ("params", *module, "normalization", "bias"): np.zeros(width, np.float32),
        ("batch_stats", *module, "normalization", "mean"): np.zeros(width, np.float32),
        ("batch_stats", *module, "normalization", "var"): np.ones(width, np.float32),
    }
