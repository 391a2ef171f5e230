"""The reference library, quiet and offline; the tests skip where it is not installed."""

import warnings

import numpy as np
import pytest


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
    """Gives a torch module random weights of a useful scale, and random batch-norm parameters and statistics."""
    import torch

    def fill(module, seed):
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor, low, high):
            tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

        for layer in module.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                fan_in = layer.weight[0].numel()
                layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
                if layer.bias is not None:
                    uniform(layer.bias, -0.5, 0.5)
            elif isinstance(layer, torch.nn.BatchNorm2d):
                uniform(layer.weight, 0.5, 1.5)
                uniform(layer.bias, -0.5, 1.0)
                uniform(layer.running_mean, -0.5, 0.5)
                uniform(layer.running_var, 0.5, 2.0)
        return module.eval()

    return fill


@pytest.fixture(scope="session")
def assert_close():
    """Maximum difference within a share of the reference's largest magnitude, and the reference not trivial."""

    def check(ours, theirs, *, relative=1e-4, name=""):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, name
        scale = float(np.abs(theirs).max())
        assert scale > 1e-3, f"{name}: the reference is all but zero, so this comparison shows nothing"
        difference = float(np.abs(ours - theirs).max())
        assert difference <= relative * scale, f"{name}: {difference:.3g} at a scale of {scale:.3g}"

    return check
