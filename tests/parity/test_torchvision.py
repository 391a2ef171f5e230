"""Conversion from and to torchvision's mobilenet_v2 against the library itself, on random weights and statistics.

At 0.25 the first block has a shortcut; at 0.68125 widths are rounded otherwise than in transformers; none of the sizes
is 32k + 1, where both padding rules agree.
"""

import json

import jax
import numpy as np
import pytest

from flax_mnv2 import from_pretrained
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.writing import write

CASES = [(0.25, (97, 130)), (0.35, (64, 70)), (0.68125, (97, 130)), (1.0, (224, 224)), (1.4, (100, 158))]


@pytest.fixture(scope="module")
def saved(torchvision, randomize, tmp_path_factory):
    """width_mult → (module, path of its state dict)."""
    import torch

    made = {}

    def get(width_mult, num_classes=7):
        if width_mult not in made:
            module = torchvision.models.mobilenet_v2(width_mult=width_mult, num_classes=num_classes)
            randomize(module, seed=1)
            for index, buffer in enumerate(module.buffers()):
                if buffer.ndim == 0:
                    buffer.fill_(index)
            path = tmp_path_factory.mktemp("torchvision") / "model.pth"
            torch.save(module.state_dict(), path)
            made[width_mult] = module, path
        return made[width_mult]

    return get


@pytest.mark.parametrize(("width_mult", "size"), CASES)
def test_same_features_and_logits(saved, compare_classifiers, width_mult, size):
    module, path = saved(width_mult)
    checkpoint = open_weights(path).checkpoint()
    compare_classifiers(checkpoint, module.features, module, size)


@pytest.mark.parametrize("width_mult", [case[0] for case in CASES] + [0.1, 0.75, 1.3, 2.37])
def test_every_width_comes_back_bit_for_bit(saved, tmp_path, width_mult):
    import torch

    module, path = saved(width_mult)
    checkpoint = open_weights(path).checkpoint()
    write(checkpoint, tmp_path / "back.pt", "torchvision")
    state = torch.load(tmp_path / "back.pt", weights_only=True)
    assert state.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key
    module.load_state_dict(state, strict=True)


def test_the_config_says_what_torchvision_does(saved):
    module, path = saved(1.0)
    checkpoint = open_weights(path).checkpoint()
    config = checkpoint.config
    norm = module.features[0][1]
    assert config.depth_multiplier == 1.0
    assert config.layer_norm_eps == norm.eps
    assert config.batch_norm_momentum == 1 - norm.momentum
    assert config.classifier_dropout_prob == module.classifier[0].p
    assert (config.tf_padding, config.num_labels, config.num_channels) == (False, 7, 3)
    assert (config.round_widths, config.stem_residual) == (True, False), "transformers can represent it as it is"


@pytest.mark.parametrize(
    ("width_mult", "own"), [(0.25, {"stem_residual": True}), (0.68125, {}), (0.1, {"stem_residual": True})]
)
def test_fields_of_ours_are_set_only_where_they_matter(saved, width_mult, own):
    config = open_weights(saved(width_mult)[1]).config
    defaults = {"round_widths": True, "stem_residual": False, "layer_depth_multiplier": 1.0}
    assert {name: getattr(config, name) for name in defaults} == defaults | own


def test_preprocessing_is_that_of_its_weights(torchvision, saved):
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    values = json.loads(open_weights(saved(1.0)[1]).processor_text)
    assert values["size"] == {"shortest_edge": transform.resize_size[0]}
    assert values["crop_size"] == {"height": transform.crop_size[0], "width": transform.crop_size[0]}
    assert (values["image_mean"], values["image_std"]) == (transform.mean, transform.std)
    assert (transform.interpolation.value, values["resample"]) == ("bilinear", 2)


def test_transformers_and_we_load_the_converted_folder(transformers, saved, tmp_path, assert_close):
    import torch

    module, path = saved(1.0)
    write(open_weights(path).checkpoint(), tmp_path / "hf", "hf")
    theirs, report = transformers.MobileNetV2ForImageClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = np.random.default_rng(1).normal(size=(2, 3, 97, 130)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
        assert_close(theirs.eval()(torch.from_numpy(images)).logits, expected, name="transformers")
    model, variables = from_pretrained(tmp_path / "hf")
    ours = jax.jit(model.apply)(variables, images.transpose(0, 2, 3, 1)).logits
    assert_close(ours, expected, name="ours")
    write(open_weights(tmp_path / "hf").checkpoint(), tmp_path / "b.pth", "torchvision")
    state = torch.load(tmp_path / "b.pth", weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


def test_state_dicts_in_memory(torchvision, randomize, check_state_dict):
    check_state_dict(randomize(torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.35), seed=6), "torchvision")
