"""Builds data sets ahead of training: ``python -m flax_mnv2.data.prepare NAME …``; train.py then finds them."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow_datasets as tfds

from flax_mnv2.data.datasets import imagenet
from flax_mnv2.data.datasets.preparation import report_left_out
from flax_mnv2.data.datasets.prepared import ARRAY_RECORD, default_data_dir, prepared
from flax_mnv2.data.datasets.registry import DATASETS, load
from flax_mnv2.data.prepare import conversion
from flax_mnv2.errors import DataError, exit_status

_COMMAND = "python -m flax_mnv2.data.prepare"
_IMAGENET = "imagenet2012"
_FIELDS = {  # of config.data: metavar and type
    "archive": ("PATH", str),
    "sbd_archive": ("PATH", str),
    "table": ("PATH", str),
    "labels": ("NAMES", str),
    "num_classes": ("N", int),
    "ignore_label": ("N", int),
    "label_map": ("VALUE:CLASS,…", str),
    "reduce_labels": ("", bool),
    "train_split": ("SPLIT", str),
    "eval_split": ("SPLIT", str),
    "holdout": ("FRACTION", float),
    "bad_examples": ("WORD", str),
    "max_bad_examples": ("N", int),
}
_DESCRIPTION = """\
Build a data set ahead of training, as ArrayRecord files that training reads without
TensorFlow. NAME is what config.data.dataset will be; or "convert", for a data set that
TensorFlow Datasets has prepared as TFRecord. What is built already is left as it is."""
_EPILOG = f"""\
exit status: 0 done; 2 nothing done: a mistake in the command, or in the data.

examples:
  {_COMMAND} imagenet2012 --manual_dir ~/ilsvrc --without_tensorflow
  {_COMMAND} convert ~/tensorflow_datasets/imagenet2012/5.1.0
  {_COMMAND} image_folder --archive photos.zip
  {_COMMAND} image_table/multi_label --archive photos.zip --table labels.csv
  {_COMMAND} voc_segmentation/2012 --data_dir /data/tfds"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns the exit status: 0 done, 2 a user's mistake, 130 interrupted."""
    arguments = _parse(argv)
    return exit_status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    lines = arguments.prepare(arguments)
    print("\n".join([*lines, f"time        {time.monotonic() - start:.1f} s"]))


def _prepare_imagenet(arguments: argparse.Namespace) -> list[str]:
    data_dir = default_data_dir(arguments.data_dir)
    existing = imagenet.prepared_by_tfds(data_dir)
    if existing is not None:
        return _report(dict.fromkeys(existing.info.splits, existing))
    place = imagenet.manual_dir(arguments.manual_dir, data_dir)
    archives = imagenet.find_archives(place)
    if not archives:
        raise imagenet.no_archives(place)
    if not arguments.without_tensorflow:
        return _report(dict.fromkeys(archives, _build_by_tfds(place, archives, data_dir)))
    makers = {
        split: functools.partial(imagenet.make_builder, split, archive, data_dir, for_good=True)
        for split, archive in archives.items()
    }
    return _report({split: prepared(make, data_dir) for split, make in makers.items()})


def _build_by_tfds(
    place: pathlib.Path, archives: dict[str, pathlib.Path], data_dir: pathlib.Path
) -> tfds.core.DatasetBuilder:
    """TFDS's ``imagenet2012``, built by TFDS."""
    alternative = shlex.join(["imagenet2012", "--manual_dir", str(place), "--data_dir", str(data_dir)])
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            "TFDS's builder of imagenet2012 needs TensorFlow, which is not installed: pip install tensorflow-cpu "
            "(training does not need it). Or have ours build it, which needs nothing more:\n"
            f"  {_COMMAND} {alternative} --without_tensorflow"
        )
    if missing := [name for split, name in imagenet.SPLITS.items() if split not in archives]:
        raise DataError(
            f"{place / missing[0]} is missing; TFDS's builder wants both archives. Put it there, or have ours build "
            f"the one split:\n  {_COMMAND} {alternative} --without_tensorflow"
        )
    options = tfds.download.DownloadConfig(manual_dir=place)
    make = functools.partial(tfds.builder, "imagenet2012", data_dir=data_dir, file_format=ARRAY_RECORD)
    return prepared(make, data_dir, download_config=options)


def _prepare(arguments: argparse.Namespace) -> list[str]:
    given = {key: value for key, value in vars(arguments).items() if key in ("data_dir", *_FIELDS)}
    dataset = load({"dataset": arguments.name, **given})
    labels = ", ".join(dataset.labels[:8]) + (" …" if len(dataset.labels) > 8 else "")
    builders = {split: builder() for split, builder in dataset.builders.items()}
    return [
        *_report(builders),
        *(f"read        {note}" for note in dataset.notes()),
        f"{dataset.targets:<11} {len(dataset.labels)}: {labels}",
        *dataset.histogram(),
        *report_left_out(dataset.left_out),
    ]


def _convert(arguments: argparse.Namespace) -> list[str]:
    folder = conversion.convert(arguments.folder, data_dir=arguments.data_dir, num_workers=arguments.num_workers)
    builder = tfds.builder_from_directory(folder)
    return _report(dict.fromkeys(builder.info.splits, builder))


def _report(builders: dict[str, tfds.core.DatasetBuilder]) -> list[str]:
    lines = [f"{split:<11} {builder.info.splits[split].num_examples:,} examples" for split, builder in builders.items()]
    folders = []
    for folder, config in {str(builder.data_dir): builder.builder_config for builder in builders.values()}.items():
        folders.append(f"folder      {folder}")
        if config is not None and config.description:
            folders.append(f"what        {config.description}")
    return folders + lines


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_COMMAND,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, entry in DATASETS.items():
        if name == _IMAGENET:
            _add_imagenet(names, entry.summary)
            continue
        command = _add(names, name, entry.summary, _prepare)
        for field, what in entry.fields.items():
            metavar, kind = _FIELDS[field]
            needed = field == "archive" and not (
                entry.fixed or entry.official
            )  # there is nothing but the user's own data
            options = {"type": kind, "metavar": metavar, "help": what, "required": needed}
            if kind is bool:
                options = {"action": "store_true", "help": what}
            command.add_argument(f"--{field}", default=argparse.SUPPRESS, **options)
    command = _add(names, "convert", "a data set that TFDS prepared as TFRecord, to ArrayRecord", _convert)
    command.add_argument(
        "folder", metavar="FOLDER", type=pathlib.Path, help="its dataset_info.json's, such as …/imagenet2012/5.1.0"
    )
    command.add_argument("--num_workers", type=int, metavar="N", help="threads (default: one for each core)")
    return parser.parse_args(argv)


def _add(names: Any, name: str, summary: str, prepare: Callable[..., list[str]]) -> argparse.ArgumentParser:
    default_place = "beside FOLDER" if name == "convert" else "$TFDS_DATA_DIR or ~/tensorflow_datasets"
    command = names.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(prepare=prepare)
    command.add_argument(
        "--data_dir",
        default="",
        metavar="DIR",
        help=f"where prepared data sets live, as config.data.data_dir (default: {default_place})",
    )
    return command


def _add_imagenet(names: Any, summary: str) -> None:
    command = _add(names, _IMAGENET, summary, _prepare_imagenet)
    command.add_argument(
        "--manual_dir",
        default="",
        metavar="DIR",
        help=f"folder of {' and '.join(imagenet.SPLITS.values())} (default: downloads/manual in the data_dir)",
    )
    command.add_argument(
        "--without_tensorflow",
        action="store_true",
        help="build with this project's builder: the same features, the archives' order, files as they are; "
        "by default TFDS builds it, which needs TensorFlow",
    )
