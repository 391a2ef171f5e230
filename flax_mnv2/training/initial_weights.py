"""The weights that a run starts from."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.tasks.base import Task
from flax_mnv2.weights.pretrained import from_pretrained, load_backbone, load_config, load_processor


def initial_variables(config: ml_collections.ConfigDict, task: Task, variables: Any) -> Any:
    """Variables from ``config.init_from``: the backbone alone, or everything."""
    if config.init_scope == "backbone":
        return load_backbone(config.init_from, variables)
    model, loaded = from_pretrained(config.init_from, task=config.task)
    if model.config.num_labels != task.model.config.num_labels:
        raise CheckpointError(
            f"{config.init_from} has {model.config.num_labels} classes and the data {task.model.config.num_labels}; "
            "use --config.init_scope=backbone to start with a new head."
        )
    if jax.tree.map(np.shape, loaded) != jax.tree.map(np.shape, dict(variables)):
        raise CheckpointError(
            f"{config.init_from} has layers of other widths than config.model describes; set config.model.* to "
            "the fields of its config.json."
        )
    return loaded


def origin_notes(config: ml_collections.ConfigDict) -> list[str]:
    """Lines to print where the weights of ``config.init_from`` learned with other pixels, padding or activations."""
    if not config.init_from:
        return []
    theirs, notes = load_config(config.init_from), []
    for name in ("tf_padding", "layer_norm_eps", "hidden_act"):
        if getattr(theirs, name) != config.model[name]:
            notes.append(_note(config, f"model.{name}", getattr(theirs, name), config.model[name]))
    if "image_mean" not in config.data:  # the job has one scale of pixels
        return notes
    try:
        processor = load_processor(config.init_from)
    except CheckpointError:  # there is none, and nothing to compare
        return notes
    for name in ("image_mean", "image_std"):
        expected, ours = tuple(getattr(processor, name)), tuple(config.data[name])
        if not np.allclose(expected, ours):
            notes.append(_note(config, f"data.{name}", ",".join(map(str, expected)), ",".join(map(str, ours))))
    return notes


def _note(config: ml_collections.ConfigDict, name: str, theirs: Any, ours: Any) -> str:
    field = name.partition(".")[2]
    return (
        f"note: {config.init_from} was trained with {field} {theirs}, this run has {ours}; --config.{name}={theirs} "
        "keeps what it learned"
    )
