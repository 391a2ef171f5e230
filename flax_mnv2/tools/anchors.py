"""Finds anchors for the boxes of a detection run's training images, and prints them for its config:

  python -m flax_mnv2.tools.anchors --config configs/det_bccd.py --config.data.archive=bccd_voc.tar --num_anchors 9

Each anchor stands on the map of its size; a map that gets none keeps its own. The table has the fraction of boxes with
an anchor of IoU 0.5, without which a box is learnt from its best anchor alone, before and after, and by class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.anchor_fitting import best_iou, box_sizes, fit_anchors, on_maps
from flax_mnv2.errors import ConfigError, needs_extra
from flax_mnv2.tasks.registry import get_task

with needs_extra("train", __name__):
    import ml_collections
    from absl import flags
    from ml_collections import config_flags

    from flax_mnv2.data.datasets.records import ExampleSource
    from flax_mnv2.training import cli
    from flax_mnv2.training.config.checks import check_config

MAX_BOXES = 20_000  # that are looked at: a minute's work
_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class Fit:
    """Anchors for some boxes; ``before`` and ``after`` are the IoU of each box with its best anchor, (n,) float."""

    spec: DetectionSpec
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    num_before: int  # anchors of an image
    num_after: int


def fit(config: ml_collections.ConfigDict, *, num_anchors: int) -> tuple[Fit, tuple[str, ...]]:
    """Returns anchors for the training boxes of a checked config, and the names of the classes.

    Raises a ConfigError where the job is not detection, a DataError where the data cannot be opened.
    """
    if config.task != "detection":
        raise ConfigError(f"config.task is {config.task!r}, but only 'detection' has anchors. Give such a recipe.")
    task_class = get_task(config.task)
    dataset = task_class.load_dataset(config.data)
    boxes, labels = read_boxes(dataset.source(config.data.train_split))
    model, size = task_class.for_training(config, dataset.labels).model, tuple(config.data.image_size)
    anchors = on_maps(fit_anchors(box_sizes(boxes, size), num_anchors, seed=config.seed), model.spec)
    spec = model.spec.replace(anchors=anchors)
    before = model.anchors(size)
    after = model.clone(config=model.config.replace(detection=spec)).anchors(size)
    ious = (best_iou(boxes, each) for each in (before, after))
    return Fit(spec, labels, *ious, len(before), len(after)), dataset.labels


def read_boxes(source: ExampleSource) -> tuple[np.ndarray, np.ndarray]:
    """Returns corners (n, 4) and labels (n,) of a split, without what is ignored; of many some images'."""
    boxes, labels, found = [], [], 0
    for index in np.random.default_rng(0).permutation(len(source)):
        objects = source[int(index)]["objects"]
        kept = ~objects["ignored"]
        boxes.append(objects["bbox"][kept])
        labels.append(objects["label"][kept])
        found += len(boxes[-1])
        if found >= MAX_BOXES:
            break
    return np.concatenate(boxes), np.concatenate(labels)


def table(found: Fit, names: Sequence[str]) -> list[str]:
    """Returns the fractions of boxes that anchors reach, as lines."""
    rows = [("all", np.ones(len(found.labels), bool))]
    rows += [(name, found.labels == index) for index, name in enumerate(names)]
    lines = [f"{'boxes with an anchor of IoU 0.5':<32}{'boxes':>8}{'before':>9}{'after':>9}"]
    for name, chosen in rows:
        if chosen.any():
            fractions = (f"{np.mean(iou[chosen] >= _IOU):.1%}" for iou in (found.before, found.after))
            lines.append(f"{name[:31]:<32}{chosen.sum():>8,}" + "".join(f"{fraction:>9}" for fraction in fractions))
    return [*lines, f"{'anchors of an image':<40}{found.num_before:>9,}{found.num_after:>9,}"]


def as_flag(spec: DetectionSpec) -> str:
    """Returns the anchors as the command line takes them, to four digits."""
    rounded = tuple(tuple(tuple(round(side, 4) for side in kind) for kind in kinds) for kinds in spec.anchors)
    return f'--config.detection.anchors="{rounded}"'


def define_flags() -> None:
    """Defines the command line; called by the command alone, since flags are global."""
    config_flags.DEFINE_config_file("config", None, "Recipe whose training boxes are looked at.", lock_config=True)
    flags.DEFINE_integer("num_anchors", 9, "Anchors to find, over all maps.", lower_bound=1, upper_bound=100)
    flags.mark_flags_as_required(["config"])


def main(_: Sequence[str]) -> None:
    """Prints the table, and the anchors as a field of the config."""
    values = flags.FLAGS
    check_config(values.config)
    found, names = fit(values.config, num_anchors=values.num_anchors)
    print("\n".join(table(found, names)))
    print(as_flag(found.spec))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
