"""Writes tensorflow.npz beside it: what TensorFlow makes of the arrays in tensorflow_inputs.py.

    pip install "tensorflow-cpu>=2.20,<3"
    python tests/parity/golden/make_tensorflow.py

TF-slim's crop of evaluation images, in levels, every ``ROW_STEP``-th row of them; and RMSProp, its staircase schedule
and the moving average, after every step.
"""

import os
import pathlib

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # before TensorFlow is imported

import numpy as np
import tensorflow as tf
import tensorflow_inputs as given

v1 = tf.compat.v1


def central_crops() -> dict[str, np.ndarray]:
    """Each image cropped to its middle 7/8 and resized, by ``crop/SIDE/NAME``."""
    results = {}
    for side in given.SIDES:
        for name, image in given.images(side).items():
            cropped = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
            resized = v1.image.resize_bilinear(cropped[None], [side] * 2, align_corners=False)
            results[f"crop/{side}/{name}"] = resized[0].numpy()[:: given.ROW_STEP] * 255
    return results


def optimizer_steps() -> dict[str, np.ndarray]:
    """Every step's values, averages and rates, by ``optimizer/…``."""
    gradients, first = given.gradients()
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.train.get_or_create_global_step()
        rate = v1.train.exponential_decay(
            given.LEARNING_RATE, step, given.DECAY_EVERY, given.DECAY_RATE, staircase=True
        )
        variables = {name: v1.get_variable(name, initializer=value) for name, value in first.items()}
        places = {name: v1.placeholder(tf.float32, value.shape) for name, value in first.items()}
        optimizer = v1.train.RMSPropOptimizer(rate, decay=0.9, momentum=0.9, epsilon=1.0)
        pairs = [(places[name], variables[name]) for name in first]
        apply = optimizer.apply_gradients(pairs, global_step=step)
        average = tf.train.ExponentialMovingAverage(given.EMA, num_updates=step)
        with tf.control_dependencies([apply]):
            averaged = average.apply(list(variables.values()))
        session.run(v1.global_variables_initializer())
        results = {name: [] for name in (*first, *(f"ema_{name}" for name in first), "rate")}
        for index in range(given.STEPS):
            results["rate"].append(session.run(rate))
            session.run(averaged, {places[name]: gradients[name][index] for name in first})
            for name in first:
                results[name].append(session.run(variables[name]))
                results[f"ema_{name}"].append(session.run(average.average(variables[name])))
    return {f"optimizer/{name}": np.stack(values) for name, values in results.items()}


if __name__ == "__main__":
    results = central_crops() | optimizer_steps()
    path = pathlib.Path(__file__).with_name("tensorflow.npz")
    np.savez_compressed(path, **results)
    print(f"{path}: {len(results)} arrays by TensorFlow {tf.__version__}")
