"""DeepLab of segmentation_models_pytorch, with its MobileNetV2, against the library itself."""

import json

import pytest

from flax_mnv2 import ConfigError, from_pretrained
from flax_mnv2.weights.opening import open_weights

CLASSES = 4


@pytest.fixture(scope="module")
def smp(torchvision):
    return pytest.importorskip("segmentation_models_pytorch", reason="parity needs segmentation-models-pytorch")


@pytest.fixture
def make(smp, randomize):
    def make(name, **options):
        module = getattr(smp, name)("mobilenet_v2", encoder_weights=None, classes=CLASSES, **options)
        module.segmentation_head[1] = smp.base.modules.nn.Identity()  # logits before their last resizing
        return randomize(module, seed=3)

    return make


@pytest.mark.parametrize(
    ("name", "output_stride", "size"), [("DeepLabV3Plus", 16, (320, 320)), ("DeepLabV3", 8, (257, 257))]
)
def test_same_logits(make, compare_logits, tmp_path, name, output_stride, size):
    """A decoder of the library takes multiples of 16 alone; the network without one takes any size, if it may."""
    import torch

    module = make(name, encoder_output_stride=output_stride, decoder_channels=64)
    module.requires_divisible_input_shape = False
    state = {f"model.{name}": value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "best.ckpt")  # as Lightning keeps it
    source = open_weights(tmp_path / "best.ckpt")
    assert (source.format, source.config.num_labels) == ("smp", CLASSES)
    assert f"took {output_stride} with atrous rates (12, 24, 36)" in source.notes[-1]
    compare_logits(source.checkpoint(), module, size)


def test_all_of_its_options_come_back(make, check_way_back):
    for name, options in (
        ("DeepLabV3Plus", {"decoder_channels": 32, "decoder_aspp_separable": False}),
        ("DeepLabV3", {"decoder_channels": 32, "decoder_aspp_separable": True}),
    ):
        module = make(name, **options)
        model, _ = check_way_back(module.state_dict(), "smp")
        assert model.config.deeplab.separable_branches == options["decoder_aspp_separable"]
        assert model.config.deeplab.channels == 32


def test_a_folder_of_its_own_says_stride_and_rates(make, tmp_path):
    make("DeepLabV3Plus", encoder_output_stride=8, decoder_atrous_rates=(6, 12, 18)).save_pretrained(tmp_path)
    source = open_weights(tmp_path)
    assert (source.format, source.notes) == ("smp", ())
    assert (source.config.output_stride, source.config.deeplab.atrous_rates) == (8, (6, 12, 18))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "encoder_depth": 4}))
    with pytest.raises(ConfigError, match="encoder_depth=4; this library reads those with 5"):
        from_pretrained(tmp_path)
