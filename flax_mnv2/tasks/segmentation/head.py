"""``config.model.deeplab``: the head of a segmentation run, a preset and what differs from it."""

from __future__ import annotations

import dataclasses
import types
import typing

from flax_mnv2.config.deeplab import DeepLabSpec, preset

if typing.TYPE_CHECKING:
    import ml_collections


def add_defaults(config: ml_collections.ConfigDict) -> None:
    """Adds the section: the preset, and each field of ``DeepLabSpec``, None where it is as the preset has it."""
    import ml_collections

    section = config.model.deeplab = ml_collections.ConfigDict()
    section.preset = "hugging_face"  # one of flax_mnv2.config.deeplab.PRESETS; deeplab_v3plus is the original's V3+
    for name, kind in _kinds().items():
        section[name] = ml_collections.config_dict.placeholder(kind)


def spec_of(config: ml_collections.ConfigDict) -> DeepLabSpec:
    """Returns what the section says, or raises a ConfigError; ``""`` and ``()`` stand for None where None may be."""
    values = config.model.deeplab.to_dict()
    head = preset(values.pop("preset"))
    given = {name: value for name, value in values.items() if value is not None}
    for name, empty in (("low_level", ""), ("pooling_size", ())):
        if given.get(name) == empty:
            given[name] = None
    return head.replace(**given)


def _kinds() -> dict[str, type]:
    """Returns the type of each field, without None."""
    hints = typing.get_type_hints(DeepLabSpec)
    kinds = {}
    for field in dataclasses.fields(DeepLabSpec):
        hint = hints[field.name]
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        [kind] = (option for option in options if option is not type(None))
        kinds[field.name] = typing.get_origin(kind) or kind
    return kinds
