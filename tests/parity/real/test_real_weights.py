"""Trained DeepLab weights on photos: the same label map as transformers."""

import jax
import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import from_pretrained
from flax_mnv2.losses import upsample_logits

PHOTOS = ["bird_segmentation.png", "cat.png", "dog_segmentation_256.png", "pets.jpg", "grace_hopper.png"]


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "weights" / "deeplabv3_mobilenet_v2_1.0_513"


@pytest.fixture(scope="module")
def hf_model(transformers, folder):
    return transformers.MobileNetV2ForSemanticSegmentation.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def segment(folder):
    model, variables = from_pretrained(folder)
    return jax.jit(lambda images: model.apply(variables, images, train=False).logits)


def test_label_maps_agree_at_full_size(hf_model, segment, shared, assert_close):
    import torch

    same = total = 0
    for photo in PHOTOS:
        image = Image.open(shared / "images" / photo).convert("RGB")
        # One shape, so one compilation; its sides are not 32k + 1, where both padding rules agree.
        pixels = np.asarray(image.resize((362, 274)), np.float32)[None] / 127.5 - 1.0
        with torch.no_grad():
            theirs = hf_model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).logits
            theirs_map = torch.nn.functional.interpolate(
                theirs, size=pixels.shape[1:3], mode="bilinear", align_corners=False
            ).argmax(1)
        ours = segment(pixels)
        assert_close(ours, theirs.permute(0, 2, 3, 1), name=photo)
        ours_map = np.asarray(upsample_logits(ours, pixels.shape[1:3]).argmax(-1))
        assert len(np.unique(ours_map)) > 1, f"{photo}: nothing but one class"
        same += int((ours_map == theirs_map.numpy()).sum())
        total += ours_map.size
    assert same / total >= 0.999
    print(f"{same} of {total} pixels have the same label")


def test_classifier_agrees(transformers, shared, assert_close):
    import torch

    folder = shared / "weights" / "mobilenet_v2_1.0_224"
    model, variables = from_pretrained(folder)
    hf_model = transformers.MobileNetV2ForImageClassification.from_pretrained(folder).eval()
    image = Image.open(shared / "images" / "n02123045_tabby.JPEG").convert("RGB").resize((224, 224))
    pixels = np.asarray(image, np.float32)[None] / 127.5 - 1.0
    with torch.no_grad():
        theirs = hf_model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).logits
    ours = jax.jit(model.apply)(variables, pixels).logits
    assert_close(ours, theirs, name="logits")
    assert "cat" in model.config.id2label[int(ours.argmax())]
