"""Checkpoints of a run, on Orbax's ``CheckpointManager``.

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

from flax_mnv2.checkpoint.checksums import (
    ARRAYS_NAME,
    DamagedCheckpointError,
    check_arrays,
    check_checksum,
    describe_arrays,
    has_valid_checksum,
    named_leaves,
    with_checksum,
)
from flax_mnv2.checkpoint.diff import check_same_tensors
from flax_mnv2.checkpoint.folder import ABOUT, PREFIX, REMOVING, CheckpointFolder
from flax_mnv2.checkpoint.orbax_arrays import first_line, leave_out_closed_loops, quiet, read_arrays
from flax_mnv2.errors import CheckpointError
from flax_mnv2.untrusted import read_json

SCORE = "score"  # among the metrics: what checkpoints are ranked by, more is better
_MARGIN_SECONDS = 30.0  # in which Orbax can say which other host has not done its share
Limit = Callable[[float, str], contextlib.AbstractContextManager[None]]


def no_limit(seconds: float, what: str) -> contextlib.AbstractContextManager[None]:
    """Lets a block take its time; a run gives a limit that ends the process instead."""
    return contextlib.nullcontext()


class Checkpoints:
    """The checkpoints of one run; saving happens in the background. A context manager.

    Attributes:
      failures: what went wrong with saves, where a run tolerates that.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        read_only: bool = False,
        tolerant: bool = False,
        timeout: float = 1200.0,
        limit: Limit = no_limit,
    ):
        """Opens ``folder``, which is made unless ``read_only``; leftovers of saves that were cut are removed.

        Args:
          folder: of the checkpoints, ``WORKDIR/checkpoints``.
          keep_last: newest checkpoints to keep.
          keep_best: checkpoints with the best scores to keep beside them.
          read_only: nothing is written.
          tolerant: a save that fails is noted in ``failures`` and printed, not raised.
          timeout: seconds that a save, or the reading of a checkpoint, may take.
          limit: (seconds, what is done, ``"Saving step 6 in runs/a"``) → a context manager that enforces the timeout,
            also where Orbax hangs.

        Raises:
          CheckpointError: the folder cannot be made or written.
        """
        self.failures: list[str] = []
        self._folder = CheckpointFolder(folder)
        self._policy = _LastAndBest(self._folder, keep_last, keep_best)
        self._tolerant, self._timeout, self._limit_of = tolerant, timeout, limit
        self._saving: int | None = None
        self._quiet = contextlib.ExitStack()  # while something is being saved
        self._manager: _Manager | None = None  # made by the first save
        self._leads = jax.process_index() == 0
        leave_out_closed_loops()
        if not read_only and self._leads:
            try:
                self._folder.prepare()
            except OSError as error:
                raise CheckpointError(
                    f"Cannot write in {folder}: {error.strerror}. Choose a --workdir that you may write to."
                ) from None

    # ---- which there are --------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        return self._folder.steps()

    def path_of(self, step: int) -> pathlib.Path:
        """Returns the folder of the checkpoint of a step."""
        return self._folder.path_of(step)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step of the best evaluated checkpoint; the newest where none has been evaluated."""
        return next(iter(self._policy.best_steps()), self.latest_step())

    def newest_whole_step(self, *, strict: bool = False) -> int | None:
        """Returns the step of the newest checkpoint whose arrays are what was saved; None where there are none.

        A damaged one is named and set aside as ``step_N.damaged``, and the one before it is looked at. Process 0 alone
        calls this, before the first save.

        Args:
          strict: a damaged checkpoint is an error.

        Raises:
          CheckpointError: ``strict``, or none is whole.
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
                try:
                    aside = self._folder.set_aside(step)
                except OSError as problem:
                    raise CheckpointError(f"{error}. It could not be renamed: {problem.strerror}.") from None
                print(f"warning: {error}; kept as {aside.name}, going on from the one before", flush=True)
        if steps:
            raise CheckpointError(
                f"No checkpoint in {self._folder.path} is whole; all of {steps} are damaged and kept as "
                f"{PREFIX}_N.damaged. Restore them from a copy, or begin anew in another --workdir."
            )
        return None

    def verify(self, step: int) -> None:
        """Reads a checkpoint and compares it with what was noted at its save; by this process alone.

        Raises:
          DamagedCheckpointError: it is not what was saved, or cannot be read.
        """
        for item in self._read_about(step).get(ARRAYS_NAME) or self._folder.items(step):
            self._read(step, item)

    # ---- saving -----------------------------------------------------------------------------------------------------

    def save(self, step: int, items: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Starts saving; does nothing if ``step`` is already saved. All processes call it.

        Args:
          step: of the run.
          items: pytrees of arrays by item.
          about: JSON that describes the run.

        Raises:
          CheckpointError: this or an earlier save failed.
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
            with self._limit(f"Beginning to save step {step} in {self._folder.path}"):
                if self.path_of(step).exists():  # Orbax would remove it, whoever put it there
                    raise FileExistsError(17, f"{self.path_of(step)} is in the way and no checkpoint of a run")
                self._manager = self._manager or _open_manager(self._folder.path, self._policy, self._timeout)
                self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        except Exception as error:
            self._failed(step, error)

    def add_score(self, step: int, metrics: Mapping[str, float]) -> None:
        """Waits until ``step`` is on disk and adds what its evaluation found, ``SCORE`` among it.

        Raises:
          CheckpointError: this or an earlier save failed.
        """
        self.wait()
        if not (self._leads and step in self.steps()):
            return
        try:
            self._folder.write_metrics(step, with_checksum(metrics))
            superfluous = set(self.steps()) - self._policy.kept(self.steps())
            for each in superfluous:
                self._folder.remove(each)
            if superfluous:
                self._close_manager()  # it remembers them
        except OSError as error:
            self._failed(step, error)

    def wait(self) -> None:
        """Waits until all is on disk, and what need not be kept is removed.

        Raises:
          CheckpointError: a save failed.
        """
        if self._saving is None:
            return
        try:
            with self._quiet, self._limit(f"Saving step {self._saving} in {self._folder.path}"):
                self._manager.wait_until_finished()
                if self._leads:
                    self._folder.remove_leftovers()
        except Exception as error:
            self._failed(self._saving, error)
        self._saving = None

    def _limit(self, what: str) -> contextlib.AbstractContextManager[None]:
        return self._limit_of(self._timeout + _MARGIN_SECONDS * (jax.process_count() > 1), what)

    def _failed(self, step: int, error: Exception) -> None:
        """Cleans up after a save that failed; raises unless the run tolerates it."""
        self._saving = self._manager = None  # whatever state it is in
        self._quiet.close()
        if self._leads:
            self._folder.remove_leftovers()
        text = (
            f"Could not save the checkpoint of step {step} in {self._folder.path}: {first_line(error)}. Check free "
            f"space and permissions. Complete checkpoints there: {self.steps() or 'none'}"
        )
        if not self._tolerant:
            raise CheckpointError(f"{text}; the same command goes on from the last.") from error
        self.failures.append(text)
        print(f"warning: {text}; training goes on, and the next save is tried as planned", flush=True)

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

    def _close_manager(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    # ---- reading ----------------------------------------------------------------------------------------------------

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads items of the checkpoint of ``step``.

        Every process reads all arrays, which are small, and keeps its own; so none waits for another.

        Args:
          step: of the checkpoint.
          like: the items that are wanted, as pytrees of arrays with the shapes, types and placement that are wanted.

        Returns:
          The items, with the structure of ``like``.

        Raises:
          CheckpointError: it belongs to another architecture or optimizer, or cannot be read.
        """
        restored = {}
        for item, tree in like.items():
            try:
                arrays = self._read(step, item)
            except (DamagedCheckpointError, KeyError) as error:
                raise CheckpointError(
                    f"Cannot read checkpoint {self.path_of(step)}: {error}. {self._others()}"
                ) from None
            expected = named_leaves(tree)
            check_same_tensors(
                found={name: array.shape for name, array in arrays.items()},
                expected={name: leaf.shape for name, leaf in expected.items()},
                source=f"checkpoint {self.path_of(step)} ({item})",
            )
            placed = [_place(arrays[name], leaf) for name, leaf in expected.items()]
            restored[item] = jax.tree.unflatten(jax.tree.structure(tree), placed)
        return restored

    def has(self, step: int, item: str) -> bool:
        """Returns whether the checkpoint of ``step`` has an item."""
        return item in self._folder.items(step)

    def about(self, step: int) -> dict[str, Any]:
        """Returns what was noted at the save: the run's config under ``config``, the model's under ``model``, and more.

        Raises:
          CheckpointError: it cannot be read, or is not what was saved.
        """
        try:
            return self._read_about(step)
        except DamagedCheckpointError as error:
            raise CheckpointError(f"{error}. {self._others()}") from None

    def _read(self, step: int, item: str) -> dict[str, np.ndarray]:
        """The arrays of an item by path, which are those that were saved."""
        path = self.path_of(step) / item
        with self._limit(f"Reading {path}"):
            saved = self._read_about(step).get(ARRAYS_NAME)  # absent in checkpoints of older versions
            arrays = read_arrays(path)
        if saved is not None:
            check_arrays(arrays, saved[item], path)
        return arrays

    def _read_about(self, step: int) -> dict[str, Any]:
        path = self.path_of(step) / ABOUT / "metadata"  # where Orbax's JSON handler puts it
        try:
            about = read_json(path)
            about["config"], about["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError(f"Checkpoint {self.path_of(step)} is damaged: cannot read {path}") from error
        check_checksum(about, path)
        return about

    def _others(self) -> str:
        return f"Complete checkpoints there: {self.steps() or 'none'}."


# ---- Orbax's manager, and what it is told ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _LastAndBest(checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay: the newest, and the best by scores that are added after the save.

    Orbax's own policies know the score that a save is given; ours comes later, so it is read from the disk.
    """

    folder: CheckpointFolder
    last: int
    best: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether each stays; to Orbax every folder of the right name is a checkpoint, to us only a run's."""
        steps, newest = self.folder.steps(), checkpoints[-1].step  # the newest is still being written
        kept = self.kept([*steps, newest])
        return [each.step in kept or each.step not in steps for each in checkpoints]

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Returns those of ``steps``, ascending, that stay, and perhaps others."""
        return {*steps[-self.last :], *self.best_steps()[: self.best]}

    def best_steps(self) -> list[int]:
        """Returns the evaluated steps, best first; of equal ones the newest."""
        scores = {}
        for step in self.folder.steps():
            metrics = self.folder.read_metrics(step)
            score = metrics.get(SCORE) if has_valid_checksum(metrics) else None
            if isinstance(score, (int, float)) and not math.isnan(score):
                scores[step] = score
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never asks JAX, which counts the questions of the loop: a second caller puts the hosts out of step."""
        return False


def _open_manager(folder: pathlib.Path, policy: _LastAndBest, timeout: float) -> _Manager:
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
            # Folders made in the background would leave threads waiting, for minutes, for one that could not be made.
            create_directories_asynchronously=False,
        ),
    )
    return _Manager(folder.absolute(), options=options)


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for the other processes, unless an error is on its way: Orbax would keep it until the timeout."""
    if sys.exc_info()[1] is None:
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    """An array of the host with the type and placement of another."""
    array = array.astype(like.dtype, copy=False)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
