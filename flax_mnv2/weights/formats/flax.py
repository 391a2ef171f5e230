"""The flax format: ``variables/`` as Orbax writes it, beside ``config.json``; also the checkpoints of a training run.

What a model does not have (PyTorch's counters, the unused convolution) lies in ``extra_tensors.safetensors`` rather
than in ``variables/``, so that ``variables/`` is what ``model.apply`` takes and any Orbax reader can use it as it is.
The file is written even when it is empty: a folder without it is one that did not come from another library.
"""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

from flax import traverse_util

from flax_mnv2.checkpoint.checksums import ARRAYS_NAME, check_arrays, check_checksum
from flax_mnv2.checkpoint.orbax_arrays import quiet, read_arrays
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_json
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.checkpoint import Checkpoint, stated_task
from flax_mnv2.weights.formats.base import CONFIG_NAME, Content, Format, Found
from flax_mnv2.weights.source import Source, read_text_file
from flax_mnv2.weights.tensor_files import read_tensor_file, write_tensor_file
from flax_mnv2.weights.tensors import FLAX_NAMING, StateDict, write_state

VARIABLES_NAME = "variables"
EMA_NAME = "ema"
ABOUT_NAME = "about"
EXTRA_NAME = "extra_tensors.safetensors"


class FlaxFormat(Format):
    """A folder that Orbax reads: converted weights, or a run's checkpoint, whose moving average goes first."""

    name = "flax"
    suffixes = ()
    weight_names = (VARIABLES_NAME, EXTRA_NAME)
    hub_files = (f"{VARIABLES_NAME}/*", EXTRA_NAME)

    def recognises(self, found: Found) -> bool:
        """A folder by what Orbax has written in it."""
        return found.tensors is None and (found.where / VARIABLES_NAME).is_dir()

    def open(self, found: Found) -> Source:
        """Reads the arrays; config and processor as the run noted them, or from the files beside them."""
        folder = found.where
        about = read_about(folder)
        if about is None:
            config = MobileNetV2Config.from_json_file(folder / CONFIG_NAME)
            task, text = stated_task(config), read_text_file(folder / CONFIG_NAME)
        else:
            config, task, text = MobileNetV2Config.from_dict(about["model"]), about["config"].get("task"), None
        return Source(
            format=self.name,
            where=folder,
            config=config,
            task=task,
            state=read_state(folder, about),
            naming=FLAX_NAMING,
            complete=(folder / EXTRA_NAME).is_file(),
            config_text=text,
            processor_folder=folder,
            usual_processor=None if about is None else _run_processor(about),
        )

    def content(self, checkpoint: Checkpoint) -> Content:
        """Every tensor by its path."""
        paths = checkpoint.model_paths
        model = {path: value for path, value in checkpoint.tensors.items() if path in paths}
        extra = {path: value for path, value in checkpoint.tensors.items() if path not in paths}
        return Content(
            write_state(model, FLAX_NAMING),
            checkpoint.to_config_text(),
            checkpoint.processor_text,
            extra=write_state(extra, FLAX_NAMING),
        )

    def write_weights(self, folder: pathlib.Path, content: Content) -> tuple[str, ...]:
        """Writes ``variables/`` and the extra tensors."""
        import orbax.checkpoint as ocp

        write_tensor_file(folder / EXTRA_NAME, content.extra)
        remove_variables(folder)
        with quiet(), ocp.StandardCheckpointer() as checkpointer:
            tree = traverse_util.unflatten_dict(content.state, sep="/")
            checkpointer.save((folder / VARIABLES_NAME).absolute(), tree)  # Orbax renames it when it is whole
        return self.weight_names


def read_state(folder: pathlib.Path, about: dict[str, Any] | None) -> StateDict:
    """All tensors by path, joined by slashes: ``params/mobilenet_v2/…``; ``about`` is what ``read_about`` gave.

    Raises:
      CheckpointError: Orbax cannot read ``variables/``, or arrays are not what was saved.
    """
    item = EMA_NAME if (folder / EMA_NAME).is_dir() else VARIABLES_NAME
    state = read_arrays(folder / item)
    if about is not None and ARRAYS_NAME in about:
        check_arrays(state, about[ARRAYS_NAME].get(item, {}), folder / item)
    if (folder / EXTRA_NAME).is_file():
        state |= read_tensor_file(folder / EXTRA_NAME).state
    return state


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


def remove_variables(folder: pathlib.Path) -> None:
    """Deletes ``variables/`` if Orbax wrote it."""
    path = folder / VARIABLES_NAME
    if (path / "_METADATA").is_file():
        shutil.rmtree(path)


def _run_processor(about: dict[str, Any]) -> MobileNetV2ImageProcessor:
    """What a run's model takes; one that did not note it trained segmentation: images keep their size, in [-1, 1]."""
    return MobileNetV2ImageProcessor.from_dict(about.get("processor") or {"do_resize": False, "do_center_crop": False})
