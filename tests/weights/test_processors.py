"""``load_processor``: from a preprocessor_config.json alone where there is one, else as the weights' library does."""

import pytest
from converting import TORCH_LIKE, convert

from flax_mnv2 import CheckpointError, ConfigError, MobileNetV2ImageProcessor, load_processor
from flax_mnv2.weights.opening import open_weights

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def test_of_a_folder_or_file_without_weights(tmp_path):
    processor = MobileNetV2ImageProcessor(size=99)
    (path,) = processor.save_pretrained(tmp_path)
    assert load_processor(tmp_path) == load_processor(str(tmp_path)) == load_processor(path) == processor
    assert load_processor(tmp_path, crop_size=7, do_resize=None) == MobileNetV2ImageProcessor(
        do_resize=None, size=99, crop_size=7
    )


def test_of_a_hub_id_fetches_one_file(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    MobileNetV2ImageProcessor(size=99).save_pretrained(tmp_path)
    assert load_processor("owner/name_1.0_224", revision="v1").size == {"shortest_edge": 99}
    assert {name for name, _ in asked} == {"owner/name_1.0_224"}
    assert all(options["allow_patterns"] == ["preprocessor_config.json"] for _, options in asked)
    assert all(options["revision"] == "v1" for _, options in asked)


@pytest.mark.usefixtures("one_variant")
def test_of_other_libraries(make_folder, tmp_path):
    source = make_folder(config=TORCH_LIKE)
    (source / "preprocessor_config.json").unlink()
    convert(source, tmp_path / "timm", "--to", "timm")
    convert(source, tmp_path / "weights.pth", "--to", "torchvision")
    timm = MobileNetV2ImageProcessor(**IMAGENET, resample=3)
    assert load_processor(tmp_path / "timm", size=256) == timm
    assert load_processor(tmp_path / "weights.pth", resample=3, size=256, crop_size=224) == timm
    assert load_processor(open_weights(tmp_path / "timm"), crop_size=9).crop_size == {"height": 9, "width": 9}


@pytest.mark.usefixtures("tiny_blocks")
def test_of_a_run(run_checkpoint):
    folder, _ = run_checkpoint
    assert load_processor(folder) == MobileNetV2ImageProcessor(do_resize=False, do_center_crop=False)


def test_where_there_is_none(make_folder, tmp_path):
    for name in ("absent", "absent.pth", "absent.json", "nobody/nothing"):
        with pytest.raises(CheckpointError):
            load_processor(tmp_path / name if "/" not in name else name)
    MobileNetV2ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no setting crop"):
        load_processor(tmp_path, crop=3)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(CheckpointError, match="is for 'ViTImageProcessor'"):
        load_processor(tmp_path)
