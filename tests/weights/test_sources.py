"""Every source that the converter knows is one that the library, a run and an evaluation take, opened once."""

import argparse

import jax
import numpy as np
import pytest
from converting import CONFIG, TORCH_LIKE, convert, refused
from safetensors.numpy import load_file

from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2ImageProcessor,
    MobileNetV2Model,
    from_pretrained,
    from_state_dict,
    load_backbone,
    to_state_dict,
)
from flax_mnv2.weights import opening, tensor_files
from flax_mnv2.weights.formats import FORMATS
from flax_mnv2.weights.formats.base import Format
from flax_mnv2.weights.pretrained import make_model, open_weights
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.tensors import FLAX_NAMING, write_state

pytestmark = pytest.mark.usefixtures("one_variant")

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SOURCES = ["hf", "hf file", "flax", "timm", "timm file", "torchvision file"]
USUAL = {
    "torchvision file": MobileNetV2ImageProcessor(size=256, crop_size=224, **IMAGENET),
    "timm file": MobileNetV2ImageProcessor(size=256, crop_size=224, resample=3, **IMAGENET),
}


@pytest.fixture
def make_source(make_folder, tmp_path):
    """The same weights in any form, and their variables."""

    def make(source):
        folder = make_folder(config=TORCH_LIKE)
        variables = from_pretrained(folder)[1]
        form, _, kind = source.partition(" ")
        if form == "hf":
            return folder / "model.safetensors" if kind else folder, variables
        path = tmp_path / ("weights.safetensors" if kind else "converted")
        convert(folder, path, "--to", form)
        return path, variables

    return make


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_a_model_a_backbone_and_a_processor(make_source, random_variables, assert_same, source):
    path, variables = make_source(source)
    model, loaded = from_pretrained(path)
    assert_same(loaded, variables)
    assert open_weights(path).config == model.config
    backbone, alone = from_pretrained(path, task="backbone")
    assert type(backbone) is MobileNetV2Model
    assert_same(alone["params"], {"mobilenet_v2": variables["params"]["mobilenet_v2"]})
    fresh = random_variables(TORCH_LIKE.replace(num_labels=3), "segmentation", seed=1)
    under = load_backbone(path, fresh)
    for collection in ("params", "batch_stats"):
        theirs = dict(variables[collection]["mobilenet_v2"])
        del theirs["conv_1x1"]  # which the segmentation head does not use
        assert_same(under[collection]["mobilenet_v2"], theirs)
        assert_same(under[collection]["segmentation_head"], fresh[collection]["segmentation_head"])
    processor = open_weights(path).processor()
    assert processor.to_dict() == USUAL.get(source, processor).to_dict()
    assert source in USUAL or processor.crop_size == {"height": 96, "width": 96}


@pytest.mark.parametrize("source", SOURCES)
def test_an_open_source_is_taken_without_being_read_again(make_source, monkeypatch, assert_same, source):
    path, variables = make_source(source)
    opened = open_weights(path)
    for name in ("read_tensor_file", "resolve_folder", "read_json"):
        monkeypatch.setattr(opening, name, lambda *_, **__: pytest.fail("was read again"))
    assert open_weights(opened) is opened
    assert_same(from_pretrained(opened)[1], variables)
    assert_same(load_backbone(opened, variables), variables)
    assert opened.processor()


@pytest.mark.parametrize("source", ["timm file", "torchvision file"])
def test_other_labels_start_a_new_head(make_source, source):
    path, _ = make_source(source)
    with pytest.warns(UserWarning, match=r"started afresh.* classifier\.(1\.)?bias \(5,\)"):
        model, variables = from_pretrained(path, num_labels=3, ignore_mismatched_sizes=True)
    assert model.config.num_labels == variables["params"]["classifier"]["bias"].size == 3


@pytest.mark.parametrize("source", ["timm file", "torchvision file"])
def test_a_head_that_is_not_there_is_named(make_source, source):
    path, _ = make_source(source)
    for call in (
        lambda: from_pretrained(path, task="segmentation"),
        lambda: from_state_dict(load_file(path), task="segmentation"),
    ):
        with pytest.raises(
            CheckpointError, match="has the head of a classification model, and a segmentation"
        ) as found:
            call()
        assert "missing:\n    segmentation_head.classifier.convolution.bias (5,)" in str(found.value)


@pytest.mark.parametrize("library", ["hf", "timm", "torchvision"])
def test_backbones_of_state_dicts(random_variables, assert_same, library):
    """With a head, without one, and inside DataParallel."""
    variables = random_variables(TORCH_LIKE, "classification")
    state = to_state_dict(make_model(TORCH_LIKE, "classification"), variables, library)
    config = TORCH_LIKE if library == "hf" else None
    headless = {key: value for key, value in state.items() if not key.startswith("classifier")}
    for each in (state, headless, {f"module.{key}": value for key, value in headless.items()}):
        model, loaded = from_state_dict(each, config=config, task="backbone")
        assert type(model) is MobileNetV2Model
        assert_same(loaded["params"]["mobilenet_v2"], variables["params"]["mobilenet_v2"])
    if library != "hf":
        assert_same(from_state_dict({f"module.{key}": value for key, value in state.items()})[1], variables)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize(
    "fields",
    [{"layer_depth_multiplier": 2.0}, {"first_layer_is_expansion": False}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_backbone_for_another_network_is_refused_by_name(make_source, random_variables, library, fields):
    path, _ = make_source(f"{library} file")
    other = random_variables(TORCH_LIKE.replace(**fields), "segmentation")
    with pytest.raises(CheckpointError, match=r"do not fit the model:\n  \d+ missing:"):
        load_backbone(path, other)


def test_a_run_says_what_its_images_were(run_checkpoint, random_variables, assert_same):
    folder, variables = run_checkpoint
    source = open_weights(folder)
    assert source.processor() == MobileNetV2ImageProcessor(do_resize=False, do_center_crop=False)
    model = MobileNetV2ForSemanticSegmentation(CONFIG.replace(num_labels=2))
    loaded = load_backbone(source, random_variables(model.config, "segmentation", seed=8))
    assert_same(loaded["params"]["mobilenet_v2"], variables["params"]["mobilenet_v2"])


def test_a_processor_that_nobody_knows_is_an_error(make_folder, tmp_path):
    folder = make_folder(config=TORCH_LIKE.replace(num_channels=4))
    convert(folder, tmp_path / "four.safetensors", "--to", "timm")
    with pytest.raises(CheckpointError, match=r"Nothing is known of how images are prepared for .*four.* 4 channels"):
        open_weights(tmp_path / "four.safetensors").processor()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"No preprocessor_config\.json in"):
        open_weights(folder).processor()


def test_files_that_are_no_weights_are_named(tmp_path):
    (tmp_path / "weights.h5").touch()
    (tmp_path / "weights.txt").touch()
    for name, message in (
        ("weights.txt", r"ends in \.txt; expected a file of weights"),
        ("weights.h5", r"ends in \.h5, and what is in it is no such file"),
        ("x.pth", "No file or folder"),
        ("x.tflite", "No file or folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_pretrained(tmp_path / name)


def test_what_training_programs_save_beside_the_weights_does_not_matter(make_source, tmp_path, assert_same):
    """torchvision's references and timm's keep their options in a Namespace; torch.compile puts a prefix of its own."""
    torch = pytest.importorskip("torch")
    path, variables = make_source("torchvision file")
    tensors = {key: torch.from_numpy(value) for key, value in load_file(path).items()}
    compiled = {f"_orig_mod.module.{key}": value for key, value in tensors.items()}
    torch.save({"model": compiled, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "last.pth")
    source = open_weights(tmp_path / "last.pth")
    assert_same(from_pretrained(source)[1], variables)
    assert source.notes == (
        "took the weights from 'model' in the file",
        "dropped '_orig_mod.' before every name",
        "dropped 'module.' before every name",
    )


def test_averages_and_somebody_s_own_prefixes(make_source, tmp_path, assert_same, caplog):
    """A Lightning module that has the network as a part, and an average of its weights; what was done is logged."""
    torch = pytest.importorskip("torch")
    path, variables = make_source("timm file")
    raw = {key: torch.from_numpy(value) for key, value in load_file(path).items()}
    average = {f"student.net.{key}": value * 2 if value.ndim else value for key, value in raw.items()}
    content = {"state_dict": {f"student.net.{key}": raw[key] for key in raw}, "state_dict_ema": average}
    torch.save(content, tmp_path / "epoch=3.ckpt")
    assert_same(from_pretrained(tmp_path / "epoch=3.ckpt", weights="raw")[1], variables)
    assert "its moving average is under 'state_dict_ema'; dropped 'student.' before every name" in caplog.text
    doubled = jax.tree.map(lambda array: array * 2, variables)
    for weights in ("auto", "ema"):
        assert_same(from_pretrained(tmp_path / "epoch=3.ckpt", weights=weights)[1], doubled)
    assert "weights=\"raw\" takes 'state_dict'" in caplog.text
    convert(tmp_path / "epoch=3.ckpt", tmp_path / "raw", "--weights", "raw")
    assert_same(from_pretrained(tmp_path / "raw")[1], variables)
    with pytest.raises(ConfigError, match="is open already; pass weights='raw' to open_weights"):
        from_pretrained(open_weights(path), weights="raw")
    with pytest.raises(CheckpointError, match="no moving average"):
        from_pretrained(path, weights="ema")


def test_the_average_of_a_run_and_its_weights(tmp_path, random_variables, assert_same):
    from flax_mnv2.checkpoint.run import Checkpoints

    trees = {name: random_variables(CONFIG, "segmentation", seed) for seed, name in enumerate(("variables", "ema"))}
    about = {"config": {"task": "segmentation"}, "model": CONFIG.to_dict()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {**trees, "training": {"step": np.asarray(0)}}, about)
    folder = tmp_path / "step_0"
    for weights, name in (("auto", "ema"), ("ema", "ema"), ("raw", "variables")):
        assert_same(from_pretrained(folder, weights=weights)[1], trees[name])


def test_a_run_without_an_average(run_checkpoint):
    with pytest.raises(CheckpointError, match="no moving average"):
        from_pretrained(run_checkpoint[0], weights="ema")


def _first_kernel(variables):
    return variables["params"]["mobilenet_v2"]["conv_stem"]["first_conv"]["convolution"]["kernel"]


@pytest.mark.parametrize("source", ["hf", "timm file", "torchvision file"])
def test_weights_for_photos_take_other_channels(make_source, random_variables, source, caplog):
    path, variables = make_source(source)
    for channels in (1, 2, 4, 6):
        model, adapted = from_pretrained(path, num_channels=channels)
        kernel, found = (_first_kernel(tree) for tree in (variables, adapted))
        assert model.config.num_channels == channels
        assert found.shape[2] == channels
        expected = (
            kernel.sum(axis=2, keepdims=True) if channels == 1 else kernel[:, :, np.arange(channels) % 3] * 3 / channels
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert f"3 input channels became {channels}" in caplog.text
        under = load_backbone(path, random_variables(model.config, "segmentation"))
        np.testing.assert_array_equal(_first_kernel(under), found)
        caplog.clear()


def test_other_channels_than_three(make_folder):
    folder = make_folder(config=TORCH_LIKE.replace(num_channels=4))
    assert from_pretrained(folder, num_channels=4)[0].config.num_channels == 4
    kernels = [_first_kernel(from_pretrained(folder, num_channels=channels)[1]) for channels in (4, 1, 3)]
    np.testing.assert_allclose(kernels[1], kernels[0].sum(axis=2, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(kernels[2], kernels[0][:, :, :3] * np.float32(4 / 3), rtol=1e-6)


def test_double_precision_is_rounded_and_said(make_source, caplog, assert_same):
    path, variables = make_source("timm file")
    state = {key: value.astype(np.float64) + 1e-12 if value.ndim else value for key, value in load_file(path).items()}
    assert_same(from_state_dict(state)[1], jax.tree.map(lambda array: np.float32(np.float64(array) + 1e-12), variables))
    assert "the state dict: float64 became float32, rounded" in caplog.text


def test_which_release_of_torchvision_s_weights(make_source, tmp_path, caplog, capsys):
    path, _ = make_source("torchvision file")
    assert open_weights(path).processor().size == {"shortest_edge": 256}
    assert "resized to 256 as for IMAGENET1K_V1; IMAGENET1K_V2 takes 232" in caplog.text
    second = path.rename(tmp_path / "mobilenet_v2-7ebf99e0.safetensors")
    caplog.clear()
    assert open_weights(second).processor().size == {"shortest_edge": 232}
    assert not caplog.text
    convert(second, tmp_path / "flax", "--resize", "240")
    assert "232" not in capsys.readouterr().out
    assert open_weights(tmp_path / "flax").processor().size == {"shortest_edge": 240}
    assert "a file of tensors only" in refused(capsys, second, tmp_path / "x.pth", "--to", "timm", "--resize", "9")


def test_a_state_dict_lends_its_backbone(make_source, random_variables, assert_same):
    path, variables = make_source("torchvision file")
    under = load_backbone(load_file(path), random_variables(TORCH_LIKE, "classification", seed=3))
    assert_same(under["params"]["mobilenet_v2"], variables["params"]["mobilenet_v2"])


class _ToyFormat(Format):
    """A library whose files end in .toy: our variables in NumPy's archive, of one network alone."""

    name, suffixes, to_file, to_folder = "toy", (".toy",), True, False

    def recognises(self, found):
        return found.is_file

    def open(self, found):
        with np.load(found.where) as archive:
            state = dict(archive)
        return Source("toy", found.where, TORCH_LIKE, "classification", state, FLAX_NAMING, complete=False)

    def state_dict(self, checkpoint):
        return write_state({path: checkpoint.tensors[path] for path in checkpoint.model_paths}, FLAX_NAMING)

    def write_file(self, path, checkpoint):
        with path.open("wb") as file:
            np.savez(file, **self.state_dict(checkpoint))


def test_another_library_is_a_class_and_a_row(make_source, tmp_path, monkeypatch, assert_same, capsys):
    monkeypatch.setitem(FORMATS, "toy", _ToyFormat())
    path, variables = make_source("torchvision file")
    convert(path, tmp_path / "x.toy", "--to", "toy")
    assert_same(from_pretrained(tmp_path / "x.toy")[1], variables)
    convert(tmp_path / "x.toy", tmp_path / "back.safetensors", "--to", "timm")
    assert_same(from_pretrained(tmp_path / "back.safetensors")[1], variables)
    for place, message in (("x.pth", "format toy is a file ending in .toy; found"), ("x", "is a file ending in .toy")):
        assert message in refused(capsys, path, tmp_path / place, "--to", "toy")


def test_the_table_has_every_format_once():
    """Names and examples differ, so that at most one format recognises a state dict."""
    names = ["hf", "torchvision", "timm", "vainf", "smp", "mmseg", "tf", "tf_detection", "mmdet", "keras", "tflite"]
    assert list(FORMATS) == [*names, "flax"]
    for name, form in FORMATS.items():
        for example in filter(None, form.example.split(", ")):
            found = opening.Found(None, None, {}, tensor_files.TensorFile({example: np.zeros(1)}))
            assert [other.name for other in FORMATS.values() if other.recognises(found)] == [name]
