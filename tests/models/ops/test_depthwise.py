"""The depthwise convolution of each platform against its definition in float64, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from operations import assert_close, with_gradients

from flax_mnv2.models.layers import same_padding
from flax_mnv2.models.ops import slices
from flax_mnv2.models.ops.depthwise import depthwise_conv, native_depthwise
from flax_mnv2.models.ops.shifts import KernelGradient, Window

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}  # of the largest value
CHANNELS = 5
# Each size is even along one axis and odd along the other. Both rules give the same at stride 1.
CASES = [
    (*size, stride, dilation, tf_padding)
    for size, stride, tf_padding in [((8, 7), 1, True), ((5, 10), 2, True), ((8, 9), 2, False)]
    for dilation in (1, 2, 4)
]
NETWORK_CASES = [(7, 6, 1, ((1, 1), (1, 1)), 1), (7, 6, 2, ((1, 1), (0, 1)), 1), (5, 6, 1, ((2, 2), (2, 2)), 2)]
UNUSUAL_CASES = [  # batch, height, width, kernel, stride, padding, dilation
    (1, 1, 1, (3, 3), 1, ((2, 2), (2, 2)), 2),
    (1, 6, 5, (3, 3), 1, ((0, 0), (0, 0)), 1),
    (2, 7, 8, (5, 5), 2, ((2, 2), (1, 2)), 1),
    (3, 9, 8, (3, 2), 3, ((0, 3), (2, 0)), 2),
    (2, 6, 6, (1, 1), 2, ((0, 0), (0, 0)), 1),  # rows and columns that no output sees
    (2, 9, 8, (2, 2), 4, ((0, 0), (0, 1)), 1),
]


def _definition(x, kernel, cotangent, stride, padding, dilation):
    """Output and the gradients of x and kernel, in float64 loops over the output pixels."""
    x, kernel, cotangent = (np.asarray(array, np.float64) for array in (x, kernel, cotangent))
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    out = np.zeros_like(cotangent)
    padded_gradient, kernel_gradient = np.zeros_like(padded), np.zeros_like(kernel)
    for row, column in np.ndindex(out.shape[1:3]):
        rows = slice(row * stride, row * stride + (kernel.shape[0] - 1) * dilation + 1, dilation)
        columns = slice(column * stride, column * stride + (kernel.shape[1] - 1) * dilation + 1, dilation)
        pixel = cotangent[:, row, column]
        out[:, row, column] = np.einsum("nijc,ijc->nc", padded[:, rows, columns], kernel[:, :, 0])
        padded_gradient[:, rows, columns] += np.einsum("nc,ijc->nijc", pixel, kernel[:, :, 0])
        kernel_gradient[:, :, 0] += np.einsum("nijc,nc->ijc", padded[:, rows, columns], pixel)
    (top, _), (left, _) = padding
    return out, padded_gradient[:, top:, left:][:, : x.shape[1], : x.shape[2]], kernel_gradient


def _inputs(height, width, stride, padding, dilation, *, batch=2, size=(3, 3), dtype=jnp.float32):
    """x, kernel and a cotangent for the output."""
    rng = np.random.default_rng(0)
    rows, columns = (
        (side + sum(pads) - (taps - 1) * dilation - 1) // stride + 1
        for side, pads, taps in zip((height, width), padding, size, strict=True)
    )
    shapes = (batch, height, width, CHANNELS), (*size, 1, CHANNELS), (batch, rows, columns, CHANNELS)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def _convolve(stride, padding, dilation, implementation="auto"):
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "implementation": implementation}
    return functools.partial(depthwise_conv, **settings)


def _assert_defined(arrays, stride, padding, dilation, implementation="auto"):
    convolve = _convolve(stride, padding, dilation, implementation)
    results = jax.jit(with_gradients(convolve))(*arrays)
    assert [result.dtype for result in results] == [arrays[0].dtype] * 3
    assert_close(results, _definition(*arrays, stride, padding, dilation), TOLERANCES[arrays[0].dtype.name])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield jnp.float64


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, "float32") for case in CASES), *((case, "bfloat16") for case in CASES[::4])],  # each size and dilation
)
def test_output_and_gradients(case, dtype):
    height, width, stride, dilation, tf_padding = case
    padding = same_padding(height, width, kernel=3, stride=stride, dilation=dilation, tf_padding=tf_padding)
    settings = stride, padding, dilation
    _assert_defined(_inputs(height, width, *settings, dtype=dtype), *settings)


@pytest.mark.parametrize("case", NETWORK_CASES)
def test_native_output_and_gradients(case):
    _assert_defined(_inputs(*case), *case[2:], "default")
    x, kernel, _ = _inputs(*case)
    window = Window(*case[2:])
    np.testing.assert_array_equal(native_depthwise(window, x, kernel), _convolve(*window, "default")(x, kernel))


@pytest.mark.parametrize("case", UNUSUAL_CASES)
def test_other_kernels_strides_and_paddings(case, float64):
    batch, height, width, size, *settings = case
    _assert_defined(_inputs(height, width, *settings, batch=batch, size=size, dtype=float64), *settings)


def test_shifted_is_what_auto_takes_on_cpu():
    case = NETWORK_CASES[1]
    arrays = _inputs(*case)
    auto, shifted = (
        jax.jit(with_gradients(_convolve(*case[2:], implementation)))(*arrays) for implementation in ("auto", "cpu")
    )
    jax.tree.map(np.testing.assert_array_equal, auto, shifted)


@pytest.mark.parametrize(
    ("batch", "images", "rows", "stride"),
    [(1, 1, 5, 1), (7, 1, 5, 2), (7, 7, 7, 1), (8, 2, 9, 2), (8, 4, 5, 1), (8, 8, 7, 2), (2, 1, 33, 1)],
)
def test_gradients_over_slices_of_the_batch(batch, images, rows, stride, float64, monkeypatch):
    """Few slices and many, blocks of one row and of more, with rows left over and without."""
    settings = stride, ((1, 0), (0, 1)), 1
    arrays = _inputs(rows * stride, 4, *settings, batch=batch, size=(2, 2), dtype=float64)
    monkeypatch.setattr(slices, "_SLICE_BYTES", images * arrays[0][0].nbytes)
    lowered = jax.jit(with_gradients(_convolve(*settings))).lower(*arrays)
    assert ("stablehlo.while" in lowered.as_text()) == (batch > 1)  # two slices or more, where there are two images
    assert_close(lowered.compile()(*arrays), _definition(*arrays, *settings), 1e-12)


def test_every_pixel_is_in_one_block_of_the_kernel_gradient():
    for images, rows in [(1, 5), (1, 33), (6, 7)]:
        shape = (images, rows, 1, 2)
        gradient = KernelGradient(images, (1, 1, 1, 2), shape, Window(1, ((0, 0), (0, 0)), 1))
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        total = jax.jit(lambda x, g=gradient: g.finish(g.add(g.zeros(jnp.float32), x, jnp.ones_like(x))))(x)
        np.testing.assert_array_equal(total[0, 0], x.sum((0, 1), dtype=np.float32))


@pytest.mark.parametrize(
    ("batch", "bytes_per_image", "expected"),
    [(12, 10, 4), (12, 7, 6), (7, 20, 1), (7, 7, 7), (7, 8, 1), (1, 1000, 1), (8, 1000, 1), (8, 0, 8), (6, 50, 1)],
)
def test_images_per_slice(batch, bytes_per_image, expected, monkeypatch):
    monkeypatch.setattr(slices, "_SLICE_BYTES", 50)
    assert slices.images_per_slice(batch, bytes_per_image) == expected


@pytest.mark.parametrize(("batch", "expected"), [(12, 6), (8, 4), (7, 1), (2, 1), (1, 1)])
def test_images_per_slice_of_at_least_two_slices(batch, expected):
    assert slices.images_per_slice(batch, 1, min_slices=2) == expected


@pytest.mark.parametrize("case", [(3, 4, 2, ((1, 1), (0, 1)), 1), (4, 3, 1, ((1, 1), (1, 1)), 2)])
def test_gradient_of_the_gradient(case, float64, monkeypatch):
    x, kernel, cotangent = _inputs(*case, size=(2, 2), dtype=float64)
    monkeypatch.setattr(slices, "_SLICE_BYTES", x[0].nbytes)

    def penalty(implementation, x, kernel):
        """The squared norm of the gradients, as in a gradient penalty."""
        convolve = _convolve(*case[2:], implementation)
        gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k)) * cotangent), (0, 1))(x, kernel)
        return sum(jnp.sum(gradient**2) for gradient in gradients)

    ours, native = (
        jax.jit(jax.grad(functools.partial(penalty, implementation), (0, 1)))(x, kernel)
        for implementation in ("auto", "default")
    )
    assert_close(ours, native, 1e-12)


@pytest.mark.parametrize("implementation", ["auto", "cpu", "default"])
def test_forward_mode_is_refused(implementation):
    x, kernel, _ = _inputs(*NETWORK_CASES[0])
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(_convolve(*NETWORK_CASES[0][2:], implementation), (x, kernel), (x, kernel))


@pytest.mark.parametrize(("images", "kernel_axis"), [(1, None), (2, 0)])
def test_vmap_equals_a_loop(images, kernel_axis, float64, monkeypatch):
    case = NETWORK_CASES[1]
    x, kernel, cotangent = (
        jnp.stack([array, array[::-1] * 0.5, array + 1.0]) for array in _inputs(*case, dtype=float64)
    )
    monkeypatch.setattr(slices, "_SLICE_BYTES", images * x[0, 0].nbytes)
    kernel = kernel if kernel_axis == 0 else kernel[0]
    run = with_gradients(_convolve(*case[2:]))
    actual = jax.jit(jax.vmap(run, (0, kernel_axis, 0)))(x, kernel, cotangent)
    one = jax.jit(run)
    expected = [one(x[n], kernel if kernel_axis is None else kernel[n], cotangent[n]) for n in range(3)]
    assert_close(actual, jax.tree.map(lambda *parts: jnp.stack(parts), *expected), 1e-12)


def test_remat_changes_nothing():
    case = NETWORK_CASES[0]
    arrays = _inputs(*case)
    convolve = _convolve(*case[2:])
    plain, again = (jax.jit(with_gradients(each))(*arrays) for each in (convolve, jax.checkpoint(convolve)))
    jax.tree.map(np.testing.assert_array_equal, plain, again)


@pytest.mark.parametrize(("how", "images"), [("pmap", 2), ("shard_map", 1), ("shard_map", 2), ("jit", 1)])
def test_four_devices_equal_one(how, images, float64, monkeypatch):
    case = NETWORK_CASES[1]
    x, kernel, cotangent = _inputs(*case, batch=8, dtype=float64)
    monkeypatch.setattr(slices, "_SLICE_BYTES", images * x[0].nbytes)
    run = with_gradients(_convolve(*case[2:]))
    expected = _definition(x, kernel, cotangent, *case[2:])
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("batch"), PartitionSpec()
    if how == "jit":
        sharding = NamedSharding(mesh, split)
        actual = jax.jit(run)(
            jax.device_put(x, sharding),
            jax.device_put(kernel, NamedSharding(mesh, whole)),
            jax.device_put(cotangent, sharding),
        )
        assert len(actual[0].sharding.device_set) == 4
    elif how == "shard_map":
        # The gradient of what every device holds alike is summed over the devices.
        mapped = jax.shard_map(run, mesh=mesh, in_specs=(split, whole, split), out_specs=(split, split, whole))
        actual = jax.jit(mapped)(x, kernel, cotangent)
    else:
        out, x_gradient, kernel_gradient = jax.pmap(run, in_axes=(0, None, 0))(
            x.reshape(4, 2, *x.shape[1:]), kernel, cotangent.reshape(4, 2, *cotangent.shape[1:])
        )
        actual = out.reshape(cotangent.shape), x_gradient.reshape(x.shape), kernel_gradient.sum(0)
    assert_close(actual, expected, 1e-12)


def test_one_program_holds_the_fast_form_of_its_platform(monkeypatch):
    case = NETWORK_CASES[1]
    arrays = _inputs(*case)
    monkeypatch.setattr(slices, "_SLICE_BYTES", arrays[0][0].nbytes)
    for function, slots in ((_convolve(*case[2:]), arrays[:2]), (with_gradients(_convolve(*case[2:])), arrays)):
        function = jax.jit(function)
        assert "convolution" not in function.lower(*slots).compile().as_text()
        exported = jax.export.export(function, platforms=["tpu"])(*slots).mlir_module()
        assert "stablehlo.convolution" in exported
        assert f"feature_group_count = {CHANNELS}" in exported
        assert "stablehlo.while" not in exported
