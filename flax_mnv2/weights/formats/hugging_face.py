"""Hugging Face transformers: its folder, and its state dict ↔ Flax variables.

Names correspond one to one: ``mobilenet_v2.layer.3.conv_3x3.convolution.weight`` is
``params/mobilenet_v2/layer_03/conv_3x3/convolution/kernel``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.files import read_text
from flax_mnv2.weights.formats import timm
from flax_mnv2.weights.formats.base import CONFIG_NAME, Format, Found
from flax_mnv2.weights.formats.deeplab import smp
from flax_mnv2.weights.source import Checkpoint, Source, stated_task
from flax_mnv2.weights.tensor_files import find_weights
from flax_mnv2.weights.tensors import Path, StateDict, torch_naming, write_state

PREFIX = "mobilenet_v2."
_BACKBONE = re.compile(r"mobilenet_v2\.(conv_stem|layer\.\d+|conv_1x1)\.|(conv_stem|layer\.\d+)\.conv_3x3\.")
_HEADS = ("classifier.", "segmentation_head.")
_TASKS = ("backbone", "classification", "segmentation")
# Fields of ours that change the network, and which transformers does not know.
PLAN_FIELDS = (
    *("layer_depth_multiplier", "fixed_stem_and_head", "stem_residual", "round_widths"),
    *("dilation_rule", "pad_block_input"),
)
OTHER_NETWORK_FIELDS = ("pool_window", "global_pool", "deeplab")


def _prefix_of(modules: Path) -> str:
    return ".".join(re.sub(r"^layer_0?(\d+)$", r"layer.\1", module) for module in modules)


NAMING = torch_naming(_prefix_of, backbone=r"mobilenet_v2\.")


class HuggingFaceFormat(Format):
    """A folder of ``transformers``, or one of its state dicts, alone or in a file beside its ``config.json``."""

    name = "hf"
    example = "mobilenet_v2.conv_stem.first_conv.convolution.weight"

    def knows(self, names: Iterable[str]) -> bool:
        """By the backbone's, which stand alone in a model without a head."""
        return any(map(_BACKBONE.match, names))

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors; a folder by its weights, where the config is not timm's."""
        if found.tensors is None:
            others = timm.is_config(found.values) or smp.is_config(found.values)
            return find_weights(found.where) is not None and not others
        return self.knows(found.tensors.unwrapped(self.knows).state)

    def open(self, found: Found) -> Source:
        """Reads tensors and config, which the tensors do not say."""
        config, text = _read_config(found)
        tensors = found.read().unwrapped(self.knows)
        state = tensors.state
        if not any(key.startswith(PREFIX) for key in state):  # a bare backbone, without the prefix of one under a head
            state = {key if key.startswith(_HEADS) else f"{PREFIX}{key}": value for key, value in state.items()}
        return Source(
            format=self.name,
            where=found.where,
            config=config,
            task=stated_task(config),
            state=state,
            naming=NAMING,
            config_text=text,
            processor_folder=found.folder,
            notes=tensors.notes,
        )

    def check_target(self, checkpoint: Checkpoint) -> None:
        """Fields of ours may be set where they change nothing: what counts is the network that follows."""
        if checkpoint.task not in _TASKS:
            raise ConfigError(
                f"transformers has no MobileNetV2 for {checkpoint.task}. Use the flax format instead: --to flax, or "
                'save_pretrained(…, layout="flax").'
            )
        config = checkpoint.config
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        fields = [name for name in OTHER_NETWORK_FIELDS if getattr(config, name) != defaults[name]]
        if checkpoint.task != "segmentation" and "deeplab" in fields:
            fields.remove("deeplab")
        if config.replace(**{name: defaults[name] for name in PLAN_FIELDS}).layer_plan != config.layer_plan:
            without = {name: config.replace(**{name: defaults[name]}) for name in PLAN_FIELDS}
            fields += [name for name in PLAN_FIELDS if without[name].layer_plan != config.layer_plan]
        if fields:
            found = "\n".join(
                f"  {name}: transformers has {defaults[name]!r}, this model {getattr(config, name)!r}"
                for name in fields
            )
            raise ConfigError(
                f"transformers cannot represent this network; it would build another one from the config:\n{found}\n"
                'Use the flax format instead: --to flax, or save_pretrained(…, layout="flax").'
            )

    def state_dict(self, checkpoint: Checkpoint) -> StateDict:
        """Returns all that transformers' own class would save."""
        state = write_state(checkpoint.tensors, NAMING)
        if checkpoint.task == "backbone":  # a bare one has no prefix there
            state = {key.removeprefix(PREFIX): value for key, value in state.items()}
        return state


def _read_config(found: Found) -> tuple[MobileNetV2Config, str | None]:
    """Returns the config and the text that it was read from."""
    if found.config is not None:
        return found.config, None
    path = None if found.folder is None else found.folder / CONFIG_NAME
    if path is None or (found.tensors is not None and not path.exists()):
        advice = "Pass config=MobileNetV2Config.from_dict(model.config.to_dict())."
        if path is not None:
            advice = f"No {CONFIG_NAME} lies beside it; put the model's there."
        raise CheckpointError(
            f"{found.where} has transformers' tensor names, and the tensors do not say padding, epsilon and output "
            f"stride. {advice}"
        )
    return MobileNetV2Config.from_json_file(path), read_text(path)
