"""What the data sets store, and the checks that images and masks must pass to be stored."""

import concurrent.futures
import io
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.preparation import LEFT_OUT, Outcome, check_left_out, new_notes, noted
from flax_mnv2.data.decode import AS_STORED, UPRIGHT, check_encoded, check_mask, decode_rgb
from flax_mnv2.data.labels.histogram import LabelHistogram
from flax_mnv2.data.labels.masks import MaskRule
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import FILE_FORMATS, read_orientation

_READ_AHEAD = 256  # images read and checked together


class LocalInfo(tfds.core.DatasetInfo):
    """Description of a data set that only exists where it was built."""

    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS's bucket does not know it, and each question would leave a folder in the temporary folder."""


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders here share: ArrayRecord for random access, and examples in the order of their generation.

    ``as_stored`` is the rule that their images are decoded by, as ``data.decode`` has it.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS reads a plain class attribute)
    as_stored = False

    def __init__(self, *, file_format: Any = None, max_left_out: int = 0, **kwargs: Any):
        """``max_left_out`` is how many bad files a preparation may leave out; more are an error that names them."""
        self._max_left_out = max_left_out
        super().__init__(file_format=file_format or "array_record", **kwargs)

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        if isinstance(builder_config, tfds.core.BuilderConfig):
            return builder_config  # spares the user TFDS's warning that it is not one of the built-in configs
        return super()._create_builder_config(builder_config, version)

    def _classification_info(
        self, *, labels: tuple[str, ...], encoding_format: str | None = None, **description: Any
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

    def _vector_info(self, *, labels: tuple[str, ...], **description: str) -> tfds.core.DatasetInfo:
        """Features and metadata of images with a vector each; the builder fills in ``mean`` and ``std`` by split."""
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.Tensor(shape=(len(labels),), dtype=np.float32),
            "file_name": tfds.features.Text(),
        }
        metadata = tfds.core.MetadataDict(labels=list(labels), mean={}, std={})
        return self._described(features, ("image", "label"), metadata=metadata, **description)

    def _segmentation_info(
        self, *, labels: tuple[str, ...], ignore_label: int, **description: str
    ) -> tfds.core.DatasetInfo:
        """Features and metadata of images with masks; :meth:`_store_pairs` fills in ``max_size``
        and ``histogram``."""
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "image_id": tfds.features.Text(),
        }
        metadata = {"labels": list(labels), "ignore_label": ignore_label, "max_size": {}}
        metadata |= {"histogram": {}, "read": {}, "shared": [], "unread": []}
        return self._described(features, ("image", "segmentation_mask"), metadata=metadata, **description)

    def _described(
        self,
        features: dict[str, Any],
        supervised_keys: tuple[str, str],
        *,
        metadata: Mapping[str, Any] = types.MappingProxyType({}),
        **kwargs: Any,
    ) -> LocalInfo:
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=supervised_keys,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict({**metadata, **new_notes(AS_STORED if self.as_stored else UPRIGHT)}),
            **kwargs,
        )

    def _noted(self, splits: Mapping[str, Iterable[Outcome]]) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        """Returns numbered examples by split; digests and the files left out go into the metadata.

        After the last one a DataError names all bad files, if they are more than may be left out.
        """
        notes = self.info.metadata
        return noted(splits, notes, lambda: check_left_out(notes[LEFT_OUT], self._max_left_out))

    def _store_pairs(self, split: str, pairs: Iterable[tuple[str, bytes, np.ndarray] | DataError]) -> Iterator[Outcome]:
        """Examples of (id, encoded image, mask of uint8 (H, W)), which becomes a grey PNG."""
        height = width = 0
        metadata = self.info.metadata
        histogram = LabelHistogram(len(metadata["labels"]), metadata["ignore_label"])
        for pair in pairs:
            if isinstance(pair, DataError):
                yield pair
                continue
            image_id, image, mask = pair
            height, width = max(height, mask.shape[0]), max(width, mask.shape[1])
            histogram.add(mask)
            png = cv2.imencode(".png", mask)[1].tobytes()
            yield {"image": image, "segmentation_mask": png, "image_id": image_id}
        metadata["max_size"][split] = [height, width]
        metadata["histogram"][split] = histogram.to_dict()


def check_image(data: bytes, name: str) -> None:
    """Makes sure that an image file is whole, and can be decoded; a DataError begins with its name."""
    try:
        if not data.startswith(b"\xff\xd8\xff"):
            decode_rgb(data)
            return
        check_encoded(data)
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            image.draft("RGB", (1, 1))  # at an eighth of its size, which reads all of its data in half the time
            image.load()
    except Exception as error:  # Pillow's readers raise many types
        reason = error.__cause__ if isinstance(error, DataError) and error.__cause__ else error
        raise DataError(
            f"{name} is not a readable image ({str(reason) or type(reason).__name__}). Expected a whole file in one of "
            f"the formats {', '.join(FILE_FORMATS)}: replace it, or remove it."
        ) from error


def read_images(tree: FileTree, names: Sequence[str], *, prefix: str = "") -> Iterator[bytes | DataError]:
    """Yields each encoded image, or what is wrong with it, which begins with ``prefix`` and its name.

    Threads read and check them, some ahead of what is taken.
    """

    def read(name: str) -> bytes | DataError:
        try:
            data = tree.read(name)
            check_image(data, f"{prefix}{name}")
        except DataError as error:
            return error
        return data

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(names), _READ_AHEAD):
            yield from pool.map(read, names[start : start + _READ_AHEAD])


def checked_mask(
    *, image: bytes, image_name: str, mask: bytes | np.ndarray, mask_name: str, rule: MaskRule
) -> np.ndarray:
    """Decodes a pair completely and returns its mask, uint8 (H, W), which may come as PNG or as class indices.

    The mask belongs to the upright image, as annotation tools and viewers show it. The names are for messages: a
    DataError tells which of the two is damaged, or that they do not fit each other.
    """
    try:
        width, height = decode_rgb(image).size
    except DataError as error:
        raise DataError(f"{image_name}: {error}, or remove its id from the split files.") from error
    try:
        mask = rule.classes(mask) if isinstance(mask, bytes) else mask
        _check_turned(mask, (height, width), image)
        check_mask(mask, (height, width), num_classes=len(rule.labels.names), ignore_label=rule.ignore_label)
    except DataError as error:
        raise DataError(f"{mask_name}: {error}.") from error
    return mask


def _check_turned(mask: np.ndarray, size: tuple[int, int], image: bytes) -> None:
    """Raises a DataError that names EXIF where a mask fits its photo as it is stored, not as it is seen."""
    orientation = read_orientation(image) if mask.shape == size[::-1] != size else 1
    if orientation >= 5:
        raise DataError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, its photo {size[1]}x{size[0]} (width x height) once turned "
            f"as its EXIF orientation {orientation} says, which is how it is read. Turn the mask too, or remove the "
            "tag from the photo"
        )
