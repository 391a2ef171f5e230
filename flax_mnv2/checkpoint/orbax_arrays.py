"""Arrays out of an Orbax folder as they lie there, by one process alone."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

from flax_mnv2.checkpoint.checksums import DamagedCheckpointError, named_leaves
from flax_mnv2.checkpoint.orbax_limits import check_declared, check_notes


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of one item by path, joined by slashes: ``params/mobilenet_v2/…``.

    Raises:
      DamagedCheckpointError: Orbax cannot read them, or they would take more memory than any MobileNetV2.
    """
    import orbax.checkpoint as ocp

    leave_out_closed_loops()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
    )
    try:
        check_notes(path)
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            metadata = checkpointer.metadata(path.absolute()).item_metadata
            if metadata is None:
                raise ValueError("Orbax's note of its tensors, _METADATA, is missing or cannot be read")
            check_declared(metadata.tree)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            tree = checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    except Exception as error:  # Orbax and TensorStore raise many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise DamagedCheckpointError(
            f"Cannot read {path}: {first}. It is damaged or no Orbax checkpoint of a model"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax, which logs each step of its work, and errors that it raises too, from doing so."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def leave_out_closed_loops() -> None:
    """From here on Python does not print what becomes of work that Orbax has given up.

    At the first error of a read or save Orbax closes its event loop. TensorStore then tells the closed loop of every
    array that it had begun beside, each of which would be a traceback on the screen around our one message.
    """
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


class _WithoutClosedLoops:
    """A hook for exceptions that nothing can raise; all but those of closed event loops go to the one before."""

    def __init__(self, otherwise):
        self._otherwise = otherwise

    def __call__(self, unraisable) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            self._otherwise(unraisable)
