"""Predicts for photos: ``python -m flax_mnv2.predict IMAGE…``."""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from flax_mnv2.compilation_cache import use_compilation_cache
from flax_mnv2.devices import check_devices
from flax_mnv2.errors import INTERRUPTED_STATUS, USER_ERROR_STATUS, ConfigError, DataError, UserError
from flax_mnv2.export import is_exported
from flax_mnv2.export.network import ExportedNetwork
from flax_mnv2.hub import expand_user
from flax_mnv2.predict.inputs import find_images
from flax_mnv2.predict.records import RECORDS_NAME, Records
from flax_mnv2.predict.stream import predict_files
from flax_mnv2.tasks.prediction import Predictor
from flax_mnv2.tasks.registry import TASKS, task_for
from flax_mnv2.weights.pretrained import open_weights, task_of

DEFAULT_MODEL = "google/mobilenet_v2_1.0_224"
DEFAULT_OUTPUT = "predictions"  # where a predictor that writes files does so
SOME_FAILED_STATUS = 1
NO_READER_STATUS = 141  # what a shell gives for SIGPIPE

_DESCRIPTION = """\
Classify, measure or segment photos with a MobileNetV2.

A classifier prints the most probable classes of each photo: probability, label and
(class index); a multi-label one those that are there, a regression the value of each
target. A segmentation model prints which classes are present with their fraction
of the pixels, and writes two PNG files per photo, at the photo's own size: an overlay
with a legend (NAME_segmentation.png) and the class indices in VOC's palette
(NAME_mask.png)."""
_EPILOG = """\
exit status: 0 all done; 1 some images could not be read (they are listed at the end,
the others are done); 2 nothing done: a mistake in the command, or no such model.

examples:
  python -m flax_mnv2.predict cat.jpg
  python -m flax_mnv2.predict photos/ --model google/deeplabv3_mobilenet_v2_1.0_513
  python -m flax_mnv2.predict 'holiday/**/*.jpg' --top 1 --json > classes.jsonl
  python -m flax_mnv2.predict photos/ --model runs/seg_voc/checkpoints/step_30000"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, by default with the arguments of the command line, and returns its exit status.

    It is 0 where all is done, 1 where some images failed, 2 for a user's mistake, 130 interrupted, 141 where nobody
    reads the output any more.
    """
    arguments = _parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of photos that can be read all the same
            failures = _predict(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
    except BrokenPipeError:  # whoever reads our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER_STATUS
    except OSError as error:  # such as a full disk behind stdout
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    for name, reason in failures:
        print(reason if name in reason else f"{name}: {reason}", file=sys.stderr)
    return SOME_FAILED_STATUS if failures else 0


def load_predictor(
    id_or_folder: str,
    *,
    task: str | None = None,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    top: int = 5,
    threshold: float = 0.5,
) -> Predictor:
    """Returns a model with its processor, ready for ``predict_files``.

    A classifier gives ``top`` classes; of a multi-label one those from the probability ``threshold`` on are there.

    ``id_or_folder`` is anything that ``from_pretrained`` takes, or a file of ``flax_mnv2.export``, which its runtime
    computes; the task, a name in ``TASKS``, is by default as the weights say. Raises a CheckpointError for no such
    model, or no processor beside it, a ConfigError for a model for something else.
    """
    if is_exported(id_or_folder):
        source = network = ExportedNetwork(id_or_folder)
        name = task_for(network.task, network.config)
        if task not in (None, name):
            raise ConfigError(f"{id_or_folder} is for {name}, not for {task}. Leave out --task.")
    else:
        source, network = open_weights(id_or_folder, revision=revision), None
        name = task or task_for(source.task or task_of(source.config), source.config)
    if name not in TASKS:
        raise ConfigError(f"{id_or_folder} is a {name} without a head; expected a model for {' or '.join(TASKS)}.")
    model, variables = (network, {}) if network else TASKS[name].load_pretrained(source, dtype=dtype)
    if model.config.num_channels != 3:
        raise ConfigError(f"{id_or_folder} takes images of {model.config.num_channels} channels; photos have 3.")
    return TASKS[name].predictor(model, variables, source.processor(), top=top, threshold=threshold)


def _predict(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Does all the work and returns name and reason of what failed."""
    folder = None if arguments.output is None else expand_user(arguments.output)
    found = find_images(arguments.images, exclude=folder or pathlib.Path(DEFAULT_OUTPUT))
    files, failures = found.files, found.failures
    if found.passed_over:
        print(found.summary(), file=sys.stderr)
    if not files:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures)
        raise DataError(f"No image to predict for. {reasons}. Give image files, folders or quoted glob patterns.")
    check_devices()
    use_compilation_cache()
    predictor = load_predictor(
        arguments.model,
        task=arguments.task,
        revision=arguments.revision,
        dtype=jnp.dtype(arguments.dtype),
        top=arguments.top,
        threshold=arguments.threshold,
    )
    if predictor.endings:
        folder = folder or pathlib.Path(DEFAULT_OUTPUT)
    with Records(predictor, folder, files) as records, _progress(len(files)) as progress:
        for outcome in predict_files(predictor, files, batch_size=arguments.batch_size):
            if outcome.error is not None:
                failures.append((str(outcome.file), outcome.error))
            else:
                record = records.add(outcome.file, outcome.prediction)
                progress.write(json.dumps(record) if arguments.json else records.format(record))
                sys.stdout.flush()
            progress.update()
    return failures


def _progress(total: int):
    """Makes a bar on stderr if that is a terminal; ``write`` prints a line to stdout beside it."""
    from tqdm import tqdm

    return tqdm(total=total, unit="image", disable=None, leave=False, file=sys.stderr)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flax_mnv2.predict",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, folders (with all below them), or glob patterns in quotes",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="FOLDER",
        help="model folder or file of weights, a run's WORKDIR/checkpoints/step_N, hub id, or what flax_mnv2.export "
        "wrote, which its runtime computes (default: %(default)s)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--task", choices=sorted(TASKS), help="what the model does (default: as its config says)")
    parser.add_argument(
        "--top", type=_positive, default=5, metavar="N", help="classes to print per photo (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold",
        type=_fraction,
        default=0.5,
        metavar="P",
        help="probability from which on a multi-label model's class is there (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help=f"folder for results: {RECORDS_NAME}, and the pictures of a segmentation "
        f"(default: ./{DEFAULT_OUTPUT} for a segmentation, else none); results there are no input",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and nothing else")
    parser.add_argument(
        "--batch_size",
        type=_positive,
        default=8,
        metavar="N",
        help="photos to compute and hold in memory at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of the computation (default: %(default)s)",
    )
    return parser.parse_intermixed_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more; found {text}")
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1; found {text}")
    return number
