"""TF-slim's MobileNetV2 and TF DeepLab's, by the names of their variables, out of checkpoints and frozen graphs.

``MobilenetV2/expanded_conv_3/expand`` is our ``layer_02/expand_1x1``; the stem is ``Conv`` and ``expanded_conv``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.layer_plan import LayerPlan
from flax_mnv2.weights.formats.base import Format, Found
from flax_mnv2.weights.formats.deeplab import tensorflow as deeplab
from flax_mnv2.weights.formats.tensorflow import by_width
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.tensors import Naming, Path, StateDict

ROOT = "MobilenetV2/"
_STEM = {"first_conv": "Conv", "conv_3x3": "expanded_conv/depthwise", "reduce_1x1": "expanded_conv/project"}
_BLOCK = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
_LEAVES = {
    ("params", "kernel"): "weights",
    ("params", "bias"): "biases",
    ("params", "scale"): "BatchNorm/gamma",
    ("params", "normalization_bias"): "BatchNorm/beta",
    ("batch_stats", "mean"): "BatchNorm/moving_mean",
    ("batch_stats", "var"): "BatchNorm/moving_variance",
}
_CLASSIFIER = f"{ROOT}Logits/Conv2d_1c_1x1"
BACKBONE = rf"{ROOT}(Conv|expanded_conv)"
_RANGE = re.compile(r"(?P<tensor>.+)/(?P<end>min|max)")  # of fake quantisation, beside what it quantises


class TfSlimFormat(Format):
    """Variables of TF-slim's ``mobilenet_v2`` or of TF DeepLab on it; read, not written."""

    name = "tf"
    example = "MobilenetV2/Conv/weights"
    suffixes = (".index", ".pb", ".tgz", ".gz")
    to_folder = False
    weight_names = hub_files = ()

    def knows(self, names: Iterable[str]) -> bool:
        """By those of the backbone, which begin the name."""
        return any(name.startswith(ROOT) for name in names)

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors."""
        return found.tensors is not None and self.knows(found.tensors.state)

    def open(self, found: Found) -> Source:
        """Config from the widths; ranges of fake quantisation apart."""
        if found.config is not None:
            raise ConfigError("TensorFlow's variables say their network themselves; pass no config.")
        tensors = found.read()
        state = to_flax(tensors.state)
        notes = tensors.notes
        config, task = by_width.config_of(state, lambda config: NAMING, classifier_dropout_prob=0.2)
        if task == "segmentation":
            config, note = _as_deeplab(config, state)
            notes = (*notes, note)
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task=task,
            state=state,
            naming=NAMING,
            complete=False,
            usual_processor=by_width.processor(config.image_size, task) if config.num_channels == 3 else None,
            notes=notes,
            ranges=_with_places(ranges(tensors.state), config.layer_plan),
        )


def scope_naming(scope_of: Callable[[Path], str | None], *, backbone: str) -> Naming:
    """Returns the naming of TF-slim's variables from the scope of a module of ours; None keeps our own."""

    def key_of(path: Path) -> str:
        collection, *modules, leaf = path
        if modules[-1] == "normalization" and leaf == "bias":
            leaf = "normalization_bias"
        scope, variable = scope_of(tuple(modules)), _LEAVES.get((collection, leaf))
        if scope is None or variable is None:
            return "/".join(path)
        if variable == "weights" and scope.endswith("depthwise"):
            variable = "depthwise_weights"
        return f"{scope}/{variable}"

    return Naming(key_of, backbone, torch_layout=False)


def backbone_scope(modules: Path) -> str | None:
    """Returns the scope of a module of the backbone, below ``ROOT``."""
    _, block, *rest = modules
    if block == "conv_1x1":
        return "Conv_1"
    if block == "conv_stem":
        return _STEM.get(rest[0])
    return f"expanded_conv_{int(block.removeprefix('layer_')) + 1}/{_BLOCK[rest[0]]}"


def _scope_of(modules: Path) -> str | None:
    if modules == ("classifier",):
        return _CLASSIFIER
    if modules[0] != "mobilenet_v2":
        _, layer, *rest = modules
        return deeplab.scope_of(layer, next((part for part in rest if part in deeplab.SEPARABLE), ""))
    place = backbone_scope(modules)
    return None if place is None else f"{ROOT}{place}"


NAMING = scope_naming(_scope_of, backbone=BACKBONE)  # the same in all networks


def _as_deeplab(config: MobileNetV2Config, state: Mapping[str, np.ndarray]) -> tuple[MobileNetV2Config, str]:
    """Returns the config with the head that ``state`` has and what TF DeepLab builds it with, and a note on that."""
    head = deeplab.head_of({name: value.shape for name, value in state.items()}, config.layer_plan)
    config = config.replace(
        deeplab=head,
        output_stride=by_width.OUTPUT_STRIDE,
        image_size=513,
        classifier_dropout_prob=0.1,
        head_batch_norm_momentum=0.9997,
    )
    what, fields = f"output stride {config.output_stride}", "output_stride="
    if head is not None and head.atrous_rates:
        what, fields = f"{what} with atrous rates {head.atrous_rates}", f"{fields}, deeplab="
    return config, f"{what} is TF DeepLab's usual one; the checkpoint does not say it ({fields})"


def to_flax(state: StateDict) -> StateDict:
    """Returns arrays as they lie in Flax, without the ranges of fake quantisation."""
    return {name: turned(name, value) for name, value in state.items() if not _RANGE.fullmatch(name)}


def turned(name: str, value: np.ndarray) -> np.ndarray:
    """Depthwise kernels (3, 3, C, 1) → (3, 3, 1, C); the classifier's (1, 1, in, out) → (in, out)."""
    if name.endswith("depthwise_weights") and value.ndim == 4:
        return np.ascontiguousarray(value.transpose(0, 1, 3, 2))
    if name == f"{_CLASSIFIER}/weights" and value.shape[:2] == (1, 1):
        return value[0, 0]
    return value


def ranges(state: StateDict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (min, max) by the name of what is quantised, such as ``…/expand/weights_quant``."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        if parts := _RANGE.fullmatch(name):
            found.setdefault(parts["tensor"], {})[parts["end"]] = value
    return {name: (ends["min"], ends["max"]) for name, ends in found.items() if len(ends) == 2}


def _with_places(
    found: dict[str, tuple[np.ndarray, np.ndarray]], plan: LayerPlan
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the ranges, those of activations in the backbone and of the logits by their place in our models too.

    TF contrib calls the range behind an activation ``act_quant``, that of a projection before a shortcut
    ``conv_quant``, and that of their sum ``add_quant``. An average has the range of what it is taken of.
    """
    parts = {"conv_stem": _STEM, **{block.name: _BLOCK for block in plan.blocks}}
    modules = [("mobilenet_v2", layer, part) for layer, names in parts.items() for part in names]
    names: dict[str, tuple[str, ...]] = {}
    for path in (*modules, ("mobilenet_v2", "conv_1x1"), ("classifier",)):
        scope = _scope_of(path)
        names["/".join((*path, "output"))] = (f"{scope}/conv_quant", f"{scope}/act_quant")
        if path[-1] == "reduce_1x1":
            names["/".join((*path[:-1], "sum"))] = (f"{scope.rpartition('/')[0]}/add_quant",)
    names["pool"] = (f"{_scope_of(('mobilenet_v2', 'conv_1x1'))}/act_quant",)
    places = {place: next((name for name in options if name in found), None) for place, options in names.items()}
    return found | {place: found[name] for place, name in places.items() if name is not None}
