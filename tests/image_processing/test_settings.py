"""Settings of the image processor: which are refused, and how they are stored, read and downloaded."""

import json

import pytest

from flax_mnv2 import CheckpointError, ConfigError, hub
from flax_mnv2.image_processing.processor import MobileNetV2FeatureExtractor, MobileNetV2ImageProcessor

# ---------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"size": {"longest_edge": 9}},
            r'size must be {"shortest_edge": …} or {"height": …, "width": …}.*longest_edge',
        ),
        ({"size": -5}, r"size\['shortest_edge'\] must be a whole number of pixels.*found -5"),
        ({"size": 0}, "found 0"),
        ({"size": 2.5}, "size must be"),
        ({"size": True}, "found True"),
        ({"size": [1, 2, 3]}, "size must be"),
        ({"size": {"height": 9, "width": 100_000}}, "width.*from 1 to 65535; found 100000"),
        ({"crop_size": {"shortest_edge": 9}}, r'crop_size must be {"height": …, "width": …}'),
        ({"crop_size": {"height": 9, "width": "9"}}, "found '9'"),
        ({"crop_size": 60_000}, "at most 268,435,456 pixels"),
        ({"resample": 6}, r"resample must be one of Pillow's filters 0 \(nearest\).*found 6"),
        ({"resample": "bilinear"}, "found 'bilinear'"),
        ({"resample": True}, "found True"),
        ({"resample": [2]}, "found"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std must be above 0"),
        ({"image_std": 0}, "image_std must be above 0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean must be three finite numbers.*found \[0\.5, 0\.5\]"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "three finite numbers"),
        ({"image_mean": "0.5"}, "three finite numbers"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"do_resize": 1}, "do_resize must be one of True, False; found 1"),
        ({"do_convert_rgb": False}, "do_convert_rgb must be True or left out, as every image becomes RGB; found False"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_settings(image, setting, message):
    with pytest.raises(ConfigError, match=message):
        MobileNetV2ImageProcessor(**setting)
    with pytest.raises(ConfigError, match=message):
        MobileNetV2ImageProcessor()(image, **setting)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"do_flip": True}, "has no setting do_flip; it has do_resize, size"),
        ({"extra": {}}, "has no setting extra"),
        ({"return_tensors": "mlx"}, "return_tensors must be one of 'np', 'jax', 'pt', 'tf'; found 'mlx'"),
        ({"data_format": "NHWC"}, "data_format must be one of 'channels_last', 'channels_first'"),
        ({"data_format": "none"}, "data_format must be one of 'channels_last', 'channels_first'"),
        ({"input_data_format": 3}, "input_data_format must be one of 'channels_last', 'channels_first', 'none'"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_options_of_a_call(image, option, message):
    with pytest.raises(ConfigError, match=message):
        MobileNetV2ImageProcessor()(image, **option)


def test_none_switches_a_step_off_and_is_the_default_of_other_settings(image):
    values = ("size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std")
    assert MobileNetV2ImageProcessor(**dict.fromkeys(values)) == MobileNetV2ImageProcessor()
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    for processor in (
        MobileNetV2ImageProcessor(**dict.fromkeys(steps)),
        MobileNetV2ImageProcessor.from_dict(dict.fromkeys(steps)),
        MobileNetV2ImageProcessor.from_dict({}, **dict.fromkeys(steps)),
    ):
        assert processor(image).pixel_values[0].tolist() == image.tolist()
        assert processor.to_dict()["do_resize"] is None
    per_call = MobileNetV2ImageProcessor()(image, **dict.fromkeys([*steps, *values])).pixel_values[0]
    assert per_call.tolist() == MobileNetV2ImageProcessor()(image).pixel_values[0].tolist()


def test_printed_as_its_file():
    processor = MobileNetV2ImageProcessor(size=99)
    assert repr(processor) == f"MobileNetV2ImageProcessor {processor.to_json_string()}"


# ---------------------------------------------------------------------------------- files


def test_a_file_of_its_own(tmp_path):
    processor = MobileNetV2ImageProcessor(size=99, do_convert_rgb=True)
    assert processor.save_pretrained(tmp_path) == [str(tmp_path / "preprocessor_config.json")]
    processor.to_json_file(tmp_path / "mine.json")
    assert MobileNetV2ImageProcessor.from_json_file(tmp_path / "mine.json") == processor
    assert MobileNetV2ImageProcessor.from_pretrained(tmp_path / "mine.json", size=98).size == {"shortest_edge": 98}
    assert MobileNetV2ImageProcessor.from_dict(processor.to_dict()) == processor
    with pytest.raises(CheckpointError, match=r"No yours\.json in "):
        MobileNetV2ImageProcessor.from_json_file(tmp_path / "yours.json")


def test_what_to_dict_gives_is_the_callers():
    processor = MobileNetV2ImageProcessor()
    processor.to_dict()["size"]["shortest_edge"] = 1
    assert processor == MobileNetV2ImageProcessor()


def test_round_trip_keeps_unknown_keys(tmp_path):
    processor = MobileNetV2ImageProcessor(size=(9, 8), crop_size=7, resample=3, image_mean=0.25, do_reduce_labels=True)
    processor.save_pretrained(tmp_path / "new" / "folder")
    file = tmp_path / "new" / "folder" / "preprocessor_config.json"
    values = json.loads(file.read_text())
    assert values["image_processor_type"] == "MobileNetV2ImageProcessor"
    file.write_text(json.dumps(values | {"our_note": [1, {"a": None}], "resample": None}))
    loaded = MobileNetV2ImageProcessor.from_pretrained(tmp_path / "new" / "folder", crop_size=6)
    assert loaded.crop_size == {"height": 6, "width": 6}
    assert loaded.resample == 2  # null stands for the default
    assert loaded.extra == {"our_note": [1, {"a": None}]}
    loaded.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written == values | {"our_note": [1, {"a": None}], "resample": 2, "crop_size": {"height": 6, "width": 6}}


@pytest.mark.parametrize(
    "types_",
    [
        {},
        {"image_processor_type": "MobileNetV2ImageProcessorFast"},
        {"image_processor_type": "MobileNetV2ImageProcessorPil"},
        {"feature_extractor_type": "MobileNetV2FeatureExtractor"},
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_older_and_newer_names_are_read(tmp_path, types_):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 99, "crop_size": 98, **types_}))
    processor = MobileNetV2ImageProcessor.from_pretrained(str(tmp_path))
    assert processor == MobileNetV2ImageProcessor(size=99, crop_size=98)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, CheckpointError, r"No preprocessor_config\.json in .*or write one"),
        ("{", CheckpointError, r"Cannot read .*preprocessor_config\.json"),
        ("[" * 100_000, CheckpointError, r"Cannot read .*preprocessor_config\.json"),
        ("[]", CheckpointError, "must hold a JSON object; found list"),
        ('{"image_processor_type": "ViTImageProcessor"}', CheckpointError, "is for 'ViTImageProcessor'"),
        ('{"feature_extractor_type": "ViTFeatureExtractor"}', CheckpointError, "is for 'ViTFeatureExtractor'"),
        ('{"size": {"edge": 3}}', ConfigError, r"preprocessor_config\.json: size must be"),
        ('{"image_std": [NaN, 1, 1]}', ConfigError, r"preprocessor_config\.json: image_std must be"),
    ],
)
def test_bad_files(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(error, match=message):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path)


def test_an_unknown_override_is_refused(tmp_path):
    MobileNetV2ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no setting crop"):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path, crop=5)
    with pytest.raises(ConfigError, match=r"^crop_size must be"):
        MobileNetV2ImageProcessor.from_pretrained(tmp_path, crop_size="5")
    with pytest.raises(ConfigError, match="has no setting crop"):
        MobileNetV2ImageProcessor.from_dict({}, crop=5)


def test_the_former_name_is_deprecated(image, tmp_path):
    with pytest.warns(FutureWarning, match="use MobileNetV2ImageProcessor") as warned:
        processor = MobileNetV2FeatureExtractor(size=99)
    assert warned[0].filename == __file__
    assert isinstance(processor, MobileNetV2ImageProcessor)
    assert processor.to_dict() == MobileNetV2ImageProcessor(size=99).to_dict()
    processor(image, crop_size=9)  # does not warn again
    processor.save_pretrained(tmp_path)
    with pytest.warns(FutureWarning):
        assert type(MobileNetV2FeatureExtractor.from_pretrained(tmp_path)) is MobileNetV2FeatureExtractor


# ---------------------------------------------------------------------------------- hub


def test_a_hub_id_is_downloaded_by_huggingface_hub(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: calls.append((name, options)) or str(tmp_path)
    )
    MobileNetV2ImageProcessor(size=77).save_pretrained(tmp_path)
    loaded = MobileNetV2ImageProcessor.from_pretrained("owner/na.me_1-0", revision="refs/pr/1", cache_dir="cache")
    assert loaded.size == {"shortest_edge": 77}
    options = {
        "revision": "refs/pr/1",
        "cache_dir": "cache",
        "allow_patterns": ["preprocessor_config.json"],
        "token": False,
    }
    assert calls == [("owner/na.me_1-0", options)]


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (
            "nobody/nothing",
            None,
            r"'nobody/nothing' is no local folder and could not be downloaded .* give a local folder",
        ),
        ("nobody/nothing", "v1", "at revision 'v1'"),
        ("a/b/c", None, "No folder a/b/c; expected one with some.file"),
        ("./absent", None, "No folder ./absent"),
        ("/absent", None, "No folder /absent"),
        ("../absent", None, "No folder"),
        ("owner/name?x", None, "hub id of the form owner/name"),
    ],
)
def test_ids_that_cannot_be_had(tmp_path, name, revision, message):
    with pytest.raises(CheckpointError, match=message):
        hub.resolve_folder(name, revision=revision, cache_dir=tmp_path, files=("some.file",))


def test_a_local_folder_goes_first_and_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub.resolve_folder("owner/name", files=("some.file",)).samefile(tmp_path / "owner" / "name")
    (tmp_path / "some.file").touch()
    with pytest.raises(CheckpointError, match=r"is a file; expected the folder that holds some\.file"):
        hub.resolve_folder(tmp_path / "some.file", files=("some.file",))
