"""What timm's and torchvision's own test suites ask of such a network, asked here: their intent, our words.

timm's test_models, test_input_conv, test_layers_pool, test_checkpoint_loading and test_layers_drop, and torchvision's
test_models.
No network is computed: theirs lie on PyTorch's meta device, ours are traced or counted.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_mnv2 as fm
from flax_mnv2.layer_plan import make_divisible
from flax_mnv2.models.complexity import complexity
from flax_mnv2.models.layers import DropPath, same_padding
from flax_mnv2.models.ops.activations import ACTIVATION_FUNCTIONS
from flax_mnv2.weights.formats import FORMATS
from flax_mnv2.weights.formats import timm as timm_format
from flax_mnv2.weights.formats.base import Found
from flax_mnv2.weights.opening import open_state_dict
from flax_mnv2.weights.tensor_files import TensorFile, read_tensor_file

VARIANTS = tuple(timm_format.VARIANTS)
WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.4)


# ---- timm ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm_module(timm):
    import torch

    made = {}

    def get(variant):
        if variant not in made:
            with torch.device("meta"):
                made[variant] = timm.create_model(variant, num_classes=42)
        return made[variant]

    return get


def _timm_config(variant, **fields):
    return timm_format._variant_config(variant).replace(num_labels=42, **fields)


@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_counts_as_many_parameters(timm_module, variant):
    expected = sum(parameter.numel() for parameter in timm_module(variant).parameters())
    assert complexity(_timm_config(variant)).parameters == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_default_cfg_names_the_first_and_the_last_layer(timm_module, variant):
    names = timm_format.naming(_timm_config(variant))
    cfg = timm_module(variant).default_cfg
    first = names.key_of(("params", "mobilenet_v2", "conv_stem", "first_conv", "convolution", "kernel"))
    assert (first, names.key_of(("params", "classifier", "kernel"))) == (
        f"{cfg['first_conv']}.weight",
        f"{cfg['classifier']}.weight",
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_default_cfg_gives_sizes_and_preprocessing(timm_module, variant):
    cfg, module = timm_module(variant).default_cfg, timm_module(variant)
    processor = FORMATS["timm"].make_processor(Found(None, None, {}))
    side = processor.crop_size["height"]
    assert (3, side, side) == cfg["input_size"]
    assert tuple(cfg["pool_size"]) == (side // 32, side // 32)
    assert processor.size == {"shortest_edge": math.floor(side / cfg["crop_pct"])}
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (cfg["mean"], cfg["std"])
    assert _timm_config(variant).layer_plan.last_channels == module.num_features


@pytest.fixture(scope="module")
def feature_info(timm):
    import torch

    with torch.device("meta"):
        return {name: timm.create_model(name, features_only=True).feature_info for name in VARIANTS}


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_features_only(feature_info, variant, level):
    info = feature_info[variant]
    spec = _timm_config(variant).feature_specs[f"stride_{info.reduction()[level]}"]
    assert spec.channels == info.channels()[level]


@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "catavgmax"])
def test_timm_pooling_and_reset_classifier(tiny_blocks, timm, kind):
    import torch

    image = jax.ShapeDtypeStruct((13, 32, 32, 3), jnp.float32)
    for labels in (0, 5):
        model = fm.MobileNetV2ForImageClassification(fm.MobileNetV2Config(global_pool=kind, num_labels=labels))
        output = jax.eval_shape(lambda key, x, model=model: model.init_with_output(key, x)[0], jax.random.key(0), image)
        pooled = 1280 * timm.layers.adaptive_avgmax_pool.adaptive_pool_feat_mult(kind)
        assert output.logits.shape == (13, labels or pooled)
    from flax_mnv2.models.layers import pool

    x = np.random.default_rng(0).normal(size=(2, 7, 7, 64)).astype(np.float32)
    theirs = timm.layers.SelectAdaptivePool2d(pool_type=kind, flatten=True)(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(pool(x, kind), theirs, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(3, 1), (3, 2), (3, 4), (3, 6), (13, 26), (13, 11), (13, 3), (13, 1)])
def test_timm_pretrained_weights_of_other_channels(timm, source, target):
    """As its own conversion; grey is as the same band in each channel, repeated frames are as one."""
    import torch
    from timm.models._manipulate import adapt_input_conv

    with torch.device("meta"):
        state = timm.create_model("mobilenetv2_035", num_classes=0, in_chans=source).state_dict()
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=value.shape).astype(np.float32) for key, value in state.items()}
    weight = state["conv_stem.weight"]
    adapted = open_state_dict(state).with_channels(target).state["conv_stem.weight"]
    theirs = adapt_input_conv(target, torch.from_numpy(weight), base_chans=source)
    np.testing.assert_allclose(adapted, theirs, rtol=1e-5, atol=1e-6)
    if target == 1 or target % source == 0:
        np.testing.assert_allclose(adapted.sum(1), weight.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("name", ["conv_stem.weight", "features.0.0.weight", "mobilenet_v2.conv_stem.first_conv.x"])
def test_timm_wrappers_are_taken_off(prefix, name):
    for form in FORMATS.values():
        found = Found(None, None, {}, TensorFile({f"{prefix}{name}": np.zeros(1)}))
        known = name.startswith({"timm": "conv_stem.", "torchvision": "feat", "hf": "mobilenet"}.get(form.name, "-"))
        assert form.recognises(found) == known


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_timm_averages_go_first(tmp_path, names, suffix):
    torch = pytest.importorskip("torch")
    content = {name: {"a": torch.full((2, 2), float(index))} for index, name in enumerate(names)}
    torch.save(content | {"epoch": 1}, tmp_path / f"last{suffix}")
    assert read_tensor_file(tmp_path / f"last{suffix}").state["a"].mean() == 1
    assert read_tensor_file(tmp_path / f"last{suffix}", "raw").state["a"].mean() == 0


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
def test_timm_drop_path_keeps_the_mean(rate):
    x = jnp.ones((4000, 2))
    dropped = DropPath(rate).apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(np.round(dropped, 4))) <= {0.0, np.float32(np.round(1 / (1 - rate), 4))}
    assert abs(float(dropped.mean()) - 1) < 0.05
    assert (dropped[:, 0] == dropped[:, 1]).all()


def test_timm_names():
    assert len(fm.list_models("*_224")) == 6
    assert fm.list_models("resnet*") == []
    with pytest.raises(fm.ConfigError, match="No variant 'mobilenet_v9'"):
        fm.variant_config("mobilenet_v9")


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_activations_are_torch_s(transformers, name):
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-8, 8, 101, dtype=np.float32)
    function = ACT2FN[name] if name in ACT2FN else getattr(torch.nn.functional, name)
    theirs = function(torch.from_numpy(x))
    np.testing.assert_allclose(ACTIVATION_FUNCTIONS[name](jnp.asarray(x)), theirs, atol=2e-6)


@pytest.mark.parametrize("size", [32, 33, 96, 97, 225])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [True, False])
def test_padding_gives_the_sizes_that_are_promised(same, stride, size):
    timm = pytest.importorskip("timm.layers.padding")
    (top, bottom), _ = same_padding(size, size, kernel=3, stride=stride, dilation=1, tf_padding=same)
    assert (size + top + bottom - 3) // stride + 1 == -(-size // stride)
    expected = timm.get_same_padding(size, 3, stride, 1) if same else 2 * timm.get_padding(3, stride)
    assert top + bottom == expected


# ---- torchvision -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vision_modules(torchvision):
    import torch

    with torch.device("meta"):
        return {width: torchvision.models.mobilenet_v2(width_mult=width, num_classes=50) for width in WIDTHS}


def _vision_config(width):
    fields = {"tf_padding": False, "layer_norm_eps": 1e-5, "stem_residual": True, "round_widths": False}
    return fm.MobileNetV2Config(depth_multiplier=width, num_labels=50, **fields)


@pytest.mark.parametrize("width", WIDTHS)
def test_torchvision_counts_as_many_parameters(vision_modules, width):
    module = vision_modules[width]
    assert complexity(_vision_config(width)).parameters == sum(value.numel() for value in module.parameters())
    assert _vision_config(width).layer_plan.last_channels == module.last_channel


@pytest.mark.parametrize("width", WIDTHS)
def test_torchvision_layers_have_its_shapes(vision_modules, width):
    state = {key: np.zeros(value.shape, np.float32) for key, value in vision_modules[width].state_dict().items()}
    found = open_state_dict(state)
    assert found.config.layer_plan == _vision_config(width).layer_plan
    assert found.config.num_labels == 50


@pytest.mark.parametrize("release", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
@pytest.mark.parametrize("part", ["num_params", "_ops", "resize", "crop", "mean", "std", "categories"])
def test_torchvision_says_of_its_weights(torchvision, release, part):
    weights = torchvision.models.MobileNet_V2_Weights[release]
    transform = weights.transforms()
    where = pathlib.Path(weights.url.rpartition("/")[2])
    processor = FORMATS["torchvision"].make_processor(Found(where, pathlib.Path(), {}))
    counted = complexity(fm.MobileNetV2Config(num_labels=1000), image_size=224)
    ours, theirs = {
        "num_params": (counted.parameters, weights.meta["num_params"]),
        "_ops": (round(counted.multiply_adds / 1e9, 3), weights.meta["_ops"]),
        "resize": (processor.size, {"shortest_edge": transform.resize_size[0]}),
        "crop": (processor.crop_size["height"], transform.crop_size[0]),
        "mean": (list(processor.image_mean), transform.mean),
        "std": (list(processor.image_std), transform.std),
        "categories": (FORMATS["torchvision"].config_of({}).num_labels, len(weights.meta["categories"])),
    }[part]
    assert ours == theirs


@pytest.mark.parametrize("divisor", [1, 4, 8, 16])
@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
def test_widths_are_made_divisible_alike(library, divisor, torchvision, timm, transformers):
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import make_divisible as of_transformers

    function = {
        "torchvision": torchvision.models._utils._make_divisible,
        "timm": timm.layers.make_divisible,
        "transformers": of_transformers,
    }[library]
    for value in np.linspace(1, 2000, 501):
        assert make_divisible(float(value), divisor) == function(float(value), divisor), value
