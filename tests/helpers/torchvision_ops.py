"""Lets torchvision be imported where its compiled operations cannot be loaded.

The wheel of torchvision on the package registry is compiled against the CUDA build of torch; beside the CPU build its
library does not load, and the import fails when it registers shapes for operations that are then unknown. The models
need none of them. Declaring the names is enough; ``transformers`` too imports torchvision wherever it is installed.
"""

import importlib.abc
import importlib.util
import pathlib
import re
import sys

_REGISTERED = re.compile(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"')
_KEPT = []


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operations the first time that torchvision is imported, and only then loads torch."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            if spec is not None:
                _declare(pathlib.Path(spec.submodule_search_locations[0]))


def _declare(package):
    import torch

    try:
        torch.ops.load_library(next(package.glob("_C.*")))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for operation in _REGISTERED.findall((package / "_meta_registrations.py").read_text()):
            library.define(f"{operation}(Tensor x) -> Tensor")
        _KEPT.append(library)  # the declarations live as long as this does


def install():
    """Once per process; costs nothing until torchvision is imported."""
    if "torchvision" not in sys.modules and not any(isinstance(each, _BeforeTorchvision) for each in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


install()
