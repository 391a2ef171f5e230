"""VainF's DeepLab against PyTorch modules of its structure, at sizes where its padding shows."""

import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config, to_state_dict
from flax_mnv2.weights.opening import open_weights

CLASSES = 6


@pytest.fixture
def vainf(few_blocks, randomize):
    torch_modules = pytest.importorskip("torch_modules", exc_type=ImportError)

    def make(output_stride, **options):
        return randomize(torch_modules.VainF(few_blocks, output_stride, CLASSES, **options), seed=1)

    return make


@pytest.mark.parametrize(
    ("output_stride", "size", "options"),
    [
        (16, (257, 257), {"plus": True}),
        (8, (320, 320), {"plus": True}),
        (16, (321, 449), {"plus": True, "separable": True}),
        (8, (97, 66), {"plus": False}),
    ],
)
def test_same_logits(vainf, compare_logits, tmp_path, output_stride, size, options):
    import torch

    module = vainf(output_stride, **options)
    torch.save({"cur_itrs": 7, "model_state": module.state_dict(), "best_score": 0.7}, tmp_path / "best.pth")
    source = open_weights(tmp_path / "best.pth")
    assert source.format == "vainf"
    assert source.config.num_labels == CLASSES
    assert "do not say the output stride; took 16 with atrous rates (6, 12, 18)" in source.notes[-1]
    checkpoint = source.checkpoint()
    object.__setattr__(checkpoint, "config", checkpoint.config.replace(output_stride=output_stride))
    compare_logits(checkpoint, module, size)


@pytest.mark.parametrize("options", [{"plus": True}, {"plus": False}, {"plus": True, "separable": True}], ids=str)
def test_it_comes_back(vainf, check_way_back, options):
    check_way_back(vainf(16, **options).state_dict(), "vainf", output_stride=8)


def test_its_pixels_are_imagenets(vainf, tmp_path):
    import torch

    torch.save(vainf(16, plus=True).state_dict(), tmp_path / "best.pth")
    processor = open_weights(tmp_path / "best.pth").processor()
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406)
    assert not processor.do_resize
    assert not processor.do_center_crop


def test_what_its_code_would_compute_otherwise_is_refused(vainf, check_way_back):
    model, variables = check_way_back(vainf(16, plus=True).state_dict(), "vainf")
    for change, message in (
        ({"pad_block_input": False}, "conv_stem.pads: VainF's DeepLabV3Plus-Pytorch needs False, the source has True"),
        ({"dilation_rule": "smp"}, r"layer_07\.dilation: .* needs 1, the source has 2"),
        ({"deeplab": model.config.deeplab.replace(align_corners=True)}, r"deeplab\.align_corners: .* needs False"),
        ({"output_stride": 32}, "output_stride: .* needs '8 or 16', the source has 32"),
    ):
        other = model.clone(config=model.config.replace(**change))
        with pytest.raises(ConfigError, match=message):
            to_state_dict(other, variables, "vainf")
    with pytest.raises(ConfigError, match="tf_padding=False"):
        MobileNetV2Config(pad_block_input=True)
