"""An operation with a table of forms computes the one of the platform that it is lowered for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.models.ops.platforms import Form, platform_op

FACTORS = {"default": 2.0, "gpu": 3.0, "tpu": 5.0}


def _form(factor):
    return Form(lambda power, x: factor * x**power, lambda power, arrays, cotangent: (factor * cotangent,))


OP = platform_op({name: _form(factor) for name, factor in FACTORS.items()})


@pytest.mark.parametrize(("platform", "form"), [("cpu", "default"), ("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")])
@pytest.mark.parametrize("differentiate", [False, True])
def test_the_form_of_the_platform_is_lowered(platform, form, differentiate):
    def compute(x):
        return OP(3, "auto", x)

    function = jax.jit(jax.grad(compute) if differentiate else compute)
    text = function.trace(jnp.ones(())).lower(lowering_platforms=(platform,)).as_text()
    held = {name for name, factor in FACTORS.items() if f"dense<{factor:.6e}>" in text}
    assert held == {form}


@pytest.mark.parametrize(("name", "form"), [("default", "default"), ("cpu", "default"), ("gpu", "gpu"), ("tpu", "tpu")])
def test_a_form_can_be_chosen_by_name(name, form):
    x = jnp.asarray(2.0)
    assert OP(3, name, x) == FACTORS[form] * 8.0
    np.testing.assert_array_equal(jax.grad(lambda x: OP(3, name, x))(x), FACTORS[form])
