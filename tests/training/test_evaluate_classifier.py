"""Evaluation of a classifier from weights on disk to the report, with random weights and drawn archives."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flax_mnv2.training.evaluate as evaluate_run_module
from flax_mnv2 import CheckpointError, DataError, MobileNetV2Config, save_pretrained, to_state_dict
from flax_mnv2.convert import main as convert
from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.weights.pretrained import make_model

PROCESSOR = MobileNetV2ImageProcessor(size=40, crop_size={"height": 32, "width": 40}, image_mean=0.4, image_std=0.3)


_MODEL = []


@pytest.fixture
def model(tiny_blocks):
    """Model and variables, made once."""
    if not _MODEL:
        _MODEL.extend(_make_model())
    return _MODEL[0], jax.tree.map(np.copy, _MODEL[1])


def _make_model():
    names = {0: "background"} | {index: f"thing {index}, stuff" for index in range(1, 1001)}
    config = MobileNetV2Config(depth_multiplier=0.35, initializer_range=0.3, id2label=names)
    model = make_model(config, "classification")
    variables = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 40, 3), np.float32)))
    variables["params"]["classifier"]["bias"][66] = 1000.0  # the class of the first image, so that one is right
    return model, variables


@pytest.fixture
def weights(model, tmp_path):
    save_pretrained(tmp_path / "weights", *model)
    PROCESSOR.save_pretrained(tmp_path / "weights")
    return str(tmp_path / "weights")


@pytest.fixture
def config(imagenet, tmp_path):
    config = default_config("classification")
    config.data.dataset, config.data.eval_split = "imagenet2012", "validation"
    folder = imagenet.write(tmp_path / "official", train=imagenet.train_files(), validation=imagenet.validation_files())
    config.data.archive, config.data.data_dir = str(folder), str(tmp_path / "prepared")
    config.data.num_threads = 1
    config.eval.batch_size = 4  # the last batch of five images is three quarters filler
    return config


def _expected(model, files):
    """Classes of every image, the likeliest first, without batches."""
    module, variables = model
    pixels = PROCESSOR([decode_rgb(data) for data in files.values()], return_tensors="np")["pixel_values"]
    apply = jax.jit(lambda image: module.apply(variables, image).logits)
    logits = np.stack([apply(image[None])[0] for image in pixels])
    return np.argsort(-logits, axis=1, kind="stable")


@pytest.mark.parametrize(("mode", "num_devices"), [("jit", 1), ("jit", 4), ("pmap", 2)])
def test_report(config, weights, model, imagenet, tmp_path, monkeypatch, capsys, mode, num_devices):
    files = imagenet.validation_files()
    expected = _expected(model, files)
    parallel = make_parallel(mode, jax.devices()[:num_devices])
    monkeypatch.setattr(evaluate_run_module, "make_parallel", lambda _: parallel)
    report = evaluate_run(config, pretrained=weights, output=str(tmp_path / "report"), per_class=True)

    rows = [json.loads(line) for line in (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == list(files)
    np.testing.assert_array_equal([[top["label"] for top in row["top5"]] for row in rows], expected[:, :5])
    labels = np.array([row["label"] for row in rows])
    assert list(labels[:3]) == [66, 971, 231]  # ImageNet's own, one higher for the background
    assert list(expected[:, 0]) == [66] * 5
    assert (report["num_examples"], report["num_top1"], report["top1"]) == (5, 1, 0.2)
    assert sum(row["num_examples"] for row in report["per_class"]) == 5
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == report
    assert report["image_processor"]["crop_size"] == {"height": 32, "width": 40}
    printed = capsys.readouterr().out
    assert f"({report['num_top1']} of 5 images)" in printed
    assert f"predicted: {tmp_path / 'report' / 'predictions.jsonl'}" in printed
    assert f"{labels[0]:>4} thing {labels[0]} " in printed
    assert "tensorflow" not in sys.modules


def test_split_and_default_place_of_the_report(config, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = evaluate_run(config, pretrained=weights, split="train")
    assert (report["split"], report["num_examples"]) == ("train", 6)
    assert "per_class" not in report
    assert (tmp_path / "evaluation" / "predictions.jsonl").exists()
    with pytest.raises(DataError, match="has no split 'val' here; it has train, validation"):
        evaluate_run(config, pretrained=weights, split="val")


def test_weights_without_their_preprocessing(config, weights, tmp_path):
    (tmp_path / "weights" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"No preprocessor_config\.json in .*weights"):
        evaluate_run(config, pretrained=weights)


def test_a_corrupt_image_is_named(config, weights, imagenet, tmp_path):
    files = imagenet.validation_files()
    files["ILSVRC2012_val_00000004.JPEG"] = files["ILSVRC2012_val_00000004.JPEG"][:-400]
    imagenet.write(tmp_path / "official", validation=files)
    with pytest.raises(DataError, match=r"Example 'ILSVRC2012_val_00000004\.JPEG': not a readable image"):
        evaluate_run(config, pretrained=weights)


def test_a_file_of_torchvision_is_evaluated_as_what_it_converts_to(config, model, tmp_path):
    fields = {"depth_multiplier": 0.35, "num_labels": 1000, "tf_padding": False, "layer_norm_eps": 1e-5}
    module = make_model(MobileNetV2Config(**fields), "classification")
    head = {name: value[..., 1:] for name, value in model[1]["params"]["classifier"].items()}
    variables = {**model[1], "params": {**model[1]["params"], "classifier": head}}
    save_file(to_state_dict(module, variables, "torchvision"), tmp_path / "weights.safetensors")
    assert convert([str(tmp_path / "weights.safetensors"), str(tmp_path / "flax")]) == 0
    file, folder = (
        evaluate_run(config, pretrained=str(tmp_path / name), output=str(tmp_path / f"report_{name}"))
        for name in ("weights.safetensors", "flax")
    )
    assert file.pop("model") != folder.pop("model")
    assert file == folder
    assert file["num_top1"] == 1
