"""What a quantised network rounds, and how its ranges move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from flax_mnv2 import ConfigError, MobileNetV2Config, fold_batch_norm
from flax_mnv2.config.quantization import QuantizationSpec
from flax_mnv2.models import MobileNetV2ForImageClassification
from flax_mnv2.models.layers import BatchNorm, ConvNormAct, Convolution
from flax_mnv2.models.ops.fake_quant import nudged_grid
from flax_mnv2.models.quantization.calibrate import calibrate
from flax_mnv2.models.quantization.rounding import FakeQuantize, Quantizer

pytestmark = pytest.mark.usefixtures("tiny_blocks")
CONFIG = MobileNetV2Config(num_labels=5, classifier_dropout_prob=0.0, depth_multiplier=0.5)


def _random(model):
    """Variables as of a trained network, by a fixed seed."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if path[0].key == "quantization":
            return jnp.zeros(leaf.shape, leaf.dtype)
        ends = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-0.5, 0.5), "var": (0.3, 2.0)}.get(name, (-0.5, 0.5))
        return jnp.asarray(rng.uniform(*ends, size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _images(seed=0, count=2):
    return np.random.default_rng(seed).normal(size=(count, 32, 32, 3)).astype(np.float32)


def _on_grid(values, low, high, narrow=False):
    grid = nudged_grid(jnp.float32(low), jnp.float32(high), narrow_range=narrow)
    steps = np.asarray(values, np.float64) / float(grid.scale)
    inside = (values >= float(grid.low) - 1e-6).all() and (values <= float(grid.high) + 1e-6).all()
    return inside and np.abs(steps - np.round(steps)).max() < 1e-3


@pytest.fixture(scope="module")
def observe():
    """Runs some batches through one map's rounding, and returns what it gave and its ranges after each."""

    def run(batches, spec, ranges=None):
        module = FakeQuantize(Quantizer(spec, None, jnp.int32(0)))
        state, seen = {"quantization": ranges or {"min": jnp.float32(0), "max": jnp.float32(0)}}, []
        for step, x in enumerate(batches):
            module = FakeQuantize(Quantizer(spec, None, jnp.int32(step)))
            (y,), state = module.apply(state, jnp.asarray(x), mutable=["quantization"])
            seen.append((np.asarray(y), *(float(state["quantization"][end]) for end in ("min", "max"))))
        return seen

    return run


def test_ranges_begin_with_the_first_batch_and_follow_as_a_moving_average(observe):
    batches = [np.float32([-1, 3]), np.float32([-2, 1]), np.float32([1, 4])]
    seen = observe(batches, QuantizationSpec(range_decay=0.75))
    low, high = -1.0, 3.0
    np.testing.assert_allclose(seen[0][1:], (low, high))
    for (_, *ends), (least, most) in zip(seen[1:], ((-2.0, 1.0), (0.0, 4.0)), strict=True):  # 0 is in every range
        low, high = 0.75 * low + 0.25 * least, 0.75 * high + 0.25 * most
        np.testing.assert_allclose(ends, (low, high), rtol=1e-6)


def test_rounding_starts_and_ranges_freeze_at_their_steps(observe):
    x = np.linspace(-1, 2, 7, dtype=np.float32) / 3
    batches = [x * scale for scale in (1.0, 2.0, 3.0, 4.0)]
    seen = observe(batches, QuantizationSpec(start_step=2, freeze_range_step=3, range_decay=0.5))
    rounded = [not np.array_equal(y, batch) for (y, *_), batch in zip(seen, batches, strict=True)]
    assert rounded == [False, False, True, True]
    ends = [high for *_, high in seen]
    assert ends[0] < ends[1] < ends[2] == ends[3]


def test_several_maps_share_a_grid():
    spec, (one, other) = QuantizationSpec(), (np.float32([0.1, 1.0]), np.float32([[-3.0], [0.2]]))
    module = FakeQuantize(Quantizer(spec, None, jnp.int32(0)))
    (a, b), state = module.apply({}, one, other, mutable=["quantization"])
    assert {name: float(value) for name, value in state["quantization"].items()} == {"min": -3.0, "max": 1.0}
    assert _on_grid(np.asarray(a), -3, 1)
    assert _on_grid(np.asarray(b), -3, 1)
    assert not np.array_equal(a, one)


def test_jit_and_pmap_take_and_use_the_same_range(assert_same):
    """To the bit: least and greatest numbers do not depend on the order in which they are compared."""
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    spec, ranges = QuantizationSpec(range_decay=0.5), {"quantization": {"min": np.float32(-1), "max": np.float32(1)}}

    def run(x, axis_name):
        return FakeQuantize(Quantizer(spec, axis_name, jnp.int32(3))).apply(ranges, x, mutable=["quantization"])

    (whole,), found = jax.jit(functools.partial(run, axis_name=None))(x)
    (parts,), of_each = jax.pmap(functools.partial(run, axis_name="data"), "data")(x[:, None])
    np.testing.assert_array_equal(parts[:, 0], whole)
    for device in range(4):
        assert_same(jax.tree.map(lambda end: np.asarray(end[device]), of_each), jax.tree.map(np.asarray, found))  # noqa: B023


def test_a_network_takes_the_same_ranges_under_jit_and_pmap(monkeypatch):
    """Before rounding starts, so that no last bit decides between two steps."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    spec = QuantizationSpec(start_step=1)
    model = MobileNetV2ForImageClassification(CONFIG.replace(quantization=spec, depth_multiplier=0.35))
    variables, images = _random(model), _images(count=4)

    def ranges(images, axis_name):
        network = model.clone(axis_name=axis_name)
        return network.apply(variables, images, train=True, mutable=["batch_stats", "quantization"])[1]["quantization"]

    whole = jax.jit(functools.partial(ranges, axis_name=None))(images)
    parts = jax.pmap(functools.partial(ranges, axis_name="data"), "data", devices=jax.devices()[:2])(
        images.reshape(2, 2, *images.shape[1:])
    )
    for (path, one), other in zip(jax.tree.leaves_with_path(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(other, np.stack([one] * 2), rtol=1e-4, atol=1e-5, err_msg=str(path))
        assert one != 0 or path[-1].key == "min", path


@pytest.mark.parametrize("scheme", ["int8", "uint8"])
def test_kernels_are_rounded_as_they_are_deployed(scheme):
    """With the running statistics the layer is a convolution by a folded kernel on its grid, and an offset."""
    conv, norm = functools.partial(Convolution), functools.partial(BatchNorm, True, 0.9, 1e-3)
    quantizer = Quantizer(QuantizationSpec(scheme=scheme))
    layer = ConvNormAct(6, functools.partial(conv, quantizer=quantizer), norm, None, quantizer=quantizer)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, 1, 4, 6)).astype(np.float32)
    scale, bias, mean, var = rng.uniform(0.5, 2, size=(4, 6)).astype(np.float32)
    scale[1], scale[2] = -1.5, 0.0
    variables = {
        "params": {"convolution": {"kernel": kernel}, "normalization": {"scale": scale, "bias": bias}},
        "batch_stats": {"normalization": {"mean": mean, "var": var}},
        "quantization": {"output": {"min": np.float32(0), "max": np.float32(0)}},
    }
    rows = np.concatenate([np.zeros((1, 4)), np.eye(4)]).astype(np.float32)[None, None]
    offset, *channels = np.asarray(layer.apply(variables, rows))[0, 0]
    folded = np.stack(channels) - offset
    multiplier = scale / np.sqrt(var + np.float32(1e-3))
    np.testing.assert_allclose(offset, bias - mean * multiplier, atol=1e-5)
    exact = kernel[0, 0] * multiplier
    for channel in range(6) if scheme == "int8" else [slice(None)]:
        part, target = folded[:, channel], exact[:, channel]
        high = np.abs(target).max()
        low, high = (-high, high) if scheme == "int8" else (min(target.min(), 0), max(target.max(), 0))
        assert high == 0 or _on_grid(part, low, high, narrow=True)
        np.testing.assert_allclose(part, target, atol=(high - low) / 254 * 0.51 + 1e-5)
    assert not np.allclose(folded, exact, atol=1e-4)
    np.testing.assert_array_equal(folded[:, 2], 0)


@pytest.fixture(scope="module")
def networks():
    """A network without and one with quantisation, its variables, and the same calibrated."""
    import flax_mnv2.layer_plan

    patch = pytest.MonkeyPatch()
    patch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 2), (16, 2, 2)))
    plain = MobileNetV2ForImageClassification(CONFIG)
    model = plain.clone(config=CONFIG.replace(quantization="int8"))
    variables = _random(model)
    calibrated = calibrate(model, variables, [_images(seed) for seed in range(3)])
    patch.undo()
    return plain, model, variables, calibrated


def _without_ranges(variables):
    return {name: variables[name] for name in ("params", "batch_stats")}


def test_calibration_takes_the_mean_of_the_ranges_and_keeps_the_weights(networks, assert_same):
    _, _, variables, calibrated = networks
    assert_same(_without_ranges(calibrated), _without_ranges(variables))
    ends = [(images.min(), images.max()) for images in map(_images, range(3))]
    found = calibrated["quantization"]["mobilenet_v2"]["input"]
    low, high = np.mean(ends, axis=0)
    margin = (high - low) / 2 / 254  # so that bytes do not lie just between two steps
    np.testing.assert_allclose([found["min"], found["max"]], [low - margin, high + margin], rtol=1e-6)
    flat = traverse_util.flatten_dict(calibrated["quantization"], sep="/")
    for name in ("mobilenet_v2/conv_stem/first_conv/output/max", "mobilenet_v2/layer_00/reduce_1x1/output/min",
                 "pool/max", "classifier/output/min", "mobilenet_v2/layer_02/sum/max"):  # fmt: skip
        assert flat[name] != 0, name
    assert int(flat["step"]) == 0


def test_a_quantised_network_is_near_the_plain_one_and_on_its_grid(networks):
    plain, model, _, calibrated = networks
    images = _images(7)
    logits = plain.apply(_without_ranges(calibrated), images).logits
    rounded = jax.jit(model.apply)(calibrated, images).logits
    ends = calibrated["quantization"]["classifier"]["output"]
    assert _on_grid(np.asarray(rounded), ends["min"], ends["max"])
    distance = np.linalg.norm(rounded - logits) / np.linalg.norm(logits)
    assert 0 < distance < 0.15


def test_folding_keeps_the_ranges(networks):
    _, model, _, calibrated = networks
    folded, variables = fold_batch_norm(model, calibrated)
    images = _images(7)
    ends = calibrated["quantization"]["classifier"]["output"]
    step = (ends["max"] - ends["min"]) / 255
    one, other = (np.asarray(jax.jit(net.apply)(values, images).logits)
                  for net, values in ((model, calibrated), (folded, variables)))  # fmt: skip
    assert np.abs(one - other).max() < 3.5 * step  # a number between two steps may fall to either side


def test_off_is_off(networks):
    plain, model, variables, _ = networks
    again = model.clone(config=CONFIG.replace(quantization=None))
    images, weights = _images(), _without_ranges(variables)
    assert jax.tree.structure(jax.eval_shape(again.init, jax.random.key(0), images)) == jax.tree.structure(weights)
    text = str(jax.make_jaxpr(again.apply)(weights, images))
    assert text == str(jax.make_jaxpr(plain.apply)(weights, images))
    assert not {"round", "floor", "optimization_barrier"} & set(text.replace("[", " ").split())


def test_a_network_without_its_ranges_says_what_to_do(networks):
    _, model, variables, _ = networks
    with pytest.raises(ConfigError, match="calibrate"):
        jax.eval_shape(model.apply, _without_ranges(variables), _images())


def test_what_cannot_be_calibrated_says_why(networks):
    plain, model, variables, _ = networks
    with pytest.raises(ConfigError, match="quantization"):
        calibrate(plain, variables, [_images()])
    with pytest.raises(ConfigError, match="at least one batch"):
        calibrate(model, variables, [])
