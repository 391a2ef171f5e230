"""Inner outputs against Hugging Face's own layers, features by resolution against timm's."""

import jax
import numpy as np

from flax_mnv2 import MobileNetV2Backbone, from_pretrained
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.writing import write


def test_expansions_are_those_of_the_reference(transformers, randomize, assert_close, tmp_path):
    import torch

    hf_model = randomize(transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.35)), 7)
    hf_model.save_pretrained(tmp_path)
    seen = {}

    def record(name, module):
        module.register_forward_hook(lambda _, __, output: seen.__setitem__(name, output))

    for index in (0, 10, 13):
        record(f"layer_{index:02d}/expansion", hf_model.layer[index].expand_1x1)
        record(f"layer_{index:02d}/depthwise", hf_model.layer[index].conv_3x3)
    record("conv_stem", hf_model.conv_stem)
    record("conv_1x1", hf_model.conv_1x1)
    images = np.random.default_rng(0).normal(size=(1, 97, 130, 3)).astype(np.float32)
    with torch.no_grad():
        hf_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))

    model, variables = from_pretrained(tmp_path)
    ours = jax.jit(lambda v, x: model.apply(v, x, output_hidden_states=tuple(seen)))(variables, images)
    for (name, theirs), state in zip(seen.items(), ours.hidden_states, strict=True):
        assert_close(state, theirs.permute(0, 2, 3, 1), name=name)


def test_features_are_those_of_timm(timm, randomize, assert_close, tmp_path):
    import torch

    classifier = randomize(timm.create_model("mobilenetv2_050", num_classes=4), 8)
    torch.save(classifier.state_dict(), tmp_path / "model.pth")
    pyramid = timm.create_model("mobilenetv2_050", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    pyramid.load_state_dict(classifier.state_dict(), strict=False)
    images = np.random.default_rng(0).normal(size=(1, 100, 158, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = pyramid(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))

    checkpoint = open_weights(tmp_path / "model.pth").checkpoint()
    write(checkpoint, tmp_path / "flax", "flax")
    classifier, variables = from_pretrained(tmp_path / "flax")
    model = MobileNetV2Backbone(classifier.config)
    ours = jax.jit(model.apply)(variables, images)
    assert list(model.channels.values()) == pyramid.feature_info.channels()
    for (name, feature), expected in zip(ours.items(), theirs, strict=True):
        assert_close(feature, expected.permute(0, 2, 3, 1), name=name)
