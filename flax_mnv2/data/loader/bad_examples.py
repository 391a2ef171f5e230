"""Examples that cannot be read: they stop a run, or others take their place up to a budget.

A row is made by a function from a position in the split. Such a function raises :class:`BadExampleError` for what is
damaged, and for nothing else; the classes here stand around it where the config says "skip".
"""

import dataclasses
import json
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from flax_mnv2.errors import DataError

BAD = "bad"  # field of a batch, taken out before anybody sees it: JSON of what each row stumbled over, or ""

_NAMED = 5  # in one message
_said: set[tuple[str, int]] = set()  # place and position: an example evaluated a hundred times is reported once


class BadExampleError(DataError):
    """One example is damaged: ``name`` says which, ``reason`` what is wrong with it."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason.rstrip(".")
        self.words = f"{self.name} ({self.reason})"
        super().__init__(name, reason)  # what unpickling passes, when a worker process has raised it

    def __str__(self) -> str:
        return (
            f"Example {self.name!r}: {self.reason}. Or leave such examples out: --config.data.bad_examples=skip, up to "
            "--config.data.max_bad_examples of them."
        )


@dataclasses.dataclass(frozen=True)
class SubstituteRow:
    """Training rows: the next readable example of the split takes the place of a bad one.

    The row goes on with the same generator, so that it depends on the seed, the step and the data alone, and no other
    row changes.
    """

    make_row: Callable[[int, np.random.Generator], dict[str, np.ndarray]]
    length: int  # of the split
    limit: int  # examples to try after the first; more would be over the budget

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the row, with the field :data:`BAD`."""
        bad = []
        for position in range(index, index + min(self.limit + 1, self.length)):
            try:
                row = self.make_row(position % self.length, rng)
            except BadExampleError as error:
                bad.append((position % self.length, error.words))
            else:
                return row | {BAD: _text(bad)}
        raise DataError(
            f"{len(bad)} examples in a row cannot be read: {_listed([words for _, words in bad])}. Is the disk or the "
            "data set damaged?"
        )


@dataclasses.dataclass(frozen=True)
class MaskedRow:
    """Evaluation rows: a filler takes the place of a bad example, so that it counts for nothing."""

    make_row: Callable[[int], dict[str, np.ndarray]]
    filler: int  # a position whose row is a filler, with a mask that is False

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        """Returns the row, with the field :data:`BAD`."""
        try:
            return self.make_row(index) | {BAD: _text([])}
        except BadExampleError as error:
            return self.make_row(self.filler) | {BAD: _text([(index, error.words)])}


class BadExamples:
    """Those that an iterator has met in a split, held against the budget and reported once each."""

    def __init__(self, max_bad: int, place: str):
        self.found: dict[int, str] = {}  # by position in the split, the name of the example with the reason
        self._max_bad = max_bad
        self._place = place

    def take_from(self, batch: dict[str, np.ndarray]) -> None:
        """Takes the field :data:`BAD` out of a batch; a DataError where there are too many."""
        for text in filter(None, batch.pop(BAD).tolist()):
            for position, words in json.loads(text):
                if position not in self.found:
                    self._add(position, words)

    def _add(self, position: int, words: str) -> None:
        self.found[position] = words
        if (self._place, position) not in _said:
            _said.add((self._place, position))
            logging.warning("Left out a bad example: %s", words)
        if len(self.found) > self._max_bad:
            raise DataError(
                f"More than {self._max_bad} examples cannot be read: {_listed(list(self.found.values()))}. Repair the "
                "data set, or allow more with --config.data.max_bad_examples."
            )


def report(found: Mapping[int, str]) -> str:
    """Returns one line about examples that were left out."""
    count = len(found)
    return f"{count} bad example{' was' if count == 1 else 's were'} left out: {_listed(list(found.values()))}"


def _text(bad: list[tuple[int, str]]) -> np.str_:
    return np.str_(json.dumps(bad) if bad else "")


def _listed(words: list[str]) -> str:
    return "; ".join(words[:_NAMED]) + (f"; and {len(words) - _NAMED} more" if len(words) > _NAMED else "")
