"""What comes out of the image processor: features, segmentation maps beside them, label maps from logits."""

import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from structure import drawn

from flax_mnv2 import ConfigError, MobileNetV2Config, MobileNetV2ForSemanticSegmentation, UserError
from flax_mnv2.image_processing.features import BatchFeature
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor

RAW = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}


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
    variables = drawn(model)
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


def test_features_are_made_of_lists():
    pairs = {"pixel_values": [np.zeros((2, 3)), np.ones((2, 3))]}
    features = BatchFeature(pairs, tensor_type="np")
    assert features.pixel_values.shape == (2, 2, 3)
    assert features.data is features
    assert len(pairs["pixel_values"]) == 2
    assert BatchFeature(pairs).convert_to_tensors("jax").pixel_values.devices() == {jax.devices()[0]}
    assert pickle.loads(pickle.dumps(BatchFeature(pairs))).data.keys() == {"pixel_values"}


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16, np.float16, "torch.float16"])
@pytest.mark.parametrize("kind", [None, "np", "jax", "pt"])
def test_features_are_cast(processor, image, kind, dtype):
    torch = pytest.importorskip("torch")
    dtype = torch.float16 if dtype == "torch.float16" else dtype
    features = processor(image, image[..., 0], return_tensors=kind)
    assert features.to(dtype) is features
    pixels, labels = (value[0] for value in (features.pixel_values, features.labels))
    name = "bfloat16" if dtype is jnp.bfloat16 else "float16"
    assert str(pixels.dtype).removeprefix("torch.") == name
    assert str(labels.dtype).removeprefix("torch.") == ("int32" if kind == "jax" else "int64")


def test_features_are_moved(processor, image):
    torch = pytest.importorskip("torch")
    second = jax.local_devices()[1]
    for kind, device in (
        ("np", "cpu:1"),
        ("jax", second),
        (None, 1),
        ("jax", jax.sharding.SingleDeviceSharding(second)),
    ):
        features = processor(image, image[..., 0], return_tensors=kind).to(device)
        for value in features.values():
            assert value[0].devices() == {second}
    for device in ("meta", torch.device("meta")):
        features = processor(image, image[..., 0], return_tensors="pt").to(device, torch.float64)
        assert features.pixel_values.is_meta
        assert features.labels.is_meta
        assert features.pixel_values.dtype == torch.float64
    assert processor(image).to(device=torch.device("cpu"), dtype="float16").pixel_values[0].dtype == np.float16


@pytest.mark.parametrize("kind", ["jax", "pt"])
@pytest.mark.parametrize("options", [{"device": "moon"}, {"device": 99}, {"dtype": "float17"}, {"dtype": "cpu"}])
def test_there_is_no_such_place(processor, image, kind, options):
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="Features cannot be moved to"):
        processor(image, return_tensors=kind).to(**options)


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
    for sizes, expected in ((None, small), ([(6, 8), (300, 7)], large)):
        for scored, labels in zip(post_process(outputs, sizes, return_segmentation_scores=True), expected, strict=True):
            assert scored.segmentation_scores.shape == (*labels.shape, 5)
            np.testing.assert_array_equal(scored.segmentation, labels)
            np.testing.assert_array_equal(scored.segmentation_scores.argmax(-1), labels)
    assert post_process(outputs, [(3, 4)] * 2, True)[0].segmentation_scores.tolist() == logits[0].tolist()


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
