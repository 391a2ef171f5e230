"""What lies in a checkpoint, read by one process alone and compared with what was noted at the save."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flax_mnv2.checkpoint.comparing import (
    ARRAYS_NAME,
    DamagedCheckpointError,
    check_arrays,
    check_checksum,
    named_leaves,
)
from flax_mnv2.checkpoint.folder import ABOUT
from flax_mnv2.files import read_json

_MAX_BYTES = 2**30  # of all arrays of an item, far above any MobileNetV2


def read_about(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Returns what a run noted: its config under ``config``, the model's under ``model``, the image processor's under
    ``processor`` (empty in earlier versions), and more; a DamagedCheckpointError where it is not what was saved.
    """
    path = checkpoint / ABOUT / "metadata"  # where Orbax's JSON handler puts it
    try:
        about = read_json(path)
        parts = {"config": dict(about["config"]), "model": dict(about["model"])}
        parts["processor"] = dict(about.get("processor") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(
            f"Cannot read {path}: {error}. It is damaged, or not by this library's train.py"
        ) from None
    check_checksum(about, path)
    return {**about, **parts}


def read_item(checkpoint: pathlib.Path, item: str, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns all arrays of an item by path, joined by slashes: ``params/mobilenet_v2/…``.

    A DamagedCheckpointError where they are not those that ``about`` describes, which earlier versions did not.
    """
    import orbax.checkpoint as ocp

    leave_out_closed_loops()
    path = checkpoint / item
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
    )
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            metadata = checkpointer.metadata(path.absolute()).item_metadata
            if metadata is None:
                raise ValueError("Orbax's note of its tensors, _METADATA, is missing or cannot be read")
            needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(metadata.tree))
            if needed > _MAX_BYTES:
                raise ValueError(f"its tensors would take {needed:,} bytes, more than {_MAX_BYTES:,}")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            tree = checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    except Exception as error:  # Orbax and TensorStore raise many types
        raise DamagedCheckpointError(
            f"Cannot read {path}: {first_line(error)}. It is damaged or no Orbax checkpoint of a model"
        ) from None
    if ARRAYS_NAME in about:
        check_arrays(arrays, about[ARRAYS_NAME].get(item, {}), path)
    return arrays


def first_line(error: Exception) -> str:
    """Returns what an error of Orbax, TensorStore or the system says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax from logging each step of its work, and errors that it raises too."""
    logger = logging.getLogger("absl")

    def is_not_orbax(record: logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname

    logger.addFilter(is_not_orbax)
    try:
        yield
    finally:
        logger.removeFilter(is_not_orbax)


@functools.cache
def leave_out_closed_loops() -> None:
    """From here on Python does not print what becomes of work that Orbax has given up.

    At the first error Orbax closes its event loop. TensorStore then tells the closed loop of every other array that it
    had begun, each of which would be a traceback on the screen around our one message, and Python warns of writes that
    Orbax had planned.
    """
    warnings.filterwarnings("ignore", r"coroutine '\w*(serialize|write)\S* was never awaited", RuntimeWarning)
    otherwise = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            otherwise(unraisable)

    sys.unraisablehook = hook
