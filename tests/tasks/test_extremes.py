"""The best and the worst of a stream, few of which are ever made."""

import numpy as np

from flax_mnv2.tasks.extremes import Extremes


def test_the_best_and_the_worst_are_kept_in_order():
    errors = np.random.default_rng(0).permutation(1000).astype(float)
    kept, made = Extremes(3), []
    for error in errors:
        kept.add(error, lambda error=error: made.append(error) or error)
    assert kept.best == [0, 1, 2]
    assert kept.worst == [999, 998, 997]
    assert len(made) < 100


def test_of_equal_ones_the_first_stay_and_few_are_both():
    kept = Extremes(2)
    for name in "abc":
        kept.add(0.5, lambda name=name: name)
    assert (kept.best, kept.worst) == (["a", "b"], ["a", "b"])
    none = Extremes(0)
    none.add(1.0, lambda: 1 / 0)
    assert (none.best, none.worst) == ([], [])
