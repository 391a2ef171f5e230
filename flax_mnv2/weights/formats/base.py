"""What a format of weights is: how it is recognised, opened and written."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.weights import tensor_files
from flax_mnv2.weights.checkpoint import Checkpoint
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.tensor_files import FILE_SUFFIXES, SAFETENSORS_NAME, WEIGHT_NAMES, TensorFile
from flax_mnv2.weights.tensors import StateDict

CONFIG_NAME = "config.json"


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights whose format is not known yet: a folder, a file, or a state dict in memory.

    Attributes:
      where: the folder or file; of a state dict, what a message calls it.
      folder: where a ``config.json`` lies if there is one; None of a state dict.
      values: contents of that ``config.json``; empty where there is none, or none that can be read.
      tensors: of a PyTorch or safetensors file, or a state dict; None where the format itself knows how to read them.
      config: what a caller gave with a state dict.
    """

    where: pathlib.Path
    folder: pathlib.Path | None
    values: Mapping[str, Any]
    tensors: TensorFile | None = None
    config: MobileNetV2Config | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self.folder not in (None, self.where)

    def read(self) -> TensorFile:
        """The tensors; a CheckpointError where a folder has none that can be read."""
        return tensor_files.read_weights(self.where) if self.tensors is None else self.tensors


@dataclasses.dataclass(frozen=True)
class Content:
    """What a format writes of a checkpoint, all of it known before anything is touched.

    Attributes:
      state: tensors by the format's names.
      config_text: of ``config.json``.
      processor_text: of ``preprocessor_config.json``; None where there is none.
      extra: tensors that the model does not have, where the format keeps them apart.
    """

    state: StateDict
    config_text: str = ""
    processor_text: str | None = None
    extra: StateDict = dataclasses.field(default_factory=dict)


class Format(abc.ABC):
    """One library's weights. A subclass and its row in ``FORMATS`` are all that another source of weights takes.

    Attributes:
      name: what the commands call it.
      example: names of its tensors, for a message; empty if it is a folder's format only, without state dicts.
      needs_config: whether its tensors alone do not say the network, so that a config has to lie beside them.
      suffixes: of the single files that it is read from.
      to_file: whether it is written as such a file.
      to_folder: whether it is written as a folder.
      weight_names: what may lie in such a folder and hold weights.
      hub_files: patterns of what to fetch from the hub for it, beside the configs.
    """

    name: str
    example: str = ""
    needs_config: bool = False
    suffixes: tuple[str, ...] = FILE_SUFFIXES
    to_file: bool = False
    to_folder: bool = True
    weight_names: tuple[str, ...] = WEIGHT_NAMES
    hub_files: tuple[str, ...] = (*WEIGHT_NAMES[:2], "model-*.safetensors")

    @abc.abstractmethod
    def recognises(self, found: Found) -> bool:
        """Whether it is this format; at most one says so."""

    @abc.abstractmethod
    def open(self, found: Found) -> Source:
        """Reads what ``recognises`` said yes to.

        Raises:
          CheckpointError: it cannot be read, or what it needs beside the tensors is missing.
          ConfigError: its config is for another model.
        """

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
