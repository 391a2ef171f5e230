"""A model and its variables → a file for a runtime, checked."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.export.checking import Comparison, compare
from flax_mnv2.export.evaluating import DeployedModule
from flax_mnv2.export.formats.onnx import write_onnx
from flax_mnv2.export.formats.stablehlo import write_stablehlo
from flax_mnv2.export.formats.tflite import write_tflite
from flax_mnv2.export.graph.network import check_settings, make_graph
from flax_mnv2.export.metadata import Metadata
from flax_mnv2.export.serving import serving_function
from flax_mnv2.export.settings import ExportSettings, Normalization, format_of
from flax_mnv2.files import replacing
from flax_mnv2.hub import expand_user
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor

_ANY = 64  # of a side that is any, for the names of the outputs alone
_OWN = "own"  # size: that of the config
_BY_FORMAT = "by format"  # batch: one image on phones, any number elsewhere


def export(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: str | pathlib.Path,
    *,
    to: str | None = None,
    size: int | Sequence[int] | str | None = _OWN,
    batch: int | str | None = _BY_FORMAT,
    processor: MobileNetV2ImageProcessor | None = None,
    preprocessing: bool = False,
    postprocessing: bool = False,
    image: np.ndarray | None = None,
) -> Comparison | None:
    """Writes a model to a file for ONNX Runtime, LiteRT (TensorFlow Lite) or whatever runs StableHLO.

    The file computes in float32 what the model does, batch norm merged into the convolutions. That of a quantised model
    (``config.quantization``) computes in integers of 8 bits, between the same inputs and outputs: TFLite has tensors of
    integers, ONNX pairs of QuantizeLinear and DequantizeLinear, StableHLO float32 rounded to the same grids.

    ONNX files take and give maps as (N, C, H, W), the others as (N, H, W, C); images as bytes are (N, H, W, C)
    everywhere.

    Args:
      model: one of the models of this library.
      variables: ``params`` and ``batch_stats`` of it, of a folded one ``params``.
      path: of the file; it is written whole or not at all.
      to: ``"onnx"``, ``"tflite"`` or ``"stablehlo"``; None for what the ending of ``path`` says.
      size: of the images, (height, width) or a side; None or ``"dynamic"`` for any; by default ``config.image_size``.
        A detector's is fixed. ``tf_padding`` with any size is ``auto_pad="SAME_UPPER"`` in ONNX.
      batch: number of images; None or ``"dynamic"`` for any; by default any, in TFLite 1.
      processor: what prepares images for the weights; it goes into the metadata, and says how bytes are normalised.
      preprocessing: take uint8 RGB, resized and cropped already, and normalise in the file; needs ``processor``.
      postprocessing: give ``probabilities``, the ``label_map`` of a segmentation at the size of the images, or the
        ``boxes``, ``labels``, ``scores`` and ``num_detections`` of a detector after suppression, in place of logits
        and raw boxes.
      image: (H, W, 3) uint8, of the file's size, to compare the file and the model on; by default noise.

    Returns:
      How far the file's outputs, computed by its runtime, are from the model's; None where the runtime is missing.

    Raises:
      ConfigError: an argument is out of range, or the model cannot be written so.
      CheckpointError: the file does not compute what the model does; it is not kept.
      UserError: the package that writes the format is missing; the message names the extra.
    """
    path = expand_user(path)
    to = format_of(path, to)
    normalization = None
    if preprocessing:
        if processor is None:
            raise ConfigError("preprocessing needs the processor of the weights: processor=load_processor(…).")
        normalization = Normalization.of(processor, model.config.num_channels)
    usual_batch = 1 if to == "tflite" else None
    settings = ExportSettings(
        _size(model.config.image_size if isinstance(size, str) and size == _OWN else size),
        usual_batch if batch == _BY_FORMAT else None if batch == "dynamic" else batch,
        normalization,
        postprocessing,
    )
    check_settings(model, settings)
    in_integers = model.config.quantization is not None and to != "stablehlo"
    deployed = DeployedModule(model, variables) if in_integers else None
    serve, folded = serving_function(model, variables, settings, deployed=deployed)
    compute = functools.partial(jax.jit(serve), folded)
    with replacing(path) as temporary:
        if to == "stablehlo":
            sides = [side or _ANY for side in (settings.batch, *(settings.size or (None, None)))]
            names = jax.eval_shape(compute, jax.ShapeDtypeStruct((*sides, model.config.num_channels), jnp.float32))
            metadata = Metadata.of(model, processor, settings, tuple(names))
            write_stablehlo(serve, folded, temporary, metadata)
        else:
            graph = make_graph(model, variables, settings)
            metadata = Metadata.of(model, processor, settings, tuple(graph.outputs), channels_first=to == "onnx")
            {"onnx": write_onnx, "tflite": write_tflite}[to](graph, temporary, metadata)
        return compare(temporary, to, compute, metadata, image=image)


def _size(size: int | Sequence[int] | str | None) -> tuple[int, int] | None:
    if size is None or size == "dynamic":
        return None
    if isinstance(size, str) or np.ndim(size) > 1:
        raise ConfigError(f"size must be (height, width), a side, or 'dynamic'; found {size!r}.")
    return tuple(map(int, size)) if np.ndim(size) else (int(size),) * 2
