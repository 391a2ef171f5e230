"""Google's own quantised files against LiteRT's integer runs of them, which google_tflite.npz holds.

make_google_tflite.py writes it, and says what to install for that; the files lie in the shared data.
"""

import pathlib
import zlib

import google_inputs as given
import jax
import numpy as np
import pytest

from flax_mnv2 import DetectionSpec, MobileNetV2ForObjectDetection, from_pretrained
from flax_mnv2.weights.formats.tensorflow.graph_layers import name_layers
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.tensorflow.tflite import Normalization, read_graph


@pytest.fixture(scope="module")
def litert():
    """LiteRT's results by name."""
    with np.load(pathlib.Path(__file__).with_name("google_tflite.npz")) as file:
        return dict(file)


@pytest.fixture
def folder(shared):
    return shared / "weights" / "tflite"


@pytest.mark.parametrize("name", [*given.CLASSIFIERS, given.DEEPLAB, given.LOCALIZER])
def test_every_quantised_weight_is_litert_s_to_the_bit(folder, litert, name):
    graph = read_graph(folder / f"{name}.tflite")
    expected = litert[f"checksums/{name}"]
    constants = [
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.data is not None and tensor.quantization is not None
    ]
    assert constants == expected[:, 0].tolist()
    for index, checksum in expected:
        assert zlib.crc32(np.ascontiguousarray(graph.tensors[index].values())) == checksum, graph.tensors[index].name


def _prepared(source, path, side):
    """A photo as real numbers, as the file's input says."""
    low, high = source.ranges["mobilenet_v2/input"]
    return (given.pixels(path, side) * ((high - low) / 255) + low)[None].astype(np.float32)


def test_the_same_classes_of_photos(shared, folder, litert):
    photos, apply = given.photos(shared / "images"), None
    for name in given.CLASSIFIERS:
        source = open_weights(folder / f"{name}.tflite")
        assert source.config.id2label[282] == "tabby, tabby cat"
        model, variables = from_pretrained(source)
        apply = apply or jax.jit(model.apply)  # both files have the same network
        images = np.concatenate([_prepared(source, path, 224) for path in photos])
        logits = np.asarray(apply(variables, images).logits)
        assert logits.argmax(axis=-1).tolist() == litert[name].tolist()


def test_the_same_label_maps_of_photos(shared, folder, litert):
    source = open_weights(folder / f"{given.DEEPLAB}.tflite")
    assert (source.config.output_stride, source.config.id2label[12]) == (16, "dog")
    model, variables = from_pretrained(source)
    images = np.concatenate([_prepared(source, shared / "images" / name, 513) for name in given.SEGMENTED])

    @jax.jit
    def label_maps(variables, images):
        logits = model.apply(variables, images).logits
        aligned = (len(images), 513, 513, logits.shape[-1])  # corner to corner, as TF DeepLab resizes
        scale = np.float32([512 / (logits.shape[1] - 1)] * 2)
        logits = jax.image.scale_and_translate(
            logits, aligned, (1, 2), scale, 0.5 - 0.5 * scale, "linear", antialias=False
        )
        return logits.argmax(axis=-1)

    found = np.asarray(label_maps(variables, images))
    for labels, expected in zip(found, litert[given.DEEPLAB], strict=True):
        assert (labels == expected).mean() >= 0.99


def test_every_layer_of_the_localizer_is_named(folder):
    """Those of its head by what their own names say, which this file has kept."""
    path = folder / f"{given.LOCALIZER}.tflite"
    source, graph = open_weights(path), read_graph(path)
    assert (source.task, source.config.depth_multiplier, source.config.image_size) == ("detection", 0.75, 192)
    assert source.config.id2label == {0: "Entity"}
    layers = name_layers(graph)
    assert len(layers) == 3 * 17 + 1 + 4 * 3 + 2 * 6 * 2
    for name, layer in layers.items():
        place, theirs = name.rpartition("/")[2], graph.tensors[layer.operation.outputs[0]].name
        if place.startswith("extra"):
            number = int(place.split("_")[1]) + 2
            kind = f"1_Conv2d_{number}_1x1" if place.endswith("squeeze") else f"2_Conv2d_{number}_3x3_s2"
            assert f"layer_19_{kind}_" in theirs
            assert ("depthwise" in theirs) == place.endswith("conv_3x3")
        elif name.startswith("detection_head"):
            what, number, *part = place.split("_")
            predictor = {"class": "ClassPredictor", "box": "BoxEncodingPredictor"}[what]
            assert f"BoxPredictor_{number}/{predictor}{'_depthwise' if part[0] == 'conv' else '/'}" in theirs


def test_the_localizer_finds_both_dogs(shared, folder, litert):
    """Boxes and scores of LiteRT's integer run; the file has the published anchors, rounded to its steps."""
    source = open_weights(folder / f"{given.LOCALIZER}.tflite")
    spec = source.config.detection
    assert spec == DetectionSpec(background="none", nms_iou=spec.nms_iou)
    assert spec.nms_iou == np.float32(0.6)
    model, variables = from_pretrained(source)
    assert isinstance(model, MobileNetV2ForObjectDetection)
    assert model.batch_norm_folded
    output = jax.jit(model.apply)(variables, _prepared(source, shared / "images" / given.DETECTED, 192))
    [found] = source.processor().post_process_object_detection(output, threshold=0.3)
    expected = litert[given.LOCALIZER]  # rows of score, y, x, y, x
    expected = expected[expected[:, 0] > 0.3]
    assert len(expected) == len(found["scores"]) == 2
    np.testing.assert_allclose(found["scores"], expected[:, 0], atol=0.01)
    np.testing.assert_allclose(found["boxes"], expected[:, [2, 1, 4, 3]], atol=0.01)


@pytest.mark.parametrize("name", [*given.CLASSIFIERS, given.DEEPLAB, given.LOCALIZER])
def test_pixels_are_prepared_as_the_metadata_say(folder, name):
    graph, processor = read_graph(folder / f"{name}.tflite"), open_weights(folder / f"{name}.tflite").processor()
    assert graph.normalization == (None if name == given.DEEPLAB else Normalization((127.5,), (127.5,)))
    assert processor.image_mean == processor.image_std == [0.5] * 3
    assert processor.do_center_crop == (name != given.LOCALIZER)  # a detector sees all of an image
