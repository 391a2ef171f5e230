"""TF DeepLab's head by its own names, against PyTorch functions that follow ``research/deeplab/model.py``."""

import functools

import jax
import numpy as np
import pytest

from flax_mnv2 import MobileNetV2Config, from_state_dict
from flax_mnv2.config.deeplab import HUGGING_FACE, DeepLabSpec
from flax_mnv2.models.heads.deeplab import DeepLabHead
from flax_mnv2.models.layers import BatchNorm, Convolution
from flax_mnv2.weights.formats.deeplab.tensorflow import head_of, scope_of
from flax_mnv2.weights.formats.tensorflow import slim
from flax_mnv2.weights.opening import open_state_dict
from flax_mnv2.weights.source import make_model, variable_shapes

WIDTH, LOW, CLASSES, RATES = 12, 5, 4, (1, 2, 3)


NORM = functools.partial(BatchNorm, use_running_average=True, momentum=0.9, epsilon=1e-3)


def _with_scopes(shapes):
    """Yields paths of the head's tensors, their shapes, TF DeepLab's scope."""
    for path, leaf in jax.tree.leaves_with_path(shapes):
        _, layer, *rest, _ = (entry.key for entry in path)
        scope = scope_of(layer, next((part for part in rest if part in ("conv_3x3", "reduce_1x1")), ""))
        assert scope is not None
        yield path, leaf, scope


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="parity tests need torch==2.13.0 (requirements-test.txt)")


class Reference:
    """The head as a function of variables by scope."""

    def __init__(self, torch, variables, activation):
        self.torch, self.variables, self.activation = torch, variables, activation

    def conv(self, scope, x, *, rate=1, act=None, norm=True):
        """``slim.conv2d`` or, where there are depthwise weights, ``slim.separable_conv2d`` without a pointwise part."""
        functional, values = self.torch.nn.functional, self.variables[scope]
        kernel = self.torch.from_numpy(values["kernel"]).permute(3, 2, 0, 1)
        groups = x.shape[1] if kernel.shape[1] == 1 and x.shape[1] > 1 else 1
        padding = rate * (kernel.shape[-1] // 2)
        x = functional.conv2d(x, kernel, padding=padding, dilation=rate, groups=groups)
        if not norm:
            return x + self.torch.from_numpy(values["bias"])[:, None, None]
        mean, var, scale, bias = (self.torch.from_numpy(values[name]) for name in ("mean", "var", "scale", "bias"))
        x = functional.batch_norm(x, mean, var, scale, bias, eps=1e-5)
        return (act or self.activation)(x)

    def separable(self, scope, x, rate=1):
        return self.conv(f"{scope}_pointwise", self.conv(f"{scope}_depthwise", x, rate=rate))

    def resize(self, x, size):
        return self.torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def __call__(self, x, low_level, window, stride):
        functional = self.torch.nn.functional
        pooled = functional.avg_pool2d(x, window, stride)
        pooled = self.resize(self.conv("image_pooling", pooled, act=functional.relu), x.shape[2:])
        branches = [pooled, self.conv("aspp0", x)]
        branches += [self.separable(f"aspp{index}", x, rate) for index, rate in enumerate(RATES, start=1)]
        x = self.conv("concat_projection", self.torch.cat(branches, 1))
        low_level = self.conv("decoder/feature_projection0", low_level)
        x = self.torch.cat([self.resize(x, low_level.shape[2:]), low_level], 1)
        x = self.separable("decoder/decoder_conv1", self.separable("decoder/decoder_conv0", x))
        return self.conv("logits/semantic", x, norm=False)


@pytest.mark.parametrize(("bounded", "pooling_size"), [(False, None), (True, (65, 81))])
def test_same_logits(torch, assert_close, bounded, pooling_size):
    rng = np.random.default_rng(5)
    x, low_level = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 9, 11, 10), (1, 33, 41, 7)))
    spec = DeepLabSpec(
        atrous_rates=RATES,
        channels=WIDTH,
        low_level_channels=LOW,
        bounded_activation=bounded,
        pooling_size=pooling_size,
        pooling_stride=(1, 2) if pooling_size else (1, 1),
    )
    config = MobileNetV2Config(num_labels=CLASSES, output_stride=16, deeplab=spec)
    head = DeepLabHead(config, Convolution, NORM)
    shapes = jax.eval_shape(functools.partial(head.init, train=False), jax.random.key(0), x, low_level)
    scopes, drawn = {}, {}
    for path, leaf, scope in _with_scopes(shapes):
        low, high = (0.3, 2.0) if path[-1].key in ("scale", "var") else (-0.6, 0.8)
        value = rng.uniform(low, high, leaf.shape).astype(np.float32)
        scopes.setdefault(scope, {})[path[-1].key] = value
        drawn[path] = value
    variables = jax.tree.map_with_path(lambda path, _: drawn[path], shapes)
    ours = jax.jit(functools.partial(head.apply, train=False))(variables, x, low_level)

    activation = torch.nn.functional.relu6 if bounded else torch.nn.functional.relu
    window = ((65 - 1) // 16 + 1, (81 - 1) // 16 + 1) if pooling_size else (9, 11)
    channels_first = (torch.from_numpy(value.transpose(0, 3, 1, 2).copy()) for value in (x, low_level))
    theirs = Reference(torch, scopes, activation)(*channels_first, window, spec.pooling_stride)
    assert_close(ours, theirs.permute(0, 2, 3, 1))
    names = {f"aspp{index}_{part}" for index in (1, 2, 3) for part in ("depthwise", "pointwise")}
    assert names | {"decoder/decoder_conv1_pointwise"} <= scopes.keys()


@pytest.mark.parametrize(
    "spec",
    [
        DeepLabSpec(),
        DeepLabSpec(channels=32, low_level_channels=8, low_level="layer_04/depthwise", separable_branches=False),
        DeepLabSpec(low_level=None, decoder_convs=0),
        DeepLabSpec(atrous_rates=(), separable_decoder=False, decoder_convs=1),
        HUGGING_FACE,
        HUGGING_FACE.replace(channels=64),
        HUGGING_FACE.replace(pooling="none"),
    ],
    ids=repr,
)
def test_names_and_shapes_tell_the_head(spec):
    config = MobileNetV2Config(output_stride=16, deeplab=spec)
    widths = {f"{block.name}/depthwise": block.expanded_channels for block in config.layer_plan.blocks}
    inputs = [320, *([widths[spec.low_level]] if spec.low_level else [])]
    inputs = [jax.ShapeDtypeStruct((1, 3, 3, width), np.float32) for width in inputs]
    head = DeepLabHead(config, Convolution, NORM)
    shapes = jax.eval_shape(functools.partial(head.init, train=False), jax.random.key(0), *inputs)
    names = {"kernel": "weights", "bias": "biases", "scale": "BatchNorm/gamma"}
    found = {
        f"{scope}/{names[path[-1].key]}": leaf.shape for path, leaf, scope in _with_scopes({"params": shapes["params"]})
    }
    assert (head_of(found, config.layer_plan) or HUGGING_FACE) == spec


def test_dense_decoders_are_called_as_slim_repeats_them():
    assert scope_of("conv_decoder_1") == "decoder/decoder_conv0/decoder_conv0_2"
    assert scope_of("conv_refine_0") is None


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("spec", [DeepLabSpec(), DeepLabSpec(low_level=None, decoder_convs=0)], ids=repr)
def test_variables_of_all_branches_and_the_decoder_are_read(spec):
    config = MobileNetV2Config(num_labels=5, layer_norm_eps=1e-3, stem_residual=True, output_stride=16, deeplab=spec)
    rng = np.random.default_rng(0)
    drawn = {
        path: rng.random(shape, np.float32)
        for path, shape in variable_shapes(make_model(config, "segmentation")).items()
    }
    named = {slim.NAMING.key_of(path): value for path, value in drawn.items()}
    named = {name: slim.turned(name, value) for name, value in named.items()}
    assert len(named) == len(drawn)
    assert all(name.startswith((slim.ROOT, "aspp", "concat", "decoder", "image_", "logits/")) for name in named)
    source = open_state_dict(named)
    assert "output stride 16 with atrous rates (6, 12, 18) is TF DeepLab's usual one" in source.notes[-1]
    model, variables = from_state_dict(named)
    assert (model.config.deeplab, model.config.num_labels, model.config.output_stride) == (spec, 5, 16)
    for path, value in drawn.items():
        np.testing.assert_array_equal(functools.reduce(lambda tree, name: tree[name], path, variables), value)
