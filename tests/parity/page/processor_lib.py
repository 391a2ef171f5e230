"""What the page's items on the image processor share: the library as the page has it, an image, two short forms."""

import types
import warnings

import numpy as np
from items import Item
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
LABELS = np.random.default_rng(1).choice([0, 1, 20, 255], (20, 30)).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)
SMALL = {"size": {"shortest_edge": 16}, "crop_size": {"height": 12, "width": 10}}
FIRST = {"data_format": "channels_first"}
RELEASE_5 = "as the page says; release 5 of transformers left it: "


class PillowBackend:
    """A library, in which the processors' names on the page stand for those that compute with Pillow."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        if name in ("MobileNetV2ImageProcessor", "MobileNetV2FeatureExtractor"):
            return getattr(self._library, "MobileNetV2ImageProcessorPil", None) or getattr(self._library, name)
        return getattr(self._library, name)


def item(name, line, ours=None, idiom=""):
    """An item of the page whose lines see the Pillow backend."""
    return Item(name, lambda lib: line(PillowBackend(lib)), ours, idiom)


def page(name, value, ours, why):
    """An item where the page of 4.37 and release 5 disagree: what the page says, and our line."""
    return Item(name, lambda lib: value(PillowBackend(lib)) if callable(value) else value, ours, RELEASE_5 + why)


def pixels(lib, images=PIXELS, *more, settings=None, **options):
    """The first image's values and their type, channels first, with settings of the constructor."""
    processor = lib.MobileNetV2ImageProcessor(**SMALL | (settings or {}))
    values = processor(images, *more, **FIRST | options).pixel_values[0]
    return np.asarray(values), np.asarray(values).dtype.name


def labels(lib, maps=LABELS, settings=None, **options):
    """The first map's labels and their type. Release 5 reduces labels in the array given, so that gets a copy."""
    maps = maps.copy() if isinstance(maps, np.ndarray) else maps
    found = lib.MobileNetV2ImageProcessor(**SMALL | (settings or {}))(PIXELS, maps, **options).labels[0]
    return np.asarray(found), np.asarray(found).dtype.name


def refused(act):
    """Whether a call raises, of whatever kind: the kinds are each library's own."""
    try:
        act()
    except Exception:
        return True
    return False


def warned(act):
    """The kinds of warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [warning.category for warning in caught]


def segmented(lib):
    """What a segmentation model gives, in the order of axes that its library has: the same numbers."""
    logits = np.random.default_rng(2).normal(0, 5, (2, 5, 6, 4)).astype(np.float32)
    if lib.__name__ == "flax_mnv2":
        return types.SimpleNamespace(logits=logits)
    import torch

    return types.SimpleNamespace(logits=torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()))
