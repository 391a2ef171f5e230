"""TF-slim's evaluation crop against TensorFlow's own operations."""

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.data.augment.central_crop import CentralCrop


@pytest.mark.parametrize("side", [224, 96])
def test_central_crop_is_tensorflows(run_tensorflow, side):
    rng = np.random.default_rng(side)
    sizes = ((375, 500), (500, 333), (97, 130), (64, 64), (301, 222))
    images = {f"{h}x{w}": rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes}
    expected = run_tensorflow("tensorflow_central_crop.py", images, str(side))
    for name, image in images.items():
        ours = CentralCrop(side)(Image.fromarray(image))
        assert (ours.shape, ours.dtype) == ((side, side, 3), np.uint8)
        difference = np.abs(ours - expected[name])
        assert difference.max() <= 0.5 + 2e-2, f"{name}: {difference.max()}"  # ours is rounded to whole levels
