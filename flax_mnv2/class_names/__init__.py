"""Names of the classes of ImageNet, PASCAL VOC and COCO, for weights that do not bring their own."""

from __future__ import annotations

import functools
import importlib.resources

from flax_mnv2.class_names.coco import coco_labels

# The class order of the VOC 2012 development kit; the index is the pixel value.
VOC_LABELS = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
BACKGROUND = "background"  # what TF-slim's and Hugging Face's classifiers have at 0, before ImageNet's 1000 classes


def usual_names(num_labels: int, task: str) -> dict[int, str] | None:
    """Returns the names of a head with so many classes.

    They are 1000 or 1001 of ImageNet, 21 of VOC, 80 or 90 of COCO; None of others.
    """
    if task == "detection":
        return coco_labels(num_labels) or None
    names: tuple[str, ...] = ()
    if task == "segmentation":
        names = VOC_LABELS
    elif task == "classification":
        names = imagenet_labels()
        names = names if num_labels == len(names) else (BACKGROUND, *names)
    return dict(enumerate(names)) if num_labels == len(names) else None


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """Returns ImageNet's 1000 names, WordNet's lemmas in the order of its classes; some stand there twice."""
    text = importlib.resources.files(__package__).joinpath("imagenet.txt").read_text("utf-8")
    return tuple(text.splitlines())
