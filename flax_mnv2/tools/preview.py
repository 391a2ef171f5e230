"""Shows training images as the network gets them, beside the originals, as one PNG:

  python -m flax_mnv2.tools.preview --config configs/cls_imagenet.py:1.0_224,torchvision_v2 \\
    --config.data.archive=FOLDER --output preview.png

Any field of the config can be set as for train.py. The images are those of --step and, where its batch is smaller than
--num_images, of the steps after it: crop, flip, colours, policy, erasing, MixUp and CutMix are the run's own.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from flax_mnv2.data.datasets.load import ExampleSource
from flax_mnv2.data.decode import decode_image
from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.registry import Dataset, load_dataset, make_train_task
from flax_mnv2.training import cli
from flax_mnv2.training.config.checks import check_config, check_parts
from flax_mnv2.training.config.durations import in_steps
from flax_mnv2.visualize import Panel, class_color, overlay_mask, save_contact_sheet, share_text

InputFunction = Callable[[dict[str, np.ndarray], jax.Array], tuple[jax.Array, jax.Array]]

MAX_IMAGES = 512  # a picture of more cannot be looked at


@dataclasses.dataclass(frozen=True)
class Seen:
    """A training example as the network sees it.

    Attributes:
      step: the step that sees it, from 0.
      index: its position in the training split.
      image: (h, w, 3) uint8; what the network gets, before normalisation.
      target: of classification (C,) float32, the share of each class before label smoothing; of segmentation (h, w)
        uint8.
    """

    step: int
    index: int
    image: np.ndarray
    target: np.ndarray


def seen_examples(config: ml_collections.ConfigDict, dataset: Dataset, *, step: int, num_images: int) -> list[Seen]:
    """The first examples that a training run sees from a step on, in their order.

    Args:
      config: of the run; checked.
      dataset: what ``load_dataset`` gives for it.
      step: from 0.
      num_images: how many.

    Raises:
      ConfigError: the batch cannot be divided, or the run ends before ``step``.
      DataError: there is no training split, or an image cannot be decoded.
    """
    check_parts(config, num_devices=1)
    num_steps = in_steps(config, len(dataset.source(config.data.train_split))).num_steps
    if step >= num_steps:
        raise ConfigError(f"The run has {num_steps} steps, so --step must be at most {num_steps - 1}; found {step}.")
    config = config.copy_and_resolve_references()
    config.label_smoothing = 0.0  # shares are shown as they are
    config.data.num_workers = config.data.num_threads = config.data.prefetch_buffer_size = 0  # no batch in advance
    task = make_train_task(config, dataset.labels)
    inputs = _input_function(task) if isinstance(task, ClassificationTask) else None
    examples: list[Seen] = []
    with task.train_batches(dataset, start_step=step) as batches:
        while len(examples) < num_images and step < num_steps:
            examples += _of_step(config, inputs, next(batches), step, num_images - len(examples))
            step += 1
    return examples


def _input_function(task: ClassificationTask) -> InputFunction:
    """Some rows of a batch and their key → pixels (N, h, w, 3) uint8 and targets (N, C) float32."""

    def inputs(batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, targets = task.train_inputs(batch, key)
        mean, std = (jnp.asarray(value, jnp.float32) for value in (task.processor.image_mean, task.processor.image_std))
        pixels = jnp.round((images * std[None, None, None] + mean[None, None, None]) / task.processor.rescale_factor)
        return jnp.clip(pixels, 0, 255).astype(jnp.uint8), targets

    return jax.jit(inputs)


def _of_step(
    config: ml_collections.ConfigDict,
    inputs: InputFunction | None,
    batch: dict[str, np.ndarray],
    step: int,
    limit: int,
) -> list[Seen]:
    """The first examples of a step's batch, at most ``limit``; mixed by ``inputs``, if it is given."""
    images, targets = batch["image"], batch["label"]
    if inputs is not None:
        images, targets = _mixed(config, inputs, batch, step, limit)
    rows = zip(batch["index"][:limit], images[:limit], targets[:limit], strict=True)
    return [Seen(step, int(index), image, target) for index, image, target in rows]


def _mixed(
    config: ml_collections.ConfigDict, inputs: InputFunction, batch: dict[str, np.ndarray], step: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """What ``inputs`` gives for at least the first ``limit`` rows of a batch.

    As in ``steps.make_train_step``: with accumulation, part j has the rows j, j + count, … and a key of its own. What
    comes after the last pair of each part that is asked for changes nothing, and is left out.
    """
    count = config.gradient_accumulation_steps
    num_rows = min(-(-limit // (2 * count)) * 2 * count, len(batch["image"]))
    step_key = jax.random.fold_in(jax.random.key(config.seed), step)
    parts = []
    for part in range(count):
        key = step_key if count == 1 else jax.random.fold_in(step_key, part)
        parts.append(inputs({name: batch[name][part:num_rows:count] for name in ("image", "label")}, key))
    images, targets = (np.stack(values, axis=1) for values in zip(*parts, strict=True))
    return images.reshape(num_rows, *images.shape[2:]), targets.reshape(num_rows, -1)


def describe_augmentation(config: ml_collections.ConfigDict) -> str:
    """The settings of a config that change training images, in words."""
    data = config.data
    flip = ["flip"] if data.flip else ["no flip"]
    if config.task == "segmentation":
        height, width = data.crop_size
        how = f"in steps of {data.scale_step:g}" if data.scale_step else "any between"
        return " · ".join([f"scale {data.min_scale:g} to {data.max_scale:g}, {how}", f"crop {height}×{width}", *flip])
    if data.train_crop == "pad":
        parts = [f"pad {data.crop_padding} and crop", *flip]
    else:
        area, aspect = (f"{low:.3g} to {high:.3g}" for low, high in (data.crop_area, data.crop_aspect))
        parts = [f"Inception crop of area {area}, aspect {aspect}", *flip]
    if any(data.color_jitter):
        names = ("brightness", "contrast", "saturation", "hue")
        parts.append("jitter of " + ", ".join(f"{n} {v:.3g}" for n, v in zip(names, data.color_jitter, strict=True)))
    if data.auto_augment == "trivial_augment_wide":
        parts.append("TrivialAugmentWide")
    elif data.auto_augment:
        deviation = f" ± {data.randaugment_magnitude_std:g}" if data.auto_augment == "timm_randaugment" else ""
        name = "timm's RandAugment" if deviation else "RandAugment"
        parts.append(f"{name}: {data.randaugment_ops} ops of magnitude {data.randaugment_magnitude:g}{deviation}")
    if data.random_erasing:
        fill = {"constant": "the mean colour", "pixel": "noise"}[data.random_erasing_fill]
        parts.append(f"erasing {data.random_erasing:g} with {fill}")
    mixing = [
        f"{name} {alpha:g}" for name, alpha in (("MixUp", data.mixup_alpha), ("CutMix", data.cutmix_alpha)) if alpha
    ]
    if mixing:
        parts.append(" or ".join(mixing) + ", one of them a batch" * (len(mixing) == 2))
    if data.augment_repeats > 1:
        parts.append(f"{data.augment_repeats} versions of an image in a batch")
    if config.label_smoothing:
        parts.append(f"label smoothing {config.label_smoothing:g} (not in the shares)")
    return " · ".join(parts)


def preview(
    config: ml_collections.ConfigDict,
    output: str | pathlib.Path,
    *,
    num_images: int = 24,
    step: int = 0,
    recipe: str = "",
) -> None:
    """Writes the contact sheet.

    Args:
      config: as ``run_config.default_config`` describes.
      output: the PNG; its folder exists.
      num_images: how many examples.
      step: of the run, from 0.
      recipe: name for the title.

    Raises:
      UserError: bad config or data; the file cannot be written.
    """
    check_config(config)
    output = _writable(output)
    dataset = load_dataset(config.task, config.data)
    examples = seen_examples(config, dataset, step=step, num_images=num_images)
    source, steps = dataset.source(config.data.train_split), sorted({example.step for example in examples})
    height, width = examples[0].image.shape[:2]
    title = (
        f"{recipe or dataset.name}, seed {config.seed}, step{'s' * (len(steps) > 1)} "
        + " to ".join(map(str, dict.fromkeys((steps[0], steps[-1])))),
        f"{dataset.name} {config.data.train_split}: {len(examples)} of {len(steps) * config.batch_size} images, "
        f"{height}×{width}",
        describe_augmentation(config),
    )
    sheet = _segmentation_sheet if config.task == "segmentation" else _classification_sheet
    try:
        save_contact_sheet(output, title=title, **sheet(config, source, examples, dataset.labels))
    except OSError as error:
        raise DataError(f"Cannot write {output}: {error.strerror or error}.") from None


def _writable(output: str | pathlib.Path) -> pathlib.Path:
    """The path, if a PNG can be put there; checked before the work."""
    path = pathlib.Path(output).expanduser()
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--output must be the name of a .png file; found {str(output)!r}.")
    if not path.parent.is_dir():
        raise ConfigError(f"--output: there is no folder {path.parent}; make it first, or name another file.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--output: {path} cannot be written. Name another file.")
    return path


def _classification_sheet(
    config: ml_collections.ConfigDict, source: ExampleSource, examples: Sequence[Seen], labels: Sequence[str]
) -> dict[str, Any]:
    """Originals with file names above, inputs with labels below; shares where several labels have one."""
    tiles = []
    for example in examples:
        stored = source[example.index]
        truth = stored["label"]
        present = sorted(np.flatnonzero(example.target), key=lambda index: index != truth)  # its own label first
        caption = [f"{share_text(example.target[index])} {labels[index]}" for index in present]
        caption = caption if len(present) > 1 else [labels[truth]]
        original = Panel(decode_image(stored["image"]), (pathlib.PurePath(stored["file_name"]).name,))
        tiles.append((original, Panel(example.image, tuple(caption))))
    return {"tiles": tiles, "rows": ("original", "network input")}


def _segmentation_sheet(
    config: ml_collections.ConfigDict, source: ExampleSource, examples: Sequence[Seen], labels: Sequence[str]
) -> dict[str, Any]:
    """Originals with names, inputs, inputs under their masks; the legend has the classes that occur."""
    ignore_label, tiles = config.data.ignore_label, []
    for example in examples:
        stored = source[example.index]
        void = float(np.mean(example.target == ignore_label))
        painted = overlay_mask(example.image, example.target, labels, ignore_label=ignore_label)
        original = Panel(decode_image(stored["image"]), (stored["image_id"],))
        tiles.append((original, Panel(example.image), Panel(painted, (f"void {share_text(void)}",))))
    counts = np.bincount(np.concatenate([example.target.ravel() for example in examples]), minlength=256)
    names = {**dict(enumerate(labels)), ignore_label: "void"}
    legend = [
        (class_color(index, ignore_label=ignore_label), names[index], counts[index] / counts.sum())
        for index in map(int, np.flatnonzero(counts))
    ]
    return {"tiles": tiles, "rows": ("original", "network input", "with its mask"), "legend": legend}


def define_flags() -> None:
    """Defines the command line; called by the command alone, since flags are global."""
    config_flags.DEFINE_config_file("config", None, "Recipe whose images are shown.", lock_config=True)
    flags.DEFINE_string("output", "preview.png", "PNG to write.")
    flags.DEFINE_integer("num_images", 24, "Training images to show.", lower_bound=1, upper_bound=MAX_IMAGES)
    flags.DEFINE_integer("step", 0, "Training step whose images are shown, from 0.", lower_bound=0)
    flags.mark_flags_as_required(["config"])


def main(_: Sequence[str]) -> None:
    """Writes the sheet and says where."""
    values = flags.FLAGS
    recipe = config_flags.get_config_filename(values["config"])
    preview(values.config, values.output, num_images=values.num_images, step=values.step, recipe=recipe)
    print(f"written: {values.output}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
