"""The layers of a TFLite graph by their path in our models.

Names of a converted graph may belong to another layer, so layers are told by the order of the graph, and those of a
head by what stands between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.models.layers import same_padding
from flax_mnv2.weights.tensorflow.tflite import Graph, Operation

_CONVOLUTIONS = ("conv", "depthwise", "fully_connected")
_POOLS = ("average_pool", "mean")
# What changes neither values nor channels, and stands between layers.
_PASSED = ("pad", "space_to_batch", "batch_to_space", "quantize", "dequantize", "reshape", "resize_bilinear")
_KERNEL_AXES = {"conv": (1, 2, 3, 0), "depthwise": (1, 2, 0, 3), "fully_connected": (1, 0)}  # to Flax's
_RELU6_MAX = 6.05  # the largest number in a quantised range that stands for ReLU6
_BLOCK = ("expand_1x1", "conv_3x3", "reduce_1x1")
_STEM = ("first_conv", "conv_3x3", "reduce_1x1")
_EXTRA = ("squeeze", "conv_3x3", "expand")
Layers = dict[str, "Layer"]  # by their path below the model, such as "mobilenet_v2/layer_03/expand_1x1"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of a graph, and what stands around it."""

    operation: Operation
    graph: Graph

    @property
    def kind(self) -> str:
        """``conv``, ``depthwise`` or ``fully_connected``."""
        return self.operation.kind

    @property
    def input(self) -> int:
        """The tensor that it takes, before a change of scale."""
        tensor = self.operation.inputs[0]
        for operation in self._before():
            if operation.kind not in ("quantize", "dequantize"):
                break
            tensor = operation.inputs[0]
        return tensor

    @property
    def output(self) -> int:
        """The tensor behind the layer, and behind an activation that stands apart."""
        tensor = self.operation.outputs[0]
        for operation in _after(self.graph, tensor):
            if operation.kind in ("relu", "relu6"):
                return operation.outputs[0]
        return tensor

    def kernel_and_bias(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns both as they lie in Flax, float32."""
        inputs = self.operation.inputs
        kernel = self.graph.constant(inputs[1]).values()
        axes = _KERNEL_AXES[self.kind]
        if kernel.ndim != len(axes):
            raise CheckpointError(f"a {self.kind} has a kernel of the shape {kernel.shape}")
        kernel = np.ascontiguousarray(kernel.transpose(axes))
        if len(inputs) < 3 or inputs[2] < 0:
            return kernel, np.zeros(kernel.shape[-1], np.float32)
        return kernel, self.graph.constant(inputs[2]).values()

    def acts_as(self, activation: str | None) -> bool:
        """Returns whether this activation follows: merged, apart, or in what the quantised output can hold alone."""
        found, output = self.operation.activation, self.output
        if output != self.operation.outputs[0]:
            made_by = self.graph.producer(output)
            found = None if made_by is None else made_by.kind
        if found == activation or activation is None:
            return found == activation
        ends = self.graph.tensors[output].range()
        if ends is None or found not in (None, "relu"):
            return False
        low, high = (float(end[0]) for end in ends)
        return low == 0 and (activation == "relu" or high <= _RELU6_MAX)

    @property
    def dilation(self) -> int:
        """Its own, or that of the space-to-batch before it, which is how TensorFlow 1 dilates."""
        for operation in self._before():
            if operation.kind == "space_to_batch":
                return int(self.graph.integers(operation.inputs[1]).max(initial=1))
        return self.operation.dilation

    def is_padded(self, *, tf_padding: bool) -> bool:
        """Returns whether its zeros at stride 2 lie as by this rule, at the size of the file's images."""
        shape, kernel = self.graph.tensors[self.operation.inputs[0]].shape, self.graph.tensors[self.operation.inputs[1]]
        if self.operation.is_same:
            return tf_padding
        zeros = np.zeros((4, 2), int)
        for operation in self._before():
            if operation.kind == "pad":
                zeros = self.graph.integers(operation.inputs[1])
        if len(shape) != 4 or zeros.shape != (4, 2):
            return False
        inside = [int(size - pads.sum()) for size, pads in zip(shape[1:3], zeros[1:3], strict=True)]
        side = kernel.shape[1]
        expected = same_padding(*inside, kernel=side, stride=2, dilation=1, tf_padding=tf_padding)
        return zeros[1:3].tolist() == [list(pads) for pads in expected]

    def leads_to(self, *kinds: str) -> bool:
        """Returns whether an operation of these kinds takes what it makes, also summed or joined with others."""
        waiting, seen = [self.output], set()
        while waiting:
            tensor = waiting.pop()
            for operation in () if tensor in seen else _after(self.graph, tensor):
                if operation.kind in kinds:
                    return True
                waiting += operation.outputs if operation.kind in ("concatenation", "add") else ()
            seen.add(tensor)
        return False

    @property
    def joined_into(self) -> int | None:
        """The tensor that a concatenation makes of its output; None where nothing joins it."""
        joins = (operation for operation in _after(self.graph, self.output) if operation.kind == "concatenation")
        return next((operation.outputs[0] for operation in joins), None)

    def is_behind(self, *kinds: str) -> bool:
        """Returns whether it takes what an operation of these kinds makes."""
        return any(operation.kind in kinds for operation in self._before())

    def _before(self) -> Iterator[Operation]:
        """Yields what the input comes through that is no layer, the nearest first."""
        return _before(self.graph, self.operation.inputs[0])


def name_layers(graph: Graph) -> Layers:
    """Returns every layer by its path, or raises a CheckpointError where the graph is no network known here."""
    layers = [Layer(item, graph) for item in graph.operations if item.kind in _CONVOLUTIONS]
    layers, predictors = _without_predictors(layers)
    kinds = [layer.kind for layer in layers]
    if kinds[:3] != ["conv", "depthwise", "conv"]:
        raise CheckpointError("it does not begin as a MobileNetV2 does")
    named = {f"mobilenet_v2/conv_stem/{name}": layer for name, layer in zip(_STEM, layers, strict=False)}
    position, block = 3, 0
    while kinds[position : position + 3] == ["conv", "depthwise", "conv"]:
        for name, layer in zip(_BLOCK, layers[position : position + 3], strict=True):
            named[f"mobilenet_v2/layer_{block:02d}/{name}"] = layer
        position, block = position + 3, block + 1
    rest = layers[position:]
    head = _ssdlite(named, rest, predictors) if predictors else _classifier(rest) or _deeplab(rest)
    if head is None:
        others = len(rest) + 2 * len(predictors)
        raise CheckpointError(f"the {others} layers behind its {block} blocks are no head that is known")
    return named | head


def shortcut(layers: Layers, place: str) -> Operation | None:
    """Returns what adds a block's input to its output; None where nothing does."""
    first, last = layers[f"{place}/expand_1x1"], layers[f"{place}/reduce_1x1"]
    into = first.operation.inputs[0]
    adding = (item for item in _after(last.graph, last.operation.outputs[0]) if item.kind == "add")
    return next((item for item in adding if into in item.inputs), None)


# ---- heads: each gives its layers by path, or None where they are another head's -------------------------------------


def _classifier(rest: Sequence[Layer]) -> Layers | None:
    """The last 1×1 convolution, and behind a pooling the classifier, where there is one."""
    if not 1 <= len(rest) <= 2 or rest[0].kind != "conv":
        return None
    head = {"mobilenet_v2/conv_1x1": rest[0]}
    if len(rest) == 1:
        return head
    return head | {"classifier": rest[1]} if rest[1].is_behind(*_POOLS) else None


def _deeplab(rest: Sequence[Layer]) -> Layers | None:
    """Image pooling and the 1×1 branch in either order, joined, projected, classified."""
    if [layer.kind for layer in rest] != ["conv"] * 4:
        return None
    branches = {layer.is_behind(*_POOLS): layer for layer in rest[:2]}
    if branches.keys() != {False, True} or not rest[2].is_behind("concatenation"):
        return None
    joined = next(item for item in _before(rest[2].graph, rest[2].operation.inputs[0]) if item.kind == "concatenation")
    first = [item.kind for item in _before(rest[2].graph, joined.inputs[0])]
    if "resize_bilinear" not in first:  # the pooled map is resized, and stands first
        raise CheckpointError("it joins its branches in another order than TF DeepLab does")
    return {
        "segmentation_head/conv_pool": branches[True],
        "segmentation_head/conv_aspp": branches[False],
        "segmentation_head/conv_projection": rest[2],
        "segmentation_head/classifier": rest[3],
    }


def _without_predictors(layers: Sequence[Layer]) -> tuple[list[Layer], list[tuple[Layer, Layer]]]:
    """Returns the layers without a detector's predictors, which no other layer follows, and these, in pairs.

    Converters write the predictors of a map anywhere behind it.
    """
    depthwise = {layer.output: layer for layer in layers if layer.kind == "depthwise"}
    pairs = [
        (depthwise[layer.input], layer)
        for layer in layers
        if layer.kind == "conv" and layer.input in depthwise and not layer.leads_to(*_CONVOLUTIONS)
    ]
    if len(pairs) < 2:  # the last block of a backbone that has nothing behind it
        return list(layers), []
    taken = {id(layer) for pair in pairs for layer in pair}
    return [layer for layer in layers if id(layer) not in taken], pairs


def _ssdlite(blocks: Layers, rest: Sequence[Layer], predictors: Sequence[tuple[Layer, Layer]]) -> Layers | None:
    """The last 1×1 convolution, extra maps one behind the other, and on every map two separable predictors.

    The first map is an expansion inside the backbone. Predictors of classes have a logistic function behind them.
    """
    num_extra = len(rest) // 3
    if not num_extra or [layer.kind for layer in rest] != ["conv", *["conv", "depthwise", "conv"] * num_extra]:
        return None
    head = {"mobilenet_v2/conv_1x1": rest[0]}
    maps = {layer.output: 0 for name, layer in blocks.items() if name.endswith("expand_1x1")}
    maps[rest[0].output] = 1
    for index in range(num_extra):
        parts = rest[3 * index + 1 : 3 * index + 4]
        head |= {f"detection_head/extra_{index}_{name}": layer for name, layer in zip(_EXTRA, parts, strict=True)}
        maps[parts[-1].output] = index + 2
    for depthwise, predictor in predictors:
        what = "class" if predictor.leads_to("logistic") else "box"
        place = f"detection_head/{what}_{maps.get(depthwise.input)}"
        head |= {f"{place}_conv_3x3": depthwise, f"{place}_predictor": predictor}
    wanted = {f"detection_head/{what}_{index}_predictor" for what in ("class", "box") for index in range(num_extra + 2)}
    return head if wanted <= head.keys() and len(predictors) == len(wanted) else None


def _before(graph: Graph, tensor: int) -> Iterator[Operation]:
    """Yields what a tensor comes through, as far as the nearest operation that is not ``_PASSED``, that included."""
    while (operation := graph.producer(tensor)) is not None:
        yield operation
        if operation.kind not in _PASSED or not operation.inputs:
            return
        tensor = operation.inputs[0]


def _after(graph: Graph, tensor: int) -> Iterator[Operation]:
    """Yields what takes a tensor, and what takes what ``_PASSED`` makes of it."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        for operation in graph.consumers(waiting.pop()):
            yield operation
            made = set(operation.outputs) - seen if operation.kind in _PASSED else set()
            waiting, seen = waiting + sorted(made), seen | made
