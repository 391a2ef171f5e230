"""The flax format: ``variables/`` as Orbax writes it, beside ``config.json``; also the checkpoints of a training run.

What a model does not have (PyTorch's counters, the unused convolution) lies in ``extra_tensors.safetensors`` rather
than in ``variables/``, so that ``variables/`` is what ``model.apply`` takes and any Orbax reader can use it as it is.
The file is written even when it is empty: a folder without it is one that did not come from another library.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from flax_mnv2.checkpoint.checksums import ARRAYS_NAME, check_arrays, check_checksum
from flax_mnv2.checkpoint.orbax_arrays import quiet, read_arrays
from flax_mnv2.errors import CheckpointError
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.untrusted import read_json
from flax_mnv2.weights import files
from flax_mnv2.weights.tensors import FLAX_NAMING, Path, StateDict, write_state

VARIABLES_NAME = "variables"
EMA_NAME = "ema"
ABOUT_NAME = "about"
EXTRA_NAME = "extra_tensors.safetensors"
_TEMPORARY = f"{VARIABLES_NAME}*.orbax-checkpoint-tmp*"


def recognises(folder: pathlib.Path) -> bool:
    """Whether a folder is in the flax format or a run's checkpoint."""
    return (folder / VARIABLES_NAME).is_dir()


def read_state(folder: pathlib.Path) -> StateDict:
    """All tensors by path, joined by slashes: ``params/mobilenet_v2/…``; of a run's checkpoint the moving average,
    where there is one.

    Raises:
      CheckpointError: Orbax cannot read ``variables/``, or the extra tensors are damaged.
    """
    item = EMA_NAME if (folder / EMA_NAME).is_dir() else VARIABLES_NAME
    state = read_arrays(folder / item)
    noted = (read_about(folder) or {}).get(ARRAYS_NAME)
    if noted is not None:
        check_arrays(state, noted.get(item, {}), folder / item)
    if has_extra(folder):
        state |= files.read_tensor_file(folder / EXTRA_NAME).state
    return state


def has_extra(folder: pathlib.Path) -> bool:
    """Whether the folder says which tensors its source had beside the model's."""
    return (folder / EXTRA_NAME).is_file()


def read_about(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a run noted beside a checkpoint, None elsewhere: its config under ``config``, the model's under ``model``,
    the image processor's under ``processor``.

    Raises:
      CheckpointError: the note cannot be read.
    """
    path = folder / ABOUT_NAME / "metadata"  # where Orbax's JSON handler puts it
    if not (folder / ABOUT_NAME).is_dir():
        return None
    try:
        about = read_json(path)
        check_checksum(about, path)
        processor = about.get("processor")
        noted = {} if processor is None else {"processor": dict(processor)}
        return {**about, **noted, "config": dict(about["config"]), "model": dict(about["model"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. It is damaged, or not by this library's train.py."
        ) from None


def is_run_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder is a checkpoint of a training run, which has no ``preprocessor_config.json``."""
    return recognises(folder) and (folder / ABOUT_NAME).is_dir() and not (folder / PROCESSOR_NAME).exists()


def run_processor(about: Mapping[str, Any]) -> MobileNetV2ImageProcessor:
    """What a run's model takes, from what ``read_about`` gave.

    A run that did not note it trained segmentation: images keep their size and are scaled to [-1, 1].
    """
    noted = about.get("processor") or {"do_resize": False, "do_center_crop": False}
    return MobileNetV2ImageProcessor.from_dict(noted)


def write_tensors(folder: pathlib.Path, tensors: Mapping[Path, np.ndarray], model_paths: set[Path]) -> None:
    """Writes ``variables/`` and the extra tensors, each whole or not at all.

    Args:
      folder: exists.
      tensors: by path.
      model_paths: which of them the model has.
    """
    import orbax.checkpoint as ocp

    extra = write_state({path: value for path, value in tensors.items() if path not in model_paths}, FLAX_NAMING)
    files.write_tensor_file(folder / EXTRA_NAME, extra)
    remove_variables(folder)
    tree = traverse_util.unflatten_dict({path: np.asarray(tensors[path]) for path in model_paths})
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / VARIABLES_NAME).absolute(), tree)  # Orbax renames it when it is whole


def remove_variables(folder: pathlib.Path) -> None:
    """Deletes ``variables/`` if Orbax wrote it."""
    path = folder / VARIABLES_NAME
    if path.is_dir() and (path / "_METADATA").is_file():
        shutil.rmtree(path)


def is_temporary(path: pathlib.Path) -> bool:
    """Whether a save by Orbax that was killed left this folder."""
    return path.match(_TEMPORARY) and path.is_dir()
