"""What the tests of predictions share: tiny models with saved weights, pictures, and the command in this process."""

import json
import pathlib
import threading

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from flax_mnv2 import MobileNetV2Config, MobileNetV2ForSemanticSegmentation, save_pretrained
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.predict import command as predict
from flax_mnv2.tasks.prediction import Example
from flax_mnv2.weights.pretrained import variable_shapes

# Two labels are the same, as in ImageNet.
LABELS = ("background", "crane", "bird", "crane", "a dog, or a wolf", "sofa")
CONFIG = MobileNetV2Config(depth_multiplier=0.35, image_size=65, id2label=dict(enumerate(LABELS)))


def variables(model):
    """Random weights with which different images, and places in them, get different classes."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in variable_shapes(model).items():
        if path[-1] == "kernel":
            flat[path] = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        elif path[-1] in ("scale", "var"):
            flat[path] = rng.uniform(0.5, 1.5, shape)
        else:
            flat[path] = rng.normal(0, 0.3, shape)
    return traverse_util.unflatten_dict({path: np.float32(value) for path, value in flat.items()})


def save(folder: pathlib.Path, model_class, config=CONFIG) -> str:
    """Writes a model with random weights and its processor; returns the folder."""
    model = model_class(config)
    weights = variables(model)
    if model_class is MobileNetV2ForSemanticSegmentation:
        # Centred, so that no class has all pixels.
        images = np.float32(picture(0, (65, 65)))[None] / 127.5 - 1
        means = np.asarray(jax.jit(model.apply)(weights, images).logits).mean((0, 1, 2))
        weights["params"]["segmentation_head"]["classifier"]["convolution"]["bias"] -= means
    save_pretrained(folder, model, weights)
    MobileNetV2ImageProcessor(size=72, crop_size=64).save_pretrained(folder)
    return str(folder)


def picture(seed: int, size=(60, 90)) -> np.ndarray:
    """Blotches of colour, (H, W, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.NEAREST))


def write(path: pathlib.Path, seed: int = 0, size=(60, 90)) -> pathlib.Path:
    """Saves such a picture; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    capsys.readouterr()
    status = predict.main([str(item) for item in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def records(text: str) -> list[dict]:
    """JSON, line by line."""
    return [json.loads(line) for line in text.splitlines()]


def stops(capsys, message: str, *arguments) -> None:
    """Asserts that the command ends with one line of error that holds ``message``."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (predict.USER_ERROR_STATUS, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


class Recorder:
    """Answers the mean of the pixels; notes the shapes of the batches and how many photos are held at a time."""

    def __init__(self):
        self.shapes, self.held, self.most_held, self._lock = [], 0, 0, threading.Lock()

    def prepare(self, photo):
        with self._lock:
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        return Example(photo.astype(np.float32), photo.shape)

    def compute(self, pixels):
        self.shapes.append(pixels.shape)
        return pixels.mean((1, 2, 3))

    def finish(self, example, answer):
        self.held -= 1
        assert answer == pytest.approx(example.pixels.mean())
        return example.context
