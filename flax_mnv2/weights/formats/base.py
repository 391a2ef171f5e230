"""What a format of weights is: how it is recognised, opened and written."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.weights import tensor_files
from flax_mnv2.weights.source import Checkpoint, Source
from flax_mnv2.weights.tensor_files import FILE_SUFFIXES, SAFETENSORS_NAME, WEIGHT_NAMES, TensorFile
from flax_mnv2.weights.tensors import StateDict

CONFIG_NAME = "config.json"


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights whose format is not known yet: a folder, a file, or a state dict in memory."""

    where: pathlib.Path  # the folder or file; of a state dict, what a message calls it
    folder: pathlib.Path | None  # where a config.json lies if there is one; None of a state dict
    values: Mapping[str, Any]  # of that config.json; empty where there is none, or none that can be read
    tensors: TensorFile | None = None  # read already, but where only the format knows how
    config: MobileNetV2Config | None = None  # what a caller gave with a state dict

    @property
    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self.folder not in (None, self.where)

    def read(self) -> TensorFile:
        """The tensors; a CheckpointError where a folder has none that can be read."""
        return tensor_files.read_weights(self.where) if self.tensors is None else self.tensors


@dataclasses.dataclass(frozen=True)
class Content:
    """What a format writes of a checkpoint, all of it known before anything is touched."""

    state: StateDict
    config_text: str = ""
    processor_text: str | None = None
    extra: StateDict = dataclasses.field(default_factory=dict)  # what the model does not have, if that is kept apart


class Format(abc.ABC):
    """One library's weights. A subclass and its row in ``FORMATS`` are all that another source of weights takes."""

    name: str  # what the commands call it
    example: str = ""  # names of its tensors, for a message; empty if it is a folder's only, without state dicts
    needs_config: bool = False  # whether the tensors alone do not say the network
    suffixes: tuple[str, ...] = FILE_SUFFIXES  # of the single files that it is read from
    to_file: bool = False  # whether it is written as such a file
    to_folder: bool = True  # whether it is written as a folder
    weight_names: tuple[str, ...] = WEIGHT_NAMES  # what may lie in such a folder and hold weights
    hub_files: tuple[str, ...] = (*WEIGHT_NAMES[:2], "model-*.safetensors")  # to fetch, beside the configs

    @abc.abstractmethod
    def recognises(self, found: Found) -> bool:
        """Whether it is this format; at most one says so."""

    @abc.abstractmethod
    def open(self, found: Found) -> Source:
        """Reads what ``recognises`` said yes to, or raises a UserError."""

    def check_target(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - some can represent all there is
        """Raises a ConfigError that names the fields, if the library would build another network than this."""

    @abc.abstractmethod
    def content(self, checkpoint: Checkpoint) -> Content:
        """What to write of a checkpoint that ``check_target`` lets pass."""

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """What the format cannot say of a checkpoint that it can otherwise represent, in words for the user."""
        return []

    def write_file(self, path: pathlib.Path, content: Content) -> None:
        """Writes the tensors into a file, whole or not at all."""
        tensor_files.write_tensor_file(path, content.state)

    def write_weights(self, folder: pathlib.Path, content: Content) -> tuple[str, ...]:
        """Writes the tensors into a folder that exists, and returns under which names; each whole or not at all."""
        tensor_files.write_tensor_file(folder / SAFETENSORS_NAME, content.state)
        return (SAFETENSORS_NAME,)
