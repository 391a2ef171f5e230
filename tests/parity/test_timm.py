"""Conversion from and to timm's mobilenetv2_* against the library itself, on random weights and statistics."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.checks import GLOBAL_POOLS
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models.layers import pool
from flax_mnv2.weights.formats import timm as ours
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.writing import write

SIZES = {
    "mobilenetv2_035": (97, 130),
    "mobilenetv2_050": (64, 70),
    "mobilenetv2_075": (100, 158),
    "mobilenetv2_100": (224, 224),
    "mobilenetv2_110d": (97, 130),
    "mobilenetv2_120d": (64, 70),
    "mobilenetv2_140": (70, 64),
}


@pytest.fixture(scope="module")
def saved(timm, randomize, tmp_path_factory):
    """Variant → (module, path of its state dict)."""
    import torch

    made = {}

    def get(variant):
        if variant not in made:
            module = randomize(timm.create_model(variant, num_classes=6), seed=2)
            for index, buffer in enumerate(module.buffers()):
                if buffer.ndim == 0:
                    buffer.fill_(index)
            path = tmp_path_factory.mktemp("timm") / "model.pth"
            torch.save({"state_dict": module.state_dict(), "epoch": 3, "arch": variant}, path)
            made[variant] = module, path
        return made[variant]

    return get


def test_every_variant_is_here(timm):
    assert set(SIZES) == set(ours.VARIANTS) == set(timm.list_models("mobilenetv2_*"))


@pytest.mark.parametrize("variant", SIZES)
def test_same_features_and_logits(saved, compare_classifiers, variant):
    module, path = saved(variant)
    compare_classifiers(open_weights(path).checkpoint(), module.forward_features, module, SIZES[variant])


@pytest.mark.parametrize("variant", SIZES)
def test_every_variant_comes_back_bit_for_bit(timm, saved, tmp_path, variant):
    """Through the flax format into timm's folder, which timm loads by itself."""
    import torch

    module, path = saved(variant)
    write(open_weights(path).checkpoint(), tmp_path / "flax", "flax")
    write(open_weights(tmp_path / "flax").checkpoint(), tmp_path / "timm", "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    again = loaded.state_dict()
    assert again.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(again[key], value), key
    assert loaded.pretrained_cfg["architecture"] == variant


def test_the_config_says_what_timm_does(saved):
    module, path = saved("mobilenetv2_110d")
    config = open_weights(path).config
    assert config.layer_norm_eps == module.bn1.eps
    assert config.batch_norm_momentum == 1 - module.bn1.momentum
    assert (config.tf_padding, config.num_labels, config.classifier_dropout_prob) == (False, 6, 0.2)
    assert (config.depth_multiplier, config.layer_depth_multiplier, config.fixed_stem_and_head) == (1.1, 1.2, True)


def test_preprocessing_is_that_of_its_evaluation(timm, saved):
    from timm.data import create_transform, resolve_data_config

    module, path = saved("mobilenetv2_100")
    resize, crop, *_, normalize = create_transform(**resolve_data_config({}, model=module)).transforms
    values = json.loads(open_weights(path).processor_text)
    assert values["size"] == {"shortest_edge": resize.size}
    assert values["crop_size"] == dict(zip(("height", "width"), crop.size, strict=True))
    assert (resize.interpolation.value, values["resample"]) == ("bicubic", 3)
    np.testing.assert_allclose(values["image_mean"], normalize.mean, atol=1e-6)
    np.testing.assert_allclose(values["image_std"], normalize.std, atol=1e-6)


@pytest.mark.parametrize(("crop", "edge"), [(224, 256), (224, 400), (192, 410), (256, 224)])
def test_preprocessing_that_is_written_is_what_timm_does(timm, crop, edge):
    """The same picture prepared by both; at 256 of 224 the crop is larger than the picture and padded."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    processor = MobileNetV2ImageProcessor(size=edge, crop_size=crop, image_mean=[0.4, 0.5, 0.6], image_std=0.25)
    text = ours.folder_text(MobileNetV2Config(), "mobilenetv2_100", processor)
    transform = create_transform(**resolve_data_config(pretrained_cfg=json.loads(text)["pretrained_cfg"]))
    assert transform.transforms[0].size == edge
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), np.uint8)
    theirs = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    found = processor(pixels, return_tensors="np").pixel_values[0]
    assert found.shape == theirs.shape == (crop, crop, 3)
    np.testing.assert_allclose(found, theirs, atol=1e-5)


def test_a_folder_that_timm_saved_comes_back_with_its_config(timm, saved, tmp_path):
    module, _ = saved("mobilenetv2_050")
    labels = {"label_names": list("abcdef"), "label_descriptions": {"a": "ant"}}
    timm.models.save_for_hf(module, tmp_path / "saved", model_config=dict(labels), safe_serialization=True)
    source = open_weights(tmp_path / "saved")
    assert source.format == "timm"
    assert source.config.id2label[0] == "ant"
    assert source.config.id2label[5] == "f"
    write(source.checkpoint(), tmp_path / "hf", "hf")
    write(open_weights(tmp_path / "hf").checkpoint(), tmp_path / "back", "timm")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "back"))
    assert before == after


def test_transformers_loads_the_converted_folder(transformers, saved, tmp_path, assert_close):
    import torch

    module, path = saved("mobilenetv2_075")
    write(open_weights(path).checkpoint(), tmp_path / "hf", "hf")
    theirs, report = transformers.MobileNetV2ForImageClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 97, 130)).astype(np.float32))
    with torch.no_grad():
        assert_close(theirs.eval()(images).logits, module(images), name="transformers")


def test_training_normalises_as_timm_does(saved):
    """The running statistics after one batch in training mode, on the first layer, which dropout does not reach."""
    import torch
    from flax import traverse_util

    from flax_mnv2.weights.source import make_model

    module, path = saved("mobilenetv2_035")
    checkpoint = open_weights(path).checkpoint()
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    stem = torch.nn.Sequential(module.conv_stem, module.bn1).train()
    before = module.bn1.running_mean.clone(), module.bn1.running_var.clone()
    stem(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    theirs = module.bn1.running_mean.numpy().copy()
    module.bn1.running_mean.copy_(before[0])
    module.bn1.running_var.copy_(before[1])
    module.eval()
    model = make_model(checkpoint.config, "backbone")
    flat = {path: checkpoint.tensors[path] for path in checkpoint.model_paths if path[1] == "mobilenet_v2"}
    _, updated = jax.jit(lambda v, x: model.apply(v, x, train=True, run_to="conv_stem", mutable=["batch_stats"]))(
        traverse_util.unflatten_dict(flat), images
    )
    ours = updated["batch_stats"]["mobilenet_v2"]["conv_stem"]["first_conv"]["normalization"]["mean"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_state_dicts_in_memory(timm, randomize, check_state_dict):
    check_state_dict(randomize(timm.create_model("mobilenetv2_110d", num_classes=5), seed=6), "timm")


@pytest.mark.parametrize("kind", GLOBAL_POOLS)
def test_pooling(timm, kind):
    import torch

    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32)
    for name in (kind, f"fast{kind}"):
        theirs = timm.layers.SelectAdaptivePool2d(pool_type=name, flatten=True)(
            torch.from_numpy(x.transpose(0, 3, 1, 2))
        )
        np.testing.assert_allclose(pool(x, kind), theirs, atol=1e-6)
    np.testing.assert_allclose(pool(x, kind, 9)[:, 0, 0], pool(x, kind), atol=1e-6)


def test_another_pooling_and_grey_images(timm, randomize, tmp_path, compare_classifiers):
    """Through a folder that timm wrote and one that it reads."""
    module = randomize(timm.create_model("mobilenetv2_035", num_classes=3, global_pool="catavgmax", in_chans=1), seed=4)
    timm.models.save_for_hf(module, tmp_path / "saved", safe_serialization=True)
    saved = open_weights(tmp_path / "saved")
    assert open_weights(module.state_dict()).config.global_pool == saved.config.global_pool == "catavgmax"
    compare_classifiers(saved.checkpoint(), module.forward_features, module, (64, 70))
    write(dataclasses.replace(saved, config=saved.config.replace(extra={})).checkpoint(), tmp_path / "back", "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    assert (again.global_pool.pool_type, again.conv_stem.in_channels) == ("catavgmax", 1)


@pytest.mark.parametrize("kind", ["max", "avgmax", "fastmax"])
def test_pooling_that_only_the_config_says(timm, tmp_path, kind):
    module = timm.create_model("mobilenetv2_035", num_classes=3, global_pool=kind)
    timm.models.save_for_hf(module, tmp_path, safe_serialization=True)
    assert open_weights(tmp_path).config.global_pool == kind.removeprefix("fast")


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_are_those_of_timm(timm, saved, channels):
    import torch
    from timm.models._manipulate import adapt_input_conv

    state = saved("mobilenetv2_035")[0].state_dict()
    adapted = open_weights(state).with_channels(channels).state["conv_stem.weight"]
    theirs = adapt_input_conv(channels, torch.as_tensor(state["conv_stem.weight"]))
    np.testing.assert_allclose(adapted, theirs, rtol=1e-6, atol=1e-7)
