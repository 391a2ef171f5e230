"""``jax.export`` with dimensions that are known when the program is run: the same outputs as of the model itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from structure import drawn

import flax_mnv2 as fm


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch):
    """One with a shortcut, one without."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 2, 2),))


SHAPES = {
    "b,48,64,3": [(1, 48, 64, 3), (3, 48, 64, 3)],
    "b,h,w,3": [(2, 48, 64, 3), (1, 39, 70, 3)],
}


def _images(shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _exported(function, *arguments, spec):
    """Through bytes and back, as it would come to a server."""
    sides = ["h>=32", "w>=32"] if "h" in spec else []
    images = jax.ShapeDtypeStruct(export.symbolic_shape(spec, constraints=sides), jnp.float32)
    program = export.export(jax.jit(function))(*arguments, images)
    return export.deserialize(program.serialize()).call


def _close(found, expected):
    scale = np.abs(expected).max()
    assert scale > 0.1, "all but zero: nothing would show"
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("make", "fields", "spec", "implementation"),
    [
        (fm.MobileNetV2ForImageClassification, {}, "b,h,w,3", "auto"),
        (fm.MobileNetV2ForImageClassification, {"tf_padding": False, "pool_window": 2}, "b,48,64,3", "cpu"),
        (fm.MobileNetV2ForSemanticSegmentation, {"output_stride": 4}, "b,h,w,3", "auto"),
    ],
    ids=["classification", "torch padding", "segmentation"],
)
def test_models(make, fields, spec, implementation):
    model = make(fm.MobileNetV2Config(**fields), implementation=implementation)
    variables = drawn(model)
    call = _exported(lambda variables, images: model.apply(variables, images).logits, variables, spec=spec)
    for shape in SHAPES[spec]:
        _close(call(variables, _images(shape)), jax.jit(model.apply)(variables, _images(shape)).logits)


def test_compiled_inference():
    model = fm.MobileNetV2ForImageClassification(fm.MobileNetV2Config())
    predict = fm.make_inference_fn(model, drawn(model))
    call = _exported(lambda images: predict(images).logits, spec="b,48,64,3")
    for shape in SHAPES["b,48,64,3"]:
        _close(call(_images(shape)), predict(_images(shape)).logits)


def test_gradients():
    """A program that is trained elsewhere, on batches of any size."""
    model = fm.MobileNetV2Model(fm.MobileNetV2Config())
    variables = drawn(model)

    def loss(params, images):
        return jnp.sum(model.apply({**variables, "params": params}, images, run_to="layer_00").last_hidden_state ** 2)

    call = _exported(jax.grad(loss), variables["params"], spec="b,48,64,3")
    found = call(variables["params"], _images((3, 48, 64, 3)))
    expected = jax.jit(jax.grad(loss))(variables["params"], _images((3, 48, 64, 3)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3), found, expected)
