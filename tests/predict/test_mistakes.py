"""How the command says what is wrong: with files, models, arguments, and where it writes."""

import json
import pathlib

import predicting
import pytest
from PIL import Image

from flax_mnv2 import MobileNetV2ForImageClassification, MobileNetV2Model
from flax_mnv2.predict import command as predict
from flax_mnv2.tasks.segmentation import predictor as segmentation_predictor


def test_bad_files_are_listed_with_reasons_and_the_others_done(classifier, photos, monkeypatch, capsys):
    predicting.write(photos / "bomb.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # from twice as many on, Pillow refuses
    for name in ("a.png", "b.jpg", "sub/c.PNG"):
        predicting.write(photos / name, size=(14, 15))  # a warning, which is nobody's concern
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:-20])
    absent = photos / "absent.jpg"
    status, out, err = predicting.run(capsys, photos, absent, photos / "*.webp", "--model", classifier, "--top", 1)
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


def test_nothing_to_predict_for_is_a_mistake(classifier, tmp_path, capsys):
    predicting.stops(capsys, "No image to predict for", tmp_path / "absent.jpg", "--model", classifier)
    predicting.stops(capsys, "no file matches this pattern", tmp_path / "*.jpg", "--model", classifier)


def test_a_missing_model_is_explained(photos, tmp_path, capsys):
    predicting.stops(capsys, str(tmp_path / "absent"), photos, "--model", tmp_path / "absent")
    predicting.stops(capsys, "could not be downloaded", photos, "--model", "nobody/nothing")


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_model_without_processor_is_explained(request, kind, photos, capsys):
    folder = pathlib.Path(request.getfixturevalue(kind))
    (folder / "preprocessor_config.json").unlink()
    predicting.stops(capsys, f"No preprocessor_config.json in {folder}", photos, "--model", folder)


def test_models_for_something_else_are_refused(tmp_path, tiny_blocks, photos, capsys):
    backbone = predicting.save(tmp_path / "backbone", MobileNetV2Model)
    predicting.stops(capsys, "is a backbone without a head", photos, "--model", backbone)
    numbers = predicting.CONFIG.replace(problem_type="regression")
    regression = predicting.save(tmp_path / "regression", MobileNetV2ForImageClassification, numbers)
    for task in ("classification", "multi_label_classification"):
        arguments = (photos, "--model", regression, "--task", task)
        predicting.stops(capsys, "problem_type='regression'", *arguments)
    nothing = predicting.CONFIG.replace(num_labels=0)
    features = predicting.save(tmp_path / "features", MobileNetV2ForImageClassification, nothing)
    predicting.stops(capsys, "no classifier", photos, "--model", features)
    grey = predicting.save(
        tmp_path / "grey", MobileNetV2ForImageClassification, predicting.CONFIG.replace(num_channels=1)
    )
    predicting.stops(capsys, "takes images of 1 channels", photos, "--model", grey)


def test_a_config_that_does_not_say_its_task_needs_the_flag(classifier, photos, capsys):
    path = pathlib.Path(classifier) / "config.json"
    values = json.loads(path.read_text())
    del values["architectures"]
    path.write_text(json.dumps(values))
    predicting.stops(capsys, "Say which model you want", photos, "--model", classifier)
    arguments = (photos / "a.png", "--model", classifier, "--task", "classification")
    assert predicting.run(capsys, *arguments)[0] == 0


def test_an_output_that_cannot_be_written_is_explained(segmenter, photos, monkeypatch, capsys, tmp_path):
    predicting.stops(
        capsys, "Choose another --output", photos / "a.png", "--model", segmenter, "--output", photos / "b.jpg"
    )

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segmentation_predictor, "save_overlay", full)
    arguments = (photos / "a.png", "--model", segmenter, "--output", tmp_path / "out")
    predicting.stops(capsys, f"Cannot write in {tmp_path / 'out'}: No space left on device", *arguments)


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
