"""An image and a processor."""

import numpy as np
import pytest

from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor


@pytest.fixture
def image():
    """Noise, (40, 60, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


@pytest.fixture
def processor():
    """To a shorter side of 32, of which 24 are kept."""
    return MobileNetV2ImageProcessor(size=32, crop_size=24)
