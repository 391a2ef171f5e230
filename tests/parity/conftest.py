"""transformers, quiet and offline; the tests skip where it is not installed."""

import warnings

import numpy as np
import pytest
import torch_weights


@pytest.fixture(scope="session")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="parity tests need torch==2.13.0 (requirements-test.txt)")
        module = pytest.importorskip("transformers", reason="parity tests need transformers")
        module.utils.logging.disable_progress_bar()
        yield module


@pytest.fixture(scope="session")
def randomize():
    """Gives a torch module random weights from a seed."""
    return torch_weights.randomize


@pytest.fixture(scope="session")
def assert_close():
    """Maximum difference within a fraction of the expected values' largest magnitude, and those not trivial."""

    def check(ours, theirs, *, relative=1e-4, name=""):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, name
        scale = float(np.abs(theirs).max())
        assert scale > 1e-3, f"{name}: the expected values are all but zero, so this comparison shows nothing"
        difference = float(np.abs(ours - theirs).max())
        assert difference <= relative * scale, f"{name}: {difference:.3g} at a scale of {scale:.3g}"

    return check


@pytest.fixture(scope="session")
def torchvision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="parity tests need torch==2.13.0 (requirements-test.txt)")
        yield pytest.importorskip("torchvision", reason="parity tests need torchvision==0.28.0")


@pytest.fixture(scope="session")
def timm(torchvision):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("timm", reason="parity tests need timm")


@pytest.fixture(scope="session")
def compare_classifiers(assert_close):
    """Last feature map and logits of a converted classifier against the original's, on random images."""
    import jax
    import torch
    from flax import traverse_util

    from flax_mnv2.weights.source import make_model

    def check(checkpoint, features_of, logits_of, size):
        images = np.random.default_rng(0).normal(size=(2, *size, checkpoint.config.num_channels)).astype(np.float32)
        theirs_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            theirs_features, theirs_logits = features_of(theirs_images), logits_of(theirs_images)
        model = make_model(checkpoint.config, checkpoint.task)
        variables = traverse_util.unflatten_dict({path: checkpoint.tensors[path] for path in checkpoint.model_paths})
        run = jax.jit(lambda v, x: model.apply(v, x, output_hidden_states=["conv_1x1"]))
        ours = run(variables, images)
        assert_close(ours.hidden_states[0], theirs_features.permute(0, 2, 3, 1), name="last features")
        assert_close(ours.logits, theirs_logits, name="logits")

    return check


@pytest.fixture(scope="session")
def check_state_dict():
    """A module's state dict goes into a model of ours in memory and comes back as it was."""
    import torch

    from flax_mnv2 import ConfigError, from_state_dict, to_state_dict

    def check(module, library):
        model, variables = from_state_dict(module.state_dict())
        again = {name: torch.from_numpy(value) for name, value in to_state_dict(model, variables, library).items()}
        assert all(torch.equal(again[name], value) for name, value in module.state_dict().items())
        module.load_state_dict(again)
        with pytest.raises(ConfigError, match="says its network itself"):
            from_state_dict(module.state_dict(), config=model.config)
        libraries = "hf, torchvision, timm, vainf, smp, mmseg, tf_detection, mmdet or keras"
        with pytest.raises(ConfigError, match=f"{libraries}; found 'tf'"):
            to_state_dict(model, variables, "tf")

    return check
