"""float32 gradients of trained weights are as near to float64 as PyTorch's, in the form of CPUs.

One training-mode pass without dropout on real photos. The truth is transformers' model in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from flax_mnv2 import from_pretrained
from flax_mnv2.weights.formats import hugging_face

PHOTOS = ("cat.png", "grace_hopper.png", "dragonfly.png", "pets.jpg", "bird_segmentation.png", "sunflower.png")
# An activation that rounding takes to the other side of a kink moves the gradient by this fraction, in any library.
KINK = 1e-3
CASES = [
    pytest.param("mobilenet_v2_1.0_224", "ImageClassification", 6, 128, id="classifier"),
    pytest.param("deeplabv3_mobilenet_v2_1.0_513", "SemanticSegmentation", 3, 129, id="deeplab"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "task", "photos", "size"), CASES)
def test_distance_to_float64_is_at_most_twice_that_of_pytorch(transformers, shared, weights, task, photos, size):
    images = [Image.open(shared / "images" / name).convert("RGB").resize((size, size)) for name in PHOTOS[:photos]]
    images = np.stack([np.asarray(image, np.float32) for image in images]) / 127.5 - 1.0
    folder = shared / "weights" / weights
    load = functools.partial(getattr(transformers, f"MobileNetV2For{task}").from_pretrained, folder)
    exact = _their_gradients(load(), images, "float64")
    theirs = _distance(_their_gradients(load(), images, "float32"), exact)
    model, variables = from_pretrained(folder, classifier_dropout_prob=0.0)
    gradients = _our_gradients(model.clone(implementation="cpu"), variables, images)
    assert _distance(gradients, exact) <= max(2.0 * theirs, KINK)


def _labels(logits):
    """Random labels for logits (N, …, classes)."""
    return np.random.default_rng(1).integers(0, logits.shape[-1], logits.shape[:-1])


def _their_gradients(module, images, dtype):
    """Gradients by parameter of the mean cross-entropy."""
    import torch

    module = module.to(getattr(torch, dtype)).train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d):
            layer.p = 0.0
    logits = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(module.dtype)).logits
    labels = torch.from_numpy(_labels(logits.detach().movedim(1, -1)))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    return {
        name: parameter.grad.double().numpy()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def _our_gradients(model, variables, images):
    """The same, by the names and in the layout of PyTorch."""

    @jax.jit
    def gradients(variables, images):
        def loss(params):
            given = {**variables, "params": params}
            output, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
            logs = jax.nn.log_softmax(output.logits)
            return -jnp.take_along_axis(logs, _labels(logs)[..., None], -1).mean()

        return jax.grad(loss)(variables["params"])

    flat = traverse_util.flatten_dict({"params": gradients(variables, images)})
    naming = hugging_face.NAMING
    return {naming.key_of(path): naming.from_flax(value).astype(np.float64) for path, value in flat.items()}


def _distance(gradients, exact):
    """Norm of the difference over the norm, of all parameters together."""
    difference = sum(np.sum((gradients[name] - exact[name]) ** 2) for name in exact)
    return (difference / sum(np.sum(value**2) for value in exact.values())) ** 0.5
