"""The folder of a run: made, checked for another run's traces, and the config that it recorded."""

import contextlib
import json
import pathlib
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections

from flax_mnv2.checkpoint.folder import FOLDER_NAME as CHECKPOINTS_NAME
from flax_mnv2.checkpoint.folder import step_of
from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.files import read_json, shown, write_text
from flax_mnv2.tasks.rules import flatten
from flax_mnv2.training.config.defaults import check_same_run, default_config, fields_of_other_tasks
from flax_mnv2.training.faults.run_lock import LOCK_NAME
from flax_mnv2.training.logging.metrics_writer import EVENTS_NAME, METRICS_NAME, read_metrics
from flax_mnv2.training.multihost import from_leader, leader_first, meet

CONFIG_NAME = "config.json"
_SHARED_STORAGE_SECONDS = 30.0  # that a file may take to be seen on other hosts


def open_workdir(folder: str | pathlib.Path, config: ml_collections.ConfigDict) -> pathlib.Path:
    """Makes the folder and records the config; where a run has begun in it, checks that it is the same run.

    With several hosts, process 0 does so and the others check that they see the same folder.
    """
    if "://" in str(folder):  # pathlib would make a local folder named gs:
        raise DataError(
            f"The workdir must be a folder of a file system; found {folder}. Mount the bucket (Cloud Storage FUSE) or "
            "use a disk that all hosts share, and give its path; docs/tpu_pods.md says which."
        )
    folder = pathlib.Path(folder).expanduser()
    token = from_leader(lambda: f".{CONFIG_NAME}.{uuid.uuid4().hex}")
    with leader_first():
        if jax.process_index() == 0:
            _record(folder, config, folder / token)
        else:
            _await(folder / token)
    meet()  # all have seen it
    if jax.process_index() == 0:
        (folder / token).unlink(missing_ok=True)
    return folder


def _record(folder: pathlib.Path, config: ml_collections.ConfigDict, token: pathlib.Path) -> None:
    _check_links(folder)
    goes_on = has_begun(folder)
    if goes_on:
        check_same_run(config, read_config(folder), str(folder))
    with writing_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not goes_on:  # else once its inputs are known to be the same
            write_config(folder, config)
        if jax.process_count() > 1:
            token.touch()


@contextlib.contextmanager
def writing_in(folder: pathlib.Path) -> Iterator[None]:
    """Explains, as a DataError, why a workdir cannot be written to."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write in the workdir {folder}: {error.strerror}. Choose a folder that you may write to, "
            "on a disk with free space."
        ) from None


def _check_links(folder: pathlib.Path) -> None:
    """Refuses a workdir, perhaps somebody else's, in which what a run writes would go elsewhere."""
    inside = folder.resolve()
    for name in (CONFIG_NAME, CHECKPOINTS_NAME, METRICS_NAME, EVENTS_NAME, LOCK_NAME):
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise DataError(
                f"{path} is a link to {path.resolve()}, outside of the workdir; a run writes inside it only. Remove "
                "the link, or choose a --workdir that lies where there is space."
            )


def _await(token: pathlib.Path) -> None:
    deadline = time.monotonic() + _SHARED_STORAGE_SECONDS
    while not token.exists():
        if time.monotonic() > deadline:
            raise DataError(
                f"Process {jax.process_index()} does not see the workdir {token.parent} that process 0 has made. All "
                "hosts need the same one: choose a --workdir on storage that they share (NFS, a mounted bucket)."
            )
        time.sleep(0.1)


def write_config(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Records the config of a run; an OSError where that is not possible."""
    write_text(folder / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")


def has_begun(folder: pathlib.Path) -> bool:
    """Returns whether a run has left more than its config, so that a first mistake in it can be mended."""
    if read_config(folder) is None:
        return False
    checkpoints = (folder / CHECKPOINTS_NAME).glob("*")
    return bool(read_metrics(folder)) or any(step_of(path.name) is not None for path in checkpoints)


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the config that a run recorded in its workdir, or None where there is none."""
    return read_object(folder / CONFIG_NAME)


def read_object(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns a JSON object of a workdir, or None where there is no such file; a ConfigError where it is damaged."""
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path}: {error}. Remove the file or choose another --workdir.") from None
    return values


def config_for_evaluation(
    config: ml_collections.ConfigDict | None, overrides: Mapping[str, Any], *, workdir: str = "", checkpoint: str = ""
) -> ml_collections.ConfigDict:
    """Returns the config to evaluate with: what the run in ``workdir``, or of ``checkpoint``, recorded, with overrides.

    A run knows its data, so nobody has to repeat the flags it was trained with; ``config``, of the recipe given beside
    it, is needed only where nothing was recorded. ``overrides`` are fields set on the command line, by dotted name.
    """
    folder = pathlib.Path(workdir).expanduser() if workdir else None
    if checkpoint:
        folder = pathlib.Path(checkpoint).expanduser().parent.parent
    recorded = read_config(folder) if folder else None
    if recorded is None:
        if config is not None:
            return config
        where = f"{folder} holds no {CONFIG_NAME}, and" if folder else "There is no --workdir, and"
        raise ConfigError(f"{where} no --config was given; give the recipe with --config FILE.")
    try:
        merged = default_config(recorded["task"])
        foreign = fields_of_other_tasks(merged.task)  # which an older version's run recorded too
        merged.update_from_flattened_dict({k: v for k, v in flatten(recorded).items() if k not in foreign})
        merged.update_from_flattened_dict(dict(overrides))
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        reason = shown(str(error.args[0] if error.args else error))[1:-1]
        raise ConfigError(f"{folder / CONFIG_NAME} does not fit this version of flax_mnv2: {reason}.") from None
    return merged
