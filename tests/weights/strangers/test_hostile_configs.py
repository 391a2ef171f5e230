"""Configs, hub names, workdirs and metrics by somebody who means harm: one error, little memory, nothing outside."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from flax_mnv2 import CheckpointError, ConfigError, DataError, MobileNetV2Config, MobileNetV2ImageProcessor
from flax_mnv2.checkpoint.reading import read_about
from flax_mnv2.files import MAX_JSON_BYTES, parse_json, read_json, shown
from flax_mnv2.models import MobileNetV2ForImageClassification, MobileNetV2ForSemanticSegmentation
from flax_mnv2.predict.inputs import result_stems
from flax_mnv2.tasks.classification.predictor import ClassificationPredictor
from flax_mnv2.tasks.segmentation.predictor import SegmentationPredictor
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.logging.metrics_writer import METRICS_NAME, MetricsWriter, read_metrics
from flax_mnv2.training.workdir import config_for_evaluation, open_workdir
from flax_mnv2.weights import tensor_files

ROOT = pathlib.Path(__file__).resolve().parents[3]


def _id(value):
    """A short name for a value, some of which cannot be printed."""
    return "object" if type(value) is object else ascii(shown(value))[:40]  # no address: ids are compared


# -------------------------------------------------------------------------------------------- memory


def test_large_networks_that_somebody_may_train_are_read():
    for values in ({"depth_multiplier": 4.0}, {"num_labels": 21_843, "depth_multiplier": 1.4}, {"num_labels": 100_000}):
        config = MobileNetV2Config(**values)
        assert MobileNetV2Config.from_dict(config.to_dict()) == config


def test_a_small_folder_does_not_allocate_gigabytes(tmp_path):
    """The largest network that a config may describe, with weights of another one: compared before anything is made."""
    values = MobileNetV2Config(depth_multiplier=5.0).to_dict() | {
        "architectures": ["MobileNetV2ForImageClassification"]
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensor_files.write_tensor_file(
        tmp_path / "model.safetensors", {"mobilenet_v2.conv_1x1.normalization.bias": np.ones(3, np.float32)}
    )
    script = (
        "import resource\n"
        "import jax\n"
        "from flax_mnv2 import CheckpointError, from_pretrained\n"
        "jax.numpy.zeros(1).block_until_ready()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        f"    from_pretrained({str(tmp_path)!r}, ignore_mismatched_sizes=True)\n"
        "except CheckpointError as error:\n"
        "    assert 'missing' in str(error)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 200_000  # KiB; the network would have 300 MB


@pytest.mark.parametrize("size", [65536, 2050, (65536, 32)])
def test_no_canvas_is_made_for_an_image_size_beyond_use(size):
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(image_size=size))
    with pytest.raises(ConfigError, match=r"image_size in config\.json asks for pictures of"):
        SegmentationPredictor(model, {}, MobileNetV2ImageProcessor())


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"crop_size": 10_000}, "crop_size"), ({"size": 60_000}, "size"), ({"size": (32, 60_000)}, "size")],
)
def test_no_photo_is_resized_beyond_use(settings, name):
    model = MobileNetV2ForImageClassification(MobileNetV2Config())
    with pytest.raises(ConfigError, match=rf"^{name} in preprocessor_config\.json asks for pictures of"):
        ClassificationPredictor(model, {}, MobileNetV2ImageProcessor(**settings))
    off = {"crop_size": "do_center_crop", "size": "do_resize"}[name]
    ClassificationPredictor(model, {}, MobileNetV2ImageProcessor(**settings | {off: False}))


# ---------------------------------------------------------------------------------------------- JSON


def test_json_is_bounded(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b" " * (MAX_JSON_BYTES - 2) + b"{}")
    assert read_json(path) == {}
    path.write_bytes(b" " * (MAX_JSON_BYTES - 1) + b"{}")
    with pytest.raises(ConfigError, match="larger than"):
        MobileNetV2Config.from_json_file(path)
    os.truncate(path, 2**40)  # a hole: a terabyte that takes no space
    with pytest.raises(ConfigError, match="larger than"):
        MobileNetV2Config.from_json_file(path)


@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_depth_is_bounded(brackets):
    opening, closing = brackets[:-1], brackets[-1]
    assert parse_json(opening * 32 + "1" + closing * 32)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(opening * 100_000 + "1" + closing * 100_000)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "config.json"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path)}[kind](path)
    with pytest.raises(ConfigError, match="Cannot read"):
        MobileNetV2Config.from_json_file(path)
    path.rename(tmp_path / "preprocessor_config.json")
    with pytest.raises(CheckpointError, match="Cannot read"):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 10**5000, {1: 2}, {"a": [{"b": {3}}]}, object()], ids=_id
)
def test_what_json_cannot_hold_is_no_further_key(value):
    with pytest.raises(ConfigError, match="'note' must be what JSON can hold"):
        MobileNetV2Config(extra={"note": value})


def test_values_in_messages_are_short():
    assert shown("x" * 10**6).endswith("… (1,000,002 characters)")
    assert shown(10**5000) == "a value of type int that is too long to show"
    with pytest.raises(ConfigError) as caught:
        MobileNetV2Config.from_dict({"hidden_act": "x" * 10**6})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "labels", [{"0": "a", "00": "b"}, {"0": "a", "1_0": "b"}, {"-1": "a"}, {"9" * 4000: "a"}], ids=_id
)
def test_labels_with_odd_indices_are_refused(labels):
    with pytest.raises(ConfigError, match="id2label must"):
        MobileNetV2Config.from_dict({"id2label": labels})


@pytest.mark.parametrize(
    "about",
    ["[]", "{}", '{"config": 3, "model": {}}', '{"config": {}, "model": {}, "processor": 3}', "[" * 10**5, "\x00"],
    ids=_id,
)
def test_the_note_of_a_run_is_checked(tmp_path, about):
    (tmp_path / "about").mkdir()
    (tmp_path / "about" / "metadata").write_text(about)
    with pytest.raises(CheckpointError, match="It is damaged, or not by this library"):
        read_about(tmp_path)


# ------------------------------------------------------------------------------- workdirs and outputs


@pytest.mark.parametrize("name", ["config.json", "checkpoints", "metrics.jsonl", "tensorboard"])
def test_a_workdir_does_not_lead_out_of_itself(tmp_path, name):
    workdir, outside = tmp_path / "run", tmp_path / "outside"
    workdir.mkdir()
    (workdir / name).symlink_to(outside)
    with pytest.raises(DataError, match="outside of the workdir"):
        open_workdir(workdir, default_config())
    assert not outside.exists()
    assert [path.name for path in workdir.iterdir()] == [name]


def test_links_that_stay_inside_and_a_linked_workdir_are_fine(tmp_path):
    (tmp_path / "run" / "big").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").symlink_to("big")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    open_workdir(tmp_path / "link", default_config())
    assert (tmp_path / "run" / "config.json").is_file()


def test_nothing_is_written_through_a_link_that_waits(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".config.json", f".{METRICS_NAME}"):
        (tmp_path / f"{name}.{os.getpid()}.tmp").symlink_to(victim)
    open_workdir(tmp_path, default_config())
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, "train", {"loss": 1.0})
    assert victim.read_text() == "mine"
    assert len(read_metrics(tmp_path)) == 1


GOOD = '{"step": 3, "split": "train", "loss": NaN}'


@pytest.mark.parametrize(
    "line",
    [
        "[]", "3", "null", '"x"', "{}", '{"step": 3}', '{"step": "3", "split": "train"}',
        '{"step": true, "split": "x"}',
        '{"step": NaN, "split": "train"}', '{"step": -1, "split": "train"}', '{"step": 1e400, "split": "train"}',
        '{"step": 1, "split": ["train"]}', "[" * 100_000,
        '{"step": ' + "9" * 5000 + ', "split": "train"}', "\x00\x00", "{", '{"step": 3, "split": "tr',
    ],
    ids=_id,
)  # fmt: skip
def test_lines_that_are_none_of_ours_are_left_out(tmp_path, line):
    (tmp_path / METRICS_NAME).write_text(f"{line}\n{GOOD}\n")
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [3]
    with MetricsWriter(tmp_path, resume_step=5) as writer:
        assert writer.evaluations == {}
    assert (tmp_path / METRICS_NAME).read_text() == GOOD + "\n"


def test_bytes_that_are_no_text_cost_one_line(tmp_path):
    (tmp_path / METRICS_NAME).write_bytes(b'\xff\xfe{"step": 1}\n' + GOOD.encode() + b"\n\x80")
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [3]


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_metrics_that_are_no_file_are_named(tmp_path, kind):
    kind(tmp_path / METRICS_NAME)
    with pytest.raises(DataError, match=r"Cannot read .*metrics\.jsonl"):
        read_metrics(tmp_path)


def test_event_files_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(DataError, match=r"Cannot write metrics\.jsonl and tensorboard/"):
        MetricsWriter(tmp_path, resume_step=0)


@pytest.mark.parametrize(
    "text",
    [
        "[]", "3", "[" * 100_000, '{"batch_size": "x"}', '{"no_such": 1}', '{"data": 3}', '{"model": {"x": 1}}',
        '{"batch_size": ' + "9" * 5000 + "}", '{"seed": {"a": 1}}', '{"": 1}', '{"data.name": 1}', "\x00",
    ],
    ids=_id,
)  # fmt: skip
def test_a_recorded_config_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        config_for_evaluation(None, {}, workdir=str(tmp_path))


def test_names_of_photos_do_not_lead_out_of_the_output(tmp_path):
    names = ["../../etc/x.jpg", "/etc/passwd", "a/../../b.png", "...jpg", "..", "x\n.jpg", "-rf.png", "\udcff.jpg"]
    stems = result_stems([pathlib.Path(name) for name in names], tmp_path, ("_mask.png",))
    assert len(set(stems)) == len(names)
    for stem in stems:
        assert (tmp_path / f"{stem}_mask.png").resolve().parent == tmp_path.resolve()
