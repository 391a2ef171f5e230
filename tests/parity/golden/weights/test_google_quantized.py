"""Google's quantised files with their ranges, and trained weights after calibration, as fake-quantised networks."""

import pathlib

import google_inputs as given
import jax
import numpy as np
import pytest
from flax import traverse_util

from flax_mnv2 import calibrate, from_pretrained
from flax_mnv2.config.quantization import QuantizationSpec
from flax_mnv2.models.quantization.rounding import Quantizer
from flax_mnv2.weights.opening import open_weights

FILES = {given.CLASSIFIERS[1]: "int8", given.DEEPLAB: "uint8", given.LOCALIZER: "uint8"}


@pytest.mark.parametrize("name", FILES)
def test_every_range_of_a_quantised_file_is_known_and_its_kernels_are_on_their_grid(shared, name):
    """A kernel's own range is the file's where its numbers reach the ends; the localizer's had moved since."""
    path, scheme = shared / "weights" / "tflite" / f"{name}.tflite", FILES[name]
    _, variables = from_pretrained(path, quantization=scheme)
    ranges = traverse_util.flatten_dict(variables["quantization"], sep="/")
    ranges.pop("step")
    assert len(ranges) > 100
    assert all(ranges[place] < ranges[place.removesuffix("min") + "max"] for place in ranges if place.endswith("min"))
    quantizer = Quantizer(QuantizationSpec(scheme=scheme))
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = {place: kernel for place, kernel in flat.items() if place.endswith("kernel")}
    rounded = jax.jit(lambda kernels: jax.tree.map(quantizer.kernel, kernels))(kernels)
    moved = [np.abs(rounded[place] - kernel).max() / np.abs(kernel).max() for place, kernel in kernels.items()]
    assert np.max(moved) < (1 / 127 if name == given.LOCALIZER else 1e-6)


def test_the_classes_of_photos_are_those_of_the_integer_run(shared):
    name = given.CLASSIFIERS[0]
    with np.load(pathlib.Path(__file__).with_name("google_tflite.npz")) as file:
        expected = file[name]
    source = open_weights(shared / "weights" / "tflite" / f"{name}.tflite")
    model, variables = from_pretrained(source, quantization="uint8")
    low, high = source.ranges["mobilenet_v2/input"]
    photos = given.photos(shared / "images")
    images = [given.pixels(path, 224) * ((high - low) / 255) + low for path in photos]
    logits = np.asarray(jax.jit(model.apply)(variables, np.stack(images).astype(np.float32)).logits)
    assert logits.argmax(axis=-1).tolist() == expected.tolist()
    steps = logits / ((variables["quantization"]["classifier"]["output"]["max"] - logits.min()) / 255)
    assert len(np.unique(np.round(steps, 2))) <= 256


def test_trained_weights_keep_their_classes_after_calibration(shared):
    folder = shared / "weights" / "mobilenet_v2_1.0_224"
    photos = given.photos(shared / "images")[:4]
    images = np.stack([given.pixels(path, 160) for path in photos]).astype(np.float32) / np.float32(127.5) - 1
    plain, weights = from_pretrained(folder)
    expected = jax.jit(plain.apply)(weights, images).logits
    model, variables = from_pretrained(folder, quantization="int8")
    variables = calibrate(model, variables, [images])
    logits = jax.jit(model.apply)(variables, images).logits
    assert logits.argmax(axis=-1).tolist() == expected.argmax(axis=-1).tolist()
    distance = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 0.01 < distance < 0.3
