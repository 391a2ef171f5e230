"""eval.py with its ImageNet recipe on 300 images: the same classes as transformers, image by image."""

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.data.datasets.registry import load_classification

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Right first answers, ours and theirs, of shared/weights/mobilenet_v2_1.0_224.
EXPECTED = {"train": (200, 176), "validation": (100, 77)}
# Whole networks: in a process of their own, optimized, as used; one for both splits, an argument with flags for each.
EVALUATIONS = """import scripts, sys
for flags in sys.argv[1:]:
    ended = scripts.run("eval.py", *flags.splitlines())
    if ended.returncode != 0:
        sys.exit(ended.stdout + ended.stderr)
"""


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "weights" / "mobilenet_v2_1.0_224"


@pytest.fixture(scope="module")
def config(shared, tmp_path_factory):
    spec = importlib.util.spec_from_file_location("cls_imagenet", ROOT / "configs" / "cls_imagenet.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config()
    config.data.archive = str(shared / "data" / "imagenet_mini")
    config.data.data_dir = str(tmp_path_factory.mktemp("tfds"))
    config.data.num_threads = config.data.prefetch_buffer_size = 2
    return config


@pytest.fixture(scope="module")
def evaluated(config, folder, tmp_path_factory):
    """Folders with what eval.py wrote, by split."""
    folders = {split: tmp_path_factory.mktemp(split) for split in EXPECTED}
    flags = [f"--config={ROOT / 'configs' / 'cls_imagenet.py'}", f"--config.data.archive={config.data.archive}"]
    flags += [f"--config.data.data_dir={config.data.data_dir}", "--config.data.num_threads=2", f"--pretrained={folder}"]
    command = [sys.executable, "-c", EVALUATIONS]
    command += ["\n".join([*flags, f"--split={split}", f"--output={place}"]) for split, place in folders.items()]
    environment = {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers")))
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folders


@pytest.fixture
def one_torch_thread(transformers):
    """PyTorch's threads wait in loops for each other: on busy cores one is several times faster than two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _theirs(transformers, folder, images):
    """Logits by transformers from encoded images, through its own Pillow preprocessing."""
    import torch

    processor = transformers.MobileNetV2ImageProcessorPil.from_pretrained(folder)
    model = transformers.MobileNetV2ForImageClassification.from_pretrained(folder).eval()

    def logits(batch):
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in batch]
        return model(**processor(pictures, return_tensors="pt")).logits.numpy()

    with torch.no_grad():
        return np.concatenate([logits(images[start : start + 10]) for start in range(0, len(images), 10)])


@pytest.mark.slow
@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("split", EXPECTED)
def test_same_classes_image_by_image(transformers, folder, config, evaluated, split):
    count, right = EXPECTED[split]
    metrics = json.loads((evaluated[split] / "metrics.json").read_text())
    rows = [json.loads(line) for line in (evaluated[split] / "predictions.jsonl").read_text().splitlines()]

    source = load_classification(config.data).source(split)
    examples = [source[index] for index in range(len(source))]
    logits = _theirs(transformers, folder, [example["image"] for example in examples])
    labels = np.array([example["label"] + 1 for example in examples])

    assert [row["file_name"] for row in rows] == [example["file_name"] for example in examples]
    ours = np.array([[top["label"] for top in row["top5"]] for row in rows])
    np.testing.assert_array_equal(ours[:, 0], logits.argmax(1))
    np.testing.assert_array_equal(ours, np.argsort(-logits, axis=1, kind="stable")[:, :5])
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(
        [[top["probability"] for top in row["top5"]] for row in rows],
        np.take_along_axis(probabilities, ours, axis=1),
        rtol=1e-3,
        atol=1e-6,
    )
    assert metrics["num_examples"] == len(labels) == count
    assert metrics["num_top1"] == (logits.argmax(1) == labels).sum() == right
    assert metrics["num_top5"] == (np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(1).sum()
    print(f"{split}: top-1 {metrics['num_top1']} and top-5 {metrics['num_top5']} of {count}, as transformers")
