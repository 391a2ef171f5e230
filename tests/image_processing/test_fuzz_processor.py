"""The image processor given arrays, files, images, nestings and settings of every kind: a result, or a UserError.

The cases follow from a seed in the code; with FUZZ=all 2,000 of images, of settings and of logits.
"""

import collections
import io
import math
import types
import warnings

import hypothesis
import numpy as np
import pytest
from fuzzing import cases
from hypothesis import strategies as st
from PIL import Image

from flax_mnv2.errors import UserError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor

SETTINGS = cases(2000)
CASES = SETTINGS.max_examples
PROCESSOR = MobileNetV2ImageProcessor(size=12, crop_size=9)
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B", "LA", "PA", "La",
         "RGBa", "RGBX")  # fmt: skip
DTYPES = ("u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">u2", "?", "c8", "O", "U3", "S2", "M8[s]",
          "m8[s]", "g", [("a", "u1")])  # fmt: skip
VALUES = (0, 1, 2, 255, 256, 0.5, -1, 1e-30, 3e38, math.nan, math.inf, 2**31, 2**63)
FORMATS = {"JPEG": "RGB", "PNG": "RGBA", "GIF": "P", "BMP": "RGB", "TIFF": "I;16", "WEBP": "RGB", "PPM": "L"}


def encoded(kind, mode):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels)
    (picture if mode == "I;16" else picture.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


FILES = [encoded(kind, mode) for kind, mode in FORMATS.items()]


@st.composite
def arrays(draw, sides=(0, 1, 2, 3, 4, 5, 7, 16), min_rank=0, max_rank=5, dtypes=DTYPES):
    shape = draw(st.lists(st.sampled_from(sides), min_size=min_rank, max_size=max_rank))
    if math.prod(shape) > 5000:
        shape = shape[:3]
    values = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=3))
    flat = np.resize(np.array(values, np.float64), math.prod(shape)).reshape(shape)
    with np.errstate(all="ignore"):
        try:
            return flat.astype(draw(st.sampled_from(dtypes)))
        except (ValueError, TypeError, OverflowError):  # no such conversion
            return flat


@st.composite
def pictures(draw):
    mode = draw(st.sampled_from(MODES))
    size = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    image = Image.new(mode, size, draw(st.sampled_from([0, None])))
    if draw(st.booleans()):
        image.info["transparency"] = draw(st.sampled_from([0, 300, b"", b"\0", (1, 2, 3), "x", None, -1]))
    return image


damaged = st.tuples(
    st.just("file"), st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=3)
)
others = st.sampled_from(
    [None, 0, 1.5, True, "", "no such file", "a\0b", "~nobody/x", "/", "\udcff", b"bytes", {}, {"a": 1}, set(),
     object(), iter(()), range(3), (), [], [[]], [[], [[]]], np.float32(1), types.SimpleNamespace()]
)  # fmt: skip
images = st.recursive(arrays() | pictures() | damaged | others, lambda inner: st.lists(inner, max_size=3), max_leaves=3)
numbers = st.sampled_from(
    [0, 1, 2, 5, 8, 65_535, 65_536, -1, 2**40, 10**400, 0.5, 1e300, 5e-324, math.nan, math.inf, True, None, "2", b"2",
     1j, np.int8(3), np.float16(2), np.array(3), np.array([3, 3])]
)  # fmt: skip
keys = st.sampled_from(["height", "width", "shortest_edge", "longest_edge", 3])
nested = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=4,
)
NAMES = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
         "do_normalize", "image_mean", "image_std", "do_reduce_labels")  # fmt: skip
odd = st.sampled_from(
    ["jax", "np", "np", "channels_first", "channels_last", "none", "", 3, True, None, [], {}, object()]
)


def resolved(source, path):
    """The nesting with damaged files written, all of them to one path."""
    if isinstance(source, list):
        return [resolved(item, path) for item in source]
    if isinstance(source, tuple) and source[:1] == ("file",):
        data = bytearray(source[1])
        for place, value in source[2]:
            if value == 255:
                del data[place % max(1, len(data)) :]
            elif data:
                data[place % len(data)] = value
        path.write_bytes(data)
        return path
    return source


def outcome(act):
    """What comes of a call: a result, or the kind of UserError; anything else is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow and of the processor
        try:
            act()
        except UserError as error:
            return type(error).__name__
        return "result"


@pytest.fixture
def outcomes():
    """Counts; there must be many of each kind, or the cases test little."""
    counts = collections.Counter()
    yield counts
    assert counts["result"] > CASES // 20, counts
    assert counts.total() - counts["result"] > CASES // 20, counts


def test_images(tmp_path, outcomes):
    @SETTINGS
    @hypothesis.seed(0)
    @hypothesis.given(images, st.none() | st.none() | st.none() | images, odd, odd)  # most maps do not fit the images
    def run(source, maps, tensors, layout):
        source, maps = resolved(source, tmp_path / "x"), resolved(maps, tmp_path / "y") if maps is not None else None
        options = {"return_tensors": tensors} if tensors in ("jax", "np", "none") else {}
        if isinstance(layout, str) and layout.startswith("channels"):
            options["input_data_format"] = layout

        def act():
            features = PROCESSOR(source, maps, **options)
            for values in features["pixel_values"]:
                assert values.shape == (9, 9, 3)
                assert values.dtype == np.float32

        outcomes[outcome(act)] += 1

    run()
    assert outcomes.total() >= CASES


def test_settings(outcomes):
    picture = np.arange(7 * 8 * 3, dtype=np.uint8).reshape(7, 8, 3)

    @SETTINGS
    @hypothesis.seed(0)
    @hypothesis.given(st.dictionaries(st.sampled_from(NAMES), nested | odd, max_size=3), odd, odd, odd)
    def run(settings, tensors, layout, given):
        if _pixels(settings.get("crop_size")) > 2**20 or _pixels(settings.get("size")) > 2**20:
            settings = {**settings, "do_center_crop": False, "do_resize": False}  # allowed, and slow

        outcomes[outcome(lambda: MobileNetV2ImageProcessor.from_dict(settings))] += 1
        outcomes[outcome(lambda: PROCESSOR(picture, return_tensors=tensors, **settings))] += 1
        outcomes[outcome(lambda: PROCESSOR(picture, data_format=layout, input_data_format=given))] += 1

    run()
    assert outcomes.total() >= 3 * CASES


def _pixels(value):
    """The pixels that a valid size asks for, 0 for one that is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of complex numbers
            sides = [int(side) for side in (value.values() if isinstance(value, dict) else np.atleast_1d(value))]
        return math.prod(sides) if len(sides) == 2 else sides[0] ** 2
    except (TypeError, ValueError, OverflowError, IndexError, Warning):
        return 0


def test_logits(outcomes):
    maps = arrays(sides=(1, 2, 3), min_rank=4, max_rank=4, dtypes=("f4", "f8", "f2", "i4"))

    @SETTINGS
    @hypothesis.seed(0)
    @hypothesis.given(
        arrays() | others | maps,
        st.none()
        | st.lists(nested, max_size=3)
        | nested
        | st.lists(st.tuples(st.integers(1, 20), st.just(5)), max_size=3),
    )
    def run(logits, sizes):
        if any(_pixels(size) > 2**20 for size in (sizes if isinstance(sizes, list) else [])):
            sizes = None
        output = types.SimpleNamespace(logits=logits)
        outcomes[outcome(lambda: PROCESSOR.post_process_semantic_segmentation(output, sizes))] += 1

    run()
    assert outcomes.total() >= CASES
