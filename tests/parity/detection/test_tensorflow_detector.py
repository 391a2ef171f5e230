"""TensorFlow's detector against PyTorch: transformers' backbone, tapped by hooks, under a head of transformers' layers.

Its weights come in by the TF Object Detection API's names and kernels' layout, and go out as they came.
"""

import jax
import numpy as np
import pytest

from flax_mnv2 import CheckpointError, ConfigError, DetectionSpec, MobileNetV2Config, from_state_dict, to_state_dict
from flax_mnv2.config.detection import ssd_anchors
from flax_mnv2.models.complexity import complexity
from flax_mnv2.weights.opening import open_state_dict

CASES = [(300, 300), (257, 383)]
KINDS = (3, 6, 6, 6, 6, 6)
ALPHA, NUM_LABELS = 0.35, 4
DEPTHS = (512, 256, 256, 128)


def _layers(transformers, config, widths):
    """The head's layers by our names."""
    import torch
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer

    def layer(inputs, outputs, size=1, stride=1, **more):
        groups = inputs if size == 3 else 1
        more = {"use_activation": "relu6", "layer_norm_eps": 1e-3, **more}
        return MobileNetV2ConvLayer(config, inputs, outputs, size, stride, groups, **more)

    layers, widths = {}, list(widths)
    for index, depth in enumerate(DEPTHS):
        inner, outer = (max(int(width * ALPHA), 16) for width in (depth // 2, depth))
        layers[f"extra_{index}_squeeze"] = layer(widths[-1], inner)
        layers[f"extra_{index}_conv_3x3"] = layer(inner, inner, 3, 2)
        layers[f"extra_{index}_expand"] = layer(inner, outer)
        widths.append(outer)
    plain = {"use_normalization": False, "use_activation": False, "bias": True}
    for index, (width, kinds) in enumerate(zip(widths, KINDS, strict=True)):
        for what, depth in (("class", NUM_LABELS + 1), ("box", 4)):
            layers[f"{what}_{index}_conv_3x3"] = layer(width, width, 3)
            layers[f"{what}_{index}_predictor"] = layer(width, kinds * depth, **plain)
    return torch.nn.ModuleDict(layers)


def _theirs(backbone, layers, images):
    import torch

    maps, keep = [], lambda module, inputs, output: maps.append(output)
    hooks = [backbone.layer[12].expand_1x1.register_forward_hook(keep), backbone.conv_1x1.register_forward_hook(keep)]
    with torch.no_grad():
        backbone(images)
        for index in range(4):
            x = maps[-1]
            for part in ("squeeze", "conv_3x3", "expand"):
                x = layers[f"extra_{index}_{part}"](x)
            maps.append(x)
        rows = {"class": [], "box": []}
        for index, x in enumerate(maps):
            for what, depth in (("class", NUM_LABELS + 1), ("box", 4)):
                y = layers[f"{what}_{index}_predictor"](layers[f"{what}_{index}_conv_3x3"](x))
                rows[what].append(y.permute(0, 2, 3, 1).reshape(len(y), -1, depth))
    for hook in hooks:
        hook.remove()
    return [torch.cat(rows[what], dim=1).numpy() for what in ("class", "box")]


def _scopes():
    """(the layer's name in PyTorch here, its scope in TensorFlow)."""
    root = "FeatureExtractor/MobilenetV2/"
    yield "conv_stem.first_conv", f"{root}Conv"
    yield "conv_stem.conv_3x3", f"{root}expanded_conv/depthwise"
    yield "conv_stem.reduce_1x1", f"{root}expanded_conv/project"
    for index in range(16):
        for ours, theirs in (("expand_1x1", "expand"), ("conv_3x3", "depthwise"), ("reduce_1x1", "project")):
            yield f"layer.{index}.{ours}", f"{root}expanded_conv_{index + 1}/{theirs}"
    yield "conv_1x1", f"{root}Conv_1"
    for index, depth in enumerate(DEPTHS):
        inner, outer = (max(int(width * ALPHA), 16) for width in (depth // 2, depth))
        scope = f"{root}layer_19_2_Conv2d_{index + 2}_3x3_s2_{outer}"
        yield f"extra_{index}_squeeze", f"{root}layer_19_1_Conv2d_{index + 2}_1x1_{inner}"
        yield f"extra_{index}_conv_3x3", f"{scope}_depthwise"
        yield f"extra_{index}_expand", scope
    for index in range(6):
        for ours, theirs in (("class", "ClassPredictor"), ("box", "BoxEncodingPredictor")):
            yield f"{ours}_{index}_conv_3x3", f"BoxPredictor_{index}/{theirs}_depthwise"
            yield f"{ours}_{index}_predictor", f"BoxPredictor_{index}/{theirs}"


def _as_tensorflow(state):
    leaves = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    variables = {}
    for layer, scope in _scopes():
        for name in [name for name in state if name.startswith(f"{layer}.")]:
            part, leaf = name.removeprefix(f"{layer}.").split(".")
            value = state[name].numpy()
            if part == "normalization":
                if leaf in leaves:
                    variables[f"{scope}/BatchNorm/{leaves[leaf]}"] = value
            elif leaf == "bias":
                variables[f"{scope}/biases"] = value
            elif value.shape[1] == 1 and layer.endswith("conv_3x3"):
                variables[f"{scope}/depthwise_weights"] = value.transpose(2, 3, 0, 1)
            else:
                variables[f"{scope}/weights"] = value.transpose(2, 3, 1, 0)
    return variables


@pytest.fixture(scope="module")
def detector(transformers, randomize):
    """The modules of PyTorch, and their weights as TensorFlow has them."""
    config = transformers.MobileNetV2Config(depth_multiplier=ALPHA, tf_padding=True, finegrained_output=False)
    backbone = randomize(transformers.MobileNetV2Model(config), seed=0)
    width = backbone.conv_1x1.convolution.out_channels
    layers = randomize(
        _layers(transformers, config, (backbone.layer[12].expand_1x1.convolution.out_channels, width)), 1
    )
    return backbone, layers, _as_tensorflow({**backbone.state_dict(), **layers.state_dict()})


@pytest.mark.parametrize("size", CASES)
def test_network_is_pytorchs(detector, assert_close, size):
    import torch

    backbone, layers, weights = detector
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    logits, codes = _theirs(backbone, layers, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    model, variables = from_state_dict(weights)
    ours = jax.jit(model.apply)(variables, images)
    assert_close(ours.logits, logits, name="logits")
    assert_close(ours.box_codes, codes, name="box codes")
    assert len(model.anchors(size)) == logits.shape[1]


def test_weights_say_the_network_and_come_back(detector):
    _, _, weights = detector
    model, variables = from_state_dict(weights)
    config = model.config
    assert (config.depth_multiplier, config.num_labels, config.tf_padding) == (ALPHA, NUM_LABELS, True)
    assert model.spec == DetectionSpec()
    again = to_state_dict(model, variables, "tf_detection")
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], value) for name, value in weights.items())
    processor = open_state_dict(weights).processor()
    assert (processor.size, processor.do_center_crop) == ({"height": 300, "width": 300}, False)
    more = {**weights, "BoxPredictor_6/ClassPredictor/biases": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError, match="BoxPredictor_6/ClassPredictor/biases"):
        from_state_dict(more)


def test_anchors_of_ones_own_come_with_a_config(detector):
    _, _, weights = detector
    name = "BoxPredictor_0/BoxEncodingPredictor/"
    weights = weights | {f"{name}weights": weights[f"{name}weights"][..., :8], f"{name}biases": np.zeros(8, np.float32)}
    classes = "BoxPredictor_0/ClassPredictor/"
    weights |= {
        f"{classes}{leaf}": weights[f"{classes}{leaf}"][..., : 2 * (NUM_LABELS + 1)] for leaf in ("weights", "biases")
    }
    with pytest.raises(ConfigError, match=r"\[2, 6, 6, 6, 6, 6\] anchors a place .* pass config="):
        from_state_dict(weights)
    config = from_state_dict(detector[2])[0].config
    anchors = ((ssd_anchors()[0][:2]), *ssd_anchors()[1:])
    model, variables = from_state_dict(weights, config=config.replace(detection=DetectionSpec(anchors=anchors)))
    again = to_state_dict(model, variables, "tf_detection")
    assert all(np.array_equal(again[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tf_padding": False}, "tf_padding: the TF Object Detection API needs True, the source has False"),
        ({"detection": {"background": "last"}}, "detection.background: .* needs 'first', the source has 'last'"),
    ],
)
def test_what_tensorflow_cannot_build_is_refused(detector, change, message):
    model, variables = from_state_dict(detector[2])
    with pytest.raises(ConfigError, match=message):
        to_state_dict(model.clone(config=model.config.replace(**change)), variables, "tf_detection")


def test_size_and_cost_are_the_papers():
    """arXiv 1801.04381, table 6: 4.3 M parameters and 0.8 B multiply-adds."""
    found = complexity(MobileNetV2Config(num_labels=80), "detection", image_size=320)
    assert (found.parameters, round(found.multiply_adds / 1e6)) == (4_337_013, 789)
    assert complexity(MobileNetV2Config(num_labels=90), "detection").parameters == 4_500_543
