"""Detection: a run from COCO's JSON to drawn boxes; its metrics against pycocotools on the files that it wrote."""

import contextlib
import io
import json

import box_archives
import jax
import numpy as np
import predicting
import pytest
import voc_archives
from harness import compiling_once
from PIL import Image

from flax_mnv2 import ConfigError, DataError, MobileNetV2ForObjectDetection, save_pretrained
from flax_mnv2.tasks.detection.metrics import COCO_FIGURES, ImageBoxes, coco_metrics, voc_average_precision
from flax_mnv2.tasks.detection.rows import TrainRow
from flax_mnv2.tasks.detection.task import DetectionTask
from flax_mnv2.tools.preview import preview
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.training.optimizer import configured_optimizer
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import configured_train_step

SIDE = 64


@pytest.fixture
def config(tmp_path, tiny_blocks):
    """Two maps of the tiny backbone, a few anchors, the five images of box_archives."""
    config = default_config("detection")
    config.data.archive = str(voc_archives.write(tmp_path / "boxes", box_archives.coco_files()))
    config.data.data_dir, config.data.num_threads = str(tmp_path / "prepared"), 1
    config.data.image_size, config.data.max_boxes = (SIDE, SIDE), 4
    config.batch_size = config.eval.batch_size = 4
    config.num_steps = config.eval_every_steps = config.checkpoint.every_steps = 3
    config.model.depth_multiplier = 0.35
    config.detection.feature_layers, config.detection.extra_channels = ("layer_01/expansion", "conv_1x1"), ()
    config.detection.anchors = (((0.3, 0.3), (0.2, 0.4)), ((0.8, 0.8),))
    config.optimizer.learning_rate = 0.01
    return config


def _from_files(instances, detections):
    """pycocotools' twelve figures of two files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = instances
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_from_json_to_drawn_boxes(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    train(config, workdir, parallel=compiling_once(config))
    lines = read_metrics(workdir)
    assert {"loss", "class_loss", "box_loss"} <= lines[0].keys()
    assert np.isfinite([lines[0][name] for name in ("loss", "class_loss", "box_loss")]).all()
    np.testing.assert_allclose(lines[0]["class_loss"] + lines[0]["box_loss"], lines[0]["loss"], rtol=1e-5)
    assert {"ap", "ap50"} <= lines[-1].keys()

    report = evaluate_run(config, workdir=str(workdir), output=str(tmp_path / "report"))
    assert "VOC AP50" in capsys.readouterr().out
    assert report["num_examples"] == 2
    detections = json.loads((tmp_path / "report" / "detections.json").read_text())
    assert {row["category_id"] for row in detections} <= {3, 7}
    instances = box_archives.coco("de")
    for row in instances["annotations"]:
        row["iscrowd"] = row.get("iscrowd", 0)
    found = [-1 if report[name] is None else report[name] for name in COCO_FIGURES]
    np.testing.assert_allclose(found, _from_files(instances, detections), atol=1e-6)
    for name in ("predictions.png", "precision_recall.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert min(picture.size) > 100

    photo = tmp_path / "photo.jpg"
    photo.write_bytes(box_archives.image("d"))
    arguments = ["--model", str(workdir / "checkpoints" / "step_3"), "--threshold", "0", "--output", str(tmp_path)]
    status, _, _ = predicting.run(capsys, str(photo), *arguments, "--json")
    assert status == 0
    assert (tmp_path / "photo_detection.png").is_file()
    preview(config, tmp_path / "sheet.png", num_images=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_one_step_on_one_and_on_four_devices(config):
    """Positives, hard negatives and the divisor are those of the whole batch, whatever holds its parts."""
    task = DetectionTask.for_training(config, box_archives.LABELS)
    rng = np.random.default_rng(0)
    low = 0.5 * rng.random((4, 4, 2))
    batch = {
        "image": rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8),
        "boxes": np.concatenate([low, low + 0.3], -1).astype(np.float32),
        "class_labels": np.array([[0, 1, -1, -1], [-1] * 4, [1, 1, 0, 0], [0, -1, -1, -1]], np.int32),
        "ignored": np.zeros((4, 4), bool),
    }
    results = []
    for mode, devices in (("jit", 1), ("pmap", 4)):
        parallel = make_parallel(mode, jax.devices()[:devices])
        task = DetectionTask.for_training(config, box_archives.LABELS, axis_name=parallel.axis_name)
        schedule, optimizer = configured_optimizer(config)
        step = parallel.compile_train_step(configured_train_step(config, task, schedule, optimizer, parallel))
        state = parallel.put_state(TrainState.create(task.init_variables(0), optimizer))
        state, metrics = step(state, parallel.put_batch(batch))
        results.append(
            (jax.tree.map(np.asarray, state.params), {name: float(value) for name, value in metrics.items()})
        )
    np.testing.assert_allclose(list(results[1][1].values()), list(results[0][1].values()), rtol=1e-4)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6), results[1][0], results[0][0])


def _image(boxes, labels, scores=None, ignored=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    ignored = np.zeros(len(boxes), bool) if ignored is None else np.array(ignored)
    return ImageBoxes("x", boxes, np.array(labels), None if scores is None else np.array(scores), ignored, areas)


def test_vocs_average_precision_by_hand():
    truth = [_image([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]], [0, 0, 0], ignored=[False, False, True])]
    found = [_image([[0, 0, 10, 10], [0, 0, 10, 9], [0, 20, 10, 30], [20, 0, 30, 10]], [0] * 4, [0.9, 0.8, 0.7, 0.6])]
    # A hit, the same again, one on a difficult box that counts nowhere, a hit: precision 1, 1/2, 2/3.
    result = voc_average_precision(truth, found, 2)
    assert result[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan(result[1])


def test_nothing_found_is_0_and_nothing_to_find_is_no_figure():
    nothing = _image([], [], [])
    coco = coco_metrics([_image([[0, 0, 50, 50]], [0])], [nothing], 2)
    assert coco.figures["ap"] == 0
    assert np.isnan(coco.figures["ap_small"])
    assert np.isnan(coco.per_class[1])
    assert np.isnan(coco_metrics([_image([], [])], [nothing], 1).figures["ap"])


@pytest.mark.parametrize("take_largest", [False, True])
def test_more_boxes_than_rows(take_largest):
    class Source(list):
        pass

    boxes = np.array([[0, 0, 0.1, 0.1], [0, 0, 0.9, 0.9], [0.5, 0.5, 0.7, 0.7]], np.float32)
    objects = {"bbox": boxes, "label": np.array([0, 1, 0]), "ignored": np.zeros(3, bool)}
    source = Source([{"image": box_archives.image("a"), "image_id": "a", "objects": objects}])

    def whole(image, boxes, rng, *, ignored):
        return image, boxes, np.arange(len(boxes))

    row = TrainRow(source=source, augment=whole, max_boxes=2, take_largest=take_largest, num_classes=2)
    if not take_largest:
        with pytest.raises(DataError, match=r"'a': it has 3 boxes, and config\.data\.max_boxes is 2.*too_many_boxes"):
            row(0, np.random.default_rng(0))
        return
    filled = row(0, np.random.default_rng(0))
    np.testing.assert_array_equal(filled["boxes"], boxes[1:])
    assert filled["class_labels"].tolist() == [1, 0]


def test_outputs_become_boxes_in_pixels_and_labels_give_the_loss(config, tmp_path):
    task = DetectionTask.for_training(config, box_archives.LABELS)
    model, variables = task.model, jax.jit(task.model.init)(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    images = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    labels = {"boxes": np.full((2, 3, 4), 0.4, np.float32), "class_labels": np.array([[0, -1, -1], [1, 0, -1]])}
    outputs = jax.jit(model.apply)(variables, images, labels)
    assert np.isfinite(outputs.loss)
    assert set(outputs.keys()) == {"loss", "logits", "box_codes", "pred_boxes"}
    results = task.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(100, 200), (50, 50)])
    for result, (height, width) in zip(results, ((100, 200), (50, 50)), strict=True):
        assert len(result["scores"]) == len(result["labels"]) == len(result["boxes"]) > 0
        assert (result["boxes"] >= 0).all()
        assert (result["boxes"] <= [width, height, width, height]).all()
        assert (np.diff(result["scores"]) <= 0).all()
    assert task.processor.post_process_object_detection(outputs, threshold=0.999)[0]["boxes"].shape == (0, 4)
    with pytest.raises(DataError, match="needs the output of MobileNetV2ForObjectDetection"):
        task.processor.post_process_object_detection(outputs.to_tuple())
    with pytest.raises(ValueError, match=r"class_labels must be in \[0, 2\)"):
        model.apply(variables, images, {**labels, "class_labels": labels["class_labels"] + 5})

    save_pretrained(tmp_path / "saved", model, variables, layout="flax")
    again, loaded = MobileNetV2ForObjectDetection.from_pretrained(tmp_path / "saved")
    assert again.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, variables))
    with pytest.raises(ConfigError, match="transformers has no MobileNetV2 for detection"):
        save_pretrained(tmp_path / "other", model, variables)
