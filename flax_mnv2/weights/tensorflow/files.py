"""Which reader a file of TensorFlow's world needs, by its content."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from flax_mnv2.errors import CheckpointError
from flax_mnv2.weights.tensorflow import archive, bundle, frozen_graph, keras_files, tflite
from flax_mnv2.weights.tensors import StateDict

TENSORFLOW_SUFFIXES = (".index", ".pb", ".tgz", ".gz", ".h5", ".hdf5", ".keras", ".tflite")
_SNIFFED_BYTES = 512
# What a file is: tensors by name, notes for the user, and of TFLite the graph, whose tensors say little by their names.
Content = tuple[StateDict, tuple[str, ...], tflite.Graph | None]
Reader = Callable[[pathlib.Path, str], Content]


def find_reader(path: pathlib.Path) -> Reader | None:
    """Returns what reads a file, called with it and with ``weights``; None where it is not of TensorFlow's world."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if tflite.is_tflite(head):
        return _read_tflite
    if bundle.is_index(path):
        return lambda path, weights: (*bundle.read_checkpoint(path, weights), None)
    if archive.is_archive(head):
        return lambda path, weights: (*archive.read_archive(path, weights), None)
    if keras_files.is_keras_file(path, head):
        return _read_keras
    if frozen_graph.is_graph(head):
        return lambda path, weights: (*frozen_graph.read_graph(path, weights), None)
    return None


def check_no_average(path: pathlib.Path, weights: str) -> None:
    """Raises a CheckpointError where a moving average is asked for of a file that cannot have one."""
    if weights == "ema":
        raise CheckpointError(f'{path} has no moving average beside the weights, and weights="ema" was asked for.')


def _read_tflite(path: pathlib.Path, weights: str) -> Content:
    check_no_average(path, weights)
    return {}, (), tflite.read_graph(path)


def _read_keras(path: pathlib.Path, weights: str) -> Content:
    check_no_average(path, weights)
    return keras_files.read_keras(path), (), None
