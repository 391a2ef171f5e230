"""Writes fake_quant.npz beside it: what TensorFlow's fake quantisation gives, and its gradients.

pip install "tensorflow-cpu>=2.20,<3"
python tests/parity/golden/make_fake_quant.py
"""

import os
import pathlib

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3"}  # before TensorFlow is imported

import fake_quant_inputs as given
import numpy as np
import tensorflow as tf

if __name__ == "__main__":
    results = {}
    x, cotangents = tf.constant(given.numbers()), tf.constant(given.cotangents())
    for name, (ends, num_bits, narrow) in given.names().items():
        forward = tf.quantization.fake_quant_with_min_max_vars
        if ends is None:
            forward, ends = tf.quantization.fake_quant_with_min_max_vars_per_channel, zip(*given.RANGES, strict=True)
        low, high = (tf.constant(end, tf.float32) for end in ends)
        with tf.GradientTape() as tape:
            tape.watch((x, low, high))
            y = forward(x, low, high, num_bits=num_bits, narrow_range=narrow)
        gradients = tape.gradient(y, (x, low, high), cotangents)
        results[name] = y.numpy()
        results |= {f"{name}/{what}": part.numpy() for what, part in zip(("x", "low", "high"), gradients, strict=True)}
    np.savez_compressed(pathlib.Path(__file__).with_name("fake_quant.npz"), **results)
