"""Writes box_windows.npz beside it: windows that TensorFlow draws around boxes.

pip install "tensorflow-cpu>=2.20,<3"
python tests/parity/golden/make_box_windows.py
"""

import os
import pathlib

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3"}  # before TensorFlow is imported

import box_window_inputs as given
import numpy as np
import tensorflow as tf

if __name__ == "__main__":
    tf.random.set_seed(0)
    results = {}
    for name, case in given.CASES.items():
        drawn = []
        for _ in range(given.DRAWS):
            begin, size, _ = tf.raw_ops.SampleDistortedBoundingBoxV2(
                image_size=np.array([*case["size"], 3], np.int32),
                bounding_boxes=np.array(case["boxes"], np.float32).reshape(-1, 1, 4),
                min_object_covered=case["min_covered"],
                aspect_ratio_range=[0.5, 2.0],
                area_range=[0.1, 1.0],
                max_attempts=100,
                use_image_if_no_bounding_boxes=True,
            )
            drawn.append([*begin.numpy()[:2], *size.numpy()[:2]])
        results[name] = np.array(drawn, np.int16)
    np.savez_compressed(pathlib.Path(__file__).with_name("box_windows.npz"), **results)
