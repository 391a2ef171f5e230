"""What a run starts from: any source of weights, opened once; what does not fit is said with the flags that mend it."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from flax_mnv2 import CheckpointError, MobileNetV2Config, save_pretrained, to_state_dict
from flax_mnv2.config.deeplab import preset
from flax_mnv2.training import initial_weights as module
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.initial_weights import initial_weights
from flax_mnv2.weights.formats import timm
from flax_mnv2.weights.pretrained import make_model, open_weights, variable_shapes

DEEPER = {  # timm's 110d
    "depth_multiplier": 1.1,
    "layer_depth_multiplier": 1.2,
    "fixed_stem_and_head": True,
    "round_widths": False,
}
LABELS = 3


def _variables(config, task="classification", seed=0):
    rng = np.random.default_rng(seed)
    shapes = variable_shapes(make_model(config, task))
    flat = {path: rng.uniform(0.1, 1.0, shape).astype(np.float32) for path, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat)


@pytest.fixture
def start(tiny_blocks, tmp_path, monkeypatch):
    """Writes a source, and starts a run from it: a function of the source's fields, the run's, and the scope."""
    variants = {name: timm.VARIANTS[name] for name in ("mobilenetv2_100", "mobilenetv2_110d")}
    monkeypatch.setattr(timm, "VARIANTS", variants)  # with so few blocks others are the same networks

    def run(theirs, ours, scope="backbone", library="timm", *, without="-", leave_out=()):
        torch_like = {"tf_padding": False, "layer_norm_eps": 1e-5}
        model = make_model(MobileNetV2Config(num_labels=LABELS, **torch_like, **theirs), "classification")
        variables = _variables(model.config)
        state = to_state_dict(model, variables, library)
        kept = {key: value for key, value in state.items() if not key.startswith(without)}
        save_file(kept, tmp_path / "weights.safetensors")
        config = default_config("classification")
        config.init_from, config.init_scope = str(tmp_path / "weights.safetensors"), scope
        with config.unlocked():
            config.model.update({"layer_depth_multiplier": 1.0, "fixed_stem_and_head": False})
            config.model.update({"stem_residual": False, "round_widths": True})
            config.model.update({"tf_padding": True, "layer_norm_eps": 1e-3, **ours})
            for name in leave_out:
                del config.data[name]
        own = MobileNetV2Config(num_labels=LABELS, **config.model.to_dict())
        task = SimpleNamespace(model=SimpleNamespace(config=own))
        return initial_weights(config, task, _variables(own, seed=1)), variables

    return run


@pytest.mark.parametrize("scope", ["backbone", "all"])
def test_timms_deeper_networks_are_a_start(start, scope):
    (loaded, notes), saved = start(DEEPER, DEEPER, scope)
    same = jax.tree.map(np.array_equal, loaded, saved)
    assert all(jax.tree.leaves(same["params"]["mobilenet_v2"]))
    assert all(jax.tree.leaves(same["batch_stats"]))
    assert all(jax.tree.leaves(same["params"]["classifier"])) == (scope == "all")
    assert [note.partition("--config.")[2].partition(" ")[0] for note in notes] == [
        "model.tf_padding=False",
        "model.layer_norm_eps=1e-05",
        "data.image_mean=0.485,0.456,0.406",
        "data.image_std=0.229,0.224,0.225",
    ]


def test_the_message_advises_the_fields_that_differ(start):
    with pytest.raises(CheckpointError, match="layers of other widths than config") as caught:
        start(DEEPER, {})
    *rows, flags = str(caught.value).splitlines()[1:]
    assert rows == [
        "  depth_multiplier: 1.1 there, 1.0 in this run",
        "  layer_depth_multiplier: 1.2 there, 1.0 in this run",
        "  fixed_stem_and_head: True there, False in this run",
        "  round_widths: False there, True in this run",
    ]
    advised = [f"--config.model.{name}={value}" for name, value in DEEPER.items()]
    assert flags == f"To start from it: {' '.join(advised)}"


def test_every_field_that_decides_the_network_is_compared():
    """A new field of the config must be placed: does it change shapes, the function, or neither?"""
    compared = {*module._SHAPE_FIELDS, module._STEM_RESIDUAL, *module._NOTED_FIELDS}
    others = {"image_size", "output_stride", "classifier_dropout_prob", "initializer_range", "extra"}
    others |= {"semantic_loss_ignore_index", "num_labels", "id2label", "label2id", "batch_norm_momentum"}
    others |= {"head_batch_norm_momentum", "classifier_initializer_range", "problem_type", "pool_window", "global_pool"}
    others |= {"output_hidden_states", "return_dict"}
    compared |= {"detection"}  # field by field, below
    others |= {"dilation_rule", "deeplab"}  # where the head is taken too
    others |= {"quantization"}  # a float run's weights are those that quantised training begins with
    assert compared | others == {field.name for field in dataclasses.fields(MobileNetV2Config)}
    assert not compared & others


def test_a_shortcut_that_one_of_the_two_has_is_noted(start, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.STEM_OUT_CHANNELS", 32)  # as at α = 0.25 with all blocks
    (_, notes), _ = start({"stem_residual": True}, {}, library="torchvision")
    assert any("--config.model.stem_residual=True keeps" in note for note in notes), notes


def test_no_note_where_a_run_has_no_such_field(start):
    (_, notes), _ = start({}, {}, leave_out=("image_mean", "image_std"))
    assert len(notes) == 2


def test_heads_that_do_not_fit_ask_for_the_backbone_alone(start):
    with pytest.raises(CheckpointError, match=r"has 0 classes and the data 3; use --config\.init_scope=backbone"):
        start({}, {}, "all", without="classifier")
    with pytest.raises(CheckpointError, match=r"1 missing:\n    classifier\.bias") as caught:
        start({}, {}, "all", without="classifier.bias")
    assert str(caught.value).endswith("To take the backbone alone: --config.init_scope=backbone")
    start({}, {}, "backbone", without="classifier")


def test_a_detector_whose_outputs_mean_something_else_is_noted(tiny_blocks, tmp_path):
    maps = {"feature_layers": ["layer_01", "conv_1x1"], "extra_channels": [], "anchors": [[[0.2, 0.2]], [[0.5, 0.8]]]}
    theirs, ours = (
        make_model(MobileNetV2Config(num_labels=LABELS, detection={**maps, "background": background}), "detection")
        for background in ("last", "first")
    )
    save_pretrained(tmp_path / "detector", theirs, _variables(theirs.config, "detection"), layout="flax")
    config = default_config("detection")
    config.init_from, config.init_scope = str(tmp_path / "detector"), "all"
    _, notes = initial_weights(config, SimpleNamespace(model=ours), _variables(ours.config, "detection", seed=1))
    assert [note.partition("with ")[2] for note in notes if "detection." in note] == [
        "background last, this run has first; --config.detection.background=last keeps what it learned"
    ]
    config.init_scope = "backbone"
    assert not initial_weights(config, SimpleNamespace(model=ours), _variables(ours.config, "detection"))[1]


def test_the_source_is_opened_once(start, monkeypatch):
    opened = []
    monkeypatch.setattr(module, "open_weights", lambda path: opened.append(open_weights(path)) or opened[-1])
    (_, notes), _ = start({}, {})
    assert len(opened) == 1
    assert len(notes) == 4


def test_a_head_of_the_same_shapes_that_computes_otherwise_is_noted(tiny_blocks, tmp_path):
    """Order, corners and rates change no shape; a whole network that is trained on must not lose them silently."""
    spec = preset("vainf").replace(low_level="layer_01")
    torch_like = {"tf_padding": False, "layer_norm_eps": 1e-5, "pad_block_input": True}
    fields = {"num_labels": LABELS, "output_stride": 8, **torch_like}
    theirs = make_model(MobileNetV2Config(deeplab=spec, **fields), "segmentation")
    save_file(to_state_dict(theirs, _variables(theirs.config, "segmentation"), "vainf"), tmp_path / "w.safetensors")
    config = default_config("segmentation")
    config.init_from, config.init_scope = str(tmp_path / "w.safetensors"), "all"
    config.model.update(torch_like)
    ours = MobileNetV2Config(deeplab=spec.replace(align_corners=True, pooling_size=(321, 321)), **fields)
    task = SimpleNamespace(model=SimpleNamespace(config=ours))
    _, notes = initial_weights(config, task, _variables(ours, "segmentation", seed=1))
    assert "do not say the output stride; took 16 with atrous rates (6, 12, 18)" in notes[0]
    assert [note.partition("--config.")[2].partition(" ")[0] for note in notes[1:]] == [
        "model.deeplab.pooling_size=()",
        "model.deeplab.align_corners=False",
        "data.image_mean=0.485,0.456,0.406",
        "data.image_std=0.229,0.224,0.225",
    ]
