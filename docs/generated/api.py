"""The public names, in the order in which a reader meets them, each for mkdocstrings to write out."""

import inspect
from collections.abc import Callable, Iterator

import flax.linen as nn
from mkdocs.exceptions import PluginError

import flax_mnv2
from flax_mnv2 import models
from flax_mnv2.config.deeplab import DeepLabSpec
from flax_mnv2.export import export
from flax_mnv2.models.complexity import complexity
from flax_mnv2.models.mobilenet_v2 import MobileNetV2Base

# Heading → names; a name that stands nowhere ends the build.
_GROUPS = {
    "Models": (
        *("MobileNetV2Model", "MobileNetV2ForImageClassification", "MobileNetV2ForSemanticSegmentation"),
        *("MobileNetV2ForObjectDetection", "MobileNetV2Backbone", "MobileNetV2PreTrainedModel"),
    ),
    "Configuration": ("MobileNetV2Config", "DetectionSpec", "QuantizationSpec"),
    "Weights": (
        *("from_pretrained", "save_pretrained", "load_backbone", "load_variables", "from_state_dict"),
        *("to_state_dict", "from_keras"),
    ),
    "Images": ("MobileNetV2ImageProcessor", "MobileNetV2FeatureExtractor", "load_processor"),
    "Inference and quantisation": ("make_inference_fn", "fold_batch_norm", "calibrate"),
    "Variants": ("list_models", "variant_config", "VARIANTS"),
    "Errors": ("UserError", "ConfigError", "CheckpointError", "DataError"),
}
_BOTH = (
    "With `from_pretrained` and `save_pretrained` of `MobileNetV2PreTrainedModel`, and the attributes of all networks."
)
_BELOW = (export, DeepLabSpec, complexity)  # public too, each in a module of its own
_VALUES = {"__version__", "VARIANTS"}  # no functions, no classes: they have no docstring of their own


def page() -> str:
    """Returns the text of the page: a directive for each name of ``flax_mnv2.__all__``."""
    grouped = {name for names in _GROUPS.values() for name in names}
    if missing := set(flax_mnv2.__all__) - grouped - {"__version__"}:
        raise PluginError(f"docs/generated/api.py has no place for {', '.join(sorted(missing))}.")
    if undescribed := sorted(_undescribed()):
        raise PluginError(f"Public names without a docstring: {', '.join(undescribed)}.")
    parts = [part for heading, names in _GROUPS.items() for part in (f"## {heading}", *map(_entry, names))]
    parts += ["## Below the top", *(f"In `{value.__module__}`:\n\n{_directive(value)}" for value in _BELOW)]
    parts.insert(1, f"### What all networks take\n\n{_directive(MobileNetV2Base, heading=False)}")
    return "\n\n".join(parts)


def _entry(name: str) -> str:
    value = getattr(flax_mnv2, name)
    if name in _VALUES:
        rows = ", ".join(f"`{key}`" for key in value)
        return f"### {name}\n\nPublished networks by name: {rows}."
    if not inspect.isclass(value) or value is flax_mnv2.MobileNetV2PreTrainedModel:
        return _directive(value)
    network = getattr(models, name, None)
    if network in (None, value):
        return _directive(value)
    # A public model is a network of flax_mnv2.models that also loads and saves itself.
    return f"### {name}\n\n{_BOTH}\n\n{_directive(network, heading=False)}"


def _directive(value: type | Callable, *, heading: bool = True) -> str:
    """Returns what mkdocstrings writes out; imported names are found where they are defined."""
    lines = [f"::: {value.__module__}.{value.__qualname__}"]
    if inspect.isclass(value) and issubclass(value, nn.Module):
        lines += ["    options:", '      filters: ["!^_[^_]", "!^setup$"]']
    elif not heading:
        lines += ["    options:"]
    if not heading:
        lines += ["      show_root_heading: false", "      show_root_toc_entry: false"]
    return "\n".join(lines)


def _undescribed() -> Iterator[str]:
    """Yields public functions and classes, and public methods of our own, that say nothing of themselves."""
    for name in flax_mnv2.__all__:
        value = getattr(flax_mnv2, name)
        if name in _VALUES:
            continue
        if not (value.__doc__ or "").strip():
            yield name
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            ours = inspect.isfunction(function) and function.__module__.startswith("flax_mnv2")
            if ours and not attribute.startswith("_") and not (function.__doc__ or "").strip():
                yield f"{name}.{attribute}"
