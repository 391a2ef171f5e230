"""What the command prints and writes for a segmentation model."""

import numpy as np
import optax
import predicting
import pytest
from PIL import Image

from flax_mnv2 import MobileNetV2Config, MobileNetV2ForSemanticSegmentation
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.predict import command as predict
from flax_mnv2.training.state import TrainState


def test_a_segmentation_covers_the_photo_at_its_own_size(segmenter, photos, tmp_path, capsys):
    out_folder = tmp_path / "out"
    status, out, err = predicting.run(capsys, photos / "a.png", "--model", segmenter, "--output", out_folder)
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
    fractions = [f"  {100 * counts[item] / mask.size:5.1f} %  {predicting.LABELS[indices[item]]}" for item in order]
    assert out.splitlines() == [
        str(photos / "a.png"),
        *fractions,
        f"  overlay: {out_folder / 'a_segmentation.png'}",
        f"  mask:    {out_folder / 'a_mask.png'}",
    ]


def test_segmentations_go_to_predictions_and_are_not_read_again(segmenter, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    predicting.write(photos / "sub" / "a.jpg", 7, (50, 40))
    runs = [predicting.run(capsys, ".", "--model", segmenter, "--json") for _ in range(2)]
    assert runs[0] == runs[1]
    status, out, _ = runs[0]
    assert status == 1
    records = predicting.records(out)
    assert [record["file"] for record in records] == ["a.png", "b.jpg", "sub/a.jpg", "sub/c.PNG"]
    for record in records:
        assert record["task"] == "segmentation"
        with Image.open(record["mask"]) as mask, Image.open(record["file"]) as photo:
            assert mask.size == photo.size
            counts = np.bincount(np.asarray(mask).ravel())
        assert {item["index"]: item["fraction"] for item in record["classes"]} == {
            index: count / counts.sum() for index, count in enumerate(counts.tolist()) if count
        }
        assert all(item["label"] == predicting.LABELS[item["index"]] for item in record["classes"])
    written = {str(path) for path in (photos / "predictions").iterdir()}
    named = {str(photos / record[kind]) for record in records for kind in ("overlay", "mask")}
    assert written == named | {str(photos / "predictions" / "predictions.jsonl")}
    assert len(named) == 8  # also for the two files a
    assert (photos / "predictions" / "predictions.jsonl").read_text() == out


def test_exif_orientation_is_honoured(segmenter, tmp_path, capsys):
    upright = predicting.picture(3, (60, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    out = tmp_path / "out"
    predicting.run(capsys, tmp_path / "turned.png", tmp_path / "upright.png", "--model", segmenter, "--output", out)
    masks = []
    for name in ("turned", "upright"):
        with Image.open(out / f"{name}_mask.png") as image:
            masks.append(np.asarray(image))
    assert masks[0].shape == (60, 90)
    assert len(np.unique(masks[0])) > 1
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "F"])
def test_files_of_every_mode_are_segmented(segmenter, tmp_path, capsys, mode):
    image = Image.fromarray(predicting.picture(4, (40, 50)))
    image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F") else "x.png")
    image.save(path)
    status, _, err = predicting.run(capsys, path, "--model", segmenter, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    with Image.open(tmp_path / "out" / "x_mask.png") as mask:
        assert mask.size == (50, 40)


def test_more_classes_than_a_palette_holds(tmp_path, tiny_blocks, photos, capsys):
    config = MobileNetV2Config(depth_multiplier=0.35, image_size=65, num_labels=2000)
    folder = predicting.save(tmp_path / "model", MobileNetV2ForSemanticSegmentation, config)
    (record,) = predicting.records(
        predicting.run(capsys, photos / "a.png", "--model", folder, "--output", tmp_path, "--json")[1]
    )
    with Image.open(record["mask"]) as mask:
        assert mask.mode == "I;16"
        indices = np.unique(np.asarray(mask)).tolist()
    assert indices == sorted(item["index"] for item in record["classes"])
    assert max(indices) > 255


def test_a_runs_checkpoint_needs_no_processor(tmp_path, tiny_blocks, photos, capsys):
    model = MobileNetV2ForSemanticSegmentation(predicting.CONFIG)
    state = TrainState.create(predicting.variables(model), optax.sgd(0.1))
    about = {"config": {"task": "segmentation"}, "model": predicting.CONFIG.to_dict()}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(0, state.to_items(), about)
    folder = str(tmp_path / "run" / "checkpoints" / "step_0")
    predictor = predict.load_predictor(folder)
    photo = predicting.picture(0)
    pixels = predictor.prepare(photo).pixels
    np.testing.assert_allclose(pixels[:60, :90], photo / np.float32(127.5) - 1, atol=1e-6)
    status, out, err = predicting.run(
        capsys, photos / "a.png", "--model", folder, "--output", tmp_path / "out", "--json"
    )
    assert (status, err) == (0, "")
    assert predicting.records(out)[0]["task"] == "segmentation"
