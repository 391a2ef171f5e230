import numpy as np
import optax
import pytest
from converting import CONFIG
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from flax_mnv2 import MobileNetV2ImageProcessor, save_pretrained
from flax_mnv2.weights.formats import timm
from flax_mnv2.weights.source import make_model, variable_shapes


@pytest.fixture(scope="session")
def random_variables():
    """Variables of a model as nested dicts, all different, in the range of useful ones."""

    def make(config, task, seed=0):
        rng = np.random.default_rng(seed)
        shapes = variable_shapes(make_model(config, task))
        flat = {path: rng.uniform(0.1, 1.0, shape).astype(np.float32) for path, shape in shapes.items()}
        return traverse_util.unflatten_dict(flat)

    return make


@pytest.fixture
def one_variant(tiny_blocks, monkeypatch):
    """With so few blocks several variants of timm are the same network."""
    monkeypatch.setattr(timm, "VARIANTS", {"mobilenetv2_050": timm.VARIANTS["mobilenetv2_050"]})


@pytest.fixture
def make_folder(tmp_path, random_variables):
    """A Hugging Face folder, as transformers would leave it: counters that count, a convolution nobody reads."""

    def make(task="classification", config=CONFIG, name="source"):
        folder = tmp_path / name
        processor = MobileNetV2ImageProcessor(crop_size=96, extra={"made_by": "a test"})
        save_pretrained(folder, make_model(config, task), random_variables(config, task), processor)
        state = load_file(folder / "model.safetensors")
        for index, key in enumerate(sorted(key for key in state if key.endswith("num_batches_tracked"))):
            state[key] = np.asarray(index + 1, np.int64)
        for key in state:
            if "conv_1x1" in key and task == "segmentation" and state[key].ndim:
                state[key] = state[key] + np.float32(0.25)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(
            text.replace('"model_type"', '"transformers_version": "5.0",\n  "model_type"')
        )
        return folder

    return make


@pytest.fixture
def run_checkpoint(tmp_path, random_variables):
    """WORKDIR/checkpoints/STEP as training leaves it, and its variables."""
    from flax_mnv2.checkpoint.run import Checkpoints
    from flax_mnv2.training.state import TrainState

    variables = random_variables(CONFIG, "segmentation", seed=4)
    state = TrainState.create(variables, optax.sgd(0.1))
    about = {"config": {"task": "segmentation"}, "model": CONFIG.to_dict()}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(0, state.to_items(), about)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    return folder, variables
