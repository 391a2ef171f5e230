"""timm's hub folders: their config and preprocessing, both ways."""

import json
import math

import pytest
from converting import TORCH_LIKE, convert, refused, set_processor

from flax_mnv2.convert import main
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import timm
from flax_mnv2.weights.opening import open_weights

pytestmark = pytest.mark.usefixtures("one_variant")


def test_a_processor_is_said_in_timms_words(make_folder, tmp_path):
    convert(make_folder(config=TORCH_LIKE), tmp_path / "timm", "--to", "timm")
    values = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (values["architecture"], values["num_classes"]) == ("mobilenetv2_050", 5)
    assert values["pretrained_cfg"]["crop_pct"] == 96 / 256
    assert values["pretrained_cfg"]["interpolation"] == "bilinear"
    assert values["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": "a"}}, "size['shortest_edge'] must be"),
        ({"resample": [1]}, "resample must be"),
        ({"image_std": "x"}, "image_std must be"),
        ({"crop_size": [[1]]}, "crop_size must be"),
    ],
)
def test_a_damaged_processor_is_named(make_folder, tmp_path, capsys, settings, message):
    source = make_folder(config=TORCH_LIKE)
    set_processor(source, **settings)
    assert f"The source's preprocessor_config.json: {message}" in refused(
        capsys, source, tmp_path / "out", "--to", "timm"
    )
    assert not (tmp_path / "out").exists()


def _through_timm(source, tmp_path):
    convert(source, tmp_path / "timm", "--to", "timm")
    convert(tmp_path / "timm", tmp_path / "back", "--to", "hf")
    return json.loads((tmp_path / "timm" / "config.json").read_text()), open_weights(tmp_path / "back").processor()


@pytest.mark.parametrize(
    ("settings", "same_as"),
    [
        ({"crop_size": 224}, {"crop_size": 224}),
        ({"crop_size": None, "size": None}, {}),
        ({"image_mean": 0.25}, {"image_mean": 0.25, "crop_size": 96}),
        ({"crop_size": 256, "size": 224}, {"crop_size": 256, "size": 224}),  # padded with zeros by both
        ({"crop_size": 224, "size": 400}, {"crop_size": 224, "size": 400}),
    ],
)
def test_every_form_of_a_processor_goes_through_timm(make_folder, tmp_path, capsys, settings, same_as):
    source = make_folder(config=TORCH_LIKE)
    set_processor(source, **settings)
    _, processor = _through_timm(source, tmp_path)
    assert processor == MobileNetV2ImageProcessor(**same_as)
    assert "timm cannot" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_resize": False, "do_center_crop": False}, ["do_resize=False", "do_center_crop=False"]),
        ({"do_rescale": False, "do_normalize": False}, ["do_rescale=False", "do_normalize=False"]),
        ({"rescale_factor": 1 / 127.5}, ["rescale_factor=0.00784"]),
        ({"crop_size": [96, 80]}, ["crop_size={'height': 96, 'width': 80}"]),
        ({"size": [96, 80]}, ["size={'height': 96, 'width': 80}"]),
    ],
)
def test_what_timm_cannot_prepare_is_noted(make_folder, tmp_path, capsys, settings, named):
    source = make_folder(config=TORCH_LIKE)
    set_processor(source, **settings)
    convert(source, tmp_path / "timm", "--to", "timm")
    notes = [line for line in capsys.readouterr().out.splitlines() if "timm cannot prepare images with" in line]
    assert len(notes) == len(named)
    for note, name in zip(notes, named, strict=True):
        assert f"with {name}" in note


def test_other_things_that_stay_behind_are_noted(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE.replace(problem_type="multi_label_classification"))
    for to in ("timm", "torchvision"):
        convert(source, tmp_path / f"{to}.safetensors", "--to", to)
        out = capsys.readouterr().out
        assert f"note        {to} has no problem_type: 'multi_label_classification' stays behind" in out
        assert f"note        a {to} file holds tensors only" in out
    (source / "preprocessor_config.json").unlink()
    convert(source, tmp_path / "timm", "--to", "timm")
    assert "no preprocessor_config.json: timm's usual preprocessing is written" in capsys.readouterr().out


def test_a_processor_that_was_changed_on_the_way_is_what_timm_gets(make_folder, tmp_path):
    convert(make_folder(config=TORCH_LIKE), tmp_path / "timm", "--to", "timm")
    before = json.loads((tmp_path / "timm" / "config.json").read_text())
    convert(tmp_path / "timm", tmp_path / "hf", "--to", "hf")
    set_processor(tmp_path / "hf", size={"shortest_edge": 128}, resample=3)
    convert(tmp_path / "hf", tmp_path / "again", "--to", "timm")
    after = json.loads((tmp_path / "again" / "config.json").read_text())
    changed = {"crop_pct": 96 / 128, "interpolation": "bicubic"}
    assert after == before | {"pretrained_cfg": before["pretrained_cfg"] | changed}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretrained_cfg": {"mean": ["a"]}}, "image_mean must be three finite numbers"),
        ({"pretrained_cfg": {"std": [0.5, 0.5]}}, "image_std must be three finite numbers"),
        ({"pretrained_cfg": {"std": 0}}, "image_std must be above 0"),
        ({"pretrained_cfg": {"crop_pct": 1e-308}}, "crop_pct above 0"),
        ({"pretrained_cfg": {"crop_pct": float("nan")}}, "crop_pct above 0"),
        ({"pretrained_cfg": {"crop_pct": 10**400}}, "crop_pct above 0"),
        ({"pretrained_cfg": {"crop_pct": 1000}}, "size['shortest_edge'] must be"),
        ({"pretrained_cfg": {"input_size": [3, 0, 0]}}, "square input_size"),
        ({"pretrained_cfg": {"input_size": [3, 10**400, 10**400]}}, "square input_size"),
        ({"pretrained_cfg": {"interpolation": ["a"]}}, "interpolation among"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg in the config.json of a timm folder must be an object"),
        ({"label_names": [["a"]] * 5, "label_descriptions": {"a": "b"}}, "label_names in the config.json"),
    ],
)
def test_damaged_configs_of_timm_are_named(make_folder, tmp_path, capsys, values, message):
    source = make_folder(config=TORCH_LIKE)
    convert(source, tmp_path / "timm", "--to", "timm")
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps(config))
    capsys.readouterr()
    message_found = refused(capsys, tmp_path / "timm", tmp_path / "out")
    assert message in message_found
    assert len(message_found.splitlines()) == 1
    # The same, kept in a config.json of ours; what is no such config is not looked at.
    text = json.loads((source / "config.json").read_text())
    for kept in (config, 5):
        (source / "config.json").write_text(json.dumps(text | {timm.CONFIG_KEY: kept}))
        assert main([str(source), str(tmp_path / "o"), "--to", "timm"]) in (0, 2)


def test_one_number_for_all_channels_is_read_from_timm(make_folder, tmp_path):
    convert(make_folder(config=TORCH_LIKE), tmp_path / "timm", "--to", "timm")
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"] |= {"mean": 0.25, "std": None}
    path.write_text(json.dumps(config))
    convert(tmp_path / "timm", tmp_path / "hf", "--to", "hf")
    processor = open_weights(tmp_path / "hf").processor()
    assert (processor.image_mean, processor.image_std) == ([0.25] * 3, [0.229, 0.224, 0.225])


def test_a_network_of_other_channels_has_no_processor(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE.replace(num_channels=4))
    (source / "preprocessor_config.json").unlink()
    convert(source, tmp_path / "timm", "--to", "timm")
    values = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert values["pretrained_cfg"]["input_size"] == [4, 224, 224]
    convert(tmp_path / "timm", tmp_path / "hf", "--to", "hf")
    assert "makes 3 channels, not 4: preprocessing stays behind" in capsys.readouterr().out
    assert not (tmp_path / "hf" / "preprocessor_config.json").exists()
    convert(tmp_path / "hf", tmp_path / "again", "--to", "timm")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == values


@pytest.mark.parametrize("crop", [192, 224])
def test_every_edge_is_read_back_by_timms_rule(crop):
    for edge in range(150, 513):
        written = timm.preprocessing_of(MobileNetV2ImageProcessor(size=edge, crop_size=crop), 3)
        assert math.floor(crop / written["crop_pct"]) == edge
        assert abs(written["crop_pct"] - crop / edge) < 1e-9
        assert timm.processor_of_config(written).size == {"shortest_edge": edge}
