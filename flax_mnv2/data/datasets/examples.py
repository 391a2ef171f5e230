"""What the data sets store, and the checks that images and masks must pass to be stored."""

import io
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

from flax_mnv2.data.decode import PILLOW_ERRORS, decode_mask
from flax_mnv2.errors import DataError

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # what both Pillow and OpenCV decode


class LocalInfo(tfds.core.DatasetInfo):
    """Description of a data set that only exists where it was built."""

    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS's bucket does not know it, and each question would leave a folder in the temporary folder."""


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders here share. Examples stay in the order in which they are generated.

    Args:
      file_format: ArrayRecord unless stated: it is the format that gives random access.
      **kwargs: as for every TFDS builder.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS reads a plain class attribute)

    def __init__(self, *, file_format: Any = None, **kwargs: Any):
        super().__init__(file_format=file_format or "array_record", **kwargs)

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        if isinstance(builder_config, tfds.core.BuilderConfig):
            return builder_config  # spares the user TFDS's warning that it is not one of the built-in configs
        return super()._create_builder_config(builder_config, version)

    def _classification_info(
        self, *, labels: tuple[str, ...], encoding_format: str | None = None, **description: str
    ) -> tfds.core.DatasetInfo:
        """Features of images with one label each, which are those of TFDS's ``imagenet2012``.

        Image files are stored as they are; ``encoding_format`` says that all are "jpeg" or "png".
        """
        features = {
            "image": tfds.features.Image(encoding_format=encoding_format),
            "label": tfds.features.ClassLabel(names=labels),
            "file_name": tfds.features.Text(),
        }
        return self._described(features, ("image", "label"), **description)

    def _segmentation_info(
        self, *, labels: tuple[str, ...], ignore_label: int, **description: str
    ) -> tfds.core.DatasetInfo:
        """Features and metadata of images with masks.

        The metadata holds ``labels``, ``ignore_label`` and ``max_size``, a map from split to [height, width]
        that the builder fills in while it writes.
        """
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "image_id": tfds.features.Text(),
        }
        metadata = tfds.core.MetadataDict(labels=list(labels), ignore_label=ignore_label, max_size={})
        return self._described(features, ("image", "segmentation_mask"), metadata=metadata, **description)

    def _described(self, features: dict[str, Any], supervised_keys: tuple[str, str], **kwargs: Any) -> LocalInfo:
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=supervised_keys,
            disable_shuffling=True,
            **kwargs,
        )


def check_image(data: bytes, name: str) -> None:
    """Makes sure that an image file is whole and can be decoded by Pillow and by OpenCV.

    JPEG is decoded at an eighth of its size, which reads all of its data in half the time.

    Args:
      data: JPEG, PNG, WebP or BMP, of at most 8 bits per channel.
      name: what messages call it.

    Raises:
      DataError: it is something else, corrupt or cut short.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            image.draft("RGB", (1, 1))
            image.load()
            mode = image.mode
    except PILLOW_ERRORS as error:
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = reason if data else "it is empty"
        raise DataError(
            f"{name} is not a readable image ({reason}). Expected a whole JPEG, PNG, WebP or BMP file: replace it, or "
            "remove it."
        ) from error
    if mode.startswith(("I", "F")):
        raise DataError(f"{name} has pixels of more than 8 bits (mode {mode}). Convert it to 8 bits per channel.")


def checked_mask(
    *,
    image: bytes,
    image_name: str,
    mask: bytes | np.ndarray,
    mask_name: str,
    num_classes: int,
    ignore_label: int,
) -> np.ndarray:
    """Decodes a pair completely and returns its mask, uint8 (H, W).

    Args:
      image: encoded JPEG or PNG.
      image_name: what messages call the image.
      mask: encoded PNG, or uint8 (H, W).
      mask_name: what messages call the mask.
      num_classes: masks may hold 0 … num_classes - 1 and ``ignore_label``.
      ignore_label: the value of pixels without a class.

    Raises:
      DataError: either is corrupt or cut short, sizes differ, or a value is out of range.
    """
    size = _image_size(image, image_name)
    if isinstance(mask, bytes):
        try:
            mask = decode_mask(mask)
        except DataError as error:
            raise DataError(f"{mask_name}: {error}.") from error
    if mask.shape != size:
        raise DataError(
            f"{mask_name}: the mask is {_size_text(mask.shape)}, but its image {image_name} is "
            f"{_size_text(size)}. Masks must have the size of their image: redraw or resize it (nearest "
            "neighbour), or remove the pair."
        )
    counts = np.bincount(mask.ravel(), minlength=256)
    counts[ignore_label] = 0
    wrong = np.flatnonzero(counts[num_classes:]) + num_classes
    if wrong.size:
        raise DataError(
            f"{mask_name}: found the values "
            f"{', '.join(map(str, wrong[:8]))}{' …' if wrong.size > 8 else ''}, expected 0 … "
            f"{num_classes - 1} or the ignore label {ignore_label}. Correct the mask, or the number of "
            "labels (--config.data.labels, --config.data.num_classes, --config.data.ignore_label)."
        )
    return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """Returns a grey PNG of class indices, uint8 (H, W)."""
    return cv2.imencode(".png", mask)[1].tobytes()


def largest(sizes: list[tuple[int, int]]) -> list[int]:
    """Returns the largest height and the largest width, as a list because it goes into JSON."""
    return [max(height for height, _ in sizes), max(width for _, width in sizes)]


def _image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of an image that Pillow, which is strict about missing data, decodes to its end."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            image.load()
            return image.height, image.width
    except PILLOW_ERRORS as error:
        raise DataError(
            f"{name}: corrupt image ({error}). Replace it, or remove its id from the split files."
        ) from error


def _size_text(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]} (width x height)"
