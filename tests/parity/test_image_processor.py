"""The image processor against transformers' Pillow implementation: equal to the last bit."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor

SHAPES = [(61, 97), (97, 61), (50, 50), (31, 200), (7, 9), (64, 48)]
SMALL = {"size": 48, "crop_size": 40}
SETTINGS = [
    {},
    {"size": {"shortest_edge": 45}, "crop_size": 33},
    {"size": {"height": 50, "width": 31}, "crop_size": {"height": 31, "width": 30}},
    {"size": [37, 53], "crop_size": [20, 51]},
    {"size": 30, "crop_size": 91},
    {"size": 30, "crop_size": {"height": 20, "width": 301}},
    {"size": 31, "crop_size": {"height": 62, "width": 8}},
    *[{"resample": number} for number in range(6)],
    {"do_resize": False},
    {"do_resize": False, "crop_size": 77},
    {"do_center_crop": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
]


@pytest.fixture(scope="module")
def hf_processor(transformers):
    """Its Pillow class, not the torchvision one."""
    return transformers.MobileNetV2ImageProcessorPil


def _random_image(shape, seed=0):
    """Noise on a ramp: no two pixels alike, and filters have something to smooth."""
    ramp = np.linspace(0, 200, shape[0] * shape[1] * 3).reshape(*shape, 3)
    return (ramp + np.random.default_rng(seed).integers(0, 56, (*shape, 3))).astype(np.uint8)


def _assert_same(hf_processor, images, maps=None, **settings):
    """Settings of the constructor, and the same ones per call."""
    theirs = hf_processor(**settings)(images, maps)
    for ours in (
        MobileNetV2ImageProcessor(**settings)(images, maps, data_format="channels_first"),
        MobileNetV2ImageProcessor()(images, maps, data_format="channels_first", **settings),
    ):
        assert set(ours) == set(theirs)
        for key in theirs:
            assert len(ours[key]) == len(theirs[key])
            for one, other in zip(ours[key], theirs[key], strict=True):
                assert one.dtype == other.dtype
                assert other.size
                np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings(hf_processor, settings):
    for seed, shape in enumerate(SHAPES):
        image = _random_image(shape, seed)
        _assert_same(hf_processor, [image, Image.fromarray(image)], **SMALL | settings)


STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_reduce_labels")


@pytest.mark.parametrize("step", STEPS)
def test_null_switches_a_step_off(hf_processor, tmp_path, step):
    """In the constructor, in a file and over a file; per call the installed release does so, and its pages do not."""
    image, labels = _random_image((60, 81)), np.random.default_rng(1).integers(0, 256, (60, 81)).astype(np.uint8)
    settings = {**SMALL, "do_reduce_labels": True}
    hf_processor(**settings).save_pretrained(tmp_path / "on")
    hf_processor(**settings | {step: None}).save_pretrained(tmp_path / "off")
    for make in (
        lambda cls: cls(**settings | {step: None}),
        lambda cls: cls.from_dict(settings | {step: None}),
        lambda cls: cls.from_pretrained(tmp_path / "off"),
        lambda cls: cls.from_pretrained(tmp_path / "on", **{step: None}),
        lambda cls: cls.from_json_file(tmp_path / "off" / "preprocessor_config.json"),
    ):
        theirs, ours = make(hf_processor)(image, labels.copy()), make(MobileNetV2ImageProcessor)
        assert getattr(ours, step) is None
        found = ours(image, labels, data_format="channels_first")
        np.testing.assert_array_equal(found.pixel_values[0], theirs.pixel_values[0], strict=True)
        np.testing.assert_array_equal(found.labels[0], theirs.labels[0], strict=True)
    off, own = (MobileNetV2ImageProcessor(**settings)(image, labels, **{step: flag}) for flag in (False, None))
    assert any(not np.array_equal(off[key][0], own[key][0]) for key in off)


def test_a_turned_photo_by_its_path_and_as_an_image(hf_processor, tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_random_image((60, 81))).save(path, exif=exif)
    turned, lying = (
        MobileNetV2ImageProcessor()(source, do_resize=False, do_center_crop=False, data_format="channels_first")
        for source in (str(path), Image.open(path))
    )
    assert turned.pixel_values[0].shape == (3, 81, 60)
    for ours, source in ((turned, str(path)), (lying, Image.open(path))):
        theirs = hf_processor()(source, do_resize=False, do_center_crop=False)
        np.testing.assert_array_equal(ours.pixel_values[0], theirs.pixel_values[0], strict=True)


@pytest.mark.parametrize("default", ["mobilenet_v2_1.0_224", "deeplabv3_mobilenet_v2_1.0_513"])
def test_photos_with_the_settings_of_the_weights(hf_processor, shared, default):
    folder = shared / "weights" / default
    theirs, ours = hf_processor.from_pretrained(folder), MobileNetV2ImageProcessor.from_pretrained(folder)
    photos = sorted(path for path in (shared / "images").iterdir() if "mask" not in path.name)
    assert len(photos) > 5
    for photo in photos:
        image = Image.open(photo).convert("RGB")
        expected = theirs(image).pixel_values[0]
        np.testing.assert_array_equal(ours(photo, data_format="channels_first").pixel_values[0], expected, strict=True)


def test_random_sizes_and_settings(hf_processor):
    rng = np.random.default_rng(1)
    for _ in range(150):
        height, width, crop_height, crop_width = (int(value) for value in rng.integers(5, 120, 4))
        pair = {"height": int(rng.integers(1, 99)), "width": int(rng.integers(1, 99))}
        settings = {
            "size": pair if rng.random() < 0.5 else {"shortest_edge": int(rng.integers(1, 99))},
            "crop_size": {"height": crop_height, "width": crop_width},
            "resample": int(rng.integers(0, 6)),
            "image_mean": rng.uniform(0, 1, 3).tolist(),
            "image_std": rng.uniform(0.1, 1, 3).tolist(),
            "rescale_factor": float(rng.uniform(1e-3, 1e-2)),
            **{f"do_{step}": bool(rng.random() < 0.7) for step in ("resize", "center_crop", "rescale", "normalize")},
        }
        labels = rng.integers(0, 256, (height, width)).astype(np.uint8)
        _assert_same(hf_processor, _random_image((height, width)), labels, **settings)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("step", ["resize", "center_crop", "normalize"])
def test_fractions(hf_processor, dtype, step):
    image = np.random.default_rng(2).uniform(0, 1, (60, 81, 3)).astype(dtype)
    _assert_same(hf_processor, image, **SMALL, do_rescale=False)
    _assert_same(hf_processor, image, **SMALL, do_rescale=False, **{f"do_{step}": False})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint16, np.int64])
def test_whole_numbers_of_other_types(hf_processor, dtype):
    image = _random_image((60, 81)).astype(dtype)
    _assert_same(hf_processor, image, **SMALL)
    _assert_same(hf_processor, image, **SMALL, do_resize=False)
    _assert_same(hf_processor, image, **SMALL, do_rescale=False, do_normalize=False)


def test_zeros_and_ones_pass_for_whole_numbers(hf_processor):
    image = np.random.default_rng(3).integers(0, 2, (60, 81, 3)).astype(np.float32)
    _assert_same(hf_processor, image, **SMALL, do_rescale=False)


def test_values_out_of_range_are_free_without_resizing(hf_processor):
    image = np.random.default_rng(4).normal(0, 300, (60, 81, 3)).astype(np.float32)
    _assert_same(hf_processor, image, **SMALL, do_resize=False)


def test_channels_first_arrays_batches_and_torch(hf_processor):
    import torch

    image = _random_image((60, 81))
    for array in (image.transpose(2, 0, 1), np.stack([image, image[::-1]]), [image, image[:50]]):
        _assert_same(hf_processor, array, **SMALL)
    _assert_same(hf_processor, torch.from_numpy(image.transpose(2, 0, 1).copy()), **SMALL)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_colour_modes_as_under_do_convert_rgb(hf_processor, mode):
    image = Image.fromarray(_random_image((60, 81)))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(_random_image((60, 81), 5)[..., 0]))
    image = image.convert(mode)
    theirs = hf_processor(**SMALL, do_convert_rgb=True)(image).pixel_values[0]
    ours = MobileNetV2ImageProcessor(**SMALL)(image, data_format="channels_first").pixel_values[0]
    np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("floating", [False, True])
def test_grey_and_rgba_arrays_as_under_do_convert_rgb(hf_processor, channels, floating):
    image = np.random.default_rng(6).integers(0, 256, (60, 81, channels)).astype(np.uint8)
    image = image / np.float32(255) if floating else image
    theirs = hf_processor(**SMALL, do_convert_rgb=True)(image, do_rescale=not floating).pixel_values[0]
    ours = MobileNetV2ImageProcessor(**SMALL)(image, do_rescale=not floating, data_format="channels_first")
    np.testing.assert_array_equal(ours.pixel_values[0], theirs, strict=True)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_maps(hf_processor, reduce, dtype):
    rng = np.random.default_rng(7)
    for shape in SHAPES:
        labels = rng.choice([0, 1, 2, 20, 253, 254, 255], shape).astype(dtype)
        maps = [labels.copy(), Image.fromarray(labels.astype(np.uint8))]
        for crop in (33, 91):
            settings = {"size": 40, "crop_size": crop, "do_reduce_labels": reduce}
            # A copy for Hugging Face's, which reduces labels in the caller's array.
            theirs = hf_processor(**settings)([_random_image(shape)] * 2, [labels.copy(), maps[1]]).labels
            ours = MobileNetV2ImageProcessor(**settings)([_random_image(shape)] * 2, maps).labels
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other, strict=True)
            np.testing.assert_array_equal(maps[0], labels)


def test_maps_of_one_bit(hf_processor):
    labels = np.random.default_rng(8).random((20, 30)) > 0.5
    picture = Image.fromarray(labels)
    assert picture.mode == "1"
    settings = {"size": 25, "crop_size": 24}
    for kind in (picture, np.asarray(picture), labels):
        theirs = hf_processor(**settings)(_random_image((20, 30)), kind).labels[0]
        ours = MobileNetV2ImageProcessor(**settings)(_random_image((20, 30)), kind).labels[0]
        assert set(np.unique(theirs)) == {0, 1}
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_a_saved_processor_is_the_same_one_there(hf_processor, tmp_path):
    settings = {
        "size": {"height": 50, "width": 41},
        "crop_size": 44,
        "resample": 3,
        "rescale_factor": 0.01,
        "image_mean": 0.3,
        "image_std": [0.2, 0.3, 0.4],
    }
    image = _random_image((60, 81))
    ours = MobileNetV2ImageProcessor(**settings)
    ours.save_pretrained(tmp_path / "ours")
    hf_processor(**settings).save_pretrained(tmp_path / "theirs")
    expected = ours(image, data_format="channels_first").pixel_values[0]
    np.testing.assert_array_equal(hf_processor.from_pretrained(tmp_path / "ours")(image).pixel_values[0], expected)
    back = MobileNetV2ImageProcessor.from_pretrained(tmp_path / "theirs")
    np.testing.assert_array_equal(back(image, data_format="channels_first").pixel_values[0], expected)
    assert back == ours


def _label_maps(hf_processor, logits, target_sizes, **options):
    import torch

    outputs = types.SimpleNamespace(logits=torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()))
    theirs = hf_processor().post_process_semantic_segmentation(outputs, target_sizes, **options)
    outputs = types.SimpleNamespace(logits=jnp.asarray(logits))
    ours = MobileNetV2ImageProcessor().post_process_semantic_segmentation(outputs, target_sizes, **options)
    return ours, theirs


def test_label_maps(hf_processor):
    rng = np.random.default_rng(8)
    for _ in range(40):
        height, width, classes = (int(value) for value in rng.integers((1, 1, 2), (40, 40, 25)))
        logits = rng.normal(0, 5, (2, height, width, classes)).astype(np.float32)
        sizes = [tuple(int(value) for value in rng.integers(1, 200, 2)) for _ in logits]
        for target_sizes in (sizes, None):
            for one, other in zip(*_label_maps(hf_processor, logits, target_sizes), strict=True):
                np.testing.assert_array_equal(one, other.numpy(), strict=True)


def test_scores(hf_processor):
    logits = np.random.default_rng(9).normal(0, 5, (2, 33, 20, 5)).astype(np.float32)
    for sizes in ([(70, 91), (12, 150)], None):
        for ours, theirs in zip(
            *_label_maps(hf_processor, logits, sizes, return_segmentation_scores=True), strict=True
        ):
            assert list(ours) == list(theirs)
            np.testing.assert_array_equal(ours.segmentation, theirs.segmentation.numpy(), strict=True)
            expected = theirs.segmentation_scores.numpy().transpose(1, 2, 0)
            np.testing.assert_array_equal(ours.segmentation_scores, expected, strict=True)


def test_label_maps_round_as_torch_where_logits_tie(hf_processor):
    logits = np.random.default_rng(9).integers(0, 3, (4, 33, 33, 21)).astype(np.float32)
    sizes = [(513, 513), (375, 500), (321, 67), (90, 211)]
    for one, other in zip(*_label_maps(hf_processor, logits, sizes), strict=True):
        np.testing.assert_array_equal(one, other.numpy(), strict=True)
