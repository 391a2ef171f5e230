"""``keras.applications.MobileNetV2`` ↔ tensors by Flax path, in every file of Keras' and in memory.

Variables are told by the order of the layers, which is that of the network in every file: names get lost in
``.weights.h5``, and differ between releases and in models that have the network as a part.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.base import Found
from flax_mnv2.weights.formats.tensorflow import by_width
from flax_mnv2.weights.source import Checkpoint, Source
from flax_mnv2.weights.tensorflow.keras_files import WEIGHTS_SUFFIX, write_weights_file
from flax_mnv2.weights.tensors import COUNTERS, Naming, Path, StateDict, write_state

_VARIABLE = re.compile(r"(.+/)?(vars/\d+|kernel|depthwise_kernel)")
_STEM = {
    "first_conv": ("Conv1", "bn_Conv1"),
    "conv_3x3": ("expanded_conv_depthwise", "expanded_conv_depthwise_BN"),
    "reduce_1x1": ("expanded_conv_project", "expanded_conv_project_BN"),
}
_BLOCK = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
_NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")  # in the order in which Keras stores them
_DENSE_VARIABLES = ("kernel", "bias")
_LEAVES = {"kernel": "kernel", "bias": "bias", "scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
_CLASSIFIER = "predictions"
# Every block has a shortcut where widths agree, and widths are not rounded first. There is no dropout.
_FIELDS: dict[str, Any] = {**pytorch.WIDTH_RULE, "batch_norm_momentum": 0.999, "classifier_dropout_prob": 0.0}
# What a .weights.h5 calls the layers of each kind: by class, numbered in order.
_CLASSES = {"conv": "conv2d", "depthwise": "depthwise_conv2d", "norm": "batch_normalization", "dense": "dense"}


class KerasFormat(pytorch.PyTorchFormat):
    """A file of Keras', or variables by name of one of its models; written as ``.weights.h5``."""

    name = "keras"
    example = "Conv1/kernel"
    suffixes = (".h5", ".hdf5", ".keras")
    file_endings = (WEIGHTS_SUFFIX,)
    to_folder = False
    weight_names = hub_files = ()
    targets = ("classification", "backbone")  # with and without its top
    needed_fields = MappingProxyType({**pytorch.NEEDED_FIELDS, "tf_padding": True, "layer_norm_eps": 1e-3})

    def knows(self, names: Iterable[str]) -> bool:
        """By how Keras calls kernels."""
        return any(map(_VARIABLE.fullmatch, names))

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors."""
        return found.tensors is not None and self.knows(found.tensors.state)

    def open(self, found: Found) -> Source:
        """Names the layers by their order; config from their widths."""
        if found.config is not None:
            raise ConfigError("A Keras model says its network itself; pass no config.")
        state = {name: _to_flax(name, value) for name, value in _named(found.read().state, found.where).items()}
        config, task = self._config_and_task(state)
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task=task,
            state=state,
            naming=self.naming(config),
            complete=False,
            usual_processor=self.make_processor(found) if config.num_channels == 3 else None,
        )

    def make_processor(self, found: Found) -> MobileNetV2ImageProcessor:
        """Returns pixels in [-1, 1], as ``keras.applications.mobilenet_v2.preprocess_input`` makes them."""
        return by_width.processor(224)

    def naming(self, config: MobileNetV2Config) -> Naming:
        """Returns the names in ``keras.applications``, with arrays as they lie in Flax."""
        del config  # the names are the same in all
        return Naming(_key_of, r"(bn_)?Conv1/|expanded_conv_|block_\d+_|Conv_1", torch_layout=False)

    def config_of(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any] | None = None) -> MobileNetV2Config:
        """By the widths of ``state``, whose arrays lie as in Flax."""
        return self._config_and_task(state)[0]

    def needs(self, state: Mapping[str, np.ndarray], config: MobileNetV2Config) -> tuple[str, dict[str, Any]]:
        """Its own fields, and at least one class."""
        return "keras.applications", {"num_labels": max(config.num_labels, 1)}

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns the variables by name, as they lie in Keras."""
        tensors = {path: value for path, value in checkpoint.tensors.items() if path[0] != COUNTERS}
        state = write_state(tensors, self.naming(checkpoint.config))
        return {name: _from_flax(name, value) for name, value in state.items()}

    def write_file(self, path: pathlib.Path, checkpoint: Checkpoint) -> None:
        """Writes a ``.weights.h5``, whose layers are numbered by class in their order."""
        state, stored = self.state_dict(checkpoint), {}
        for kind, names in _layers(len(checkpoint.config.layer_plan.blocks)).items():
            variables = {"norm": _NORM_VARIABLES, "dense": _DENSE_VARIABLES}.get(kind, ("kernel",))
            for index, layer in enumerate(names):
                number = f"_{index}" if index else ""
                for place, variable in enumerate(variables):
                    if f"{layer}/{variable}" in state:
                        stored[f"layers/{_CLASSES[kind]}{number}/vars/{place}"] = state[f"{layer}/{variable}"]
        write_weights_file(path, stored)

    def _config_and_task(self, state: Mapping[str, np.ndarray]) -> tuple[MobileNetV2Config, str]:
        return by_width.config_of(state, self.naming, ({},), **_FIELDS)


def _key_of(path: Path) -> str:
    collection, *modules, leaf = path
    layer = None if collection == COUNTERS else _layer_of(tuple(modules))
    if layer is None:
        return "/".join(path)
    return f"{layer}/{'beta' if modules[-1] == 'normalization' and leaf == 'bias' else _LEAVES[leaf]}"


def _layer_of(modules: Path) -> str | None:
    if modules == ("classifier",):
        return _CLASSIFIER
    if modules[0] != "mobilenet_v2":
        return None
    _, block, *rest = modules
    is_norm = rest[-1] == "normalization"
    if block == "conv_1x1":
        return "Conv_1_bn" if is_norm else "Conv_1"
    if block == "conv_stem":
        return _STEM[rest[0]][is_norm] if rest[0] in _STEM else None
    return f"block_{int(block.removeprefix('layer_')) + 1}_{_BLOCK[rest[0]]}{'_BN' if is_norm else ''}"


def _to_flax(name: str, value: np.ndarray) -> np.ndarray:
    """Depthwise kernels (3, 3, C, 1) → (3, 3, 1, C); everything else lies as in Flax."""
    return value.transpose(0, 1, 3, 2) if name.endswith("depthwise/kernel") and value.ndim == 4 else value


def _from_flax(name: str, value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_to_flax(name, value))


# ---- layers by their order -------------------------------------------------------------------------------------------


def _layers(num_blocks: int) -> dict[str, list[str]]:
    """Returns the names of the layers of each kind, in the order of the network."""
    conv, depthwise, norm = ["Conv1"], [], ["bn_Conv1"]
    for number in range(num_blocks + 1):
        block = f"block_{number}" if number else "expanded_conv"
        conv += [f"{block}_expand", f"{block}_project"] if number else [f"{block}_project"]
        depthwise.append(f"{block}_depthwise")
        norm += [f"{block}_{layer}_BN" for layer in ("expand", "depthwise", "project")[not number :]]
    return {
        "conv": [*conv, "Conv_1"],
        "depthwise": depthwise,
        "norm": [*norm, "Conv_1_bn"],
        "dense": [_CLASSIFIER],
    }


def _named(state: Mapping[str, np.ndarray], where: pathlib.Path) -> StateDict:
    """Returns the variables by the names of ``keras.applications``; those of other layers keep theirs."""
    found: dict[str, list[dict[str, str]]] = {kind: [] for kind in _CLASSES}
    for kind, variables in _grouped(state):
        found[kind].append(variables)
    if not found["depthwise"]:
        raise CheckpointError(f"{where} has no depthwise convolutions; expected the layers of a MobileNetV2 of Keras'.")
    names, renamed = _layers(len(found["depthwise"]) - 1), {}
    for kind, layers in found.items():
        for layer, variables in zip(names[kind], layers, strict=False):
            renamed |= {stored: f"{layer}/{variable}" for variable, stored in variables.items()}
    return {renamed.get(name, name): value for name, value in state.items()}


def _grouped(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the kind of each layer in order, and its variables' stored names by their own."""
    layers: dict[str, list[str]] = {}
    for name in sorted(state, key=_number_key):
        layers.setdefault(name.rpartition("/")[0], []).append(name)
    for names in layers.values():
        first = state[names[0]]
        if len(names) == len(_NORM_VARIABLES) and first.ndim == 1:
            by_name = {name.rpartition("/")[2]: name for name in names}
            is_named = by_name.keys() == set(_NORM_VARIABLES)
            yield "norm", by_name if is_named else dict(zip(_NORM_VARIABLES, names, strict=True))
        elif first.ndim == 4 and len(names) == 1:
            is_depthwise = first.shape[3] == 1 and first.shape[:2] != (1, 1)
            yield "depthwise" if is_depthwise else "conv", {"kernel": names[0]}
        elif first.ndim == 2 and len(names) == len(_DENSE_VARIABLES):
            yield "dense", dict(zip(_DENSE_VARIABLES, names, strict=True))


def _number_key(name: str) -> list[tuple[int, str]]:
    """Sorts numbered variables by their numbers; those that are named stay in the order of the file."""
    if "/vars/" not in name:
        return []
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
