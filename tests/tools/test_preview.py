"""The contact sheet of training images: what the network gets, pixel for pixel, with its labels."""

import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scripts
from pictures import COLORS, make_photos
from PIL import Image

from flax_mnv2.data.decode import decode_image
from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.tools import preview as preview_module
from flax_mnv2.tools.preview import preview, seen_examples
from flax_mnv2.training import cli
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import configured_train_step
from flax_mnv2.visualize import legend, masks, sheets

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of noisy photos in the colours of their three classes, 7 in each."""
    return make_photos(tmp_path_factory.mktemp("photos"), train=7)


@pytest.fixture
def config(photos, tiny_blocks):
    config = default_config("classification")
    config.data.dataset, config.data.archive, config.data.holdout = "image_folder", str(photos), 0.0
    config.data.data_dir = str(photos.parent / "prepared")
    config.data.train_size = config.data.eval_resize = config.data.eval_crop = 32
    config.data.color_jitter = (0.4, 0.4, 0.4, 0.1)
    config.data.auto_augment, config.data.random_erasing = "trivial_augment_wide", 0.5
    config.data.num_threads = 2
    config.batch_size, config.num_steps, config.label_smoothing = 8, 5, 0.1
    config.model.depth_multiplier, config.model.output_stride = 0.35, 32
    return config


@pytest.fixture
def segmentation(shapes_dir, tiny_blocks):
    config = default_config()
    config.data.dataset = "shapes_segmentation"
    config.data.data_dir = str(shapes_dir)
    config.data.crop_size = (48, 80)
    config.batch_size, config.num_steps = 4, 5
    return config


def _trained_on(config, step):
    """The images that enter the network in a real training step, part by part, and the batch behind them."""
    dataset = get_task(config.task).load_dataset(config.data)
    task = get_task(config.task).for_training(config, dataset.labels)
    images = []

    def apply(variables, inputs, **_):
        jax.debug.callback(lambda value: images.append(np.array(value)), inputs, ordered=True)
        logits = jnp.broadcast_to(variables["params"][None], (len(inputs), len(dataset.labels)))
        return types.SimpleNamespace(logits=logits), {}

    task.model = types.SimpleNamespace(apply=apply)
    optimizer = optax.sgd(0.1)
    parallel = make_parallel("jit", jax.devices()[:1])
    train_step = parallel.compile_train_step(
        configured_train_step(config, task, lambda _: jnp.float32(0.1), optimizer, parallel)
    )
    variables = {"params": jnp.zeros(len(dataset.labels)), "batch_stats": {}}
    state = TrainState.create(variables, optimizer, ema=False)
    with task.train_batches(dataset, start_step=step) as batches:
        batch = next(batches)
    state = parallel.put_state(state.replace(step=state.step + step))
    train_step(state, parallel.put_batch({name: batch[name] for name in task.batch_fields}))
    jax.effects_barrier()
    return images, batch


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, 1),
        ({"cutmix_alpha": 1.0, "augment_repeats": 2}, 1),
        ({"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "image_mean": (0.485, 0.456, 0.406)}, 2),
    ],
    ids=["plain", "cutmix", "accumulated"],
)
def test_pixels_are_those_that_enter_the_network(config, changes, parts):
    config.data.update(changes)
    config.gradient_accumulation_steps = parts
    step = 2
    entered, batch = _trained_on(config, step)
    assert len(entered) == parts
    rows = np.stack(entered, axis=1).reshape(8, 32, 32, 3)  # part j has the rows j, j + parts, ...
    expected = 255 * (rows * np.float32(config.data.image_std) + np.float32(config.data.image_mean))
    dataset = get_task(config.task).load_dataset(config.data)
    for count in (8, 3):  # all, and a few for which not all is computed
        seen = seen_examples(config, dataset, step=step, num_images=count)
        assert [(one.step, one.index) for one in seen] == [(step, int(index)) for index in batch["index"][:count]]
        found = np.stack([one.image for one in seen])
        assert found.dtype == np.uint8
        assert np.abs(found - expected[:count]).max() <= 0.501  # rounded
    same = [np.array_equal(one.image, image) for one, image in zip(seen, batch["image"], strict=False)]
    assert all(same) if not changes else not any(same)


def test_cutmix_shares_are_those_of_the_pixels(config, tmp_path, monkeypatch):
    config.data.color_jitter, config.data.auto_augment, config.data.random_erasing = (0.0,) * 4, "", 0.0
    config.data.cutmix_alpha = 1.0
    names = tuple(COLORS)
    dataset = get_task(config.task).load_dataset(config.data)
    mixed, seen = [], [seen_examples(config, dataset, step=step, num_images=8) for step in range(3)]
    for examples in seen:
        for one in examples:
            nearest = np.argmin([np.abs(one.image - np.float32(color)).sum(-1) for color in COLORS.values()], axis=0)
            np.testing.assert_allclose(np.bincount(nearest.ravel(), minlength=3) / 1024, one.target, atol=0.01)
            mixed.append(np.sort(one.target)[-2] > 0.1)
    assert sum(mixed) >= 2

    sheets = []
    monkeypatch.setattr(preview_module, "save_contact_sheet", lambda path, tiles, **rest: sheets.append(tiles))
    fractions = []
    for step in range(3):
        preview(config, tmp_path / "p.png", num_images=8, step=step)
        for (original, shown), one in zip(sheets.pop(), seen[step], strict=True):
            own = original.caption[0].partition("_")[0]  # files are named after their class
            stored = dataset.source("train")[one.index]
            np.testing.assert_array_equal(original.image, decode_image(stored["image"]))
            np.testing.assert_array_equal(shown.image, one.image)
            assert own == names[stored["label"]]
            if len(shown.caption) == 1:
                assert shown.caption == (own,)
                continue
            parsed = [re.fullmatch(r"(\S+) % (\w+)", line).groups() for line in shown.caption]
            assert parsed[0][1] == own
            for fraction, name in parsed:
                assert float(fraction) == pytest.approx(100 * one.target[names.index(name)], abs=0.06)
            fractions.append(sum(float(fraction) for fraction, _ in parsed))
    assert fractions == pytest.approx([100.0] * len(fractions), abs=0.11)
    assert fractions


def test_a_sheet_is_the_same_again_and_goes_on_with_later_steps(config, tmp_path):
    dataset = get_task(config.task).load_dataset(config.data)
    config.data.cutmix_alpha = 1.0
    whole = seen_examples(config, dataset, step=1, num_images=11)
    later = seen_examples(config, dataset, step=2, num_images=3)
    assert [one.step for one in whole] == [1] * 8 + [2] * 3
    for one, other in zip(whole[8:], later, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.target, other.target)
    files = []
    for name in ("a.png", "b.png"):
        preview(config, tmp_path / name, num_images=11, step=1)
        files.append((tmp_path / name).read_bytes())
    preview(config, tmp_path / "c.png", num_images=11, step=2)
    assert files[0] == files[1] != (tmp_path / "c.png").read_bytes()


def test_crops_of_a_segmentation_come_with_their_masks(segmentation, tmp_path):
    dataset = get_task(segmentation.task).load_dataset(segmentation.data)
    with (
        get_task(segmentation.task)
        .for_training(segmentation, dataset.labels)
        .train_batches(dataset, start_step=0) as batches
    ):
        next(batches)
        batch = next(batches)  # that of step 1
    seen = seen_examples(segmentation, dataset, step=1, num_images=4)
    for row, one in enumerate(seen):
        np.testing.assert_array_equal(one.image, batch["image"][row])
        np.testing.assert_array_equal(one.target, batch["label"][row])
        assert one.index == batch["index"][row]
    assert (batch["label"] == 255).any()
    preview(segmentation, tmp_path / "s.png", num_images=4, step=1)
    sheet = _read(tmp_path / "s.png")
    for one in seen:
        painted = masks.overlay_mask(one.image, one.target, dataset.labels, ignore_label=255)
        for picture in (one.image, painted):
            assert _contains(sheet, picture.repeat(2, 0).repeat(2, 1))  # 80 pixels are drawn as 160
    for index in np.unique(batch["label"][batch["label"] != 255]):
        swatch = np.broadcast_to(legend.voc_palette()[index], (8, 8, 3))
        assert _contains(sheet[-100:], swatch)  # in the legend


def test_void_is_striped_and_classes_are_coloured():
    photo = np.full((32, 32, 3), 100, np.uint8)
    mask = np.repeat(np.array([0, 3, 255, 255], np.uint8), 8)[None].repeat(32, 0)
    picture = masks.overlay_mask(photo, mask, ("background", "a", "b", "c"), ignore_label=255)
    np.testing.assert_array_equal(picture[0, 4], [75, 75, 75])  # the background is dimmed less
    np.testing.assert_allclose(picture[0, 12], 50 + legend.voc_palette()[3] / 2, atol=1)
    void = picture[:, 16:].reshape(-1, 3)
    white, bare = (void == 255).all(-1), (void == 100).all(-1)
    assert (white | bare).all()
    assert white.mean() == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("count", "size"),
    [*((1, size) for size in ((32, 32), (96, 200), (224, 224), (500, 513))), (11, (32, 32)), (11, (96, 200))],
)
def test_a_sheet_of_any_size_shows_all_panels(tmp_path, count, size):
    rng = np.random.default_rng(0)
    panels = [rng.integers(10, 14, (*size, 3)).astype(np.uint8) for _ in range(count)]
    tiles = [
        (sheets.Panel(np.full((90, 120, 3), 7, np.uint8), ("Größe λ" * 50,)), sheets.Panel(panel)) for panel in panels
    ]
    sheets.save_contact_sheet(tmp_path / "x.png", tiles, rows=("above", "below"), title=("title", "word " * 200))
    sheet = _read(tmp_path / "x.png")
    assert sheet.shape[1] <= 3200
    assert (sheet[:, -4:] == 255).all()  # nothing is cut off
    for panel in panels:
        longer = max(size)
        panel = panel.repeat(max(1, 160 // longer), 0).repeat(max(1, 160 // longer), 1)
        assert longer > 384 or _contains(sheet, panel)
    assert (sheet == 7).all(-1).sum() > 0.9 * count * 0.7 * min(size) ** 2 / 4  # the originals


def test_settings_are_said(config, segmentation):
    config.data.mixup_alpha, config.data.cutmix_alpha, config.data.augment_repeats = 0.2, 1.0, 4
    assert get_task(config.task).describe_augmentation(config) == (
        "Inception crop of area 0.08 to 1, aspect 0.75 to 1.33 · flip · jitter of brightness 0.4, contrast 0.4, "
        "saturation 0.4, hue 0.1 · TrivialAugmentWide · erasing 0.5 with the mean colour · MixUp 0.2 or CutMix 1, one "
        "of them a batch · 4 versions of an image in a batch · label smoothing 0.1 (not in the percentages)"
    )
    config.data.auto_augment, config.data.train_crop, config.data.crop_padding = "timm_randaugment", "pad", 8
    assert "pad 8 and crop · flip" in get_task(config.task).describe_augmentation(config)
    assert "timm's RandAugment: 2 ops of magnitude 9 ± 0.5" in get_task(config.task).describe_augmentation(config)
    assert (
        get_task(segmentation.task).describe_augmentation(segmentation)
        == "scale 0.5 to 2, in steps of 0.25 · crop 48×80 · flip"
    )


def test_mistakes_are_explained_before_the_work(config, tmp_path):
    with pytest.raises(ConfigError, match=r"--output must be the name of a \.png file; found 'x\.jpg'"):
        preview(config, "x.jpg")
    with pytest.raises(ConfigError, match=r"there is no folder .*absent"):
        preview(config, tmp_path / "absent" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.png cannot be written"):
        preview(config, tmp_path / "folder.png")
    with pytest.raises(ConfigError, match="The run has 5 steps, so --step must be at most 4; found 5"):
        preview(config, tmp_path / "x.png", step=5)
    config.data.train_split = "val"
    with pytest.raises(DataError, match="has no split 'val'"):
        preview(config, tmp_path / "x.png")
    config.data.archive = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        preview(config, tmp_path / "x.png")
    config.data.random_erasing = 2.0
    with pytest.raises(ConfigError, match=r"config\.data\.random_erasing must be from 0 to 1"):
        preview(config, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def _here(*arguments):
    """The command inside this process."""

    def door():
        preview_module.define_flags()
        cli.run(preview_module.main)

    return scripts.run(door, *arguments)


def test_the_command(photos, tmp_path):
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "tfds"), "JAX_PLATFORMS": "cpu"}
    recipe, data = "--config=configs/cls_image_folder.py:smoke", f"--config.data.archive={photos}"
    output = f"--output={tmp_path / 'sheet.png'}"
    options = ("--config.data.cutmix_alpha=1", "--num_images=6", "--step=1")
    command = [sys.executable, "-m", "flax_mnv2.tools.preview", recipe, data, output, *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"written: {tmp_path / 'sheet.png'}"
    assert re.search(r"^train: 18 images, the rest of train\n", result.stdout, re.MULTILINE)
    assert re.search(r"class +train +val\n", result.stdout)
    config = _recipe(photos, tmp_path / "tfds")
    config.data.cutmix_alpha = 1.0
    sheet = _read(tmp_path / "sheet.png")
    for one in seen_examples(config, get_task(config.task).load_dataset(config.data), step=1, num_images=6):
        assert _contains(sheet, one.image.repeat(5, 0).repeat(5, 1))  # 32 pixels are drawn as 160

    absent = _here(recipe, "--config.data.archive=/absent", output)
    assert absent.returncode == 2
    assert absent.stderr.startswith("error: ")
    assert "Traceback" not in absent.stderr


def _recipe(photos, data_dir):
    from configs.cls_image_folder import get_config

    config = get_config("smoke")
    config.data.archive, config.data.data_dir = str(photos), str(data_dir)
    return config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/absent.py"], "Cannot load the recipe .*absent.py"),
        (["--config=configs/quickstart.py", "--step=-1"], "--step=-1: -1 is not a non-negative integer"),
        (["--config=configs/quickstart.py", "--num_images=0"], "--num_images=0: 0 is not an integer in the range"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    result = _here(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.match(f"error: .*{message}", result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def _read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def _contains(sheet, picture):
    """Whether a picture lies somewhere in a sheet, pixel for pixel."""
    sheet, picture = (pixels.astype(np.uint32) @ np.uint32([1 << 16, 1 << 8, 1]) for pixels in (sheet, picture))
    height, width = picture.shape
    starts = np.ones((len(sheet) - height + 1, sheet.shape[1] - width + 1), bool)
    for column in range(0, width, max(1, width // 32)):  # where its first row may begin
        starts &= sheet[: starts.shape[0], column : column + starts.shape[1]] == picture[0, column]
    return any(
        np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in zip(*np.nonzero(starts), strict=True)
    )
