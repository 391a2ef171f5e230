"""Checkpoints of a run, through Orbax.

One checkpoint holds ``variables`` (params and batch statistics, all that an evaluation needs), ``training`` (step and
optimizer state), ``about`` (the run's config, the model's and the image processor's, as JSON, with a CRC of every
array) and, of a run that keeps one, ``ema`` (the moving average of ``variables``). Orbax writes into a temporary
folder and renames it, so a checkpoint is whole or absent. What an evaluation found is added afterwards, as the item
``metrics``; which checkpoints are kept is decided here, when the newest is on disk.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flax_mnv2.checkpoint.checksums import (
    ARRAYS_NAME,
    DamagedCheckpointError,
    check_arrays,
    check_seal,
    describe_arrays,
    is_sealed,
    named_leaves,
    seal,
)
from flax_mnv2.checkpoint.orbax_arrays import leave_out_closed_loops, read_arrays
from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_json
from flax_mnv2.training.checkpoint_folder import CheckpointFolder
from flax_mnv2.training.faults.watchdog import ends_within
from flax_mnv2.training.state import TrainState
from flax_mnv2.weights.diff import check_same_tensors
from flax_mnv2.weights.formats.flax import ABOUT_NAME, EMA_NAME, VARIABLES_NAME

FOLDER_NAME = "checkpoints"
SCORE = "score"  # what checkpoints are ranked by, more is better
VARIABLES, EMA, ABOUT = VARIABLES_NAME, EMA_NAME, ABOUT_NAME  # from_pretrained reads these too
TRAINING, METRICS = "training", "metrics"
_MARGIN_SECONDS = 30.0  # in which Orbax can say which other host has not done its share


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
    ):
        """Opens ``folder``, which is made unless ``read_only``; leftovers of saves that were cut are removed.

        Args:
          folder: of the checkpoints, ``WORKDIR/checkpoints``.
          keep_last: newest checkpoints to keep.
          keep_best: checkpoints with the best scores to keep beside them.
          read_only: nothing is written.
          tolerant: a save that fails is noted in ``failures`` and said, not raised.
          timeout: seconds that a save, or the reading of a checkpoint, may take; then the process ends.

        Raises:
          CheckpointError: the folder cannot be made or written.
        """
        self.failures: list[str] = []
        self._folder = CheckpointFolder(folder, items=(VARIABLES, TRAINING, ABOUT, EMA))
        self._keep_last, self._keep_best, self._tolerant = keep_last, keep_best, tolerant
        self._timeout = timeout
        self._saving: int | None = None
        self._checkpointer = _checkpointer(timeout)
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
        """Steps of all complete checkpoints."""
        return self._folder.steps()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the best evaluated checkpoint; the newest where none has been evaluated."""
        best = self._best(1)
        return best[0] if best else self.latest_step()

    def newest_whole_step(self, *, strict: bool = False) -> int | None:
        """Step of the newest checkpoint whose arrays are what was saved; None where there are no checkpoints.

        A damaged one is said and set aside as ``STEP.damaged``, and the one before it is looked at. Process 0 alone
        calls this.

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
                f"No checkpoint in {self._folder.path} is whole; all of {steps} are damaged and kept as STEP.damaged. "
                "Restore them from a copy, or begin anew in another --workdir."
            )
        return None

    def verify(self, step: int) -> None:
        """Reads a checkpoint and compares it with what was noted at its save; by this process alone.

        Raises:
          DamagedCheckpointError: it is not what was saved, or cannot be read.
        """
        noted = self._read_about(step).get(ARRAYS_NAME)
        path = self._folder.path_of(step)
        for item in noted or [name for name in (VARIABLES, TRAINING, EMA) if (path / name).is_dir()]:
            self._read(step, item)

    def _read(self, step: int, item: str) -> dict[str, np.ndarray]:
        """The arrays of an item by path, which are those that were saved."""
        path = self._folder.path_of(step) / item
        with self._limit(f"Reading {path}"):
            noted = self._read_about(step).get(ARRAYS_NAME)  # absent in checkpoints of older versions
            arrays = read_arrays(path)
        if noted is not None:
            check_arrays(arrays, noted[item], path)
        return arrays

    # ---- saving -----------------------------------------------------------------------------------------------------

    def save(self, state: TrainState, about: dict[str, Any]) -> None:
        """Starts saving ``state``; does nothing if its step is already saved. All processes call it.

        Args:
          state: of the run.
          about: JSON that describes the run.

        Raises:
          CheckpointError: this or an earlier save failed.
        """
        step = int(state.step)
        if step == self._saving or step in self.steps():
            return
        self.wait()
        try:
            items = {VARIABLES: state.variables, TRAINING: {"step": state.step, "opt_state": state.opt_state}}
            if state.ema is not None:
                items[EMA] = state.ema
            arrays = {name: describe_arrays(tree) for name, tree in items.items()}
            arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            arguments[ABOUT] = ocp.args.JsonSave(seal({**about, ARRAYS_NAME: arrays}))
            self._saving = step
            with self._limit(f"Beginning to save step {step} in {self._folder.path}"):
                self._checkpointer.save(self._folder.path_of(step).absolute(), args=ocp.args.Composite(**arguments))
        except Exception as error:
            self._failed(step, error)

    def add_score(self, step: int, figures: dict[str, float]) -> None:
        """Waits until ``step`` is on disk and notes what its evaluation found, ``SCORE`` among it.

        Raises:
          CheckpointError: this or an earlier save failed.
        """
        self.wait()
        if self._leads and step in self.steps():
            try:
                self._folder.write_json(step, METRICS, seal(figures))
                self._remove_superfluous()
            except OSError as error:
                self._failed(step, error)

    def wait(self) -> None:
        """Waits until all is on disk, then removes what need not be kept.

        Raises:
          CheckpointError: a save failed.
        """
        if self._saving is None:
            return
        try:
            with self._limit(f"Saving step {self._saving} in {self._folder.path}"):
                self._checkpointer.wait_until_finished()
                if self._leads:
                    self._remove_superfluous()
        except Exception as error:
            self._failed(self._saving, error)
        self._saving = None

    def _limit(self, what: str) -> contextlib.AbstractContextManager[None]:
        return ends_within(self._timeout + _MARGIN_SECONDS * (jax.process_count() > 1), what)

    def _failed(self, step: int, error: Exception) -> None:
        """Cleans up after a save that failed; raises unless the run tolerates it."""
        self._saving = None
        self._checkpointer = _checkpointer(self._timeout)  # whatever state the old one is in
        if self._leads:
            self._folder.remove_leftovers()
        text = (
            f"Could not save the checkpoint of step {step} in {self._folder.path}: {_first_line(error)}. Check free "
            f"space and permissions. Complete checkpoints there: {self.steps() or 'none'}"
        )
        if not self._tolerant:
            raise CheckpointError(f"{text}; the same command goes on from the last.") from error
        self.failures.append(text)
        print(f"warning: {text}; training goes on, and the next save is tried as planned", flush=True)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Reads the checkpoint of ``step`` into the shapes and placement of ``state``.

        Raises:
          CheckpointError: it belongs to another architecture or optimizer, or cannot be read.
        """
        target = {
            VARIABLES: state.variables,
            TRAINING: {"step": state.step, "opt_state": state.opt_state},
        }
        if state.ema is not None:
            target[EMA] = state.ema
        restored = self._restore(step, target)
        variables, training = restored[VARIABLES], restored[TRAINING]
        return TrainState(step=training["step"], opt_state=training["opt_state"], ema=restored.get(EMA), **variables)

    def restore_variables(self, step: int, variables: dict[str, Any], *, item: str = VARIABLES) -> dict[str, Any]:
        """Reads params and batch statistics into the shapes and placement of ``variables``.

        Args:
          step: of the checkpoint.
          variables: arrays of the shapes and placement that are wanted.
          item: ``"variables"``, or ``"ema"`` for the moving average.
        """
        return self._restore(step, {item: variables})[item]

    def has_ema(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` has a moving average."""
        return (self._folder.path_of(step) / EMA).is_dir()

    def about(self, step: int) -> dict[str, Any]:
        """What was noted at the save: the run's config under ``config``, the model's under ``model``, and more.

        Raises:
          CheckpointError: it cannot be read, or is not what was saved.
        """
        try:
            return self._read_about(step)
        except DamagedCheckpointError as error:
            raise CheckpointError(f"{error}. {self._others()}") from None

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
            self._checkpointer.close()

    def _restore(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """Every process reads all arrays, which are small, and keeps its own; so none waits for another."""
        restored = {}
        for item, tree in target.items():
            try:
                arrays = self._read(step, item)
            except (DamagedCheckpointError, KeyError) as error:
                raise CheckpointError(
                    f"Cannot read checkpoint {self._folder.path_of(step)}: {error}. {self._others()}"
                ) from None
            expected = named_leaves(tree)
            check_same_tensors(
                found={name: array.shape for name, array in arrays.items()},
                expected={name: leaf.shape for name, leaf in expected.items()},
                source=f"checkpoint {self._folder.path_of(step)} ({item})",
            )
            placed = [_place(arrays[name], leaf) for name, leaf in expected.items()]
            restored[item] = jax.tree.unflatten(jax.tree.structure(tree), placed)
        return restored

    def _read_about(self, step: int) -> dict[str, Any]:
        path = self._folder.path_of(step) / ABOUT / "metadata"  # where Orbax's JSON handler puts it
        try:
            about = read_json(path)
            about["config"], about["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError(f"Checkpoint {path.parent.parent} is damaged: cannot read {path}") from error
        check_seal(about, path)
        return about

    def _others(self) -> str:
        return f"Complete checkpoints there: {self.steps() or 'none'}."

    # ---- which to keep ----------------------------------------------------------------------------------------------

    def _best(self, count: int) -> list[int]:
        """The evaluated steps, best first; of equal ones the newest."""
        scores = {}
        for step in self.steps():
            noted = self._folder.read_json(step, METRICS)
            score = noted.get(SCORE) if is_sealed(noted) else None
            if isinstance(score, (int, float)) and not math.isnan(score):
                scores[step] = score
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)[:count]

    def _remove_superfluous(self) -> None:
        steps = self.steps()
        kept = {*steps[-self._keep_last :], *self._best(self._keep_best)}
        for step in steps:
            if step not in kept:
                self._folder.remove(step)


def _checkpointer(timeout: float) -> ocp.AsyncCheckpointer:
    items = {name: ocp.StandardCheckpointHandler() for name in (VARIABLES, EMA, TRAINING)}
    handler = ocp.CompositeCheckpointHandler(**items, **{ABOUT: ocp.JsonCheckpointHandler()})
    # Folders made in the background would leave threads waiting, for minutes, for one that could not be made.
    options = ocp.AsyncOptions(timeout_secs=math.ceil(timeout), create_directories_asynchronously=False)
    return ocp.AsyncCheckpointer(handler, async_options=options)


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    """An array of the host with the type and placement of another."""
    array = array.astype(like.dtype, copy=False)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
