"""How the models are called: the arguments of transformers in its order, defaults of the config, under ``jit`` too."""

import jax
import numpy as np
import pytest
from structure import variables_of

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.models import (
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)

CONFIG = MobileNetV2Config(num_labels=3)
CLASSES = (MobileNetV2Model, MobileNetV2ForImageClassification, MobileNetV2ForSemanticSegmentation)
IMAGES = np.zeros((2, 32, 32, 3), np.float32)
STATIC = ("output_hidden_states", "return_dict")
pytestmark = pytest.mark.usefixtures("tiny_blocks")


def _call(model, *args, **options):
    """The shapes of what the compiled call gives."""
    arrays = {name: options.pop(name) for name in ("labels",) if name in options}
    call = jax.jit(lambda variables, arrays: model.apply(variables, *args, **arrays, **options))
    return jax.eval_shape(call, variables_of(model), arrays)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_call_says_or_the_config_does(cls):
    asks = cls(CONFIG.replace(output_hidden_states=True, return_dict=False))
    asked = _call(asks, IMAGES)
    assert type(asked) is tuple
    assert len(asked[-1]) == 3
    output = _call(asks, IMAGES, output_hidden_states=False, return_dict=True)
    assert output.hidden_states is None
    assert _call(cls(CONFIG), IMAGES).keys() == output.keys()
    assert len(_call(cls(CONFIG), IMAGES, return_dict=False)) == len(output)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_switches_are_static_arguments_of_jit(cls):
    model = cls(CONFIG)
    apply = jax.jit(model.apply, static_argnames=STATIC)
    found = jax.eval_shape(
        lambda variables: apply(variables, IMAGES, output_hidden_states=True, return_dict=False), variables_of(model)
    )
    assert type(found) is tuple
    assert len(found[-1]) == 3


def test_positions_are_those_of_transformers():
    labels = np.zeros(2, np.int32)
    assert len(_call(MobileNetV2Model(CONFIG), IMAGES, True, False)[-1]) == 3
    assert _call(MobileNetV2ForImageClassification(CONFIG), IMAGES, None, labels).loss.shape == ()
    assert type(_call(MobileNetV2ForImageClassification(CONFIG), IMAGES, None, None, False)) is tuple
    maps = np.zeros((2, 32, 32), np.int32)
    assert _call(MobileNetV2ForSemanticSegmentation(CONFIG), IMAGES, maps, True).keys() == (
        *("loss", "logits", "hidden_states"),
    )
    with pytest.raises(ConfigError, match="Labels of a classifier are its third argument"):
        _call(MobileNetV2ForImageClassification(CONFIG), IMAGES, labels)


@pytest.mark.parametrize("cls", CLASSES)
def test_pixel_values_left_out_are_asked_for(cls):
    with pytest.raises(ValueError, match="pixel_values is missing"):
        _call(cls(CONFIG))
    assert cls.main_input_name == "pixel_values"


def test_a_segmentation_loss_needs_two_classes():
    model = MobileNetV2ForSemanticSegmentation(CONFIG.replace(num_labels=1))
    assert _call(model, IMAGES).loss is None
    with pytest.raises(ConfigError, match="needs at least two classes"):
        _call(model, IMAGES, labels=np.zeros((2, 32, 32), np.int32))
    assert _call(model, IMAGES).attentions is None
