"""Every recipe loads, says what it must, and its shrunken variant trains."""

import importlib.util
import io
import pathlib
import re
import shlex
import sys
import unittest.mock

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from flax_mnv2 import VARIANTS, DetectionSpec
from flax_mnv2.data.augment.transform import make_train_transform
from flax_mnv2.tasks.detection import config as own_config
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.config.defaults import in_steps
from flax_mnv2.training.optimizer import configured_optimizer, make_schedule
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import configured_train_step

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def _load(path, variant="", *overrides):
    """The config as the scripts get it; ml_collections looks for overrides in ``sys.argv`` itself."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    arguments = ["test", f"--config={path}{':' if variant else ''}{variant}", *overrides]
    with unittest.mock.patch.object(sys, "argv", arguments):
        values(arguments)
    return values.config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_passes_the_checks(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    check_config(_load(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shrunken_recipe_loads_and_passes_the_checks(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    check_config(_load(path, "smoke"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_its_command_and_what_to_expect(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python train.py --config configs/{path.name}" in module.__doc__
    assert "Expected:" in module.__doc__


def test_voc_recipe_is_that_of_tf_deeplab():
    config = _load(ROOT / "configs" / "seg_voc.py")
    assert (config.batch_size, config.num_steps, config.data.crop_size) == (16, 30_000, (513, 513))
    assert (config.optimizer.learning_rate, config.optimizer.poly_power) == (0.007, 0.9)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 4e-5)
    assert (config.data.min_scale, config.data.max_scale, config.data.scale_step) == (0.5, 2.0, 0.25)
    assert config.model.head_batch_norm_momentum == 0.9997
    assert _load(ROOT / "configs" / "seg_voc.py", "aug").data.train_split == "trainaug"


@pytest.mark.parametrize(
    ("name", "variant"), [("cls_image_folder", "cifar10,int8"), ("seg_camvid", "int8"), ("det_bccd", "anchors,int8")]
)
def test_int8_goes_on_from_a_float_run_of_the_same_recipe(name, variant, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    path, without = ROOT / "configs" / f"{name}.py", variant.replace(",int8", "").replace("int8", "")
    plain, quantized = _load(path, without), _load(path, variant)
    check_config(quantized)
    assert (quantized.init_scope, quantized.freeze_batch_norm) == ("all", True)
    assert quantized.model.quantization.freeze_range_step < quantized.num_steps < plain.num_steps
    assert quantized.optimizer.learning_rate <= plain.optimizer.learning_rate / 10
    assert (quantized.model.quantization.scheme, plain.model.quantization.scheme) == ("int8", "")
    assert quantized.data.to_dict() == plain.data.to_dict()


@pytest.mark.parametrize("name", ["seg_voc", "seg_camvid"])
def test_plus_is_the_recipe_with_the_originals_branches_and_decoder(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    plain, plus = (_load(ROOT / "configs" / f"{name}.py", variant) for variant in ("", "plus"))
    check_config(plus)
    assert plus.model.deeplab.preset == "deeplab_v3plus"
    with plain.unlocked():
        plain.model.deeplab.preset = plus.model.deeplab.preset
    assert plus.to_dict() == plain.to_dict()


def test_the_pages_flags_for_own_data_are_the_camvid_recipe(monkeypatch):
    """The how-to shows CamVid by overrides of seg_voc alone; configs/seg_camvid.py records the same run."""
    monkeypatch.syspath_prepend(ROOT)
    text = (ROOT / "docs" / "how_to" / "segmentation.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^python train\.py --config configs/seg_voc\.py .*data\.archive.*$", text, re.M)
    overrides = [part for part in shlex.split(command) if part.startswith("--config.")]
    by_flags = _load(ROOT / "configs" / "seg_voc.py", "", *overrides)
    recorded = _load(ROOT / "configs" / "seg_camvid.py")
    recorded.data.archive, recorded.data.labels = by_flags.data.archive, by_flags.data.labels
    recorded.init_from = by_flags.init_from
    assert by_flags.to_dict() == recorded.to_dict()


def test_detection_recipes_are_those_of_their_sources(monkeypatch):
    """TF Object Detection API's ssdlite_mobilenet_v2_coco and ssdlite_mobilenet_edgetpu_320x320, and BCCD's anchors."""
    monkeypatch.syspath_prepend(ROOT)
    tf, focal = (_load(ROOT / "configs" / "det_coco.py", variant) for variant in ("tf", "focal"))
    optimizer = tf.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.decay_rate) == ("rmsprop", 0.004, 0.95)
    assert (optimizer.decay_every_steps, optimizer.epsilon, optimizer.momentum) == (800_720, 1.0, 0.9)
    assert (tf.batch_size, tf.num_steps, tf.data.crop, tf.data.crop_whole) == (24, 200_000, "ssd", 0.15)
    assert own_config.spec_of(tf) == DetectionSpec()
    rate = make_schedule(focal.optimizer, focal.num_steps, batch_size=focal.batch_size)
    assert (float(rate(0)), float(rate(2_000))) == (pytest.approx(0.13333), pytest.approx(0.8))
    assert (focal.batch_size, focal.num_steps, focal.model.batch_norm_momentum) == (512, 400_000, 0.97)
    spec = own_config.spec_of(focal)
    assert (spec.focal_alpha, spec.focal_gamma, spec.class_bias, spec.box_loss_weight) == (0.75, 2.0, -4.6, 0.25)
    bccd = _load(ROOT / "configs" / "det_bccd.py", "anchors")
    check_config(bccd)
    model = get_task("detection").for_training(bccd, ("Platelets", "RBC", "WBC")).model
    assert len(model.anchors((320, 320))) == 5_328


CLASSIFIER_RECIPES = ("paper", "torchvision_v2", "timm_rmsprop", "sgd_cosine", "tiny")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_size_has_a_config(name):
    size = name.removeprefix("mobilenet_v2_")
    config = _load(ROOT / "configs" / "cls_imagenet.py", size)
    check_config(config)
    multiplier, pixels = size.split("_")
    assert (config.model.depth_multiplier, config.data.eval_crop) == (float(multiplier), int(pixels))
    assert config.data.eval_resize == round(int(pixels) / 0.875)


def test_an_unknown_size_or_recipe_is_explained():
    for argument in ("1.1_224", "papr", "paper,tiny", "1.0_224,0.5_96"):
        with pytest.raises(Exception, match=r"SIZE is one of 1\.4_224, .*RECIPE one of paper, torchvision_v2"):
            _load(ROOT / "configs" / "cls_imagenet.py", argument).keys()


@pytest.mark.parametrize("recipe", CLASSIFIER_RECIPES[:3])
def test_one_step_of_each_recipe(recipe, monkeypatch):
    """The recipe's own step and transform, on four images of 32 pixels; torchvision's has all that the others have."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    config = _load(ROOT / "configs" / "cls_imagenet.py", f"0.35_96,{recipe}")
    config.data.train_size = 32
    config.batch_size = 4
    check_config(config)
    transform = make_train_transform(config.data)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    images = np.stack([transform(buffer.getvalue(), np.random.default_rng(seed)) for seed in range(4)])
    config = in_steps(config, 1000)
    parallel = make_parallel("jit", jax.devices()[:1])
    task = get_task(config.task).for_training(config, tuple(map(str, range(10))), axis_name=parallel.axis_name)
    schedule, optimizer = configured_optimizer(config)
    step = parallel.compile_train_step(configured_train_step(config, task, schedule, optimizer, parallel))
    create = jax.jit(lambda variables: TrainState.create(variables, optimizer, ema=config.ema.decay > 0))
    variables = task.init_variables(0)
    before = jax.tree.map(np.array, variables["params"])  # a copy: the steps write where the variables are
    state = parallel.put_state(create(variables))
    batch = parallel.put_batch({"image": images, "label": np.arange(4, dtype=np.int32)})
    for _ in range(2):  # the first step of a warm-up may have no rate
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"])
    # What a warm-up begins with is too little to show in a scale, which is 1.
    unseen = "scale" if metrics["learning_rate"] < 1e-6 else "none"
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(state.params), strict=True)
    moved = [not np.array_equal(a, b) for (path, a), b in pairs if unseen not in jax.tree_util.keystr(path)]
    assert np.mean(moved) > 0.9
    assert (state.ema is not None) == (recipe in ("paper", "torchvision_v2", "timm_rmsprop"))


def test_recipes_are_those_of_their_sources():
    paper, torchvision, timm, cosine = (
        _load(ROOT / "configs" / "cls_imagenet.py", recipe) for recipe in CLASSIFIER_RECIPES[:4]
    )
    steps = in_steps(paper, 1_281_167)
    assert (steps.optimizer.decay_every_steps, paper.optimizer.decay_rate, paper.optimizer.epsilon) == (2085, 0.98, 1.0)
    rate = make_schedule(steps.optimizer, steps.num_steps, batch_size=paper.batch_size)
    assert float(rate(0)) == pytest.approx(0.045 * 16)  # per 96 images
    rule = in_steps(torchvision, 1_281_167)
    schedule = make_schedule(rule.optimizer, rule.num_steps, batch_size=2048)
    assert float(schedule(rule.optimizer.warmup_steps)) == pytest.approx(1.0)  # 0.5 for 1024
    assert float(schedule(0)) == pytest.approx(0.01)
    assert (torchvision.data.train_size, torchvision.data.eval_resize, torchvision.ema.every_steps) == (176, 232, 32)
    assert torchvision.ema.decay == pytest.approx(1 - (1 - 0.99998) * 1024 * 32 / 600)
    assert (timm.data.auto_augment, timm.drop_path_rate, timm.optimizer.epsilon) == ("timm_randaugment", 0.2, 1e-3)
    rule = in_steps(timm, 1_281_167)
    schedule = make_schedule(rule.optimizer, rule.num_steps, batch_size=768)
    assert float(schedule(0)) == pytest.approx(1e-6, rel=1e-2)
    assert float(schedule(rule.optimizer.decay_every_steps * 2)) == pytest.approx(0.048 * 0.97**2, rel=1e-4)
    assert (cosine.batch_size, cosine.num_epochs, cosine.optimizer.learning_rate) == (256, 150.0, 0.05)
