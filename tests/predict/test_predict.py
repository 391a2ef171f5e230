"""``python -m flax_mnv2.predict``: which files it takes, what it prints and writes, and how it fails."""

import io
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from PIL import Image

from flax_mnv2 import (
    DataError,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    from_pretrained,
    save_pretrained,
)
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.losses import upsample_logits
from flax_mnv2.predict import command as predict
from flax_mnv2.predict.inputs import find_images, result_stems
from flax_mnv2.predict.stream import predict_files
from flax_mnv2.tasks.predictor import Example
from flax_mnv2.tasks.segmentation import predictor as segmentation_predictor
from flax_mnv2.tasks.segmentation.predictor import SegmentationPredictor, class_fractions, label_map
from flax_mnv2.training.state import TrainState
from flax_mnv2.weights.pretrained import variable_shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Two labels are the same, as in ImageNet.
LABELS = ("background", "crane", "bird", "crane", "a dog, or a wolf", "sofa")
CONFIG = MobileNetV2Config(depth_multiplier=0.35, image_size=65, id2label=dict(enumerate(LABELS)))


def _variables(model):
    """Random weights with which different images, and places in them, get different classes."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in variable_shapes(model).items():
        if path[-1] == "kernel":
            flat[path] = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        elif path[-1] in ("scale", "var"):
            flat[path] = rng.uniform(0.5, 1.5, shape)
        else:
            flat[path] = rng.normal(0, 0.3, shape)
    return traverse_util.unflatten_dict({path: np.float32(value) for path, value in flat.items()})


def _save(folder, model_class, config=CONFIG):
    model = model_class(config)
    variables = _variables(model)
    if model_class is MobileNetV2ForSemanticSegmentation:
        # Centred, so that no class has all pixels.
        images = np.float32(_picture(0, (65, 65)))[None] / 127.5 - 1
        means = np.asarray(jax.jit(model.apply)(variables, images).logits).mean((0, 1, 2))
        variables["params"]["segmentation_head"]["classifier"]["convolution"]["bias"] -= means
    save_pretrained(folder, model, variables)
    MobileNetV2ImageProcessor(size=72, crop_size=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def classifier(tmp_path, tiny_blocks):
    return _save(tmp_path / "classifier", MobileNetV2ForImageClassification)


@pytest.fixture
def segmenter(tmp_path, tiny_blocks):
    return _save(tmp_path / "segmenter", MobileNetV2ForSemanticSegmentation)


def _picture(seed, size=(60, 90)):
    """Blotches of colour, (H, W, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.NEAREST))


def _write(path, seed=0, size=(60, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_picture(seed, size)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Three good files and two bad ones."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.PNG")):
        _write(folder / name, seed)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-200])
    (folder / "text.png").write_text("no image")
    return folder


def _run(capsys, *arguments):
    """Exit status, stdout and stderr."""
    capsys.readouterr()
    status = predict.main([str(item) for item in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def _records(text):
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------------------------- which files


def test_a_folder_stands_for_all_images_below_it(photos, tmp_path):
    (photos / "notes.txt").write_text("")
    (photos / "._a.png").write_text("")
    _write(photos / ".cache" / "d.png")
    _write(photos / "out" / "e.png")
    files, failures = find_images([str(photos)], exclude=photos / "out")
    expected = ["a.png", "b.jpg", "broken.jpg", "text.png", "sub/c.PNG"]
    assert files == [photos / name for name in expected]
    assert failures == []
    files, _ = find_images([str(photos / "out")], exclude=photos / "out")
    assert files == [photos / "out" / "e.png"]  # named itself


def test_a_name_that_begins_with_a_tilde_is_a_name(photos, classifier, monkeypatch, capsys):
    (photos / "a.png").rename(photos / "~nobody.png")
    monkeypatch.chdir(photos)
    status, out, _ = _run(capsys, ".", "--model", classifier, "--top", 1)
    assert status == predict.SOME_FAILED_STATUS  # of the two broken files
    assert "~nobody.png" in out
    _stops(capsys, "home folder", ".", "--model", "~no-such-user/model")


def test_patterns_and_repetitions(photos, monkeypatch):
    monkeypatch.chdir(photos)
    names = ["*.png", str(photos / "a.png"), "./a.png", "**/*.PNG"]
    files, failures = find_images(names)
    assert [file.name for file in files] == ["a.png", "text.png", "c.PNG"]
    assert failures == []
    _write(photos / "x[1].png")
    assert find_images(["x[1].png"])[0] == [pathlib.Path("x[1].png")]


def test_what_leads_to_no_image_is_named(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "empty"), str(tmp_path / "absent.png"), str(tmp_path / "*.tiff"), "x" * 5000]
    files, failures = find_images([*names, str(photos / "a.png")])
    assert files == [photos / "a.png"]
    assert [name for name, _ in failures] == names
    reasons = [reason for _, reason in failures]
    assert "no image in this folder; looked for .jpg" in reasons[0]
    assert reasons[1:] == ["no such file or folder", "no file matches this pattern", "no such file or folder"]


def test_results_get_names_of_their_own(tmp_path):
    files = [tmp_path / name for name in ("a/x.png", "b/x.jpg", "b/X.gif", "a/x_2.png", "y.png", "y_mask.png")]
    assert result_stems(files, tmp_path / "out", ("_mask.png",)) == ["x", "x_2", "X_3", "x_2_2", "y", "y_mask"]
    # Beside the photos themselves, y's mask would replace y_mask.png.
    assert result_stems(files, tmp_path, ("_mask.png",))[-2:] == ["y_2", "y_mask"]


# ---------------------------------------------------------------------------------- batches


class _Recorder:
    """Answers the mean of the pixels; notes the shapes of the batches and how many photos are held at a time."""

    def __init__(self):
        self.shapes, self.held, self.most_held, self._lock = [], 0, 0, threading.Lock()

    def prepare(self, photo):
        with self._lock:
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        return Example(photo.astype(np.float32), photo.shape)

    def compute(self, pixels):
        self.shapes.append(pixels.shape)
        return pixels.mean((1, 2, 3))

    def finish(self, example, answer):
        self.held -= 1
        assert answer == pytest.approx(example.pixels.mean())
        return example.context


def test_batches_have_one_shape_and_bad_files_stop_nothing(tmp_path):
    files = [_write(tmp_path / f"{seed:02d}.png", seed, (8, 9)) for seed in range(19)]
    files[4].write_text("no image")
    recorder = _Recorder()
    outcomes = list(predict_files(recorder, files, batch_size=8))
    assert recorder.shapes == [(7, 8, 9, 3)] * 3  # 19 files in 3 batches
    assert recorder.most_held <= 14
    assert sorted(outcome.file for outcome in outcomes) == files
    assert [outcome.file for outcome in outcomes if outcome.error] == [files[4]]
    done = [outcome.file for outcome in outcomes if outcome.prediction]
    assert done == [file for file in files if file != files[4]]


def test_another_shape_starts_another_batch(tmp_path):
    sizes = [(8, 9), (8, 9), (10, 9), (8, 9)]
    files = [_write(tmp_path / f"{seed}.png", seed, size) for seed, size in enumerate(sizes)]
    recorder = _Recorder()
    outcomes = list(predict_files(recorder, files, batch_size=4))
    assert [outcome.prediction for outcome in outcomes] == [(*size, 3) for size in sizes]
    assert recorder.shapes == [(4, 8, 9, 3), (4, 10, 9, 3), (4, 8, 9, 3)]


def test_no_files_no_batches():
    assert list(predict_files(_Recorder(), [], batch_size=4)) == []


# ---------------------------------------------------------------------------------- label maps


@pytest.mark.parametrize("shape", [(5, 7, 4), (1, 3, 4), (1, 1, 2), (9, 9, 300)])
def test_label_maps_are_the_largest_interpolated_logits(shape):
    logits = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    size = (37, 53)
    ours = label_map(logits, canvas=(40, 40), region=(40, 40), size=size)
    assert ours.dtype == (np.uint8 if shape[-1] <= 256 else np.uint16)
    upsampled = upsample_logits(jnp.asarray(logits)[None], size)[0]
    np.testing.assert_array_equal(ours, np.asarray(jnp.argmax(upsampled, axis=-1)))
    assert len(np.unique(ours)) > 1 or shape[:2] == (1, 1)


def test_the_label_map_of_a_part_is_a_part_of_the_label_map():
    logits = np.random.default_rng(2).normal(size=(5, 5, 3)).astype(np.float32)
    whole = label_map(logits, canvas=(65, 65), region=(65, 65), size=(65, 65))
    part = label_map(logits, canvas=(65, 65), region=(30, 47), size=(30, 47))
    np.testing.assert_array_equal(part, whole[:30, :47])
    # At three times the size, every third pixel has the same centre.
    large = label_map(logits, canvas=(65, 65), region=(30, 47), size=(90, 141))
    np.testing.assert_array_equal(large[1::3, 1::3], part)


def test_of_equal_logits_the_lowest_class_wins():
    assert not label_map(np.ones((3, 3, 4)), canvas=(9, 9), region=(9, 9), size=(20, 20)).any()


def test_fractions_are_sorted_and_complete():
    mask = np.array([[2, 2, 0], [2, 4, 0]], np.uint8)
    fractions = class_fractions(mask, dict(enumerate(LABELS)))
    assert [(item.index, item.label, item.fraction) for item in fractions] == [
        (2, "bird", 3 / 6),
        (0, "background", 2 / 6),
        (4, "a dog, or a wolf", 1 / 6),
    ]


@pytest.mark.parametrize(
    ("size", "do_resize", "region", "side"),
    [
        ((60, 90), True, (43, 65), 65),
        ((200, 100), True, (65, 32), 65),
        ((1, 1000), True, (1, 65), 65),
        ((60, 90), False, (60, 90), 129),
        ((20, 30), False, (20, 30), 129),  # no smaller than the network's size
        ((129, 30), False, (129, 30), 129),
        ((130, 30), False, (130, 30), 257),
        ((300, 2050), False, (150, 1025), 1025),
    ],
)
def test_a_photo_is_framed_whole(tiny_blocks, size, do_resize, region, side):
    model = MobileNetV2ForSemanticSegmentation(CONFIG)
    processor = MobileNetV2ImageProcessor(do_resize=do_resize, size=72, crop_size=64)
    photo = np.full((*size, 3), 255, np.uint8)
    example = SegmentationPredictor(model, {}, processor).prepare(photo)
    assert example.pixels.shape == (side, side, 3)
    assert (example.pixels[: region[0], : region[1]] == 1).all()
    assert np.count_nonzero(example.pixels) == 3 * region[0] * region[1]  # 0, the mean, elsewhere


# ---------------------------------------------------------------------------------- classification


def test_classes_are_printed_with_probability_label_and_index(classifier, photos, capsys):
    status, out, err = _run(capsys, photos / "a.png", photos / "b.jpg", "--model", classifier, "--top", 3)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [lines[0], lines[4], len(lines)] == [str(photos / "a.png"), str(photos / "b.jpg"), 8]
    (folder, variables) = from_pretrained(classifier)
    pixels = MobileNetV2ImageProcessor.from_pretrained(classifier)(photos / "a.png", return_tensors="np").pixel_values
    expected = jax.nn.softmax(jax.jit(folder.apply)(variables, pixels).logits)[0]
    best = np.argsort(-np.asarray(expected))[:3]
    assert lines[1:4] == [f"  {expected[index]:.4f}  {LABELS[index]} ({index})" for index in best]


def test_json_lines_hold_everything(classifier, photos, tmp_path, capsys):
    arguments = (photos, "--model", classifier, "--top", 99, "--json", "--output", tmp_path / "out")
    status, out, err = _run(capsys, *arguments)
    assert status == predict.SOME_FAILED_STATUS
    records = _records(out)
    assert [record["file"] for record in records] == [str(photos / name) for name in ("a.png", "b.jpg", "sub/c.PNG")]
    for record in records:
        assert record["task"] == "classification"
        assert sorted(item["index"] for item in record["predictions"]) == list(range(len(LABELS)))
        assert all(item["label"] == LABELS[item["index"]] for item in record["predictions"])
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
        _, out, _ = _run(capsys, photos, "--model", classifier, "--json", "--batch_size", batch_size)
        runs.append([[item["probability"] for item in record["predictions"]] for record in _records(out)])
    np.testing.assert_allclose(runs[1], runs[0], atol=1e-6)
    np.testing.assert_allclose(runs[2], runs[0], atol=1e-6)


def test_computing_in_bfloat16_is_close(classifier, photos, capsys):
    arguments = (photos / "a.png", "--model", classifier, "--json", "--top", 99)
    values = []
    for dtype in ("float32", "bfloat16"):
        (record,) = _records(_run(capsys, *arguments, "--dtype", dtype)[1])
        values.append({item["index"]: item["probability"] for item in record["predictions"]})
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=0.05)


def test_classes_that_do_not_exclude_each_other_get_a_sigmoid_each(tmp_path, tiny_blocks, photos, capsys):
    multi_label = CONFIG.replace(problem_type="multi_label_classification")
    folder = _save(tmp_path / "model", MobileNetV2ForImageClassification, multi_label)
    (record,) = _records(_run(capsys, photos / "a.png", "--model", folder, "--json", "--top", 6)[1])
    assert sum(item["probability"] for item in record["predictions"]) > 1.01


def test_a_processor_that_shrinks_too_much_is_named(classifier, photos, capsys):
    MobileNetV2ImageProcessor(size=16, crop_size=16).save_pretrained(classifier)
    status, out, err = _run(capsys, photos / "a.png", "--model", classifier)
    assert (status, out) == (1, "")
    assert err.startswith(f"{photos / 'a.png'}: The processor makes 16×16 pixels")


# ---------------------------------------------------------------------------------- segmentation


def test_a_segmentation_covers_the_photo_at_its_own_size(segmenter, photos, tmp_path, capsys):
    out_folder = tmp_path / "out"
    status, out, err = _run(capsys, photos / "a.png", "--model", segmenter, "--output", out_folder)
    assert (status, err) == (0, "")
    with Image.open(out_folder / "a_mask.png") as image:
        assert (image.mode, image.size) == ("P", (90, 60))
        mask = np.asarray(image)
    with Image.open(out_folder / "a_segmentation.png") as image:
        assert image.width >= 90
        assert image.height > 60
    indices, counts = np.unique(mask, return_counts=True)
    assert len(indices) > 1
    order = np.argsort(-counts, kind="stable")
    shares = [f"  {100 * counts[item] / mask.size:5.1f} %  {LABELS[indices[item]]}" for item in order]
    assert out.splitlines() == [
        str(photos / "a.png"),
        *shares,
        f"  overlay: {out_folder / 'a_segmentation.png'}",
        f"  mask:    {out_folder / 'a_mask.png'}",
    ]


def test_segmentations_go_to_predictions_and_are_not_read_again(segmenter, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    _write(photos / "sub" / "a.jpg", 7, (50, 40))
    runs = [_run(capsys, ".", "--model", segmenter, "--json") for _ in range(2)]
    assert runs[0] == runs[1]
    status, out, _ = runs[0]
    assert status == 1
    records = _records(out)
    assert [record["file"] for record in records] == ["a.png", "b.jpg", "sub/a.jpg", "sub/c.PNG"]
    for record in records:
        assert record["task"] == "segmentation"
        with Image.open(record["mask"]) as mask, Image.open(record["file"]) as photo:
            assert mask.size == photo.size
            counts = np.bincount(np.asarray(mask).ravel())
        assert {item["index"]: item["fraction"] for item in record["classes"]} == {
            index: count / counts.sum() for index, count in enumerate(counts.tolist()) if count
        }
        assert all(item["label"] == LABELS[item["index"]] for item in record["classes"])
    written = {str(path) for path in (photos / "predictions").iterdir()}
    named = {str(photos / record[kind]) for record in records for kind in ("overlay", "mask")}
    assert written == named | {str(photos / "predictions" / "predictions.jsonl")}
    assert len(named) == 8  # also for the two files a
    assert (photos / "predictions" / "predictions.jsonl").read_text() == out


def test_exif_orientation_is_honoured(segmenter, tmp_path, capsys):
    upright = _picture(3, (60, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    out = tmp_path / "out"
    _run(capsys, tmp_path / "turned.png", tmp_path / "upright.png", "--model", segmenter, "--output", out)
    masks = []
    for name in ("turned", "upright"):
        with Image.open(out / f"{name}_mask.png") as image:
            masks.append(np.asarray(image))
    assert masks[0].shape == (60, 90)
    assert len(np.unique(masks[0])) > 1
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "F"])
def test_files_of_every_mode_are_segmented(segmenter, tmp_path, capsys, mode):
    image = Image.fromarray(_picture(4, (40, 50)))
    image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F") else "x.png")
    image.save(path)
    status, _, err = _run(capsys, path, "--model", segmenter, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    with Image.open(tmp_path / "out" / "x_mask.png") as mask:
        assert mask.size == (50, 40)


def test_more_classes_than_a_palette_holds(tmp_path, tiny_blocks, photos, capsys):
    config = MobileNetV2Config(depth_multiplier=0.35, image_size=65, num_labels=2000)
    folder = _save(tmp_path / "model", MobileNetV2ForSemanticSegmentation, config)
    (record,) = _records(_run(capsys, photos / "a.png", "--model", folder, "--output", tmp_path, "--json")[1])
    with Image.open(record["mask"]) as mask:
        assert mask.mode == "I;16"
        indices = np.unique(np.asarray(mask)).tolist()
    assert indices == sorted(item["index"] for item in record["classes"])
    assert max(indices) > 255


def test_a_runs_checkpoint_needs_no_processor(tmp_path, tiny_blocks, photos, capsys):
    model = MobileNetV2ForSemanticSegmentation(CONFIG)
    state = TrainState.create(_variables(model), optax.sgd(0.1))
    about = {"config": {"task": "segmentation"}, "model": CONFIG.to_dict()}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(0, state.to_items(), about)
    folder = str(tmp_path / "run" / "checkpoints" / "step_0")
    predictor = predict.load_predictor(folder)
    photo = _picture(0)
    pixels = predictor.prepare(photo).pixels
    np.testing.assert_allclose(pixels[:60, :90], photo / np.float32(127.5) - 1, atol=1e-6)
    status, out, err = _run(capsys, photos / "a.png", "--model", folder, "--output", tmp_path / "out", "--json")
    assert (status, err) == (0, "")
    assert _records(out)[0]["task"] == "segmentation"


# ---------------------------------------------------------------------------------- mistakes and failures


def test_bad_files_are_listed_with_reasons_and_the_others_done(classifier, photos, monkeypatch, capsys):
    _write(photos / "bomb.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # from twice as many on, Pillow refuses
    for name in ("a.png", "b.jpg", "sub/c.PNG"):
        _write(photos / name, size=(14, 15))  # a warning, which is nobody's concern
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:-20])
    absent = photos / "absent.jpg"
    status, out, err = _run(capsys, photos, absent, photos / "*.webp", "--model", classifier, "--top", 1)
    assert status == 1
    assert out.splitlines()[::2] == [str(photos / name) for name in ("a.png", "b.jpg", "sub/c.PNG")]
    reasons = err.splitlines()
    assert len(reasons) == 5
    for name, reason in (
        ("absent.jpg", "no such file or folder"),
        ("*.webp", "no file matches"),
        ("bomb.png", "decompression bomb"),
        ("broken.jpg", "truncated"),
        ("text.png", "convert it, or leave it out"),
    ):
        (line,) = [line for line in reasons if name in line]
        assert reason in line


def _stops(capsys, message, *arguments):
    status, out, err = _run(capsys, *arguments)
    assert (status, out) == (predict.USER_ERROR_STATUS, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_nothing_to_predict_for_is_a_mistake(classifier, tmp_path, capsys):
    _stops(capsys, "No image to predict for", tmp_path / "absent.jpg", "--model", classifier)
    _stops(capsys, "no file matches this pattern", tmp_path / "*.jpg", "--model", classifier)


def test_a_missing_model_is_explained(photos, tmp_path, capsys):
    _stops(capsys, str(tmp_path / "absent"), photos, "--model", tmp_path / "absent")
    _stops(capsys, "could not be downloaded", photos, "--model", "nobody/nothing")


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_model_without_processor_is_explained(request, kind, photos, capsys):
    folder = pathlib.Path(request.getfixturevalue(kind))
    (folder / "preprocessor_config.json").unlink()
    _stops(capsys, f"No preprocessor_config.json in {folder}", photos, "--model", folder)


def test_models_for_something_else_are_refused(tmp_path, tiny_blocks, photos, capsys):
    backbone = _save(tmp_path / "backbone", MobileNetV2Model)
    _stops(capsys, "is a backbone without a head", photos, "--model", backbone)
    numbers = CONFIG.replace(problem_type="regression")
    regression = _save(tmp_path / "regression", MobileNetV2ForImageClassification, numbers)
    _stops(capsys, "is a regression", photos, "--model", regression)
    for num_labels, message in ((1, "is a regression"), (0, "no classifier")):
        config = CONFIG.replace(num_labels=num_labels)
        folder = _save(tmp_path / str(num_labels), MobileNetV2ForImageClassification, config)
        _stops(capsys, message, photos, "--model", folder)
    grey = _save(tmp_path / "grey", MobileNetV2ForImageClassification, CONFIG.replace(num_channels=1))
    _stops(capsys, "takes images of 1 channels", photos, "--model", grey)


def test_a_config_that_does_not_say_its_task_needs_the_flag(classifier, photos, capsys):
    path = pathlib.Path(classifier) / "config.json"
    values = json.loads(path.read_text())
    del values["architectures"]
    path.write_text(json.dumps(values))
    _stops(capsys, "Say which model you want", photos, "--model", classifier)
    arguments = (photos / "a.png", "--model", classifier, "--task", "classification")
    assert _run(capsys, *arguments)[0] == 0


def test_an_output_that_cannot_be_written_is_explained(segmenter, photos, monkeypatch, capsys, tmp_path):
    _stops(capsys, "Choose another --output", photos / "a.png", "--model", segmenter, "--output", photos / "b.jpg")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segmentation_predictor, "save_overlay", full)
    arguments = (photos / "a.png", "--model", segmenter, "--output", tmp_path / "out")
    _stops(capsys, f"Cannot write in {tmp_path / 'out'}: No space left on device", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.png", "--top", "0"], ["a.png", "--top", "x"], ["a.png", "--tob", "3"], ["a.png", "--dtype", "x"]],
)
def test_arguments_that_do_not_parse_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        predict.main(arguments)
    assert caught.value.code == predict.USER_ERROR_STATUS
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: python -m flax_mnv2.predict" in captured.err


def test_help_says_it_all(capsys):
    with pytest.raises(SystemExit) as caught:
        predict.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in (predict.DEFAULT_MODEL, "./predictions", "exit status", "glob", "--json", "--revision"):
        assert words in text


def test_interruption_and_a_reader_that_left(classifier, photos, monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "predict_files", interrupted)
        assert _run(capsys, photos, "--model", classifier) == (130, "", "interrupted\n")

    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

        def fileno(self):
            return file.fileno()

    with (tmp_path / "stdout").open("wb", buffering=0) as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        assert predict.main([str(photos / "a.png"), "--model", classifier]) == 141
        file.write(b"lost")  # what is still printed at exit goes nowhere
    assert (tmp_path / "stdout").read_bytes() == b""


def test_a_terminal_sees_a_bar_and_nobody_else_does(classifier, photos, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        status, out, _ = _run(capsys, photos / "a.png", photos / "b.jpg", "--model", classifier, "--json")
    assert status == 0
    assert len(_records(out)) == 2
    assert "0/2 [" in terminal.getvalue()
    assert _run(capsys, photos / "a.png", "--model", classifier)[2] == ""


def test_unreadable_examples_raise_nothing_but_data_errors(tmp_path):
    """A mistake in the program must not be taken for a bad file."""
    file = _write(tmp_path / "a.png")

    class Buggy(_Recorder):
        def prepare(self, photo):
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        list(predict_files(Buggy(), [file], batch_size=1))

    class Strict(_Recorder):
        def prepare(self, photo):
            raise DataError("does not fit")

    (outcome,) = predict_files(Strict(), [file], batch_size=1)
    assert outcome.error == "does not fit"


# ---------------------------------------------------------------------------------- the real command


def test_the_command_itself_is_quiet_light_and_honest(tmp_path, photos):
    """With sixteen blocks, in a process of its own: only records on stdout, nothing heavy imported."""
    folder = _save(tmp_path / "model", MobileNetV2ForImageClassification)
    script = (
        "import sys; from flax_mnv2.predict.command import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'cv2', 'absl.app'}; "
        "print(*heavy & set(sys.modules), file=sys.stderr); sys.exit(status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(photos), "--model", folder, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")},
    )
    assert result.returncode == predict.SOME_FAILED_STATUS, result.stderr
    assert len(_records(result.stdout)) == 3
    *failures, heavy = result.stderr.splitlines()
    assert len(failures) == 2
    assert heavy == ""


def test_the_module_runs_as_a_command(tmp_path, photos):
    result = subprocess.run(
        [sys.executable, "-m", "flax_mnv2.predict", str(photos / "a.png"), "--model", str(tmp_path / "absent")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == predict.USER_ERROR_STATUS
    assert result.stdout == ""
    assert result.stderr.startswith("error: No folder")
