"""Weights as they lie on disk, opened: what they are, their tensors by their own names, and their image processor."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_text
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.weights.checkpoint import (
    Checkpoint,
    last_conv_shapes,
    make_model,
    variable_shapes,
    with_pytorch_extras,
)
from flax_mnv2.weights.tensors import Naming, Shapes, StateDict, Tensors, counter_shapes, read_state, widened

_COUNTER = re.compile(r"[./]num_batches_tracked$")
_DTYPE_FIELDS = ("dtype", "torch_dtype")  # what transformers calls the type of the stored weights, now and before


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder, file or state dict, read but not yet converted.

    Attributes:
      format: its format's name, a key of ``FORMATS``.
      where: the folder or file.
      config: the architecture.
      task: what the model does; None where the config does not say.
      state: every tensor by the name it has there.
      naming: of ``state``.
      complete: whether ``state`` is all that its library would write; a run's checkpoint has the variables alone.
      config_text: its ``config.json`` if that is a config of ours and transformers'.
      processor_folder: where a ``preprocessor_config.json`` of these weights lies, if there is one.
      usual_processor: what prepares images where that file is absent: as the run noted, or as its library does.
      notes: what was done on the way, in words for the user.
    """

    format: str
    where: pathlib.Path
    config: MobileNetV2Config
    task: str | None
    state: StateDict
    naming: Naming
    complete: bool = True
    config_text: str | None = None
    processor_folder: pathlib.Path | None = None
    usual_processor: MobileNetV2ImageProcessor | None = None
    notes: tuple[str, ...] = ()

    @property
    def processor_text(self) -> str | None:
        """The ``preprocessor_config.json`` as it lies there, or would lie there; None where nothing is known."""
        text = None if self.processor_folder is None else read_text_file(self.processor_folder / PROCESSOR_NAME)
        if text is None and self.usual_processor is not None:
            return self.usual_processor.to_json_string()
        return text

    def processor(self) -> MobileNetV2ImageProcessor:
        """What prepares images for these weights.

        Raises:
          CheckpointError: nothing is known of it, or the file that says so cannot be read.
          ConfigError: a setting in that file is out of its range.
        """
        folder = self.processor_folder
        if self.usual_processor is not None and (folder is None or not (folder / PROCESSOR_NAME).exists()):
            return self.usual_processor
        if folder is None:
            raise CheckpointError(
                f"Nothing is known of how images are prepared for {self.where}, of {self.config.num_channels} channels."
            )
        return MobileNetV2ImageProcessor.from_pretrained(folder)

    def select(self, shapes: Shapes, *, backbone_only: bool = False) -> Tensors:
        """The variables of a model, strictly; what no model of ours reads is left out.

        Args:
          shapes: of the model's variables, by path.
          backbone_only: whether to leave out heads too.

        Raises:
          CheckpointError: tensors are missing, left over or of another shape or type; each named.
        """
        unused = set() if any("conv_1x1" in path for path in shapes) else self._keys(last_conv_shapes(self.config))
        state = {
            key: value
            for key, value in self.state.items()
            if not _COUNTER.search(key) and key not in unused and (not backbone_only or self.naming.is_backbone(key))
        }
        return read_state(state, shapes, self.naming, source=str(self.where))

    def checkpoint(self) -> Checkpoint:
        """Every tensor, strictly.

        Raises:
          CheckpointError: tensors are missing, left over or of another shape or type; each named.
        """
        task = self.task or self.task_of_names()
        shapes = variable_shapes(make_model(self.config, task))
        if task == "segmentation" and self._keys(last_conv_shapes(self.config)) & self.state.keys():
            shapes |= last_conv_shapes(self.config)
        counters = counter_shapes(shapes)
        shapes |= {path: counters[path] for path in counters if self.naming.key_of(path) in self.state}
        tensors = read_state(self.state, shapes, self.naming, source=str(self.where))
        if not self.complete:
            tensors = with_pytorch_extras(self.config, task, tensors)
        config, config_text = self.config, self.config_text
        if widened(self.state):
            stated = {name: "float32" for name in _DTYPE_FIELDS if name in config.extra}
            config, config_text = config.replace(extra={**config.extra, **stated}), None
        return Checkpoint(config, task, tensors, config_text, self.processor_text)

    def task_of_names(self) -> str:
        """The task of the head that the tensors have; ``"backbone"`` where there is none."""
        for task, head in (("segmentation", "segmentation_head"), ("classification", "classifier")):
            if any(re.match(rf"(\w+/)?{head}[./]", key) for key in self.state):
                return task
        return "backbone"

    def _keys(self, shapes: Shapes) -> set[str]:
        return {self.naming.key_of(path) for path in shapes}


def read_text_file(path: pathlib.Path) -> str | None:
    """A small text file beside weights; None where there is none.

    Raises:
      CheckpointError: it cannot be read.
    """
    try:
        return read_text(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from None
