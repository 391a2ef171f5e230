"""``config.model.deeplab`` of a run, and pixels as the weights want them."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config, MobileNetV2ImageProcessor
from flax_mnv2.config.deeplab import DeepLabSpec, preset
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.tasks.segmentation.predictor import label_map
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.config.defaults import default_config


def _head(**fields):
    config = default_config("segmentation")
    config.model.deeplab.update(fields)
    check_config(config)
    return get_task("segmentation").for_training(config, ("road", "car")).model.config.deeplab


def test_a_preset_and_what_differs_from_it():
    assert _head() is None
    assert _head(preset="deeplab_v3plus") == DeepLabSpec()
    assert _head(preset="mmseg", channels=128) == preset("mmseg").replace(channels=128)
    without = _head(preset="deeplab_v3plus", low_level="", atrous_rates=(), decoder_convs=0)
    assert without == DeepLabSpec(low_level=None, atrous_rates=(), decoder_convs=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "deeplab"}, "No DeepLab head 'deeplab'; expected one of hugging_face, "),
        ({"preset": "smp", "pooling": "both"}, r"deeplab\.pooling must be 'first', 'last' or 'none'; found 'both'"),
        ({"preset": "deeplab_v3plus", "atrous_rates": (5,)}, "give no integers at 32"),
    ],
)
def test_what_makes_no_head_is_refused_before_the_run(fields, message):
    config = default_config("segmentation")
    config.model.deeplab.update(fields)
    config.eval.output_stride = 32
    with pytest.raises(ConfigError, match=message):
        check_config(config)


def test_pixels_are_normalised_as_the_weights_learned_them():
    """Weights of PyTorch's libraries want ImageNet's mean; evaluated with another they would be silently worse."""
    config, dataset = default_config("segmentation"), types.SimpleNamespace(name="streets", labels=("road", "car"))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)), jnp.uint8)
    processor = MobileNetV2ImageProcessor(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
    job = get_task("segmentation")
    task = job.for_evaluation(config, MobileNetV2Config(num_labels=2), dataset, processor=processor)
    wanted = processor.preprocess(np.asarray(images[0]), do_resize=False, do_center_crop=False)["pixel_values"][0]
    np.testing.assert_allclose(task._normalize(images)[0], wanted, atol=1e-6)
    assert task.processor.image_mean == processor.image_mean
    plain = job.for_evaluation(config, MobileNetV2Config(num_labels=2), dataset)
    np.testing.assert_allclose(plain._normalize(images), np.float32(images) / 127.5 - 1.0, atol=1e-6)


def test_label_maps_with_aligned_corners_are_those_of_resized_logits():
    from flax_mnv2.losses import upsample_logits

    logits = np.random.default_rng(1).normal(size=(9, 9, 4)).astype(np.float32)
    resized = upsample_logits(jnp.asarray(logits)[None], (65, 65), align_corners=True)[0]
    labels = label_map(logits, canvas=(65, 65), region=(65, 65), size=(65, 65), align_corners=True)
    assert np.mean(labels == np.argmax(resized, -1)) > 0.999
    assert np.mean(labels == label_map(logits, canvas=(65, 65), region=(65, 65), size=(65, 65))) < 0.95
