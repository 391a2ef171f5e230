"""Google's TFLite files, and the photos that make_google_tflite.py and the tests of them show them."""

import pathlib

import numpy as np
from PIL import Image

CLASSIFIERS = ("mobilenet_v2_1.0_224_quant", "tf2_mobilenet_v2_1.0_224_ptq")
DEEPLAB, LOCALIZER = "deeplabv3_mnv2_pascal_quant", "mobile_object_localizer_v1_1_meta"
DETECTED = "pets.jpg"
SEGMENTED = ("bird_segmentation.png", "cat.png", "pets.jpg")


def photos(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the photos of a folder, without masks, sorted."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".JPEG", ".jpg", ".png") and "mask" not in path.name
    )


def pixels(path: pathlib.Path, side: int) -> np.ndarray:
    """Returns a photo squeezed to a square, uint8 (side, side, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
