"""Augmentations against torchvision's and timm's: each policy by its magnitudes and by what it draws."""

import collections

import numpy as np
import pytest
from augmentation_names import NAMES, TIMM_NAMES

from flax_mnv2.data.augment.auto_augment import (
    RAND_AUGMENT,
    TIMM_RAND_AUGMENT,
    TRIVIAL_AUGMENT_WIDE,
    RandAugment,
    TimmRandAugment,
    TrivialAugmentWide,
)
from flax_mnv2.data.augment.color_jitter import ColorJitter
from flax_mnv2.data.augment.random_erasing import RandomErasing


def _theirs(transform):
    """torchvision's table: ours by name → (magnitudes by bin for an image of 224 by 320, signed)."""
    table = {}
    for name, (magnitudes, signed) in transform._AUGMENTATION_SPACE.items():
        values = magnitudes(31, 224, 320)
        table[NAMES[name]] = (None if values is None else values.numpy().astype(float), signed)
    return table


@pytest.mark.parametrize(
    ("name", "table"), [("RandAugment", RAND_AUGMENT), ("TrivialAugmentWide", TRIVIAL_AUGMENT_WIDE)]
)
def test_magnitudes_are_torchvisions(torchvision, name, table):
    from torchvision.transforms import v2

    theirs = _theirs(getattr(v2, name))
    assert list(table) == list(theirs)
    for row, (magnitudes, signed) in theirs.items():
        ours = np.array([table[row].value(step / 30) for step in range(31)])
        assert table[row].signed == signed
        if magnitudes is None:
            assert not ours.any()
            continue
        assert magnitudes.max() > 0
        if name == "RandAugment" and row.startswith("translate"):
            ours *= 320 if row == "translate_x" else 224
        if row == "posterize":
            ours = np.round(ours)
        np.testing.assert_allclose(ours, magnitudes * (255 if row == "solarize" else 1), atol=1e-4)


class _Recorded(dict):
    """Stands in for the image ops of timm: keeps what each was called with."""

    def __init__(self, names):
        self.calls = []
        super().__init__({name: self._keeping(name) for name in names})

    def _keeping(self, name):
        def call(image, *arguments, **options):
            self.calls.append((TIMM_NAMES[name], arguments, options))
            return image

        return call


def _kolmogorov_smirnov(ours, theirs):
    """The largest distance of the two distribution functions."""
    both = np.sort(np.concatenate([ours, theirs]))
    ours, theirs = (np.searchsorted(np.sort(each), both, side="right") / len(each) for each in (ours, theirs))
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("config", ["rand-m9-mstd0.5", "rand-m5-n3-p0.8-mstd2"])
def test_timms_draws(timm, monkeypatch, config):
    """How often each operation comes, with which arguments and which interpolation."""
    import random

    from timm.data import auto_augment

    recorded = _Recorded(TIMM_NAMES)
    monkeypatch.setattr(auto_augment, "NAME_TO_OP", recorded)
    transform = auto_augment.rand_augment_transform(config, {"img_mean": (124, 116, 104)})
    assert {TIMM_NAMES[op.name] for op in transform.ops} == set(TIMM_RAND_AUGMENT)
    state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    for _ in range(6000):
        transform(None)
    random.setstate(state[0])
    np.random.set_state(state[1])

    options = {} if config == "rand-m9-mstd0.5" else {"magnitude": 5, "magnitude_std": 2, "num_ops": 3}
    policy = TimmRandAugment(**options, **({"probability": 0.8} if options else {}))
    rng = np.random.default_rng(0)
    ours = [drawn for _ in range(6000) for drawn in policy.draw(rng)]
    theirs = recorded.calls
    expected = 6000 * policy.num_ops * policy.probability
    assert abs(len(ours) - expected) < 0.05 * expected
    assert abs(len(theirs) - expected) < 0.05 * expected
    assert all(call[2]["fillcolor"] == policy.fill for call in theirs)
    # timm's operation itself chooses one of these.
    assert all([each.name.lower() for each in call[2]["resample"]] == list(policy.interpolations) for call in theirs)
    assert abs(np.mean([drawn.interpolation == "bilinear" for drawn in ours]) - 0.5) < 0.04

    counts = [collections.Counter(each[0] for each in drawn) for drawn in (ours, theirs)]
    whole = {"posterize", "solarize", "solarize_add"}
    for name in TIMM_RAND_AUGMENT:
        for count in counts:  # five standard deviations
            assert abs(count[name] - expected / 15) < 5 * (expected / 15) ** 0.5
        mine = np.array([drawn.value for drawn in ours if drawn.name == name])
        others = [call[1] for call in theirs if call[0] == name]
        if not others[0]:
            assert not mine.any()
            continue
        mine = np.trunc(mine) if name in whole else mine
        others = np.array(others)[:, 0]
        # With about 400 draws each, 0.999 of equal distributions stay below 1.95 × sqrt(2 / 400).
        assert _kolmogorov_smirnov(mine, others) < 1.95 * (1 / len(mine) + 1 / len(others)) ** 0.5
        assert (mine.min() < 0) == (others.min() < 0)


def _frequencies(names, count):
    counted = collections.Counter(names)
    return np.array([counted[name] / count for name in RAND_AUGMENT])


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide"])
def test_torchvisions_draws(torchvision, pillow, monkeypatch, name):
    import torch
    from torchvision.transforms import v2

    transform, policy = (
        getattr(v2, name)(),
        {"RandAugment": RandAugment, "TrivialAugmentWide": TrivialAugmentWide}[name](),
    )
    calls = []

    def record(image, transform_id, magnitude, **options):
        calls.append((NAMES[transform_id], magnitude))
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", record)
    picture = pillow.new("RGB", (224, 224))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3000):
            transform(picture)
    rng = np.random.default_rng(0)
    ours = [drawn for _ in range(3000) for drawn in policy.draw(rng)]
    assert len(ours) == len(calls) == 3000 * (2 if name == "RandAugment" else 1)
    for drawn in (ours, calls):
        np.testing.assert_allclose(_frequencies([each[0] for each in drawn], len(drawn)), 1 / 14, atol=0.025)
    scale = {"translate_x": 224, "translate_y": 224} if name == "RandAugment" else {}
    for row in RAND_AUGMENT:
        mine = np.array([drawn.value for drawn in ours if drawn.name == row]) * scale.get(row, 1)
        others = np.array([magnitude for each, magnitude in calls if each == row]) * (255 if row == "solarize" else 1)
        mine = np.round(mine) if row == "posterize" else mine
        mine, others = np.round(mine, 3), np.round(others, 3)  # torchvision's are float32
        assert _kolmogorov_smirnov(mine, others) < 1.95 * (1 / len(mine) + 1 / len(others)) ** 0.5


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (1.5, 0.2, 0.0, 0.5)])
def test_colour_jitters_draws(torchvision, strengths):
    import torch
    from torchvision import transforms

    theirs, ours = transforms.ColorJitter(*strengths), ColorJitter(*strengths)
    names = ("brightness", "contrast", "saturation", "hue")
    drawn = {name: ([], []) for name in names}
    first = ([], [])
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(2000):
            mine = ours.draw(rng)
            order, *factors = theirs.get_params(theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
            for name, factor in mine:
                drawn[name][0].append(factor)
            for name, factor in zip(names, factors, strict=True):
                if factor is not None:
                    drawn[name][1].append(factor)
            first[0].append(mine[0][0])
            first[1].append(next(names[index] for index in order if factors[index] is not None))
    for name, strength in zip(names, strengths, strict=True):
        assert len(drawn[name][0]) == len(drawn[name][1]) == (2000 if strength else 0)
        if strength:
            assert _kolmogorov_smirnov(*map(np.array, drawn[name])) < 0.0617  # with probability 0.999
        expected = 1 / sum(strength > 0 for strength in strengths) if strength else 0
        for each in first:
            assert abs(each.count(name) / 2000 - expected) < 0.05


@pytest.mark.parametrize("size", [(224, 224), (96, 200), (20, 7)])
def test_erased_boxes_are_distributed_as_torchvisions(torchvision, size):
    import torch
    from torchvision import transforms

    erasing = RandomErasing()
    rng = np.random.default_rng(0)
    ours = [erasing.draw_box(*size, rng) for _ in range(4000)]
    image = torch.zeros((3, *size))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            transforms.RandomErasing.get_params(image, erasing.area, erasing.aspect, [0.0])[:4] for _ in range(4000)
        ]
    # torchvision says with the whole image that it found none.
    theirs = [None if box == (0, 0, *size) else box for box in theirs]
    assert abs(sum(box is None for box in ours) - sum(box is None for box in theirs)) < 50
    ours, theirs = (np.array([box for box in boxes if box is not None]) for boxes in (ours, theirs))
    for column in range(4):
        assert _kolmogorov_smirnov(ours[:, column], theirs[:, column]) < 0.0437  # with probability 0.999
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    assert _kolmogorov_smirnov(*areas) < 0.0437
