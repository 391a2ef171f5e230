"""The flax format: ``variables/`` as Orbax writes it, beside ``config.json``; also the checkpoints of a training run.

``variables/`` is what ``model.apply`` takes; what a model does not have (PyTorch's counters, the unused convolution)
lies in ``extra_tensors.safetensors``. It is written even when empty: a folder without it came from no other library.
"""

from __future__ import annotations

import pathlib
import shutil

from flax import traverse_util

from flax_mnv2.checkpoint.folder import ABOUT, EMA, VARIABLES
from flax_mnv2.checkpoint.reading import quiet, read_about, read_item
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.checks import PROBLEM_TYPES
from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_text
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats.base import CONFIG_NAME, Format, Found
from flax_mnv2.weights.source import Checkpoint, Source, stated_task
from flax_mnv2.weights.target_units import in_target_units
from flax_mnv2.weights.tensor_files import read_tensor_file, write_tensor_file
from flax_mnv2.weights.tensors import FLAX_NAMING, StateDict, write_state

EXTRA_NAME = "extra_tensors.safetensors"


class FlaxFormat(Format):
    """A folder that Orbax reads: converted weights, or a run's checkpoint, whose moving average goes first."""

    name = "flax"
    suffixes = ()
    keeps_ranges = True
    weight_names = (VARIABLES, EXTRA_NAME)
    hub_files = (f"{VARIABLES}/*", EXTRA_NAME)

    def recognises(self, found: Found) -> bool:
        """Returns whether Orbax has written a folder."""
        return found.tensors is None and (found.where / VARIABLES).is_dir()

    def open(self, found: Found) -> Source:
        """Reads the arrays; config and processor as the run noted them, or from the files beside them."""
        folder, about, text, processor, notes = found.where, {}, None, None, ()
        if (folder / ABOUT).is_dir():
            about = read_about(folder)
            config, task = MobileNetV2Config.from_dict(about["model"]), about["config"].get("task")
            task = "classification" if task in PROBLEM_TYPES else task  # such a run trains a classifier
            # A run that did not note it trained segmentation: images keep their size, in [-1, 1].
            settings = about["processor"] or {"do_resize": False, "do_center_crop": False}
            processor = MobileNetV2ImageProcessor.from_dict(settings)
        else:
            config = MobileNetV2Config.from_json_file(folder / CONFIG_NAME)
            task, text = stated_task(config), read_text(folder / CONFIG_NAME)
        has_average = (folder / EMA).is_dir()
        if found.weights == "ema" and not has_average:
            raise CheckpointError(f'{folder} has no moving average, and weights="ema" was asked for.')
        if has_average and found.weights != "raw":
            notes = ('took the moving average of the run; weights="raw" takes the weights themselves',)
        state = read_item(folder, EMA if notes else VARIABLES, about)
        complete = (folder / EXTRA_NAME).is_file()
        if complete:
            state |= read_tensor_file(folder / EXTRA_NAME).state
        config, state = in_target_units(config, state)
        return Source(
            format=self.name,
            where=folder,
            config=config,
            task=task,
            state=state,
            naming=FLAX_NAMING,
            complete=complete,
            config_text=text,
            processor_folder=folder,
            usual_processor=processor,
            notes=notes,
        )

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns every tensor by its path."""
        return write_state(checkpoint.tensors, FLAX_NAMING)

    def write_weights(self, folder: pathlib.Path, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Writes ``variables/`` and the extra tensors."""
        import orbax.checkpoint as ocp

        state, of_model = self.state_dict(checkpoint), set(map(FLAX_NAMING.key_of, checkpoint.model_paths))
        model, extra = ({key: state[key] for key in state if (key in of_model) is wanted} for wanted in (True, False))
        write_tensor_file(folder / EXTRA_NAME, extra)
        remove_variables(folder)
        with quiet(), ocp.StandardCheckpointer() as checkpointer:
            tree = traverse_util.unflatten_dict(model, sep="/")
            checkpointer.save((folder / VARIABLES).absolute(), tree)  # Orbax renames it when it is whole
        return self.weight_names


def remove_variables(folder: pathlib.Path) -> None:
    """Deletes ``variables/`` if Orbax wrote it."""
    path = folder / VARIABLES
    if (path / "_METADATA").is_file():
        shutil.rmtree(path)
