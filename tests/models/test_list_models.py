"""The names of the published networks, chosen by a pattern."""

from flax_mnv2 import VARIANTS, list_models, variant_config


def test_every_variant_is_listed_once_by_width_and_size():
    names = list_models()
    assert set(names) == set(VARIANTS)
    assert len(names) == len(VARIANTS)
    sizes = [(config.depth_multiplier, config.image_size) for config in map(variant_config, names)]
    assert sizes == sorted(sizes)


def test_a_pattern_chooses():
    assert list_models("*_1.[034]_96") == ["mobilenet_v2_1.0_96", "mobilenet_v2_1.3_96", "mobilenet_v2_1.4_96"]
    assert list_models("mobilenet_v3*") == []
