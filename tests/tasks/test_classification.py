"""The classification task by itself: labels, preprocessing, counts, and what the report says."""

import json
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.tasks.classification.evaluator import ClassificationEvaluator
from flax_mnv2.tasks.classification.task import (
    ClassificationTask,
    ResizeAndCrop,
    label_offset,
    make_processor,
    output_size,
)
from flax_mnv2.training.config.defaults import default_config

NAMES = ("background", "ant, emmet", "bee", "crane", "crane", "dog", "eel")


def _model_config(names=NAMES):
    return MobileNetV2Config(id2label=dict(enumerate(names)))


def _dataset(num_classes):
    return types.SimpleNamespace(name="things", labels=tuple(f"n{index}" for index in range(num_classes)))


def _task(monkeypatch, logits, names=NAMES, **processor):
    """A task whose model returns ``logits`` and remembers the images it got."""
    config = default_config("classification")
    processor = MobileNetV2ImageProcessor(**processor)
    task = ClassificationTask(config, _model_config(names), processor=processor, label_offset=1)
    seen = []

    def apply(variables, images):
        seen.append(images)
        return types.SimpleNamespace(logits=jnp.asarray(logits, jnp.float32))

    monkeypatch.setattr(task, "eval_model", types.SimpleNamespace(apply=apply))
    return task, seen


def _batch(labels, mask):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 5, 3), dtype=np.uint8)
    return {"image": images, "label": np.array(labels, np.int32), "mask": np.array(mask, bool)}


@pytest.mark.parametrize(
    ("names", "num_classes", "offset"),
    [(("a", "b"), 2, 0), (("background", "a", "b"), 2, 1), (("LABEL_0", "LABEL_1", "LABEL_2"), 2, 1)],
)
def test_labels_of_the_data_and_of_the_model(names, num_classes, offset):
    assert label_offset(_model_config(names), _dataset(num_classes)) == offset


@pytest.mark.parametrize(("names", "num_classes"), [(("tench", "a", "b"), 2), (("background", "a", "b"), 4)])
def test_labels_that_do_not_match_are_refused(names, num_classes):
    with pytest.raises(ConfigError, match=rf"model has 3 classes and the data set things has {num_classes}"):
        label_offset(_model_config(names), _dataset(num_classes))


def test_fillers_do_not_count_and_ties_go_to_the_lower_index(monkeypatch):
    logits = [
        [0, 5, 1, 5, 0, 0, 0],  # a tie of 1 and 3
        [9, 0, 1, 2, 3, 4, 5],  # background first, 1 last
        [0, 9, 0, 0, 0, 0, 0],  # a filler, right by chance
        [7, 6, 5, 4, 3, 2, 1],  # 4 is the fifth
    ]
    task, _ = _task(monkeypatch, logits)
    sums, examples = task.evaluate_batch({}, _batch([0, 0, 0, 3], [True, True, False, True]))
    np.testing.assert_array_equal(sums["examples"], [0, 2, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(sums["top1"], [0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(sums["top5"], [0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(examples["label"], [1, 1, 1, 4])
    np.testing.assert_array_equal(examples["top"][:2], [[1, 3, 2, 0, 4], [0, 6, 5, 4, 3]])
    expected = np.exp(logits[1]) / np.exp(logits[1]).sum()
    np.testing.assert_allclose(examples["probability"][1], expected[[0, 6, 5, 4, 3]], rtol=1e-5)
    assert sums["confusion"].sum() == 3
    assert (sums["confusion"][1, 1], sums["confusion"][1, 0], sums["confusion"][4, 0]) == (1, 1, 1)


def test_many_classes_have_no_confusion_matrix(monkeypatch):
    names = tuple(f"class {index}" for index in range(101))
    task, _ = _task(monkeypatch, np.eye(2, 101), names)
    sums, _ = task.evaluate_batch({}, _batch([0, 1], [True, True]))
    assert "confusion" not in sums


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": 127.5, "image_std": 127.5},
    ],
)
def test_the_device_normalises_as_the_processor_would(monkeypatch, settings):
    task, seen = _task(monkeypatch, np.zeros((2, 7)), **settings)
    batch = _batch([0, 1], [True, True])
    task.evaluate_batch({}, batch)
    processor = MobileNetV2ImageProcessor(**settings)
    whole = processor.preprocess(
        list(batch["image"]),
        do_resize=False,
        do_center_crop=False,
        return_tensors="np",
        input_data_format="channels_last",
    )
    assert seen[0].dtype == jnp.float32
    np.testing.assert_allclose(seen[0], whole["pixel_values"], rtol=1e-6, atol=1e-6)


def test_host_and_device_together_are_the_processor(monkeypatch):
    settings = {"size": 40, "crop_size": {"height": 32, "width": 36}}
    task, seen = _task(monkeypatch, np.zeros((1, 7)), **settings)
    processor = MobileNetV2ImageProcessor(**settings)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    small = pickle.loads(pickle.dumps(ResizeAndCrop(processor)))(image)  # as in an input worker
    assert (small.dtype, small.shape) == (np.uint8, (*output_size(processor), 3))
    task.evaluate_batch({}, {"image": small[None], "label": np.zeros(1, np.int32), "mask": np.ones(1, bool)})
    np.testing.assert_allclose(seen[0][0], processor(image)["pixel_values"][0], rtol=1e-6, atol=1e-6)


def test_size_of_what_the_processor_gives():
    fixed = {"height": 32, "width": 48}
    assert output_size(MobileNetV2ImageProcessor(crop_size=fixed)) == (32, 48)
    assert output_size(MobileNetV2ImageProcessor(do_center_crop=False, size=fixed)) == (32, 48)
    for settings in ({"size": 256}, {"size": fixed, "do_resize": False}):
        with pytest.raises(ConfigError, match="neither crops nor resizes to a fixed height and width"):
            output_size(MobileNetV2ImageProcessor(do_center_crop=False, **settings))


def test_rows_are_in_the_order_of_the_split_without_fillers():
    evaluator = ClassificationEvaluator(NAMES, report=True)
    for index, names in (([2, 3], ["c.JPEG", "ü.JPEG"]), ([0, -1], ["a_longer_name.JPEG", ""])):
        batch = {"index": np.array(index), "file_name": np.array(names), "mask": np.array(index) >= 0}
        batch["image"] = np.zeros((2, 4, 5, 3), np.uint8)
        assert evaluator.needs_examples(batch)
        top = np.array([[3, 1], [1, 2]], np.int32)
        examples = {"label": np.array([3, 1], np.int32), "top": top, "probability": np.array([[0.75, 0.25]] * 2)}
        evaluator.add(batch, {}, examples)
    rows = evaluator.rows()
    assert [row["file_name"] for row in rows] == ["a_longer_name.JPEG", "c.JPEG", "ü.JPEG"]
    assert rows[2] == {
        "file_name": "ü.JPEG",
        "label": 1,
        "label_name": "ant, emmet",
        "top5": [
            {"label": 1, "label_name": "ant, emmet", "probability": 0.75},
            {"label": 2, "label_name": "bee", "probability": 0.25},
        ],
    }


def test_files_of_the_report(monkeypatch, tmp_path):
    task, _ = _task(monkeypatch, np.eye(2, 7))
    batch = {**_batch([0, 1], [True, True]), "index": np.arange(2), "file_name": np.array(["ü", "b"])}
    sums, examples = jax.tree.map(np.asarray, task.evaluate_batch({}, batch))
    evaluator = task.evaluator(report=True)
    evaluator.add(batch, sums, examples)
    written = evaluator.write_files(tmp_path)
    assert {name: path.name for name, path in written.items()} == {
        "predicted": "predictions.jsonl",
        "confusion": "confusion_matrix.png",
        "best": "best.png",
        "worst": "worst.png",
    }
    lines = written["predicted"].read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["ü", "b"]
    for name in ("confusion", "best", "worst"):
        with Image.open(written[name]) as picture:
            assert min(picture.size) > 100


def test_counts_of_batches_add_up_in_the_table():
    evaluator = ClassificationEvaluator(NAMES[:3], report=False)
    assert not evaluator.needs_examples({})
    for examples, top1, top5 in (([0, 3, 0], [0, 1, 0], [0, 2, 0]), ([0, 1, 0], [0, 0, 0], [0, 1, 0])):
        counts = {"examples": np.array(examples), "top1": np.array(top1), "top5": np.array(top5)}
        counts["predicted"] = counts["top1"] + [0, 0, 1]
        evaluator.add({}, counts, None)
    assert evaluator.metrics() == {"top1": 0.25, "top5": 0.75}
    totals = ["top-1 accuracy  0.2500  (1 of 4 images)", "top-5 accuracy  0.7500  (3 of 4 images)"]
    assert evaluator.format_table(per_class=False).splitlines() == totals
    lines = evaluator.format_table(per_class=True).splitlines()
    assert lines[0].split() == ["class", "precision", "recall", "F1", "top-5", "images"]
    assert lines[2].split() == ["1", "ant", "1.0000", "0.2500", "0.4000", "0.7500", "4"]
    assert lines[3].split()[2:] == ["0.0000", "-", "0.0000", "-", "0"]
    assert lines[5:] == totals


def test_a_whole_image_can_be_evaluated():
    data = default_config("classification").data
    data.eval_preparation, data.eval_crop = "whole", 48
    processor = make_processor(data)
    assert output_size(processor) == (48, 48)
    image = Image.new("RGB", (90, 30))
    image.putpixel((0, 0), (255, 255, 255))
    whole = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(ResizeAndCrop(processor)(image), whole)
