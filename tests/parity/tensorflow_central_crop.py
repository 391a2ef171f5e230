"""Run by test_tensorflow_preparation.py in a process of its own: what TF-slim does to an evaluation image.

Arguments: a .npz of uint8 images by name, the side, and where to write the results.
"""

import sys

import numpy as np
import tensorflow as tf


def main(source: str, side: str, target: str) -> None:
    """Crops and resizes each image, floating point in levels."""
    results = {}
    for name, image in np.load(source).items():
        cropped = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
        resized = tf.compat.v1.image.resize_bilinear(cropped[None], [int(side)] * 2, align_corners=False)
        results[name] = resized[0].numpy() * 255
    np.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
