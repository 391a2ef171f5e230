"""Makes docs/images/tasks.png: drawn shapes classified, segmented and detected by networks trained on drawn shapes.

    python docs/images/make_tasks.py runs/picture

trains three networks of width 0.35 from random weights, 400 steps each, in the folder named, and lays their predictions
on validation images that no network was trained on side by side. Nothing is downloaded. Ten minutes on two CPU cores.
"""

import pathlib
import sys

import cv2
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


def load(place: pathlib.Path, task: str):
    """Returns model, inference function and processor of a run that has ended."""
    model, variables = from_pretrained(place / task / "checkpoints" / f"step_{STEPS}")
    return model, make_inference_fn(model, variables)


def picture(place: pathlib.Path, examples: list[tuple[int, int, int]]) -> None:
    """Writes the picture: a row of images, and of each what the three networks say."""
    processor = MobileNetV2ImageProcessor(do_center_crop=False)
    titles = ("classified", "segmented", "detected")
    figure, rows = plt.subplots(1, 6, figsize=(9.6, 1.9), dpi=110)
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], np.uint8)
    for column, (task, index) in enumerate(
        (task, index) for task, kinds in zip(titles, examples, strict=True) for index in kinds
    ):
        image, axes = draw(1, index)[0], rows[column]
        axes.axis("off")
        kind = {"classified": "classification", "segmented": "segmentation", "detected": "detection"}[task]
        model, predict = load(place, kind)
        side = 96 if kind != "detection" else SIDE
        inputs = processor(image, size={"height": side, "width": side}, return_tensors="jax")
        outputs = predict(inputs.pixel_values)
        axes.set_title(task, fontsize=9)
        if kind == "classification":
            logits = np.asarray(outputs.logits[0], np.float64)
            probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            best = int(probabilities.argmax())
            axes.imshow(image)
            axes.set_title(f"{model.config.id2label[best]} {probabilities[best]:.2f}", fontsize=9)
        elif kind == "segmentation":
            [labels] = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])
            labels = np.asarray(labels)
            axes.imshow(np.where((labels > 0)[..., None], image // 3 + palette[labels] // 3 * 2, image))
        else:
            draw_boxes(
                axes,
                image,
                model,
                processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[image.shape[:2]])[0],
            )
    figure.tight_layout(pad=0.3)
    figure.savefig(OUTPUT)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1000:.0f} KB")


def draw_boxes(axes, image: np.ndarray, model, found) -> None:
    """Draws an image with the boxes that were found, in the colours of their classes."""
    axes.imshow(image)
    for label, score, (left, top, right, bottom) in zip(found["labels"], found["scores"], found["boxes"], strict=True):
        colour = COLOURS[int(label) + 1]
        axes.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=2))
        axes.text(
            left,
            top - 2,
            f"{model.config.id2label[int(label)]} {float(score):.2f}",
            fontsize=7,
            color="white",
            backgroundcolor=colour,
        )


def main() -> None:
    """Draws, trains what is not trained yet, and writes the picture."""
    place = pathlib.Path(sys.argv[1])
    write_photos(place / "photos")
    write_boxes(place / "boxes")
    for task in ("classification", "segmentation", "detection"):
        train(config_of(task, place), place / task)
    picture(place, [(0, 3), (1, 2), (4, 5)])


if __name__ == "__main__":
    main()
