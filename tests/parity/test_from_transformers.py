"""docs/from_transformers.md: every line of its tables runs, left with transformers, right with this library."""

import contextlib
import os
import pathlib
import re
import types
import warnings

import jax
import numpy as np
import pytest
from model_runs import CLASSIFIER, IMAGES, LABELS, config, path
from PIL import Image

import flax_mnv2

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "from_transformers.md"
ROW = re.compile(r"^\| `(.+)` \| `(.+)` \|$")


def rows(page):
    return [match.groups() for match in map(ROW.match, page.splitlines()) if match]


def sections():
    """The page up to the image processor, and from there."""
    models, _, processor = PAGE.read_text().partition("## Image processor")
    return models, processor


def run(lines, names):
    with warnings.catch_warnings(), contextlib.redirect_stderr(None):
        warnings.simplefilter("ignore")
        for line in lines:
            try:
                exec(line, names)
            except Exception as error:
                pytest.fail(f"{line}: {type(error).__name__}: {error}")


def test_every_row_of_the_tables_is_a_pair_of_lines():
    bars = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and "---" not in line]
    heads = [line for line in bars if line == "| transformers | flax_mnv2 |"]
    assert len(bars) - len(heads) == len(rows(PAGE.read_text())) >= 50


def test_lines_of_transformers(transformers, tmp_path):
    import torch

    lines = [left for left, _ in rows(sections()[0])]
    used = set(re.findall(r"\b(?:MobileNetV2\w+|Auto\w+|set_seed)\b", "\n".join(lines)))
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    names = {"folder": str(path(CLASSIFIER)), "place": str(tmp_path), "torch": torch, "images": images}
    names |= {"labels": torch.from_numpy(LABELS[CLASSIFIER])}
    run(lines, names | {name: getattr(transformers, name) for name in used})


def test_lines_of_ours(tmp_path, monkeypatch, tiny_blocks):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    model = flax_mnv2.MobileNetV2ForImageClassification(config(flax_mnv2))
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), variables)
    model.save_pretrained(tmp_path / "folder", variables)
    names = {"folder": tmp_path / "folder", "place": tmp_path / "place", "images": IMAGES, "labels": LABELS[CLASSIFIER]}
    exec("import os, flax, flax.traverse_util, jax, jax.numpy as jnp\nfrom flax_mnv2 import *", names)
    run([right for _, right in rows(sections()[0])], names)
    assert np.isfinite(names["outputs"].logits).all()


def test_lines_on_the_image_processor(transformers, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    flax_mnv2.MobileNetV2ImageProcessor().save_pretrained("folder")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    logits = np.random.default_rng(1).normal(size=(1, 6, 8, 4)).astype(np.float32)
    names = {"folder": "folder", "image": image, "torch": torch}
    theirs = names | {
        "AutoImageProcessor": transformers.AutoImageProcessor,
        "MobileNetV2ImageProcessor": transformers.MobileNetV2ImageProcessorPil,
        "outputs": types.SimpleNamespace(logits=torch.from_numpy(logits.transpose(0, 3, 1, 2).copy())),
    }
    ours = names | {"outputs": types.SimpleNamespace(logits=logits)}
    exec("import jax.numpy as jnp\nfrom flax_mnv2 import *", ours)
    for lines, values in zip(zip(*rows(sections()[1]), strict=True), (theirs, ours), strict=True):
        run(lines, values)
    np.testing.assert_array_equal(ours["labels"], theirs["labels"])
    np.testing.assert_array_equal(ours["result"]["segmentation"], theirs["result"]["segmentation"])
