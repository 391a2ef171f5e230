"""Detection: a run from COCO's JSON to drawn boxes; its metrics against pycocotools on the files that it wrote."""

import contextlib
import io
import json
import shutil

import box_archives
import jax
import numpy as np
import predicting
import pytest
import voc_archives
from flax import traverse_util
from harness import compiling_once, global_batches
from jax.experimental import multihost_utils
from PIL import Image

from flax_mnv2 import (
    ConfigError,
    DataError,
    MobileNetV2ForObjectDetection,
    fold_batch_norm,
    make_inference_fn,
    save_pretrained,
)
from flax_mnv2.models.object_detection import check_labels
from flax_mnv2.tasks.detection.evaluator import DetectionEvaluator
from flax_mnv2.tasks.detection.metrics import COCO_FIGURES, ImageBoxes, coco_metrics, voc_average_precision
from flax_mnv2.tasks.detection.rows import TrainRow
from flax_mnv2.tasks.detection.task import DetectionTask
from flax_mnv2.tools.preview import preview
from flax_mnv2.tools.tpu_compile.abstract_step import lower_train_step
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.training.optimizer import configured_optimizer
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import configured_train_step
from flax_mnv2.weights.source import variable_shapes

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The five images of box_archives, and where they are prepared; of one place, so that steps are compiled once."""
    return voc_archives.write(tmp_path_factory.mktemp("data") / "boxes", box_archives.coco_files())


@pytest.fixture
def config(folder, no_curve, monkeypatch):
    """Two blocks, two maps, a few anchors."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2), (16, 1, 2)))
    config = default_config("detection")
    config.data.archive = str(folder)
    config.data.data_dir, config.data.num_threads = str(folder.parent / "prepared"), 1
    config.data.image_size, config.data.max_boxes = (SIDE, SIDE), 4
    config.batch_size = config.eval.batch_size = 4
    config.num_steps = config.eval_every_steps = 3
    config.checkpoint.every_steps = 2
    config.ema.decay = 0.9
    config.model.depth_multiplier = 0.35
    config.detection.feature_layers, config.detection.extra_channels = ("layer_01/expansion", "conv_1x1"), ()
    config.detection.anchors = (((0.3, 0.3), (0.2, 0.4)), ((0.8, 0.8),))
    config.optimizer.learning_rate = 0.01
    return config


def _random(model, seed=0):
    """Variables of a model without compiling its ``init``."""
    rng, ranges = np.random.default_rng(seed), {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-0.5, 0.5)}
    flat = {}
    for path, shape in variable_shapes(model).items():
        if path[-1] == "kernel":
            values = rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5
        else:
            values = rng.uniform(*ranges.get(path[-1], (0.5, 2.0)), size=shape)
        flat[path] = values.astype(np.float32)
    return traverse_util.unflatten_dict(flat)


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


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_from_json_to_drawn_boxes(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DetectionTask, "init_variables", lambda self, seed: _random(self.model, seed))
    workdir = tmp_path / "run"
    state = train(config, workdir, parallel=compiling_once(config))
    lines = read_metrics(workdir)
    assert np.isfinite([lines[0][name] for name in ("loss", "class_loss", "box_loss")]).all()
    np.testing.assert_allclose(lines[0]["class_loss"] + lines[0]["box_loss"], lines[0]["loss"], rtol=1e-5)
    assert {"ap", "ap50", "ema_ap", "ema_ap50"} <= lines[-1].keys()

    shutil.rmtree(workdir / "checkpoints" / "step_3")  # as if killed before the last save
    again = train(config, workdir, parallel=compiling_once(config))
    assert "going on from step 2" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert [line.get("loss") for line in read_metrics(workdir)] == [line.get("loss") for line in lines]

    parallel = compiling_once(config, what="evaluation")
    monkeypatch.setattr("flax_mnv2.training.evaluate.make_parallel", lambda _: parallel)
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
    status, out, _ = predicting.run(capsys, str(photo), *arguments, "--json")
    assert status == 0
    with Image.open(tmp_path / "photo_detection.png") as drawn, Image.open(photo) as original:
        assert drawn.size == original.size
    boxes = json.loads(out)["boxes"]
    probabilities = [one["probability"] for one in boxes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {one["label"] for one in boxes} <= {"cat", "dog"}
    corners = np.array([one["box"] for one in boxes])
    assert (corners[:, 2:] > corners[:, :2]).all()
    assert (corners >= 0).all()
    assert (corners <= [40, 50, 40, 50]).all()  # the photo's own pixels

    preview(config, tmp_path / "sheet.png", num_images=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_one_step_on_one_and_on_four_devices(config):
    """Positives, hard negatives and the divisor are those of the whole batch, whatever holds its parts."""
    rng = np.random.default_rng(0)
    low = 0.5 * rng.random((4, 4, 2))
    batch = {
        "image": rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8),
        "boxes": np.concatenate([low, low + 0.3], -1).astype(np.float32),
        "class_labels": np.array([[0, 1, -1, -1], [-1] * 4, [1, 1, 0, 0], [0, -1, -1, -1]], np.int32),
        "ignored": np.zeros((4, 4), bool),
    }
    results = []
    for parallel in (compiling_once(config), make_parallel("pmap", jax.devices()[:4])):
        task = DetectionTask.for_training(config, box_archives.LABELS, axis_name=parallel.axis_name)
        schedule, optimizer = configured_optimizer(config)
        step = parallel.compile_train_step(configured_train_step(config, task, schedule, optimizer, parallel))
        state = parallel.put_state(TrainState.create(_random(task.model), optimizer, ema=True))
        state, metrics = step(state, parallel.put_batch(batch))
        results.append(
            (jax.tree.map(np.asarray, state.params), {name: float(value) for name, value in metrics.items()})
        )
    np.testing.assert_allclose(list(results[1][1].values()), list(results[0][1].values()), rtol=1e-4)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6), results[1][0], results[0][0])


def test_the_step_compiles_for_devices_that_are_not_there(config):
    step = lower_train_step(config, jax.devices()[:4], num_classes=2)
    assert step.num_labels == 2
    assert step.batch["boxes"].shape == (4, 4, 4)


# ---- several hosts --------------------------------------------------------------------------------------------------


def test_two_hosts_train_on_the_batches_of_one(config):
    whole, parts = (global_batches(config, processes=count, workers=0) for count in (1, 2))
    for one, other in zip(whole, parts, strict=True):
        assert {"image", "boxes", "class_labels", "ignored"} <= one.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(other[name], values)


def test_two_hosts_evaluate_as_one(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    low = rng.random((6, 3, 2)) * 0.5
    boxes = np.concatenate([low, low + 0.2], -1).astype(np.float32)
    batch = {
        "index": np.array([0, 1, 2, 3, 4, -1]),
        "file_name": np.array(["a", "b", "c", "d", "e", ""]),
        "image": np.zeros((6, 8, 8, 3), np.uint8),
        "shape": np.full((6, 2), 100, np.int32),
        "boxes": boxes,
        "class_labels": rng.integers(-1, 2, (6, 3)).astype(np.int32),
        "ignored": rng.random((6, 3)) < 0.2,
        "area": np.full((6, 3), 400, np.float32),
    }
    found = {"scores": rng.random((6, 3)), "labels": rng.integers(0, 2, (6, 3)), "found": boxes + 0.02}

    def evaluator(rows):
        made = DetectionEvaluator(("cat", "dog"), category_ids=(1, 2), integer_ids=False, num_pictures=2)
        for row in np.array_split(rows, 2):
            made.add(*({name: values[row] for name, values in each.items()} for each in (batch, {}, found)))
        return made

    whole = evaluator(np.arange(6))
    halves = [evaluator(np.array([0, 2, 5])), evaluator(np.array([1, 3, 4]))]
    gathered = [half._kept.gathered() for half in halves]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    together = {name: np.concatenate([rows[name] for rows in gathered]) for name in gathered[0]}
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine, *, tiled: together)
    assert whole.to_dict(per_class=True)["ap50"] > 0.1
    for half in halves:
        assert half.to_dict(per_class=True) == whole.to_dict(per_class=True)
    (tmp_path / "half").mkdir()
    halves[0].write_files(tmp_path / "half")
    monkeypatch.undo()
    (tmp_path / "whole").mkdir()
    whole.write_files(tmp_path / "whole")
    one, other = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("half", "whole"))
    assert one == other


# ---- metrics --------------------------------------------------------------------------------------------------------


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


# ---- the model ------------------------------------------------------------------------------------------------------


def test_outputs_become_boxes_in_pixels_and_labels_give_the_loss(config, tmp_path):
    task = DetectionTask.for_training(config, box_archives.LABELS)
    model, variables = task.model, _random(task.model)
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
    assert task.processor.post_process_object_detection(outputs, threshold=0.9999)[0]["boxes"].shape == (0, 4)
    with pytest.raises(DataError, match="needs the output of MobileNetV2ForObjectDetection"):
        task.processor.post_process_object_detection(outputs.to_tuple())
    with pytest.raises(ValueError, match=r"class_labels must be in \[0, 2\)"):
        check_labels({**labels, "class_labels": labels["class_labels"] + 5}, 2, 2)

    save_pretrained(tmp_path / "saved", model, variables, layout="flax")
    again, loaded = MobileNetV2ForObjectDetection.from_pretrained(tmp_path / "saved")
    assert again.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(ConfigError, match="transformers has no MobileNetV2 for detection"):
        save_pretrained(tmp_path / "other", model, variables)


def test_folded_rematerialised_in_bfloat16_and_at_another_stride(config):
    model = DetectionTask.for_training(config, box_archives.LABELS).model
    variables = _random(model)
    images = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    folded, folded_variables = fold_batch_norm(model, variables)
    finer = model.clone(config=model.config.replace(output_stride=4))

    @jax.jit
    def run(images):
        models = {"plain": model, "remat": model.clone(remat=True), "bfloat16": model.clone(dtype="bfloat16")}
        outputs = {name: each.apply(variables, images) for name, each in models.items()}
        outputs["native"] = model.clone(implementation="default").apply(variables, images)
        return {**outputs, "folded": folded.apply(folded_variables, images), "finer": finer.apply(variables, images)}

    outputs = run(images)
    plain, scale = outputs["plain"], np.abs(outputs["plain"].logits).max()
    for name, limit in (("remat", 1e-6), ("native", 1e-5), ("folded", 1e-5), ("bfloat16", 0.05)):
        np.testing.assert_allclose(outputs[name].logits, plain.logits, rtol=0, atol=limit * scale, err_msg=name)
        assert outputs[name].logits.dtype == outputs[name].box_codes.dtype == np.float32
    assert outputs["finer"].logits.shape[1] == len(finer.anchors((SIDE, SIDE))) > len(model.anchors((SIDE, SIDE)))
    np.testing.assert_allclose(
        make_inference_fn(model, variables)(images).box_codes, plain.box_codes, rtol=0, atol=1e-4
    )


def test_class_biases_start_where_the_spec_says(config):
    config.detection.class_bias = -4.6
    model = DetectionTask.for_training(config, box_archives.LABELS).model
    images = np.zeros((1, SIDE, SIDE, 3), np.float32)
    head = jax.jit(lambda key: model.init(key, images)["params"]["detection_head"])(jax.random.key(0))
    np.testing.assert_array_equal(head["class_0_predictor"]["convolution"]["bias"], np.full(2 * 3, -4.6, np.float32))
    assert not head["box_0_predictor"]["convolution"]["bias"].any()


def test_a_map_that_the_network_does_not_have(config):
    config.detection.feature_layers = ("layer_12/expansion", "conv_1x1")
    with pytest.raises(
        ConfigError, match=r"detection\.feature_layers names 'layer_12/expansion'; expected one of conv_stem"
    ):
        DetectionTask.for_training(config, box_archives.LABELS).model.anchors((SIDE, SIDE))
