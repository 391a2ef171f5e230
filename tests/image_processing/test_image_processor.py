"""What goes into the image processor, what comes out, and what it says when it cannot."""

import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    DataError,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    UserError,
    hub,
)
from flax_mnv2.image_processing.processor import MobileNetV2FeatureExtractor, MobileNetV2ImageProcessor
from flax_mnv2.image_processing.reading import read_picture

RAW = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


@pytest.fixture
def processor():
    return MobileNetV2ImageProcessor(size=32, crop_size=24)


# ---------------------------------------------------------------------------------- what goes in


def test_defaults(image):
    processor = MobileNetV2ImageProcessor()
    assert processor.size == {"shortest_edge": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    assert processor.image_mean == processor.image_std == [0.5, 0.5, 0.5]
    (pixels,) = processor(image).pixel_values
    assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.float32)
    assert -1 <= pixels.min() < -0.5
    assert 0.5 < pixels.max() <= 1


def test_every_kind_of_image_gives_the_same(processor, image, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = processor(image).pixel_values[0]
    one_each = [
        Image.fromarray(image),
        Image.open(path),
        path,
        str(path),
        jnp.asarray(image),
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        torch.from_numpy(image.astype(np.float32)).requires_grad_(),
        image.astype(np.float32),
        jnp.asarray(image, jnp.bfloat16),  # whole numbers up to 256 are exact in it
        np.asfortranarray(image).astype(">u2"),
    ]
    for kind in one_each:
        np.testing.assert_array_equal(processor(kind).pixel_values, [expected])
    for pixels in processor([*one_each, [image, image]]).pixel_values:
        np.testing.assert_array_equal(pixels, expected)


def test_a_4d_array_is_a_batch(processor, image):
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    for given in (batch, jnp.asarray(batch), batch.transpose(0, 3, 1, 2), [batch[:2], batch[2:]]):
        pixels = processor(given, return_tensors="np").pixel_values
        np.testing.assert_array_equal(pixels, [processor(one).pixel_values[0] for one in batch])


def test_channel_order_is_inferred_or_given(processor, image):
    np.testing.assert_array_equal(read_picture(image.transpose(2, 0, 1), "image"), image)
    narrow = image[:, :3]  # either axis could be the channels'
    with pytest.warns(UserWarning, match="taking the first"):
        assert read_picture(narrow.transpose(2, 0, 1), "image").shape == (40, 3, 3)
    given = processor(narrow.transpose(2, 0, 1), input_data_format="channels_first", **RAW).pixel_values[0]
    np.testing.assert_array_equal(given, narrow)
    strip = image[:3]
    given = processor(strip, input_data_format="channels_last", **RAW).pixel_values[0]
    np.testing.assert_array_equal(given, strip)


def test_grey_arrays_become_rgb(image):
    grey = image[..., 0]
    for array in (grey, grey[..., None], grey[None]):
        np.testing.assert_array_equal(read_picture(array, "image"), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_files_and_images_of_other_modes_become_rgb(image, tmp_path, mode):
    converted = Image.fromarray(image).convert(mode)
    expected = np.asarray(converted.convert("RGB"))
    np.testing.assert_array_equal(read_picture(converted, "image"), expected)
    if mode not in ("YCbCr", "HSV"):
        converted.save(tmp_path / "image.tif")
        np.testing.assert_array_equal(read_picture(tmp_path / "image.tif", "image"), expected)


@pytest.mark.parametrize("form", ["RGBA", "LA", "palette", "colour key"])
def test_transparency_is_laid_on_white(tmp_path, form):
    black = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    black.putpixel((1, 0), (0, 0, 0, 0))
    if form == "palette":
        picture, options = Image.fromarray(np.array([[1, 0, 1, 1], [1] * 4], np.uint8)).convert("P"), {}
        picture.putpalette([0] * 768)
        options = {"transparency": b"\x00\xff"}
    elif form == "colour key":
        picture, options = Image.new("RGB", (4, 2)), {"transparency": (9, 9, 9)}
        picture.putpixel((1, 0), (9, 9, 9))
    else:
        picture, options = black.convert(form), {}
    picture.save(tmp_path / "image.png", **options)
    expected = np.zeros((2, 4, 3), np.uint8)
    expected[0, 1] = 255
    np.testing.assert_array_equal(read_picture(tmp_path / "image.png", "image"), expected)


DEEP = np.array([[0, 257, 128 * 257], [65535, 100, 200]])
DEEP_IN_EIGHT_BITS = np.array([[0, 1, 128], [255, 0, 1]])


@pytest.mark.parametrize(
    ("values", "dtype", "suffix", "mode", "expected"),
    [
        (DEEP, np.uint16, "png", "I;16", DEEP_IN_EIGHT_BITS),
        (DEEP, np.int32, "tif", "I", DEEP_IN_EIGHT_BITS),
        (DEEP, np.float32, "tif", "F", DEEP_IN_EIGHT_BITS),
        (DEEP // 257, np.int32, "tif", "I", DEEP // 257),
        (DEEP // 257, np.float32, "tif", "F", DEEP // 257),
        (DEEP // 257, np.uint16, "png", "I;16", DEEP * 0 + [[0, 0, 0], [1, 0, 0]]),
        (DEEP / 65535, np.float32, "tif", "F", DEEP_IN_EIGHT_BITS),
    ],
)
def test_deep_files_are_scaled_to_eight_bits(tmp_path, values, dtype, suffix, mode, expected):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(values.astype(dtype)).save(path)
    with Image.open(path) as opened:
        assert opened.mode == mode
    picture = read_picture(path, "image")
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.stack([expected] * 3, axis=-1))


def test_exif_orientation_counts_for_paths_only(image, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise, to see it upright
    Image.fromarray(image).save(path, exif=exif)
    np.testing.assert_array_equal(read_picture(path, "image"), np.rot90(image, -1))
    np.testing.assert_array_equal(read_picture(Image.open(path), "image"), image)


def test_fractions_that_would_be_rescaled_again_are_noticed(processor, image):
    fractions = image / np.float32(255)
    with pytest.warns(UserWarning, match="do_rescale=False"):
        processor(fractions)
    expected, found = processor(image).pixel_values[0], processor(fractions, do_rescale=False).pixel_values[0]
    np.testing.assert_allclose(found, expected, atol=2.1 / 255)  # cut to 256 levels on the way


# ---------------------------------------------------------------------------------- what comes out


def test_without_rescaling_and_normalising_bytes_stay_bytes(processor, image):
    (pixels,) = processor.preprocess(image, do_rescale=False, do_normalize=False).pixel_values
    assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)
    np.testing.assert_array_equal(
        MobileNetV2ImageProcessor(do_resize=False, do_center_crop=False)(pixels).pixel_values[0],
        processor(image).pixel_values[0],
    )
    pixels[:] = 0  # ours to write to, also where the image came from a PIL one
    MobileNetV2ImageProcessor(**RAW)(Image.fromarray(image)).pixel_values[0][:] = 0


def test_a_crop_beyond_the_image_is_black_around_it():
    white = np.full((2, 8, 3), 255, np.uint8)
    (pixels,) = MobileNetV2ImageProcessor(do_resize=False, crop_size={"height": 5, "width": 2})(white).pixel_values
    np.testing.assert_array_equal(pixels[..., 0], [[-1, -1], [-1, -1], [1, 1], [1, 1], [-1, -1]])


def test_the_longer_side_is_truncated():
    processor = MobileNetV2ImageProcessor(do_center_crop=False, do_rescale=False, do_normalize=False)
    (pixels,) = processor(np.zeros((300, 211, 3), np.uint8)).pixel_values
    assert pixels.shape == (363, 256, 3)


def test_features_can_be_read_by_key_and_attribute(processor, image):
    features = processor(image, image[..., 0])
    assert features.pixel_values is features["pixel_values"]
    assert features.labels is features["labels"]
    assert set(processor(image)) == {"pixel_values"}
    assert not hasattr(processor(image), "labels")


def test_features_go_into_a_model_and_through_jit(processor, image, tiny_blocks):
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=4))
    features = processor(image, image[..., 0] % 4, size=40, crop_size=40, return_tensors="jax")
    variables = jax.jit(model.init)(jax.random.key(0), features.pixel_values)
    loss = jax.jit(lambda variables, features: model.apply(variables, **features).loss)(variables, features)
    expected = jax.jit(model.apply)(variables, features.pixel_values, features.labels).loss
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert jax.tree.map(jnp.shape, features) == {"pixel_values": (1, 40, 40, 3), "labels": (1, 40, 40)}


@pytest.mark.parametrize(("kind", "module"), [("np", "numpy"), ("jax", "jax"), ("pt", "torch")])
def test_tensors(processor, image, kind, module):
    pytest.importorskip(module)
    features = processor([image, image], [image[..., 0]] * 2, return_tensors=kind)
    for tensor in features.values():
        assert type(tensor).__module__.partition(".")[0].removesuffix("lib") == module
    assert tuple(features.pixel_values.shape) == (2, 24, 24, 3)
    assert tuple(features.labels.shape) == (2, 24, 24)
    np.testing.assert_array_equal(np.asarray(features.pixel_values), processor([image, image]).pixel_values)
    first = processor([image], return_tensors=kind, data_format="channels_first").pixel_values
    np.testing.assert_array_equal(np.asarray(first)[0].transpose(1, 2, 0), processor(image).pixel_values[0])


@pytest.mark.parametrize(("kind", "module"), [("pt", "torch"), ("tf", "tensorflow")])
def test_a_missing_package_is_named(processor, image, monkeypatch, kind, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=f"needs the package {module}, which is not installed"):
        processor(image, return_tensors=kind)


def test_settings_per_call_leave_the_processor_alone(processor, image):
    before = repr(processor)
    (pixels,) = processor(image, size={"height": 9, "width": 8}, do_center_crop=False, resample=None).pixel_values
    assert pixels.shape == (9, 8, 3)
    assert repr(processor) == before


# ---------------------------------------------------------------------------------- segmentation maps


def test_palette_and_grey_maps_keep_their_indices(processor, image, tmp_path):
    labels = np.random.default_rng(1).choice([0, 1, 20, 255], image.shape[:2]).astype(np.uint8)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as opened:
        assert opened.mode == "P"
    kinds = [palette, tmp_path / "map.png", Image.fromarray(labels), labels, labels.astype(float), jnp.asarray(labels)]
    for kind in kinds:
        np.testing.assert_array_equal(
            processor(image, kind, do_resize=False, crop_size=200).labels[0][80:120, 70:130], labels
        )
    batch = processor([image, image], np.stack([labels, labels]), return_tensors="np").labels
    assert (batch.shape, batch.dtype) == ((2, 24, 24), np.int64)


def test_maps_are_resized_to_the_nearest_label_and_move_with_the_image(processor, image):
    labels = np.where(image[..., 0] > 127, 255, 7).astype(np.uint8)
    picture = np.stack([labels] * 3, axis=-1)
    features = processor(picture, labels, resample=Image.Resampling.NEAREST, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(features.labels[0], features.pixel_values[0][..., 0])
    assert set(np.unique(processor(picture, labels).labels[0])) == {7, 255}


def test_labels_beyond_a_byte_survive(processor, tmp_path):
    labels = np.random.default_rng(2).integers(0, 1000, (40, 60)).astype(np.uint16)
    Image.fromarray(labels).save(tmp_path / "map.png")
    for kind, shift in ((tmp_path / "map.png", 0), (labels, 0), (labels.astype(np.int32) - 100, 100)):
        found = processor(np.zeros((40, 60, 3), np.uint8), kind).labels[0] + shift
        assert set(np.unique(found)) < set(np.unique(labels))
        assert len(np.unique(found)) > 200


def test_reduced_labels(image):
    labels = np.array([[0, 1, 2], [150, 254, 255]], np.uint8)
    processor = MobileNetV2ImageProcessor(do_reduce_labels=True, **RAW)
    found = processor(image[:2, :3], labels, input_data_format="channels_last").labels[0]
    np.testing.assert_array_equal(found, [[255, 0, 1], [149, 253, 255]])
    np.testing.assert_array_equal(labels[0], [0, 1, 2])


# ---------------------------------------------------------------------------------- label maps


def test_label_maps_from_logits():
    logits = np.zeros((2, 3, 4, 5), np.float32)
    logits[0, :, 2:, 3] = 1
    logits[1, 2, :, 4] = 1
    outputs = types.SimpleNamespace(logits=jnp.asarray(logits))
    post_process = MobileNetV2ImageProcessor().post_process_semantic_segmentation
    small = post_process(outputs)
    np.testing.assert_array_equal(small, logits.argmax(-1))
    large = post_process(outputs, target_sizes=np.array([[6, 8], [300, 7]]))
    assert [labels.shape for labels in large] == [(6, 8), (300, 7)]
    np.testing.assert_array_equal(large[0][:, 4:], 3)
    np.testing.assert_array_equal(large[1][:150], 0)
    np.testing.assert_array_equal(large[1][200:], 4)
    assert large[0].dtype == np.int64


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((2, 3, 4, 5), [(8, 8)], "for each of 2 images; found 1"),
        ((1, 3, 4, 5), [(8, 0)], "width must be a whole number of pixels.*found 0"),
        ((1, 3, 4, 5), [8], r"must be \(height, width\); found 8"),
        ((2, 5), None, r"found shape \(2, 5\)"),
    ],
)
def test_label_maps_that_cannot_be(shape, sizes, message):
    outputs = types.SimpleNamespace(logits=np.zeros(shape, np.float32))
    with pytest.raises(UserError, match=message):
        MobileNetV2ImageProcessor().post_process_semantic_segmentation(outputs, sizes)


# ---------------------------------------------------------------------------------- bad images


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "No image given: found an empty list"),
        ([[], []], "No image given"),
        (np.zeros((0, 8, 8, 3), np.uint8), "No image given"),
        (None, "found NoneType"),
        ([1, 2], "found int"),
        ({"image": 1}, "found dict"),
        (np.zeros(7, np.uint8), r"image 0 must have a height and a width.*\(7,\)"),
        (np.zeros((8, 0, 3), np.uint8), r"height and a width of 1 or more.*\(8, 0, 3\)"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"image 0 must be \(height, width\).*found shape \(1, 2, 8, 8, 3\)"),
        (np.zeros((8, 9, 2), np.uint8), r"1, 3 or 4 channels.*\(8, 9, 2\)"),
        (np.zeros((5, 8, 9), np.uint8), r"1, 3 or 4 channels.*\(5, 8, 9\)"),
        (np.zeros((8, 9, 3), complex), "real numbers; found dtype complex128"),
        (np.array([["a", "b"]]), "real numbers; found dtype <U1"),
        ([np.zeros((8, 9, 3), np.uint8), np.full((8, 9, 3), np.nan)], "image 1 holds NaN or infinity"),
        (np.full((8, 9, 3), np.inf, np.float32), "NaN or infinity"),
        (np.full((8, 9, 3), 12.5), r"image 0 cannot be resized.*found float64 values from 12\.5"),
        (np.full((8, 9, 3), -1), "cannot be resized.*from -1"),
        (np.full((8, 9, 3), 300, np.uint16), "cannot be resized.*to 300"),
        (np.full((8, 9, 4), 2.0), r"alpha channel.*in \[0, 1\.0\]"),
        (np.zeros((2, 2_200_000, 3), np.uint8), "would become 256×281600000"),
        (Image.fromarray(np.full((8, 9), -1, np.int32)), "mode I must hold values from 0 to 65535; found -1"),
        (Image.new("La", (8, 9)), "mode La cannot become RGB"),
        ("absent.png", "No image file absent.png"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_bad_images(bad, message):
    with pytest.raises(DataError, match=message):
        MobileNetV2ImageProcessor()(bad)


def test_a_wrong_input_data_format_is_named(image):
    with pytest.raises(DataError, match="found 40 where input_data_format='channels_first'"):
        MobileNetV2ImageProcessor()(image, input_data_format="channels_first")


@pytest.mark.parametrize("content", ["text", "empty", "truncated png", "truncated jpeg", "folder"])
def test_files_that_cannot_be_read_are_named(image, tmp_path, content):
    path = tmp_path / "broken.img"
    if content == "folder":
        path.mkdir()
    elif content.startswith("truncated"):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, content.split()[1])
        path.write_bytes(buffer.getvalue()[:-600])
    else:
        path.write_text("" if content == "empty" else "not an image")
    with pytest.raises(DataError, match=r"Cannot read the image .*broken\.img"):
        MobileNetV2ImageProcessor()(path)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_opened_truncated_file_is_named_too(image, tmp_path, mode):
    path = tmp_path / "broken.png"
    Image.fromarray(image).convert(mode).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with Image.open(path) as opened, pytest.raises(DataError, match=r"Cannot read image 0 .*broken\.png.*truncated"):
        MobileNetV2ImageProcessor()(opened)


def test_a_decompression_bomb_is_refused(image, tmp_path, monkeypatch):
    Image.fromarray(image).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png.*exceeds limit"):
        MobileNetV2ImageProcessor()(tmp_path / "bomb.png")


def test_different_shapes_make_no_tensor(image):
    processor = MobileNetV2ImageProcessor(do_center_crop=False, size=32)
    assert [pixels.shape for pixels in processor([image, image[:, :50]]).pixel_values] == [(32, 48, 3), (32, 40, 3)]
    with pytest.raises(DataError, match=r"one shape.*\(32, 40, 3\), \(32, 48, 3\).*do_center_crop=True"):
        processor([image, image[:, :50]], return_tensors="np")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "No segmentation map given"),
        (np.zeros((2, 40, 60), np.uint8), "one segmentation map per image, 1; found 2"),
        (np.zeros((40, 61), np.uint8), "segmentation map 0 must have its image's size, 40×60; found 40×61"),
        (Image.new("RGB", (60, 40)), r"one channel of class indices.*found shape \(40, 60, 3\)"),
        (np.full((40, 60), 0.5), "whole 32-bit numbers; found float64"),
        (np.full((40, 60), 2**40), "whole 32-bit numbers"),
        (np.full((40, 60), np.nan), "segmentation map 0 holds NaN"),
        ("absent.png", "No image file absent.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_maps(image, bad, message):
    with pytest.raises(DataError, match=message):
        MobileNetV2ImageProcessor()(image, bad)


# ---------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"size": {"longest_edge": 9}},
            r'size must be {"shortest_edge": …} or {"height": …, "width": …}.*longest_edge',
        ),
        ({"size": -5}, r"size\['shortest_edge'\] must be a whole number of pixels.*found -5"),
        ({"size": 0}, "found 0"),
        ({"size": 2.5}, "size must be"),
        ({"size": True}, "found True"),
        ({"size": [1, 2, 3]}, "size must be"),
        ({"size": {"height": 9, "width": 100_000}}, "width.*from 1 to 65535; found 100000"),
        ({"crop_size": {"shortest_edge": 9}}, r'crop_size must be {"height": …, "width": …}'),
        ({"crop_size": {"height": 9, "width": "9"}}, "found '9'"),
        ({"crop_size": 60_000}, "at most 268,435,456 pixels"),
        ({"resample": 6}, r"resample must be one of Pillow's filters 0 \(nearest\).*found 6"),
        ({"resample": "bilinear"}, "found 'bilinear'"),
        ({"resample": True}, "found True"),
        ({"resample": [2]}, "found"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std must be above 0"),
        ({"image_std": 0}, "image_std must be above 0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean must be three finite numbers.*found \[0\.5, 0\.5\]"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "three finite numbers"),
        ({"image_mean": "0.5"}, "three finite numbers"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"do_resize": 1}, "do_resize must be one of True, False; found 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_settings(image, setting, message):
    with pytest.raises(ConfigError, match=message):
        MobileNetV2ImageProcessor(**setting)
    with pytest.raises(ConfigError, match=message):
        MobileNetV2ImageProcessor()(image, **setting)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"do_flip": True}, "has no setting do_flip; it has do_resize, size"),
        ({"extra": {}}, "has no setting extra"),
        ({"return_tensors": "mlx"}, "return_tensors must be one of 'np', 'jax', 'pt', 'tf'; found 'mlx'"),
        ({"data_format": "NHWC"}, "data_format must be one of 'channels_last', 'channels_first'"),
        ({"data_format": None}, "data_format must be one of"),
        ({"input_data_format": 3}, "input_data_format must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_options_of_a_call(image, option, message):
    with pytest.raises(ConfigError, match=message):
        MobileNetV2ImageProcessor()(image, **option)


# ---------------------------------------------------------------------------------- files


def test_round_trip_keeps_unknown_keys(tmp_path):
    processor = MobileNetV2ImageProcessor(size=(9, 8), crop_size=7, resample=3, image_mean=0.25, do_reduce_labels=True)
    processor.save_pretrained(tmp_path / "new" / "folder")
    file = tmp_path / "new" / "folder" / "preprocessor_config.json"
    values = json.loads(file.read_text())
    assert values["image_processor_type"] == "MobileNetV2ImageProcessor"
    file.write_text(json.dumps(values | {"our_note": [1, {"a": None}], "resample": None}))
    loaded = MobileNetV2ImageProcessor.from_pretrained(tmp_path / "new" / "folder", crop_size=6)
    assert loaded.crop_size == {"height": 6, "width": 6}
    assert loaded.resample == 2  # null stands for the default
    assert loaded.extra == {"our_note": [1, {"a": None}]}
    loaded.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written == values | {"our_note": [1, {"a": None}], "resample": 2, "crop_size": {"height": 6, "width": 6}}


@pytest.mark.parametrize(
    "types_",
    [
        {},
        {"image_processor_type": "MobileNetV2ImageProcessorFast"},
        {"image_processor_type": "MobileNetV2ImageProcessorPil"},
        {"feature_extractor_type": "MobileNetV2FeatureExtractor"},
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_older_and_newer_names_are_read(tmp_path, types_):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 99, "crop_size": 98, **types_}))
    processor = MobileNetV2ImageProcessor.from_pretrained(str(tmp_path))
    assert processor == MobileNetV2ImageProcessor(size=99, crop_size=98)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, CheckpointError, r"No preprocessor_config\.json in .*or write one"),
        ("{", CheckpointError, r"Cannot read .*preprocessor_config\.json"),
        ("[" * 100_000, CheckpointError, r"Cannot read .*preprocessor_config\.json"),
        ("[]", CheckpointError, "must hold a JSON object; found list"),
        ('{"image_processor_type": "ViTImageProcessor"}', CheckpointError, "is for 'ViTImageProcessor'"),
        ('{"feature_extractor_type": "ViTFeatureExtractor"}', CheckpointError, "is for 'ViTFeatureExtractor'"),
        ('{"size": {"edge": 3}}', ConfigError, r"preprocessor_config\.json: size must be"),
        ('{"image_std": [NaN, 1, 1]}', ConfigError, r"preprocessor_config\.json: image_std must be"),
    ],
)
def test_bad_files(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(error, match=message):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path)


def test_an_unknown_override_is_refused(tmp_path):
    MobileNetV2ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no setting crop"):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path, crop=5)
    with pytest.raises(ConfigError, match=r"^crop_size must be"):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path, crop_size="5")


def test_the_former_name_is_deprecated():
    with pytest.warns(FutureWarning, match="use MobileNetV2ImageProcessor"):
        processor = MobileNetV2FeatureExtractor(size=99)
    assert processor == MobileNetV2ImageProcessor(size=99)


# ---------------------------------------------------------------------------------- hub


def test_a_hub_id_is_downloaded_by_huggingface_hub(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: calls.append((name, options)) or str(tmp_path)
    )
    MobileNetV2ImageProcessor(size=77).save_pretrained(tmp_path)
    loaded = MobileNetV2ImageProcessor.from_pretrained("owner/na.me_1-0", revision="refs/pr/1", cache_dir="cache")
    assert loaded.size == {"shortest_edge": 77}
    options = {
        "revision": "refs/pr/1",
        "cache_dir": "cache",
        "allow_patterns": ["preprocessor_config.json"],
        "token": False,
    }
    assert calls == [("owner/na.me_1-0", options)]


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (
            "nobody/nothing",
            None,
            r"'nobody/nothing' is no local folder and could not be downloaded .* give a local folder",
        ),
        ("nobody/nothing", "v1", "at revision 'v1'"),
        ("a/b/c", None, "No folder a/b/c; expected one with some.file"),
        ("./absent", None, "No folder ./absent"),
        ("/absent", None, "No folder /absent"),
        ("../absent", None, "No folder"),
        ("owner/name?x", None, "hub id of the form owner/name"),
        ("owner/name", "../../etc", "revision must be a branch"),
        ("owner/name", "a b", "revision must be a branch"),
    ],
)
def test_ids_that_cannot_be_had(tmp_path, name, revision, message):
    with pytest.raises(CheckpointError, match=message):
        hub.resolve_folder(name, revision=revision, cache_dir=tmp_path, files=("some.file",))


def test_a_local_folder_goes_first_and_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub.resolve_folder("owner/name", files=("some.file",)).samefile(tmp_path / "owner" / "name")
    (tmp_path / "some.file").touch()
    with pytest.raises(CheckpointError, match=r"is a file; expected the folder that holds some\.file"):
        hub.resolve_folder(tmp_path / "some.file", files=("some.file",))
