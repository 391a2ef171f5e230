"""Weights as they lie on disk, opened: what they are, and their tensors by their own names."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.weights.checkpoint import (
    Checkpoint,
    last_conv_shapes,
    make_model,
    variable_shapes,
    with_reference_extras,
)
from flax_mnv2.weights.tensors import Naming, Shapes, StateDict, Tensors, counter_shapes, read_state, widened

_COUNTER = re.compile(r"[./]num_batches_tracked$")
_BACKBONE = re.compile(r"(\w+/)?mobilenet_v2[./]")
_DTYPE_FIELDS = ("dtype", "torch_dtype")  # what transformers calls the type of the stored weights, now and before


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder or file, read but not yet converted.

    Attributes:
      format: ``hf``, ``torchvision``, ``timm`` or ``flax``.
      where: the folder or file.
      config: the architecture.
      task: what the model does; None where the config does not say.
      state: every tensor by the name it has there.
      naming: of ``state``.
      complete: whether ``state`` is all that its library would write; a run's checkpoint has the variables alone.
      config_text: its ``config.json`` if that is a config of ours and transformers'.
      processor_text: its ``preprocessor_config.json``, or what the library's own preprocessing is in that form.
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
    processor_text: str | None = None
    notes: tuple[str, ...] = ()

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
            if not _COUNTER.search(key) and key not in unused and (not backbone_only or _BACKBONE.match(key))
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
            tensors = with_reference_extras(self.config, task, tensors)
        config, config_text = self.config, self.config_text
        if widened(self.state):
            stated = {name: "float32" for name in _DTYPE_FIELDS if name in config.extra}
            config, config_text = config.replace(extra={**config.extra, **stated}), None
        return Checkpoint(config, task, tensors, config_text, self.processor_text)

    def _keys(self, shapes: Shapes) -> set[str]:
        return {self.naming.key_of(path) for path in shapes}

    def task_of_names(self) -> str:
        """The task of the head that the tensors have; ``"backbone"`` where there is none."""
        for task, head in (("segmentation", "segmentation_head"), ("classification", "classifier")):
            if any(re.match(rf"(\w+/)?{head}[./]", key) for key in self.state):
                return task
        return "backbone"
