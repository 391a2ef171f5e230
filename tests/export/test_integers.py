"""Files of integers: the grids and weights of the quantised model, in all heads; photos that calibrate; mistakes."""

import functools

import exporting
import numpy as np
import predicting
import pytest
from exporting import PROCESSOR, detector, head, images, make
from flax import traverse_util

import flax_mnv2 as fm
from flax_mnv2.config import deeplab
from flax_mnv2.export import ExportedModel, command, export
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.graph.network import make_graph
from flax_mnv2.export.settings import ExportSettings
from flax_mnv2.models.ops.fake_quant import fake_quant
from flax_mnv2.models.quantization.rounding import kernel_range

pytestmark = pytest.mark.usefixtures("tiny_blocks")
RUNTIMES = ("onnx", "tflite")
SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _needs_runtimes():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")


@functools.cache
def quantized(task, scheme="int8", **fields):
    """A model and its variables, with the ranges that it has on noise; not to be changed."""
    model, variables = make(task, **fields)
    model = model.clone(config=model.config.replace(quantization=scheme))
    return model, fm.calibrate(model, variables, [images(4, *SIZE, 3)])


def both(tmp_path, model, variables, limit=0.01, **options):
    """Exports to both formats; each of the floats of their outputs is near the rounded model's."""
    for to in RUNTIMES:
        options = {"size": SIZE, "processor": PROCESSOR, "batch": 2, **options}
        compared = export(model, variables, tmp_path / f"model.{to}", **options)
        assert compared.quantized
        for name, value in compared.differences.items():
            assert value <= limit or name in ("boxes", "labels", "num_detections"), f"{to}, {name}: {value}"


@functools.cache
def tensors(path):
    """Type, scales and axis of a TFLite file's tensors, by name."""
    from ai_edge_litert.interpreter import Interpreter

    found = {}
    for tensor in Interpreter(model_path=str(path)).get_tensor_details():
        about = tensor["quantization_parameters"]
        found[tensor["name"]] = (np.dtype(tensor["dtype"]).name, about["scales"], about["quantized_dimension"])
    return found


@pytest.mark.parametrize("scheme", ["int8", "uint8"])
def test_a_classifier_in_integers(tmp_path, scheme):
    model, variables = quantized("classification", scheme, pool_window=3 if scheme == "uint8" else None)
    both(tmp_path, model, variables)
    found = tensors(tmp_path / "model.tflite")
    kinds = {name: dtype for name, (dtype, *_) in found.items()}
    floats = {name for name, dtype in kinds.items() if dtype == "float32"}
    assert floats == {"pixel_values", "logits"}
    dtype, scales, axis = found["mobilenet_v2/layer_00/conv_3x3/kernel"]
    assert dtype == scheme
    assert (len(scales), axis) == ((kinds and model.config.layer_plan.blocks[0].expanded_channels, 3)
                                   if scheme == "int8" else (1, 0))  # fmt: skip
    assert kinds["mobilenet_v2/layer_00/conv_3x3/bias"] == "int32"


@pytest.mark.parametrize("scheme", ["int8", "uint8"])
def test_kernels_are_those_that_training_rounds_to(scheme):
    model, variables = quantized("classification", scheme)
    folded, weights = fm.fold_batch_norm(model, variables)
    graph = make_graph(folded, weights, ExportSettings(SIZE, 1))
    params = traverse_util.flatten_dict(weights["params"], sep="/")
    convolutions = [item for item in graph.operations if isinstance(item, ops.Conv)]
    assert len(convolutions) > 5
    for item in convolutions:
        kernel = params[f"{item.name}/convolution/kernel"]
        rounded = np.asarray(fake_quant(kernel, *kernel_range(kernel, scheme), narrow_range=True))
        steps = item.grid.integers(item.kernel).astype(np.int32) - item.grid.zero_point
        np.testing.assert_array_equal(np.rint(rounded / item.grid.scale), steps)
        np.testing.assert_allclose(steps * item.grid.scale, rounded, rtol=1e-6)


def test_a_bias_beside_an_all_but_empty_kernel_stays():
    model, variables = quantized("classification")
    folded, weights = fm.fold_batch_norm(model, variables)
    kernel = weights["params"]["mobilenet_v2"]["layer_00"]["conv_3x3"]["convolution"]["kernel"]
    bias = weights["params"]["mobilenet_v2"]["layer_00"]["conv_3x3"]["convolution"]["bias"]
    kernel[..., 0], bias[0] = 1e-20, 0.7
    graph = make_graph(folded, weights, ExportSettings(SIZE, 1))
    [item] = [item for item in graph.operations if item.name == "mobilenet_v2/layer_00/conv_3x3"]
    steps = graph.edges[item.inputs[0]].grid.scale * item.grid.scale
    assert np.rint(0.7 / steps[0]) < 2**31
    np.testing.assert_allclose(np.rint(0.7 / steps[0]) * steps[0], 0.7, rtol=1e-6)


@pytest.mark.parametrize("name", ["hugging_face", "deeplab_v3plus", "vainf", "smp"])
def test_segmentation(tmp_path, name):
    assert name in deeplab.PRESETS
    padding = {"tf_padding": name in ("hugging_face", "deeplab_v3plus"), "pad_block_input": name == "vainf"}
    model, variables = quantized("segmentation", output_stride=8, deeplab=head(name), **padding)
    both(tmp_path, model, variables)


def test_label_maps_of_bytes(tmp_path):
    padding = {"tf_padding": True, "pad_block_input": False}
    model, variables = quantized("segmentation", output_stride=8, deeplab=head("hugging_face"), **padding)
    both(tmp_path, model, variables, limit=0.1, preprocessing=True, postprocessing=True)


@pytest.mark.parametrize("name", ["tensorflow", "mmdet"])
def test_detection(tmp_path, name):
    model, variables = quantized("detection", detection=detector(name), tf_padding=name == "tensorflow")
    both(tmp_path, model, variables)
    if name == "tensorflow":  # what follows the outputs is floats, and test_files.py has it for every detector
        both(tmp_path, model, variables, batch=1, postprocessing=True)


def test_features(tmp_path):
    model, variables = quantized("backbone", global_pool="max")
    both(tmp_path, model, variables)


def test_a_quantised_model_in_floats_and_in_stablehlo(tmp_path):
    model, variables = quantized("classification")
    plain = model.clone(config=model.config.replace(quantization=None))
    path = tmp_path / "model.onnx"
    export(plain, variables, path, size=SIZE)
    exporting.check(path, plain, {name: variables[name] for name in ("params", "batch_stats")}, images(2, *SIZE, 3))
    export(model, variables, tmp_path / "rounded.stablehlo", size=SIZE, batch=2)
    exporting.check(tmp_path / "rounded.stablehlo", *fm.fold_batch_norm(model, variables), images(2, *SIZE, 3))


def test_what_cannot_be_written_says_why(tmp_path):
    model, variables = make("classification")
    path = tmp_path / "model.tflite"

    def refused(message, model, variables):
        with pytest.raises(fm.ConfigError, match=message):
            export(model, variables, path, size=SIZE)
        assert not path.exists()

    model = model.clone(config=model.config.replace(quantization="int8"))
    refused("its variables have none", model, variables)
    ranges = fm.calibrate(model, variables, [images(1, *SIZE, 3)])
    ranges["quantization"]["pool"] = {"min": np.float32(0), "max": np.float32(0)}
    refused("range of pool is empty", model, ranges)
    for fields in ({"hidden_act": "silu"}, {"global_pool": "avgmax"}):
        refused(f"found {next(iter(fields))}=", model.clone(config=model.config.replace(**fields)), ranges)


def test_photos_calibrate(tmp_path, capsys):
    folder = predicting.save(tmp_path / "model", fm.MobileNetV2ForImageClassification)
    for seed in range(11):
        predicting.write(tmp_path / "photos" / f"{seed}.png", seed)
    predicting.write(tmp_path / "photos" / ".hidden" / "a.png", 99)
    file = tmp_path / "model.tflite"

    def run(*options):
        capsys.readouterr()
        status = command.main([folder, str(file), "--size", "64", *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    status, out, _ = run("--calibrate", str(tmp_path / "photos"))
    assert status == 0
    assert f"ranges   of 11 images in {tmp_path / 'photos'}, 64×64" in out
    assert tensors(file)["mobilenet_v2/conv_1x1/kernel"][0] == "int8"
    photo = predicting.write(tmp_path / "photo.png", 5)
    (status, one, _), (_, other, _) = (predicting.run(capsys, photo, "--json", "--model", it) for it in (folder, file))
    one, other = (predicting.records(text)[0]["predictions"] for text in (one, other))
    assert one[0]["label"] == other[0]["label"]
    assert abs(one[0]["probability"] - other[0]["probability"]) < 0.1
    (tmp_path / "empty").mkdir()
    for options, message in {
        ("--calibrate", str(tmp_path / "empty")): "has no image",
        ("--calibrate", str(tmp_path / "nowhere")): "is no folder",
        ("--calibrate", str(tmp_path / "photos"), "--quantize", "none"): "Leave one out",
        ("--quantize", "int8"): "no config of a model that was trained for integers",
    }.items():
        status, _, err = run("--overwrite", *options)
        assert status == 2
        assert message in err


def test_integers_of_a_batch_of_any_number(tmp_path):
    model, variables = quantized("classification")
    both(tmp_path, model, variables, batch="dynamic")
    for to in RUNTIMES:
        together = ExportedModel(tmp_path / f"model.{to}")(images(3, *SIZE, 3))["logits"]
        alone = ExportedModel(tmp_path / f"model.{to}")(images(3, *SIZE, 3)[1:2])["logits"]
        np.testing.assert_allclose(together[1:2], alone, atol=1e-5)
