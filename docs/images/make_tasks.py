"""Makes docs/images/tasks.png: drawn shapes classified, segmented and detected by networks trained on drawn shapes.

    python docs/images/make_tasks.py runs/picture

trains three networks of width 0.35 from random weights, 400 steps each, in the folder named, and lays their predictions
on images that no network was trained on side by side. Nothing is downloaded. Ten minutes on two CPU cores. The images
are chosen; on whole validation splits top-1 is 0.958, mean IoU 0.907 and AP50 0.560.
"""

import pathlib
import sys

import cv2
import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from flax_mnv2 import MobileNetV2ImageProcessor, from_pretrained, make_inference_fn
from flax_mnv2.data.datasets.shapes import SHAPES_LABELS, draw_example
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.loop import train

STEPS, SIDE = 400, 128
COLOURS = ("#000000", "#e6194b", "#3cb44b", "#4363d8")
OUTPUT = pathlib.Path(__file__).with_name("tasks.png")


def draw(split: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint8 (H, W, 3), and its mask, uint8 (H, W)."""
    return draw_example(np.random.default_rng([1, split, index]))


def boxes_of(mask: np.ndarray) -> list[tuple[int, int, int, int, int]]:
    """Returns label, left, top, width and height of each connected region of a class, in pixels."""
    found = []
    for label in range(1, len(SHAPES_LABELS)):
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8))
        found += [(label, *map(int, row[:4])) for row in stats[1:] if row[4] > 60]
    return found


def write_photos(folder: pathlib.Path) -> None:
    """Writes images of one kind of shape as folder/SPLIT/CLASS/INDEX.png."""
    for split, (name, count) in enumerate((("train", 1200), ("val", 200))):
        for index in range(count):
            image, mask = draw(split, index)
            labels = {label for label, *_ in boxes_of(mask)}
            if len(labels) == 1:
                place = folder / name / SHAPES_LABELS[labels.pop()]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{index}.png")


def write_boxes(folder: pathlib.Path) -> None:
    """Writes a data set in YOLO's layout."""
    for split, (name, count) in enumerate((("train", 800), ("val", 100))):
        for kind in ("images", "labels"):
            (folder / kind / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = draw(split, index)
            height, width = mask.shape
            Image.fromarray(image).save(folder / "images" / name / f"{index}.png")
            lines = [
                f"{label - 1} {(x + w / 2) / width:.5f} {(y + h / 2) / height:.5f} {w / width:.5f} {h / height:.5f}"
                for label, x, y, w, h in boxes_of(mask)
            ]
            (folder / "labels" / name / f"{index}.txt").write_text("\n".join(lines))
    names = ", ".join(SHAPES_LABELS[1:])
    (folder / "data.yaml").write_text(f"names: [{names}]\ntrain: images/train\nval: images/val\n")


def config_of(task: str, place: pathlib.Path):
    """Returns the config of one of the three runs."""
    config = default_config(task)
    config.data.data_dir = str(place / "prepared")
    config.num_steps = config.eval_every_steps = config.checkpoint.every_steps = STEPS
    config.batch_size = config.eval.batch_size = 16
    config.model.depth_multiplier, config.model.initializer_range = 0.35, 0.1
    config.model.batch_norm_momentum = 0.95
    config.optimizer.name, config.optimizer.learning_rate = "adam", 0.004
    if task == "segmentation":
        config.data.dataset, config.data.crop_size = "shapes_segmentation", (96, 96)
        config.data.min_scale, config.data.max_scale, config.data.scale_step = 0.75, 1.25, 0.0
        config.model.output_stride, config.model.head_batch_norm_momentum = 8, 0.95
    elif task == "classification":
        config.data.dataset, config.data.archive = "image_folder", str(place / "photos")
        config.data.train_size = config.data.eval_resize = config.data.eval_crop = 96
        config.data.train_crop = config.data.eval_preparation = "whole"
        config.model.classifier_dropout_prob = 0.1
    else:
        config.data.dataset, config.data.archive = "yolo", str(place / "boxes")
        config.data.image_size, config.data.crop = (SIDE, SIDE), "none"
        config.optimizer.clip_norm, config.model.head_batch_norm_momentum = 10.0, 0.95
    return config


def outputs_of(place: pathlib.Path, task: str, image: np.ndarray, side: int) -> tuple:
    """Returns the config and the processor of a run that has ended, and what its network gives for an image."""
    model, variables = from_pretrained(place / task / "checkpoints" / f"step_{STEPS}")
    processor = MobileNetV2ImageProcessor(do_center_crop=False, size={"height": side, "width": side})
    pixels = processor(image, return_tensors="jax").pixel_values
    return model.config, processor, make_inference_fn(model, variables)(pixels)


def show_class(axes: plt.Axes, place: pathlib.Path, image: np.ndarray) -> None:
    """Shows an image below its likeliest class and the probability."""
    config, _, outputs = outputs_of(place, "classification", image, 96)
    probabilities = np.asarray(jax.nn.softmax(outputs.logits[0]))
    best = int(probabilities.argmax())
    axes.imshow(image)
    axes.set_title(f"{config.id2label[best]} {probabilities[best]:.2f}", fontsize=9)


def show_mask(axes: plt.Axes, place: pathlib.Path, image: np.ndarray) -> None:
    """Shows an image with the class of each pixel over it."""
    _, processor, outputs = outputs_of(place, "segmentation", image, 96)
    [labels] = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])
    colours = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS], np.uint8)
    labels = np.asarray(labels)
    axes.imshow(np.where((labels > 0)[..., None], image // 3 + colours[labels] // 3 * 2, image))
    axes.set_title("segmented", fontsize=9)


def show_boxes(axes: plt.Axes, place: pathlib.Path, image: np.ndarray) -> None:
    """Shows an image with the boxes that were found, in the colours of their classes."""
    config, processor, outputs = outputs_of(place, "detection", image, SIDE)
    [found] = processor.post_process_object_detection(outputs, threshold=0.35, target_sizes=[image.shape[:2]])
    axes.imshow(image)
    axes.set_title("detected", fontsize=9)
    for label, score, (left, top, right, bottom) in zip(found["labels"], found["scores"], found["boxes"], strict=True):
        colour = COLOURS[int(label) + 1]
        axes.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=2))
        text = f"{config.id2label[int(label)]} {float(score):.2f}"
        axes.text(left + 2, top + 2, text, fontsize=6, color="white", va="top", clip_on=True)


def picture(place: pathlib.Path) -> None:
    """Writes the picture: a row of images, and on each what a network says."""
    figure, row = plt.subplots(1, len(EXAMPLES), figsize=(9.6, 1.9), dpi=110)
    for axes, (show, index) in zip(row, EXAMPLES, strict=True):
        axes.axis("off")
        show(axes, place, draw(1, index)[0])
    figure.tight_layout(pad=0.3)
    figure.savefig(OUTPUT)
    Image.open(OUTPUT).convert("RGB").quantize(255).save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1000:.0f} KB")


EXAMPLES = ((show_class, 0), (show_class, 3), (show_mask, 24), (show_mask, 37), (show_boxes, 9), (show_boxes, 35))


def main() -> None:
    """Draws, trains what is not trained yet, and writes the picture."""
    place = pathlib.Path(sys.argv[1])
    write_photos(place / "photos")
    write_boxes(place / "boxes")
    for task in ("classification", "segmentation", "detection"):
        train(config_of(task, place), place / task)
    picture(place)


if __name__ == "__main__":
    main()
