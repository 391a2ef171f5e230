"""Tiny models with random weights, saved once, and photos to predict for."""

import shutil

import predicting
import pytest

import flax_mnv2.layer_plan
from flax_mnv2 import MobileNetV2ForImageClassification, MobileNetV2ForSemanticSegmentation

MODELS = {"classifier": MobileNetV2ForImageClassification, "segmenter": MobileNetV2ForSemanticSegmentation}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folder of the models by name."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 2), (16, 2, 2)))
        for name, model_class in MODELS.items():
            predicting.save(folder / name, model_class)
    return folder


@pytest.fixture
def classifier(saved, tmp_path, tiny_blocks):
    """A copy of its own."""
    return str(shutil.copytree(saved / "classifier", tmp_path / "classifier"))


@pytest.fixture
def segmenter(saved, tmp_path, tiny_blocks):
    """A copy of its own."""
    return str(shutil.copytree(saved / "segmenter", tmp_path / "segmenter"))


@pytest.fixture
def photos(tmp_path):
    """Three good files and two bad ones."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.PNG")):
        predicting.write(folder / name, seed)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-200])
    (folder / "text.png").write_text("no image")
    return folder
