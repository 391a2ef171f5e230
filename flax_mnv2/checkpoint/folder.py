"""The folder of a run's checkpoints: what in it is a checkpoint, what a cut save has left, and how one goes away.

Only what a run has written is ever renamed or removed; a folder that a person has put there stays, whatever its name.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from flax_mnv2.checkpoint.comparing import DamagedCheckpointError, check_checksum, with_checksum
from flax_mnv2.files import read_json, write_text

FOLDER_NAME = "checkpoints"  # in the folder of a run
PREFIX = "step"  # of a checkpoint's name, step_300
REMOVING = ".removing"  # where checkpoints go that are being removed: a rename, so that none is half removed
VARIABLES, TRAINING, EMA, ABOUT, METRICS = "variables", "training", "ema", "about", "metrics"  # items of a checkpoint
_TEMPORARY = ".orbax-checkpoint-tmp"
_WRITTEN = {VARIABLES, TRAINING, EMA, ABOUT, METRICS, "_CHECKPOINT_METADATA"}
_STEP = re.compile(rf"(?:{PREFIX}_)?(0|[1-9]\d*)")  # earlier versions named checkpoints by the number alone
_LEFTOVER = re.compile(rf"(?:{PREFIX}_)?\d+({_TEMPORARY}|\.removing)")


def step_of(name: str) -> int | None:
    """Returns the step that a checkpoint's name says, ``step_300`` or an earlier version's ``300``; else None."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


class CheckpointFolder:
    """Checkpoints by step."""

    def __init__(self, path: pathlib.Path):
        """``path`` need not exist, and is not made."""
        self.path = path

    def prepare(self) -> None:
        """Makes the folder, removes what cut saves and removals have left, and renames what has an earlier name."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK):
            raise PermissionError(13, "no permission to write")
        self.remove_leftovers()
        earlier = [step for step in self.steps() if self.path_of(step).name == str(step)]
        for step in earlier:
            os.rename(self.path / str(step), self.path / f"{PREFIX}_{step}")
        if earlier:
            print(f"checkpoints of an earlier version in {self.path}: {earlier} renamed to {PREFIX}_N", flush=True)

    def path_of(self, step: int) -> pathlib.Path:
        """Returns where the checkpoint of a step is, or would be."""
        path, earlier = self.path / f"{PREFIX}_{step}", self.path / str(step)
        return earlier if _is_ours(earlier) and not path.exists() else path

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, ascending."""
        return sorted({step_of(path.name) for path in self.path.glob("*") if _is_ours(path)} - {None})

    def remove(self, step: int) -> None:
        """Removes a checkpoint."""
        (self.path / REMOVING).mkdir(exist_ok=True)
        os.rename(self.path_of(step), self.path / REMOVING / f"{PREFIX}_{step}")
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Removes what saves that were cut, or failed, have left, and what is being removed; as far as possible."""
        going = self.path / REMOVING
        for path in [*self.path.glob("*"), *going.glob("*")]:
            if (path.parent == going or _LEFTOVER.fullmatch(path.name)) and _is_ours(path, may_be_empty=True):
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not there, or somebody else's files are in it
            going.rmdir()

    def set_aside(self, step: int) -> pathlib.Path:
        """Renames a checkpoint to ``step_N.damaged``, so that it is no longer one, and returns its new place."""
        endings = itertools.chain(("",), (f".{number}" for number in itertools.count(2)))
        places = (self.path / f"{PREFIX}_{step}.damaged{ending}" for ending in endings)
        target = next(place for place in places if not place.exists())
        os.rename(self.path_of(step), target)
        return target

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds the item ``metrics`` to a checkpoint, a JSON object with a checksum; whole or not."""
        folder = self.path_of(step) / METRICS
        folder.mkdir(exist_ok=True)
        write_text(folder / METRICS, json.dumps(with_checksum(metrics)))

    def read_metrics(self, step: int) -> dict[str, Any]:
        """Returns the item ``metrics`` of a checkpoint; empty where there is none, or it is damaged."""
        path = self.path_of(step) / METRICS / METRICS
        try:
            metrics = dict(read_json(path))
            check_checksum(metrics, path)
        except (OSError, ValueError, TypeError, DamagedCheckpointError):
            return {}
        return metrics


def _is_ours(path: pathlib.Path, *, may_be_empty: bool = False) -> bool:
    """Returns whether a run has written a folder: an item of a checkpoint is in it, or nothing yet or any more."""
    if path.is_symlink() or not path.is_dir():
        return False
    names = {name.removesuffix(_TEMPORARY) for name in os.listdir(path)}
    return bool(names & _WRITTEN) or (may_be_empty and not names)
