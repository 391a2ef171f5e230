"""Images per second and core of the training pipelines, beside other libraries.

    python -m benchmarks.input_pipeline

Every case starts from the same encoded files in memory and ends with an array: for ImageNet a random window of 224²,
mirrored or not; for VOC an image and its mask, scaled, padded, cropped to 513² and mirrored or not. One thread each,
in turn; on a busy machine images per CPU second tell more than those per second. The data are ``imagenet_mini`` and
``camvid_voc.tar`` of ``../shared``, or of the folder that the environment variable MNV2_SHARED names.

Peers: Pillow with torchvision's transforms (and with its ToTensor and Normalize, which we leave to the device), and
TensorFlow's decode_and_crop_jpeg in ``tf.data``, where it is installed; it does not antialias. Ours are also measured
without antialiasing. Then the whole loader, shuffled and batched, with a thread and with
worker processes; there a CPU second is one of any process.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import harness

IMAGENET_SIZE, VOC_SIZE = 224, 513
VOC_SCALES = {"min_scale": 0.5, "max_scale": 2.0, "step": 0.25}
IGNORE_LABEL = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision normalises
WORKERS = (0, 2)
PEERS = ("pillow", "tensorflow")

Case = Callable[[], object]


def main() -> None:
    arguments = harness.parse_arguments("input_pipeline", __doc__, add_options)
    peers = set(PEERS if arguments.peers is None else arguments.peers)
    if unknown := peers - set(PEERS):
        sys.exit(f"--peers: expected some of {', '.join(PEERS)}; found {', '.join(sorted(unknown))}")
    one_thread()
    data = shared_folder() / "data"
    repeats = arguments.repeats or (3 if arguments.quick else 9)
    rows = []
    if "imagenet" in arguments.data:
        files = imagenet_files(data)[: 60 if arguments.quick else None]
        rows += measure("ImageNet 224²", imagenet_makers(files, peers), files, repeats)
        source = Files(files)
        rows += measure_loaders(
            "ImageNet 224² loader", imagenet_row(source), source, batch_size=32, batches=10 if arguments.quick else 50
        )
    if "voc" in arguments.data:
        files = voc_files(data)[: 20 if arguments.quick else 100]
        rows += measure("VOC 513²", voc_makers(files, peers), files, repeats)
        source = Files(files)
        rows += measure_loaders(
            "VOC 513² loader", voc_row(source), source, batch_size=8, batches=12 if arguments.quick else 60
        )
    harness.report("input_pipeline", rows, settings=vars(arguments), json_path=arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=harness.names, default=("imagenet", "voc"), metavar="A,B", help="imagenet, voc, or both"
    )


def measure(work: str, makers: dict[str, Callable[[], Case]], files: Sequence[Any], repeats: int) -> list[harness.Row]:
    """Rows for one pass of each case over all files."""
    spent: dict[str, list[float]] = {}
    cases = {name: _counting_cpu(case, spent.setdefault(name, [])) for name, case in harness.build(makers).items()}
    rows = harness.summarise(harness.alternate(cases, repeats=repeats, warmup=1), work=work, items=len(files))
    for row in rows:
        row["images/CPU s"] = len(files) / statistics.median(spent[row["case"]][1:])
    return rows


def _counting_cpu(case: Case, spent: list[float]) -> Case:
    """The case; the CPU seconds of each call go to ``spent``."""

    def run():
        start = time.process_time()
        case()
        spent.append(time.process_time() - start)

    return run


def one_thread() -> None:
    """Threads of OpenCV, and of what is imported later, off."""
    import cv2

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    cv2.setNumThreads(0)


# ---- data ----------------------------------------------------------------------------------------------


def shared_folder() -> pathlib.Path:
    """The folder of real data; ends the program with a message where there is none."""
    folder = pathlib.Path(os.environ.get("MNV2_SHARED", harness.ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        sys.exit(f"No data: set MNV2_SHARED to the folder that holds data/ (looked in {folder})")
    return folder


def imagenet_files(data: pathlib.Path) -> list[dict[str, Any]]:
    """Training examples in the archive's order: ``image`` (bytes), ``label`` and ``file_name``."""
    from flax_mnv2.data.archives.archive import open_tree
    from flax_mnv2.data.archives.tar import inner_files

    tree = open_tree(data / "imagenet_mini" / "ILSVRC2012_img_train.tar")
    files = [
        {"image": image, "label": label, "file_name": name}
        for label, archive in enumerate(tree.names())
        for name, image in inner_files(tree, archive)
    ]
    tree.close()
    return files


def voc_files(data: pathlib.Path) -> list[dict[str, Any]]:
    """Training examples: ``image`` and ``segmentation_mask`` (bytes), and ``image_id``."""
    from flax_mnv2.data.datasets.voc_files import VocFiles

    with VocFiles(data / "camvid_voc.tar") as voc:
        return [
            {"image": voc.read_image(name), "segmentation_mask": voc.read_mask(name), "image_id": name}
            for name in voc.splits()["train"]
        ]


@dataclasses.dataclass(frozen=True)
class Files:
    """A source of a pipeline: examples in memory, that can be pickled."""

    examples: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


# ---- ImageNet ------------------------------------------------------------------------------------------


def imagenet_makers(files: list[dict[str, Any]], peers: set[str]) -> dict[str, Callable[[], Case]]:
    """Cases that decode, crop, resize and mirror every file once."""
    images = [example["image"] for example in files]
    makers: dict[str, Callable[[], Case]] = {
        "ours": lambda: ours_imagenet(images),
        "ours, no antialias": lambda: ours_imagenet(images, antialias=False),
    }
    if "pillow" in peers:
        makers["Pillow + torchvision"] = lambda: pillow_imagenet(images, to_tensor=False)
        makers["Pillow + torchvision, to tensor"] = lambda: pillow_imagenet(images, to_tensor=True)
    if "tensorflow" in peers:
        makers["tf.data decode_and_crop"] = lambda: tensorflow_imagenet(images)
    return makers


def ours_imagenet(images: list[bytes], **options: bool) -> Case:
    from flax_mnv2.data.augment.random_crop import decode_random_crop

    rng = np.random.default_rng(0)

    def run():
        for data in images:
            decode_random_crop(data, rng, size=IMAGENET_SIZE, **options)

    return run


def pillow_imagenet(images: list[bytes], *, to_tensor: bool) -> Case:
    from PIL import Image

    from benchmarks.peers import import_torch

    torch = import_torch()
    from torchvision import transforms

    torch.set_num_threads(1)
    steps = [transforms.RandomResizedCrop(IMAGENET_SIZE), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if to_tensor else [np.asarray]
    transform = transforms.Compose(steps)

    def run():
        for data in images:
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    return run


def tensorflow_imagenet(images: list[bytes]) -> Case:
    """As in TF's own ImageNet examples: decoded only as far as the window reaches, bilinear, not antialiased."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def example(data):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros((0, 0, 4)),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (IMAGENET_SIZE, IMAGENET_SIZE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(images).map(example).with_options(options)

    def run():
        for _ in dataset.as_numpy_iterator():
            pass

    return run


# ---- VOC -----------------------------------------------------------------------------------------------


def voc_makers(files: list[dict[str, Any]], peers: set[str]) -> dict[str, Callable[[], Case]]:
    """Cases that decode, scale, pad, crop and mirror every pair once."""
    makers: dict[str, Callable[[], Case]] = {"ours": lambda: ours_voc(files)}
    if "pillow" in peers:
        makers["Pillow + torchvision"] = lambda: pillow_voc(files, to_tensor=False)
        makers["Pillow + torchvision, to tensor"] = lambda: pillow_voc(files, to_tensor=True)
    return makers


def ours_voc(files: list[dict[str, Any]]) -> Case:
    """The steps of ``tasks.segmentation.rows.TrainRow``, in its order."""
    from flax_mnv2.data.augment import segmentation as augment
    from flax_mnv2.data.decode import decode_image, decode_mask

    rng = np.random.default_rng(0)
    size = (VOC_SIZE, VOC_SIZE)

    def run():
        for example in files:
            image = decode_image(example["image"])
            mask = decode_mask(example["segmentation_mask"])
            image, mask = augment.random_scale(image, mask, rng, **VOC_SCALES)
            image, mask = augment.pad_to(image, mask, size=size, ignore_label=IGNORE_LABEL)
            image, mask = augment.random_crop(image, mask, rng, size=size)
            image, mask = augment.random_flip(image, mask, rng)
            np.ascontiguousarray(image), np.ascontiguousarray(mask)  # as batching makes them

    return run


def pillow_voc(files: list[dict[str, Any]], *, to_tensor: bool) -> Case:
    """torchvision's reference transforms for segmentation, with our sizes: resize, flip, pad and crop."""
    from PIL import Image

    from benchmarks.peers import import_torch

    torch = import_torch()
    from torchvision.transforms import InterpolationMode, RandomCrop, functional

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    count = int((VOC_SCALES["max_scale"] - VOC_SCALES["min_scale"]) / VOC_SCALES["step"]) + 1
    factors = np.linspace(VOC_SCALES["min_scale"], VOC_SCALES["max_scale"], count)

    def run():
        for example in files:
            image = Image.open(io.BytesIO(example["image"])).convert("RGB")
            mask = Image.open(io.BytesIO(example["segmentation_mask"]))
            factor = rng.choice(factors)
            size = [int(side * factor) for side in (image.height, image.width)]
            image = functional.resize(image, size)
            mask = functional.resize(mask, size, interpolation=InterpolationMode.NEAREST)
            if rng.random() < 0.5:
                image, mask = functional.hflip(image), functional.hflip(mask)
            padding = [0, 0, max(0, VOC_SIZE - image.width), max(0, VOC_SIZE - image.height)]
            image, mask = functional.pad(image, padding, fill=0), functional.pad(mask, padding, fill=IGNORE_LABEL)
            window = RandomCrop.get_params(image, (VOC_SIZE, VOC_SIZE))
            image, mask = functional.crop(image, *window), functional.crop(mask, *window)
            if to_tensor:
                functional.normalize(functional.to_tensor(image), MEAN, STD)
                torch.as_tensor(np.array(mask), dtype=torch.int64)
            else:
                np.asarray(image), np.asarray(mask)

    return run


# ---- whole loaders -------------------------------------------------------------------------------------


def imagenet_row(source: Files) -> Callable[..., dict[str, np.ndarray]]:
    """What makes a row of a classifier's batch."""
    from flax_mnv2.data.augment.random_crop import decode_random_crop
    from flax_mnv2.tasks.classification.rows import TrainRow

    transform = functools.partial(decode_random_crop, size=IMAGENET_SIZE)
    return TrainRow(source=source, transform=transform)


def voc_row(source: Files) -> Callable[..., dict[str, np.ndarray]]:
    """What makes a row of segmentation's batch."""
    from flax_mnv2.tasks.segmentation.rows import TrainRow

    scales = {"min_scale": VOC_SCALES["min_scale"], "max_scale": VOC_SCALES["max_scale"]}
    settings = {**scales, "scale_step": VOC_SCALES["step"], "flip": True, "ignore_label": IGNORE_LABEL}
    return TrainRow(source=source, crop_size=(VOC_SIZE, VOC_SIZE), **settings)


def measure_loaders(work: str, make_row: Callable[..., Any], source: Files, *, batch_size: int, batches: int) -> list:
    """Rows for the throughput once warm, with one thread and with worker processes."""
    from flax_mnv2.data.loader.batches import train_batches
    from flax_mnv2.data.loader.options import LoaderOptions

    rows = []
    for workers in WORKERS:
        options = LoaderOptions(batch_size=batch_size, num_threads=1, num_workers=workers)
        with train_batches(make_row, source, options, start_step=0) as iterator:
            for _ in range(4 + 2 * workers):  # start, and fill the buffers
                next(iterator)
            wall, cpu = time.perf_counter(), cpu_seconds()
            for _ in range(batches):
                next(iterator)
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        images = batches * batch_size
        case = f"ours, batch {batch_size}, {f'{workers} workers' if workers else '1 thread'}"
        rows.append({"work": work, "case": case, "images/s": images / wall, "images/CPU s": images / cpu})
    return rows


def cpu_seconds() -> float:
    """Of this process and of those that it started and that still run."""
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(spent for _, spent in _family(os.getpid())) / ticks


def _family(root: int) -> Iterator[tuple[int, int]]:
    """Process ids and CPU ticks, from /proc: of ``root`` and of its descendants."""
    found: dict[int, tuple[int, int]] = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        found[int(path.parent.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    members = [root]
    for member in members:
        members += [process for process, (parent, _) in found.items() if parent == member]
        yield member, found[member][1]


if __name__ == "__main__":
    main()
