"""Arrays out of an Orbax folder as they lie there, by one process alone."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flax_mnv2.checkpoint.checksums import DamagedCheckpointError, named_leaves

_MAX_BYTES = 2**30  # of all arrays of an item, far above any MobileNetV2


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all arrays of one item by path, joined by slashes: ``params/mobilenet_v2/…``.

    Raises:
      DamagedCheckpointError: Orbax cannot read them, or they would take more memory than any MobileNetV2.
    """
    import orbax.checkpoint as ocp

    leave_out_closed_loops()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
    )
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            metadata = checkpointer.metadata(path.absolute()).item_metadata
            if metadata is None:
                raise ValueError("Orbax's note of its tensors, _METADATA, is missing or cannot be read")
            needed = sum(map(_num_bytes, jax.tree.leaves(metadata.tree)))
            if needed > _MAX_BYTES:
                raise ValueError(f"its tensors would take {needed:,} bytes, more than {_MAX_BYTES:,}")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            tree = checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    except Exception as error:  # Orbax and TensorStore raise many types
        raise DamagedCheckpointError(
            f"Cannot read {path}: {first_line(error)}. It is damaged or no Orbax checkpoint of a model"
        ) from None


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
    had begun, each of which would be a traceback on the screen around our one message.
    """
    otherwise = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            otherwise(unraisable)

    sys.unraisablehook = hook


def _num_bytes(leaf: Any) -> int:
    """Memory that reading an array takes: its own, or that of a chunk of the file where chunks are larger."""
    shapes = [leaf.shape, getattr(leaf.storage, "chunk_shape", None) or ()]
    return max(math.prod(shape) for shape in shapes) * leaf.dtype.itemsize
