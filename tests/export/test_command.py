"""The commands: a checkpoint to a file, a file to predictions; what files hold; mistakes."""

import json
import sys

import numpy as np
import predicting
import pytest
from exporting import PROCESSOR, detector, exported, images, make

import flax_mnv2 as fm
from flax_mnv2.export import ExportedModel, command, export, is_exported
from flax_mnv2.export.network import ExportedNetwork
from flax_mnv2.tasks.registry import TASKS
from flax_mnv2.weights.tensorflow.tflite import read_graph

pytestmark = pytest.mark.usefixtures("tiny_blocks")


@pytest.fixture(autouse=True)
def _needs_runtimes():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved classifier and a segmentation model, by name."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2), (16, 2, 2)))
        predicting.save(root / "classifier", fm.MobileNetV2ForImageClassification)
        predicting.save(root / "segmenter", fm.MobileNetV2ForSemanticSegmentation)
    return root


def run(capsys, *arguments):
    capsys.readouterr()
    status = command.main([str(item) for item in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("ending", ["onnx", "tflite"])
def test_a_file_predicts_what_its_checkpoint_does(folders, tmp_path, capsys, ending):
    photos = [predicting.write(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")]
    for name, options in {"classifier": ("--size", 64), "segmenter": ()}.items():
        file = tmp_path / f"{name}.{ending}"
        status, out, err = run(capsys, folders / name, file, *options)
        assert (status, err.replace("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n", "")) == (0, "")
        assert f"written  {file} ({ending}, " in out
        assert "checked  largest difference in" in out
        found = [
            predicting.run(capsys, *photos, "--json", "--output", tmp_path / "out", "--model", model)
            for model in (folders / name, file)
        ]
        assert [status for status, *_ in found] == [0, 0]
        for one, other in zip(*(predicting.records(out) for _, out, _ in found), strict=True):
            assert _rounded(one) == _rounded(other)


def _rounded(record):
    rows = record.get("predictions") or record["classes"]
    return [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ]


def test_a_file_that_takes_bytes_and_gives_probabilities_predicts_too(folders, tmp_path, capsys):
    file, photo = tmp_path / "model.onnx", predicting.write(tmp_path / "a.png")
    flags = ("--size", 64, "--batch", 2, "--with_preprocessing", "--with_postprocessing")
    assert run(capsys, folders / "classifier", file, *flags)[0] == 0
    (_, one, _), (_, other, _) = (
        predicting.run(capsys, photo, "--json", "--model", model) for model in (folders / "classifier", file)
    )
    assert _rounded(json.loads(one)) == _rounded(json.loads(other))


def test_detections_are_those_of_the_model(tmp_path):
    model, variables = make("detection", detection=detector("tensorflow"))
    exported(tmp_path / "model.onnx", model, variables)
    predictors = [
        TASKS["detection"].predictor(network, weights, PROCESSOR, top=5, threshold=0.3)
        for network, weights in ((model, variables), (ExportedNetwork(tmp_path / "model.onnx"), {}))
    ]
    one, other = (predictor.compute(images(2, 64, 64, 3)) for predictor in predictors)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_what_an_onnx_file_holds(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, variables = make("segmentation", output_stride=8)
    exported(tmp_path / "model.onnx", model, variables, size=(65, 64))
    file = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert [(item.domain, item.version) for item in file.opset_import] == [("", 17)]
    kinds = {node.op_type for node in file.graph.node}
    assert kinds == {"Conv", "Clip", "Relu", "Add", "GlobalAveragePool", "Shape", "Concat", "Resize"}
    [image], [logits] = file.graph.input, file.graph.output
    assert (image.name, _dims(image)) == ("pixel_values", ["batch", 3, 65, 64])
    assert (logits.name, _dims(logits)) == ("logits", ["batch", 5, 9, 8])
    about = {item.key: json.loads(item.value) for item in file.metadata_props}
    assert about["labels"] == list(model.config.id2label.values())
    assert about["processor"]["image_mean"] == [0.5, 0.5, 0.5]
    assert about["input"]["layout"] == "NCHW"


def _dims(value):
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def test_a_tflite_file_is_read_back_as_weights(tmp_path):
    path = tmp_path / "model.tflite"
    model, variables = make("classification", num_labels=3)
    exported(path, model, variables)
    graph = read_graph(path)
    assert graph.labels == tuple(model.config.id2label.values())
    kinds = {operation.kind for operation in graph.operations}
    assert kinds == {"conv", "depthwise", "add", "mean", "fully_connected"}
    assert is_exported(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.xyz",), "The format of"),
        (("model.onnx", "--size", "31"), "from 32 pixels on"),
        (("model.onnx", "--size", "a"), "--size takes whole numbers from 1, or dynamic; found 'a'"),
        (("model.onnx", "--size", "64", "64", "3"), "--size takes height and width"),
        (("model.tflite", "--batch", "0"), "--batch takes whole numbers from 1"),
        (("model.onnx", "--task", "backbone", "--with_postprocessing"), "no post-processing for features"),
    ],
)
def test_mistakes(folders, tmp_path, capsys, arguments, message):
    name, *options = arguments
    status, out, err = run(capsys, folders / "classifier", tmp_path / name, *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(folders, tmp_path, capsys):
    (tmp_path / "model.onnx").write_text("mine")
    status, _, err = run(capsys, folders / "classifier", tmp_path / "model.onnx")
    assert status == 2
    assert "exists; name another file, or pass --overwrite" in err
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_a_detectors_size_is_fixed(tmp_path):
    model, variables = make("detection", detection=detector("tensorflow"))
    with pytest.raises(fm.ConfigError, match="anchors follow from the size"):
        export(model, variables, tmp_path / "model.onnx", size="dynamic")


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    model, variables = make("classification")
    write = sys.modules["flax_mnv2.export.exporting"].write_onnx

    def write_another(graph, path, metadata):
        graph.operations[0].bias[:] += 1
        write(graph, path, metadata)

    monkeypatch.setattr("flax_mnv2.export.exporting.write_onnx", write_another)
    with pytest.raises(fm.CheckpointError, match="does not compute what the model does"):
        export(model, variables, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "ending"), [("onnxruntime", "onnx"), ("ai_edge_litert", "tflite")])
def test_without_the_extra_a_message_names_it(folders, tmp_path, capsys, monkeypatch, package, ending):
    file = tmp_path / f"model.{ending}"
    assert run(capsys, folders / "classifier", file, "--size", 64)[0] == 0
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    predicting.stops(
        capsys, f"pip install 'flax-mnv2[{ending}]'", predicting.write(tmp_path / "a.png"), "--model", file
    )


def test_a_size_that_the_file_does_not_take_is_named(folders, tmp_path, capsys):
    file, photo = tmp_path / "model.onnx", predicting.write(tmp_path / "a.png")
    assert run(capsys, folders / "classifier", file, "--size", 48)[0] == 0
    predicting.stops(capsys, "takes images of 48×48; found 64×64", photo, "--model", file)


@pytest.mark.parametrize("ending", ["onnx", "stablehlo"])
def test_what_is_no_exported_file_is_refused(tmp_path, capsys, ending):
    (tmp_path / f"model.{ending}").write_bytes(b"nothing of the kind")
    photo = predicting.write(tmp_path / "a.png")
    predicting.stops(capsys, "Cannot read", photo, "--model", tmp_path / f"model.{ending}")
    with pytest.raises(fm.CheckpointError, match="No file"):
        ExportedModel(tmp_path / f"none.{ending}")
