"""The expanded map, never held whole on CPU, against its definition in float64; and whole networks of both forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from structure import variables_of

import flax_mnv2.layer_plan
from flax_mnv2 import MobileNetV2Config, MobileNetV2ForImageClassification
from flax_mnv2.models.layers import same_padding
from flax_mnv2.models.ops import slices
from flax_mnv2.models.ops.activations import ACTIVATION_FUNCTIONS
from flax_mnv2.models.ops.expansion import Expansion

TOLERANCES = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 2e-2}  # of the largest value
NAMES = ("x", "weights", "multiplier", "offset", "kernel")
IN_CHANNELS, CHANNELS = 3, 6
USUAL = {"stride": 2, "padding": ((1, 1), (0, 1)), "dilation": 1}
RELU6 = ACTIVATION_FUNCTIONS["relu6"]


def _window(height, width, stride, dilation, tf_padding):
    padding = same_padding(height, width, kernel=3, stride=stride, dilation=dilation, tf_padding=tf_padding)
    return {"stride": stride, "padding": padding, "dilation": dilation}


def _arrays(height=7, width=6, *, batch=2, without=(), taps=3, dtype="float64"):
    """A dict of NAMES; what ``without`` names is None. Multiplier and offset are at least float32, as in a network."""
    rng = np.random.default_rng(0)
    channels = CHANNELS if "weights" in without else IN_CHANNELS
    exact = jnp.promote_types(dtype, jnp.float32)
    arrays = {
        "x": (3.0 * rng.normal(size=(batch, height, width, channels)), dtype),
        "weights": (rng.normal(size=(IN_CHANNELS, CHANNELS)), dtype),
        "multiplier": (rng.uniform(0.5, 2.0, CHANNELS), exact),
        "offset": (rng.normal(size=CHANNELS), exact),
        "kernel": (rng.normal(size=(taps, taps, 1, CHANNELS)), dtype),
    }
    return {name: None if name in without else jnp.asarray(*arrays[name]) for name in NAMES}


def _ours(act=RELU6, implementation="auto", **window):
    """arrays → what a block computes of its expansion: mean, mean square, depthwise."""

    def run(arrays):
        expansion = Expansion(arrays["x"], arrays["weights"], implementation)
        affine_and_kernel = arrays["multiplier"], arrays["offset"], arrays["kernel"]
        mean, square = expansion.moments(arrays["offset"])
        return mean, square, expansion.depthwise(*affine_and_kernel, act=act, **(window or USUAL))

    return run


def _plain(act=RELU6, **window):
    """The same, as it is defined."""
    window = window or USUAL

    def run(arrays):
        y = arrays["x"]
        if arrays["weights"] is not None:
            y = jnp.einsum("nhwk,kc->nhwc", y, arrays["weights"])
        shifted = y - arrays["offset"].reshape(1, 1, 1, -1)
        mean, square = jnp.mean(shifted, axis=(0, 1, 2)), jnp.mean(shifted**2, axis=(0, 1, 2))
        if arrays["multiplier"] is not None:
            y = y * arrays["multiplier"].reshape(1, 1, 1, -1)
        y = y + arrays["offset"].reshape(1, 1, 1, -1)
        convolve = functools.partial(
            lax.conv_general_dilated,
            window_strides=(window["stride"],) * 2,
            padding=window["padding"],
            rhs_dilation=(window["dilation"],) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=CHANNELS,
        )
        return mean, square, convolve(y if act is None else act(y), arrays["kernel"])

    return run


def _with_gradients(run):
    """arrays → (outputs, gradients); the cotangents differ from pixel to pixel, and are of the outputs' size."""

    def compute(arrays):
        out, pull = jax.vjp(run, arrays)
        return out, pull(jax.tree.map(_cotangent, out))[0]

    return compute


def _cotangent(array):
    """Exact in bfloat16; the same for each image."""
    values = np.arange(np.prod(array.shape[-3:])).reshape(array.shape[-3:]) % 7 - 2.5
    return jnp.broadcast_to(jnp.asarray(values, array.dtype), array.shape)


def _assert_close(actual, expected, tolerance, *, least=0.0):
    """Leaf by leaf, to ``tolerance`` of the largest value of the leaf, or of ``least`` where that is larger."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        atol = tolerance * max(np.abs(other).max(), least)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def _assert_defined(arrays, act=RELU6, implementation="auto", **window):
    actual = jax.jit(_with_gradients(_ours(act, implementation, **window)))(arrays)
    mean, square, depthwise = actual[0]
    assert mean.dtype == square.dtype == arrays["offset"].dtype
    assert depthwise.dtype == arrays["x"].dtype
    assert jax.tree.map(lambda array: array.dtype, actual[1]) == jax.tree.map(lambda array: array.dtype, arrays)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda array: jnp.asarray(np.asarray(array, np.float64)), arrays)
        expected = jax.jit(_with_gradients(_plain(act, **window)))(exact)
        _assert_close(actual, expected, TOLERANCES[arrays["x"].dtype.name])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def per_slice(monkeypatch):
    """Sets how many images a slice takes."""

    def set_images(arrays, images):
        _, height, width, _ = arrays["x"].shape
        monkeypatch.setattr(slices, "_SLICE_BYTES", images * height * width * CHANNELS * arrays["x"].dtype.itemsize)

    return set_images


# Each size is even along one axis and odd along the other. Both rules of padding give the same at stride 1.
@pytest.mark.parametrize(
    ("height", "width", "stride", "tf_padding", "dilation", "dtype"),
    [
        (6, 7, 1, True, 1, "float32"),
        (5, 8, 2, True, 1, "float32"),
        (8, 7, 2, False, 1, "float32"),
        (6, 7, 1, True, 2, "float32"),
        (6, 5, 1, False, 4, "float32"),
        (5, 8, 2, True, 1, "bfloat16"),
    ],
)
def test_outputs_and_gradients(height, width, stride, tf_padding, dilation, dtype):
    arrays = _arrays(height, width, dtype=dtype)
    # No activation that rounding to bfloat16 could take to the other side of a kink.
    act = RELU6 if dtype == "float32" else ACTIVATION_FUNCTIONS["silu"]
    _assert_defined(arrays, act, **_window(height, width, stride, dilation, tf_padding))


@pytest.mark.parametrize("implementation", ["cpu", "default"])
def test_other_implementations(implementation, float64):
    _assert_defined(_arrays(), RELU6, implementation)


@pytest.mark.parametrize("act", ["silu", "hardswish", None])  # smooth, with kinks, none
def test_other_activations(act, float64):
    arrays = _arrays(3, 3, taps=2)
    _assert_defined(arrays, None if act is None else ACTIVATION_FUNCTIONS[act])


@pytest.mark.parametrize("without", [("weights",), ("multiplier",), ("weights", "multiplier")])
def test_without_weights_or_multiplier(without, float64, per_slice):
    arrays = _arrays(4, 3, without=without, batch=3, taps=2)
    per_slice(arrays, 1)
    _assert_defined(arrays)


@pytest.mark.parametrize(("batch", "images", "rows"), [(1, 1, 5), (7, 1, 5), (8, 4, 4)])
def test_batches_of_several_slices(batch, images, rows, float64, per_slice):
    arrays = _arrays(rows, 4, batch=batch, taps=2)
    per_slice(arrays, images)
    text = jax.jit(_ours()).lower(arrays).as_text()
    assert ("stablehlo.while" in text) == (batch % images != 0 or images < batch)
    _assert_defined(arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_added_up_over_many_slices_keep_their_precision(dtype, per_slice):
    arrays = _arrays(4, 4, batch=256, taps=2, dtype=dtype)
    per_slice(arrays, 1)
    _assert_defined(arrays, ACTIVATION_FUNCTIONS["silu"])


def test_variance_is_as_precise_as_that_of_the_map():
    """Of inputs far from zero it is a small difference of large sums."""
    arrays = _arrays(dtype="float32", batch=4)
    x = np.asarray(arrays["x"] + 100.0)
    weights = np.asarray(arrays["weights"], np.float64)
    product = np.asarray(x, np.float64) @ weights
    exact, shift = np.var(product, axis=(0, 1, 2)), product.mean((0, 1, 2)) + 1.0  # as a running mean is near it
    for implementation in ("auto", "default"):
        moments = jax.jit(lambda *arrays, i=implementation: Expansion(*arrays[:2], i).moments(arrays[2]))
        mean, square = moments(x, arrays["weights"], jnp.asarray(shift, jnp.float32))
        error = np.abs(np.asarray(square - mean**2, np.float64) - exact)
        assert (error <= 1e-5 * exact).all()


def _penalty(act, implementation, arrays):
    """The squared norm of the gradients, as in a gradient penalty."""
    run = _ours(act, implementation)
    gradients = jax.grad(lambda arrays: sum(jnp.sum(jnp.sin(out) * _cotangent(out)) for out in run(arrays)))(arrays)
    return sum(jnp.sum(gradient**2) for gradient in jax.tree.leaves(gradients))


@pytest.mark.parametrize("without", [(), ("weights", "multiplier")])
def test_gradient_of_the_gradient(without, float64, per_slice):
    arrays = _arrays(3, 4, without=without, taps=2)
    per_slice(arrays, 1)
    act = ACTIVATION_FUNCTIONS["silu"]
    ours, native = (
        jax.jit(jax.grad(functools.partial(_penalty, act, implementation)))(arrays)
        for implementation in ("auto", "default")
    )
    _assert_close(ours, native, 1e-11)


@pytest.mark.parametrize("implementation", ["auto", "cpu", "default"])
def test_forward_mode_is_refused(implementation):
    arrays = _arrays(dtype="float32")
    for pick in (slice(0, 2), slice(2, 3)):
        with pytest.raises(TypeError, match="can't apply forward-mode"):
            jax.jvp(lambda arrays, pick=pick: _ours(RELU6, implementation)(arrays)[pick], (arrays,), (arrays,))


def test_vmap_equals_a_loop(float64, per_slice):
    one = _arrays(3, 4, taps=2)
    per_slice(one, 1)
    several = jax.tree.map(lambda array: jnp.stack([array, array * 0.5, array + 0.25]), one)
    compute = _with_gradients(_ours())
    actual = jax.jit(jax.vmap(compute))(several)
    compiled = jax.jit(compute)
    expected = [compiled(jax.tree.map(lambda array, n=n: array[n], several)) for n in range(3)]
    _assert_close(actual, jax.tree.map(lambda *parts: jnp.stack(parts), *expected), 1e-12)


def test_remat_changes_nothing(float64, per_slice):
    arrays = _arrays(3, 4, taps=2)
    per_slice(arrays, 1)
    plain, again = (jax.jit(_with_gradients(run))(arrays) for run in (_ours(), jax.checkpoint(_ours())))
    _assert_close(again, plain, 1e-14)


@pytest.mark.parametrize(("how", "images"), [("pmap", 2), ("shard_map", 1), ("shard_map", 2), ("jit", 1)])
def test_four_devices_equal_one(how, images, float64, per_slice):
    arrays = _arrays(3, 4, batch=8, taps=2)
    per_slice(arrays, images)
    expected = jax.jit(_with_gradients(_plain()))(arrays)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {name: PartitionSpec("batch") if name == "x" else PartitionSpec() for name in arrays}

    if how == "jit":
        shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        actual = jax.jit(_with_gradients(_ours()))(jax.device_put(arrays, shardings))
        assert len(actual[0][2].sharding.device_set) == 4
    elif how == "shard_map":

        def run(arrays):
            mean, square, depthwise = _ours()(arrays)
            return lax.pmean(mean, "batch"), lax.pmean(square, "batch"), depthwise

        out_specs = PartitionSpec(), PartitionSpec(), PartitionSpec("batch")
        actual = jax.jit(_with_gradients(jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=out_specs)))(arrays)
    else:

        def run(arrays):
            (mean, square, depthwise), pull = jax.vjp(_ours(), arrays)
            # The moments of all devices are the mean of each one's.
            (gradients,) = pull((_cotangent(mean) / 4, _cotangent(square) / 4, _cotangent(depthwise)))
            summed = {name: array if name == "x" else lax.psum(array, "batch") for name, array in gradients.items()}
            return (lax.pmean(mean, "batch"), lax.pmean(square, "batch"), depthwise), summed

        axes = {name: 0 if name == "x" else None for name in arrays}
        split = dict(arrays, x=arrays["x"].reshape(4, 2, *arrays["x"].shape[1:]))
        (mean, square, depthwise), gradients = jax.pmap(run, "batch", in_axes=(axes,))(split)
        actual = (
            (mean[0], square[0], depthwise.reshape(8, *depthwise.shape[2:])),
            {name: array.reshape(arrays["x"].shape) if name == "x" else array[0] for name, array in gradients.items()},
        )
    _assert_close(actual, expected, 1e-11)


def test_one_program_holds_the_fast_form_of_its_platform(per_slice):
    arrays = _arrays(dtype="float32")
    per_slice(arrays, 1)
    outputs, gradients = jax.jit(_ours()), jax.jit(_with_gradients(_ours()))
    for function in (outputs, gradients):
        assert "convolution" not in function.lower(arrays).compile().as_text()
        exported = jax.export.export(function, platforms=["tpu"])(arrays).mlir_module()
        assert "stablehlo.convolution" in exported
        assert f"feature_group_count = {CHANNELS}" in exported
        assert "stablehlo.while" not in exported
        # One product for the moments and the convolution together, and one for the gradient of each of its factors.
        assert exported.count("stablehlo.dot_general") == (1 if function is outputs else 3)


# Whole networks that train, in both ways, and both paddings; an evaluation's are compared with other libraries'.
NETWORKS = [
    ("relu6", "train", True),
    ("hardswish", "freeze", False),
]


def _network(implementation, hidden_act, mode, tf_padding):
    config = MobileNetV2Config(
        num_labels=3, hidden_act=hidden_act, tf_padding=tf_padding, output_stride=4, classifier_dropout_prob=0.0
    )
    return MobileNetV2ForImageClassification(
        config, dtype=jnp.float64, freeze_batch_norm=mode == "freeze", implementation=implementation
    )


@pytest.mark.slow
@pytest.mark.parametrize(("hidden_act", "mode", "tf_padding"), NETWORKS)
def test_networks_of_both_forms_agree(hidden_act, mode, tf_padding, float64, monkeypatch):
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 2),))
    monkeypatch.setattr(slices, "_SLICE_BYTES", 40_000)  # an image a slice in the stem, and two at the end
    images = np.random.default_rng(1).normal(size=(2, 34, 33, 3))
    network = functools.partial(_network, hidden_act=hidden_act, mode=mode, tf_padding=tf_padding)
    shapes = variables_of(network("auto"))
    paths = jax.tree.leaves_with_path(shapes)
    rng = np.random.default_rng(0)

    def values(path, shape):
        """Statistics and scales away from their initial values, in float64 so that gradients are not rounded."""
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.3, 0.3)
        return rng.uniform(low, high, shape.shape)

    variables = jax.tree.unflatten(jax.tree.structure(shapes), [values(*path) for path in paths])

    def run(implementation, variables, images):
        model = network(implementation)

        def loss(params, images):
            output, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(output.logits)), (output.logits, updated["batch_stats"])

        (_, aux), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], images)
        return *aux, gradients

    compiled = {
        implementation: jax.jit(functools.partial(run, implementation)).lower(variables, images).compile()
        for implementation in ("auto", "default")
    }
    (logits, stats, gradients), native = (compiled[each](variables, images) for each in ("auto", "default"))
    _assert_close((logits, stats), native[:2], 1e-9)
    # A bias before another normalisation has no gradient but rounding: of the scale of all.
    largest = max(float(jnp.abs(gradient).max()) for gradient in jax.tree.leaves(native[2]))
    _assert_close(gradients, native[2], 1e-9, least=1e-3 * largest)
    moved = jax.tree.map(lambda after, before: not np.array_equal(after, before), stats, variables["batch_stats"])
    assert set(jax.tree.leaves(moved)) == {mode == "train"}
    grouped = {each: "feature_group_count=" in program.as_text() for each, program in compiled.items()}
    assert grouped == {"auto": False, "default": True}
