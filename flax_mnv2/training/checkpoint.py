"""Checkpoints of a run, through Orbax.

One checkpoint holds ``variables`` (params and batch statistics, all that an evaluation needs), ``training`` (step and
optimizer state), ``about`` (the run's config, the model's and the image processor's, as JSON) and, of a run that keeps
one, ``ema`` (the moving average of ``variables``). Orbax writes into a temporary folder and renames it, so a
checkpoint is whole or absent.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flax_mnv2.convert.diff import check_same_tensors
from flax_mnv2.convert.flax_folder import EMA_NAME, VARIABLES_NAME
from flax_mnv2.errors import CheckpointError
from flax_mnv2.training.state import TrainState

FOLDER_NAME = "checkpoints"
SCORE = "score"  # what checkpoints are ranked by, more is better
VARIABLES, EMA = VARIABLES_NAME, EMA_NAME  # from_pretrained reads these too


class Checkpoints:
    """The checkpoints of one run; saving happens in the background. A context manager."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        read_only: bool = False,
    ):
        """Opens ``folder``, which is made unless ``read_only``."""
        self._folder = folder

        def rank(metrics: dict[str, float]) -> float:
            return metrics[SCORE]

        policies = [checkpoint_managers.LatestN(keep_last)]
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False)
            )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                VARIABLES: ocp.StandardCheckpointHandler(),
                EMA: ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "about": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=rank,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the best evaluated checkpoint; the newest where none has been evaluated."""
        best = self._manager.best_step()
        return self.latest_step() if best is None else best

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, about: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts saving ``state``; does nothing if its step is already saved.

        Args:
          state: of the run.
          about: JSON that describes the run.
          metrics: of an evaluation of this state, ``SCORE`` among them; None without one.

        Raises:
          CheckpointError: this or an earlier save failed.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        items = {
            VARIABLES: ocp.args.StandardSave(state.variables),
            "training": ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            "about": ocp.args.JsonSave(about),
        }
        if state.ema is not None:
            items[EMA] = ocp.args.StandardSave(state.ema)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        except Exception as error:
            raise self._failure(step, error) from error

    def wait(self) -> None:
        """Waits until all is on disk.

        Raises:
          CheckpointError: a save failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(None, error) from error

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Reads the checkpoint of ``step`` into the shapes and placement of ``state``.

        Raises:
          CheckpointError: it belongs to another architecture or optimizer, or cannot be read.
        """
        target = {
            VARIABLES: state.variables,
            "training": {"step": state.step, "opt_state": state.opt_state},
        }
        if state.ema is not None:
            target[EMA] = state.ema
        restored = self._restore(step, target)
        variables, training = restored[VARIABLES], restored["training"]
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
        return (self._folder / str(step) / EMA).is_dir()

    def about(self, step: int) -> dict[str, Any]:
        """The run's config under ``config`` and the model's under ``model``."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        except Exception as error:
            raise self._unreadable(step, error) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, error_type, error, _) -> None:
        """Finishes what is being saved, also when the run failed, and releases threads."""
        try:
            self.wait()
        except CheckpointError:
            if error is None:
                raise  # else the run's own error is the one to report
        finally:
            self._manager.close()

    def _restore(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        try:
            metadata = self._manager.item_metadata(step)
            found = {name: _shapes(metadata[name].tree) for name in target}
        except Exception as error:
            raise self._unreadable(step, error) from error
        for name, tree in target.items():
            check_same_tensors(
                found=found[name],
                expected=_shapes(tree),
                source=f"checkpoint {self._folder / str(step)} ({name})",
            )
        arguments = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in target.items()
        }
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)))
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _failure(self, step: int | None, error: Exception) -> CheckpointError:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return CheckpointError(
            f"Could not save {what} in {self._folder}: {_first_line(error)}. Check free space and permissions. "
            f"Complete checkpoints there: {self._complete_steps() or 'none'}; the same command goes on from the last."
        )

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"Cannot read checkpoint {self._folder / str(step)}: {_first_line(error)}. It is damaged or not one "
            f"of this library's; complete checkpoints there: {self._complete_steps() or 'none'}."
        )

    def _complete_steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {".".join(_name(entry) for entry in path): tuple(leaf.shape) for path, leaf in leaves}


def _name(entry: Any) -> str:
    """Name of a path entry; Orbax gives tuples back as lists and named tuples as mappings."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"Unknown path entry {entry!r}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
