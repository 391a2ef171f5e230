"""The part of a run's config that the jobs with vectors have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax_mnv2.tasks.classification.config import add_image_defaults

if TYPE_CHECKING:
    import ml_collections


def add_defaults(config: ml_collections.ConfigDict, dataset: str) -> None:
    """Adds the fields with their defaults and meanings; ``dataset`` is the name of the job's own."""
    data = config.data
    data.dataset = dataset
    data.table = ""  # CSV, or folder of JSON files: a path, or a name in the archive; empty: what is found there
    add_image_defaults(data)
    # What a random crop leaves out may be what the labels speak of.
    data.train_crop = data.eval_preparation = "whole"
