import pathlib
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util

from flax_mnv2.weights.source import make_model

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# All stages, with fewer and narrower blocks. Those of the first stage are two, so that layer_01 is its output.
TABLE = ((16, 2, 2), (24, 1, 2), (32, 2, 2), (40, 2, 1), (48, 2, 2), (56, 1, 1))


@pytest.fixture
def few_blocks(monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", TABLE)
    return TABLE


@pytest.fixture(scope="session")
def compare_logits(assert_close):
    """Logits of a converted segmenter, jitted, against a PyTorch module's, on random images."""
    torch = pytest.importorskip("torch", reason="parity tests need torch==2.13.0 (requirements-test.txt)")

    def check(checkpoint, module, size):
        images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
        with torch.no_grad():
            theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        model = make_model(checkpoint.config, checkpoint.task)
        variables = traverse_util.unflatten_dict({path: checkpoint.tensors[path] for path in checkpoint.model_paths})
        ours = jax.jit(model.apply)(variables, images).logits
        assert_close(ours, theirs.permute(0, 2, 3, 1), name=str(size))

    return check


@pytest.fixture(scope="session")
def check_way_back():
    """A state dict goes into a model of ours and comes back, bit for bit, counters at 0."""
    from flax_mnv2 import from_pretrained, to_state_dict
    from flax_mnv2.weights.opening import open_state_dict

    def check(state, library, **overrides):
        model, variables = from_pretrained(open_state_dict(state), **overrides)
        again = to_state_dict(model, variables, library)
        assert again.keys() == state.keys()
        for name, value in state.items():
            if not name.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(again[name], value.numpy(), err_msg=name, strict=True)
        return model, variables

    return check
