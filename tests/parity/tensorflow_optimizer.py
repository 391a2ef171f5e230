"""Run by test_tensorflow_optimizer.py in a process of its own: TensorFlow's RMSProp, schedule and moving average.

Arguments: a .npz of gradients (steps, …) by name and initial values under init_NAME; where to write the results.
"""

import sys

import numpy as np
import tensorflow as tf

LEARNING_RATE, DECAY_RATE, DECAY_EVERY, EMA = 0.045, 0.98, 6, 0.9
v1 = tf.compat.v1


def main(source: str, target: str) -> None:
    """Trains for as many steps as there are gradients and writes every step's values, averages and rates."""
    given = np.load(source)
    names = [name for name in given.files if not name.startswith("init_")]
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.train.get_or_create_global_step()
        rate = v1.train.exponential_decay(LEARNING_RATE, step, DECAY_EVERY, DECAY_RATE, staircase=True)
        variables = {name: v1.get_variable(name, initializer=given[f"init_{name}"]) for name in names}
        gradients = {name: v1.placeholder(tf.float32, given[name].shape[1:]) for name in names}
        optimizer = v1.train.RMSPropOptimizer(rate, decay=0.9, momentum=0.9, epsilon=1.0)
        apply = optimizer.apply_gradients([(gradients[name], variables[name]) for name in names], global_step=step)
        average = tf.train.ExponentialMovingAverage(EMA, num_updates=step)
        with tf.control_dependencies([apply]):
            averaged = average.apply(list(variables.values()))
        session.run(v1.global_variables_initializer())
        results = {name: [] for name in (*names, *(f"ema_{name}" for name in names), "rate")}
        for index in range(len(given[names[0]])):
            results["rate"].append(session.run(rate))
            session.run(averaged, {gradients[name]: given[name][index] for name in names})
            for name in names:
                results[name].append(session.run(variables[name]))
                results[f"ema_{name}"].append(session.run(average.average(variables[name])))
    np.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
