"""Masks as tools write them: values, colours, palettes, and what is refused with what to do."""

import io

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.data.labels.masks import MaskRule, parse_label_map
from flax_mnv2.data.labels.names import LabelNames
from flax_mnv2.errors import ConfigError, DataError

NAMES = ("background", "cat", "dog")
COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
CLASSES = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def rule(colors=(), **options):
    return MaskRule(labels=LabelNames(NAMES, colors), ignore_label=255, **options)


def png(pixels, mode=None, palette=None):
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def painted(void=(224, 224, 192)):
    """The classes in their colours."""
    table = np.array([*COLORS, *[void] * 253], np.uint8)
    return table[CLASSES]


GREYS = np.array([0, 127, 254] + [255] * 253, np.uint8)
FROM_ONE = (CLASSES + (CLASSES < 255)).astype(np.uint8)
NINE_FOR_VOID = np.where(CLASSES == 255, 9, CLASSES).astype(np.uint8)
WAYS = {
    "grey": (rule(), png(CLASSES)),
    "palette": (rule(), png(CLASSES, palette=[7] * 768)),
    "16 bits": (rule(), png(CLASSES.astype(np.uint16))),
    "grey as RGB": (rule(), png(CLASSES, "RGB")),
    "grey with alpha": (rule(), png(CLASSES, "LA")),
    "colours": (rule(COLORS), png(painted())),
    "colours with alpha": (rule(COLORS), png(painted(), "RGBA")),
    "colours, grey masks": (rule(COLORS), png(CLASSES)),
    "values to be seen": (rule(values={0: 0, 127: 1, 254: 2}), png(GREYS[CLASSES])),
    "from one": (rule(reduce_labels=True), png(FROM_ONE)),
    "a value for nothing": (rule(values={0: 0, 1: 1, 2: 2, 9: 255}), png(NINE_FOR_VOID)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_classes(way):
    reader, data = WAYS[way]
    classes = reader.classes(data)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, CLASSES)


def test_a_palette_in_another_order():
    """Its colours say what it shows, where the label file has them."""
    order = np.array([1, 0, 2] + [255] * 253, np.uint8)
    palette = [value for index in (1, 0, 2) for value in COLORS[index]] + [9] * (768 - 9)
    np.testing.assert_array_equal(rule(COLORS).classes(png(order[CLASSES], palette=palette)), CLASSES)


def test_reduced_zero_is_ignored():
    reduced = rule(reduce_labels=True).classes(png(np.array([[0, 1, 3, 255]], np.uint8)))
    assert reduced.tolist() == [[255, 0, 2, 255]]


@pytest.mark.parametrize(
    ("reader", "pixels", "message"),
    [
        (rule(), [[0, 127, 254]], r"values 127, 254, expected 0 … 2 \(background, cat.*label_map=0:0,127:1,254:2"),
        (rule(), [[1, 2, 3]], r"the value 3, expected 0 … 2.*reduce_labels=True; if 0 is the background, name it"),
        (rule(), [list(range(9))], "the values 3, 4, 5, 6, 7, 8, expected 0 … 2"),
        (rule(reduce_labels=True), [[4]], r"the value 4, expected 1 … 3 .*reduce_labels"),
        (rule(values={0: 0, 200: 1}), [[0, 7]], r"the value 7, expected 0, 200 .*Correct"),
    ],
)
def test_values_without_a_class(reader, pixels, message):
    with pytest.raises(DataError, match=message):
        reader.classes(png(np.array(pixels, np.uint8)))


def test_colours_without_a_class():
    with pytest.raises(DataError, match=r"found the colours \(0,0,0\), \(0,128,0\).*lines 'name:R,G,B'"):
        rule().classes(png(painted()))
    with pytest.raises(DataError, match=r"has the colour \(1,2,3\), which --config.data.labels has no class for"):
        rule(COLORS).classes(png(painted(void=(1, 2, 3))))


def test_transparent_masks_are_refused():
    pixels = np.dstack([painted(), np.zeros(CLASSES.shape, np.uint8)])
    with pytest.raises(DataError, match="mode RGBA with transparent pixels"):
        rule(COLORS).classes(png(pixels))


def test_label_maps():
    assert parse_label_map("0:0, 255:dog,9:ignore", NAMES, 255) == {0: 0, 255: 2, 9: 255}
    assert parse_label_map("", NAMES, 255) is parse_label_map("as_is", NAMES, 255) is None


@pytest.mark.parametrize("text", ["255", "255:3", "255:eel", "-1:0", "a:1", "0:0,0:1", "70000:1", "0:0,as_is"])
def test_label_maps_that_say_nothing(text):
    with pytest.raises(ConfigError, match=r"label_map has .*expected VALUE:CLASS"):
        parse_label_map(text, NAMES, 255)
