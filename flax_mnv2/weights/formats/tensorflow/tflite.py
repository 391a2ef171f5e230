"""TFLite's classifiers, DeepLabs and SSDLites, float or quantised, whose batch norm is merged into the convolutions.

The network that follows from the widths and strides of a graph's layers is compared with the graph: strides, dilations,
shortcuts, paddings, activations.
"""

from __future__ import annotations

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.checks import OUTPUT_STRIDES
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats.base import Format, Found
from flax_mnv2.weights.formats.tensorflow import by_width
from flax_mnv2.weights.formats.tensorflow.detector import with_detector
from flax_mnv2.weights.formats.tensorflow.graph_layers import Layers, name_layers, shortcut
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.tensorflow.tflite import Graph
from flax_mnv2.weights.tensors import FLAX_NAMING, StateDict

_INPUT_TOLERANCE = 0.05
_USUAL_SIZE = {"classification": 224, "segmentation": 513, "detection": 300, "backbone": 224}


class TfliteFormat(Format):
    """A TFLite file; read, not written."""

    name = "tflite"
    suffixes = (".tflite",)
    to_folder = False
    weight_names = hub_files = ()

    def recognises(self, found: Found) -> bool:
        """By its graph."""
        return found.tensors is not None and found.tensors.graph is not None

    def open(self, found: Found) -> Source:
        """Layers by their order, config from their widths and strides."""
        graph = found.read().graph
        if found.config is not None:
            raise ConfigError("A TFLite file says its network itself; pass no config.")
        try:
            return self._open(found, graph)
        except CheckpointError as error:
            raise CheckpointError(
                f"{found.where} is no MobileNetV2 that is known here: {str(error).rstrip('.')}."
            ) from None

    def _open(self, found: Found, graph: Graph) -> Source:
        layers = name_layers(graph)
        state = _state_of(layers)
        config, task = by_width.config_of(state, lambda config: FLAX_NAMING, classifier_dropout_prob=0.2)
        size = _image_size(graph) or (_USUAL_SIZE[task],) * 2
        config = _checked(config, layers).replace(image_size=size[0] if size[0] == size[1] else size)
        labels, notes = graph.labels, ()
        if task == "detection":
            config, notes = with_detector(config, graph, layers)
            labels = labels[1:] if len(labels) == config.num_labels + 1 else labels  # less that of the background
        if len(labels) == config.num_labels:
            config = config.replace(id2label=dict(enumerate(labels)))
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task=task,
            state=state,
            naming=FLAX_NAMING,
            complete=False,
            usual_processor=_processor(graph, max(size), task) if config.num_channels == 3 else None,
            notes=notes,
            folded=True,
            ranges=_ranges(graph, layers),
        )


def _state_of(layers: Layers) -> StateDict:
    """Returns kernels and biases by path, those of a classifier's 1×1 convolution as a matrix."""
    state = {}
    for name, layer in layers.items():
        kernel, bias = layer.kernel_and_bias()
        if name == "classifier":
            kernel = kernel[0, 0] if kernel.ndim == 4 and kernel.shape[:2] == (1, 1) else kernel
        else:
            name = f"{name}/convolution"
        state |= {f"params/{name}/kernel": kernel, f"params/{name}/bias": bias}
    return state


# ---- the network that follows, compared with the graph ---------------------------------------------------------------


def _checked(config: MobileNetV2Config, layers: Layers) -> MobileNetV2Config:
    """Returns the config with output stride and padding of the graph; a CheckpointError where it is another network."""
    in_backbone = (layer for name, layer in layers.items() if name.startswith("mobilenet_v2/"))
    strided = [layer for layer in in_backbone if layer.operation.stride != 1]
    output_stride = 2 ** len(strided)
    rules = [rule for rule in (True, False) if all(layer.is_padded(tf_padding=rule) for layer in strided)]
    if output_stride not in OUTPUT_STRIDES or not rules:
        raise CheckpointError("its strides or paddings are those of another network")
    config = config.replace(output_stride=output_stride, tf_padding=rules[0])
    plan = config.layer_plan
    if not any(name.endswith(f"{plan.blocks[-1].name}/reduce_1x1") for name in layers):
        raise CheckpointError(f"it has fewer blocks than {len(plan.blocks)}")
    for block in plan.blocks:
        place = f"mobilenet_v2/{block.name}"
        middle = layers[f"{place}/conv_3x3"]
        found = (middle.operation.stride, middle.dilation, shortcut(layers, place) is not None)
        if found != (block.stride, block.dilation, block.residual):
            raise CheckpointError(
                f"{block.name} has stride, dilation and shortcut {found}, expected "
                f"{(block.stride, block.dilation, block.residual)}"
            )
    for name, layer in layers.items():
        expected = _activation_of(name)
        if not layer.acts_as(expected):
            raise CheckpointError(f"{name} has another activation than {expected or 'none'}")
    return config


def _activation_of(name: str) -> str | None:
    if name.endswith(("reduce_1x1", "classifier", "predictor")):
        return None
    return "relu" if name.startswith("segmentation_head") else "relu6"


def _processor(graph: Graph, side: int, task: str) -> MobileNetV2ImageProcessor:
    """Normalises as the file's metadata say, else as its quantised input has real numbers, else to [-1, 1].

    Ends that quantisation moved by less than a few steps stand for -1 and 1.
    """
    said, ends = graph.normalization, _input_range(graph)
    if said is not None and len(said.mean) in (1, 3):
        mean, std = ([level / 255 for level in levels] * (3 // len(levels)) for levels in (said.mean, said.std))
        return by_width.processor(side, task, mean=mean, std=std)
    low, high = (-1.0, 1.0) if ends is None else (float(end[0]) for end in ends)
    if high <= low or np.allclose((low, high), (-1, 1), atol=_INPUT_TOLERANCE):
        return by_width.processor(side, task)
    return by_width.processor(side, task, mean=[-low / (high - low)] * 3, std=[1 / (high - low)] * 3)


def _input_range(graph: Graph) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (min, max) of a quantised input, or of what an input of floats is quantised to first."""
    if not graph.inputs:
        return None
    makes = (operation.outputs[0] for operation in graph.consumers(graph.inputs[0]) if operation.kind == "quantize")
    ends = (graph.tensors[tensor].range() for tensor in (graph.inputs[0], *makes))
    return next((found for found in ends if found is not None), None)


def _image_size(graph: Graph) -> tuple[int, int] | None:
    """Returns height and width of the images, where the file fixes them."""
    shape = graph.tensors[graph.inputs[0]].shape if graph.inputs else ()
    return (shape[1], shape[2]) if len(shape) == 4 and min(shape[1:3]) > 1 else None


def _ranges(graph: Graph, layers: Layers) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (min, max) of what a quantised network of ours rounds, and of kernels, by path; empty of a float file."""
    found = {"mobilenet_v2/input": _input_range(graph)}
    for name, layer in layers.items():
        found[f"{name}/kernel"] = graph.constant(layer.operation.inputs[1]).range(narrow=True)
        found[f"{name}/output"] = graph.tensors[layer.output].range()
        place, _, part = name.rpartition("/")
        if part == "expand_1x1" and (adding := shortcut(layers, place)) is not None:
            found[f"{place}/sum"] = graph.tensors[adding.outputs[0]].range()
    found |= {place: graph.tensors[tensor].range() for place, tensor in _tensors_of_heads(layers).items()}
    return {name: ends for name, ends in found.items() if ends is not None}


def _tensors_of_heads(layers: Layers) -> dict[str, int]:
    """Returns the tensors that no layer of ours makes alone: pooled maps and what is joined, by path."""
    head = "segmentation_head"
    inputs = {"pool": "classifier", f"{head}/pool": f"{head}/conv_pool", f"{head}/branches": f"{head}/conv_projection"}
    tensors = {place: layers[name].operation.inputs[0] for place, name in inputs.items() if name in layers}
    for place, name in (("class_logits", "class_0_predictor"), ("box_codes", "box_0_predictor")):
        joined = layers[f"detection_head/{name}"].joined_into if f"detection_head/{name}" in layers else None
        if joined is not None:
            tensors[f"detection_head/{place}"] = joined
    return tensors
