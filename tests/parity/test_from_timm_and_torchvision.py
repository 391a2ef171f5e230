"""docs/from_timm_and_torchvision.md: every line of its tables, the left with the library, the right with ours."""

import functools
import pathlib
import re

import numpy as np
import pytest

import flax_mnv2

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "from_timm_and_torchvision.md"
ROWS = [
    (library, left, right)
    for library, part in re.findall(r"## (\w+)\n(.*?)(?=\n## |\Z)", PAGE.read_text(), re.DOTALL)
    for left, right in re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", part, re.MULTILINE)
]


def test_the_page_has_its_tables():
    assert [library for library, *_ in ROWS] == ["timm"] * 9 + ["torchvision"] * 5


@pytest.fixture(scope="module")
def names(timm, torchvision, tmp_path_factory):
    """What the lines of each library may name."""
    import torch

    made = {}
    for library, module in (
        ("timm", timm.create_model("mobilenetv2_035", num_classes=3)),
        ("torchvision", torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=3)),
    ):
        folder, state = tmp_path_factory.mktemp(library), module.state_dict()
        average = {key: value * 2 for key, value in state.items()}
        torch.save({"state_dict": state, "state_dict_ema": average}, folder / "last.pth.tar")
        torch.save({"model": state, "model_ema": average}, folder / "last.pth")
        model, variables = flax_mnv2.from_state_dict(state)
        theirs = {"timm": timm, "torchvision": torchvision, "torch": torch, "functools": functools}
        theirs |= {"module": module.eval(), "images": torch.zeros(1, 3, 32, 32)}
        ours = {name: getattr(flax_mnv2, name) for name in dir(flax_mnv2) if name[0].isupper() or "_" in name}
        ours |= {"model": model, "variables": variables, "state": state, "path": folder / "last.pth"}
        made[library] = folder, theirs, ours
    return made


@pytest.mark.parametrize(("library", "left", "right"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_every_line_runs(names, monkeypatch, library, left, right):
    folder, theirs, ours = names[library]
    monkeypatch.chdir(folder)
    assert eval(left, theirs) is not None
    assert eval(right, ours) is not None


def test_what_the_library_builds_and_we_do_not(timm, torchvision):
    import torch

    vision = torchvision.models
    for module, reason in (
        (vision.mobilenet_v2(norm_layer=functools.partial(torch.nn.GroupNorm, 1)), "no running statistics: its norm"),
        (vision.MobileNetV2(inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]), "inverted_residual_setting"),
        (vision.MobileNetV2(width_mult=0.3, round_nearest=4), "no other inverted_residual_setting, round_nearest"),
        (timm.create_model("mobilenetv2_035", features_only=True), "load_backbone puts it under a MobileNetV2Backbone"),
    ):
        with pytest.raises(flax_mnv2.CheckpointError, match=reason):
            flax_mnv2.from_state_dict(module.state_dict(), task="backbone")


def test_feature_extractors_go_under_a_backbone(timm):
    """timm's features_only, which may end early."""
    import jax

    state = timm.create_model("mobilenetv2_035", features_only=True, out_indices=(0, 1, 2)).state_dict()
    pyramid = flax_mnv2.MobileNetV2Backbone(
        flax_mnv2.MobileNetV2Config(depth_multiplier=0.35, tf_padding=False), strides=(8,)
    )
    shapes = jax.eval_shape(pyramid.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = flax_mnv2.load_backbone(state, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    kernel = variables["params"]["mobilenet_v2"]["layer_00"]["conv_3x3"]["convolution"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 0], state["blocks.1.0.conv_dw.weight"].numpy()[:, 0].transpose(1, 2, 0))
