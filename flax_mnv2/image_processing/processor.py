"""What a user feeds a model and gets back: images → ``pixel_values``, logits → label maps.

Hugging Face's is here ``transformers.MobileNetV2ImageProcessorPil``, the Pillow implementation, which is also what
``transformers.MobileNetV2ImageProcessor`` is where torchvision is not installed; the torchvision one interpolates
otherwise and is not reproduced. On images that it accepts, results are the same to the last bit. Ours differs on
purpose in four things: every image comes out as RGB (transparency on white, Hugging Face's ``do_convert_rgb``, of files
too), the channels come last unless ``data_format`` says otherwise, None as a setting of a call leaves the processor's
own as in releases up to 4 (False switches a step off), and arguments are never written to.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from flax_mnv2.errors import CheckpointError, ConfigError, DataError
from flax_mnv2.files import read_json, shown, write_text
from flax_mnv2.hub import expand_user, resolve_folder
from flax_mnv2.image_processing import detections
from flax_mnv2.image_processing import reading as image_io
from flax_mnv2.image_processing import steps as image_steps
from flax_mnv2.image_processing.features import TENSOR_TYPES, BatchFeature
from flax_mnv2.image_processing.settings import (
    CHECKS,
    check_choice,
    check_data_format,
    check_setting,
    check_target_sizes,
    reject_unknown,
)

PROCESSOR_NAME = "preprocessor_config.json"
PROCESSOR_TYPE = "MobileNetV2ImageProcessor"
_TYPE_KEYS = ("image_processor_type", "feature_extractor_type")
_KNOWN_TYPES = (PROCESSOR_TYPE, f"{PROCESSOR_TYPE}Fast", f"{PROCESSOR_TYPE}Pil", "MobileNetV2FeatureExtractor")


@dataclasses.dataclass(repr=False)
class MobileNetV2ImageProcessor:
    """Resizes, crops, rescales and normalises images; every setting can be had otherwise per call.

    None switches a step off, as ``null`` in a ``preprocessor_config.json`` does, and stands for the default of every
    other setting.

    Attributes:
      do_resize: whether to resize.
      size: ``{"shortest_edge": px}`` (the longer side is truncated) or ``{"height": px, "width": px}``; an int is a
        shortest edge, a pair is height and width.
      resample: Pillow's filter, 0 to 5, for images; maps take the nearest label.
      do_center_crop: whether to crop; an image that is smaller gets zeros around it, before normalisation.
      crop_size: ``{"height": px, "width": px}``, an int for a square, or a pair.
      do_rescale: whether to multiply by ``rescale_factor``.
      rescale_factor: 1/255 brings bytes into [0, 1].
      do_normalize: whether to subtract ``image_mean`` and divide by ``image_std``.
      image_mean: one number per channel; a single number is taken for all three.
      image_std: the same.
      do_reduce_labels: in maps, 0 becomes 255 and other labels one less; 255 stays.
      do_convert_rgb: None or True; every image becomes RGB in any case. It is kept for transformers, where True alone
        does that.
      extra: keys of a ``preprocessor_config.json`` that are not listed here, kept so that they are written back.

    Raises:
      ConfigError: a setting has the wrong form or is out of its range.
    """

    do_resize: bool | None = True
    size: int | Sequence[int] | Mapping[str, int] = 256
    resample: int = Image.Resampling.BILINEAR
    do_center_crop: bool | None = True
    crop_size: int | Sequence[int] | Mapping[str, int] = 224
    do_rescale: bool | None = True
    rescale_factor: float = 1 / 255
    do_normalize: bool | None = True
    image_mean: float | Sequence[float] = (0.5, 0.5, 0.5)
    image_std: float | Sequence[float] = (0.5, 0.5, 0.5)
    do_reduce_labels: bool | None = False
    do_convert_rgb: bool | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    model_input_names: ClassVar[Sequence[str]] = ["pixel_values"]

    def __post_init__(self):
        for name in CHECKS:
            value = getattr(self, name)
            if value is None and not name.startswith("do_"):
                value = getattr(type(self), name)
            setattr(self, name, check_setting(name, value))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __call__(self, images: Any, segmentation_maps: Any = None, **options: Any) -> BatchFeature:
        """Does the same as ``preprocess``."""
        return self.preprocess(images, segmentation_maps, **options)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        *,
        return_tensors: str | None = None,
        data_format: str | None = image_io.CHANNELS_LAST,
        input_data_format: str | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """Prepares images, and segmentation maps of the same sizes, for a model.

        With ``do_rescale=False, do_normalize=False`` uint8 images come out as uint8, resized and cropped, for
        pipelines that normalise on the device. A file is turned as its EXIF orientation says, as transformers'
        ``load_image`` does; a PIL image is taken as its pixels lie, as there, for which
        ``PIL.ImageOps.exif_transpose`` is the remedy.

        Args:
          images: one or many PIL images, paths, http(s) addresses, or NumPy, JAX, PyTorch or TensorFlow arrays:
            (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4, or a batch with one more axis. Bytes or floats; what
            resizing does to floats is said at ``image_steps.resize_picture``.
          segmentation_maps: as many maps of class indices, (H, W) each: PIL images, paths, addresses or arrays.
          return_tensors: ``"np"``, ``"jax"``, ``"pt"`` or ``"tf"`` for one array; None for a list of NumPy arrays.
          data_format: ``"channels_last"`` (ours) or ``"channels_first"`` (Hugging Face's) for the result; None for
            that of each image given, which of files, PIL images and (H, W) is channels last.
          input_data_format: the same for arrays given, or ``"none"`` for (H, W); None infers it from each shape.
          **settings: any attribute of the class, for this call; None leaves the processor's own.

        Returns:
          ``pixel_values``, (H, W, 3) each or (N, H, W, 3): float32 (the input's type where no step changes it);
          with maps, ``labels``, (H, W) each or (N, H, W), int64 (int32 in JAX).

        Raises:
          DataError: an image or map that cannot be read or does not fit, named by its position or its file.
          ConfigError: an argument is unknown, has the wrong form or is out of its range.
          UserError: ``return_tensors`` names a package that is not installed.
        """
        chosen = self._with(settings)
        data_format = check_data_format("data_format", data_format)
        input_data_format = check_data_format("input_data_format", input_data_format, none=True)
        if return_tensors is not None:
            return_tensors = check_choice("return_tensors", return_tensors, TENSOR_TYPES)

        sources = image_io.flatten_batch(images, rank=3, what="image")
        maps = _flatten_maps(segmentation_maps, len(sources))
        pixel_values, labels = [], []
        for index, source in enumerate(sources):
            name = f"image {index}"
            layout = image_io.layout_of(source, name, input_data_format)
            picture = image_io.read_picture(source, name, layout)
            if maps is not None:
                labels.append(_prepare_map(maps[index], f"segmentation map {index}", picture.shape[:2], chosen))
            picture = np.require(_prepare_picture(picture, name, chosen), requirements="W")
            first = (data_format or layout) == image_io.CHANNELS_FIRST
            pixel_values.append(picture.transpose(2, 0, 1) if first else picture)
        features = {"pixel_values": pixel_values} | ({} if maps is None else {"labels": labels})
        return BatchFeature(features, return_tensors)

    def _with(self, settings: Mapping[str, Any]) -> MobileNetV2ImageProcessor:
        """Returns a processor with other settings where these are not None."""
        reject_unknown(settings)
        own = {name: getattr(self, name) for name in CHECKS}
        return MobileNetV2ImageProcessor(**own | {name: value for name, value in settings.items() if value is not None})

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[np.ndarray] | list[BatchFeature]:
        """Returns label maps from a segmentation model's output.

        Args:
          outputs: anything with ``logits`` of shape (N, h, w, C), such as ``SemanticSegmenterOutput``.
          target_sizes: (height, width) per image, to which its logits are upsampled first (bilinear, half-pixel
            centres, as in Hugging Face's); None leaves the logits' size.
          return_segmentation_scores: whether to give the upsampled logits too.

        Returns:
          N label maps, NumPy int64: (h, w), or of the size asked for. With the scores, N features of
          ``segmentation``, that map, and ``segmentation_scores``, its logits: (h, w, C), or of the size asked for and
          float32.

        Raises:
          DataError: logits of another rank, empty or not real, or not one size per image.
          ConfigError: a size that is no pair of whole pixels, or too large.
        """
        logits = image_io.to_numpy(outputs.logits, "batch of logits")
        if logits.ndim != 4 or 0 in logits.shape[1:] or logits.dtype.kind not in "uif":
            raise DataError(
                "logits must be real numbers, (images, height, width, classes), 1 or more of the latter three; found "
                f"shape {logits.shape}, {logits.dtype}."
            )
        sizes = [None] * len(logits) if target_sizes is None else check_target_sizes(target_sizes)
        if len(sizes) != len(logits):
            raise DataError(
                f"target_sizes must give (height, width) for each of {len(logits)} images; found {len(sizes)}. "
                "Give one per image, in the order of the batch."
            )
        if not return_segmentation_scores:
            return [image_steps.label_map(image, size) for image, size in zip(logits, sizes, strict=True)]
        scores = [image_steps.upsample(image, size) for image, size in zip(logits, sizes, strict=True)]
        return [BatchFeature({"segmentation": score.argmax(-1), "segmentation_scores": score}) for score in scores]

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Returns the boxes that a detector found, the most probable first.

        Args:
          outputs: what ``MobileNetV2ForObjectDetection`` returns.
          threshold: boxes of a probability above it are kept, from 0 to 1.
          target_sizes: (height, width) per image; boxes are in pixels of these, without it fractions of the image.

        Returns:
          For each image ``scores`` (n,), ``labels`` (n,) and ``boxes`` (n, 4), (x_min, y_min, x_max, y_max).

        Raises:
          DataError: another model's output, or not one size per image.
          ConfigError: a size that is no pair of whole pixels, or too large.
        """
        sizes = None if target_sizes is None else check_target_sizes(target_sizes)
        return detections.boxes_of(outputs, threshold, sizes)

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | pathlib.Path,
        *,
        revision: str | None = None,
        cache_dir: str | pathlib.Path | None = None,
        **overrides: Any,
    ) -> MobileNetV2ImageProcessor:
        """Reads ``preprocessor_config.json`` from a folder or a hub id.

        Args:
          id_or_folder: a folder, the file itself, or a hub id such as ``google/mobilenet_v2_1.0_224``.
          revision: branch, tag or commit of a hub id.
          cache_dir: where downloads are kept; None is huggingface_hub's default.
          **overrides: settings to change, such as ``crop_size=513``.

        Raises:
          CheckpointError: nothing readable there, or the preprocessor of another model.
          ConfigError: a setting or an override is unknown or out of its range.
        """
        path = expand_user(id_or_folder)
        if path.suffix != ".json" or not os.path.isfile(path):
            folder = resolve_folder(id_or_folder, revision=revision, cache_dir=cache_dir, files=(PROCESSOR_NAME,))
            path = folder / PROCESSOR_NAME
        return cls._from_file(path, overrides)

    @classmethod
    def from_json_file(cls, path: str | pathlib.Path) -> MobileNetV2ImageProcessor:
        """Reads the settings in a JSON file; errors as for ``from_pretrained``."""
        return cls._from_file(pathlib.Path(path), {})

    @classmethod
    def _from_file(cls, path: pathlib.Path, overrides: Mapping[str, Any]) -> MobileNetV2ImageProcessor:
        reject_unknown(overrides)
        overrides = {name: check_setting(name, value) for name, value in overrides.items()}
        values = _read_json(path)
        try:
            return cls.from_dict(values, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> MobileNetV2ImageProcessor:
        """Returns the processor whose ``to_dict`` gave ``values``; keys that are no settings go into ``extra``.

        ``overrides`` are settings that go before those of ``values``.

        Raises:
          ConfigError: a setting or an override is unknown or out of its range, or ``values`` is no mapping.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"The settings of an image processor must be a mapping; found {type(values).__name__}.")
        reject_unknown(overrides)
        settings = {name: values[name] for name in CHECKS if name in values}
        extra = {name: value for name, value in values.items() if name not in (*CHECKS, *_TYPE_KEYS)}
        return cls(**settings | overrides, extra=extra)

    def save_pretrained(self, folder: str | pathlib.Path) -> list[str]:
        """Writes ``preprocessor_config.json``, which this library and transformers read; makes the folder.

        Returns the path of that file, in a list.
        """
        path = pathlib.Path(folder, PROCESSOR_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.to_json_file(path)
        return [str(path)]

    def to_json_file(self, path: str | pathlib.Path) -> None:
        """Writes the text of a ``preprocessor_config.json``; whole or not."""
        write_text(pathlib.Path(path), self.to_json_string())

    def to_json_string(self) -> str:
        """Returns the text of a ``preprocessor_config.json``."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of a ``preprocessor_config.json``."""
        settings = {name: copy.copy(getattr(self, name)) for name in CHECKS}
        if settings["do_convert_rgb"] is None:  # not written by transformers either
            del settings["do_convert_rgb"]
        return {**self.extra, **settings, "image_processor_type": PROCESSOR_TYPE}


class MobileNetV2FeatureExtractor(MobileNetV2ImageProcessor):
    """Former name of ``MobileNetV2ImageProcessor``; deprecated, and the same but for a warning."""

    def __init__(self, *args: Any, **kwargs: Any):
        warnings.warn(
            "MobileNetV2FeatureExtractor is deprecated; use MobileNetV2ImageProcessor.", FutureWarning, stacklevel=2
        )
        super().__init__(*args, **kwargs)


def _prepare_picture(picture: np.ndarray, name: str, chosen: MobileNetV2ImageProcessor) -> np.ndarray:
    """Takes (H, W, 3) through the steps that are on."""
    if chosen.do_rescale and picture.dtype.kind == "f" and picture.min() >= 0 and 0 < picture.max() <= 1:
        warnings.warn(
            f"{name} is already in [0, 1] and do_rescale would scale it again; pass do_rescale=False.", stacklevel=4
        )
    if chosen.do_resize:
        picture = image_steps.resize_picture(picture, chosen.size, chosen.resample, name)
    if chosen.do_center_crop:
        picture = image_steps.center_crop(picture, chosen.crop_size)
    if chosen.do_rescale:
        picture = image_steps.rescale(picture, chosen.rescale_factor)
    if chosen.do_normalize:
        picture = image_steps.normalize(picture, chosen.image_mean, chosen.image_std)
    return picture


def _flatten_maps(segmentation_maps: Any, num_images: int) -> list[Any] | None:
    if segmentation_maps is None:
        return None
    maps = image_io.flatten_batch(segmentation_maps, rank=2, what="segmentation map")
    if len(maps) != num_images:
        raise DataError(f"Expected one segmentation map per image, {num_images}; found {len(maps)}.")
    return maps


def _prepare_map(source: Any, name: str, image_size: tuple[int, int], chosen: MobileNetV2ImageProcessor) -> np.ndarray:
    """Returns (H, W) int64 labels, resized and cropped as the image of that size is."""
    labels = image_io.read_map(source, name)
    if labels.shape != image_size:
        raise DataError(
            f"{name} must have its image's size, {image_size[0]}×{image_size[1]}; found "
            f"{labels.shape[0]}×{labels.shape[1]}. Check the order of the maps."
        )
    if chosen.do_reduce_labels:
        labels = image_steps.reduce_labels(labels)
    if chosen.do_resize:
        labels = image_steps.resize_map(labels, chosen.size, name)
    if chosen.do_center_crop:
        labels = image_steps.center_crop(labels, chosen.crop_size)
    return labels.astype(np.int64)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the settings of a MobileNetV2 preprocessor, without the keys that name its type."""
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"No {path.name} in {path.parent}. Copy the one that belongs to the weights there, or write one: "
            f"{PROCESSOR_TYPE}(size=…, crop_size=…).save_pretrained(folder)."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object; found {type(values).__name__}.")
    types = [values.pop(key, None) for key in _TYPE_KEYS]
    found = next((kind for kind in types if kind is not None), PROCESSOR_TYPE)
    if found not in _KNOWN_TYPES:
        raise CheckpointError(
            f"{path} is for {shown(found)}; expected {PROCESSOR_TYPE!r}. Check that the folder or hub id is the one "
            "you meant."
        )
    return values
