"""What the peers' own test suites ask of such a network, asked here: their intent, our words.

Here transformers' (tests/models/mobilenet_v2, the common tests of models and configs); timm's and torchvision's are in
``test_peer_suites_of_classifiers.py``. Whole networks are only traced; what has to run has three blocks.
"""

import functools
import inspect
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import flax_mnv2 as fm
from flax_mnv2.config.detection import ssd_anchors
from flax_mnv2.weights.source import MODEL_CLASSES

TASKS = tuple(MODEL_CLASSES)
OF_TRANSFORMERS = tuple(task for task in TASKS if task != "detection")
SPEC = fm.DetectionSpec(feature_layers=("layer_01", "conv_1x1"), extra_channels=(), anchors=ssd_anchors(2))  # any plan
TESTER = {"depth_multiplier": 0.25, "num_labels": 10, "classifier_dropout_prob": 0.1}
IMAGE = jax.ShapeDtypeStruct((13, 32, 32, 3), jnp.float32)
HF_FIELDS = ("num_channels", "image_size", "depth_multiplier", "depth_divisible_by", "min_depth", "expand_ratio")
HF_FIELDS += ("output_stride", "first_layer_is_expansion", "finegrained_output", "hidden_act", "tf_padding")
HF_FIELDS += ("classifier_dropout_prob", "initializer_range", "layer_norm_eps", "semantic_loss_ignore_index")


KERNEL_INIT = nn.initializers.he_normal()


def _model(task, **fields):
    if task == "detection":
        fields |= {"detection": SPEC}
    return MODEL_CLASSES[task](fm.MobileNetV2Config(**TESTER | fields), kernel_init=KERNEL_INIT)


@functools.cache
def _initialised(model, plan):
    """Shapes and types of the variables."""
    del plan  # part of the key
    return jax.eval_shape(model.init, jax.random.key(0), IMAGE)


def _traced(model, **arguments):
    """Shapes and types of the variables and of the outputs."""
    variables = _initialised(model, model.config.layer_plan)
    return variables, jax.eval_shape(lambda v, x: model.apply(v, x, **arguments), variables, IMAGE)


# ---- transformers: the config ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", HF_FIELDS)
def test_config_has_the_properties_with_their_defaults(transformers, field):
    assert getattr(fm.MobileNetV2Config(), field) == getattr(transformers.MobileNetV2Config(), field)


@pytest.mark.parametrize("field", HF_FIELDS)
def test_config_goes_to_json_and_back(transformers, field, tmp_path):
    values = {"depth_multiplier": 0.75, "image_size": 96, "output_stride": 8, "expand_ratio": 3.0, "min_depth": 16}
    values |= {"hidden_act": "silu", "tf_padding": False, "num_channels": 1, "layer_norm_eps": 0.01}
    values |= {"finegrained_output": False, "first_layer_is_expansion": False, "depth_divisible_by": 4}
    theirs = transformers.MobileNetV2Config(**values)
    theirs.save_pretrained(tmp_path)
    ours = fm.MobileNetV2Config.from_json_file(tmp_path / "config.json")
    assert getattr(ours, field) == getattr(theirs, field)
    ours.to_json_file(tmp_path / "config.json")
    assert getattr(transformers.MobileNetV2Config.from_pretrained(tmp_path), field) == getattr(theirs, field)


@pytest.mark.parametrize("labels", [1, 3, 5])
def test_config_with_num_labels(labels):
    for config in (fm.MobileNetV2Config(num_labels=labels), fm.MobileNetV2Config().replace(num_labels=labels)):
        assert len(config.id2label) == len(config.label2id) == config.num_labels == labels


# ---- transformers: the models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("task", OF_TRANSFORMERS)
def test_shapes_of_outputs(tiny_blocks, task, stride, fine):
    _, output = _traced(_model(task, output_stride=stride, finegrained_output=fine))
    side, width = 32 // stride, 1280 if fine else 320
    if task == "backbone":
        assert output.last_hidden_state.shape == (13, side, side, width)
        assert output.pooler_output.shape == (13, width)
    else:
        assert output.logits.shape == ((13, 10) if task == "classification" else (13, side, side, 10))


@pytest.mark.parametrize("task", TASKS)
def test_hidden_states_of_all_sixteen_layers(task):
    _, output = _traced(_model(task), output_hidden_states=True)
    assert len(output.hidden_states) == 16


@pytest.mark.parametrize("task", TASKS)
def test_signature_begins_with_pixel_values(task):
    assert list(inspect.signature(MODEL_CLASSES[task].__call__).parameters)[1] == "pixel_values"


@pytest.mark.parametrize("task", TASKS)
def test_outputs_as_tuple_mapping_and_attributes(tiny_blocks, task):
    _, output = _traced(_model(task), output_hidden_states=True)
    assert len(output.to_tuple()) == len(output) == len(dict(output.items()))
    assert all(output[name] is getattr(output, name) is output[index] for index, name in enumerate(output.keys()))


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_initialisation(tiny_blocks, task):
    """Norms begin as the identity, biases at 0, kernels with the config's spread."""
    model = MODEL_CLASSES[task](fm.MobileNetV2Config(**TESTER, initializer_range=0.005))
    flat = traverse_util.flatten_dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    for path, value in flat.items():
        expected = {"scale": 1.0, "var": 1.0}.get(path[-1], 0.0)
        if path[-1] != "kernel":
            assert (value == expected).all(), path
        elif value.size > 1000:
            assert 0.004 < value.std() < 0.006, path


@pytest.mark.parametrize("task", TASKS)
def test_save_and_load(tiny_blocks, task, tmp_path, random_like):
    model = _model(task)
    variables = random_like(_traced(model)[0])
    layout = "flax" if task == "detection" else "hf"  # transformers has no detector
    fm.save_pretrained(tmp_path, model, variables, layout=layout)
    loaded, again = fm.from_pretrained(tmp_path)
    assert (type(loaded), loaded.config.layer_plan) == (type(model), model.config.layer_plan)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    if layout == "hf":
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_head_of_another_size(tiny_blocks, task, tmp_path, random_like):
    model = _model(task)
    fm.save_pretrained(tmp_path, model, random_like(_traced(model)[0]))
    with pytest.raises(fm.CheckpointError, match="ignore_mismatched_sizes"):
        fm.from_pretrained(tmp_path, num_labels=42)
    with pytest.warns(UserWarning, match="started afresh"):
        other, variables = fm.from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert other.config.num_labels == 42
    assert any(42 in leaf.shape for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_base_of_a_head_and_a_head_on_a_base(tiny_blocks, task, tmp_path, random_like):
    model, base = _model(task), _model("backbone")
    variables, of_base = random_like(_traced(model)[0]), random_like(_traced(base)[0], seed=1)
    fm.save_pretrained(tmp_path, base, of_base)
    under = fm.load_backbone(tmp_path, variables)
    for name, layer in under["params"]["mobilenet_v2"].items():
        jax.tree.map(np.testing.assert_array_equal, layer, of_base["params"]["mobilenet_v2"][name])
    head = "classifier" if task == "classification" else "segmentation_head"
    jax.tree.map(np.testing.assert_array_equal, under["params"][head], variables["params"][head])


@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification"])
def test_losses_of_every_problem(tiny_blocks, problem):
    model = _model("classification", problem_type=problem, num_labels=1 if problem == "regression" else 10)
    kind = jnp.int32 if problem.startswith("single") else jnp.float32
    labels = jnp.ones((13,) if problem != "multi_label_classification" else (13, 10), kind)
    _, output = _traced(model, labels=labels)
    assert (output.loss.shape, output.loss.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_keeps_the_variables_wide(tiny_blocks, task):
    variables, output = _traced(_model(task).clone(dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert output[0].dtype == (jnp.bfloat16 if task == "backbone" else jnp.float32)


@pytest.mark.parametrize("task", TASKS)
def test_rematerialised_networks_are_the_same(tiny_blocks, task):
    plain, again = _traced(_model(task)), _traced(_model(task).clone(remat=True))
    assert jax.tree.map(lambda leaf: leaf.shape, plain) == jax.tree.map(lambda leaf: leaf.shape, again)


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (None, (ValueError, TypeError)),
        (np.zeros((1, 3, 32, 32), np.float32), ValueError),
        (np.zeros((32, 32, 3), np.float32), ValueError),
        (np.zeros((1, 32, 32, 3), np.uint8), ValueError),
    ],
    ids=["none", "channels first", "no batch", "bytes"],
)
@pytest.mark.parametrize("task", TASKS)
def test_images_that_do_not_fit(tiny_blocks, task, images, kind):
    with pytest.raises(kind):
        _model(task).init(jax.random.key(0), images)


@pytest.fixture(scope="module")
def random_like():
    def make(shapes, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32), shapes)

    return make


def _drawn(shapes):
    """Values as ``KERNEL_INIT`` and the norms give them, without a program that draws them."""
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(shapes)
    for path, leaf in flat.items():
        flat[path] = np.full(leaf.shape, {"scale": 1.0, "var": 1.0}.get(path[-1], 0.0), np.float32)
        if path[-1] == "kernel":
            flat[path] += rng.normal(0.0, (2.0 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


@pytest.fixture(scope="module", params=["classification", "segmentation"])
def trained(request):
    """Logits and gradients of two images, twice, and of the same two in the other order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fm.layer_plan, "BLOCK_TABLE", ((8, 1, 2), (16, 2, 2)))
        model = _model(request.param)
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
        variables = _drawn(jax.eval_shape(model.init, jax.random.key(0), images))
        labels = np.ones((2,) if request.param == "classification" else (2, 32, 32), np.int32)

        @jax.jit
        def step(params, images):
            def loss(params):
                output = model.apply({**variables, "params": params}, images, labels=labels)
                return output.loss, output.logits

            return jax.grad(loss, has_aux=True)(params)

        return [step(variables["params"], order) for order in (images, images, images[::-1])]


def test_the_same_twice(trained):
    jax.tree.map(np.testing.assert_array_equal, *trained[:2])


def test_images_do_not_see_each_other(trained):
    np.testing.assert_allclose(trained[0][1], trained[2][1][::-1], rtol=1e-5, atol=1e-5)


def test_every_parameter_has_a_gradient(trained):
    flat = traverse_util.flatten_dict(trained[0][0])
    assert all(np.isfinite(value).all() for value in flat.values())
    assert [path for path, value in flat.items() if not np.any(value)] == []
