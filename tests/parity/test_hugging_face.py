"""Inference against transformers on random weights with random batch statistics.

Every value of every axis occurs, and the traps: output stride 2 at α 0.35 gains a shortcut, widths that are not
multiples of 8, sizes of 32k + 1 (where both padding rules agree) beside sizes that tell them apart.
"""

import jax
import numpy as np
import pytest

from flax_mnv2 import MobileNetV2Config, from_state_dict

# task, depth_multiplier, output_stride, tf_padding, first_layer_is_expansion, finegrained_output, size, more
CASES = [
    ("backbone", 0.35, 8, True, True, True, (97, 129), {}),
    ("segmentation", 0.35, 2, True, True, False, (32, 32), {}),
    ("segmentation", 0.5, 16, False, False, True, (97, 129), {}),
    ("backbone", 0.5, 16, True, True, True, (64, 80), {"depth_divisible_by": 1, "min_depth": 1}),
    ("backbone", 0.75, 32, True, False, False, (224, 224), {}),
    ("segmentation", 0.75, 16, False, True, False, (64, 80), {}),
    ("backbone", 1.0, 8, False, True, False, (33, 33), {}),
    ("segmentation", 1.0, 16, True, True, True, (97, 129), {"hidden_act": "hardswish", "layer_norm_eps": 1e-5}),
    ("segmentation", 1.0, 32, False, True, True, (224, 224), {"expand_ratio": 4.0}),
    ("backbone", 1.4, 16, True, False, True, (33, 33), {}),
    ("segmentation", 1.4, 8, True, True, False, (32, 32), {"num_channels": 4}),
]
CLASSES = {"backbone": "MobileNetV2Model", "segmentation": "MobileNetV2ForSemanticSegmentation"}  # theirs


def _case_id(case):
    task, alpha, stride, tf, first, fine, size, more = case
    flags = "".join("-+"[flag] for flag in (tf, first, fine))
    return f"{task}-{alpha}-os{stride}{flags}{size[0]}x{size[1]}{'-' + next(iter(more)) if more else ''}"


@pytest.mark.parametrize("task", CLASSES)
def test_cases_cover_every_axis(task):
    axes = list(zip(*(case for case in CASES if case[0] == task), strict=True))
    assert set(axes[1]) == {0.35, 0.5, 0.75, 1.0, 1.4}
    assert set(axes[2]) >= {8, 16, 32}
    assert all(set(axis) == {True, False} for axis in axes[3:6])
    assert set(axes[6]) >= {(97, 129), (224, 224)}
    assert {(32, 32), (33, 33)} & set(axes[6])


def _convert(hf_model, config, task):
    return from_state_dict(hf_model.state_dict(), config=config, task=task)


@pytest.mark.parametrize("case", CASES, ids=_case_id)
def test_backbone_and_segmentation(transformers, randomize, assert_close, case):
    """All blocks of the network and what follows them, from one program."""
    import torch

    task, alpha, stride, tf_padding, first, fine, size, more = case
    fields = {
        "depth_multiplier": alpha,
        "output_stride": stride,
        "tf_padding": tf_padding,
        "first_layer_is_expansion": first,
        "finegrained_output": fine,
        **more,
    }
    theirs_config = transformers.MobileNetV2Config(**fields, num_labels=7)
    config = MobileNetV2Config.from_dict(
        theirs_config.to_dict() | {"id2label": {i: str(i) for i in range(7)}, "label2id": None}
    )
    images = np.random.default_rng(0).normal(size=(2, *size, config.num_channels)).astype(np.float32)
    module = randomize(getattr(transformers, CLASSES[task])(theirs_config), seed=1)
    with torch.no_grad():
        theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)

    model, variables = _convert(module, config, task)
    ours = jax.jit(lambda v, x: model.apply(v, x, output_hidden_states=True))(variables, images)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 16
    for index, (one, other) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        assert_close(one, other.permute(0, 2, 3, 1), name=f"hidden state {index}")
    if task == "backbone":
        assert_close(ours.last_hidden_state, theirs.last_hidden_state.permute(0, 2, 3, 1), name="last hidden state")
        assert_close(ours.pooler_output, theirs.pooler_output, name="pooled")
    else:
        assert_close(ours.logits, theirs.logits.permute(0, 2, 3, 1), name="segmentation logits")


def test_classifier(transformers, randomize, assert_close):
    import torch

    theirs_config = transformers.MobileNetV2Config(depth_multiplier=0.5, num_labels=11)
    hf_model = randomize(transformers.MobileNetV2ForImageClassification(theirs_config), seed=3)
    model, variables = _convert(hf_model, MobileNetV2Config(depth_multiplier=0.5, num_labels=11), "classification")
    images = np.random.default_rng(0).normal(size=(3, 96, 96, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = hf_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits
    assert_close(jax.jit(model.apply)(variables, images).logits, theirs, name="class logits")
