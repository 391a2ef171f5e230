"""What the PyTorch libraries with a DeepLab on MobileNetV2 have in common.

Their tensors say widths, classes and layers, but neither output stride nor atrous rates nor the size of images: what
each library builds by default is taken, with a note, and ``output_stride=8`` (or any other field) goes with
``from_pretrained``.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE, DeepLabSpec
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.base import Format, Found
from flax_mnv2.weights.source import FIRST_KERNEL, Checkpoint, Source
from flax_mnv2.weights.tensor_files import TensorFile
from flax_mnv2.weights.tensors import Naming, Path, StateDict, torch_naming, write_state

HEAD = "segmentation_head"
_CLASSIFIER = ("params", HEAD, "classifier", "convolution", "bias")
_COMPARED = ("tf_padding", "layer_norm_eps", "hidden_act")  # of the backbone, beside its layer plan
# (layer of the head, "conv_3x3" or "reduce_1x1" of a separable convolution or "", "convolution" or "normalization")
PlaceOf = Callable[[str, str, str], str | None]
BackboneKey = Callable[[Path], str | None]


class DeepLabFormat(Format):
    """A library's DeepLabV3 and V3+, as state dicts in files or in memory."""

    to_file = True
    to_folder = False
    library: str  # its name in full
    prefix: str  # how names of its tensors begin, and no other library's
    output_strides: tuple[int, ...] = (8, 16)  # that its code builds

    def knows(self, names: Iterable[str]) -> bool:
        """By those that it alone has; on another backbone the tensors will not fit, and each is named."""
        return any(name.startswith(self.prefix) for name in names)

    @abc.abstractmethod
    def naming(self, config: MobileNetV2Config) -> Naming:
        """Returns the library's names in the network of ``config``."""

    @abc.abstractmethod
    def structure(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> MobileNetV2Config:
        """Returns the config that the names in ``state`` and a ``config.json`` beside it tell, but for widths."""

    @abc.abstractmethod
    def nearest(self, config: MobileNetV2Config) -> MobileNetV2Config:
        """Returns that network of the library, at the output stride of ``config``, which is most like it."""

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors."""
        return found.tensors is not None and self.knows(found.tensors.unwrapped(self.knows).state)

    def taken(self, tensors: TensorFile) -> TensorFile:
        """Returns the tensors that a model has; the notes say what was left out."""
        return tensors

    def open(self, found: Found) -> Source:
        """Config and processor follow from the tensors, and from what the library builds by default."""
        if found.config is not None:
            raise ConfigError(f"A {self.name} state dict says its network itself; pass no config.")
        tensors = self.taken(found.read().unwrapped(self.knows))
        config = self._config_of(tensors.state, found.values)
        notes, processor = tensors.notes, None
        if not self.is_told(found.values):
            rates = (config.deeplab or HUGGING_FACE).rates_at(config.output_stride)
            notes += (
                f"the tensors do not say the output stride; took {config.output_stride} with atrous rates {rates}, as "
                f"{self.library} builds it by default, and photos of {config.image_size} pixels; output_stride= and "
                "image_size= take others",
            )
        if config.num_channels == 3:
            mean, std = pytorch.IMAGENET_MEAN, pytorch.IMAGENET_STD
            processor = MobileNetV2ImageProcessor(do_resize=False, do_center_crop=False, image_mean=mean, image_std=std)
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task="segmentation",
            state=tensors.state,
            naming=self.naming(config),
            usual_processor=processor,
            notes=notes,
        )

    def is_told(self, values: Mapping[str, Any]) -> bool:
        """Returns whether a ``config.json`` says output stride and rates."""
        return False

    def _config_of(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> MobileNetV2Config:
        config = self.structure(state, values)
        names = self.naming(config)

        def width(path: Path, axis: int, default: int) -> int:
            tensor = state.get(names.key_of(path))
            return default if tensor is None or tensor.ndim <= axis else tensor.shape[axis]

        def layer(name: str, default: int) -> int:
            return width(("params", HEAD, name, "normalization", "scale"), 0, default)

        spec = config.deeplab.replace(channels=layer("conv_projection", config.deeplab.channels))
        if spec.low_level is not None:
            spec = spec.replace(low_level_channels=layer("conv_low_level", spec.low_level_channels))
        return config.replace(
            deeplab=spec, num_labels=width(_CLASSIFIER, 0, 21), num_channels=width(FIRST_KERNEL, 1, config.num_channels)
        )

    def check_target(self, checkpoint: Checkpoint) -> None:
        """Compares with the nearest network that the library has."""
        config, needed = checkpoint.config, self.nearest(checkpoint.config)
        rows = {"task": ("segmentation", checkpoint.task)}
        if config.output_stride not in self.output_strides:
            rows["output_stride"] = (" or ".join(map(str, self.output_strides)), config.output_stride)
        rows |= {name: (getattr(needed, name), getattr(config, name)) for name in _COMPARED}
        theirs, ours = (_fields(at) for at in (needed, config))
        rows |= {f"deeplab.{name}": (theirs[name], ours[name]) for name in theirs}
        rows |= pytorch.plan_differences(needed=needed.layer_plan, found=config.layer_plan)
        pytorch.check_rows(self.library, rows, to="flax")

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns the tensors by the library's names."""
        return write_state(checkpoint.tensors, self.naming(checkpoint.config))

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """Returns what no file of tensors can say."""
        config = checkpoint.config
        rates = (config.deeplab or HUGGING_FACE).rates_at(config.output_stride)
        return [
            f"a {self.name} file holds tensors only: class names and preprocessing stay behind, and what the module is "
            f"to be built with, output stride {config.output_stride} and atrous rates {rates}"
        ]


def _fields(config: MobileNetV2Config) -> dict[str, Any]:
    """Returns those of the head, with the rates that it has at the output stride."""
    spec = config.deeplab or HUGGING_FACE
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(DeepLabSpec)}
    del fields["rates_follow_stride"]
    return fields | {"atrous_rates": spec.rates_at(config.layer_plan.blocks[-1].output_stride)}


def deeplab_naming(backbone_key: BackboneKey, place_of: PlaceOf, *, backbone: str) -> Naming:
    """Returns the naming of a library from its name for a module of the backbone, and for a part of the head."""

    def prefix_of(modules: Path) -> str | None:
        if modules[0] == "mobilenet_v2":
            return backbone_key(modules)
        if modules[0] != HEAD:
            return None
        _, layer, *rest = modules
        kinds = [part for part in rest if part in ("convolution", "normalization")]
        parts = [part for part in rest if part not in kinds]
        return place_of(layer, *(parts or [""]), *(kinds or ["convolution"]))

    return torch_naming(prefix_of, backbone=backbone)
