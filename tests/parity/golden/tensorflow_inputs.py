"""What TensorFlow was given and test_tensorflow.py gives to us. RandomState's numbers are the same in every NumPy."""

import numpy as np

SIDES = (224, 96)
SIZES = ((375, 500), (500, 333), (97, 130), (64, 64), (301, 222))
ROW_STEP = 9  # of the cropped images every so many rows are kept, in all columns
STEPS = 20
LEARNING_RATE, DECAY_RATE, DECAY_EVERY, EMA = 0.045, 0.98, 6, 0.9


def images(side: int) -> dict[str, np.ndarray]:
    """Noise of several sizes by name, (H, W, 3) uint8."""
    rng = np.random.RandomState(side)
    return {f"{h}x{w}": rng.randint(0, 256, (h, w, 3), dtype=np.uint8) for h, w in SIZES}


def gradients() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gradients (STEPS, 4, 5) of three sizes, with some that are always zero and some that are large; first values."""
    rng = np.random.RandomState(0)
    scales = {"kernel": 1e-2, "scale": 3.0, "bias": 0.0}
    drawn = {name: (size * rng.standard_normal((STEPS, 4, 5))).astype(np.float32) for name, size in scales.items()}
    return drawn, {name: rng.standard_normal((4, 5)).astype(np.float32) for name in scales}
