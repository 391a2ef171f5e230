"""Checkpoints, frozen graphs, Keras' and TFLite files as TensorFlow and Keras wrote them, against their outputs.

Neither is installed for this: foreign_weights.tar.xz has the files and foreign_outputs.npz what the networks in them
give; make_foreign_weights.py writes both, and says what to install for that.
"""

import dataclasses
import functools
import pathlib
import re
import tarfile
import types

import foreign_inputs as given
import jax
import numpy as np
import pytest
from flax import traverse_util

from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    DetectionSpec,
    convert,
    fold_batch_norm,
    from_keras,
    from_pretrained,
    load_backbone,
    make_inference_fn,
)
from flax_mnv2.class_names import imagenet_labels
from flax_mnv2.config.deeplab import DeepLabSpec
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.initial_weights import initial_weights
from flax_mnv2.weights.formats import FORMATS
from flax_mnv2.weights.formats.base import Found
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import make_model, variable_shapes
from flax_mnv2.weights.tensor_files import read_tensor_file
from flax_mnv2.weights.tensorflow import bundle, keras_files, tflite

GOLDEN = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder with all files."""
    folder = tmp_path_factory.mktemp("foreign")
    with tarfile.open(GOLDEN / "foreign_weights.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def h5py():
    return pytest.importorskip("h5py", reason="Keras' files need h5py (requirements-test.txt)")


@pytest.fixture(scope="module")
def outputs():
    """What the networks give, by name."""
    with np.load(GOLDEN / "foreign_outputs.npz") as file:
        return dict(file)


@pytest.fixture
def check_logits(outputs, assert_close):
    """Logits of a source on the images of each size against the stored ones."""

    def check(source, name, *sizes, images=slice(None), **options):
        model, variables = from_pretrained(source, **options)
        apply = jax.jit(model.apply)
        for size in sizes:
            expected = outputs[f"{name}/{size}" if f"{name}/{size}" in outputs else name]
            assert_close(apply(variables, given.images(size)[images]).logits, expected, name=f"{name} {size}")

    return check


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("slim", "tf"), ("deeplab", "tf"), ("frozen.pb", "tf"), ("ssdlite", "tf_detection")),
        *(("whole.h5", "keras"), ("nested.weights.h5", "keras"), ("float.tflite", "tflite")),
    ],
)
def test_one_format_says_that_a_file_is_its_own(h5py, files, place, name):
    path = bundle.find_index(files / place) or files / place
    found = Found(path, path.parent, {}, read_tensor_file(path))
    assert [form.name for form in FORMATS.values() if form.recognises(found)] == [name]


# ---- TF-slim and TF DeepLab ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_blocks")
def test_a_slim_checkpoint_gives_the_networks_logits(files, check_logits):
    source = open_weights(files / "slim")
    assert (source.format, source.task, source.config.depth_multiplier) == ("tf", "classification", given.ALPHA)
    assert not source.config.finegrained_output
    assert "moving average (ExponentialMovingAverage)" in source.notes[0]
    assert source.notes[1] == "trained for 1,200 steps (global_step)"
    check_logits(source, "slim", given.SIZE, given.ODD_SIZE)
    check_logits(files / "slim", "slim raw", given.SIZE, weights="raw")


def test_a_slim_checkpoint_is_read_bit_for_bit(files, outputs):
    stored = {name.partition("/")[2]: value for name, value in outputs.items() if name.startswith("slim tensors/")}
    index = bundle.find_index(files / "slim")
    averaged, raw = (bundle.read_checkpoint(index, weights)[0] for weights in ("auto", "raw"))
    assert averaged.keys() == raw.keys()
    left_out = 4  # the step, a slot of an optimizer, and what an average without bias keeps
    assert len(stored) == 2 * len(raw) - 2 + left_out  # ranges have no average
    for name in raw:
        np.testing.assert_array_equal(raw[name], stored[name], strict=True)
        average = stored.get(f"{name}/ExponentialMovingAverage", stored[name])
        np.testing.assert_array_equal(averaged[name], average, strict=True)


@pytest.mark.usefixtures("tiny_blocks")
def test_ranges_of_fake_quantisation_are_kept_apart(files):
    assert open_weights(files / "slim").ranges["MobilenetV2/Conv/weights_quant"] == (-1.5, 2.5)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("place", ["model.ckpt-1200", "model.ckpt-1200.index", "model.ckpt-1200.data-00000-of-00001"])
def test_every_name_of_a_checkpoint_is_that_checkpoint(files, assert_same, place):
    assert_same(open_weights(files / "slim" / place).state, open_weights(files / "slim").state)


@pytest.mark.usefixtures("tiny_blocks")
def test_an_archive_of_the_zoo_is_its_checkpoint(files, tmp_path, assert_same):
    with tarfile.open(tmp_path / "mobilenet_v2.tgz", "w:gz") as archive:
        archive.add(files / "slim", "./")
        archive.add(files / "slim" / "checkpoint", "./._model.ckpt-1200.index")  # as archives of macOS have them
        archive.add(files / "frozen.pb", "./mobilenet_v2_frozen.pb")
        archive.add(files / "float.tflite", "./mobilenet_v2.tflite")
    source = open_weights(tmp_path / "mobilenet_v2.tgz")
    assert "took the checkpoint model.ckpt-1200 in the archive" in source.notes
    assert_same(source.state, open_weights(files / "slim").state)


@pytest.mark.usefixtures("tiny_blocks")
def test_a_frozen_graph_has_the_same_weights(files, tmp_path, assert_same):
    expected = open_weights(files / "slim").state
    assert_same(open_weights(files / "frozen.pb").state, expected)
    with tarfile.open(tmp_path / "graph.tar.gz", "w:gz") as archive:
        archive.add(files / "frozen.pb", "export/frozen_inference_graph.pb")
    assert_same(open_weights(tmp_path / "graph.tar.gz").state, expected)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("plus", [False, True])
def test_a_deeplab_checkpoint_gives_the_networks_logits(files, check_logits, plus):
    source = open_weights(files / ("deeplab_plus" if plus else "deeplab/model.ckpt-30"))
    expected = DeepLabSpec(channels=given.PLUS_WIDTH, low_level_channels=given.LOW_WIDTH) if plus else None
    assert (source.task, source.config.num_labels, source.config.deeplab) == ("segmentation", 4, expected)
    assert re.match("output stride 16 .*is TF DeepLab's usual one", source.notes[0])
    check_logits(source, f"deeplab{plus * ' plus'}", given.SIZE, given.ODD_SIZE, output_stride=given.OUTPUT_STRIDE)


# ---- TF Object Detection ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize(("place", "format_name"), [("ssdlite", "tf_detection"), ("ssdlite.tflite", "tflite")])
def test_a_detector_gives_the_networks_logits_and_codes(files, outputs, assert_close, place, format_name):
    """The files have the predictors beside their maps, boxes and classes of as many numbers."""
    source = open_weights(files / place)
    assert (source.format, source.task, source.config.num_labels) == (format_name, "detection", given.SSD_CLASSES)
    assert (source.config.depth_multiplier, source.config.layer_plan.last_channels) == (given.SSD_ALPHA, 128)
    assert "took those that the TF Object Detection API published" in source.notes[-1]
    first = ("layer_01/expansion", "conv_1x1")  # of so few blocks, which a graph says itself
    assert (source.config.detection.feature_layers == first) == source.folded
    model, variables = from_pretrained(source, detection=DetectionSpec(feature_layers=first))
    ours = jax.jit(functools.partial(model.apply, output_hidden_states=("conv_1x1",)))(
        variables, given.images(given.SIZE)[:1]
    )
    assert_close(ours.hidden_states[0], outputs["ssdlite backbone"])
    assert_close(ours.box_codes, outputs["ssdlite boxes"])
    assert_close(ours.logits, outputs["ssdlite logits"])


@pytest.mark.usefixtures("tiny_blocks")
def test_a_detector_goes_back_as_its_variables(files, tmp_path, assert_same):
    source = open_weights(files / "ssdlite")
    spec = DetectionSpec(feature_layers=("layer_01/expansion", "conv_1x1"))
    source = dataclasses.replace(source, config=source.config.replace(detection=spec))
    stored, _ = bundle.read_checkpoint(bundle.find_index(files / "ssdlite"))
    tensors = FORMATS["tf_detection"].state_dict(source.checkpoint())
    assert_same(tensors, {name: stored[name] for name in tensors})
    assert tensors.keys() == stored.keys()


# ---- Keras -----------------------------------------------------------------------------------------------------------

KERAS_FILES = ("whole.h5", "model.weights.h5", "model.keras", "nested.h5", "nested.weights.h5")


def test_a_keras_file_gives_the_networks_logits(h5py, files, check_logits):
    source = open_weights(files / "whole.h5")
    assert (source.format, source.config.depth_multiplier) == ("keras", given.KERAS_ALPHA)
    assert source.config.layer_plan.stem.residual
    check_logits(source, "keras", given.KERAS_SIZE)


@pytest.mark.parametrize("name", KERAS_FILES[1:])
def test_every_file_of_keras_has_the_same_weights(h5py, files, assert_same, name):
    expected = open_weights(files / "whole.h5")
    source = open_weights(files / name)
    assert source.config == expected.config
    assert_same(source.state, expected.state)


def test_a_file_of_keras_2_has_the_same_weights(h5py, files, tmp_path, assert_same):
    """Weights alone, by names with a number behind a colon, the depthwise kernels under a name of their own."""
    with h5py.File(files / "whole.h5") as whole, h5py.File(tmp_path / "old.h5", "w") as old:
        layers = list(whole["model_weights"].attrs["layer_names"])
        old.attrs["layer_names"] = layers
        for layer in layers:
            group, theirs = old.create_group(layer), whole["model_weights"][layer]
            renamed = {name: _name_of_keras_2(name) for name in theirs.attrs["weight_names"].astype(str)}
            group.attrs["weight_names"] = [name.encode() for name in renamed.values()]
            for name, new in renamed.items():
                group[new] = theirs[name][()]
    assert_same(open_weights(tmp_path / "old.h5").state, open_weights(files / "whole.h5").state)


def _name_of_keras_2(name):
    return name.replace("depthwise/kernel", "depthwise/depthwise_kernel") + ":0"


def test_a_keras_model_in_memory(h5py, files, assert_same):
    """Its variables have a path, a value, and the order of the layers."""
    state = keras_files.read_keras(files / "whole.h5")

    class Variable:
        def __init__(self, path):
            self.path = self.name = path

        def __array__(self, dtype=None, copy=None):
            return np.array(state[self.path], dtype)

    names = list(state)
    parts = [types.SimpleNamespace(weights=[Variable(name) for name in part]) for part in (names[:9], names[9:])]
    _, variables = from_keras(types.SimpleNamespace(layers=[types.SimpleNamespace(layers=parts)]))
    assert_same(variables, from_pretrained(files / "whole.h5")[1])
    with pytest.raises(CheckpointError, match="the Keras model has no depthwise convolutions"):
        from_keras(types.SimpleNamespace(weights=[Variable("Conv1/kernel")]))
    twice = [Variable("Conv1/kernel"), Variable("Conv1/kernel")]
    with pytest.raises(CheckpointError, match=r"Two variables .* are called Conv1/kernel"):
        from_keras(types.SimpleNamespace(weights=twice))


def test_what_is_written_for_keras_is_what_keras_writes(h5py, files, tmp_path):
    """The same names and arrays as in its own file, to the bit, which it therefore loads."""
    assert convert.main([str(files / "whole.h5"), str(tmp_path / "flax")]) == 0
    assert convert.main([str(tmp_path / "flax"), str(tmp_path / "back.weights.h5"), "--to", "keras"]) == 0
    with h5py.File(tmp_path / "back.weights.h5") as ours, h5py.File(files / "model.weights.h5") as theirs:
        names = [name for name in _datasets(h5py, theirs) if name.startswith("layers/")]
        assert sorted(_datasets(h5py, ours)) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(ours[name][()], theirs[name][()], strict=True)


def _datasets(h5py, file):
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize(
    ("alpha", "task"), list(zip(given.KERAS_ALPHAS, ["classification", "backbone", "classification"] * 2, strict=True))
)
def test_every_width_of_keras_is_known_by_its_shapes(outputs, alpha, task):
    from flax_mnv2.weights.opening import open_state_dict

    rows = [row.split(" ") for row in outputs[f"keras shapes/{alpha}"]]
    shapes = {name: tuple(map(int, sizes.split(","))) for name, sizes in rows}
    if task == "backbone":
        shapes = {name: shape for name, shape in shapes.items() if "predictions" not in name}
    source = open_state_dict({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert (source.task, source.config.depth_multiplier) == (task, alpha)
    source.select(variable_shapes(make_model(source.config, task)))  # or an error that names what differs
    if task == "classification":
        assert source.config.id2label[0] == imagenet_labels()[0] == "tench, Tinca tinca"


# ---- TFLite ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("name", ["float", "float16", "symmetric", "deeplab"])
def test_a_tflite_file_gives_the_interpreters_logits(files, check_logits, name):
    source = open_weights(files / f"{name}.tflite")
    stride = given.OUTPUT_STRIDE if name == "deeplab" else 8
    assert (source.format, source.folded, source.config.output_stride) == ("tflite", True, stride)
    assert (source.config.image_size, source.config.tf_padding) == (given.SIZE[0], name != "symmetric")
    assert not source.ranges
    check_logits(source, f"{name}.tflite", given.SIZE, images=slice(1))


def test_a_keras_model_as_tflite_has_its_folded_weights(h5py, files):
    """In float16, its classifier a fully connected layer."""
    model, variables = fold_batch_norm(*from_pretrained(files / "whole.h5"))
    source, expected = open_weights(files / "keras.tflite"), traverse_util.flatten_dict(variables, sep="/")
    assert source.config.layer_plan == model.config.layer_plan
    assert source.state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(source.state[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max())


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize(("name", "num_kernels"), [("int8", 14), ("dynamic", 2)])
def test_int8_weights_are_the_float_ones_to_half_a_step(files, name, num_kernels):
    """Those of a file with integers throughout between ends of floats, and of one with large integer weights alone."""
    exact, quantised = (open_weights(files / f"{name}.tflite") for name in ("float", name))
    assert exact.config == quantised.config
    assert exact.state.keys() == quantised.state.keys()
    ranges = {name: ends for name, ends in quantised.ranges.items() if name.endswith("kernel")}
    assert len(ranges) == num_kernels
    for name in filter(lambda name: name.endswith("kernel"), exact.state):
        ends = ranges.get(name.removeprefix("params/").replace("/convolution", ""))
        if ends is None:
            np.testing.assert_array_equal(quantised.state[name], exact.state[name])
            continue
        low, high = ends
        assert low.size == exact.state[name].shape[-1]  # a range for each channel
        difference = np.abs(exact.state[name] - quantised.state[name]).reshape(-1, low.size)
        assert (difference.max(axis=0) <= (high - low) / 254 * 0.5001).all()


@pytest.mark.usefixtures("tiny_blocks")
def test_ranges_of_a_quantised_graph_are_kept(files):
    ranges = open_weights(files / "int8.tflite").ranges
    np.testing.assert_allclose(np.concatenate(ranges["mobilenet_v2/input"]), (-1, 1), atol=0.01)  # of floats
    total, first = ranges["mobilenet_v2/layer_02/sum"], ranges["mobilenet_v2/conv_stem/first_conv/output"]
    assert total[0] < 0 < total[1]
    assert first[0] == 0 < first[1] < 6.01


@pytest.mark.usefixtures("tiny_blocks")
def test_pixels_are_prepared_as_a_file_says(files, monkeypatch):
    """By its metadata, else by the numbers that its quantised input stands for, else in [-1, 1]."""
    path = files / "float.tflite"
    graph = tflite.read_graph(path)

    def prepared(**changes):
        monkeypatch.setattr(tflite, "read_graph", lambda path: dataclasses.replace(graph, **changes))
        processor = open_weights(path).processor()
        assert processor.crop_size == {"height": 64, "width": 64}
        return processor.image_mean, processor.image_std

    assert prepared() == ([0.5] * 3, [0.5] * 3)
    assert prepared(normalization=tflite.Normalization((0.0,), (255.0,))) == ([0.0] * 3, [1.0] * 3)
    assert prepared(normalization=tflite.Normalization((0, 51, 255), (255, 51, 51)))[0] == [0.0, 0.2, 1.0]
    for scale, zero_point, mean, std in ((1 / 255, 0, 0, 1), (1 / 128, 128, 0.5, 0.5), (2 / 255, 0, 0, 0.5)):
        quantization = tflite.Quantization(np.float32([scale]), np.array([zero_point]), 0)
        place = dataclasses.replace(graph.tensors[0], dtype=np.dtype("u1"), quantization=quantization)
        found = prepared(tensors=(place, *graph.tensors[1:]))
        np.testing.assert_allclose(found, [[mean] * 3, [std] * 3], atol=1e-6)
    assert graph.inputs == (0,)


@pytest.mark.usefixtures("tiny_blocks")
def test_folded_weights_are_for_inference_and_unfold(files, tmp_path, assert_close, assert_same, caplog):
    path, images = files / "deeplab.tflite", given.images(given.SIZE)
    model, variables = from_pretrained(path)
    assert model.batch_norm_folded
    assert variables.keys() == {"params"}
    expected = jax.jit(model.apply)(variables, images).logits
    np.testing.assert_array_equal(make_inference_fn(model, variables)(images).logits, expected)
    with pytest.raises(ConfigError, match=r"merged into its convolutions .*unfold=True"):
        jax.eval_shape(lambda: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    assert not caplog.text
    whole, unfolded = from_pretrained(path, unfold=True)
    assert "training that normalises by batches collapses" in caplog.text
    assert_close(jax.jit(whole.apply)(unfolded, images).logits, expected)
    assert convert.main([str(path), str(tmp_path / "hf")]) == 0
    assert_close(jax.jit(whole.apply)(from_pretrained(tmp_path / "hf")[1], images).logits, expected)
    assert not SegmentationTask.load_pretrained(open_weights(path))[0].batch_norm_folded  # as eval.py applies it
    fresh = jax.tree.map(np.zeros_like, unfolded)
    loaded = load_backbone(path, fresh)
    assert (loaded["batch_stats"]["mobilenet_v2"]["conv_stem"]["first_conv"]["normalization"]["var"] > 0.99).all()
    config = default_config("segmentation")
    config.init_from, config.init_scope = str(path), "all"
    task = types.SimpleNamespace(model=types.SimpleNamespace(config=whole.config))
    started, lines = initial_weights(config, task, fresh)
    assert_same(started, unfolded)
    assert "keep it (freeze_batch_norm)" in lines[0]


def test_a_constant_knows_its_integers(files):
    graph = tflite.read_graph(files / "int8.tflite")
    first = next(operation for operation in graph.operations if operation.kind == "conv")
    kernel = graph.tensors[first.inputs[1]]
    assert (kernel.data.dtype, kernel.quantization.scale.shape) == (np.int8, (kernel.shape[0],))
    real = kernel.data.astype(np.float32) * kernel.quantization.scale.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(kernel.values(), real)
