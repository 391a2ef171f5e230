"""PyTorch as all benchmarks import it, without JAX beside it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys

from benchmarks.harness import ROOT

TORCHVISION_OPS = ROOT / "tests" / "helpers" / "torchvision_ops.py"


@functools.cache
def import_torch():
    """torch, prepared so that torchvision (which transformers and timm import) loads beside its CPU build too.

    Raises:
      ImportError: it is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError("torch is not installed")
    spec = importlib.util.spec_from_file_location("torchvision_ops", TORCHVISION_OPS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["torchvision_ops"] = module  # its declarations live as long as it does
    spec.loader.exec_module(module)
    torch = importlib.import_module("torch")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as XLA; without effect on CPU
    return torch
