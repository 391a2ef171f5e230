"""The three models as users have them: each class loads and saves itself, and so do subclasses."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from converting import CONFIG
from safetensors.numpy import load_file, save_file

import flax_mnv2
from flax_mnv2 import CheckpointError, ConfigError, MobileNetV2Config, models
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.tasks.registry import TASKS
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.weights.models import MODEL_CLASSES, task_of_class
from flax_mnv2.weights.opening import open_weights

pytestmark = pytest.mark.usefixtures("tiny_blocks")


DETECTOR = flax_mnv2.DetectionSpec(
    feature_layers=("layer_01/expansion", "conv_1x1"),
    extra_channels=(),
    anchors=(((0.2, 0.4),), ((0.8, 0.8), (0.5, 1))),
)


class Mine(flax_mnv2.MobileNetV2ForImageClassification):
    """With a method more."""

    def names(self):
        return list(self.config.id2label.values())


class Scaled(flax_mnv2.MobileNetV2ForImageClassification):
    """With a variable more."""

    @nn.compact
    def __call__(self, *args, **kwargs):
        scale = self.param("scale", nn.initializers.ones, ())
        output = super().__call__(*args, **kwargs)
        return output.replace(logits=output.logits * scale)


def _set(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("task", MODEL_CLASSES)
def test_each_class_loads_and_saves_itself(tmp_path, random_variables, assert_same, task):
    config = CONFIG.replace(detection=DETECTOR) if task == "detection" else CONFIG
    model, variables = MODEL_CLASSES[task](config), random_variables(config, task)
    layouts = ("flax",) if task == "detection" else ("hf", "flax")  # transformers has no such model
    for layout in layouts:
        model.save_pretrained(tmp_path / layout, variables, MobileNetV2ImageProcessor(crop_size=96), layout=layout)
        assert (tmp_path / layout / "preprocessor_config.json").is_file()
        again, loaded = MODEL_CLASSES[task].from_pretrained(tmp_path / layout)
        assert type(again) is MODEL_CLASSES[task]
        assert isinstance(again, (getattr(models, type(model).__name__), flax_mnv2.MobileNetV2PreTrainedModel))
        assert_same(loaded, variables)
        assert again.config.detection == config.detection
        assert type(flax_mnv2.from_pretrained(tmp_path / layout)[0]) is MODEL_CLASSES[task]


def test_fields_of_the_config_and_attributes_of_the_model_may_be_given(make_folder):
    folder = make_folder()
    given = {"remat": True, "implementation": "default", "output_hidden_states": True, "num_labels": CONFIG.num_labels}
    model, _ = flax_mnv2.MobileNetV2ForImageClassification.from_pretrained(folder, **given)
    assert (model.remat, model.implementation, model.config.output_hidden_states) == (True, "default", True)
    assert not flax_mnv2.MobileNetV2Model.from_pretrained(folder, add_pooling_layer=False)[0].add_pooling_layer
    with pytest.raises(ConfigError, match="no field remate"):
        flax_mnv2.MobileNetV2ForImageClassification.from_pretrained(folder, remate=True)
    with pytest.raises(CheckpointError, match="has the head of a classification model"):
        flax_mnv2.MobileNetV2ForSemanticSegmentation.from_pretrained(folder)
    with pytest.raises(ConfigError, match="A MobileNetV2PreTrainedModel has no pretrained weights; MobileNetV2Model,"):
        flax_mnv2.MobileNetV2PreTrainedModel.from_pretrained(folder)


def test_a_config_may_be_given_in_place_of_the_files(make_folder):
    folder = make_folder()
    other = CONFIG.replace(output_stride=8)
    for loaded in (
        flax_mnv2.from_pretrained(folder, config=other),
        flax_mnv2.MobileNetV2ForImageClassification.from_pretrained(folder, config=other, tf_padding=False),
    ):
        assert loaded[0].config.output_stride == 8
    assert not loaded[0].config.tf_padding
    (folder / "config.json").unlink()
    model, _ = flax_mnv2.from_pretrained(folder / "model.safetensors", config=other)
    assert (type(model), model.config) == (flax_mnv2.MobileNetV2ForImageClassification, other)


def test_the_computation_may_be_of_the_type_of_the_stored_weights(make_folder):
    folder = make_folder()
    load = flax_mnv2.MobileNetV2ForImageClassification.from_pretrained
    assert load(folder)[0].dtype == load(folder, dtype="auto")[0].dtype == jnp.float32
    assert load(folder, torch_dtype="bfloat16")[0].dtype == jnp.bfloat16
    assert load(folder, dtype=np.float16)[0].dtype == jnp.float16
    state = load_file(folder / "model.safetensors")
    half = {key: value.astype(np.float16) if value.dtype.kind == "f" else value for key, value in state.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    model, variables = load(folder, dtype="auto")
    assert model.dtype == jnp.float16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    _set(folder, torch_dtype="bfloat16")
    assert load(folder, torch_dtype="auto")[0].dtype == jnp.bfloat16
    for wrong in ("int8", "float33", 3):
        with pytest.raises(ConfigError, match="dtype must be 'auto' or a floating-point type"):
            load(folder, dtype=wrong)


def test_a_subclass_inherits_both_while_its_variables_are_the_same(tmp_path, make_folder, assert_same):
    model, variables = Mine.from_pretrained(make_folder())
    assert type(model) is Mine
    model.save_pretrained(tmp_path / "again", variables)
    assert_same(flax_mnv2.from_pretrained(tmp_path / "again")[1], variables)
    plain = models.MobileNetV2ForImageClassification(CONFIG)  # without the two methods, and no stranger
    flax_mnv2.save_pretrained(tmp_path / "plain", plain, variables)
    assert task_of_class(Mine) == task_of_class(type(plain)) == "classification"
    assert task_of_class(nn.Dense) is None


def test_a_subclass_with_variables_of_its_own_is_saved_as_ones_own(tmp_path, random_variables):
    model = Scaled(CONFIG)
    variables = random_variables(CONFIG, "classification")
    variables["params"]["scale"] = np.float32(2.0)
    with pytest.raises(ConfigError, match="A Scaled cannot be saved as another library's model"):
        model.save_pretrained(tmp_path / "hf", variables)
    model.save_pretrained(tmp_path / "flax", variables, layout="flax")
    assert flax_mnv2.load_variables(tmp_path / "flax", variables)["params"]["scale"] == 2.0


def test_tasks_take_outputs_with_names_whatever_the_config_says(make_folder):
    folder = make_folder()
    _set(folder, return_dict=False, output_hidden_states=True)
    assert not flax_mnv2.from_pretrained(folder)[0].config.return_dict
    model, _ = TASKS["classification"].load_pretrained(open_weights(folder))
    job = TASKS["classification"](
        default_config("classification"),
        MobileNetV2Config.from_pretrained(folder),
        processor=MobileNetV2ImageProcessor(),
    )
    for one in (model, job.model, job.eval_model):
        assert (one.config.return_dict, one.config.output_hidden_states) == (True, False)
