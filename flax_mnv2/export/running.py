"""Exported files, run by their runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.export.formats.stablehlo import read_stablehlo
from flax_mnv2.export.metadata import KEY, Metadata
from flax_mnv2.export.packages import needs_package
from flax_mnv2.export.settings import FORMATS
from flax_mnv2.files import parse_json, read_bytes
from flax_mnv2.hub import expand_user
from flax_mnv2.weights.tensorflow import arrays
from flax_mnv2.weights.tensorflow.flatbuffer import Table

RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai_edge_litert", "stablehlo": "jax"}  # packages
Outputs = dict[str, np.ndarray]
_Run = Callable[[np.ndarray], Outputs]


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Says whether a name is that of a file of ``export``; TFLite files of others are weights, and are looked into."""
    path = expand_user(path)
    if path.suffix.lower() == ".tflite":
        return path.is_file() and bool(_tflite_metadata(path))
    return path.suffix.lower() in FORMATS


def has_runtime(to: str) -> bool:
    """Says whether what runs a format is installed."""
    return importlib.util.find_spec(RUNTIMES[to]) is not None


class ExportedModel:
    """A file of ``export``, run by ONNX Runtime, LiteRT or JAX.

    Attributes:
      metadata: what the file says of itself.
    """

    def __init__(self, path: str | pathlib.Path, to: str | None = None):
        """Opens a file; ``to`` is its format, by default that of its ending.

        Raises:
          CheckpointError: it cannot be read, or ``export`` did not write it.
          UserError: the runtime is missing; the message names the extra.
        """
        self._path = path = expand_user(path)
        to = to or FORMATS.get(path.suffix.lower())
        openers = {"onnx": _open_onnx, "tflite": _open_tflite, "stablehlo": _open_stablehlo}
        if to not in openers:
            raise CheckpointError(f"{path} is no exported model; expected the ending {', '.join(FORMATS)}.")
        if not path.is_file():
            raise CheckpointError(f"No file {path}.")
        try:
            self._run, values = openers[to](path)
        except (ValueError, RuntimeError, OSError) as error:
            raise CheckpointError(f"Cannot read {path}: {str(error).splitlines()[0][:200]}.") from None
        self.metadata = Metadata.from_dict(values, path)

    def __call__(self, images: np.ndarray) -> Outputs:
        """Images (N, H, W, C) as the file takes them → outputs by name, maps with the channels last.

        A file of a fixed batch takes any number, so many at a time.

        Raises:
          ConfigError: images of another size than the file's.
        """
        settings = self.metadata.settings
        if settings.size is not None and images.shape[1:3] != tuple(settings.size):
            height, width = settings.size
            raise ConfigError(
                f"{self._path} takes images of {height}×{width}; found {images.shape[1]}×{images.shape[2]}. Export it "
                f"with --size {images.shape[1]} {images.shape[2]}, or with --size dynamic."
            )
        count, batch = len(images), settings.batch or len(images)
        images = np.concatenate([images, np.zeros((-count % batch, *images.shape[1:]), images.dtype)])
        parts = [self._once(images[at : at + batch]) for at in range(0, len(images), batch)]
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in self.metadata.outputs}

    def _once(self, images: np.ndarray) -> Outputs:
        bytes_in, channels_first = self.metadata.settings.normalization is not None, self.metadata.channels_first
        if channels_first and not bytes_in:
            images = images.transpose(0, 3, 1, 2)
        outputs = self._run(np.ascontiguousarray(images))
        if channels_first:
            outputs = {
                name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for name, value in outputs.items()
            }
        return outputs


def _open_onnx(path: pathlib.Path) -> tuple[_Run, dict[str, Any]]:
    with needs_package("onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait take no core
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base but this
        raise ValueError(str(error)) from None
    names = [output.name for output in session.get_outputs()]
    [image] = session.get_inputs()

    def run(images: np.ndarray) -> Outputs:
        return dict(zip(names, session.run(names, {image.name: images}), strict=True))

    properties = session.get_modelmeta().custom_metadata_map
    return run, {name: json.loads(value) for name, value in properties.items()}


def _open_tflite(path: pathlib.Path) -> tuple[_Run, dict[str, Any]]:
    with needs_package("tflite"):
        from ai_edge_litert.interpreter import Interpreter
    metadata = _tflite_metadata(path)
    # With several threads LiteRT 2.3.0 loses the boxes of one class in its suppression.
    threads = 1 if "num_detections" in metadata.get("outputs", ()) else os.cpu_count()
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    [image] = interpreter.get_input_details()
    names = {output["name"]: output["index"] for output in interpreter.get_output_details()}
    shape = None

    def run(images: np.ndarray) -> Outputs:
        nonlocal shape
        if shape != images.shape:
            shape = images.shape
            if tuple(image["shape"]) != shape:
                interpreter.resize_tensor_input(image["index"], shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in names.items()}

    return run, metadata


def _tflite_metadata(path: pathlib.Path) -> dict[str, Any]:
    """Returns what ``export`` wrote into a TFLite file, which needs no package; nothing of another's."""
    try:
        model = Table.root(memoryview(read_bytes(path, max_bytes=arrays.MAX_BYTES)))
        found = [entry.number(1, "I") for entry in model.tables(6, limit=arrays.MAX_TENSORS) if entry.text(0) == KEY]
        buffers = list(model.tables(4, limit=arrays.MAX_TENSORS))
        return parse_json(buffers[found[0]].array(0, "u1").tobytes().decode()) if found else {}
    except (CheckpointError, OSError, ValueError, IndexError):
        return {}


def _open_stablehlo(path: pathlib.Path) -> tuple[_Run, dict[str, Any]]:
    import jax

    program, metadata = read_stablehlo(path)
    call = jax.jit(program.call)
    return lambda images: {name: np.asarray(value) for name, value in call(images).items()}, metadata
