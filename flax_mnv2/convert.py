"""Converts weights: python -m flax_mnv2.convert SRC DST [--from auto] [--to flax]

SRC is a folder, a file of weights or a hub id; its format is recognised. DST is a folder, or a file for torchvision,
timm, Keras and the libraries of DeepLab and of detectors. Every tensor comes back bit for bit on the way back.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import sys
from collections.abc import Sequence

from flax_mnv2.devices import check_devices
from flax_mnv2.errors import CheckpointError, ConfigError, exit_status
from flax_mnv2.hub import expand_user
from flax_mnv2.weights.formats import FORMATS, is_file_name
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import RANGES_NOTE, UNFOLDED_NOTE, Checkpoint, Source, declares_unused_conv
from flax_mnv2.weights.tensors import widened
from flax_mnv2.weights.torch_files import WEIGHTS
from flax_mnv2.weights.writing import MODEL_NAMES, check_destination, is_empty, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and converts; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flax_mnv2.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", help="folder, file (.safetensors, .pth, .ckpt, …) or hub id")
    parser.add_argument("dst", metavar="DST", type=pathlib.Path, help="folder, or file, for PyTorch and Keras")
    parser.add_argument(
        "--from", dest="source_format", choices=("auto", *FORMATS), default="auto", help="what SRC must be"
    )
    parser.add_argument(
        "--to",
        choices=[name for name, form in FORMATS.items() if form.is_written],
        help="format of DST; a folder is flax by default, and hf where SRC is flax; .weights.h5 is keras",
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="auto", help="of a training checkpoint: its moving average, or themselves"
    )
    parser.add_argument(
        "--resize", type=int, metavar="PX", help="shorter side that images are resized to, where SRC does not say it"
    )
    parser.add_argument("--overwrite", action="store_true", help="write where something lies already")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    check_devices()
    source = open_weights(options.src, weights=options.weights)
    if options.source_format not in ("auto", source.format):
        raise CheckpointError(
            f"{options.src} is in the format {source.format}, not {options.source_format} as --from says."
        )
    convert(source, options.dst, options.to, resize=options.resize, overwrite=options.overwrite)


def convert(
    source: Source, destination: pathlib.Path, to: str | None, *, resize: int | None = None, overwrite: bool = False
) -> None:
    """Does what the command line says, and prints it; a UserError, and nothing written, where that cannot be."""
    destination = pathlib.Path(os.path.normpath(expand_user(destination)))
    if to is None and is_file_name(destination):
        names = [name for name, form in FORMATS.items() if destination.name.endswith(form.file_endings)]
        if len(names) > 1:
            options = " or ".join(f"--to {name}" for name in names)
            raise ConfigError(f"{destination} could be a {' or a '.join(names)} file; say which: {options}.")
        to = next(iter(names), None)
    to = to or ("hf" if source.format == "flax" else "flax")
    check_destination(destination, to)
    _check_free(source.where, destination, overwrite=overwrite)
    if resize is not None:
        if is_file_name(destination):
            raise ConfigError(f"--resize is written beside the weights; {destination} is a file of tensors only.")
        source = source.with_resize(resize)
    checkpoint = source.checkpoint()
    write(checkpoint, destination, to)
    print("\n".join(_report(source, checkpoint, destination, to)))


def _check_free(source: pathlib.Path, destination: pathlib.Path, *, overwrite: bool) -> None:
    """Raises a ConfigError where the source lies at the destination, or something else that is to stay."""
    own, target = source.resolve(), destination.resolve()
    files_of_source = [path.resolve() for path in own.iterdir()] if own.is_dir() else []
    if target in (own.parent, *files_of_source) or target.is_relative_to(own):
        raise ConfigError(f"{destination} is where the source lies; name another place.")
    taken = not is_empty(destination) if destination.is_dir() else destination.exists()
    if taken and not overwrite:
        raise ConfigError(f"{destination} exists and is not empty; name another place, or pass --overwrite.")
    if destination.is_dir() and not any((destination / name).exists() for name in MODEL_NAMES) and taken:
        raise ConfigError(f"{destination} holds no model, so --overwrite does not write there; name another folder.")


def _report(source: Source, checkpoint: Checkpoint, destination: pathlib.Path, to: str) -> list[str]:
    config = checkpoint.config
    deeper = f" (depth {config.layer_depth_multiplier})" if config.layer_depth_multiplier != 1 else ""
    classes = "" if checkpoint.task == "backbone" else f", {config.num_labels} classes"
    padding = "TensorFlow's" if config.tf_padding else "PyTorch's"
    sizes = collections.Counter()
    for path in checkpoint.model_paths:
        sizes[path[0]] += checkpoint.tensors[path].size
    others = len(checkpoint.tensors) - len(checkpoint.model_paths)
    lines = [
        f"source      {source.where} ({source.format})",
        f"network     MobileNetV2 {config.depth_multiplier}{deeper}, {checkpoint.task}{classes}, output stride "
        f"{config.output_stride}, {padding} padding",
        f"tensors     {len(checkpoint.model_paths)} of the model: {sizes['params']:,} parameters and "
        f"{sizes['batch_stats']:,} running statistics; {others} more, which only PyTorch's code has",
        f"written     {destination} ({to})",
    ]
    notes = [*source.notes, *filter(None, (source.processor_note,))]
    notes += [UNFOLDED_NOTE] if source.folded else []
    types = widened(source.state)
    if types:
        notes.append(f"{' and '.join(types)} became float32, exactly")
    if not source.complete:
        has_fresh = declares_unused_conv(config, checkpoint.task)
        fresh = ", and conv_1x1 is a fresh one that nothing reads" if has_fresh else ""
        notes.append(f"counters start at 0{fresh if others else ''}")
    if config.quantization is not None and not FORMATS[to].keeps_ranges:
        notes.append(RANGES_NOTE)
    notes += FORMATS[to].left_behind(checkpoint, is_file=is_file_name(destination))
    return lines + [f"note        {note}" for note in notes]


if __name__ == "__main__":
    sys.exit(main())
