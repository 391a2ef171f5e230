"""Multi-label classification: metrics by their definitions, the model's own loss, a run from table to prediction."""

import json
import shutil
import types

import jax
import numpy as np
import predicting
import pytest
from harness import compiling_once

from flax_mnv2 import ConfigError, MobileNetV2Config, from_pretrained, save_pretrained
from flax_mnv2.losses import classification_loss
from flax_mnv2.tasks.multi_label.evaluator import MultiLabelEvaluator
from flax_mnv2.tasks.multi_label.metrics import MultiLabelMetrics, average_precision
from flax_mnv2.tasks.multi_label.task import MultiLabelTask
from flax_mnv2.tools.preview import preview
from flax_mnv2.tools.tpu_compile.abstract_step import lower_train_step
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.weights.opening import open_weights

COLORS = ("blue", "green", "red")
JOB = "multi_label_classification"


@pytest.fixture
def config(vector_config, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))  # colours need no more
    return vector_config(JOB, "labels.csv")


def by_thresholds(truth, scores):
    """scikit-learn's definition, threshold by threshold: the sum of (R_n - R_n-1) P_n."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        hits = sum(1 for right, taken in zip(truth, chosen, strict=True) if right and taken)
        recall = hits / truth.sum()
        total += (recall - recall_before) * hits / chosen.sum()
        recall_before = recall
    return total


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_average_precision_is_the_definition_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        truth, scores = rng.random(60) < 0.3, rng.integers(0, levels, 60).astype(np.float32)
        assert average_precision(truth, scores) == pytest.approx(by_thresholds(truth, scores))


def test_average_precision_of_single_cases():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert average_precision(np.array([False, False, True, True]), scores) == pytest.approx(0.8333333)  # as documented
    assert average_precision(np.ones(4, bool), scores) == 1.0
    assert np.isnan(average_precision(np.zeros(4, bool), scores))


def test_averages_of_f1_precision_and_recall():
    truth = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
    predicted = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    computed = MultiLabelMetrics.of(truth, predicted.astype(float), predicted)
    assert computed.positives.tolist() == [3, 2, 0]
    assert computed.precision.tolist() == pytest.approx([2 / 3, 1, 0])
    assert computed.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    summary = computed.summary()
    assert summary["micro_precision"] == pytest.approx(3 / 5)
    assert summary["micro_recall"] == pytest.approx(3 / 5)
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # of the two classes that occur


def test_classes_without_a_positive_are_named_and_in_no_mean():
    evaluator = MultiLabelEvaluator(COLORS, threshold=0.5)
    label = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    output = np.array([[40, -3, 1], [30, 2, -1], [9, 9, 9]], np.float32)  # sigmoids of 30 and 40 are both 1 in float32
    batch = {"index": np.array([1, 0, -1]), "file_name": np.array(["b", "a", ""])}
    evaluator.add(batch, None, {"label": label, "output": output})
    values = evaluator.to_dict(per_class=True)
    assert values["mean_average_precision"] == 1.0
    assert values["without_positives"] == ["red"]
    assert [row["average_precision"] for row in values["per_class"]] == [1.0, 1.0, None]
    assert values["per_class"][2]["num_predicted"] == 1
    table = evaluator.format_table(per_class=True)
    assert "1 of 3 classes have no image here and are in no mean: red" in table
    assert table.splitlines()[4].split() == ["2", "red", "-", "0.0000", "0.0000", "0.0000", "0"]
    assert evaluator.row(label[1], output[1])["predicted"] == ["blue", "green"]


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_loss_is_that_of_the_model(config, mixup):
    config.data.mixup_alpha = mixup
    task = MultiLabelTask.for_training(config, COLORS)
    variables, rng = task.init_variables(0), np.random.default_rng(0)
    label = (rng.random((8, 3)) < 0.5).astype(np.float32)
    batch = {"image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8), "label": label}

    @jax.jit
    def losses(variables, key):
        total, (_, sums) = task.loss_sums(variables, batch, key, axis_name=None)
        images, targets = task.train_inputs(batch, key)
        logits = task.model.apply(variables, images, train=True, mutable=["batch_stats"])[0].logits
        return total / sums["weight"], classification_loss(logits, targets, problem_type=JOB), targets

    ours, models, targets = losses(variables, jax.random.key(0))
    assert task.model.config.problem_type == JOB
    assert ours == pytest.approx(float(models), rel=1e-6)
    assert (np.asarray(targets) == label).all() == (mixup == 0)


def test_it_trains_resumes_evaluates_and_predicts(config, table, tmp_path, capsys):
    config.num_steps = config.eval_every_steps = 80
    config.checkpoint.every_steps, workdir = 60, tmp_path / "run"
    state = train(config, workdir, parallel=compiling_once(config))
    printed = capsys.readouterr().out
    assert "image_table/multi_label: 48 training and 16 evaluation examples, 3 classes" in printed
    assert "best by mAP: step 80" in printed
    logged = read_metrics(workdir)[-1]
    assert logged["mean_average_precision"] > 0.9

    shutil.rmtree(workdir / "checkpoints" / "step_80")  # as if killed before the last save
    again = train(config, workdir, parallel=compiling_once(config))
    assert "going on from step 60" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state, again)

    report = evaluate_run(config, workdir=str(workdir), per_class=True)
    assert report["mean_average_precision"] == pytest.approx(logged["mean_average_precision"], abs=1e-6)
    assert [row["label"] for row in report["per_class"]] == list(COLORS)
    lines = (workdir / "evaluation" / "val_step_80" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["file_name"] for row in rows] == [f"img/{at}.jpg" for at in range(48, 64)]

    checkpoint = workdir / "checkpoints" / "step_80"
    model, variables = from_pretrained(checkpoint)
    assert model.config.problem_type == JOB
    save_pretrained(tmp_path / "hf", model, variables, open_weights(checkpoint).processor())
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["problem_type"] == JOB
    for weights in (checkpoint, tmp_path / "hf"):
        _, out, _ = predicting.run(capsys, table / "img/48.jpg", "--model", weights, "--json", "--top", 2)
        (record,) = predicting.records(out)
        assert (record["task"], record["labels"]) == (
            JOB,
            sorted(record["labels"], key=rows[0]["probability"].get)[::-1],
        )
        assert sorted(record["labels"]) == sorted(rows[0]["predicted"])
        for item in record["predictions"]:
            assert item["probability"] == pytest.approx(rows[0]["probability"][item["label"]], abs=1e-4)
    none = predicting.run(capsys, table / "img/48.jpg", "--model", checkpoint, "--threshold", 1)[1]
    assert "no class from 1 on; the likeliest: " in none


def test_its_images_can_be_looked_at_and_its_step_lowered_for_other_devices(config, tmp_path):
    preview(config, tmp_path / "sheet.png", num_images=4)
    assert (tmp_path / "sheet.png").stat().st_size > 0
    task = MultiLabelTask.for_training(config, COLORS)
    assert task.caption(None, np.array([1, 0, 0.25])) == ("blue", "25.0 % red")
    assert task.caption(None, np.zeros(3)) == ("none of the classes",)
    step = lower_train_step(config, jax.devices()[:2], num_classes=5)
    assert step.batch["label"].shape == (8, 5)


def test_classes_of_model_and_data_must_be_the_same(config):
    model = MobileNetV2Config(id2label=dict(enumerate(COLORS)))
    dataset = types.SimpleNamespace(name="things", labels=COLORS)
    assert MultiLabelTask.for_evaluation(config, model, dataset).labels == COLORS
    MultiLabelTask.for_evaluation(config, MobileNetV2Config(num_labels=3), dataset)
    for labels in (("red", "green", "blue"), ("blue", "green"), ("a", "b", "c")):
        dataset.labels = labels
        with pytest.raises(ConfigError, match=r"targets are 'blue', 'green', 'red' \(3\), those of things"):
            MultiLabelTask.for_evaluation(config, model, dataset)
