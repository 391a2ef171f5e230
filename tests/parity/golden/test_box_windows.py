"""Windows of SSD's crop are distributed as TensorFlow's; box_windows.npz holds those, see make_box_windows.py."""

import pathlib

import box_window_inputs as given
import numpy as np
import pytest

from flax_mnv2.data.augment.box_crop import draw_window


@pytest.mark.parametrize("name", given.CASES)
def test_windows_are_distributed_as_tensorflows(name):
    with np.load(pathlib.Path(__file__).with_name("box_windows.npz")) as file:
        theirs = file[name].astype(int)
    case, rng = given.CASES[name], np.random.default_rng(0)
    boxes = np.array(case["boxes"], np.float32).reshape(-1, 4)
    ours = np.array(
        [draw_window(case["size"], boxes, rng, min_covered=case["min_covered"]) for _ in range(given.DRAWS)]
    )
    for measure in (
        lambda windows: windows[:, 2] * windows[:, 3],  # area
        lambda windows: windows[:, 3] / windows[:, 2],  # aspect
        lambda windows: windows[:, 0],
        lambda windows: windows[:, 1],
    ):
        each = [np.sort(measure(windows)) for windows in (ours, theirs)]
        both = np.concatenate(each)
        below = [np.searchsorted(values, both, side="right") / given.DRAWS for values in each]
        # Kolmogorov and Smirnov: the same distribution stays below this with probability 0.999.
        assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / given.DRAWS)
