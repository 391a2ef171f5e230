"""One training step against transformers and torch: loss, gradients through the update, running statistics.

Hugging Face's model hands TF's momentum 0.997 to PyTorch, whose convention is the opposite, so its running statistics
become the last batch; here each of its layers gets 1 - m for our m. PyTorch's running variance is unbiased,
Flax's biased: theirs is n / (n - 1) times the batch's, which the test takes out before comparing.

Both sides compute in float64. In float32 the gradients of *both* libraries are up to one per cent from the
float64 ones at these sizes (median over tensors 0.75 % for each): rounding, amplified by fifty normalisations of
small batches. In float64 they agree to 1e-6 of each tensor's largest update. Seventeen norms have exactly zero
gradients in exact arithmetic, where only rounding is left, hence the absolute term.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import flax_mnv2.layer_plan
from flax_mnv2 import MobileNetV2Config
from flax_mnv2.losses import segmentation_cross_entropy_sums
from flax_mnv2.weights.formats import hugging_face
from flax_mnv2.weights.pretrained import make_model, variable_shapes

MOMENTUM, LEARNING_RATE, LABELS = 0.9, 0.05, 5
SIZE = (33, 42)
# Eight of the sixteen blocks: one a stage, and of 24 and of 160 channels two, for a plain shortcut and a dilated one.
FEWER_BLOCKS = ((24, 2, 2), (32, 1, 2), (64, 1, 2), (96, 1, 1), (160, 2, 2), (320, 1, 1))
FEWER_LAYERS = (0, 1, 2, 5, 9, 12, 13, 15)  # the same, among theirs


@pytest.mark.parametrize(("output_stride", "tf_padding"), [(16, True), (8, False)])
def test_one_step_of_sgd(transformers, randomize, monkeypatch, output_stride, tf_padding):
    fields = {
        "depth_multiplier": 0.35,
        "output_stride": output_stride,
        "tf_padding": tf_padding,
        "classifier_dropout_prob": 0.0,
    }
    hf_model = transformers.MobileNetV2ForSemanticSegmentation(
        transformers.MobileNetV2Config(**fields, num_labels=LABELS)
    )
    layers = hf_model.mobilenet_v2.layer
    hf_model.mobilenet_v2.layer = type(layers)([layers[index] for index in FEWER_LAYERS])
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", FEWER_BLOCKS)
    randomize(hf_model, seed=0).double()
    config = MobileNetV2Config(**fields, num_labels=LABELS, batch_norm_momentum=MOMENTUM)
    model = make_model(config, "segmentation", dtype=jnp.float64)
    shapes = variable_shapes(make_model(config, "segmentation"))
    before = _variables(hf_model, shapes)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *SIZE, 3))
    labels = rng.integers(0, LABELS, size=(4, *SIZE))
    labels[:, :9] = config.semantic_loss_ignore_index

    counts = _count_per_norm(hf_model)
    their_loss = _their_step(hf_model, images, labels)
    theirs = _variables(hf_model, shapes)
    with jax.enable_x64(True):
        our_loss, ours = _our_step(model, traverse_util.unflatten_dict(before), images, labels)
        ours = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(ours).items()}
    assert abs(float(our_loss) - their_loss) < 1e-9 * abs(their_loss)

    largest = max(np.abs(theirs[path] - before[path]).max() for path in shapes if path[0] == "params")
    for path in shapes:
        moved, their_move = ours[path] - before[path], theirs[path] - before[path]
        if path[-1] == "var":
            count = counts[hugging_face.NAMING.key_of(path).removesuffix(".running_var")]
            kept = before[path] * MOMENTUM
            their_move = kept + (theirs[path] - kept) * (count - 1) / count - before[path]
        tolerance = 1e-6 * np.abs(their_move).max() + 1e-10 * largest
        assert np.abs(moved - their_move).max() <= tolerance, path


def _their_step(hf_model, images, labels):
    """Updates the module as PyTorch does; returns the loss before."""
    import torch

    hf_model.train()
    for layer in hf_model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0 - MOMENTUM
    optimizer = torch.optim.SGD(hf_model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    loss = hf_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels=torch.from_numpy(labels)).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@functools.partial(jax.jit, static_argnums=0)
def _our_step(model, variables, images, labels):
    """The loss before and the variables after a step of ours."""

    def objective(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        output, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
        total, count = segmentation_cross_entropy_sums(output.logits, labels, ignore_label=255)
        return total / count, updated["batch_stats"]

    (loss, stats), gradients = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    rule = optax.sgd(LEARNING_RATE, momentum=0.9)
    updates, _ = rule.update(gradients, rule.init(variables["params"]))
    return loss, {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}


def _variables(module, shapes):
    """The module's tensors in Flax's layout, in float64 (the library's own converter gives float32)."""
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    axes = {4: (2, 3, 1, 0), 1: (0,)}
    return {
        path: state[hugging_face.NAMING.key_of(path)].transpose(axes[len(shape)]).copy()
        for path, shape in shapes.items()
    }


def _count_per_norm(hf_model):
    """Values that each batch norm averages over (batch times height times width), by layer name."""
    import torch

    counts, hooks = {}, []
    for name, layer in hf_model.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):

            def note(_, inputs, __, name=name):
                counts[name] = inputs[0].numel() // inputs[0].shape[1]

            hooks.append(layer.register_forward_hook(note))
    with torch.no_grad():
        hf_model(torch.zeros(4, 3, *SIZE, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return counts
