"""Orbax's ``CheckpointManager``, told what a run needs of it; ARCHITECTURE.md has what it does else, as measured."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flax_mnv2.checkpoint.folder import PREFIX, REMOVING, CheckpointFolder

SCORE = "score"  # among the metrics: what checkpoints are ranked by, more is better


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
