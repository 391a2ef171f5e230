"""mmseg's DeepLab against PyTorch modules of its structure."""

import pytest

from flax_mnv2.weights.opening import open_weights

CLASSES = 7
D8 = {"strides": (1, 2, 2, 1, 1, 1, 1), "dilations": (1, 1, 1, 2, 2, 4, 4)}
D16 = {"strides": (1, 2, 2, 2, 1, 1, 1), "dilations": (1, 1, 1, 1, 1, 2, 2)}


@pytest.fixture
def mmseg(few_blocks, randomize):
    torch_modules = pytest.importorskip("torch_modules", exc_type=ImportError)

    def make(**options):
        return randomize(torch_modules.Mmseg(few_blocks, num_classes=CLASSES, **options), seed=2)

    return make


@pytest.mark.parametrize(
    ("output_stride", "size", "options"),
    [
        (8, (257, 257), {**D8, "plus": True, "channels": 96}),
        (16, (320, 320), {**D16, "plus": True, "channels": 96}),
        (16, (321, 449), {**D16, "plus": False, "channels": 96}),
    ],
)
def test_same_logits(mmseg, compare_logits, tmp_path, output_stride, size, options):
    import torch

    module = mmseg(**options)
    torch.save({"state_dict": module.state_dict(), "meta": {"CLASSES": ("a", "b")}}, tmp_path / "iter_80000.pth")
    source = open_weights(tmp_path / "iter_80000.pth")
    assert source.format == "mmseg"
    assert any("left out the auxiliary head" in note for note in source.notes)
    assert "took 8 with atrous rates (12, 24, 36)" in source.notes[-1]
    assert (source.config.deeplab.channels, source.config.num_labels) == (options.get("channels", 512), CLASSES)
    checkpoint = source.checkpoint()
    object.__setattr__(checkpoint, "config", checkpoint.config.replace(output_stride=output_stride))
    compare_logits(checkpoint, module, size)


@pytest.mark.parametrize("plus", [True, False])
def test_it_comes_back(mmseg, check_way_back, plus):
    state = mmseg(**D8, plus=plus, channels=64).state_dict()
    check_way_back({name: value for name, value in state.items() if not name.startswith("auxiliary")}, "mmseg")


def test_the_multiplier_shows_in_the_widths(randomize, check_way_back, monkeypatch):
    torch_modules = pytest.importorskip("torch_modules", exc_type=ImportError)
    table = ((24, 2, 2), (48, 1, 2), (64, 2, 2), (80, 1, 1), (96, 1, 2), (120, 1, 1))
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", tuple((2 * width, *rest) for width, *rest in table))
    monkeypatch.setattr("flax_mnv2.layer_plan.STEM_CHANNELS", 64)
    monkeypatch.setattr("flax_mnv2.layer_plan.STEM_OUT_CHANNELS", 32)
    state = torch_modules.Mmseg(table, num_classes=CLASSES, **D8, plus=True, channels=32).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("auxiliary")}
    model, _ = check_way_back(state, "mmseg")
    assert model.config.depth_multiplier == 0.5
