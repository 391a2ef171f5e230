"""A user's program, as tests/test_packaging.py gives it to the type checker; what is wrong in it must be noticed."""

import jax
import jax.numpy as jnp
from PIL import Image

from flax_mnv2 import (
    VARIANTS,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessor,
    from_pretrained,
    from_state_dict,
    list_models,
    load_backbone,
    make_inference_fn,
    save_pretrained,
    to_state_dict,
    variant_config,
)


def classify(folder: str, photo: Image.Image) -> str:
    model, variables = from_pretrained(folder, num_labels=10)
    processor = MobileNetV2ImageProcessor.from_pretrained(folder)
    inputs = processor([photo], return_tensors="jax")
    logits = make_inference_fn(model, variables)(inputs.pixel_values).logits
    name: str = model.config.id2label[int(logits.argmax())]
    return name


def fine_tune(folder: str) -> jax.Array:
    config: MobileNetV2Config = variant_config(list_models("*_96")[0], num_labels=3).replace(tf_padding=False)
    config = MobileNetV2Config.from_pretrained(folder, num_labels=3)
    model = MobileNetV2ForImageClassification(config, dtype=jnp.bfloat16)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    variables = load_backbone(folder, model.init(jax.random.key(0), images))
    output = jax.jit(model.apply)(variables, images, labels=jnp.zeros(1, int))
    model.save_pretrained("mine", variables)
    again, variables = MobileNetV2ForImageClassification.from_pretrained("mine", remat=True)
    save_pretrained("mine", again, variables)
    same, _ = from_state_dict(to_state_dict(model, variables, "timm"))
    assert same.config == config
    loss: jax.Array = output.loss
    return loss


variant_config(VARIANTS)  # type: ignore[arg-type]
MobileNetV2Config(depth_multiplier="half")  # type: ignore[arg-type]
make_inference_fn(VARIANTS)  # type: ignore[call-arg, arg-type]
