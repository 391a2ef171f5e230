"""The detector against PyTorch: transformers' backbone, tapped by hooks, under a head of transformers' layers."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from flax_mnv2 import MobileNetV2Config, from_state_dict
from flax_mnv2.models import MobileNetV2ForObjectDetection

CASES = [((300, 300), True), ((320, 320), False), ((257, 383), True), ((257, 383), False)]
KINDS = (3, 6, 6, 6, 6, 6)
NUM_LABELS = 4


def _layers(transformers, config, widths):
    """The head's layers by our names."""
    import torch
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer

    def layer(inputs, outputs, size=1, stride=1, **more):
        groups = inputs if size == 3 else 1
        more = {"use_activation": "relu6", "layer_norm_eps": 1e-3, **more}
        return MobileNetV2ConvLayer(config, inputs, outputs, size, stride, groups, **more)

    layers, widths = {}, list(widths)
    for index, depth in enumerate((512, 256, 256, 128)):
        inner, outer = (max(int(width * config.depth_multiplier), 16) for width in (depth // 2, depth))
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


def _head_variables(layers):
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    variables = {"params": {}, "batch_stats": {}}
    for key, value in layers.state_dict().items():
        layer, part, name = key.split(".")
        if name == "num_batches_tracked":
            continue
        value = value.numpy()
        if part == "convolution":
            path = (layer, part, "kernel" if name == "weight" else "bias")
            variables["params"][path] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        else:
            kind = "batch_stats" if name.startswith("running") else "params"
            variables[kind][(layer, part, names[name])] = value
    return {kind: traverse_util.unflatten_dict(flat) for kind, flat in variables.items()}


@pytest.mark.parametrize(("size", "tf_padding"), CASES)
def test_network_is_pytorchs(transformers, randomize, assert_close, size, tf_padding):
    import torch

    config = MobileNetV2Config(depth_multiplier=0.35, tf_padding=tf_padding, finegrained_output=False)
    theirs_config = transformers.MobileNetV2Config(
        **{name: getattr(config, name) for name in ("depth_multiplier", "tf_padding", "finegrained_output")}
    )
    backbone = randomize(transformers.MobileNetV2Model(theirs_config), seed=0)
    plan = config.layer_plan
    layers = randomize(
        _layers(transformers, theirs_config, (plan.blocks[12].expanded_channels, plan.last_channels)), seed=1
    )
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    logits, codes = _theirs(backbone, layers, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))

    _, variables = from_state_dict(backbone.state_dict(), config=config, task="backbone")
    head = _head_variables(layers)
    variables = {kind: {**variables[kind], "detection_head": head[kind]} for kind in ("params", "batch_stats")}
    model = MobileNetV2ForObjectDetection(config.replace(num_labels=NUM_LABELS))
    ours = jax.jit(model.apply)(variables, images)
    assert_close(ours.logits, logits, name="logits")
    assert_close(ours.box_codes, codes, name="box codes")
    assert len(model.anchors(size)) == logits.shape[1]
