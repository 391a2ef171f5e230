"""Files of all tasks compute what their models do: widths, paddings, odd sizes, heads of every library."""

import exporting
import numpy as np
import pytest
from exporting import check, detector, exported, head, images, make

import flax_mnv2 as fm
from flax_mnv2.config import deeplab, detection
from flax_mnv2.export import ExportedModel, export
from flax_mnv2.export.formats.stablehlo import read_stablehlo

pytestmark = pytest.mark.usefixtures("tiny_blocks")
RUNTIMES = ("onnx", "tflite")


@pytest.fixture(autouse=True)
def _needs_runtimes():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"depth_multiplier": 0.35}, (64, 64)),
        ({"depth_multiplier": 1.4, "tf_padding": False}, (49, 70)),
        ({"depth_multiplier": 1.0, "output_stride": 8, "hidden_act": "silu", "global_pool": "catavgmax"}, (51, 64)),
        ({"tf_padding": False, "pool_window": 3, "first_layer_is_expansion": False, "stem_residual": True}, (96, 65)),
    ],
    ids=["TF's padding", "PyTorch's, α 1.4", "dilated", "window"],
)
def test_classifiers(tmp_path, fields, size):
    model, variables = make("classification", **fields)
    for to in RUNTIMES:
        path = tmp_path / f"model.{to}"
        exported(path, model, variables, size=size)
        check(path, model, variables, images(2, *size, 3))


@pytest.mark.parametrize("name", deeplab.PRESETS)
def test_segmentation(tmp_path, name):
    padding = {"tf_padding": name in ("hugging_face", "deeplab_v3plus"), "pad_block_input": name.startswith("vainf")}
    model, variables = make("segmentation", output_stride=8, deeplab=head(name), **padding)
    for to in RUNTIMES:
        exported(tmp_path / f"model.{to}", model, variables, size=(97, 64))


@pytest.mark.parametrize("name", detection.PRESETS)
def test_detection(tmp_path, name):
    spec = detector(name)
    model, variables = make("detection", detection=spec, tf_padding=name == "tensorflow")
    size = (64, 97)
    for to in RUNTIMES:
        exported(tmp_path / f"model.{to}", model, variables, size=size)
        path = tmp_path / f"boxes.{to}"
        exported(path, model, variables, size=size, batch=1, postprocessing=True)
        assert (ExportedModel(path)(images(1, *size, 3))["num_detections"] > 10).all()
    check(tmp_path / "model.onnx", model, variables, images(3, *size, 3), names=("logits", "pred_boxes"))


def test_detections_of_several_images(tmp_path):
    model, variables = make("detection", detection=detector("tensorflow"))
    options = {"size": 64, "postprocessing": True}
    exported(tmp_path / "boxes.onnx", model, variables, **options)
    together = ExportedModel(tmp_path / "boxes.onnx")(images(3, 64, 64, 3))
    alone = ExportedModel(tmp_path / "boxes.onnx")(images(3, 64, 64, 3)[1:2])
    np.testing.assert_allclose(together["boxes"][1:2], alone["boxes"], atol=1e-5)
    np.testing.assert_array_equal(together["labels"][1:2], alone["labels"])
    with pytest.raises(fm.ConfigError, match="one image at a time"):
        export(model, variables, tmp_path / "boxes.tflite", batch=2, **options)
    assert not (tmp_path / "boxes.tflite").exists()


def test_features(tmp_path):
    model, variables = make("backbone", global_pool="avgmax")
    for to in RUNTIMES:
        differences = exported(tmp_path / f"model.{to}", model, variables, size=(65, 64))
        assert list(differences) == ["last_hidden_state", "pooler_output"]


def test_features_by_stride(tmp_path):
    model = fm.MobileNetV2Backbone(fm.MobileNetV2Config(output_stride=8))
    variables = exporting.predicting.variables(model)
    for to in RUNTIMES:
        differences = exported(tmp_path / f"model.{to}", model, variables, size=64)
        assert list(differences) == ["stride_4", "stride_8"]


@pytest.mark.parametrize("to", RUNTIMES)
def test_any_size_and_any_number_of_images(tmp_path, to):
    model, variables = make("segmentation", output_stride=4, deeplab=head("deeplab_v3plus"))
    path = tmp_path / f"model.{to}"
    exported(path, model, variables, size="dynamic", batch="dynamic")
    for shape in ((1, 48, 65, 3), (3, 70, 33, 3)):
        check(path, model, variables, images(*shape))


@pytest.mark.parametrize("to", RUNTIMES)
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_bytes_to_probabilities(tmp_path, to, problem):
    model, variables = make("classification", problem_type=problem)
    path = tmp_path / f"model.{to}"
    exported(path, model, variables, preprocessing=True, postprocessing=True)
    picture = exporting.predicting.picture(0, (64, 64))
    found = ExportedModel(path)(picture[None])["probabilities"]
    pixels = exporting.PROCESSOR.preprocess(picture, do_resize=False, return_tensors="np").pixel_values
    logits = np.asarray(model.apply(variables, pixels).logits, np.float64)
    odds = np.exp(logits)
    single = problem.startswith("single")
    np.testing.assert_allclose(found, odds / odds.sum() if single else odds / (1 + odds), atol=1e-5)


@pytest.mark.parametrize("to", RUNTIMES)
def test_label_maps(tmp_path, to):
    model, variables = make("segmentation", output_stride=8)
    path = tmp_path / f"model.{to}"
    exported(path, model, variables, size=(50, 65), preprocessing=True, postprocessing=True)
    labels = ExportedModel(path)(exporting.predicting.picture(0, (50, 65))[None])["label_map"]
    assert labels.shape == (1, 50, 65)
    assert labels.dtype == np.int32


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "quick_gelu", "hardswish", "leaky_relu", "elu", "relu2", "tanh"])
def test_activations(tmp_path, act, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    model, variables = make("classification", hidden_act=act)
    for to in RUNTIMES:
        exported(tmp_path / f"model.{to}", model, variables, size=32)


def test_an_activation_that_no_runtime_has_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    model, variables = make("classification", hidden_act="mish")
    exported(tmp_path / "model.stablehlo", model, variables, size=32)
    with pytest.raises(fm.ConfigError, match="hidden_act='mish' is written to StableHLO only"):
        export(model, variables, tmp_path / "model.onnx")


def test_stablehlo(tmp_path):
    model, variables = make("classification")
    path = tmp_path / "model.stablehlo"
    exported(path, model, variables, size="dynamic")
    program = ExportedModel(path)
    check(path, model, variables, images(3, 40, 56, 3))
    assert program.metadata.task == "classification"
    written, about = read_stablehlo(path)
    assert written.platforms == ("cpu", "cuda", "tpu")
    assert about["labels"] == list(model.config.id2label.values())
