"""PyTorch's files: a state dict, or the checkpoint of a training program around it; nothing in them is executed."""

from __future__ import annotations

import argparse
import pathlib
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flax_mnv2.errors import CheckpointError, ConfigError, how_to_install
from flax_mnv2.files import shown

WEIGHTS = (
    "auto",
    "ema",
    "raw",
)  # of weights beside their moving average: which to take; auto is ema where there is one
_NAMES = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")  # of the weights; the usual first
_AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])", re.IGNORECASE)  # in a name: state_dict_ema, model_ema, ema/shadow
_MAX_DEPTH = 3  # dictionaries in each other
_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # of a file of torch.save, and of one by PyTorch before 1.6


def check_choice(weights: str) -> None:
    """Raises a ConfigError unless ``weights`` is one of ``WEIGHTS``."""
    if weights not in WEIGHTS:
        raise ConfigError(f"weights must be one of {', '.join(map(repr, WEIGHTS))}; found {weights!r}.")


def is_torch_file(path: pathlib.Path) -> bool:
    """Returns whether a file begins as PyTorch's do, whatever its name."""
    with path.open("rb") as file:
        return file.read(4).startswith(_MAGIC)


def read_torch_file(path: pathlib.Path, weights: str = "auto") -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns tensors by name, and notes on where in the file they lay; a CheckpointError where there are none."""
    torch = import_torch(f"Reading {path}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # of files that are refused anyway
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types; each means the file is not plain weights
        name = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {shown(name[1])[1:-1]}" if name else type(error).__name__
        if "TorchScript" in str(error):
            reason = "it is a TorchScript program"
        raise CheckpointError(
            f"Cannot read {path} as plain weights: {reason}. It is damaged, or holds Python objects, which are never "
            "executed here. Save the state dict alone, or as safetensors."
        ) from None
    return _take(path, loaded, weights, lambda value: isinstance(value, torch.Tensor))


def import_torch(purpose: str) -> types.ModuleType:
    """PyTorch, or a CheckpointError that begins with what it is needed for."""
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{purpose} needs PyTorch, which is not installed. {how_to_install('torch')}; or use a .safetensors file."
        ) from None
    return torch


def _harmless() -> list[Any]:
    """What training programs keep beside the weights and PyTorch's restricted reader does not know by itself.

    Options in a Namespace, with paths in it, PyTorch's version, a best score as NumPy's number; none of these can do
    anything.
    """
    found: list[Any] = [argparse.Namespace, types.SimpleNamespace]
    found.append(import_torch("Reading PyTorch's files").torch_version.TorchVersion)
    for module in ("pathlib", "pathlib._local"):  # the latter since Python 3.13
        found += [(pathlib.PurePath, f"{module}.{name}") for name in ("PosixPath", "WindowsPath")]
        found += [(getattr(pathlib, name), f"{module}.{name}") for name in ("PurePosixPath", "PureWindowsPath")]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before NumPy 2 and since
        found += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    return [*found, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefdU"}]


def _take(
    path: pathlib.Path, loaded: Any, weights: str, is_tensor: Callable[[Any], bool]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Chooses among the state dicts of a checkpoint; notes say which, and where there was a choice."""
    found = dict(_state_dicts(loaded, is_tensor))
    averages = [name for name in found if _AVERAGE.search(name)]
    others = [name for name in found if name not in averages]
    others = [name for name in _NAMES if name in others][:1] or others
    if weights != "auto" and found and not (averages if weights == "ema" else others):
        there = "no moving average beside the weights" if weights == "ema" else "a moving average alone"
        raise CheckpointError(f'{path} has {there}, and weights="{weights}" was asked for.')
    chosen = averages if averages and weights != "raw" else others
    if len(chosen) != 1:
        what = f"several, under {', '.join(map(shown, chosen))}" if chosen else "none"
        raise CheckpointError(
            f"{path} is not a state dict (tensors by name), alone or inside a training checkpoint; found {what}. "
            "Choose one, and save model.state_dict()."
        )
    [name] = chosen
    if not name:
        return found[name], ()
    if name not in averages:
        left = f"; its moving average is under {shown(averages[0])}" if averages else ""
        return found[name], (f"took the weights from {shown(name)} in the file{left}",)
    left = f'; weights="raw" takes {shown(others[0])}' if len(others) == 1 else ""
    return found[name], (f"took the moving average from {shown(name)} in the file{left}",)


def _state_dicts(value: Any, is_tensor: Callable[[Any], bool], *path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the state dicts in a loaded file by where they are, ``""`` for the file itself."""
    if not isinstance(value, Mapping) or len(path) > _MAX_DEPTH:
        return
    if value and all(isinstance(key, str) and is_tensor(item) for key, item in value.items()):
        if not path or any(item.ndim > 1 for item in value.values()):  # else scores or counters
            yield "/".join(path), dict(value)
        return
    for key, item in value.items():
        if isinstance(key, str):
            yield from _state_dicts(item, is_tensor, *path, key)
