"""Exports a model: python -m flax_mnv2.export SRC OUT [--to onnx|tflite|stablehlo].

SRC is a folder, a file of weights, a run's checkpoint or a hub id. The file computes in float32 what the model does, or
in integers of 8 bits where the model was trained for them, or --calibrate shows it images. It is run and compared with
the model before the command says that it is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from flax_mnv2.config.quantization import SCHEMES
from flax_mnv2.devices import check_devices
from flax_mnv2.errors import CheckpointError, ConfigError, exit_status, how_to_install
from flax_mnv2.export.calibration import MAX_IMAGES, calibration_batches, find_photos
from flax_mnv2.export.exporting import export
from flax_mnv2.export.settings import FORMATS, format_of
from flax_mnv2.hub import expand_user
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models.quantization.calibrate import calibrate
from flax_mnv2.weights.models import MODEL_CLASSES
from flax_mnv2.weights.pretrained import from_pretrained, open_weights
from flax_mnv2.weights.source import Source
from flax_mnv2.weights.torch_files import WEIGHTS

_EPILOG = """\
examples:
  python -m flax_mnv2.export google/mobilenet_v2_1.0_224 mobilenet.onnx
  python -m flax_mnv2.export runs/seg/checkpoints/step_30000 deeplab.tflite --size 513 513 --with_postprocessing
  python -m flax_mnv2.export weights/ mobilenet.stablehlo --size dynamic --with_preprocessing
  python -m flax_mnv2.export weights/ mobilenet_int8.tflite --quantize int8 --calibrate photos/"""
_FLOATS = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and exports; returns the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _export(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flax_mnv2.export",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("src", metavar="SRC", help="folder, file of weights, WORKDIR/checkpoints/step_N, or hub id")
    parser.add_argument("out", metavar="OUT", type=expand_user, help=f"file, {', '.join(FORMATS)}")
    parser.add_argument("--to", choices=tuple(FORMATS.values()), help="format (default: by the ending of OUT)")
    parser.add_argument("--task", choices=tuple(MODEL_CLASSES), help="what to export (default: as the weights say)")
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="of a training checkpoint")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--size", nargs="+", metavar="PX", help="height and width, one side, or dynamic (default: the config's)"
    )
    parser.add_argument("--batch", metavar="N", help="images, or dynamic (default: dynamic, for TFLite 1)")
    parser.add_argument("--with_preprocessing", action="store_true", help="take uint8 RGB and normalise in the file")
    parser.add_argument(
        "--with_postprocessing", action="store_true", help="give probabilities, label maps, or boxes after suppression"
    )
    parser.add_argument(
        "--quantize",
        choices=(*SCHEMES, _FLOATS),
        help="integers of 8 bits, with a range for each channel of a kernel (int8) or for all (uint8), or none "
        "(default: as the model was trained)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help=f"take the ranges of integers from these photos, up to {MAX_IMAGES} of them (default: those of training)",
    )
    parser.add_argument("--image", metavar="PHOTO", help="compare file and model on this one (default: on noise)")
    parser.add_argument("--overwrite", action="store_true", help="write where a file lies already")
    return parser


def _export(options: argparse.Namespace) -> None:
    check_devices()
    to, size, batch = format_of(options.out, options.to), _numbers(options.size, "--size"), options.batch
    if not options.out.parent.is_dir():
        raise ConfigError(f"No folder {options.out.parent} for {options.out.name}; make it, or name another.")
    if options.out.exists() and not options.overwrite:
        raise ConfigError(f"{options.out} exists; name another file, or pass --overwrite.")
    source = open_weights(options.src, revision=options.revision, weights=options.weights)
    processor = _processor(source, needed=options.with_preprocessing or options.calibrate is not None)
    model, variables = _load(source, options, processor, size)
    sides = size or model.config.image_size
    arguments = {"size": size} if size else {}
    if batch is not None:
        arguments["batch"] = batch if batch == "dynamic" else _number(batch, "--batch")
    image = None if options.image is None else _photo(options.image, sides)
    compared = export(
        model,
        variables,
        options.out,
        to=to,
        processor=processor,
        preprocessing=options.with_preprocessing,
        postprocessing=options.with_postprocessing,
        image=image,
        **arguments,
    )
    print(f"written  {options.out} ({to}, {options.out.stat().st_size / 1e6:.1f} MB)")
    if compared is None:
        print(f"note     not run: {how_to_install(to)}")
    else:
        print(f"checked  {compared}")


def _load(
    source: Source, options: argparse.Namespace, processor: MobileNetV2ImageProcessor | None, size: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the model and its variables, with ranges of the photos that are to calibrate them, if any."""
    found = source.config.quantization and source.config.quantization.scheme
    if options.calibrate is None:
        if options.quantize == _FLOATS:
            return from_pretrained(source, task=options.task, quantization=None)
        if options.quantize not in (None, found):
            what = f"is quantised by {found!r}" if found else "has no config of a model that was trained for integers"
            raise ConfigError(
                f"{options.src} {what}; for --quantize {options.quantize} give --calibrate FOLDER with photos such as "
                "the network will see, or train it so (config.model.quantization.scheme)."
            )
        return from_pretrained(source, task=options.task)
    if options.quantize == _FLOATS:
        raise ConfigError("--calibrate takes ranges for integers, which --quantize none does not write. Leave one out.")
    photos, scheme = find_photos(options.calibrate), options.quantize or found or SCHEMES[0]
    model, variables = from_pretrained(source, task=options.task, quantization=scheme)
    sides = model.config.image_size if size in (None, "dynamic") else size
    height, width = np.broadcast_to(sides, 2).tolist()
    variables = calibrate(model, variables, calibration_batches(photos, processor, (height, width)))
    print(f"ranges   of {len(photos)} images in {options.calibrate}, {height}×{width}")
    return model, variables


def _numbers(texts: list[str] | None, option: str) -> str | tuple[int, ...] | None:
    if texts is None or texts == ["dynamic"]:
        return texts and "dynamic"
    numbers = tuple(_number(text, option) for text in texts)
    if len(numbers) > 2:
        raise ConfigError(f"{option} takes height and width, one side, or dynamic; found {' '.join(texts)}.")
    return numbers * 2 if len(numbers) == 1 else numbers


def _number(text: str, option: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{option} takes whole numbers from 1, or dynamic; found {text!r}.")
    return int(text)


def _processor(source: Source, *, needed: bool) -> MobileNetV2ImageProcessor | None:
    """Returns what prepares images; None where nothing is known of it and the file does not need it."""
    try:
        return source.processor()
    except CheckpointError:
        if needed:
            raise
        return None


def _photo(path: str, size: str | int | tuple[int, ...]) -> np.ndarray:
    """Returns a photo of the size that the file is for, (H, W, 3) uint8."""
    sides = {} if size == "dynamic" else {"size": tuple(np.broadcast_to(size, 2).tolist())}
    steps = {"do_rescale": False, "do_normalize": False, "do_center_crop": False, "do_resize": bool(sides)}
    return MobileNetV2ImageProcessor().preprocess(path, **steps, **sides).pixel_values[0]
