"""What the command prints and writes for a classifier."""

import jax
import numpy as np
import predicting
import pytest

from flax_mnv2 import MobileNetV2ForImageClassification, from_pretrained
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.predict import command as predict


def test_classes_are_printed_with_probability_label_and_index(classifier, photos, capsys):
    status, out, err = predicting.run(capsys, photos / "a.png", photos / "b.jpg", "--model", classifier, "--top", 3)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [lines[0], lines[4], len(lines)] == [str(photos / "a.png"), str(photos / "b.jpg"), 8]
    (folder, variables) = from_pretrained(classifier)
    pixels = MobileNetV2ImageProcessor.from_pretrained(classifier)(photos / "a.png", return_tensors="np").pixel_values
    expected = jax.nn.softmax(jax.jit(folder.apply)(variables, pixels).logits)[0]
    best = np.argsort(-np.asarray(expected))[:3]
    assert lines[1:4] == [f"  {expected[index]:.4f}  {predicting.LABELS[index]} ({index})" for index in best]


def test_json_lines_hold_everything(classifier, photos, tmp_path, capsys):
    arguments = (photos, "--model", classifier, "--top", 99, "--json", "--output", tmp_path / "out")
    status, out, err = predicting.run(capsys, *arguments)
    assert status == predict.SOME_FAILED_STATUS
    records = predicting.records(out)
    assert [record["file"] for record in records] == [str(photos / name) for name in ("a.png", "b.jpg", "sub/c.PNG")]
    for record in records:
        assert record["task"] == "classification"
        assert sorted(item["index"] for item in record["predictions"]) == list(range(len(predicting.LABELS)))
        assert all(item["label"] == predicting.LABELS[item["index"]] for item in record["predictions"])
        probabilities = [item["probability"] for item in record["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
    assert records[0]["predictions"] != records[1]["predictions"]
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == out
    for name in ("broken.jpg", "text.png"):
        assert sum(name in line for line in err.splitlines()) == 1


def test_predictions_do_not_depend_on_the_batch(classifier, photos, capsys):
    runs = []
    for batch_size in (1, 2, 8):
        _, out, _ = predicting.run(capsys, photos, "--model", classifier, "--json", "--batch_size", batch_size)
        runs.append([[item["probability"] for item in record["predictions"]] for record in predicting.records(out)])
    np.testing.assert_allclose(runs[1], runs[0], atol=1e-6)
    np.testing.assert_allclose(runs[2], runs[0], atol=1e-6)


def test_computing_in_bfloat16_is_close(classifier, photos, capsys):
    arguments = (photos / "a.png", "--model", classifier, "--json", "--top", 99)
    values = []
    for dtype in ("float32", "bfloat16"):
        (record,) = predicting.records(predicting.run(capsys, *arguments, "--dtype", dtype)[1])
        values.append({item["index"]: item["probability"] for item in record["predictions"]})
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=0.05)


def test_classes_that_do_not_exclude_each_other_get_a_sigmoid_each(tmp_path, tiny_blocks, photos, capsys):
    multi_label = predicting.CONFIG.replace(problem_type="multi_label_classification")
    folder = predicting.save(tmp_path / "model", MobileNetV2ForImageClassification, multi_label)
    (record,) = predicting.records(predicting.run(capsys, photos / "a.png", "--model", folder, "--json", "--top", 6)[1])
    assert sum(item["probability"] for item in record["predictions"]) > 1.01


def test_a_processor_that_shrinks_too_much_is_named(classifier, photos, capsys):
    MobileNetV2ImageProcessor(size=16, crop_size=16).save_pretrained(classifier)
    status, out, err = predicting.run(capsys, photos / "a.png", "--model", classifier)
    assert (status, out) == (1, "")
    assert err.startswith(f"{photos / 'a.png'}: The processor makes 16×16 pixels")
