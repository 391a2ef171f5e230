"""The depth multiplier is found from widths alone, and differences between networks are named."""

import pytest

from flax_mnv2 import MobileNetV2Config
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.pytorch import find_depth_multiplier, norm_widths, plan_differences

TRANSFORMERS = MobileNetV2Config(num_labels=2)
OTHERS = TRANSFORMERS.replace(**pytorch.WIDTH_RULE)


@pytest.mark.parametrize("base", [TRANSFORMERS, OTHERS], ids=["transformers", "others"])
@pytest.mark.parametrize("multiplier", [0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.1, 1.3, 1.4, 2.0, 3.0])
def test_usual_multipliers_are_found_exactly(base, multiplier):
    assert find_depth_multiplier(base, norm_widths(base.replace(depth_multiplier=multiplier).layer_plan)) == multiplier


@pytest.mark.parametrize("base", [TRANSFORMERS, OTHERS], ids=["transformers", "others"])
@pytest.mark.parametrize("thousandths", range(87, 2000, 131))
def test_odd_multipliers_give_the_same_network(base, thousandths):
    plan = base.replace(depth_multiplier=thousandths / 1000).layer_plan
    found = find_depth_multiplier(base, norm_widths(plan))
    assert base.replace(depth_multiplier=found).layer_plan == plan
    assert len(str(found)) <= len(str(thousandths / 1000))


def test_widths_of_no_multiplier():
    widths = norm_widths(TRANSFORMERS.layer_plan)
    widths["mobilenet_v2", "layer_03", "reduce_1x1"] += 8
    assert find_depth_multiplier(TRANSFORMERS, widths) is None


def test_rules_for_widths_differ_where_they_should():
    """64 · 0.68125 = 43.6: torchvision makes 40 of it, transformers rounds to 44 first and makes 48."""
    plans = [base.replace(depth_multiplier=0.68125).layer_plan for base in (TRANSFORMERS, OTHERS)]
    assert [plan.blocks[5].out_channels for plan in plans] == [48, 40]


def test_every_norm_has_its_width(tiny_blocks):
    from flax_mnv2.weights.source import make_model, variable_shapes

    config = MobileNetV2Config(depth_multiplier=0.5, first_layer_is_expansion=False)
    shapes = variable_shapes(make_model(config, "backbone"))
    norms = {path[1:-2]: shape[0] for path, shape in shapes.items() if path[-1] == "scale"}
    assert norms == norm_widths(config.layer_plan)


def test_differences_are_named():
    wider = TRANSFORMERS.replace(first_layer_is_expansion=False, finegrained_output=False, depth_multiplier=0.99)
    differences = plan_differences(needed=TRANSFORMERS.layer_plan, found=wider.layer_plan)
    assert differences["conv_stem.expand"] == (False, True)
    assert differences["conv_1x1.out_channels"] == (1280, 1264)
    deeper = TRANSFORMERS.replace(layer_depth_multiplier=1.2)
    assert plan_differences(needed=TRANSFORMERS.layer_plan, found=deeper.layer_plan) == {
        "blocks after the stem": (16, 21)
    }
    assert not plan_differences(needed=TRANSFORMERS.layer_plan, found=TRANSFORMERS.layer_plan)
