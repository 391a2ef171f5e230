"""What make_foreign_weights.py and the tests that read its files agree on: small networks, and their images."""

import numpy as np

BLOCKS = ((8, 1, 2), (16, 2, 2))  # the table of the fixture tiny_blocks
WIDTHS = {"stem": (16, 8), "blocks": (8, 8, 8), "last": 640}  # of it at α 0.5, TF-slim's rule
ALPHA, NUM_CLASSES, NUM_SEGMENTED = 0.5, 6, 4
OUTPUT_STRIDE = 4  # of the DeepLab, so that its last block dilates
SSD_ALPHA, SSD_CLASSES = 0.1, 3  # with the background as many slots as a box has numbers
SSD_WIDTHS = {"stem": (16, 16), "blocks": (16, 16, 16), "last": 128, "extra": (51, 25, 25, 16)}
SSD_KINDS = (3, 6, 6, 6, 6, 6)  # of anchors, on the expansion of block 2 and on what follows
PLUS_WIDTH, LOW_WIDTH = 32, 12  # of the DeepLabV3+
SIZE, ODD_SIZE = (64, 64), (65, 98)
KERAS_ALPHA, KERAS_SIZE = 0.1, (64, 64)
KERAS_ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


def images(size: tuple[int, int]) -> np.ndarray:
    """Returns two images, float32 in [-1, 1]."""
    return np.random.default_rng(5).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def levels(rng: np.random.Generator, shape: tuple[int, ...], *, kind: str) -> np.ndarray:
    """Returns numbers of a useful scale on a coarse grid, so that files of them compress well."""
    if kind == "kernel":
        fan_in = np.prod(shape[:2]) * (1 if shape[-1] == 1 else np.prod(shape[2:-1]))
        step = 2.0 ** np.round(np.log2(np.sqrt(2 / fan_in) / 4))
        return (rng.integers(-7, 8, shape) * step).astype(np.float32)
    low, high = {"gamma": (4, 12), "variance": (4, 16), "offset": (-4, 8)}[kind]
    return (rng.integers(low, high + 1, shape) / 8).astype(np.float32)
