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

import jax
import numpy as np

from flax_mnv2.devices import check_devices
from flax_mnv2.errors import ConfigError, DataError, needs_extra
from flax_mnv2.tasks.base import Batch
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.visualize.sheets import save_contact_sheet

with needs_extra("train", __name__):
    import ml_collections
    from absl import flags
    from ml_collections import config_flags

    from flax_mnv2.data.datasets.records import Dataset
    from flax_mnv2.training import cli
    from flax_mnv2.training.config.checks import check_config, check_parts
    from flax_mnv2.training.config.defaults import in_steps

InputFunction = Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]

MAX_IMAGES = 512  # a picture of more cannot be looked at


@dataclasses.dataclass(frozen=True)
class Seen:
    """A training example as the network sees it: its step and its position in the training split, from 0.

    ``image`` is (h, w, 3) uint8, before normalisation; ``target`` as ``Task.seen_inputs`` gives it: of classification
    (C,) float32, the fraction of each class before label smoothing; of segmentation (h, w) uint8.
    """

    step: int
    index: int
    image: np.ndarray
    target: np.ndarray


def seen_examples(config: ml_collections.ConfigDict, dataset: Dataset, *, step: int, num_images: int) -> list[Seen]:
    """Returns the first examples that a run with this checked config sees from a step on, in their order.

    Raises a ConfigError where the batch cannot be divided or the run ends before ``step``, a DataError where there is
    no training split or an image cannot be decoded.
    """
    check_parts(config, num_devices=1)
    num_steps = in_steps(config, len(dataset.source(config.data.train_split))).num_steps
    if step >= num_steps:
        raise ConfigError(f"The run has {num_steps} steps, so --step must be at most {num_steps - 1}; found {step}.")
    config = config.copy_and_resolve_references()
    if "label_smoothing" in config:
        config.label_smoothing = 0.0  # the fractions of mixed labels are shown as they are
    config.data.num_workers = config.data.num_threads = config.data.prefetch_buffer_size = 0  # no batch in advance
    task = get_task(config.task).for_training(config, dataset.labels)
    inputs = jax.jit(task.seen_inputs)
    examples: list[Seen] = []
    with task.train_batches(dataset, start_step=step) as batches:
        while len(examples) < num_images and step < num_steps:
            batch, limit = next(batches), num_images - len(examples)
            images, targets = _seen(config, inputs, {name: batch[name] for name in task.batch_fields}, step, limit)
            rows = zip(batch["index"][:limit], images[:limit], targets[:limit], strict=True)
            examples += [Seen(step, int(index), image, target) for index, image, target in rows]
            step += 1
    return examples


def _seen(
    config: ml_collections.ConfigDict, inputs: InputFunction, batch: Batch, step: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what ``inputs`` gives for at least the first ``limit`` rows of a batch.

    As in ``step.make_train_step``: with accumulation, part j has the rows j, j + count, … and a key of its own. What
    comes after the last pair of each part that is asked for changes nothing, and is left out.
    """
    count = config.gradient_accumulation_steps
    num_rows = min(-(-limit // (2 * count)) * 2 * count, len(batch["image"]))
    step_key = jax.random.fold_in(jax.random.key(config.seed), step)
    parts = []
    for part in range(count):
        key = step_key if count == 1 else jax.random.fold_in(step_key, part)
        parts.append(inputs({name: values[part:num_rows:count] for name, values in batch.items()}, key))
    images, targets = (np.stack(values, axis=1) for values in zip(*parts, strict=True))
    return images.reshape(num_rows, *images.shape[2:]), targets.reshape(num_rows, *targets.shape[2:])


def preview(
    config: ml_collections.ConfigDict,
    output: str | pathlib.Path,
    *,
    num_images: int = 24,
    step: int = 0,
    recipe: str = "",
) -> list[str]:
    """Writes the contact sheet of ``num_images`` examples from a step on; ``recipe`` is a name for its title.

    Returns what was read, and how often each class occurs in it, as lines.
    """
    check_config(config)
    output = _writable(output)
    job = get_task(config.task)
    dataset = job.load_dataset(config.data)
    examples = seen_examples(config, dataset, step=step, num_images=num_images)
    source, steps = dataset.source(config.data.train_split), sorted({example.step for example in examples})
    height, width = examples[0].image.shape[:2]
    title = (
        f"{recipe or dataset.name}, seed {config.seed}, step{'s' * (len(steps) > 1)} "
        + " to ".join(map(str, dict.fromkeys((steps[0], steps[-1])))),
        f"{dataset.name} {config.data.train_split}: {len(examples)} of {len(steps) * config.batch_size} images, "
        f"{height}×{width}",
        job.describe_augmentation(config),
    )
    sheet = job.for_training(config, dataset.labels).contact_sheet(source, examples)
    try:
        save_contact_sheet(output, title=title, **sheet)
    except OSError as error:
        raise DataError(f"Cannot write {output}: {error.strerror or error}.") from None
    return [*dataset.notes(), *dataset.histogram()]


def _writable(output: str | pathlib.Path) -> pathlib.Path:
    """Returns the path, if a PNG can be put there; checked before the work."""
    path = pathlib.Path(output).expanduser()
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--output must be the name of a .png file; found {str(output)!r}.")
    if not path.parent.is_dir():
        raise ConfigError(f"--output: there is no folder {path.parent}; make it first, or name another file.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--output: {path} cannot be written. Name another file.")
    return path


def define_flags() -> None:
    """Defines the command line; called by the command alone, since flags are global."""
    config_flags.DEFINE_config_file("config", None, "Recipe whose images are shown.", lock_config=True)
    flags.DEFINE_string("output", "preview.png", "PNG to write.")
    flags.DEFINE_integer("num_images", 24, "Training images to show.", lower_bound=1, upper_bound=MAX_IMAGES)
    flags.DEFINE_integer("step", 0, "Training step whose images are shown, from 0.", lower_bound=0)
    flags.mark_flags_as_required(["config"])


def main(_: Sequence[str]) -> None:
    """Writes the sheet and says where."""
    check_devices()
    values = flags.FLAGS
    recipe = config_flags.get_config_filename(values["config"])
    lines = preview(values.config, values.output, num_images=values.num_images, step=values.step, recipe=recipe)
    print("\n".join([*lines, f"written: {values.output}"]))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
