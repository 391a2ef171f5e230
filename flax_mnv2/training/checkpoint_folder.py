"""The folder of a run's checkpoints: what in it is a checkpoint, and how one goes away.

Only what a run has written is ever renamed or removed; a folder that a person has put there stays, whatever its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from flax_mnv2.files import read_json

_LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp|removing)")


class CheckpointFolder:
    """Folders named by step, each with the items of a checkpoint."""

    def __init__(self, path: pathlib.Path, *, items: Iterable[str]):
        """``items`` are what a checkpoint may hold, folders."""
        self.path = path
        self._items = tuple(items)

    def prepare(self) -> None:
        """Makes the folder and removes what saves and removals that were cut have left."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK):
            raise PermissionError(13, "no permission to write")
        self.remove_leftovers()

    def path_of(self, step: int) -> pathlib.Path:
        """Where the checkpoint of a step is."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        return sorted(int(path.name) for path in self.path.glob("*") if path.name.isdigit() and self._is_ours(path))

    def remove(self, step: int) -> None:
        """Removes a checkpoint; cut at any moment, none that is half removed is taken for whole."""
        going = self.path / f"{step}.removing"
        os.rename(self.path_of(step), going)
        shutil.rmtree(going)

    def set_aside(self, step: int) -> pathlib.Path:
        """Renames a checkpoint to ``STEP.damaged``, so that it is no longer one, and returns its new place."""
        number, target = 1, self.path / f"{step}.damaged"
        while target.exists():
            number += 1
            target = self.path / f"{step}.damaged.{number}"
        os.rename(self.path_of(step), target)
        return target

    def remove_leftovers(self) -> None:
        """Removes what saves and removals that were cut, or failed, have left; as far as that is possible."""
        for path in self.path.glob("*"):
            if _LEFTOVER.fullmatch(path.name) and self._is_ours(path):
                shutil.rmtree(path, ignore_errors=True)

    def write_json(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Adds the item ``name`` to a checkpoint, a JSON object; whole or not."""
        folder = self.path_of(step) / name
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(json.dumps(values), encoding="utf-8")
            os.replace(temporary, folder / name)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read_json(self, step: int, name: str) -> dict[str, Any]:
        """The item ``name`` of a checkpoint; empty where there is none, or it is no JSON object."""
        try:
            values = read_json(self.path_of(step) / name / name)
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _is_ours(self, path: pathlib.Path) -> bool:
        """Whether a run has written a folder: nothing in it, or an item of a checkpoint."""
        if path.is_symlink() or not path.is_dir():
            return False
        names = set(os.listdir(path))
        return bool(names & {"_CHECKPOINT_METADATA", *self._items}) or (not names and not path.name.isdigit())
