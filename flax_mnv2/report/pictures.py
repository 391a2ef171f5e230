"""Pictures of an evaluation, small enough to lie in a page."""

from __future__ import annotations

import base64
import io
import pathlib

from PIL import Image

from flax_mnv2.report.html import Html, element

_MAX_BYTES = 250_000  # of one picture, before base64 makes a third more of it
_WIDTHS = (1400, 1100, 850, 650, 480)  # tried in this order
_QUALITY = 80
_CAPTIONS = {
    "confusion_matrix": "Confusion matrix: a row for each true class, per cent of it by predicted class",
    "precision_recall": "Precision by recall",
    "worst": "The worst of the split, where the model is furthest from the truth",
    "best": "The best of the split",
    "predictions": "The first of the split, with what is true and what the model says",
}
_ORDER = tuple(_CAPTIONS)


def in_order(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the pictures that are known first, in the order of a report."""
    return sorted(paths, key=lambda path: (_ORDER.index(path.stem) if path.stem in _ORDER else len(_ORDER), path.name))


def picture(path: pathlib.Path) -> Html:
    """Returns a figure that holds a PNG file itself, or a JPEG made of it where that is smaller or it is large.

    A line that says so where it cannot be read.
    """
    caption = _CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    try:
        kind, data, size = _compressed(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return element("p", f"{path.name} cannot be shown: {error}", class_="soft")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = element("img", src=source, alt=caption, width=size[0], height=size[1], loading="lazy")
    return element("figure", element("figcaption", caption), image, class_="picture")


def _compressed(path: pathlib.Path) -> tuple[str, bytes, tuple[int, int]]:
    original = path.read_bytes()
    with Image.open(io.BytesIO(original), formats=("PNG",)) as image:
        if len(original) <= _MAX_BYTES // 3:
            image.verify()
            return "png", original, image.size
        photo = image.convert("RGB")
    for width in _WIDTHS:
        small = photo.resize((width, round(photo.height * width / photo.width))) if photo.width > width else photo
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        if buffer.tell() <= _MAX_BYTES:
            break
    if len(original) <= min(buffer.tell(), _MAX_BYTES):
        return "png", original, photo.size
    return "jpeg", buffer.getvalue(), small.size
