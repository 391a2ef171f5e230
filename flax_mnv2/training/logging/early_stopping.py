"""Ends a run whose evaluations have stopped getting better."""

from collections.abc import Iterable


class EarlyStopping:
    """Follows the score of each evaluation, more is better, and says when enough of them were no better than the best.

    ``best`` and ``best_step`` are the highest score so far and the step it was reached at, None before the first.
    """

    def __init__(self, patience: int, threshold: float, scores: Iterable[tuple[int, float]] = ()):
        """Stops after ``patience`` evaluations of which none was above the best by more than ``threshold``; 0 is never.

        ``scores`` are (step, score) of the evaluations that the run has had already.
        """
        self._patience, self._threshold = patience, threshold
        self.best: float | None = None
        self.best_step: int | None = None
        self._waited = 0
        for step, score in scores:
            self.add(step, score)

    def add(self, step: int, score: float) -> None:
        """Takes the score of one evaluation; NaN is no better than any."""
        if self.best is None or score > self.best + self._threshold:
            self.best, self.best_step, self._waited = score, step, 0
        else:
            self._waited += 1

    @property
    def now(self) -> bool:
        """Whether the run is to end."""
        return 0 < self._patience <= self._waited
