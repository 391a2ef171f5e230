"""A step that was not finite: which examples its batch had, and which of them make it so."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from flax_mnv2.data.loader.batches import Source
from flax_mnv2.data.loader.order import batch_positions
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.training.run import Run
from flax_mnv2.training.state import TrainState

MAX_NAMES = 10  # in a message; more are counted
MAX_TRIALS = 64  # steps that one search may take
MAX_SEARCHES = 10  # of a process: a run that skips often has been told enough
ENOUGH = 8  # single examples, all bad and nothing good seen: the search ends
_NAME_FIELDS = ("image_id", "file_name")
_ADVICE = (
    "Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or freeze batch norm "
    "(config.freeze_batch_norm) at small batches."
)


class NanSearch:
    """Explains steps that were not finite, after the fact.

    A batch follows from seed and step, so it can be made again, and a step that is not finite changes no weights, so
    the run's own compiled step can be tried on parts of that batch: nothing is compiled. The trials have the step's
    number, and with it its dropout masks and mixing, and the weights of now, which may be some steps newer.
    """

    def __init__(self, run: Run, state: Callable[[], TrainState]):
        """Nothing is read or computed yet; ``state`` gives the run's present state, which stays as it is."""
        self._run, self._state = run, state
        self._config = run.config.copy_and_resolve_references()
        # One batch is wanted, and soon; what it holds depends on neither.
        self._config.data.num_workers, self._config.data.num_threads = 0, 1
        self._config.data.prefetch_buffer_size = 1
        self._searches = 0

    def explain(self, step: int) -> str:
        """Returns which examples made the ``step``-th step fail, what to do, and its batch; sentences.

        One process searches its batch for single examples. Several do not, since the search would have to be made by
        all of them together; they name the batch alone.
        """
        config, source = self._config, self._run.dataset.source(self._config.data.train_split)
        positions = batch_positions(
            len(source),
            batch_size=config.batch_size,
            seed=config.seed,
            batch=step - 1,
            repeats=self._run.task.augment_repeats(config),
        )
        return f"{self._verdict(step, source)} The batch of step {step}: {_names(source, positions)}."

    def _verdict(self, step: int, source: Source) -> str:
        if jax.process_count() > 1:
            return (
                "With several processes no single example is searched for; the same command in one process sees the "
                f"same batches and does. If none is bad: {_ADVICE}"
            )
        if self._searches == MAX_SEARCHES:
            return f"After {MAX_SEARCHES} searches no further batch is searched for bad examples."
        self._searches += 1
        try:
            batch = self._batch_again(step)
            groups = find_bad_rows(self._trial(batch, step), self._config.batch_size)
        except Exception as error:  # whatever goes wrong here must not hide what is to be reported
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"The search for a bad example in the batch failed ({first_line}). If there is none: {_ADVICE}"
        if not groups:
            return f"The same batch is finite with the weights of now, so no example is bad by itself. {_ADVICE}"
        if sum(map(len, groups)) == self._config.batch_size:
            return f"No part of the batch stands out, so no single example is at fault. {_ADVICE}"
        names = [_names(source, batch["index"][group]) for group in _singles_first(groups)]
        return f"At fault: {'; '.join(names)} (a batch of nothing else is not finite either). Repair or remove it."

    def _batch_again(self, step: int) -> dict[str, np.ndarray]:
        task = get_task(self._config.task).for_training(self._config, self._run.dataset.labels)
        with task.train_batches(self._run.dataset, start_step=step - 1) as batches:
            batch = next(batches)
        return {name: batch[name] for name in (*task.batch_fields, "index")}

    def _trial(self, batch: dict[str, np.ndarray], step: int) -> Callable[[np.ndarray], bool]:
        """Returns whether the step is skipped when the batch has nothing but the given rows."""
        parallel, state = self._run.parallel, jax.device_get(self._state()).replace(step=np.int32(step - 1))
        fields = {name: values for name, values in batch.items() if name != "index"}

        def is_bad(rows: np.ndarray) -> bool:
            rows = np.resize(rows, self._config.batch_size)  # over and over
            part = parallel.put_batch({name: values[rows] for name, values in fields.items()})
            _, metrics = self._run.train_step(parallel.put_state(state), part)
            return bool(metrics["skipped"])

        return is_bad


def find_bad_rows(
    is_bad: Callable[[np.ndarray], bool], count: int, *, max_trials: int = MAX_TRIALS
) -> list[np.ndarray]:
    """Returns the smallest groups of rows found bad, by halving: for one bad row of N about 2 log2(N) trials.

    ``is_bad`` says of the positions of some rows whether they are bad together. After ``max_trials`` groups stay as
    large as they are. Groups are positions in their order, most of them single; none where all rows together are not
    bad, all N in one where no half is bad, or where eight single rows and all parts tried so far are.
    """
    everything = np.arange(count)
    if not is_bad(everything):
        return []
    found, open_groups, trials, all_bad = [], [everything], 1, True
    while open_groups and trials + 2 <= max_trials:
        group = open_groups.pop()
        if len(group) == 1:
            found.append(group)
            if all_bad and len(found) == ENOUGH:
                return [everything]
            continue
        bad = [half for half in np.array_split(group, 2) if is_bad(half)]
        trials += 2
        all_bad &= len(bad) == 2
        if not bad:
            found.append(group)
        open_groups += reversed(bad)
    return sorted(found + open_groups, key=lambda group: group[0])


def _singles_first(groups: list[np.ndarray]) -> list[np.ndarray]:
    """Returns all rows that are bad by themselves in one group, then the groups that are bad together."""
    singles = [group for group in groups if len(group) == 1]
    return ([np.concatenate(singles)] if singles else []) + [group for group in groups if len(group) > 1]


def _names(source: Source, positions: Iterable[int]) -> str:
    """Returns names of the examples, each once, the first few of many."""
    positions = list(dict.fromkeys(int(position) for position in positions))
    shown = ", ".join(_name(source, position) for position in positions[:MAX_NAMES])
    more = len(positions) - MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _name(source: Source, position: int) -> str:
    try:
        example: dict[str, Any] = source[position]
    except Exception:  # a record that cannot be read still has its place
        return f"the example at position {position}"
    return repr(next(example[field] for field in _NAME_FIELDS if field in example))
