"""Numbers, ranges and widths of integers that fake quantisation is compared with TensorFlow's for."""

import numpy as np

RANGES = ((-6.0, 6.0), (-3.1, 5.7), (0.0, 6.0), (0.0, 0.0), (0.1, 1.0), (-2.0, -1.0), (-0.001, 7.33), (-1e-6, 1e-6))
WIDTHS = tuple((num_bits, narrow) for num_bits in (4, 8) for narrow in (False, True))
SHAPE = (10, 13, len(RANGES))


def numbers() -> np.ndarray:
    """Returns numbers of ``SHAPE`` inside and outside of the ranges, and some that lie between two steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.0, 4.0, SHAPE).astype(np.float32)
    x[0, :3] = [[-6.0], [6.0], [0.0]]
    halves = np.arange(-39, 39)[:, None] * np.array([high - low for low, high in RANGES], np.float32)
    x[1:4] = (halves / np.float32(255) / 2)[1::2].reshape(3, 13, -1)
    x[4:7] = (halves / np.float32(254) / 2)[1::2].reshape(3, 13, -1)
    x[7] *= np.float32(1e-3)
    return x


def cotangents() -> np.ndarray:
    """Returns what the gradients are weighted with: whole numbers, whose sums do not depend on the order."""
    return np.random.default_rng(1).integers(-8, 9, SHAPE).astype(np.float32)


def names() -> dict[str, tuple]:
    """Returns (range or None for one for each channel, number of bits, narrow) by case."""
    cases = {}
    for num_bits, narrow in WIDTHS:
        for ends in (*RANGES, None):
            kind = "channels" if ends is None else f"{ends[0]:g} to {ends[1]:g}"
            cases[f"{kind}, {num_bits} bits{', narrow' if narrow else ''}"] = (ends, num_bits, narrow)
    return cases
