"""Fake quantisation and its gradients are TensorFlow's to the bit; fake_quant.npz holds those (make_fake_quant.py)."""

import pathlib

import fake_quant_inputs as given
import jax
import numpy as np
import pytest

from flax_mnv2.models.ops.fake_quant import fake_quant


@pytest.fixture(scope="module")
def golden():
    with np.load(pathlib.Path(__file__).with_name("fake_quant.npz")) as file:
        return dict(file)


@pytest.mark.parametrize(("num_bits", "narrow"), given.WIDTHS)
def test_numbers_and_gradients_are_tensorflows(golden, num_bits, narrow):
    @jax.jit
    def run(x, low, high, cotangents):
        y, pull = jax.vjp(lambda *arrays: fake_quant(*arrays, num_bits=num_bits, narrow_range=narrow), x, low, high)
        return y, *pull(cotangents)

    cases = {name: case for name, case in given.names().items() if case[1:] == (num_bits, narrow)}
    assert len(cases) == len(given.RANGES) + 1
    for name, (ends, _, _) in cases.items():
        low, high = np.array(list(zip(*given.RANGES, strict=True)) if ends is None else ends, np.float32)
        results = run(given.numbers(), low, high, given.cotangents())
        for ours, what in zip(results, ("", "/x", "/low", "/high"), strict=True):
            np.testing.assert_array_equal(ours, golden[name + what], err_msg=name + what)
