"""Where the anchors of an SSD lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.layer_plan import LayerPlan


def map_sizes(spec: DetectionSpec, plan: LayerPlan, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns (height, width) of each map of a detector on the backbone of ``plan``, the finest first.

    Endpoints are those of ``models.endpoints``; an expansion has the resolution of its block's input.
    """
    strides, before = {"conv_stem": 2, "conv_1x1": plan.blocks[-1].output_stride}, 2
    for block in plan.blocks:
        strides |= {f"{block.name}/expansion": before, f"{block.name}/depthwise": block.output_stride}
        strides[block.name] = before = block.output_stride
    half = [-(-side // 2) if plan.stem.pads else (side - 1) // 2 for side in image_size]
    sizes = [tuple(-(-side // (strides[layer] // 2)) for side in half) for layer in spec.feature_layers]
    for _ in spec.extra_channels:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    return sizes


def make_anchors(spec: DetectionSpec, image_size: tuple[int, int], map_sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the anchors of an image (height, width) whose maps have these (height, width), (A, 4) float32.

    Each is (centre y, centre x, height, width) as fractions of the image. The kind of anchor runs fastest, then x, then
    y, then the map: the order of a detector's outputs. Anchors that reach beyond the image stay as they are.
    """
    height, width = image_size
    shorter = min(height, width)
    rows = []
    for index, (kinds, (map_height, map_width)) in enumerate(zip(spec.anchors, map_sizes, strict=True)):
        stride_y, stride_x = height / map_height, width / map_width
        if spec.strides is not None:
            stride_y = stride_x = spec.strides[index]
        centre_y = (np.arange(map_height) + 0.5) * stride_y / height
        centre_x = (np.arange(map_width) + 0.5) * stride_x / width
        sizes = np.array(kinds) * shorter / (height, width)
        grid = np.empty((map_height, map_width, len(kinds), 4))
        grid[..., 0], grid[..., 1] = centre_y[:, None, None], centre_x[None, :, None]
        grid[..., 2:] = sizes
        rows.append(grid.reshape(-1, 4))
    return np.concatenate(rows).astype(np.float32)
