"""What a format of weights is: how it is recognised, opened and written."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from flax_mnv2.config.mobilenet_v2 import CONFIG_NAME, MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import PROCESSOR_NAME
from flax_mnv2.weights import tensor_files
from flax_mnv2.weights.source import Checkpoint, Source
from flax_mnv2.weights.tensor_files import FILE_SUFFIXES, SAFETENSORS_NAME, WEIGHT_NAMES, TensorFile
from flax_mnv2.weights.tensors import StateDict


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights whose format is not known yet: a folder, a file, or a state dict in memory."""

    where: pathlib.Path  # the folder or file; of a state dict, what a message calls it
    folder: pathlib.Path | None  # where a config.json lies if there is one; None of a state dict
    values: Mapping[str, Any]  # of that config.json; empty where there is none, or none that can be read
    tensors: TensorFile | None = None  # read already, but where only the format knows how
    config: MobileNetV2Config | None = None  # what a caller gave
    weights: str = "auto"  # which to take where there is a moving average too

    @property
    def is_file(self) -> bool:
        """Returns whether it is a single file."""
        return self.folder not in (None, self.where)

    def read(self) -> TensorFile:
        """Returns the tensors; a CheckpointError where a folder has none that can be read."""
        return tensor_files.read_weights(self.where, self.weights) if self.tensors is None else self.tensors


class Format(abc.ABC):
    """One library's weights. A subclass and its row in ``FORMATS`` are all that another source of weights takes."""

    name: str  # what the commands call it
    example: str = ""  # names of its tensors, for a message; empty if it is a folder's only, without state dicts
    suffixes: tuple[str, ...] = FILE_SUFFIXES  # of the single files that it is read from
    to_file: bool = False  # whether it is written as such a file
    to_folder: bool = True  # whether it is written as a folder
    keeps_ranges: bool = False  # whether those of a quantised network are written too
    weight_names: tuple[str, ...] = WEIGHT_NAMES  # what may lie in such a folder and hold weights
    hub_files: tuple[str, ...] = (*WEIGHT_NAMES[:2], "model-*.safetensors")  # to fetch, beside the configs

    @property
    def file_endings(self) -> tuple[str, ...]:
        """How the names end of files that it is written as; empty if it is not."""
        return self.suffixes if self.to_file else ()

    @property
    def is_written(self) -> bool:
        """Returns whether it is a target of conversion, not only a source."""
        return bool(self.file_endings) or self.to_folder

    def knows(self, names: Iterable[str]) -> bool:
        """Returns whether tensors of these names are the library's; no where it has none of its own."""
        return False

    @abc.abstractmethod
    def recognises(self, found: Found) -> bool:
        """Returns whether it is this format; at most one says so."""

    @abc.abstractmethod
    def open(self, found: Found) -> Source:
        """Reads what ``recognises`` said yes to, or raises a UserError."""

    def check_target(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - some can represent all there is
        """Raises a ConfigError that names the fields, if the library would build another network than this."""

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns the tensors of a checkpoint that ``check_target`` lets pass, by the library's names."""
        raise ConfigError(f"Weights of the format {self.name} are read, not written; choose another.")

    def texts(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Returns the small files that lie beside the tensors in a folder, by name."""
        processor = {} if checkpoint.processor_text is None else {PROCESSOR_NAME: checkpoint.processor_text}
        return processor | {CONFIG_NAME: checkpoint.to_config_text()}

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """Returns what the format cannot say of a checkpoint that it can otherwise represent, for the user."""
        return []

    def write_file(self, path: pathlib.Path, checkpoint: Checkpoint) -> None:
        """Writes the tensors into a file, whole or not at all."""
        tensor_files.write_tensor_file(path, self.state_dict(checkpoint))

    def write_weights(self, folder: pathlib.Path, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Writes the tensors into a folder that exists, and returns under which names; each whole or not at all."""
        tensor_files.write_tensor_file(folder / SAFETENSORS_NAME, self.state_dict(checkpoint))
        return (SAFETENSORS_NAME,)
