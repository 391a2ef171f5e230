"""Tiny data sets with boxes in the layouts of COCO, VOC and YOLO, as dicts from member name to bytes."""

import json

import voc_archives

SIZES = {"a": (20, 30), "b": (24, 30), "c": (20, 40), "d": (50, 40), "e": (20, 30)}  # height, width of the images
SPLITS = {"train": ("a", "b", "c"), "val": ("d", "e")}
LABELS = ("cat", "dog")
# By image: class, x_min, y_min, x_max, y_max in pixels from 0, ignored.
BOXES = {
    "a": (("dog", 3, 4, 13, 10, False), ("cat", 0, 0, 30, 20, False)),
    "b": (("cat", 10, 2, 20, 24, True),),
    "c": (),
    "d": (("dog", 5, 5, 40, 50, False), ("dog", 1, 2, 3, 5, False), ("cat", 8, 8, 16, 16, False)),
    "e": (("cat", 2, 3, 12, 13, False),),
}


def fractions(name):
    """The corners of an image's boxes as the data set should have them."""
    height, width = SIZES[name]
    return [[y0 / height, x0 / width, y1 / height, x1 / width] for _, x0, y0, x1, y1, _ in BOXES[name]]


def image(name):
    return voc_archives.jpeg(*SIZES[name], seed=ord(name))


def coco(names, *, categories=((3, "cat"), (7, "dog")), folder=""):
    """COCO's JSON of some images, as a dict; image ids are 10, 11, …"""
    ids = {name: category for category, name in categories}
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in categories]}
    for name in names:
        image_id, (height, width) = ord(name) - ord("a") + 10, SIZES[name]
        row = {"id": image_id, "file_name": f"{folder}{name}.jpg", "height": height, "width": width}
        content["images"].append(row)
        for number, (label, x0, y0, x1, y1, ignored) in enumerate(BOXES[name]):
            row = {"id": 100 * image_id + number, "image_id": image_id, "category_id": ids[label]}
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(ignored), "area": (x1 - x0) * (y1 - y0) / 2}
            content["annotations"].append(row)
    return content


def coco_files(layout="official", **options):
    """``layout``: official, roboflow, or single, with all images in one split."""
    if layout == "single":
        files = {"result.json": coco("abcde", folder="images/")}
        files |= {f"images/{name}.jpg": image(name) for name in "abcde"}
    elif layout == "roboflow":
        folders = {"train": "train", "val": "valid"}
        files = {f"{folders[split]}/_annotations.coco.json": coco(names, **options) for split, names in SPLITS.items()}
        files |= {f"{folders[split]}/{name}.jpg": image(name) for split in SPLITS for name in SPLITS[split]}
    else:
        files = {f"annotations/instances_{split}2017.json": coco(names, **options) for split, names in SPLITS.items()}
        files |= {f"{split}2017/{name}.jpg": image(name) for split in SPLITS for name in SPLITS[split]}
        files["annotations/captions_train2017.json"] = {"images": [], "annotations": []}
    return {name: json.dumps(data).encode() if isinstance(data, dict) else data for name, data in files.items()}


def xml(name, *, objects="", boxes=None, size=None):
    """VOC's XML of an image, with more objects as they are given."""
    height, width = size or SIZES[name]
    for label, x0, y0, x1, y1, ignored in BOXES[name] if boxes is None else boxes:
        corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        objects += (
            f"<object><name>{label}</name><difficult>{int(ignored)}</difficult><bndbox>{corners}</bndbox></object>"
        )
    sides = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{sides}{objects}</annotation>".encode()


def voc_files(layout="official", root="VOCdevkit/VOC2007/"):
    """``layout``: official, roboflow with XML beside the images by split, or single, as LabelImg saves them."""
    if layout == "roboflow":
        folders = {"train": "train", "val": "valid"}
        places = {name: folders[split] for split in SPLITS for name in SPLITS[split]}
        files = {f"{place}/{name}.xml": xml(name) for name, place in places.items()}
        return files | {f"{place}/{name}.jpg": image(name) for name, place in places.items()}
    files = {f"{root}Annotations/{name}.xml": xml(name) for name in SIZES}
    files |= {f"{root}JPEGImages/{name}.jpg": image(name) for name in SIZES}
    if layout == "official":
        for split, names in SPLITS.items():
            files[f"{root}ImageSets/Main/{split}.txt"] = "\n".join(names).encode()
            files[f"{root}ImageSets/Main/cat_{split}.txt"] = b"a -1\n"
    return files


def text(name):
    """YOLO's lines of an image."""
    lines = []
    for (label, *_), (y0, x0, y1, x1) in zip(BOXES[name], fractions(name), strict=True):
        lines.append(f"{LABELS.index(label)} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}")
    return "\n".join(lines).encode()


def yolo_files(
    yaml="train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n",
    place="{folder}/{kind}",
    folders=(("train", "train"), ("val", "valid")),
):
    """``place`` is the folder of images and of labels, the ``kind``; the image without boxes has no text file."""
    files = {"data.yaml": yaml.encode()}
    for split, folder in folders:
        for name in SPLITS[split]:
            files[f"{place.format(folder=folder, kind='images')}/{name}.jpg"] = image(name)
            if BOXES[name]:
                files[f"{place.format(folder=folder, kind='labels')}/{name}.txt"] = text(name)
    return files
