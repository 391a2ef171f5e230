"""The published networks, with their size and cost."""

from collections.abc import Iterable

from flax_mnv2 import MobileNetV2Config, list_models, variant_config
from flax_mnv2.config.deeplab import PRESETS
from flax_mnv2.models.complexity import complexity


def page() -> str:
    """Returns three tables: classifiers of every published size, segmentation heads, detectors."""
    classifiers = [(f"`{name}`", variant_config(name), "classification", None) for name in list_models()]
    heads = [
        (f"`{name}`", MobileNetV2Config(num_labels=21, output_stride=16, deeplab=name), "segmentation", 513)
        for name in PRESETS
    ]
    detectors = [
        (f"SSDLite {width:g}, 80 classes", MobileNetV2Config(num_labels=80, depth_multiplier=width), "detection", 320)
        for width in (1.0, 0.75, 0.5, 0.35)
    ]
    return "\n\n".join(
        [
            "## Classifiers, 1001 classes\n\n" + _table("name", classifiers),
            "## Segmentation, width 1.0, 21 classes, output stride 16, 513²\n\n" + _table("head", heads),
            "## Detection, 320²\n\n" + _table("network", detectors),
        ]
    )


def _table(title: str, rows: Iterable[tuple[str, MobileNetV2Config, str, int | None]]) -> str:
    lines = [f"| {title} | image | parameters | of them batch norm's | multiply-adds |", "|---|---:|---:|---:|---:|"]
    for name, config, task, size in rows:
        counted = complexity(config, task, image_size=size)
        side = size or config.image_size
        lines.append(
            f"| {name} | {side}² | {counted.parameters:,} | {counted.norm_parameters:,} "
            f"| {counted.multiply_adds / 1e6:,.1f} M |"
        )
    return "\n".join(lines)
