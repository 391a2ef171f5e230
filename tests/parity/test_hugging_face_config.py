"""What a config asks of the network, against transformers: activations and output strides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2 import MobileNetV2Config
from flax_mnv2.config.checks import ACTIVATIONS, LEARNED_ACTIVATIONS
from flax_mnv2.models.ops.activations import activation

VALUES = np.linspace(-12.1, 12.1, 2000, dtype=np.float32)  # none of them a corner, where the gradients may differ


def test_names_are_those_of_transformers(transformers):
    from transformers.activations import ACT2FN

    assert {*ACTIVATIONS, *LEARNED_ACTIVATIONS} - {"elu"} == set(ACT2FN)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"elu"}))
def test_activations_and_their_gradients(transformers, name):
    import torch
    from transformers.activations import ACT2FN

    x = torch.tensor(VALUES, requires_grad=True)
    theirs = ACT2FN[name](x)
    theirs.sum().backward()
    ours, gradient = jax.jit(jax.vmap(jax.value_and_grad(activation(name))))(VALUES)
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-5, atol=2e-5)


@pytest.mark.filterwarnings("ignore:output_stride")
@pytest.mark.parametrize("output_stride", [1, 2, 4, 5, 8, 16, 32, 64])
def test_strides_and_dilations(transformers, output_stride):
    import torch

    with torch.device("meta"):
        module = transformers.MobileNetV2Model(transformers.MobileNetV2Config(output_stride=output_stride))
    convolutions = [layer.conv_3x3.convolution for layer in module.layer]
    theirs = [(conv.stride[0], conv.dilation[0]) for conv in convolutions]
    blocks = MobileNetV2Config(output_stride=output_stride).layer_plan.blocks
    assert [(block.stride, block.dilation) for block in blocks] == theirs
    assert [block.residual for block in blocks] == [layer.use_residual for layer in module.layer]


def test_a_function_of_ones_own(transformers, randomize, assert_close):
    """Release 4's page allows it; release 5 checks for a string, and its layers still take a function."""
    import torch

    from flax_mnv2 import from_state_dict

    theirs_config = transformers.MobileNetV2Config(depth_multiplier=0.35)
    object.__setattr__(theirs_config, "hidden_act", torch.tanh)
    module = randomize(transformers.MobileNetV2Model(theirs_config), seed=5)
    config = MobileNetV2Config(depth_multiplier=0.35, hidden_act=jnp.tanh)
    model, variables = from_state_dict(module.state_dict(), config=config, task="backbone")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).pooler_output
    assert_close(jax.jit(model.apply)(variables, images).pooler_output, theirs)
