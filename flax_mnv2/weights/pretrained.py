"""Weights of any source ↔ a model and its variables."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flax_mnv2.checkpoint.comparing import check_same_tensors
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.files import shown
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models.quantization.rounding import COLLECTION
from flax_mnv2.weights.models import MODEL_CLASSES, task_of_class
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import (
    FIRST_KERNEL,
    RANGES_NOTE,
    UNFOLDED_NOTE,
    Checkpoint,
    Source,
    class_of,
    config_text,
    make_model,
    task_of,
    variable_shapes,
    with_pytorch_extras,
)
from flax_mnv2.weights.tensors import Path, Shapes, Tensors
from flax_mnv2.weights.writing import write

_log = logging.getLogger(__name__)
Variables = dict[str, Any]
Weights = str | pathlib.Path | Mapping[str, Any] | Source  # whatever ``open_weights`` takes


def from_pretrained(
    pretrained_model_name_or_path: Weights,
    *,
    task: str | None = None,
    weights: str = "auto",
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
    config: MobileNetV2Config | None = None,
    dtype: Any = jnp.float32,
    torch_dtype: Any = None,
    ignore_mismatched_sizes: bool = False,
    unfold: bool = False,
    **changes: Any,
) -> tuple[nn.Module, Variables]:
    """Loads a MobileNetV2 checkpoint.

    Args:
      pretrained_model_name_or_path: a hub id, a folder or a file of any library, or a checkpoint of a training run
        (``WORKDIR/checkpoints/step_N``, or a PyTorch program's); as ``open_weights`` takes or gives it.
      task: ``"segmentation"``, ``"classification"`` or ``"backbone"``; None reads it from the config. A backbone is
        taken from a checkpoint with any head.
      weights: of a training checkpoint: ``"ema"`` for the moving average of the weights, ``"raw"`` for the weights
        themselves, ``"auto"`` for the average where there is one.
      revision: branch, tag or commit of a hub id.
      cache_dir: where downloads are kept; None is huggingface_hub's default.
      config: in place of that of the checkpoint.
      dtype: type of the computation; the variables are float32. ``"auto"`` is that of the stored weights, as the config
        says it, or else the tensors.
      torch_dtype: former name of ``dtype``.
      ignore_mismatched_sizes: start tensors of the head afresh (from a fixed seed) where the checkpoint has them in
        another shape, with a warning that names them.
      unfold: of TFLite files, whose batch norm is merged into the convolutions: give a model with a batch norm that
        does nothing, for fine-tuning with ``freeze_batch_norm``, in place of one that has none.
      **changes: other fields of the config, such as ``output_stride=8``, ``output_hidden_states=True`` or
        ``num_labels=10`` (names of the checkpoint's classes stay where there are as many), or attributes of the model,
        such as ``remat=True``. With ``num_channels`` the first convolution is summed over its channels or repeated, as
        timm does.

    Returns:
      The linen model and its variables ``{"params": …, "batch_stats": …}``, NumPy arrays; of a TFLite file a model for
      inference (``batch_norm_folded=True``) and ``params`` alone, unless ``unfold``. A quantised model
      (``quantization="int8"``) has its ranges too, 0 where the checkpoint has none: then ``calibrate`` it, or train.

    Raises:
      CheckpointError: nothing readable there, or the tensors do not fit the config, each named.
      ConfigError: the config is not a MobileNetV2's, or a change is unknown or out of range.
    """
    source = open_weights(
        pretrained_model_name_or_path, revision=revision, cache_dir=cache_dir, config=config, weights=weights
    )
    if task is None:
        task = source.task or (task_of(source.config) if config is None else source.task_of_names())
    options = {"dtype": dtype, "torch_dtype": torch_dtype, "ignore_mismatched_sizes": ignore_mismatched_sizes}
    return load(class_of(task), source, config=config, unfold=unfold, **options, **changes)


def load(
    model_class: type[nn.Module],
    pretrained_model_name_or_path: Weights,
    *,
    weights: str = "auto",
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
    config: MobileNetV2Config | None = None,
    dtype: Any = jnp.float32,
    torch_dtype: Any = None,
    ignore_mismatched_sizes: bool = False,
    unfold: bool = False,
    **changes: Any,
) -> tuple[nn.Module, Variables]:
    """Loads a checkpoint into a model of one of ``MODEL_CLASSES`` or a subclass; otherwise as ``from_pretrained``."""
    task = task_of_class(model_class)
    if task is None:
        raise ConfigError(f"A {model_class.__name__} has no pretrained weights; {_known_classes()} have.")
    source = open_weights(
        pretrained_model_name_or_path, revision=revision, cache_dir=cache_dir, config=config, weights=weights
    )
    source = _adapted(source, changes.get("num_channels"), unfold=unfold)
    config = source.config if config is None else config
    fields = {field.name for field in dataclasses.fields(model_class)} - {"config", "parent", "name"}
    attributes = {name: changes.pop(name) for name in fields & changes.keys()}
    if changes.get("num_labels") in (None, config.num_labels):
        changes.pop("num_labels", None)
    dtype = _compute_dtype(dtype if torch_dtype is None else torch_dtype, source)
    attributes = {"batch_norm_folded": source.folded} | attributes
    model = model_class(config.replace(**changes), dtype=dtype, **attributes)
    shapes = variable_shapes(model)
    mismatched = _mismatched_head(source, shapes)
    afresh = mismatched if ignore_mismatched_sizes else {}
    rest = {key: value for key, value in source.state.items() if key not in afresh.values()}
    shapes = {path: shape for path, shape in shapes.items() if path not in afresh}
    try:
        flat = dataclasses.replace(source, state=rest).select(shapes, backbone_only=task == "backbone")
    except CheckpointError as error:
        advice = _advice(source, task, mismatched=bool(mismatched) and not ignore_mismatched_sizes)
        raise CheckpointError(f"{error}{advice}") from None
    if afresh:
        flat |= _initialise(model, list(afresh))
        names = sorted(f"{key} {tuple(source.state[key].shape)}" for key in afresh.values())
        warnings.warn(
            f"{source.where}: these tensors have another shape than the model's and were started afresh; train the "
            f"head before using it: {', '.join(names)}.",
            stacklevel=3,
        )
    return model, traverse_util.unflatten_dict(flat)


def _compute_dtype(dtype: Any, source: Source) -> Any:
    """Returns a type that JAX knows for its name, for PyTorch's, or for ``"auto"``."""
    name = source.dtype if isinstance(dtype, str) and dtype == "auto" else dtype
    try:
        found = jnp.dtype(str(name).removeprefix("torch.") if str(name).startswith("torch.") else name)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ConfigError(f"dtype must be 'auto' or a floating-point type such as jnp.bfloat16; found {shown(name)}.")
    return found


def load_backbone(weights: Weights, variables: Mapping[str, Any], *, prefix: str = "") -> Variables:
    """Replaces the backbone of ``variables`` by that of a checkpoint; everything else stays as it is.

    For training with other labels, a segmentation head on an ImageNet backbone, or a head of one's own on a
    ``MobileNetV2Backbone``, which may end before the last block. The head of the checkpoint is not looked at; its
    backbone must fit exactly as far as that of the model goes.

    Args:
      weights: as for ``from_pretrained``.
      variables: ``params`` and ``batch_stats`` of the model that gets the backbone; they stay as they are.
      prefix: name of the submodule that is a model of this library, such as ``"backbone"``, or a path of names joined
        by ``/``; empty where the model is one itself.

    Returns:
      New variables; those of the backbone are NumPy arrays, float32.

    Raises:
      CheckpointError: there is no backbone under ``prefix``, or tensors do not fit; each is named.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    above = tuple(filter(None, prefix.split("/")))
    place = slice(1, 1 + len(above))
    inner = {path: (path[0], *path[place.stop :]) for path in flat if path[place] == above}
    wanted = {inner[path]: flat[path].shape for path in inner if inner[path][1:2] == ("mobilenet_v2",)}
    if not wanted:
        found = {"/".join(path[1 : path.index("mobilenet_v2")]) for path in flat if "mobilenet_v2" in path}
        raise CheckpointError(
            f"The variables have no mobilenet_v2 under prefix={prefix!r}; "
            f"there is one under {' and '.join(map(repr, sorted(found))) or 'no prefix at all'}."
        )
    source = _adapted(open_weights(weights), _channels_of(wanted), unfold=True)
    loaded = _as_far_as(wanted, source).select(wanted, backbone_only=True)
    flat |= {path: loaded[inner[path]] for path in inner if inner[path] in loaded}
    return traverse_util.unflatten_dict(flat)


def load_variables(weights: Weights, like: Mapping[str, Any]) -> Variables:
    """Loads the variables of a model of one's own, as ``save_pretrained`` with ``layout="flax"`` wrote them.

    Args:
      weights: that folder.
      like: variables of the model or their ``jax.ShapeDtypeStruct``, as ``jax.eval_shape(model.init, …)`` gives them.

    Returns:
      Variables of the names and shapes of ``like``; NumPy arrays, float32.

    Raises:
      CheckpointError: nothing readable there, or tensors do not fit; each is named.
    """
    shapes = {path: value.shape for path, value in traverse_util.flatten_dict(dict(like)).items()}
    return traverse_util.unflatten_dict(open_weights(weights).select(shapes))


def save_pretrained(
    folder: str | pathlib.Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    processor: MobileNetV2ImageProcessor | None = None,
    *,
    layout: str = "hf",
) -> None:
    """Writes a model to a folder; an interrupted save leaves no folder that looks whole.

    With ``layout="hf"`` transformers loads it, nothing missing or unexpected, and gives the same logits. A
    segmentation model has no last 1×1 convolution, which transformers' class declares without reading it; it is
    written as a freshly initialised one.

    Args:
      folder: made if it is not there; weights that lie there are replaced.
      model: one of this library's models; with ``layout="flax"`` any linen module with a ``MobileNetV2Config`` as its
        ``config``, which ``load_variables`` reads again.
      variables: its ``params`` and ``batch_stats``.
      processor: what prepares images for it, written as ``preprocessor_config.json``.
      layout: ``"hf"``, or ``"flax"`` for Orbax, which can hold what transformers cannot represent.

    Raises:
      ConfigError: transformers cannot represent the model, or it is not one of ``MODEL_CLASSES``.
      CheckpointError: ``variables`` are not the model's; every difference is named, and nothing is written.
    """
    if layout not in ("hf", "flax"):
        raise ConfigError(f"layout must be one of 'hf', 'flax'; found {layout!r}.")
    own = layout == "flax" and _task_of_model(model) is None
    checkpoint = (_checkpoint_of_own if own else checkpoint_of)(model, variables)
    if processor is not None:
        checkpoint = dataclasses.replace(checkpoint, processor_text=processor.to_json_string())
    if checkpoint.config.quantization is not None and layout == "hf":
        _log.warning("%s: %s", folder, RANGES_NOTE)
    write(checkpoint, pathlib.Path(folder), layout, keep_processor=True)


def _adapted(source: Source, num_channels: int | None, *, unfold: bool) -> Source:
    """Returns the source for images of so many channels, and logs what was done on the way to its weights."""
    if num_channels is not None:
        source = source.with_channels(num_channels)
    notes = [*source.notes, *([UNFOLDED_NOTE] if unfold and source.folded else [])]
    if notes:
        _log.warning("%s: %s", source.where, "; ".join(notes))
    return source.unfolded() if unfold else source


def _channels_of(shapes: Shapes) -> int | None:
    """Returns the channels of the images that a model takes."""
    shape = shapes.get(FIRST_KERNEL)
    return shape[2] if shape is not None and len(shape) == 4 else None


def _mismatched_head(source: Source, shapes: Shapes) -> dict[Path, str]:
    """Returns those variables of the head that the checkpoint has in another shape, and their names there."""
    keys = {path: source.naming.key_of(path) for path in shapes if path[1] != "mobilenet_v2" and path[0] != COLLECTION}
    return {
        path: key
        for path, key in keys.items()
        if key in source.state and tuple(source.state[key].shape) != source.naming.shape_of(shapes[path])
    }


def _advice(source: Source, task: str, *, mismatched: bool) -> str:
    """Returns what to do about tensors that do not fit, as far as that is known: a line, or nothing."""
    held = source.task or source.task_of_names()
    if mismatched:
        return "\nTo start the head's tensors of another shape afresh, pass ignore_mismatched_sizes=True."
    if task in ("backbone", held):
        return ""
    head = "no head" if held == "backbone" else f"the head of a {held} model"
    return (
        f'\nThis checkpoint has {head}, and a {task} model was asked for. Its backbone alone is what task="backbone" '
        "loads, and what load_backbone puts under another head."
    )


def checkpoint_of(model: nn.Module, variables: Mapping[str, Any]) -> Checkpoint:
    """Returns the model and exactly its variables; every difference is named."""
    task = _task_of_model(model)
    if task is None:
        raise ConfigError(
            f"A {type(model).__name__} cannot be saved as another library's model; {_known_classes()} can, and "
            'subclasses with no other variables. Others are saved with layout="flax".'
        )
    flat = traverse_util.flatten_dict(dict(variables))
    collections = {str(path[0]) for path in flat}
    others = sorted(collections - {path[0] for path in variable_shapes(model)})
    more = f"; leave out {', '.join(others)}" if others and "params" in collections else ""
    check_same_tensors(
        found={"/".join(map(str, path)): getattr(value, "shape", ()) for path, value in flat.items()},
        expected={"/".join(path): shape for path, shape in variable_shapes(model).items()},
        source=f"the {type(model).__name__} to be saved",
        owner="variables have",
        advice=f'Pass the {{"params": …, "batch_stats": …}} of this model, as its init returns them{more}.',
    )
    flat = {path: np.asarray(value, np.int32 if path[-1] == "step" else np.float32) for path, value in flat.items()}
    return Checkpoint(model.config, task, with_pytorch_extras(model.config, task, flat))


def _task_of_model(model: nn.Module) -> str | None:
    """Returns the task of a model whose variables are those of the library's own for that task, else None."""
    task = task_of_class(type(model))
    if task is None or type(model) is MODEL_CLASSES[task]:
        return task
    return task if variable_shapes(model) == variable_shapes(make_model(model.config, task)) else None


def _known_classes() -> str:
    return ", ".join(known.__name__ for known in MODEL_CLASSES.values())


def _checkpoint_of_own(model: nn.Module, variables: Mapping[str, Any]) -> Checkpoint:
    """Returns the variables of a model of somebody's own, as they are."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if not isinstance(config, MobileNetV2Config):
        raise ConfigError(
            f"A {name} is saved with its MobileNetV2Config; expected it as the field config of the module."
        )
    flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(dict(variables)).items()}
    if "params" not in variables or not variables.keys() <= {"params", "batch_stats"}:
        raise CheckpointError(f'A {name} is saved with {{"params": …, "batch_stats": …}}; found {sorted(variables)}.')
    return Checkpoint(config, "backbone", flat, config_text(config, name))


def _as_far_as(shapes: Shapes, source: Source) -> Source:
    """Returns the source without the blocks behind the last of ``shapes``; names of layers sort by depth."""
    last = max(path[2] for path in shapes)
    if last >= source.config.layer_plan.blocks[-1].name:
        return source
    whole = variable_shapes(make_model(source.config, "backbone"))
    behind = {source.naming.key_of(path) for path in whole if path[2] > last}
    return dataclasses.replace(source, state={key: source.state[key] for key in source.state if key not in behind})


def _initialise(model: nn.Module, paths: list[Path]) -> Tensors:
    """Returns fresh values of some variables, from a fixed seed; compiled, so that the network itself is not run."""

    def init(key: jax.Array, image: jax.Array) -> list[jax.Array]:
        flat = traverse_util.flatten_dict(dict(model.init(key, image)))
        return [flat[path] for path in paths]

    values = jax.jit(init)(jax.random.key(0), np.zeros((1, 64, 64, model.config.num_channels), np.float32))
    return {path: np.asarray(value) for path, value in zip(paths, values, strict=True)}
