"""The folder of a run: made, checked for another run's traces, and described."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import ml_collections

from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.training.run_config import check_same_run

CONFIG_NAME = "config.json"


def open_workdir(folder: str | pathlib.Path, config: ml_collections.ConfigDict) -> pathlib.Path:
    """Makes the folder and records the config, or checks that it belongs to the same run.

    Raises:
      DataError: the folder cannot be made or written.
      ConfigError: it holds a run with another config.
    """
    folder = pathlib.Path(folder).expanduser()
    stored = read_config(folder)
    if stored is not None:
        check_same_run(config, stored, str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{CONFIG_NAME}.{os.getpid()}"
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / CONFIG_NAME)
    except OSError as error:
        raise DataError(
            f"Cannot write in the workdir {folder}: {error.strerror}. Choose a folder that you may write to, "
            "on a disk with free space."
        ) from None
    return folder


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """The config that a run recorded in its workdir, or None where there is none."""
    path = folder / CONFIG_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path}: {error}. Remove the file or choose another --workdir.") from None
