"""What the libraries with an SSDLite on MobileNetV2 have in common.

Their tensors say widths, classes and how many anchors a place has, but neither the anchors' sizes nor the coder and the
scores: those of the library's published network are taken, with a note; ``config=`` says others.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flax_mnv2.class_names import usual_names
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DECIDE_OUTPUTS, PRESETS, DetectionSpec
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.base import Format, Found
from flax_mnv2.weights.source import FIRST_KERNEL, Checkpoint, Source
from flax_mnv2.weights.tensors import Naming, StateDict, write_state

HEAD = "detection_head"
_COMPARED = ("tf_padding", "layer_norm_eps", "hidden_act", "output_stride")  # of the backbone, beside its layer plan


class DetectionFormat(Format):
    """A library's SSDLite, as state dicts in files or in memory."""

    to_file = True
    to_folder = False
    library: str  # its name in full
    preset: str  # of ``config.detection.PRESETS``
    complete: bool = True  # whether the counters of batch norm are among its tensors
    side: int  # of the square images that the published network takes
    mean_and_std: tuple[Sequence[float], Sequence[float]]  # of its images, once they are scaled to [0, 1]

    @abc.abstractmethod
    def naming(self, config: MobileNetV2Config) -> Naming:
        """Returns the library's names in the network of ``config``."""

    @abc.abstractmethod
    def bases(self) -> Sequence[MobileNetV2Config]:
        """Returns configs of the library's networks, at any multiplier, the likelier first."""

    def from_library(self, state: StateDict) -> StateDict:
        """Returns tensors in the layout of ``naming``."""
        return state

    def ranges(self, state: StateDict) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """Returns (min, max) of what was quantised in training, by name, among the library's tensors."""
        return {}

    def to_library(self, state: StateDict) -> StateDict:
        """Does the inverse of ``from_library``."""
        return state

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors."""
        return found.tensors is not None and self.knows(found.tensors.unwrapped(self.knows).state)

    def open(self, found: Found) -> Source:
        """Config and processor follow from the tensors, and from the network that the library published."""
        tensors = found.read().unwrapped(self.knows)
        state, notes, config = self.from_library(tensors.state), tensors.notes, found.config
        if config is None:
            config = self._config_of(state)
            note = f"the tensors do not say anchors, coder and scores; took those that {self.library} published"
            notes = (*notes, note)
        processor = None
        if config.num_channels == 3:
            size, (mean, std) = {"height": self.side, "width": self.side}, self.mean_and_std
            processor = MobileNetV2ImageProcessor(size=size, do_center_crop=False, image_mean=mean, image_std=std)
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task="detection",
            state=state,
            naming=self.naming(config),
            complete=self.complete,
            usual_processor=processor,
            notes=notes,
            ranges=self.ranges(tensors.state),
        )

    def _config_of(self, state: Mapping[str, np.ndarray]) -> MobileNetV2Config:
        bases = [base.replace(detection=PRESETS[self.preset], image_size=self.side) for base in self.bases()]
        for base in bases:
            widths = pytorch.state_widths(state, self.naming(base), base.layer_plan)
            multiplier = pytorch.find_depth_multiplier(base, widths)
            if multiplier is not None:
                config = pytorch.with_fewest_own_fields(base.replace(depth_multiplier=multiplier), search=False)
                break
        else:
            config = bases[0].replace(depth_multiplier=pytorch.nearest_depth_multiplier(bases[0], widths))
        names, spec = self.naming(config), config.detection
        found = [_width(state, names, f"box_{index}_predictor") // 4 for index in range(spec.num_maps)]
        kinds = [len(each) for each in spec.anchors]
        if found != kinds:
            raise ConfigError(
                f"The tensors have {found} anchors a place on the maps; those that {self.library} published have "
                f"{kinds}. Sizes of anchors are not among the tensors: pass config=MobileNetV2Config(…, detection=…)."
            )
        num_labels = _width(state, names, "class_0_predictor") // kinds[0] - 1
        first = state.get(names.key_of(FIRST_KERNEL))
        if first is not None and first.ndim == 4:
            config = config.replace(num_channels=names.to_flax("", first).shape[2])
        labels = usual_names(num_labels, "detection")
        return config.replace(**({"id2label": labels} if labels else {"num_labels": max(num_labels, 1)}))

    def check_target(self, checkpoint: Checkpoint) -> None:
        """Compares with the library's network of the same multiplier."""
        config, spec = checkpoint.config, checkpoint.config.detection or DetectionSpec()
        rows: dict[str, tuple[Any, Any]] = {"task": ("detection", checkpoint.task)}
        needed = [base.replace(depth_multiplier=config.depth_multiplier) for base in self.bases()]
        nearest = next((base for base in needed if base.layer_plan == config.layer_plan), needed[0])
        rows |= {name: (getattr(nearest, name), getattr(config, name)) for name in _COMPARED}
        theirs = PRESETS[self.preset].replace(anchors=spec.anchors)  # which are an argument of the library
        rows |= {f"detection.{name}": (getattr(theirs, name), getattr(spec, name)) for name in DECIDE_OUTPUTS}
        rows |= pytorch.plan_differences(needed=nearest.layer_plan, found=config.layer_plan)
        pytorch.check_rows(self.library, rows, to="flax")

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns the model's tensors by the library's names."""
        tensors = {path: checkpoint.tensors[path] for path in checkpoint.tensors if self.has(path)}
        return self.to_library(write_state(tensors, self.naming(checkpoint.config)))

    def has(self, path: tuple[str, ...]) -> bool:
        """Returns whether the library keeps a tensor at this path."""
        return True

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """Returns what no file of tensors can say."""
        notes = [f"a {self.name} file holds tensors only: class names and preprocessing stay behind"]
        spec = checkpoint.config.detection or DetectionSpec()
        if spec.anchors != PRESETS[self.preset].anchors:
            notes.append(
                f"the anchors are not those that {self.library} published; build its network with {spec.anchors}"
            )
        return notes


def _width(state: Mapping[str, np.ndarray], names: Naming, layer: str) -> int:
    """Returns the channels of a predictor; 0 where there is none."""
    bias = state.get(names.key_of(("params", HEAD, layer, "convolution", "bias")))
    return bias.shape[0] if bias is not None and bias.ndim == 1 else 0
