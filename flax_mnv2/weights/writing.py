"""Writes a checkpoint in any format; a folder that was new or empty is so again if that fails or is interrupted."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterable

from flax_mnv2.checkpoint.folder import ABOUT, VARIABLES
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.files import is_temporary, write_text
from flax_mnv2.image_processing.processor import PROCESSOR_NAME
from flax_mnv2.weights.formats import FORMATS, is_file_name
from flax_mnv2.weights.formats.base import CONFIG_NAME
from flax_mnv2.weights.formats.flax import remove_variables
from flax_mnv2.weights.source import Checkpoint

_WEIGHT_NAMES = {name for form in FORMATS.values() for name in form.weight_names}
MODEL_NAMES = (CONFIG_NAME, *_WEIGHT_NAMES)  # what marks a folder as one that holds a model


def write(checkpoint: Checkpoint, destination: pathlib.Path, to: str, *, keep_processor: bool = False) -> None:
    """Writes a checkpoint in the format ``to``; ``config.json`` comes last, so that a folder that has one is whole.

    What lies at the destination under the names that are written is replaced, and other weights are removed; a
    ``preprocessor_config.json`` stays if ``keep_processor`` and the checkpoint has none. Ranges of a quantised network
    are written by formats that have a place for them. A UserError, and nothing
    written, where the format cannot represent the model or the destination is none for it.
    """
    check_destination(destination, to)
    form = FORMATS[to]
    checkpoint = checkpoint if form.keeps_ranges else checkpoint.without_ranges()
    form.check_target(checkpoint)
    if is_file_name(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        form.write_file(destination, checkpoint)
        return
    texts = form.texts(checkpoint)  # or an error, before anything is touched
    is_new = not destination.exists()
    destination.mkdir(parents=True, exist_ok=True)
    was_empty = is_empty(destination)
    try:
        _remove(filter(_is_leftover, destination.iterdir()))
        (destination / CONFIG_NAME).unlink(missing_ok=True)  # without one, nothing takes the folder for a whole model
        written = form.write_weights(destination, checkpoint)
        for name in _WEIGHT_NAMES - set(written):  # which would be taken for this model's
            if name == VARIABLES:
                remove_variables(destination)
            else:
                (destination / name).unlink(missing_ok=True)
        if PROCESSOR_NAME not in texts and not keep_processor:
            (destination / PROCESSOR_NAME).unlink(missing_ok=True)
        for name, text in texts.items():
            write_text(destination / name, text)
    except BaseException:
        if was_empty:  # what we wrote goes; somebody else's files may have come
            remove_variables(destination)
            ours = (PROCESSOR_NAME, *MODEL_NAMES)
            _remove(path for path in destination.iterdir() if _is_leftover(path) or path.name in ours)
        if is_new:
            with contextlib.suppress(OSError):
                destination.rmdir()
        raise


def check_destination(destination: pathlib.Path, to: str) -> None:
    """Raises a UserError unless a format can be written to a place, whether or not something lies there."""
    is_file, form = is_file_name(destination), FORMATS[to]
    if not form.is_written:
        raise ConfigError(f"The format {to} is read, not written; choose another.")
    if not (destination.name.endswith(form.file_endings) if is_file else form.to_folder):
        wanted = f"a file ending in {', '.join(form.file_endings)}" if form.file_endings else "a folder"
        raise ConfigError(f"The format {to} is {wanted}; found {destination}.")
    if is_file and destination.is_dir():
        raise ConfigError(f"{destination} is a folder, where a file is to be written; name another place.")
    folder = destination.parent if is_file else destination
    for path in (folder, *folder.parents):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            what = "a file" if path.exists() else "a link to nothing"
            raise ConfigError(f"{path} is {what}, where a folder is needed; name another place.")
    if (destination / ABOUT).exists():
        raise CheckpointError(
            f"{destination} is a checkpoint of a training run and is not written to; name another folder."
        )


def is_empty(folder: pathlib.Path) -> bool:
    """Returns whether nothing lies in a folder, or only what a killed write of ours left there."""
    return all(map(_is_leftover, folder.iterdir()))


def _is_leftover(path: pathlib.Path) -> bool:
    """Returns whether a write of ours or of Orbax that was killed left this."""
    return is_temporary(path) or (path.is_dir() and path.match(f"{VARIABLES}*.orbax-checkpoint-tmp*"))


def _remove(paths: Iterable[pathlib.Path]) -> None:
    for path in list(paths):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
        elif _is_leftover(path):
            shutil.rmtree(path)
