"""What prepares images for given weights, of whatever format."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from flax_mnv2.checkpoint.folder import step_of
from flax_mnv2.hub import expand_user, resolve_folder
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import is_file_name
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import Source


def load_processor(
    weights: str | pathlib.Path | Source,
    *,
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
    **overrides: Any,
) -> MobileNetV2ImageProcessor:
    """Returns what prepares images for these weights, as transformers' ``AutoImageProcessor.from_pretrained`` does.

    Args:
      weights: a ``preprocessor_config.json``, a folder or hub id with one, of which nothing else is read then; or
        whatever else ``from_pretrained`` takes: of timm's and torchvision's weights it is what their evaluation does,
        of a checkpoint of a run what that noted.
      revision: branch, tag or commit of a hub id.
      cache_dir: where downloads are kept; None is huggingface_hub's default.
      **overrides: settings of ``MobileNetV2ImageProcessor`` to change, such as ``crop_size=513``.

    Raises:
      CheckpointError: nothing readable there, the preprocessor of another model, or one that nothing is known of.
      ConfigError: a setting or an override is unknown or out of its range.
    """
    options = {"revision": revision, "cache_dir": cache_dir}
    if not isinstance(weights, Source) and _has_file(weights, **options):
        return MobileNetV2ImageProcessor.from_pretrained(weights, **options, **overrides)
    processor = open_weights(weights, **options).processor()
    return MobileNetV2ImageProcessor.from_dict(processor.to_dict(), **overrides)


def _has_file(weights: str | pathlib.Path, **options: Any) -> bool:
    """Says whether it is a ``preprocessor_config.json`` or where one lies, which is then here."""
    path = expand_user(weights)
    if os.path.isfile(path):
        return path.suffix == ".json"
    if not os.path.isdir(path) and not is_file_name(path) and step_of(path.name) is None:
        path = resolve_folder(weights, files=(PROCESSOR_NAME,), **options)
    return (path / PROCESSOR_NAME).is_file()
