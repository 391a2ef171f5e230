"""Checkpoints of a run, on Orbax's ``CheckpointManager``; ARCHITECTURE.md has what it does unless told, as measured.

One checkpoint, ``step_300``, holds items, which are pytrees (``variables``, all that an evaluation needs; ``training``,
step and optimizer state; ``ema`` of a run that keeps a moving average of ``variables``), and ``about``: JSON with the
run's config, the model's and the image processor's, and a CRC of every array. Orbax writes into a temporary folder and
renames it, so a checkpoint is whole or absent. What an evaluation found is added afterwards, as the item ``metrics``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flax_mnv2.checkpoint.comparing import (
    ARRAYS_NAME,
    DamagedCheckpointError,
    check_same_tensors,
    describe_arrays,
    named_leaves,
    with_checksum,
)
from flax_mnv2.checkpoint.folder import ABOUT, PREFIX, REMOVING, TRAINING, VARIABLES, CheckpointFolder
from flax_mnv2.checkpoint.reading import first_line, leave_out_closed_loops, quiet, read_about, read_item
from flax_mnv2.errors import CheckpointError

SCORE = "score"  # among the metrics: what checkpoints are ranked by, more is better
_MARGIN_SECONDS = 30.0  # in which Orbax can say which other host has not done its share


@dataclasses.dataclass(frozen=True)
class LastAndBest(checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay: the newest, and the best by scores that are added after the save.

    Orbax's own policies know the score that a save is given; ours comes later, so it is read from the disk.
    """

    folder: CheckpointFolder
    last: int
    best: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether each stays; what has the right name but is no run's does."""
        steps, newest = self.folder.steps(), checkpoints[-1].step  # the newest is still being written
        kept = self.kept([*steps, newest])
        return [each.step in kept or each.step not in steps for each in checkpoints]

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Returns which of ``steps``, ascending, stay."""
        return {*steps[-self.last :], *self.best_steps()[: self.best]}

    def best_steps(self) -> list[int]:
        """Returns the evaluated steps, best first; of equal ones the newest."""
        scores = {step: self.folder.read_metrics(step).get(SCORE, math.nan) for step in self.folder.steps()}
        evaluated = [step for step, score in scores.items() if not math.isnan(score)]
        return sorted(evaluated, key=lambda step: (scores[step], step), reverse=True)


class Manager(ocp.CheckpointManager):
    """Saves in the background, and removes what need not stay when a save is on disk."""

    def __init__(self, policy: LastAndBest, timeout: float):
        """``policy`` names the folder, which exists; a save that takes longer than ``timeout`` seconds fails."""
        options = ocp.CheckpointManagerOptions(
            step_prefix=PREFIX,
            preservation_policy=policy,
            todelete_subdir=REMOVING,  # Orbax's own removal, when cut, leaves half a checkpoint
            create=False,
            save_root_metadata=False,
            lightweight_initialize=True,  # else a damaged file of an old checkpoint is an error here
            async_options=ocp.AsyncOptions(
                timeout_secs=math.ceil(timeout),
                barrier_sync_fn=_meet,
                # Folders made in the background leave threads waiting, for minutes, for one that could not be made.
                create_directories_asynchronously=False,
            ),
        )
        super().__init__(policy.folder.path.absolute(), options=options)

    def reached_preemption(self, step: int) -> bool:
        """Never asks JAX, which counts the questions of the loop: a second caller puts the hosts out of step."""
        return False


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for the other processes, unless an error is on its way: Orbax would keep it until the timeout."""
    if sys.exc_info()[1] is None:
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class Checkpoints(CheckpointFolder):
    """The checkpoints of one run; saving happens in the background. A context manager."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        read_only: bool = False,
        tolerant: bool = False,
        timeout: float = 1200.0,
        limit: Callable[[float, str], contextlib.AbstractContextManager[None]] | None = None,
    ):
        """Opens ``WORKDIR/checkpoints``, which is made unless ``read_only``; leftovers of cut saves are removed.

        The newest ``keep_last`` checkpoints stay, and the ``keep_best`` with the best scores. A save that fails is
        printed and noted if ``tolerant``, else raised. A save or a reading may take ``timeout`` seconds; ``limit``
        enforces that where Orbax hangs: (seconds, ``"Saving step 6 in runs/a"``) → a context manager.
        """
        super().__init__(folder)
        self.failures: list[str] = []  # what went wrong with saves, where a run tolerates that
        self._policy = LastAndBest(self, keep_last, keep_best)
        self._tolerant, self._timeout, self._limit_of = tolerant, timeout, limit
        self._manager: Manager | None = None  # made by the first save
        self._saving: int | None = None
        self._quiet = contextlib.ExitStack()  # while something is being saved
        self._leads = jax.process_index() == 0
        leave_out_closed_loops()
        if not read_only and self._leads:
            try:
                self.prepare()
            except OSError as error:
                raise CheckpointError(
                    f"Cannot write in {folder}: {error.strerror}. Choose a --workdir that you may write to."
                ) from None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, error_type, error, _) -> None:
        """Finishes what is being saved, also when the run failed, unless it has to end at once."""
        if error_type is KeyboardInterrupt:
            return
        try:
            self.wait()
        except CheckpointError:
            if error is None:
                raise  # else the run's own error is the one to report
        finally:
            self._close_manager()

    # ---- which there are --------------------------------------------------------------------------------------------

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step of the best evaluated checkpoint; the newest where none has been evaluated."""
        return next(iter(self._policy.best_steps()), self.latest_step())

    def newest_whole_step(self, *, strict: bool = False) -> int | None:
        """Returns the step of the newest checkpoint whose arrays are what was saved; None where there are none.

        A damaged one is named and set aside as ``step_N.damaged``, and the one before it is looked at; if ``strict``,
        or if none is whole, a CheckpointError. Process 0 alone calls this, before the first save.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                self.verify(step)
                return step
            except DamagedCheckpointError as error:
                if strict:
                    raise CheckpointError(
                        f"{error}. Without --strict the run goes on from the one before; there are {steps}."
                    ) from None
                aside = self.set_aside(step)
                print(f"warning: {error}; kept as {aside.name}, going on from the one before", flush=True)
        if steps:
            raise CheckpointError(
                f"No checkpoint in {self.path} is whole; all of {steps} are damaged and kept as "
                "step_N.damaged. Restore them from a copy, or begin anew in another --workdir."
            )
        return None

    # ---- saving -----------------------------------------------------------------------------------------------------

    def save(self, step: int, items: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Starts saving pytrees of arrays by item, and JSON that describes the run, ``config`` and ``model`` among it.

        All processes call it; a step that is saved already is left alone. A CheckpointError where a save failed.
        """
        if step == self._saving or step in self.steps():
            return
        self.wait()
        try:
            arrays = {name: describe_arrays(tree) for name, tree in items.items()}
            arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            arguments[ABOUT] = ocp.args.JsonSave(with_checksum({**about, ARRAYS_NAME: arrays}))
            self._saving = step
            self._quiet.enter_context(quiet())
            with self._limit(f"Beginning to save step {step} in {self.path}"):
                if self.path_of(step).exists():  # Orbax would remove it, whoever put it there
                    raise FileExistsError(17, f"{self.path_of(step)} is in the way and no checkpoint of a run")
                self._manager = self._manager or Manager(self._policy, self._timeout)
                self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        except Exception as error:
            self._failed(step, error)

    def add_score(self, step: int, metrics: Mapping[str, float]) -> None:
        """Waits until ``step`` is on disk and adds what its evaluation found, ``SCORE`` among it."""
        self.wait()
        steps = self.steps()
        if not (self._leads and step in steps):
            return
        try:
            self.write_metrics(step, metrics)
            for superfluous in set(steps) - self._policy.kept(steps):
                self.remove(superfluous)
                self._close_manager()  # it remembers what there was
        except OSError as error:
            self._failed(step, error)

    def wait(self) -> None:
        """Waits until all is on disk, and what need not be kept is removed; a CheckpointError where a save failed."""
        if self._saving is None:
            return
        try:
            with self._quiet, self._limit(f"Saving step {self._saving} in {self.path}"):
                self._manager.wait_until_finished()
                if self._leads:
                    self.remove_leftovers()
        except Exception as error:
            self._failed(self._saving, error)
        self._saving = None

    def _failed(self, step: int, error: Exception) -> None:
        """Cleans up after a save that failed; raises unless the run tolerates it."""
        self._saving = self._manager = None  # whatever state it is in
        self._quiet.close()
        if self._leads:
            self.remove_leftovers()
        text = (
            f"Could not save the checkpoint of step {step} in {self.path}: {first_line(error)}. Check free "
            f"space and permissions. Complete checkpoints there: {self.steps() or 'none'}"
        )
        if not self._tolerant:
            raise CheckpointError(f"{text}; the same command goes on from the last.") from error
        self.failures.append(text)
        print(f"warning: {text}; training goes on, and the next save is tried as planned", flush=True)

    def _close_manager(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _limit(self, what: str) -> contextlib.AbstractContextManager[None]:
        if self._limit_of is None:
            return contextlib.nullcontext()
        return self._limit_of(self._timeout + _MARGIN_SECONDS * (jax.process_count() > 1), what)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Returns items of a checkpoint with the structure, shapes, types and placement of ``like``.

        Every process reads all arrays, which are small, and keeps its own; so none waits for another. A CheckpointError
        where it belongs to another architecture or optimizer, or is not what was saved.
        """
        restored = {}
        for item, tree in like.items():
            arrays, expected = self._read(step, item), named_leaves(tree)
            check_same_tensors(
                found={name: array.shape for name, array in arrays.items()},
                expected={name: leaf.shape for name, leaf in expected.items()},
                source=f"checkpoint {self.path_of(step)} ({item})",
            )
            placed = [_place(arrays[name], leaf) for name, leaf in expected.items()]
            restored[item] = jax.tree.unflatten(jax.tree.structure(tree), placed)
        return restored

    def about(self, step: int) -> dict[str, Any]:
        """Returns what was noted at the save, as ``read_about`` does."""
        return read_about(self.path_of(step))

    def verify(self, step: int) -> None:
        """Reads a checkpoint; a DamagedCheckpointError unless it is what was saved."""
        for item in self.about(step).get(ARRAYS_NAME) or (VARIABLES, TRAINING):  # earlier versions noted none
            self._read(step, item)

    def _read(self, step: int, item: str) -> dict[str, np.ndarray]:
        with self._limit(f"Reading {self.path_of(step) / item}"):
            return read_item(self.path_of(step), item, self.about(step))


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    """Returns an array of the host with the type and placement of another."""
    array = array.astype(like.dtype, copy=False)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
