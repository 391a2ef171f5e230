"""The weights that a run starts from."""

from typing import Any

import ml_collections
import numpy as np
from flax import traverse_util

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE
from flax_mnv2.config.detection import DECIDE_OUTPUTS, DetectionSpec
from flax_mnv2.errors import CheckpointError
from flax_mnv2.models.quantization.rounding import COLLECTION
from flax_mnv2.tasks.base import Task
from flax_mnv2.weights.formats.pytorch import norm_widths
from flax_mnv2.weights.pretrained import load_backbone, open_weights
from flax_mnv2.weights.source import UNFOLDED_NOTE, Source

# Fields of MobileNetV2Config that decide shapes, and the one that decides a shortcut.
_SHAPE_FIELDS = (
    "depth_multiplier",
    "layer_depth_multiplier",
    "depth_divisible_by",
    "min_depth",
    "expand_ratio",
    "first_layer_is_expansion",
    "finegrained_output",
    "fixed_stem_and_head",
    "round_widths",
    "num_channels",
)
_STEM_RESIDUAL = "stem_residual"
_NOTED_FIELDS = ("tf_padding", "layer_norm_eps", "hidden_act", "pad_block_input")


def initial_weights(config: ml_collections.ConfigDict, task: Task, variables: Any) -> tuple[Any, list[str]]:
    """Returns ``variables`` with what ``config.init_from`` has, the backbone alone or everything, and lines to print.

    The lines name pixels, padding or activations that the weights learned with and the run does not have.
    """
    source, ours, lines = open_weights(config.init_from), task.model.config, []
    _check_same_network(config, source.config, ours)
    if config.init_scope == "backbone":
        variables = load_backbone(source, variables)
    else:
        if source.config.num_labels != ours.num_labels:
            raise CheckpointError(
                f"{config.init_from} has {source.config.num_labels} classes and the data {ours.num_labels}; "
                "use --config.init_scope=backbone to start with a new head."
            )
        flat = traverse_util.flatten_dict(dict(variables))
        try:
            flat = source.select({path: np.shape(value) for path, value in flat.items()})
        except CheckpointError as error:
            raise CheckpointError(f"{error}\nTo take the backbone alone: --config.init_scope=backbone") from None
        variables = traverse_util.unflatten_dict(flat)
        notes = [*source.notes, *([UNFOLDED_NOTE] if source.folded else [])]
        lines = [f"note: {config.init_from}: {note}" for note in notes]
    if COLLECTION in variables:  # its ranges go on from those that were learned, its steps are counted from here
        variables = {**variables, COLLECTION: {**variables[COLLECTION], "step": np.int32(0)}}
    return variables, lines + _origin_notes(config, source, ours)


def _check_same_network(config: ml_collections.ConfigDict, theirs: MobileNetV2Config, ours: MobileNetV2Config) -> None:
    """Raises a CheckpointError that names the fields to set, unless both backbones have the same shapes."""
    same_widths = norm_widths(theirs.layer_plan) == norm_widths(ours.layer_plan)
    if same_widths and theirs.num_channels == ours.num_channels:
        return
    names = [name for name in (*_SHAPE_FIELDS, _STEM_RESIDUAL) if getattr(theirs, name) != getattr(ours, name)]
    rows = "\n".join(f"  {name}: {getattr(theirs, name)} there, {getattr(ours, name)} in this run" for name in names)
    flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in names if name in config.model)
    raise CheckpointError(
        f"{config.init_from} has layers of other widths than config.model describes:\n{rows}\n"
        f"To start from it: {flags or 'a run of such a network, which this task does not have'}"
    )


def _origin_notes(config: ml_collections.ConfigDict, source: Source, ours: MobileNetV2Config) -> list[str]:
    theirs = source.config
    names = [name for name in _NOTED_FIELDS if getattr(theirs, name) != getattr(ours, name)]
    if theirs.layer_plan.stem.residual != ours.layer_plan.stem.residual:
        names.append(_STEM_RESIDUAL)
    notes = [_note(config, f"model.{name}", getattr(theirs, name), getattr(ours, name)) for name in names]
    if config.init_scope == "all":
        notes += _head_notes(config, theirs, ours)
    try:
        processor = source.processor()
    except CheckpointError:  # there is none, and nothing to compare
        return notes
    for name in ("image_mean", "image_std"):
        if name in config.data and not np.allclose(getattr(processor, name), config.data[name]):
            there, here = (",".join(map(str, values)) for values in (getattr(processor, name), config.data[name]))
            notes.append(_note(config, f"data.{name}", there, here))
    return notes


def _head_notes(config: ml_collections.ConfigDict, theirs: MobileNetV2Config, ours: MobileNetV2Config) -> list[str]:
    """Returns what differs between heads of the same shapes, and in the dilation below them."""
    notes = []
    if theirs.layer_plan != ours.layer_plan and theirs.dilation_rule != ours.dilation_rule:
        notes.append(_note(config, "model.dilation_rule", theirs.dilation_rule, ours.dilation_rule))
    rows = []
    if "deeplab" in config.model:
        specs = [(model.deeplab or HUGGING_FACE).to_dict() for model in (theirs, ours)]
        rows += [(f"model.deeplab.{name}", *(spec[name] for spec in specs)) for name in specs[0]]
    if "detection" in config:
        detectors = [model.detection or DetectionSpec() for model in (theirs, ours)]
        rows += [(f"detection.{name}", *(getattr(spec, name) for spec in detectors)) for name in DECIDE_OUTPUTS]
    return notes + [_note(config, *row) for row in rows if row[1] != row[2]]


def _note(config: ml_collections.ConfigDict, name: str, theirs: Any, ours: Any) -> str:
    field = name.partition(".")[2]
    flag = theirs
    if theirs is None:
        flag = "()" if name.endswith("_size") else ""
    elif isinstance(theirs, list):
        flag = ",".join(map(str, theirs)) or "()"
    return (
        f"note: {config.init_from} was trained with {field} {theirs}, this run has {ours}; --config.{name}={flag} "
        "keeps what it learned"
    )
